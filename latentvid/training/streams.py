"""How sources and kinds (images, clips) share a run's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.plan import Stream
from ..errors import UserError


def make_streams(
    source_of: np.ndarray, is_image: np.ndarray, weights: Sequence[float], image_share: float | None
) -> list[Stream] | None:
    """The plan's streams; None where nothing is asked: every sample is then drawn once an epoch.

    source_of, is_image [samples]: each sample's source, from 0 on, and whether it is one frame. weights: each source's
    share of the tokens, in any unit; () leaves sources as they are. image_share: share of the tokens that are images',
    0..1; of each kind, the sources that have it share its tokens by their weights.
    """
    if not weights and image_share is None:
        return None
    sources = int(source_of.max()) + 1
    if weights and len(weights) != sources:
        raise UserError(f"data.weights has {len(weights)} values for {sources} sources: give one for each")
    kinds = [(np.ones(len(is_image), dtype=bool), 1.0)]
    if image_share is not None:
        kinds = [(is_image, image_share), (~is_image, 1 - image_share)]
        for (members, share), name in zip(kinds, ("image", "clip"), strict=True):
            if share > 0 and not members.any():
                raise UserError(f"data.image_share is {image_share}, but no {name} is left to train on: change it")
    streams = []
    for members, share in kinds:
        if share == 0:
            continue
        if not weights:
            streams.append(Stream(np.flatnonzero(members), share))
            continue
        indices = [np.flatnonzero(members & (source_of == number)) for number in range(sources)]
        parts = [(index, weight) for index, weight in zip(indices, weights, strict=True) if len(index)]
        total = sum(weight for _, weight in parts)
        streams += [Stream(index, share * weight / total) for index, weight in parts]
    return streams
