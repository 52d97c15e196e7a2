"""Opening a run's manifests on all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.clips import ClipSource, Transform, open_sources
from ..data.manifest import Columns, Manifest
from ..world import from_main
from .config import Data


def open_manifests(
    paths: Sequence[Path],
    transform: Transform,
    data: Data,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> ClipSource:
    """`open_sources` with the options of `data`. The main process goes first: what it opens files for, where a manifest
    lacks their facts, is remembered, and the others, which wait as long as it takes, need not open them again."""
    columns = Columns(data.path_column, data.caption_column)
    opened: list[ClipSource] = []

    def open_here() -> None:
        limits = {"timeout_s": data.timeout_s, "patience_s": data.retry_s}
        opened.append(open_sources(paths, transform, **limits, columns=columns, check=check))

    from_main(open_here)
    if not opened:
        open_here()
    return opened[0]
