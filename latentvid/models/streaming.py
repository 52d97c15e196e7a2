"""Long and large clips through a causal autoencoder in bounded memory: chunks of frames with a cache, blended tiles.

Axes: B clips, C latent channels, F H W frames/height/width in pixels, f h w the latent's.

The chunks' results, joined, equal the one-shot result. Tiles are an approximation (each sees its own borders); they are
taken only where a budget of memory asks for them, see `budget.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError
from .budget import Cut, Side, choose_cut, give_back, tile_starts
from .causal3d import StreamCache


class CausalVae(Protocol):
    """What streaming needs of an autoencoder."""

    config: Any  # with `in_channels`
    encoder: nn.Module
    decoder: nn.Module
    latent_channels: int
    temporal_stride: int
    spatial_stride: int

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of a clip's latent; raises UserError for sizes that cannot be."""


def encode_side(vae: CausalVae) -> Side:
    t, s = vae.temporal_stride, vae.spatial_stride
    return Side("encode", vae.encoder, vae.config.in_channels, 2 * vae.latent_channels, t, 1, s, 1)


def decode_side(vae: CausalVae) -> Side:
    t, s = vae.temporal_stride, vae.spatial_stride
    return Side("decode", vae.decoder, vae.latent_channels, vae.config.in_channels, 1, t, 1, s)


def run(side: Side, x: Tensor, budget: int | None = None) -> Tensor:
    """`side.net` over whole streams x [B,C,F,H,W] that begin at their first frame, in chunks (and tiles) that fit.

    `budget`: bytes that this may take beside its input and output; None: a share of what is free.
    """
    frames = 1 + (x.shape[2] - 1) // side.time_in
    return _Stream(side, budget, frames).push(x, last=True)


