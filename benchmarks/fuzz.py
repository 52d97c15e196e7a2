"""Seeded hostile input for every program: each case a valid input that one or two things were done to.

    python benchmarks/fuzz.py [--cases 1000] [--seed 0] [--only 17 234] [--areas cache pipeline] [--json FILE]

Each case must end with status 0 or with one `error:` message that names what is wrong: no traceback, no hang, no more
memory than a few GiB, no network, nothing of the user's lost, and nothing taken in silence that cannot work. Prints how
many cases of each area ended how; status 1 if some ended badly. --json keeps those, with what was done and the command,
and those that were taken, to be looked at. `--only N` (with the same --seed and --areas) repeats case N and shows what
it said; --keep leaves the folders of bad cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from fuzz_base import build
from fuzz_draw import Draw
from fuzz_inference import AREAS as INFERENCE
from fuzz_run import BAD, GOOD, SECONDS, Case, Outcome, Running, fork, judge, start
from fuzz_saved import AREAS as SAVED
from fuzz_training import AREAS as TRAINING

import latentvid.evaluation.pairs.whole_file
import latentvid.evaluation.scoring
import latentvid.evaluation.vae.scores
import latentvid.pipelines.command
import latentvid.pipelines.outputs
import latentvid.pipelines.prompts
import latentvid.pipelines.rollout
import latentvid.report.pages
import latentvid.training.export
import latentvid.training.trainer  # noqa: F401 - what every case needs is there before the fork

AREAS: dict[str, tuple[int, Callable[[Draw, Path, Path], Case]]] = (
    TRAINING | SAVED | INFERENCE
)  # how often, and its cases


def area_of(seed: int, number: int, areas: Sequence[str]) -> tuple[str, Draw]:
    """The area of a case and what draws it: by the seed and its number alone."""
    draw = Draw(f"{seed}:{number}")
    return draw.choices(areas, [AREAS[name][0] for name in areas])[0], draw


def run_cases(
    numbers: Sequence[int], seed: int, areas: Sequence[str], work: Path, jobs: int, seconds: float
) -> list[Outcome]:
    """Runs the cases, `jobs` at a time; says how far it is."""
    waiting, found = list(reversed(numbers)), []
    running: dict[int, tuple[Running, str]] = {}
    shown = time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop()
            area, draw = area_of(seed, number, areas)
            folder = work / f"case-{number}"
            made = start(number, folder, partial(AREAS[area][1], draw, work / "base", folder))
            running[made.pid] = made, area
        time.sleep(0.02)
        for pid, (run, area) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = not ended and run.seconds() > seconds
            if not (ended or late):
                continue
            run.end()
            if late:
                status = os.waitpid(pid, 0)[1]
            found.append(judge(run, area, status, late))
            del running[pid]
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"{len(found)} of {len(numbers)} cases", file=sys.stderr, flush=True)
        for outcome in found[-jobs:]:
            if outcome.kind in GOOD and len(numbers) > 1:
                shutil.rmtree(work / f"case-{outcome.number}", ignore_errors=True)
    return sorted(found, key=lambda outcome: outcome.number)


def table(found: Sequence[Outcome]) -> str:
    """Cases by area and class, in Markdown."""
    kinds = [*GOOD, *(kind for kind in BAD if any(o.kind == kind for o in found))]
    lines = [["area", "cases", *kinds]]
    for area in [*sorted({o.area for o in found}), "all"]:
        counts = Counter(o.kind for o in found if area in (o.area, "all"))
        lines.append([area, str(counts.total()), *(str(counts[kind] or "") for kind in kinds)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "|".join("-" * (w + 2) for w in widths)
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], f"|{rule}|", *rows[1:]])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these cases alone")
    parser.add_argument("--areas", nargs="+", choices=sorted(AREAS), default=list(AREAS), help="default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (default: a processor each)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a case may take (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the bad cases, and those that were taken")
    parser.add_argument("--keep", type=Path, help="work here, and leave the folders of bad cases")
    return parser.parse_args()


def main() -> int:
    args = parse()
    torch.set_num_threads(1)
    begun = time.monotonic()
    work = Path(args.keep or tempfile.mkdtemp(prefix="fuzz-")).absolute()
    try:
        if not (work / "base").exists():
            work.mkdir(exist_ok=True)
            if os.waitpid(fork(lambda: build(work / "base") or 0, work), 0)[1]:
                print((work / "stderr").read_text(), file=sys.stderr)
                return 2
        built = time.monotonic() - begun
        for old in work.glob("case-*"):
            shutil.rmtree(old)
        numbers = args.only or range(args.first, args.first + args.cases)
        found = run_cases(numbers, args.seed, args.areas, work, args.jobs, args.seconds)
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    bad = [outcome for outcome in found if outcome.kind in BAD]
    for outcome in found if args.only else bad:
        print(f"{outcome.number} {outcome.area}: {outcome.kind}: {outcome.what}")
        if args.only:
            print(f"{outcome.command}\n{outcome.said}")
    took = f"{time.monotonic() - begun:.0f} s ({built:.0f} of them to make the inputs)"
    print(f"{table(found)}\n\nseed {args.seed}, {took}", flush=True)
    if args.json:
        taken = [asdict(outcome) for outcome in found if outcome.kind == "taken"]
        counts = dict(Counter(outcome.kind for outcome in found))
        kept = {"seed": args.seed, "counts": counts, "bad": [asdict(outcome) for outcome in bad], "taken": taken}
        args.json.write_text(json.dumps(kept, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    os._exit(main())
