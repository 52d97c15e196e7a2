"""Which windows of a file are decoded in one go: a window alone costs the frames since the key frame before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def group(file: np.ndarray, most: np.ndarray) -> np.ndarray:
    """int64 [N], ascending from 0: windows with the same number belong to one read.

    file [N]: of each window; those of one file stand together. most [N]: windows that a read of that file may have,
    the same for all of the file; below 1 counts as 1. A file has as few reads as that allows, whose sizes differ by
    one at most.
    """
    if not len(file):
        return np.zeros(0, np.int64)
    first = np.flatnonzero(np.diff(file, prepend=file[0] - 1))
    windows = np.diff(first, append=len(file))
    reads = -(-windows // np.maximum(most[first].astype(np.int64), 1))
    place = np.arange(len(file)) - np.repeat(first, windows)  # in the file
    number = place * np.repeat(reads, windows) // np.repeat(windows, windows)
    return number + np.repeat(np.cumsum(reads) - reads, windows)


def runs(file: Sequence[int], starts: Sequence[int], frames: Sequence[int], most: int | None = None) -> Iterator[range]:
    """Cuts the places 0..N-1 into runs of windows that one decoding can give: of one file, ascending, with less than a
    window between two, and at most so many frames from the first to the last (a window alone may have more)."""
    begin = 0
    for i in range(1, len(starts) + 1):
        if i < len(starts) and file[i] == file[begin] and frames[i] == frames[begin]:
            gap = starts[i] - starts[i - 1] - frames[i]
            whole = starts[i] + frames[i] - starts[begin]
            if starts[i] >= starts[i - 1] and gap < frames[i] and (most is None or whole <= most):
                continue
        yield range(begin, i)
        begin = i
