"""Opening a run's manifests and caches on all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ...config.schema import Data, DitConfig
from ...data.cache.latents import LatentCaches
from ...data.clips import ClipSource, Transform, open_sources
from ...data.manifest.manifest import Columns, Manifest
from ...errors import UserError
from ...models.interchange import Vae
from ...world import from_main

T = TypeVar("T")


def open_manifests(
    paths: Sequence[Path],
    transform: Transform,
    data: Data,
    check: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> ClipSource:
    """`open_sources` with the options of `data`. The main process goes first: what it opens files for, where a manifest
    lacks their facts, is remembered, and the others, which wait as long as it takes, need not open them again."""
    columns = Columns(data.path_column, data.caption_column)
    limits = {"timeout_s": data.timeout_s, "patience_s": data.retry_s}
    return main_first(lambda: open_sources(paths, transform, **limits, columns=columns, check=check))


def main_first(make: Callable[[], T]) -> T:
    """What `make` gives here, as soon as it has given it to the main process."""
    made: list[T] = []

    def make_here() -> None:
        made.append(make())

    from_main(make_here)
    if not made:
        make_here()
    return made[0]


def check_cache(caches: LatentCaches, config: DitConfig, vae: Vae) -> list[str]:
    """What is to be said of the clips that caches were made of, a line each; the main process looks at them.

    Raises UserError where clips changed since, captions mean nothing, or the configuration says other sizes.
    """
    notes, allowed = from_main(caches.check_clips), config.caption.unknown_share
    if caches.unknown > allowed:
        raise UserError(
            f"{caches.unknown:.0%} of the captions in data.latents mean nothing to the text encoder: encode with one "
            f"for their language, or allow it with caption.unknown_share={caches.unknown:.2g}"
        )
    held_out = config.validation.every and config.validation.manifest is not None  # is cut as the configuration says
    for cache in caches.caches:
        largest = {
            "max_area": max(h * w for _, h, w in cache.grids) * vae.spatial_stride**2,
            "max_frames": 1 + (max(f for f, _, _ in cache.grids) - 1) * vae.temporal_stride,
        }
        for name, found in largest.items():
            asked = getattr(config.data, name)
            made = cache.key.get("transform", {}).get(name, asked)
            beyond = asked is not None and found > asked and asked != Data.__dataclass_fields__[name].default
            if beyond or (held_out and made != asked):
                raise UserError(
                    f"data.{name} is {asked}, but {cache.folder} was made with {made} and has clips of {found}: set "
                    f"--data.{name}={'null' if made is None else made}, or encode again"
                )
    return notes
