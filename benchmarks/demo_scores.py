"""The README's table of the demo's scores, from the scores.json of several seeds.

for seed in 0 1 2; do make demo SEED=$seed; done
.venv/bin/python benchmarks/demo_scores.py runs/demo runs/demo-seed1 runs/demo-seed2
"""

import argparse
import json
from pathlib import Path

from latentvid.demo.scores import ORDER, THRESHOLDS
from latentvid.errors import UserError, user_errors

NAMES = {
    "vae_psnr": "VAE on held-out clips, PSNR (dB)",
    "vae_ssim": "VAE on held-out clips, SSIM",
    "digit": "right digit, seen pairs",
    "direction": "right direction, seen pairs",
    "both": "both, seen pairs",
    "strict": "strict: direction, and >= 75% of frames read as the digit",
    "colour": "right colour",
    "verb": "moves or bounces, as asked",
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
    print(f"| {len(every)} seeds | mean | lowest to highest | at least | aim | real clips |\n|---|---|---|---|---|---|")
    for key in ORDER:
        values = [scores[key] for scores in every]
        digits = 1 if key == "vae_psnr" else 3
        least, aim = THRESHOLDS.get(key, ("", ""))
        real = every[0]["real"].get(key)
        ceiling = "" if real is None else f"{real:.3f}"
        mean = sum(values) / len(values)
        span = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        print(f"| {NAMES[key]} | {mean:.{digits}f} | {span} | {least} | {aim} | {ceiling} |")
    minutes = [scores["seconds"] / 60 for scores in every if scores["seconds"]]
    if minutes:
        span = f"{min(minutes):.1f} to {max(minutes):.1f}"
        print(f"| `make demo` after set-up (minutes) | {sum(minutes) / len(minutes):.1f} | {span} | 12 | 8 | |")


if __name__ == "__main__":
    main()
