"""Small random instances of published video transformers, and a packed pass beside the class's own on each sample."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from latentvid.models.open import Conditions, OpenBackbone, packed
from latentvid.packing import Packed, cuts, spans

SHAPES = [(3, 4, 5), (1, 6, 3), (2, 2, 7), (3, 4, 5)]  # token grids: mixed, two of them equal
WORDS = [7, 3, 5, 1]
LEVELS = [0.9, 0.25, 0.5, 0.125]


def lively(module: nn.Module) -> nn.Module:
    """With weights of size about 1 in all places: nothing is switched off, as gates are at initialisation."""
    rand = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=rand)
            if p.ndim < 2:
                p.add_(0.1 * noise)
            else:
                p.copy_(noise * (0.3 if "table" in name or "frequencies" in name else p[0].numel() ** -0.5))
    return module.eval()


@dataclass
class Sample:
    """latent [C,f,h,w] and text [S,Dt]; levels [f'] of its latent frames of tokens; conditions of it alone; frames a
    second, 0 for none."""

    latent: Tensor
    text: Tensor
    levels: Tensor
    given: Conditions = field(default_factory=Conditions)
    fps: float = 0.0

    @property
    def level(self) -> Tensor:
        return self.levels.max()


def samples(
    channels: int,
    patch: tuple[int, int, int],
    text_width: int,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    words: Sequence[int] = WORDS,
    levels: Sequence[float | Sequence[float]] = LEVELS,
) -> list[Sample]:
    rand = torch.Generator().manual_seed(2)
    made = []
    for (f, h, w), n, level in zip(shapes, words, levels, strict=True):
        latent = torch.randn(channels, f * patch[0], h * patch[1], w * patch[2], generator=rand)
        made.append(Sample(latent, torch.randn(n, text_width, generator=rand), torch.tensor(level).expand(f).clone()))
    return made


def tokens_of(latent: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[C,f,h,w] -> [T, C t p q], written for the tests."""
    t, p, q = patch
    return rearrange(latent, "C (f t) (h p) (w q) -> (f h w) (C t p q)", t=t, p=p, q=q)


def grids_of(made: Sequence[Sample], patch: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [tuple(side // p for side, p in zip(s.latent.shape[1:], patch, strict=True)) for s in made]


def run_packed(
    model: Callable[..., Tensor], made: Sequence[Sample], patch: tuple[int, int, int], conditions: Conditions | None
) -> list[Tensor]:
    """Tokens [T, C' t p q] of each sample."""
    layout = Packed.of(grids_of(made, patch))
    out = model(
        torch.cat([tokens_of(s.latent, patch) for s in made]),
        torch.cat([s.levels for s in made]),
        torch.cat([s.text for s in made]),
        layout,
        Packed.of_lengths([len(s.text) for s in made]),
        fps=torch.tensor([s.fps for s in made]),
        conditions=conditions,
    )
    return list(out.split(layout.lengths))


class PieceGroup:
    """In the place of a `SequenceGroup`, of threads that take turns: one runs at a time, and hands over where it
    exchanges rows with the others."""

    def __init__(self, rank: int, board: list, barrier: threading.Barrier, baton: threading.Lock) -> None:
        self.rank, self.size, self.board, self.barrier, self.baton = rank, len(board), board, barrier, baton

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.board[self.rank] = x
        self._meet()
        parts = list(self.board)
        self._meet()  # nobody writes before all have read
        return parts

    def _meet(self) -> None:
        self.baton.release()
        try:
            self.barrier.wait()
        finally:
            self.baton.acquire()

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        return self.gather_rows(x, ())

    def shard(self, x: Tensor) -> Tensor:
        return self.shard_rows(x, [stop - start for start, stop in pairwise(cuts(x.shape[0], self.size))])

    def gather_rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return torch.cat([y.chunk(self.size, dim=-2)[self.rank] for y in self._exchange(x)])

    def shard_rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        return torch.cat([y.split(rows)[self.rank] for y in self._exchange(x)], dim=-2)


def run_in_pieces(
    model: OpenBackbone, made: Sequence[Sample], patch: tuple[int, int, int], pieces: int = 2
) -> list[Tensor]:
    """As `run_packed`, of a pack that processes share: each has a piece of its tokens."""
    whole = Packed.of(grids_of(made, patch))
    prompts = Packed.of_lengths([len(s.text) for s in made])
    tokens, parts = torch.cat([tokens_of(s.latent, patch) for s in made]), spans(whole.lengths, pieces)
    barrier, baton, board = threading.Barrier(pieces, timeout=60), threading.Lock(), [None] * pieces

    def run(rank: int) -> Tensor:
        span = parts[rank]
        here = made[span.first : span.last]
        own = packed(model.raw)
        own.sequence = PieceGroup(rank, board, barrier, baton)
        conditions = replace(together(here, patch) or Conditions(), whole_extra=beside_text(made))
        if conditions.channels is not None:
            start = span.start - sum(whole.lengths[: span.first])
            conditions = replace(conditions, channels=conditions.channels[start : start + span.stop - span.start])
        text_layout = replace(Packed.of_lengths([len(s.text) for s in here]), whole=prompts)
        with baton:
            return own(
                tokens[span.start : span.stop],
                torch.cat([s.levels for s in here]),
                torch.cat([s.text for s in here]),
                whole.piece(span),
                text_layout,
                fps=torch.tensor([s.fps for s in here]),
                conditions=conditions,
            )

    with ThreadPoolExecutor(pieces) as pool:
        out = torch.cat(list(pool.map(run, range(pieces))))
    return list(out.split(whole.lengths))


def gradients(module: nn.Module, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of a loss that weighs every element differently; parameters without a gradient are left out."""
    module.zero_grad()
    sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum() for y in outputs).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


Alone = Callable[[nn.Module, Sample], Tensor]  # the class's own forward: latents' prediction [C',f,h,w]


def check_packed_equals_alone(
    raw: nn.Module,
    alone: Alone,
    made: Sequence[Sample],
    conditions: Conditions | None = None,
    change: Callable[[OpenBackbone], object] = lambda model: None,
    pieces: int = 1,
) -> None:
    """A pack's outputs (1e-5 of their size) and all gradients (1e-5 relative) against the untouched class's, run on
    each sample. pieces: of so many, on as many processes, whose conditions are those of the samples."""
    raw = lively(raw)
    model = packed(copy.deepcopy(raw))
    change(model)
    patch = model.patch
    want = [tokens_of(alone(raw, s), patch) for s in made]
    got = run_packed(model, made, patch, conditions) if pieces == 1 else run_in_pieces(model, made, patch, pieces)
    size = max(float(y.detach().abs().max()) for y in want)
    assert size > 0.1
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, size))
    wanted, found = gradients(raw, want), gradients(model.raw, got)
    assert found.keys() == wanted.keys()
    error = sum(float((found[n] - g).square().sum()) for n, g in wanted.items()) ** 0.5
    total = sum(float(g.square().sum()) for g in wanted.values()) ** 0.5
    assert error < 1e-5 * total
    for name, g in wanted.items():  # some are 0 but for rounding (a bias of keys), which the others' sizes set
        assert float((found[name] - g).norm()) <= 1e-4 * float(g.norm()) + 1e-6 * max(size, total), name


def together(made: Sequence[Sample], patch: tuple[int, int, int]) -> Conditions | None:
    """The conditions of a pack of these samples, by those of each alone (whose channels are latents)."""
    found = {}
    for key in ("channels", "pooled", "second", "image", "guidance"):
        parts = [getattr(s.given, key) for s in made if getattr(s.given, key) is not None]
        if parts:
            found[key] = torch.cat([tokens_of(x, patch) for x in parts] if key == "channels" else parts)
    if "second" in found:
        found["second_lengths"] = tuple(0 if s.given.second is None else len(s.given.second) for s in made)
    if "image" in found and len(found["image"]) < len(made):
        found["has_image"] = tuple(s.given.image is not None for s in made)
    return Conditions(**found) if found else None


def beside_text(made: Sequence[Sample]) -> tuple[int, ...]:
    """`Conditions.whole_extra` of a pack of these samples."""
    of = [(s.given.second, s.given.image) for s in made]
    return tuple((0 if x is None else len(x)) + (0 if y is None else y.shape[1]) for x, y in of)
