"""The one sequence layout: whole samples (images and clips of any shape) laid end to end, without padding.

Axes: T tokens in a pack, N segments (samples), R noise rows (latent frames), C latent channels, f h w the latent's
frames, height and width, P token features. Token order within a sample is (f, h, w), row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Packed:
    """Where each token of a pack belongs; features are kept apart.

    cu_seqlens: int32 [N+1], start of each segment and, last, T.
    max_len: tokens of the longest segment.
    position: int64 [T,3], each token's (frame, row, column) in its sample's token grid.
    segment: int64 [T], the sample a token belongs to.
    row: int64 [T], the noise row (one a latent frame of each sample) a token belongs to.
    row_segment: int64 [R], the sample a noise row belongs to.
    grid: (frames, rows, columns) of each segment; host only, never read inside compiled blocks (each new value
        would recompile them).
    """

    cu_seqlens: Tensor
    max_len: int
    position: Tensor
    segment: Tensor
    row: Tensor
    row_segment: Tensor
    grid: tuple[Grid, ...]

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> Packed:
        """The layout of samples whose token grids are (frames, rows, columns), in this order."""
        if not grids or any(side < 1 for grid in grids for side in grid):
            raise ValueError(f"a pack needs at least one sample and sides of at least 1, got {list(grids)}")
        grids = tuple((int(f), int(h), int(w)) for f, h, w in grids)
        lengths = torch.tensor([f * h * w for f, h, w in grids])
        frames = torch.tensor([f for f, _, _ in grids])
        row_segment = torch.repeat_interleave(frames)
        tokens_of_row = torch.tensor([h * w for _, h, w in grids])[row_segment]
        return cls(
            cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32),
            max_len=int(lengths.max()),
            position=torch.cat([_positions(grid) for grid in grids]),
            segment=torch.repeat_interleave(lengths),
            row=torch.repeat_interleave(tokens_of_row),
            row_segment=row_segment,
            grid=grids,
        )

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Packed:
        """The layout of plain sequences, such as prompts."""
        return cls.of([(1, 1, int(n)) for n in lengths])

    @property
    def tokens(self) -> int:
        return self.position.shape[0]

    @property
    def segments(self) -> int:
        return len(self.grid)

    @property
    def rows(self) -> int:
        return self.row_segment.shape[0]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each segment, from the host copy."""
        return [f * h * w for f, h, w in self.grid]

    def _map(self, change) -> Packed:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})

    def to(self, *args, **kwargs) -> Packed:
        """Moves the index tensors to a device; dtypes stay what they are, whatever is asked."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        non_blocking = kwargs.get("non_blocking", False)
        return self if device is None else self._map(lambda v: v.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Packed:
        return self._map(lambda v: v.pin_memory())


@lru_cache(maxsize=4096)
def _positions(grid: Grid) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(side) for side in grid)).reshape(-1, 3)


def token_grid(latent_grid: Grid, patch: int) -> Grid:
    """Token grid of a latent grid (f, h, w) under patch x patch spatial patches."""
    f, h, w = latent_grid
    if h % patch or w % patch:
        raise ValueError(f"latent {h} x {w} is not a multiple of the patch size {patch}")
    return f, h // patch, w // patch


def patchify(latents: Sequence[Tensor], patch: int) -> tuple[Tensor, list[Grid]]:
    """Latents [C,f,h,w] of any shapes -> tokens [T, C*patch*patch] in pack order, and their token grids."""
    grids = [token_grid(tuple(z.shape[1:]), patch) for z in latents]
    tokens = [rearrange(z, "C f (h p) (w q) -> (f h w) (C p q)", p=patch, q=patch) for z in latents]
    return torch.cat(tokens), grids


def unpatchify(tokens: Tensor, layout: Packed, patch: int) -> list[Tensor]:
    """Tokens [T, C*patch*patch] -> latents [C,f,h,w], one a segment: the inverse of `patchify`."""
    return [
        rearrange(part, "(f h w) (C p q) -> C f (h p) (w q)", f=f, h=h, w=w, p=patch, q=patch)
        for part, (f, h, w) in zip(tokens.split(layout.lengths), layout.grid, strict=True)
    ]
