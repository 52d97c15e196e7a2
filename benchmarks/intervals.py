"""Whether the intervals of scores of sets cover what they should, and are no wider than need be, by simulation.

    python benchmarks/intervals.py [--files 40 100 400 --features 16 100 400 --clips 1 16 --sims 400] [--out FILE]

Two sets are drawn again and again from Gaussians whose standard deviations fall as 1 / sqrt(k): alike, or one shifted
(by the first feature's standard deviation times --shifts) and up to 1.2 times as wide. Of each the score and its
interval are taken. Coverage is how often the interval holds the mean of all scores; width is the mean width in standard
deviations of the scores: 3.92 is ideal. Of several clips a file 60 % of their variance is the file's.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from latentvid.evaluation.defaults import RESAMPLES
from latentvid.evaluation.sets.scores import FrechetScore, KernelScore, SetScore
from latentvid.evaluation.summary import summarise_one
from latentvid.files import write_whole

SHARED = 0.6  # of the variance of clips, by those of one file
SCORES = {"fvd": FrechetScore("fvd", "x"), "kvd": KernelScore("kvd", "x")}


def draw(random: torch.Generator, files: int, clips: int, features: int, shift: float, scale: float) -> list[Tensor]:
    of_file = torch.randn(files, 1, features, generator=random).double()
    rows = torch.randn(files, clips, features, generator=random).double()
    if clips > 1:
        rows = SHARED**0.5 * of_file + (1 - SHARED) ** 0.5 * rows
    rows = rows * scale * torch.arange(1, features + 1) ** -0.5 + shift / features**0.5
    return list(rows.reshape(files * clips, 1, features))


def simulate(
    score: SetScore, files: int, features: int, clips: int, shift: float, sims: int, resamples: int
) -> dict[str, float]:
    random, of = torch.Generator().manual_seed(0), [file for file in range(files) for _ in range(clips)]
    found = []
    for _ in range(sims):
        a, b = (draw(random, files, clips, features, by, 1 + 0.2 * min(by, 1)) for by in (0.0, shift))
        found.append(summarise_one(score, b, a, resamples, of, of))
    values = [result.value for result in found]
    mean, deviation = fmean(values), stdev(values)
    return {
        "mean": mean,
        "deviation": deviation,
        "coverage": fmean(result.low <= mean <= result.high for result in found),
        "above": fmean(result.low > mean for result in found),
        "width": fmean(result.high - result.low for result in found) / deviation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--files", nargs="+", type=int, default=[40, 100, 400])
    parser.add_argument("--features", nargs="+", type=int, default=[16, 100, 400])
    parser.add_argument("--clips", nargs="+", type=int, default=[1, 16], help="of a file")
    parser.add_argument("--shifts", nargs="+", type=float, default=[0, 0.5, 1.5])
    parser.add_argument("--sims", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    print("score  files  clips  features  shift  coverage   above   width")
    for name, files, clips, features, shift in product(args.scores, args.files, args.clips, args.features, args.shifts):
        begun = time.monotonic()
        row = {"score": name, "files": files, "clips": clips, "features": features, "shift": shift}
        row |= simulate(SCORES[name], files, features, clips, shift, args.sims, args.resamples) | {"sims": args.sims}
        row["seconds"] = time.monotonic() - begun
        rows.append(row)
        print(
            f"{name:5s} {files:6d} {clips:6d} {features:9d} {shift:6.1f} {row['coverage']:9.1%} "
            f"{row['above']:7.1%} {row['width']:7.2f}",
            flush=True,
        )
        if args.out is not None:
            write_whole(args.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
