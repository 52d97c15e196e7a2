"""Whether a short run of the demo is as good as it must be: a nightly check, which a silent loss of quality fails.

    python benchmarks/check_quality.py runs/quality        # what `make check-quality` leaves; status 1 where one is not

The autoencoder must be above a floor; the clips must show what their prompts say more often than chance does: by an
exact binomial test against the share that clips get which know nothing of their prompt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from latentvid.demo.digits import COLOURS, DIRECTIONS
from latentvid.errors import UserError, user_errors
from latentvid.files import read_json
from latentvid.tables import text_table

FLOORS = {"vae_psnr": 22.5, "vae_ssim": 0.7}  # the short run has 23.2 dB and 0.73 (2026-12-01)
CHANCES = {"digit": 1 / 10, "direction": 1 / len(DIRECTIONS), "colour": 1 / len(COLOURS)}
P = 1e-3  # of a run that does not follow its prompts at all: once in a thousand nights


def verdicts(scores: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """Of what a demo's scores.json holds: (score, value, what it must be, whether it is)."""
    values = {name: float(scores[name]) for name in FLOORS}
    found = [(name, values[name], f"at least {least:g}", values[name] >= least) for name, least in FLOORS.items()]
    count = int(scores["counts"]["seen"])
    for name, chance in (CHANCES | {"both": float(scores["chance_both"])}).items():
        hits = round(float(scores[name]) * count)
        p = binomtest(hits, count, chance, alternative="greater").pvalue
        found.append((name, hits / count, f"above chance, {chance:.3f} (p {p:.1g} of {count} clips)", bool(p < P)))
    return found


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished demo's folder")
    file = parser.parse_args().run / "scores.json"
    try:
        found = verdicts(read_json(file))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not what the demo writes ({error!r}): make check-quality writes it") from error
    rows = [(name, f"{value:.3f}", must, "yes" if good else "NO") for name, value, must, good in found]
    print(text_table([("score", "measured", "must be", "is"), *rows]))
    if not all(good for *_, good in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
