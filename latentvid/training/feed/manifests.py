"""Opening a run's manifests on all its processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...config.sections import Data
from ...data.clips import ClipSource, Transform, open_sources
from ...data.manifest.manifest import Columns, Manifest
from ...data.pairs import PairedClips, open_pairs
from ...references import ReferenceColumn
from ...world import from_main

T = TypeVar("T")


def open_manifests(
    paths: Sequence[Path],
    transform: Transform,
    data: Data,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    roles: Mapping[str, ReferenceColumn] | None = None,
    motion: str | None = None,
) -> ClipSource:
    """`open_sources` with the options of `data`. The main process goes first: what it opens files for, where a manifest
    lacks their facts, is remembered, and the others, which wait as long as it takes, need not open them again."""
    options = _options(data)
    return main_first(lambda: open_sources(paths, transform, **options, check=check, roles=roles, motion=motion))


def open_paired_manifests(
    paths: Sequence[Path],
    transform: Transform,
    data: Data,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    roles: Mapping[str, ReferenceColumn] | None = None,
    *,
    rejected: str,
) -> PairedClips:
    """`open_manifests` of tables of pairs, which have no references. rejected: the column of the clips that were not
    preferred."""
    if roles:
        raise ValueError("pairs have no references")
    options = _options(data)
    return main_first(lambda: open_pairs(paths, transform, rejected=rejected, **options, check=check))


def _options(data: Data) -> dict[str, Any]:
    columns = Columns(data.path_column, data.caption_column)
    return {"timeout_s": data.timeout_s, "patience_s": data.retry_s, "columns": columns}


def main_first(make: Callable[[], T]) -> T:
    """What `make` gives here, as soon as it has given it to the main process."""
    made: list[T] = []

    def make_here() -> None:
        made.append(make())

    from_main(make_here)
    if not made:
        make_here()
    return made[0]
