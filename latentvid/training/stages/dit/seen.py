"""What sizes, lengths and frame rates a model is trained on: in RUN/run.json, and in the pipeline that is exported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ....data.cache.latents import LatentCaches
from ....data.clips import ClipSource
from ....errors import UserError
from ....files import read_json
from ....models.interchange import Vae

MOST = 50  # kinds that are kept, those with the most tokens
Kind = tuple[int, int, int, float]  # frames, height, width, fps (0 of pictures, and where it is not known)


def seen_in(source: ClipSource | LatentCaches, vae: Vae) -> list[dict[str, Any]]:
    """The kinds of clips that a model trains on, with the number of each; those with the most tokens first."""
    kinds = _of_clips(source) if isinstance(source, ClipSource) else _of_caches(source, vae)
    counts: Counter[Kind] = Counter()
    for (frames, height, width, fps), count in kinds:
        counts[frames, height, width, 0.0 if frames == 1 else round(float(fps), 3)] += count

    def tokens(kind: Kind) -> int:
        return counts[kind] * math.prod(vae.latent_grid(*kind[:3]))

    ordered = sorted(counts, key=lambda kind: (-tokens(kind), kind))
    found = []
    for kind in ordered[:MOST]:
        frames, height, width, fps = kind
        sizes = {"frames": frames, "height": height, "width": width}
        found.append(sizes | ({"fps": fps} if fps > 0 else {}) | {"count": counts[kind]})
    return found


def _of_clips(source: ClipSource) -> Iterable[tuple[Kind, int]]:
    for (frames, height, width), fps in zip(source.shapes, source.rates.tolist(), strict=True):
        yield (frames, height, width, fps), 1


def _of_caches(caches: LatentCaches, vae: Vae) -> Iterable[tuple[Kind, int]]:
    side = vae.spatial_stride
    for i, (f, h, w) in enumerate(caches.grids):
        yield (1 + (f - 1) * vae.temporal_stride, h * side, w * side, caches.rate(i)), 1


def seen_by(run: Path) -> list[dict[str, Any]]:
    """What RUN/run.json tells of it; nothing where the run is of an older version."""
    try:
        found = read_json(run / "run.json").get("trained")
    except (UserError, AttributeError):
        return []
    return found if isinstance(found, list) and all(isinstance(kind, dict) for kind in found) else []


def defaults_of(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The size, length and rate that an exported pipeline makes by default: those of most of the training's tokens."""
    found = {name: seen[0][name] for name in ("frames", "height", "width")} if seen else {}
    rate = next((kind["fps"] for kind in seen if kind.get("fps")), None)
    return found | ({} if rate is None else {"fps": rate})
