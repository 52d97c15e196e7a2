"""Seconds and memory from a manifest of a million rows to the first planned step, on one core.

.venv/bin/python benchmarks/million.py

Makes a table of 30% images and clips of 3 s to 60 s (24 fps, median 4.5 s, captions of about 200 letters) in a
temporary folder. Its paths lead to 1,000 small files, so that every row's file is looked at as in a real start. Each
line is one process: read_manifest, ClipSource, tokens, Plan, first step.
"""

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet

SIZES = [(720, 1280), (1080, 1920), (1280, 720), (480, 854), (768, 768), (1080, 1440)]
HEAD = ["table", "max_frames", "windows", "import s", "manifest s", "windows s", "plan s", "all s", "processor s"]
HEAD += ["peak MB", "pickle MB", "in step"]
WIDTHS = [8, 12, 11, 10, 12, 11, 8, 7, 13, 9, 11, 9]
CAPTION = "the dog runs through tall grass while a camera follows slowly under warm evening light"


def write_tables(folder: Path, rows: int) -> None:
    draw, words = random.Random(0), CAPTION.split()
    names = [f"footage/part-{k // 100:03d}/source-recording-{k:07d}-scene.mp4" for k in range(1000)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    table = []
    for i in range(rows):
        image, (height, width) = draw.random() < 0.3, draw.choice(SIZES)
        frames = 1 if image else int(24 * min(60, max(3, draw.lognormvariate(1.5, 0.5))))
        row = {"path": names[i % 1000], "caption": " ".join(draw.choices(words, k=36)), "frames": frames}
        table.append(row | {"fps": 0.0 if image else 24.0, "height": height, "width": width, "score": draw.random()})
    with open(folder / "m.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "m.parquet")


def measure(manifest: Path, max_frames: int) -> None:
    """One start, in this process; prints a line."""
    times = [time.perf_counter()]
    from latentvid.data.clips import ClipSource, Transform
    from latentvid.data.manifest.manifest import read_manifest
    from latentvid.data.plan.plan import Plan

    times.append(time.perf_counter())
    table = read_manifest(manifest)
    times.append(time.perf_counter())
    transform = Transform(spatial_stride=16, temporal_stride=4, max_area=256 * 256, max_frames=max_frames)
    source = ClipSource(table, transform)
    tokens = source.per_shape(lambda f, h, w: (1 + (f - 1) // 4) * (h // 16) * (w // 16))
    times.append(time.perf_counter())
    step = Plan(tokens, budget=32768, packs=64, seed=0).next()
    times.append(time.perf_counter())
    processor = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    state = pickle.dumps(source)  # what a loader process is sent
    seconds = [f"{b - a:.1f}" for a, b in zip(times, times[1:], strict=False)]
    total = [f"{times[-1] - times[0]:.1f}", f"{processor:.1f}"]
    sizes = [f"{peak:.0f}", f"{len(state) / 2**20:.0f}"]
    print_row([manifest.suffix[1:], max_frames, f"{len(source):,}", *seconds, *total, *sizes, step.samples])


def print_row(cells: list) -> None:
    print("".join(f"{cell!s:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, metavar=("MANIFEST", "MAX_FRAMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(Path(arguments.one[0]), int(arguments.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), arguments.rows)
        print_row(HEAD)
        for ending in ("parquet", "jsonl"):
            for max_frames in (129, 17):
                command = [sys.executable, __file__, "--one", f"{folder}/m.{ending}", str(max_frames)]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
