"""The one sequence layout: whole samples (images and clips of any shape) laid end to end, without padding.

Axes: T tokens in a pack, N segments (samples), R latent frames, C latent channels, f h w the latent's
frames, height and width, t p q a patch's, P token features. Token order within a sample is (f, h, w), row-major; the
tokens of a sample's references follow its own, one reference after another, in the same order.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .errors import UserError

Grid = tuple[int, int, int]
Patch = int | tuple[int, int, int]  # latent frames, rows and columns of a token; a whole number p is (1, p, p)
Place = Literal["beside", "aligned"]
BETWEEN_ROLES = 8  # latent frames by which the first positions of roles that stand beside lie apart


class Reference(NamedTuple):
    """A picture or clip that a sample is shown: tokens of its own, at noise level 0, in the sample's segment.

    grid: (frames, rows, columns) of its tokens. place: its positions: "beside", in time after the sample's own, apart
    from all others; "aligned", over the sample's own, scaled where the sizes differ. role: the number of its role among
    those beside; each begins at the same place in time whether the roles before it are there or not, as far as they
    leave room.
    """

    grid: Grid
    place: Place = "beside"
    role: int = 0


class Shape(NamedTuple):
    """What a sample puts into a pack: the token grid of its own, and its references."""

    grid: Grid
    references: tuple[Reference, ...] = ()

    @property
    def grids(self) -> tuple[Grid, ...]:
        return self.grid, *(reference.grid for reference in self.references)

    @property
    def tokens(self) -> int:
        return sum(map(math.prod, self.grids))

    @property
    def frames(self) -> int:
        return sum(f for f, _, _ in self.grids)


def shapes_of(grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> list[Shape]:
    """Of samples with these token grids, and these references of each (empty: none has any)."""
    each = references or [()] * len(grids)
    return [Shape(grid, tuple(shown)) for grid, shown in zip(grids, each, strict=True)]


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of tokens end to end: what attention reads of a layout.

    cu_seqlens: int32 [n+1], start of each segment and, last, the number of tokens.
    max_len: tokens of the longest segment.
    lengths: tokens of each segment; host only, never read inside compiled blocks (new values would recompile them).
    """

    cu_seqlens: Tensor
    max_len: int
    lengths: list[int]


