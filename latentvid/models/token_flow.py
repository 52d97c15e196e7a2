"""TokenFlow (Geyer et al. 2023): a clip's frames through an image model, whose self-attention they share.

Frames are samples of one latent frame each, the frames of each branch of guidance one after another. There are three
kinds of pass at a noise level, each inside a context of `TokenFlow`:

- `reading`, and first `reading_keyframes`: the source's frames, each by itself as ever. What each self-attention makes
  of them are the features by which tokens of all frames are found again in the keyframes (`nearest`).
- `joint`: keyframes that are edited; each attends to the tokens of all of them (extended attention). Its queries and
  keys may be those of the source's keyframes, so that each token attends to where the source has the same thing
  (Plug-and-Play, Tumanyan et al. 2023, the editing that the paper builds on).
- `flowing`: any frames that are edited. Self-attention is not computed: each token takes what was made of its nearest
  neighbours in the keyframe before it and in the one after.

Axes: f frames of a pass, k keyframes, b branches, n tokens of a frame, T = b f n, D width of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..packing import Segments
from .layers import SelfAttention
from .open.animatediff import StableDiffusion
from .transformer import VideoDiT


@dataclass(frozen=True, eq=False)
class Between:
    """Which two keyframes each of some frames lies between: their numbers among the keyframes, int64 [f] each, and the
    weight [f] of the later one. Before the first keyframe and after the last one both are the same."""

    before: Tensor
    after: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Between:
        return Between(self.before.to(device), self.after.to(device), self.weight.to(device))


def between(frames: Tensor, keyframes: Tensor, blend: str) -> Between:
    """Of frames [f] and keyframes [k], which rise, both counted in the clip. blend: of `BLENDS`."""
    last = len(keyframes) - 1
    before = torch.searchsorted(keyframes, frames, right=True) - 1  # -1: none
    after = (before + 1).clamp_max(last)
    before = before.clamp_min(0)
    passed, left = ((frames - keyframes[i]).abs().float() for i in (before, after))
    return Between(before, after, BLENDS[blend](passed / (passed + left).clamp_min(1)))


# of the later keyframe, by the share of the way from the earlier one to it
BLENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,  # as the paper has it: 0.5 at the earlier one, 0.73 at the later
    "linear": lambda share: share,
}


def nearest(features: Tensor, others: Tensor) -> Tensor:
    """Of each token of frames [f,n,D] the one of `others` [f,m,D] of least cosine distance: int64 [f,n]."""
    with torch.autocast(features.device.type, enabled=False):
        pairs = zip(*(F.normalize(x.float(), dim=-1) for x in (features, others)), strict=True)
        return torch.stack([(a @ b.T).argmax(dim=1) for a, b in pairs])


def propagated(made: Tensor, where: Between, first: Tensor, second: Tensor) -> Tensor:
    """What was made of the keyframes' tokens [b,k,n,D], as the tokens of frames take it: [b,f,n,D].

    first, second: [f,n], their nearest tokens in the keyframe before them and in the one after.
    """
    n, flat = made.shape[2], made.flatten(1, 2)  # [b, k n, D]
    a, b = (flat[:, key[:, None] * n + token] for key, token in ((where.before, first), (where.after, second)))
    return torch.lerp(a, b, where.weight.to(made.dtype)[:, None, None])


def joined(segments: Segments, count: int) -> Segments:
    """So many neighbouring segments as one."""
    lengths = segments.lengths
    if len(lengths) % count:
        raise ValueError(f"{len(lengths)} segments are no whole number of {count}")
    lengths = [sum(lengths[i : i + count]) for i in range(0, len(lengths), count)]
    return Segments(segments.cu_seqlens[::count].contiguous(), max(lengths), lengths)


def neighbours(segments: Segments, count: int, reach: int) -> tuple[Segments, Tensor]:
    """Of each of the segments, in groups of so many, those up to `reach` before and after it in its group: as one
    segment each, and the rows of their tokens [G] int64."""
    lengths, starts = segments.lengths, [0, *accumulate(segments.lengths)]
    near = [
        range(max(i - i % count, i - reach), min(i - i % count + count, i + reach + 1)) for i in range(len(lengths))
    ]
    totals = [sum(lengths[j] for j in each) for each in near]
    bounds = torch.tensor([0, *accumulate(totals)], dtype=torch.int32, device=segments.cu_seqlens.device)
    rows = torch.cat([torch.arange(starts[each.start], starts[each.stop]) for each in near])
    return Segments(bounds, max(totals), totals), rows


def self_attentions(model: nn.Module) -> list[nn.Module]:
    """The self-attention of each layer of an image model. Raises UserError for a model that is none."""
    what = "TokenFlow edits clips by image models"
    if isinstance(model, VideoDiT):
        if (kind := model.config.attention) != "full":
            raise UserError(f"{what} of attention 'full', and this model's is {kind!r}: give the model of images alone")
        if any(block.compiled is not None for block in model.blocks):
            raise UserError(f"{what} that are not compiled: load the pipeline without it")
        return [block.attention for block in model.blocks]
    if type(model) is StableDiffusion:
        return [module for name, module in model.raw.named_modules() if name.endswith("attn1")]
    name = getattr(model, "family", type(model).__name__)
    raise UserError(f"{what}, VideoDiT or Stable Diffusion's U-Net, and this one is {name}: take another method")


@dataclass(eq=False)
class _Layer:
    """Of a self-attention. read: what it read of the source's keyframes [k,n,D]. keys: what it made of them, their
    features [k,n,D]. made: of each pass of the edited keyframes, [b,k,n,D]. places: nearest tokens of the frames of the
    next pass, [f,n] in the keyframes before and after them."""

    module: nn.Module
    read: Tensor | None = None
    keys: Tensor | None = None
    made: list[Tensor] = field(default_factory=list)
    places: tuple[Tensor, Tensor] | None = None
    calls: int = 0


class TokenFlow:
    """The self-attention of an image model while it edits a clip. Features are kept of keyframes alone, and of those of
    one noise level at a time."""

    def __init__(self, model: nn.Module) -> None:
        """Raises UserError for a model that is no image model."""
        self.modules = self_attentions(model)
        self.layers = [_Layer(module) for module in self.modules]
        # its self-attention knows positions, which are of the frame: it looks for a thing where it is in its own frame,
        # so that of far keyframes, where that is elsewhere, little is of use
        self.reaches = isinstance(model, VideoDiT)

    # --- passes ---

    @contextmanager
    def reading_keyframes(self) -> Iterator[None]:
        """The pass inside is of the source's keyframes. What was kept of the level before is dropped."""
        self.layers = [_Layer(module) for module in self.modules]

        def act(layer: _Layer, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
            out = forward(x, *rest, **named)
            layer.read, layer.keys = _by_frames(x, rest), _by_frames(out, rest)
            return out

        with self._acting(act):
            yield

    @contextmanager
    def joint(self, keyframes: int, as_source: bool = False, reach: int | None = None) -> Iterator[None]:
        """The pass inside is of the edited keyframes, so many in each branch. as_source: queries and keys are those of
        the last `reading_keyframes`. reach: how many keyframes to each side one attends to (None: all), where the model
        `reaches`."""
        if reach is not None and not self.reaches:
            raise ValueError("reach is of VideoDiT: the keyframes of a U-Net attend to all of them")

        def act(layer: _Layer, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
            with _of_source(layer) if as_source else nullcontext():
                out = _extended(forward, x, rest, named, keyframes, reach)
            layer.made.append(_by_frames(out, rest).unflatten(0, (-1, keyframes)))
            return out

        with self._acting(act):
            yield

    @contextmanager
    def reading(self, where: Between) -> Iterator[None]:
        """The pass inside is of frames of the source, which lie between the keyframes so."""

        def act(layer: _Layer, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
            out = forward(x, *rest, **named)
            features = _by_frames(out, rest)
            layer.places = tuple(nearest(features, layer.keys[i]) for i in (where.before, where.after))
            return out

        with self._acting(act):
            yield

    @contextmanager
    def flowing(self, where: Between) -> Iterator[None]:
        """The pass inside is of the same frames, edited, in the branches of the last `joint` one."""

        def act(layer: _Layer, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
            made = layer.made[layer.calls]
            layer.calls += 1
            return propagated(made, where, *layer.places).reshape(*x.shape[:-1], made.shape[-1])

        for layer in self.layers:
            layer.calls = 0
        with self._acting(act):
            yield

    @contextmanager
    def _acting(self, act: Callable[..., Tensor]) -> Iterator[None]:
        """Inside, each layer's self-attention is act(layer, its own pass, its arguments)."""
        before = [vars(module).get("forward") for module in self.modules]
        for module, layer in zip(self.modules, self.layers, strict=True):
            module.forward = partial(act, layer, module.forward)
        try:
            yield
        finally:
            _restore(self.modules, before)


def _by_frames(x: Tensor, rest: Sequence[Any]) -> Tensor:
    """Tokens as layers have them, [T,D] of a pack or [b f,n,D] of a batch, frame by frame: [b f,n,D]."""
    return x if x.ndim == 3 else x.unflatten(0, (len(rest[0].samples.lengths), -1))


@contextmanager
def _of_source(layer: _Layer) -> Iterator[None]:
    """Inside, the maps of queries and keys of a self-attention read what it read of the source's keyframes."""
    module, read = layer.module, layer.read
    names = ("query", "key_value") if isinstance(module, SelfAttention) else ("to_q", "to_k")
    maps = [getattr(module, name) for name in names]
    before = [vars(linear).get("forward") for linear in maps]

    def mapped(own: Callable[[Tensor], Tensor], values: bool, x: Tensor) -> Tensor:
        out = own(read.repeat(x.numel() // read.numel(), 1, 1).reshape(x.shape))
        return torch.cat([out.chunk(2, dim=-1)[0], own(x).chunk(2, dim=-1)[1]], dim=-1) if values else out

    for linear, name in zip(maps, names, strict=True):
        linear.forward = partial(mapped, linear.forward, name == "key_value")  # whose second half are the values
    try:
        yield
    finally:
        _restore(maps, before)


def _restore(modules: Sequence[nn.Module], before: Sequence[Callable[..., Tensor] | None]) -> None:
    """`forward` of modules as it was: their own, or their class's (None)."""
    for module, own in zip(modules, before, strict=True):
        del module.forward
        if own is not None:
            module.forward = own


def _extended(
    forward: Callable[..., Tensor],
    x: Tensor,
    rest: Sequence[Any],
    named: dict[str, Any],
    frames: int,
    reach: int | None,
) -> Tensor:
    """Self-attention in which each of so many neighbouring frames attends to the tokens of those within its reach."""
    if x.ndim == 3:
        together = x.unflatten(0, (-1, frames)).flatten(1, 2)  # [b, k n, D]
        return forward(together, *rest, **named).unflatten(1, (frames, -1)).flatten(0, 1)
    context, *others = rest
    if reach is not None and reach < frames - 1:
        keys, gather = neighbours(context.queries, frames, reach)
        return forward(x, replace(context, keys=keys, gather=gather.to(x.device)), *others, **named)
    segments = joined(context.queries, frames)
    return forward(x, replace(context, queries=segments, keys=segments), *others, **named)
