"""Long clips in windows and large frames in tiles: where they lie, and how they are joined without seams.

Axes: F frames, H height, W width of clips [F,H,W,3].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Of as few runs of `size` as cover `length`, spread evenly, neighbours with at least `overlap` in common."""
    if not 0 <= overlap < size:
        raise ValueError(f"runs of {size} cannot have {overlap} in common")
    if length <= size:
        return [0]
    gaps = -(-(length - size) // (size - overlap))
    return [i * (length - size) // gaps for i in range(gaps + 1)]


def blended(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """Two pieces, float, of which the end of one and the beginning of the other lie over each other.

    There the second one's weight rises in a straight line, and the first one has the rest: a + r (b - a), so that the
    weights add up to 1 exactly, and equal pieces stay what they are.
    """
    if not overlap:
        return torch.cat([before, after], dim)
    r = (torch.arange(overlap, dtype=before.dtype) + 0.5) / overlap
    r = r.reshape([-1 if i == dim else 1 for i in range(before.ndim)])
    kept = before.shape[dim] - overlap
    a, b = before.narrow(dim, kept, overlap), after.narrow(dim, 0, overlap)
    return torch.cat(
        [before.narrow(dim, 0, kept), a + r * (b - a), after.narrow(dim, overlap, after.shape[dim] - overlap)], dim
    )


def joined(pieces: Sequence[Tensor], firsts: Sequence[int], dim: int) -> Tensor:
    """Pieces, float, that begin at `firsts` along `dim`, one after another, as one."""
    whole = pieces[0]
    for piece, first in zip(pieces[1:], firsts[1:], strict=True):
        whole = blended(whole, piece, whole.shape[dim] - first, dim)
    return whole


def windows_of(chunks: Iterator[Tensor], firsts: Sequence[int], size: int) -> Iterator[Tensor]:
    """Frames [first, first + size) of a clip that comes in chunks uint8 [F,H,W,3]; where it has too few, its last frame
    is held. One window and one chunk at a time are in memory."""
    held, at = next(chunks), 0
    for first in firsts:
        while at + len(held) < first + size and (chunk := next(chunks, None)) is not None:
            held = torch.cat([held[max(0, first - at) :], chunk])
            at = max(at, first)
        held, at = held[first - at :], first
        missing = size - len(held)
        yield held[:size] if missing <= 0 else torch.cat([held, held[-1:].expand(missing, *held.shape[1:])])


def stream(pieces: Iterator[Tensor], firsts: Sequence[int], frames: int) -> Iterator[Tensor]:
    """The first frames of windows, float [F,H,W,3], that begin at `firsts`, blended where they lie over each other and
    let go as soon as no later one does: uint8."""
    held, at = None, 0
    for piece, (first, after) in zip(pieces, pairwise([*firsts, frames]), strict=True):
        held = piece if held is None else blended(held, piece, at + len(held) - first, 0)
        done, held = held[: after - at], held[after - at :]
        at = after
        yield done.round().clamp(0, 255).to(torch.uint8)
