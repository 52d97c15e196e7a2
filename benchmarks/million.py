"""Seconds and memory from a manifest of a million rows to the first planned step, and in loader processes.

.venv/bin/python benchmarks/million.py [--rows 10_000_000] [--endings made] [--max-frames 129] [--loaders 2]

Makes a table of 30% images and clips of 3 s to 60 s (24 fps, median 4.5 s, captions of about 200 letters) in a
temporary folder. Its paths lead to 1,000 small files, so that every row's file is looked at as in a real start. Each
line is one process: read_manifest, ClipSource, identity, tokens, Plan, first step; and of the loader processes that it
starts, as training does, after each has looked up 10,000 windows, the one that has most.

Bytes are those that a process has resident more than before it read the table, over the rows: "own" is memory of its
own; "mapped" are the pages of the shared table that it has touched, which all processes have together and the system
takes back when it needs them. "on disk" is the table, once a machine.
"""

import argparse
import copy
import gc
import multiprocessing
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

SIZES = [(720, 1280), (1080, 1920), (1280, 720), (480, 854), (768, 768), (1080, 1440)]
HEAD = ["table", "max_frames", "windows", "manifest s", "windows s", "plan s", "processor s", "peak MB", "sent bytes"]
HEAD += ["on disk", "own", "mapped", "loader: own", "mapped"]
WIDTHS = [8, 12, 12, 12, 11, 8, 13, 9, 12, 9, 7, 8, 13, 8]
CAPTION = "the dog runs through tall grass while a camera follows slowly under warm evening light"
LOOKED_UP, PACK = 10_000, 100  # windows


def write_table(path: Path, rows: int) -> None:
    from latentvid.data.manifest.tables import WRITERS

    draw, words = random.Random(0), CAPTION.split()
    names = [f"footage/part-{k // 100:03d}/source-recording-{k:07d}-scene.mp4" for k in range(1000)]
    for name in names:
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(b"x" * 2000)  # no file has more frames than bytes
    captions = [" ".join(draw.choices(words, k=36)) for _ in range(1000)]

    def row(i: int) -> dict:
        image, (height, width) = draw.random() < 0.3, draw.choice(SIZES)
        frames = 1 if image else int(24 * min(60, max(3, draw.lognormvariate(1.5, 0.5))))
        facts = {"frames": frames, "fps": 0.0 if image else 24.0, "height": height, "width": width}
        return {"path": names[i % 1000], "caption": f"{i} {draw.choice(captions)}", **facts, "score": draw.random()}

    if path.suffix == ".parquet":
        schema = pyarrow.Table.from_pylist([row(0)]).schema
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for begin in range(0, rows, 100_000):
                part = [row(i) for i in range(begin, min(begin + 100_000, rows))]
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
        return
    part = path.with_name(f"part{path.suffix}")
    with open(path, "wb") as file:
        for begin in range(0, rows, 100_000):
            WRITERS[path.suffix](part, [row(i) for i in range(begin, min(begin + 100_000, rows))])
            text = part.read_bytes()
            file.write(text if begin == 0 or path.suffix == ".jsonl" else text.partition(b"\n")[2])
    part.unlink()


def made_table(rows: int) -> Any:
    """A manifest of such rows, whose shared table is made without reading one: ten million are read in ten minutes."""
    from latentvid.data.manifest import samples
    from latentvid.data.manifest.manifest import Manifest

    def batches(_: Any) -> Iterator[pyarrow.RecordBatch]:
        draw, words = np.random.default_rng(0), CAPTION.split()
        captions = [f"{i:07d} {' '.join(draw.choice(words, 36))}".encode() for i in range(1000)]
        paths = [f"footage/part-{k // 100:03d}/source-recording-{k:07d}-scene.mp4".encode() for k in range(1000)]
        for begin in range(0, rows, samples.BATCH_ROWS):
            count = min(samples.BATCH_ROWS, rows - begin)
            image, size = draw.random(count) < 0.3, np.array(SIZES)[draw.integers(len(SIZES), size=count)]
            frames = np.where(image, 1, 24 * draw.lognormal(1.5, 0.5, count).clip(3, 60))
            texts = [
                pyarrow.array(t, pyarrow.binary()).take(draw.integers(1000, size=count)) for t in (paths, captions)
            ]
            numbers = (frames, np.where(image, 0.0, 24.0), size[:, 0], size[:, 1], begin + 1 + np.arange(count))
            columns = [*texts, *map(pyarrow.array, numbers), *[pyarrow.array([b""] * count)] * 2]
            yield pyarrow.record_batch(
                [c.cast(field.type, safe=False) for c, field in zip(columns, samples._SCHEMA, strict=True)],
                schema=samples._SCHEMA,
            )

    samples._batches = batches
    return Manifest("made", *samples.Samples.of("/", lambda: ()))


