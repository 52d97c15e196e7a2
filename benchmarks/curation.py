"""What the processor time of a curation goes to, and whether it writes the same bytes however it is run and killed.

    python benchmarks/curation.py FOOTAGE --out FOLDER [--config curation.yaml] [--workers 1 4] [--kills 3]

First all units run in this process, one after the other, with a clock on its parts. Then `latentvid curate` runs as a
program with each number of Ray's processes, and once more with SIGKILL to it after units of work that are spread over
its length, each time started again; the outputs' bytes are compared. Processor time is that of the program and of all
processes that it starts, Ray's own included, as far as they were seen alive (every tenth of a second).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psutil
import torch

from latentvid.config.parsing import load_config
from latentvid.curation import measuring, probing
from latentvid.curation.run import curate
from latentvid.curation.settings import Curation
from latentvid.curation.writing import OUTPUTS

MEASURES = ("borders", "motion", "static", "blur", "exposure", "flicker", "signature")
PARTS = {"motion": "optical flow", "signature": "hashes", "borders": "borders", "blur": "blur"}


class Clock:
    """Seconds of this process by part; of nested parts the innermost counts."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._parts, self._at = ["all else"], time.process_time()

    def turn(self) -> None:
        now = time.process_time()
        self.spent[self._parts[-1]] += now - self._at
        self._at = now

    def timed(self, part: str, call: Callable) -> Callable:
        def timed(*arguments: Any, **named: Any) -> Any:
            self.turn()
            self._parts.append(part)
            try:
                return call(*arguments, **named)
            finally:
                self.turn()
                self._parts.pop()

        return timed

    def watch(self) -> None:
        """Puts itself on the stages' parts."""
        each_frame, detector = probing.each_frame, probing._detector

        def each(path: str, first: int, count: int, then: Callable, size: Any) -> None:
            self.timed("decoding", each_frame)(path, first, count, self.timed("luma, of frames to measure", then), size)

        def detecting(*arguments: Any) -> Any:
            timecode, made = detector(*arguments)
            made.process_frame = self.timed("PySceneDetect", made.process_frame)
            return timecode, made

        probing.each_frame = measuring.each_frame = each
        probing._detector, probing.probe = detecting, self.timed("decoding", probing.probe)
        for name in MEASURES:
            setattr(measuring, name, self.timed(PARTS.get(name, "other measures"), getattr(measuring, name)))


class Loop:
    """Units one after the other in this process."""

    def map(
        self, make: Callable[[], Callable], units: Iterable[tuple[str, Any]], *, network: bool
    ) -> Iterator[tuple[str, Any]]:
        work = make()
        for key, unit in units:
            yield key, work(unit)


@contextmanager
def in_a_loop() -> Iterator[Loop]:
    yield Loop()


def parts_of(settings: Curation, footage: Path, out: Path) -> Counter[str]:
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    clock.watch()
    curate(settings, footage, out, in_a_loop)
    clock.turn()
    return clock.spent


def noted(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("journals/*.jsonl"))


def program(
    footage: Path, out: Path, config: Path | None, workers: int, until: int | None = None
) -> tuple[float, bool]:
    """(processor seconds, whether it ended by itself) of one start, killed once so many units are noted."""
    words = ["-m", "latentvid", "curate", str(footage), str(out), "--workers", str(workers)]
    words += [] if config is None else ["--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen: dict[tuple[int, float], float] = {}
    while run.poll() is None:
        with suppress(psutil.Error):
            for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
                with suppress(psutil.Error):
                    seen[process.pid, process.create_time()] = sum(process.cpu_times()[:2])
        if until is not None and noted(out) >= until:
            run.send_signal(signal.SIGKILL)
            run.wait()
            return sum(seen.values()), False
        time.sleep(0.1)
    if run.returncode:
        raise SystemExit(run.stderr.read().decode())
    return sum(seen.values()), True


def digest(out: Path) -> str:
    return blake2b(b"".join((out / name).read_bytes() for name in OUTPUTS), digest_size=8).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the curations")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, str] = {}
    spent = parts_of(load_config(Curation, args.config), args.footage.resolve(), args.out / "loop")
    units, total = noted(args.out / "loop"), sum(spent.values())
    found["loop"] = digest(args.out / "loop")
    print(json.dumps({"units": units, "cpu_s": round(total, 1)}), flush=True)
    for part, seconds in spent.most_common():
        print(json.dumps({"part": part, "cpu_s": round(seconds, 2), "share": round(seconds / total, 3)}), flush=True)
    for workers in args.workers:
        out = args.out / f"workers-{workers}"
        shutil.rmtree(out, ignore_errors=True)
        seconds, _ = program(args.footage.resolve(), out, args.config, workers)
        found[out.name] = digest(out)
        print(json.dumps({"workers": workers, "cpu_s": round(seconds, 1), "bytes": found[out.name]}), flush=True)
    if args.kills:
        out, kills = args.out / "killed", 0
        shutil.rmtree(out, ignore_errors=True)
        for n in range(args.kills):
            kills += not program(args.footage.resolve(), out, args.config, 2, 1 + n * units // (args.kills + 1))[1]
        program(args.footage.resolve(), out, args.config, 2)
        found[out.name] = digest(out)
        print(json.dumps({"kills": kills, "bytes": found[out.name]}), flush=True)
    print("the same bytes" if len(set(found.values())) == 1 else f"other bytes: {found}")
    raise SystemExit(len(set(found.values())) != 1)


if __name__ == "__main__":
    main()
