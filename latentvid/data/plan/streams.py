"""How sources and kinds (images, clips) share a run's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import UserError
from .source import Stream


def make_streams(
    sources: Sequence[str],
    source_of: np.ndarray,
    is_image: np.ndarray,
    weights: Sequence[float],
    image_share: float | None,
) -> list[Stream] | None:
    """The plan's streams, named; None where nothing is asked: every sample is then drawn once an epoch.

    sources: their names, also of those that have no sample. source_of, is_image [samples]: each sample's source, from 0
    on, and whether it is one frame. weights: each source's share of the tokens, in any unit; () leaves sources as they
    are. image_share: share of the tokens that are images', 0..1; of each kind, the sources that have it share its
    tokens by their weights. Raises UserError where a weight has no sample to go to.
    """
    if not weights and image_share is None:
        return None
    if weights and len(weights) != len(sources):
        raise UserError(
            f"data.weights has {len(weights)} values for {len(sources)} sources ({', '.join(sources)}): give one for "
            "each, in their order"
        )
    kinds = [("", np.ones(len(is_image), dtype=bool), 1.0)]
    if image_share is not None:
        kinds = [("image", is_image, image_share), ("clip", ~is_image, 1 - image_share)]
        for name, members, share in kinds:
            if share > 0 and not members.any():
                raise UserError(f"data.image_share is {image_share}, but no {name} is left to train on: change it")
    kinds = [(name, members, share) for name, members, share in kinds if share > 0]
    if weights:
        _check_weights(sources, source_of[np.any([members for _, members, _ in kinds], axis=0)], weights)
    streams = []
    for kind, members, share in kinds:
        if not weights:
            streams.append(Stream(np.flatnonzero(members), share, f"{kind}s"))
            continue
        indices = [np.flatnonzero(members & (source_of == number)) for number in range(len(sources))]
        parts = [part for part in zip(indices, weights, sources, strict=True) if len(part[0])]
        total = sum(weight for _, weight, _ in parts)
        named = f" ({kind}s)" if kind else ""
        streams += [Stream(index, share * weight / total, f"{source}{named}") for index, weight, source in parts]
    return streams


def _check_weights(sources: Sequence[str], drawn_from: np.ndarray, weights: Sequence[float]) -> None:
    """drawn_from: the source of each sample that can be drawn."""
    left = np.bincount(drawn_from, minlength=len(sources))
    for name, count, weight in zip(sources, left, weights, strict=True):
        if not count:
            raise UserError(
                f"data.weights gives {weight:g} to {name}, of which no sample is left to draw: mend it, or take it and "
                "its weight out"
            )
