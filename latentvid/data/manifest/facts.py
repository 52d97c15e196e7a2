"""Looking at a table's files: which can be used, and the facts that the table lacks.

What a file had to be opened for is remembered beside the manifest, in .NAME.facts.jsonl, by the file's size and time of
change, so that later starts, and the other processes of a run, need not open it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import ClipError, StorageError
from ...places import shown
from ...progress import phase
from ..access.files import Status, ask_together, exists, is_plain, status
from ..storage import patiently
from ..video.reading import VideoInfo, probe
from .samples import Dropped, Samples

logger = logging.getLogger(__name__)

FACTS = ("frames", "fps", "height", "width")
UNKNOWN = (0, math.nan, 0, 0)
VERSION = 2  # of what `probe` says: raise it when the same file may be said to be something else
WAVE = 1024  # files between two looks at what is remembered


class Memory:
    """What is known of the files of a manifest: {path as the manifest has it: (size, mtime_ns, VideoInfo)}.

    A folder that cannot be written to has it in the user's cache folder instead. Lines that are damaged, or of another
    version, do not count.
    """

    def __init__(self, manifest: str) -> None:
        self.file = Path(manifest).with_name(f".{os.path.basename(manifest)}.facts.jsonl")
        if not os.access(self.file.parent, os.W_OK):
            cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            self.file = Path(cache, "latentvid", f"{hashlib.sha256(manifest.encode()).hexdigest()[:32]}.facts.jsonl")

    def read(self) -> dict[str, tuple[int, int, VideoInfo]]:
        found = {}
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                row = json.loads(line)
                if row.pop("version") == VERSION:
                    path, size, mtime_ns = (row.pop(key) for key in ("path", "size", "mtime_ns"))
                    found[path] = size, mtime_ns, VideoInfo(**row)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
        return found

    def add(self, rows: Iterable[tuple[str, os.stat_result, VideoInfo]]) -> None:
        lines = [
            json.dumps({"path": path, "size": s.st_size, "mtime_ns": s.st_mtime_ns, **asdict(info), "version": VERSION})
            for path, s, info in rows
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        place = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(place, "".join(f"{line}\n" for line in lines).encode())
        finally:
            os.close(place)


def look_at_files(
    samples: Samples, dropped: Dropped, *, check_files: bool, threads: int, memory: Memory | None = None
) -> np.ndarray:
    """bool [N], which samples can be used; those get all their facts, the others are added to `dropped`."""
    kept = np.ones(len(samples), bool)

    def drop(i: int, reason: str) -> None:
        kept[i] = False
        dropped.add(samples.path(i), reason)

    with ThreadPoolExecutor(threads) as pool:
        if check_files:
            chunks = [range(begin, min(begin + 2048, len(samples))) for begin in range(0, len(samples), 2048)]
            for faults in pool.map(partial(_file_faults, samples), chunks):
                for i, reason in faults:
                    drop(i, reason)
        unknown = np.isnan(samples.fps) | (np.minimum(samples.frames, np.minimum(samples.height, samples.width)) == 0)
        asked = np.flatnonzero(unknown & kept)
        files = None if samples.start is None else _by_file(samples, asked)
        for first, result in _facts_of(samples, asked if files is None else np.array([*files], int), pool, memory):
            for i in [first] if files is None else files[first]:
                if isinstance(result, VideoInfo):
                    _fill(samples, i, result)
                else:
                    drop(i, result)
    samples.rest()
    return kept


def _by_file(samples: Samples, asked: np.ndarray) -> dict[int, list[int]]:
    """Of files of which several segments are asked for: {the first: all}; each file is opened once."""
    firsts: dict[str, int] = {}
    found: dict[int, list[int]] = {}
    for i in asked.tolist():
        found.setdefault(firsts.setdefault(samples.paths[i], i), []).append(i)
    return found


def _facts_of(
    samples: Samples, asked: np.ndarray, pool: ThreadPoolExecutor, memory: Memory | None
) -> Iterator[tuple[int, VideoInfo | str]]:
    """(sample, its facts, or why there are none) of each that is asked for."""
    if memory is not None and len(asked):
        known, asked = _recalled(samples, asked, memory)
        yield from known
    yield from _probed(samples, asked, pool, memory)


def _recalled(
    samples: Samples, asked: np.ndarray, memory: Memory
) -> tuple[list[tuple[int, VideoInfo | str]], np.ndarray]:
    """What is remembered of the files as they are now, and the samples that it says nothing of."""
    found, known, others = memory.read(), [], []
    for i in asked:
        size, mtime_ns, info = found.get(shown(samples.paths[i]), (None, None, None))
        if info is not None:
            try:
                now = _status(samples.path(i))
            except OSError:
                info = None
            else:
                info = info if (now.st_size, now.st_mtime_ns) == (size, mtime_ns) else None
        known.append((i, info)) if info is not None else others.append(i)
    return known, np.array(others, asked.dtype)


def _probed(
    samples: Samples, asked: np.ndarray, pool: ThreadPoolExecutor, memory: Memory | None
) -> Iterator[tuple[int, VideoInfo | str]]:
    bar = tqdm(total=len(asked), desc="probing", unit="file", disable=None if len(asked) else True)
    with bar, phase("probing files", len(asked)) as advance:  # the one on a terminal, the other in a log
        for begin in range(0, len(asked), WAVE):
            wave = asked[begin : begin + WAVE]
            before = {int(i): _status(path) for i in wave if exists(path := samples.path(i))}
            new = []
            for i, result in zip(wave, pool.map(_probe_or_reason, map(samples.path, wave)), strict=True):
                bar.update()
                advance()
                if isinstance(result, VideoInfo):
                    new.append((shown(samples.paths[i]), before.get(int(i)), result))
                yield i, result
            if memory is not None:
                try:
                    memory.add(row for row in new if row[1] is not None)
                except OSError as error:
                    logger.warning("what the files are cannot be remembered (%s): each start opens them again", error)
                    memory = None


def _fill(samples: Samples, i: int, info: VideoInfo) -> None:
    for name, unknown in zip(FACTS, UNKNOWN, strict=True):
        column = getattr(samples, name)
        if column[i] == unknown or column[i] != column[i]:
            column[i] = getattr(info, name)


def _file_faults(samples: Samples, chunk: range) -> list[tuple[int, str]]:
    ask_together(samples.path(i) for i in chunk)
    return [(i, fault) for i in chunk if (fault := _file_fault(samples.path(i), int(samples.frames[i])))]


def _file_fault(path: str, frames: int) -> str | None:
    try:
        found = _status(path)
    except StorageError:
        raise
    except ClipError as error:  # of a shard
        return error.reason
    except (OSError, ValueError):  # ValueError: a path with a null character
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "missing"
    if not found.st_size:
        return "empty-file"
    return "more-frames-than-bytes" if frames > found.st_size else None


def _status(path: str) -> os.stat_result | Status:
    """Storage behind URLs is waited for; of a file of this machine a fault is an absence."""
    return status(path) if is_plain(path) else patiently(partial(status, path), path, believed=True)


def _probe_or_reason(path: str) -> VideoInfo | str:
    try:
        return patiently(partial(probe, path), path)
    except ClipError as error:
        return error.reason