def resident() -> tuple[int, int]:
    """Bytes of this process's own, and of files that it has mapped."""
    gc.collect()
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines if words[0].startswith("Rss")}
    return found["RssAnon:"] + found["RssShmem:"], found["RssFile:"]


def since(before: tuple[int, int], rows: int) -> list[str]:
    return [f"{(now - then) / rows:.1f}" for now, then in zip(resident(), before, strict=True)]


def load(sent: bytes, rows: int, answers) -> None:
    """A loader process: windows are looked up all over the table, with their path, caption and first frame."""
    from latentvid.data import clips  # noqa: F401 - imported before the memory is looked at

    before = resident()
    source = pickle.loads(sent)
    for number in range(LOOKED_UP):
        if number % PACK == 0:
            source.samples.rest()  # as `load_each` does
        index = number * 7919 % len(source)
        assert source.path(index) and source.caption(index) and source.start(index, 0, number) >= 0
    answers.put(since(before, rows))


def measure(manifest: Path, max_frames: int, loaders: int) -> None:
    """One start, in this process; prints a line."""
    from latentvid.data.clips import ClipSource, Transform
    from latentvid.data.manifest.manifest import read_manifest
    from latentvid.data.plan.plan import Plan

    before, times = resident(), [time.perf_counter()]
    table = made_table(int(manifest.stem)) if manifest.suffix == ".made" else read_manifest(manifest)
    rows = len(table.samples)
    times.append(time.perf_counter())
    transform = Transform(spatial_stride=16, temporal_stride=4, max_area=256 * 256, max_frames=max_frames)
    source = ClipSource(table, transform)
    del table
    source.identity()
    tokens = source.per_shape(lambda f, h, w: (1 + (f - 1) // 4) * (h // 16) * (w // 16))
    times.append(time.perf_counter())
    plan = Plan(tokens, budget=32768, packs=64, seed=0)
    ahead = copy.deepcopy(plan)  # as the loader's
    plan.next(), ahead.next()
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = since(before, rows)
    sent = pickle.dumps(source)
    on_disk = sum(path.stat().st_size for path in Path(tempfile.gettempdir()).glob("latentvid-*/*.arrow")) / rows
    seconds = [f"{b - a:.1f}" for a, b in zip(times, times[1:], strict=False)]
    context = multiprocessing.get_context("forkserver")
    answers = context.SimpleQueue()
    processes = [context.Process(target=load, args=(sent, rows, answers)) for _ in range(loaders)]
    for process in processes:
        process.start()
    found = [max(column, key=float) for column in zip(*(answers.get() for _ in processes), strict=True)]
    for process in processes:
        process.join()
    cells = [manifest.suffix[1:], max_frames, f"{len(source):,}", *seconds, f"{time.process_time():.1f}", f"{peak:.0f}"]
    print_row([*cells, len(sent), f"{on_disk:.0f}", *own, *(found or ("-", "-"))])


def print_row(cells: list) -> None:
    print("".join(f"{cell!s:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--endings", nargs="+", default=["parquet", "jsonl"], help="or `made`: nothing is read")
    parser.add_argument("--max-frames", nargs="+", type=int, default=[129, 17])
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("MANIFEST", "MAX_FRAMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(Path(arguments.one[0]), int(arguments.one[1]), arguments.loaders)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{arguments.rows:,} rows", flush=True)
        print_row(HEAD)
        for ending in arguments.endings:
            table = Path(folder, f"{arguments.rows}.{ending}")
            if ending != "made":
                write_table(table, arguments.rows)
            for max_frames in arguments.max_frames:
                one = ["--one", str(table), str(max_frames), "--loaders", str(arguments.loaders)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
                subprocess.run([sys.executable, __file__, *one], check=True, env=environment)


if __name__ == "__main__":
    main()