class _Stream:
    """One pass of B streams through a network, with what it must remember between the chunks."""

    def __init__(self, side: Side, budget: int | None = None, frames: int | None = None) -> None:
        self.side, self.budget, self.frames = side, budget, frames
        self.cut: Cut | None = None  # chosen at the first chunk, which shows the size
        self.tiles: list[_Tile] = []
        self.seen = 0  # input frames
        self.rest: Tensor | None = None  # input frames of a group that is not whole

    @property
    def next_frames(self) -> int:
        """Input frames of the next chunk of the length that was chosen for the budget."""
        first = not self.seen
        return self.side.shape_in(1, self.cut.first if first else self.cut.later, 1, 1, first)[2]

    def begin(self, x: Tensor) -> None:
        """Chooses the cut by the size of the first chunk; later ones must have the same."""
        b, c, _, height, width = x.shape
        if self.cut is None:
            self.size = (b, c, height, width)
            h, w = height // self.side.space_in, width // self.side.space_in
            self.cut = choose_cut(self.side, b, self.frames, h, w, self.budget)
            self.tiles = _tiles(self.side, self.cut, b, h, w)
        if self.size != (b, c, height, width):
            raise ValueError(f"{self.side.name}: a chunk {list(x.shape)} in a stream of (B, C, H, W) {self.size}")

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Output of the next frames of the streams; frames of a group that is not yet whole wait for the next call.

        After the `last` chunk nothing is remembered.
        """
        self.begin(x)
        if self.rest is not None:
            x, self.rest = torch.cat([self.rest, x], dim=2), None
        first, t = self.seen == 0, self.side.time_in
        count = (x.shape[2] - 1) // t + 1 if first else x.shape[2] // t  # whole latent frames
        whole = self.side.shape_in(1, count, 1, 1, first)[2] if count else 0
        if whole < x.shape[2]:
            self.rest = x[:, :, whole:].clone()
        self.seen += whole
        return self._pass(x[:, :, :whole], count, first, last)

    def _pass(self, x: Tensor, count: int, first: bool, last: bool) -> Tensor:
        parameter = next(self.side.net.parameters())
        b, _, height, width = self.size
        shape = self.side.shape_out(b, count, height // self.side.space_in, width // self.side.space_in, first)
        if not count:
            return torch.empty(*shape[:2], 0, *shape[3:], dtype=parameter.dtype, device=parameter.device)
        lengths = self._lengths(count, first)
        out = None
        for tile in self.tiles:
            done = 0
            for i, part in enumerate(x[tile.source].split(lengths, dim=2)):
                tile.cache.more = not (last and i + 1 == len(lengths))
                y = self.side.net(part.to(parameter.device, parameter.dtype), tile.cache)
                tile.cache.started = True
                if len(self.tiles) == len(lengths) == 1:
                    return y
                if out is None:
                    out = torch.zeros(shape, dtype=y.dtype, device=y.device)
                here = out[tile.target][:, :, done : done + y.shape[2]]
                done += y.shape[2]
                if tile.weight is None:
                    here.copy_(y)
                else:
                    here.addcmul_(y, tile.weight.to(y))
                del y  # not alive together with the next one
                if parameter.device.type == "cpu":
                    give_back()
            if last:
                tile.cache = StreamCache(more=True)
        return out

    def _lengths(self, count: int, first: bool) -> list[int]:
        """Input frames of each chunk of `count` latent frames."""
        lengths = []
        while count:
            begins = first and not lengths
            f = min(count, self.cut.first if begins else self.cut.later)
            lengths.append(self.side.shape_in(1, f, 1, 1, begins)[2])
            count -= f
        return lengths


class EncodeStream(_Stream):
    """Encodes clips as their frames arrive; holds the cache. One instance serves one pass over B streams.

    `budget`: bytes that it may take beside the chunks and their output; None: a share of what is free at the start.
    """

    def __init__(self, vae: CausalVae, budget: int | None = None) -> None:
        super().__init__(encode_side(vae), budget)
        self.vae = vae

    def push(self, x: Tensor) -> Tensor:
        """Posterior moments [B,2C,f,h,w] (means, then log-variances) of the next frames x [B,3,F,H,W] in [-1,1].

        Any number of frames: those of a group that is not yet whole wait for the next call, so f may be 0.
        """
        if x.shape[2]:
            self.vae.latent_grid(1, *x.shape[3:])
        return super().push(x)

    def finish(self) -> None:
        """Raises UserError where frames still wait for their group to become whole: they are not encoded."""
        if self.rest is not None:
            t, left = self.side.time_in, self.rest.shape[2]
            raise UserError(
                f"the stream ended after {self.seen + left} frames and the last {left} of them are not encoded: this "
                f"VAE takes 1 + {t}k frames, such as {self.seen} or {self.seen + t}"
            )


class DecodeStream(_Stream):
    """Decodes latents as they arrive, such as those of a rollout; otherwise like `EncodeStream`."""

    def __init__(self, vae: CausalVae, budget: int | None = None) -> None:
        super().__init__(decode_side(vae), budget)

    def push(self, z: Tensor) -> Tensor:
        """Frames [B,3,F,H,W], about [-1,1], not clamped, of the next latents z [B,C,f,h,w] (not normalised).

        F is t*f, and of the stream's first latents 1 + t*(f-1).
        """
        return super().push(z)


@torch.no_grad()
def encode_stream(vae: CausalVae, chunks: Iterable[Tensor], budget: int | None = None) -> Iterator[Tensor]:
    """Latents [B,C,f,h,w] (the posterior's means) of frames that arrive in chunks [B,3,F,H,W] of any lengths.

    The frames pass in chunks of a length chosen for the budget; neither input nor output is held. `budget` as in
    `EncodeStream`. Raises UserError at the end, after all latents, where the number of frames is not 1 + t*k.
    """
    stream = EncodeStream(vae, budget)
    for moments in _regrouped(stream, chunks):
        yield moments.chunk(2, dim=1)[0].clone()  # a view would keep the log-variances
    stream.finish()


@torch.no_grad()
def decode_stream(vae: CausalVae, latents: Iterable[Tensor], budget: int | None = None) -> Iterator[Tensor]:
    """Frames [B,3,F,H,W] of latents that arrive in chunks [B,C,f,h,w] of any lengths; otherwise like `encode_stream`.

    The first result has 1 + t*k frames, later ones t*k.
    """
    yield from _regrouped(DecodeStream(vae, budget), latents)


def _regrouped(stream: EncodeStream | DecodeStream, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the stream makes of the chunks when they are joined and cut to the length that it chose."""
    held: list[Tensor] = []
    frames = 0
    for chunk in chunks:
        if chunk.shape[2]:
            stream.begin(chunk)
        while chunk.shape[2]:
            missing = stream.next_frames - frames
            held.append(chunk[:, :, :missing])
            frames += held[-1].shape[2]
            chunk = chunk[:, :, missing:]
            if frames == stream.next_frames:
                x = torch.cat(held, dim=2) if len(held) > 1 else held[0]
                held, frames = [], 0
                yield stream.push(x)
    if held:
        out = stream.push(torch.cat(held, dim=2))
        if out.shape[2]:
            yield out


@dataclass
class _Tile:
    """A part of the clips and of the area, with its own cache over time.

    `source` and `target` index [B,C,F,H,W] of input and output; `weight` [H,W] blends it with its neighbours (None:
    it has none).
    """

    source: tuple[slice, ...]
    target: tuple[slice, ...]
    weight: Tensor | None
    cache: StreamCache


def _tiles(side: Side, cut: Cut, clips: int, h: int, w: int) -> list[_Tile]:
    tiles, whole = [], slice(None)
    rows, columns = _ramps(h, cut.h, side.space_out), _ramps(w, cut.w, side.space_out)
    for start in range(0, clips, cut.clips):
        batch = slice(start, start + cut.clips)
        for top, down in rows:
            for left, across in columns:
                areas = [
                    (slice(top * s, (top + cut.h) * s), slice(left * s, (left + cut.w) * s))
                    for s in (side.space_in, side.space_out)
                ]
                weight = down[:, None] * across if len(rows) * len(columns) > 1 else None
                source, target = ((batch, whole, whole, *area) for area in areas)
                tiles.append(_Tile(source, target, weight, StreamCache(more=True)))
    return tiles


def _ramps(size: int, tile: int, scale: int) -> list[tuple[int, Tensor]]:
    """(start, weights [tile * scale]) of the tiles that cover `size` positions; the weights of a position sum to 1.

    They are linear over the middle half of an overlap and 0 in the quarter at a tile's edge, where the missing
    neighbourhood tells most: that lowers the seam's error tenfold.
    """
    starts = tile_starts(size, tile)
    weights = torch.ones(len(starts), size * scale)
    at = torch.arange(size * scale) + 0.5
    for i, start in enumerate(starts):
        weights[i, : start * scale] = 0
        weights[i, (start + tile) * scale :] = 0
    for i, (this, following) in enumerate(pairwise(starts)):
        overlap = (this + tile - following) * scale
        rise = (2 * (at - following * scale) / overlap - 0.5).clamp(0, 1)
        weights[i] *= 1 - rise
        weights[i + 1] *= rise
    weights /= weights.sum(0)
    return [(start, weights[i, start * scale : (start + tile) * scale]) for i, start in enumerate(starts)]
