"""Tables of clips, opened as the transformer's stage takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ....config.schema import DitConfig
from ....data.clips import ClipSource, Transform
from ....packing import Patch, patch_stride
from ...feed.manifests import open_manifests
from .captions import check_captions
from .parts import Parts


def open_clips(
    config: DitConfig,
    parts: Parts,
    paths: Sequence[Path],
    patch: Patch,
    *,
    drop_unknown: bool = False,
    opened: Callable[..., ClipSource] = open_manifests,
) -> ClipSource:
    """Manifests with the captions that the text encoder can take, cut as `data` says; the main process opens first.
    opened: what opens them."""
    vae, data = parts.vae, config.data
    transform = Transform(
        spatial_stride=vae.spatial_stride * patch_stride(patch),
        temporal_stride=vae.temporal_stride,
        max_area=data.max_area,
        max_frames=data.max_frames,
        flip=data.flip,
        fps=data.fps,
        fps_slack=data.fps_slack,
    )
    check = partial(check_captions, text=parts.text, rules=config.caption, drop_unknown=drop_unknown)
    column = {} if data.motion_column is None else {"motion": data.motion_column}
    return opened(paths, transform, data, check, data.references, **column)