@dataclass(frozen=True, eq=False)
class Packed(Segments):
    """Where each token of a pack belongs; features are kept apart. The segments are the samples.

    A layout is of a whole pack, or of a piece of one (`piece`): some of its tokens, in order, with all the latent
    frames of the samples that they are of. In a piece everything is numbered from the first token, frame and sample of
    the piece.

    position: int64 [T,3], each token's (frame, row, column) in its sample's token grid; float32 where a reference has
        some between whole numbers.
    segment: int64 [T], the sample a token belongs to.
    frame: int64 [T], the latent frame (counted over all samples) a token belongs to.
    frame_segment: int64 [R], the sample a latent frame belongs to.
    frame_tokens: int64 [R], tokens of each latent frame in the whole sample.
    grid: (frames, rows, columns) of each segment's whole sample, without its references; host only, as `lengths` are,
        which count the tokens that are here.
    references: of each segment's whole sample; empty where none has any. Each has latent frames of its own among the R,
        after its sample's.
    whole: the pack that this is a piece of; None where this is a whole pack.
    """

    position: Tensor
    segment: Tensor
    frame: Tensor
    frame_segment: Tensor
    frame_tokens: Tensor
    grid: tuple[Grid, ...]
    references: tuple[tuple[Reference, ...], ...] = ()
    whole: Packed | None = None

    @classmethod
    def of(cls, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> Packed:
        """The layout of samples whose token grids are (frames, rows, columns), in this order.

        references: of each sample, in the order of their tokens; empty: none has any.
        """
        sides = [side for grid in (*grids, *(r.grid for each in references for r in each)) for side in grid]
        if not grids or min(sides) < 1:
            raise ValueError(f"a pack needs at least one sample and sides of at least 1, got {list(grids)}")
        if references and len(references) != len(grids):
            raise ValueError(f"{len(grids)} samples and references of {len(references)}: give a list of each")
        return cls._of(grids, references)

    @classmethod
    def _of(cls, grids: Sequence[Grid], references: Sequence[Sequence[Reference]] = ()) -> Packed:
        grids = tuple((int(f), int(h), int(w)) for f, h, w in grids)
        references = tuple(map(tuple, references)) if any(references) else ()
        shapes = shapes_of(grids, references)
        lengths, sides = [shape.tokens for shape in shapes], [grid for shape in shapes for grid in shape.grids]
        # by numpy: a pass whose tensors have no storage, as FLOPs are counted, may make a layout too
        frame_tokens = np.repeat([h * w for _, h, w in sides], [f for f, _, _ in sides])
        places = [positions_of(shape) for shape in shapes]
        if any(each.dtype == np.float32 for each in places):
            places = [each.astype(np.float32) for each in places]
        numbers = np.arange(len(shapes))
        return cls(
            cu_seqlens=_cu_seqlens(lengths),
            max_len=max(lengths),
            position=torch.from_numpy(np.concatenate(places)),
            segment=torch.from_numpy(np.repeat(numbers, lengths)),
            frame=torch.from_numpy(np.repeat(np.arange(len(frame_tokens)), frame_tokens)),
            frame_segment=torch.from_numpy(np.repeat(numbers, [shape.frames for shape in shapes])),
            frame_tokens=torch.from_numpy(frame_tokens),
            grid=grids,
            references=references,
            lengths=lengths,
        )

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Packed:
        """The layout of plain sequences, such as prompts; of some models an empty prompt has no token."""
        return cls._of([(1, 1, int(n)) for n in lengths])

    def piece(self, span: Span) -> Packed:
        """The layout of the tokens of `span`, one of `spans(self.lengths, n)`."""
        samples = slice(span.first, span.last)  # in full: rows and segments are the piece's
        here = Packed.of(self.grid[samples], self.references[samples])
        offset = sum(self.lengths[: span.first])
        tokens = slice(span.start - offset, span.stop - offset)
        lengths = overlaps(self.lengths, span)[span.first : span.last]
        # clones: compiled blocks would be made again for tensors that begin elsewhere in their storage
        return replace(
            here,
            cu_seqlens=_cu_seqlens(lengths),
            max_len=max(lengths),
            position=here.position[tokens].clone(),
            segment=here.segment[tokens].clone(),
            frame=here.frame[tokens].clone(),
            lengths=lengths,
            whole=self,
        )

    @property
    def tokens(self) -> int:
        return self.position.shape[0]

    @property
    def segments(self) -> int:
        return len(self.grid)

    @property
    def frames(self) -> int:
        return self.frame_segment.shape[0]

    @property
    def shapes(self) -> list[Shape]:
        """Of each segment's whole sample."""
        return shapes_of(self.grid, self.references)

    @property
    def sample_lengths(self) -> list[int]:
        """Tokens of each segment's whole sample, its references' too; in a whole pack these are `lengths`."""
        return [shape.tokens for shape in self.shapes]

    def repeated(self, times: int) -> Packed:
        """The layout of all samples so many times, one time after another, on the CPU."""
        return Packed.of(self.grid * times, self.references * times)

    def own(self, x: Tensor) -> list[Tensor]:
        """x [T, ...] -> of each sample what is of its own tokens, without those of its references."""
        if self.whole is not None:
            raise ValueError("a piece of a pack holds no whole latents: put the pieces together first")
        return [part[: math.prod(grid)] for part, grid in zip(x.split(self.lengths), self.grid, strict=True)]

    def _map(self, change) -> Packed:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor | Packed)})

    def to(self, *args, **kwargs) -> Packed:
        """Moves the index tensors to a device; dtypes stay what they are, whatever is asked."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        non_blocking = kwargs.get("non_blocking", device is not None and device.type != "cpu")  # it is never written to
        return self if device is None else self._map(lambda v: v.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Packed:
        return self._map(lambda v: v.pin_memory())


class Span(NamedTuple):
    """A run of a pack: tokens [start, stop), which are of the samples [first, last)."""

    start: int
    stop: int
    first: int
    last: int


def cuts(tokens: int, pieces: int) -> list[int]:
    """The pieces + 1 bounds of runs of tokens that differ in length by one at most."""
    return [i * tokens // pieces for i in range(pieces + 1)]


def spans(lengths: Sequence[int], pieces: int) -> list[Span]:
    """A pack of samples of these lengths, cut into so many runs as equal as can be, wherever samples end.

    Raises UserError where a run would be empty.
    """
    starts = [0, *accumulate(lengths)]
    if starts[-1] < pieces:
        raise UserError(
            f"a pack of {starts[-1]} tokens cannot be cut for {pieces} processes: raise data.tokens_per_pack, or lower "
            "train.sequence_parallel"
        )
    return [
        Span(start, stop, bisect_right(starts, start) - 1, bisect_left(starts, stop))
        for start, stop in pairwise(cuts(starts[-1], pieces))
    ]


def overlaps(lengths: Sequence[int], span: Span) -> list[int]:
    """Tokens of each sample that lie in the span."""
    bounds = pairwise([0, *accumulate(lengths)])
    return [max(0, min(stop, span.stop) - max(start, span.start)) for start, stop in bounds]


def _cu_seqlens(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array([0, *accumulate(lengths)], dtype=np.int32))


@lru_cache(maxsize=4096)
def _positions(grid: Grid) -> np.ndarray:
    return np.ascontiguousarray(np.indices(grid).reshape(3, -1).T)


@lru_cache(maxsize=4096)
def positions_of(shape: Shape) -> np.ndarray:
    """[n,3] of a sample's own tokens and those of its references: int64, or float32 where some are no whole numbers.
    Not to be written to."""
    grid, references = shape
    parts, after = [_positions(grid)], grid[0]
    for reference in references:
        if reference.place == "aligned":
            parts.append(_scaled(reference.grid, grid))
        else:
            after = max(after, grid[0] + BETWEEN_ROLES * reference.role)
            parts.append(_positions(reference.grid) + np.array([after, 0, 0]))
            after += reference.grid[0]
    found = np.concatenate(parts)
    return found if found.dtype == np.int64 else found.astype(np.float32)


def _scaled(grid: Grid, onto: Grid) -> np.ndarray:
    """Positions [n,3] of a grid's tokens in another one, over which it lies: middles of rows and columns keep their
    places in the picture; the first frame is at the first, the last at the last."""
    numbers = _positions(grid)
    frames, wanted = max(1, grid[0] - 1), np.array(onto)
    time = numbers[:, :1] * ((onto[0] - 1) / frames)
    found = np.concatenate([time, (numbers[:, 1:] + 0.5) * (wanted / np.array(grid))[1:] - 0.5], axis=1)
    whole = np.round(found)
    return whole.astype(np.int64) if np.array_equal(found, whole) else found


def sides_of(patch: Patch) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a patch; a whole number p is (1, p, p)."""
    return (1, patch, patch) if isinstance(patch, int) else tuple(patch)


