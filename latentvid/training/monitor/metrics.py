"""What a run says about itself: ``metrics.jsonl``, and throughput."""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import file_fault, kept_beside, written_whole

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends one JSON object a line to ``RUN/metrics.jsonl``, flushed each time.

    ``resume_step``: lines of later steps, and a line cut short by a kill, are dropped first, so that the log of a
    resumed run is that of an uninterrupted one. A log with other lines that are no records, and the log of a run from
    the start (None), is moved aside instead: to NAME.1, or the next name that is free. NaN and infinity, which JSON
    cannot hold, are written as null. The main process alone opens the log.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None, name: str = "metrics.jsonl") -> None:
        self.path = Path(run_dir) / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fault := file_fault(self.path, self.path.parent):
            if self.path.is_symlink() or self.path.exists():
                raise UserError(f"{self.path} {fault}: move it away")
        elif resume_step is not None:
            _cut(self.path, resume_step)
        elif self.path.stat().st_size:
            logger.warning("%s is of an earlier run, and is kept as %s", self.path, kept_beside(self.path))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """One line; ``record["step"]`` is required. Zero-dimensional tensors and arrays become numbers."""
        if "step" not in record:
            raise ValueError(f"a line of {self.path.name} needs its step: {dict(record)!r:.200}")
        self._file.write(json.dumps({k: _plain(v) for k, v in record.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log of the run (empty when there is none); a last line cut short by a kill is left out."""
    path = Path(run_dir) / name
    if not path.exists():
        return []
    records = [_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [r for r in records if r is not None]


def _cut(path: Path, last_step: int) -> None:
    """Rewrites the log with the lines up to ``last_step``, in one step."""
    wrong = []
    with written_whole(path) as beside:
        with (
            path.open(encoding="utf-8", errors="replace", newline="\n") as lines,
            beside.open("w", encoding="utf-8", newline="\n") as file,
        ):
            for number, line in enumerate(lines, 1):
                record = _parse(line) if line.endswith("\n") else None
                if record is not None and record["step"] <= last_step:
                    file.write(line)
                elif record is None and line.endswith("\n"):
                    wrong.append(number)
            file.flush()
            os.fsync(file.fileno())
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            kept = kept_beside(path, copy=True)
            logger.warning("%s: line %d%s is not a record and is dropped; kept as %s", path, wrong[0], more, kept)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ThroughputMeter:
    """Tokens, samples and FLOPs a second over the last ``window`` steps, and seconds since the start."""

    def __init__(self, window: int = 20, clock: Callable[[], float] = time.perf_counter) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 step")
        self._clock = clock
        self._start = clock()
        self._steps: deque[tuple[float, ...]] = deque([(self._start, 0, 0, 0)], maxlen=window + 1)

    def update(self, tokens: int, samples: int, flops: float = 0.0) -> float:
        """At the end of a step: what it took, over all processes. Returns the step's seconds."""
        before, *sums = self._steps[-1]
        now = self._clock()
        self._steps.append((now, *(a + b for a, b in zip(sums, (tokens, samples, flops), strict=True))))
        return now - before

    @property
    def tokens_per_s(self) -> float:
        return self._rate(1)

    @property
    def samples_per_s(self) -> float:
        return self._rate(2)

    @property
    def flops_per_s(self) -> float:
        return self._rate(3)

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    def _rate(self, column: int) -> float:
        first, last = self._steps[0], self._steps[-1]
        return (last[column] - first[column]) / max(last[0] - first[0], 1e-9) if len(self._steps) > 1 else 0.0
