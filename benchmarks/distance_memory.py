"""Memory that FID and its interval take by the number of clips, on random features, each in a process of its own.

    python benchmarks/distance_memory.py [--clips 64 2048] [--pictures 4]

MB is the highest resident memory: before, with the rows of both sets, and of the distance, of its derivatives, and of
one halving of the clips, of which an interval takes up to 40 one after another.
"""

import argparse
import resource
import subprocess
import sys

import torch

from latentvid.evaluation.sets.scores import FrechetScore

FEATURES = 2048
PARTS = ("distance", "derivatives", "halves")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(clips: int, pictures: int, part: str) -> None:
    torch.set_num_threads(1)
    before, random, score = peak(), torch.Generator().manual_seed(0), FrechetScore("fid", "inception")
    rows, real = ([torch.randn(pictures, FEATURES, generator=random) for _ in range(clips)] for _ in range(2))
    first = torch.arange(clips)[None] % 2 == 0
    held = peak()
    if part == "distance":
        score(rows, real)
    elif part == "derivatives":
        score.derivatives(rows, real)
    else:
        score.of_halves(rows, first, real, first)
    print(f"| {clips} | {part} | {before:.0f} | {held:.0f} | {peak():.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--part", choices=PARTS, help="measure it here (default: each in a process of its own)")
    args = parser.parse_args()
    if args.part is not None:
        measure(args.clips[0], args.pictures, args.part)
        return
    print("| clips of each set | of | before, MB | with rows, MB | highest, MB |\n|---|---|---|---|---|", flush=True)
    for clips in args.clips:
        for part in PARTS:
            own = ["--clips", str(clips), "--pictures", str(args.pictures), "--part", part]
            subprocess.run([sys.executable, __file__, *own], check=True)


if __name__ == "__main__":
    main()
