"""Whether latent caches are what a configuration asks to train on."""

from __future__ import annotations

from ....config.schema import DitConfig
from ....config.sections import Data
from ....data.cache.latents import LatentCaches
from ....errors import UserError
from ....models.interchange import Vae
from ....world import from_main


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
        asked, made = config.data.fps, cache.key.get("transform", {}).get("fps")
        made = tuple(made) if isinstance(made, list) else made
        if made != asked and (asked is not None or held_out):
            raise UserError(
                f"data.fps is {_rate(asked)}, but {cache.folder} was made with {_rate(made)}: set "
                f"--data.fps={_rate(made)}, or encode again with --fps"
            )
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


def _rate(fps: float | tuple[float, float] | None) -> str:
    """As a configuration has it."""
    return "null" if fps is None else f"{fps:g}" if isinstance(fps, float) else f"[{fps[0]:g},{fps[1]:g}]"
