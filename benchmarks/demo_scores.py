"""The README's table of the demo's scores, from the scores.json of several seeds.

for seed in 0 1 2; do make demo SEED=$seed; done
.venv/bin/python benchmarks/demo_scores.py runs/demo runs/demo-seed1 runs/demo-seed2
"""

import argparse
import json
from pathlib import Path

from latentvid.demo.scores import ORDER
from latentvid.errors import UserError, user_errors
from latentvid.tables import markdown_table

NAMES = {
    "vae_psnr": "VAE on held-out clips, PSNR (dB)",
    "vae_ssim": "VAE on held-out clips, SSIM",
    "digit": "right digit, seen pairs",
    "direction": "right direction, seen pairs",
    "both": "both, seen pairs",
    "strict": "strict: direction, and >= 75% of frames read as the digit",
    "colour": "right colour",
    "verb": "moves or bounces, as the prompt says",
    "heldout_both": "both, held-out pairs",
    "heldout_strict": "strict, held-out pairs",
    "shuffled_both": "both, captions shuffled (control)",
}


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that make demo left")
    runs = parser.parse_args().runs
    missing = [run for run in runs if not (run / "scores.json").is_file()]
    if missing:
        raise UserError(f"{missing[0]} has no scores.json: run make demo first")
    every = [json.loads((run / "scores.json").read_text(encoding="utf-8")) for run in runs]
    rows = []
    for key in ORDER:
        values = [scores[key] for scores in every]
        digits = 1 if key == "vae_psnr" else 3
        real = every[0]["real"].get(key)
        ceiling = "" if real is None else f"{real:.3f}"
        mean = sum(values) / len(values)
        span = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        rows.append((NAMES[key], f"{mean:.{digits}f}", span, ceiling))
    minutes = [scores["seconds"] / 60 for scores in every if scores["seconds"]]
    if minutes:
        span = f"{min(minutes):.1f} to {max(minutes):.1f}"
        rows.append(("`make demo` after set-up (minutes)", f"{sum(minutes) / len(minutes):.1f}", span, ""))
    print(markdown_table((f"{len(every)} seeds", "mean", "lowest to highest", "real clips"), rows))


if __name__ == "__main__":
    main()
