"""Opening a run's manifests on all its processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ...config.sections import Data
from ...data.clips import ClipSource, Transform, open_sources
from ...data.manifest.manifest import Columns, Manifest
from ...references import ReferenceColumn
from ...world import from_main

T = TypeVar("T")


def open_manifests(
    paths: Sequence[Path],
    transform: Transform,
    data: Data,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    roles: Mapping[str, ReferenceColumn] | None = None,
) -> ClipSource:
    """`open_sources` with the options of `data`. The main process goes first: what it opens files for, where a manifest
    lacks their facts, is remembered, and the others, which wait as long as it takes, need not open them again."""
    columns = Columns(data.path_column, data.caption_column)
    limits = {"timeout_s": data.timeout_s, "patience_s": data.retry_s}
    return main_first(lambda: open_sources(paths, transform, **limits, columns=columns, check=check, roles=roles))


def main_first(make: Callable[[], T]) -> T:
    """What `make` gives here, as soon as it has given it to the main process."""
    made: list[T] = []

    def make_here() -> None:
        made.append(make())

    from_main(make_here)
    if not made:
        make_here()
    return made[0]