def patch_size(patch: Patch) -> int:
    """Latent positions of a patch."""
    return math.prod(sides_of(patch))


def patch_stride(patch: Patch) -> int:
    """What the height and width of a latent must be multiples of."""
    return math.lcm(*sides_of(patch)[1:])


def token_grid(latent_grid: Grid, patch: Patch) -> Grid:
    """Token grid of a latent grid (f, h, w). Frames may be any number: see `lead`."""
    (f, h, w), (t, p, q) = latent_grid, sides_of(patch)
    if h % p or w % q:
        named = f"the patch size {p}" if p == q else f"the patch {p} x {q}"
        raise ValueError(f"latent {h} x {w} is not a multiple of {named}")
    return -(-f // t), h // p, w // q


def lead(latent: Tensor, patch: Patch) -> Tensor:
    """[...,f,h,w] with its first frame repeated in front up to the next multiple of the patch's frames, as CogVideoX
    1.5 is trained (Yang et al. 2024; `ncopy` in its finetuning code)."""
    missing = -latent.shape[-3] % sides_of(patch)[0]
    return torch.cat([*[latent[..., :1, :, :]] * missing, latent], dim=-3) if missing else latent


def patchify(latents: Sequence[Tensor], patch: Patch) -> tuple[Tensor, list[Grid]]:
    """Latents [C,f,h,w] of any shapes -> tokens [T, C t p q] in pack order, and their token grids."""
    t, p, q = sides_of(patch)
    grids = [token_grid(tuple(z.shape[1:]), patch) for z in latents]
    form = "C (f t) (h p) (w q) -> (f h w) (C t p q)"
    return torch.cat([rearrange(lead(z, patch), form, t=t, p=p, q=q) for z in latents]), grids


def unpatchify(tokens: Tensor, layout: Packed, patch: Patch, frames: Sequence[int] | None = None) -> list[Tensor]:
    """Tokens [T, C t p q] -> latents [C,f,h,w], one a segment, without those of references: the inverse of `patchify`.

    frames: of each latent, to leave out what `lead` put in front; None: all that the tokens stand for.
    """
    t, p, q = sides_of(patch)
    form = "(f h w) (C t p q) -> C (f t) (h p) (w q)"
    latents = [
        rearrange(part, form, f=f, h=h, w=w, t=t, p=p, q=q)
        for part, (f, h, w) in zip(layout.own(tokens), layout.grid, strict=True)
    ]
    return latents if frames is None else [z[:, -n:] for z, n in zip(latents, frames, strict=True)]
