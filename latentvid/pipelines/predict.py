"""What predicts for a pack of requests while it is sampled: the network, or two, with guidance.

Axes: T tokens of a pack, P token features, R latent frames, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.objective import target_coefficients
from ..diffusion.scheduler import LatentVideoScheduler
from ..diffusion.solvers import Predict
from ..errors import UserError
from ..models.conditions import Conditions
from ..models.key_value_cache import KeyValueCache
from ..models.open import OpenBackbone
from ..models.open.backbone import sample_level
from ..models.text_context import TextContext
from ..models.transformer import VideoDiT
from ..packing import Packed, patchify
from ..text import PackedText, TextEncoder, TextReader
from .controls import control_at
from .sampling import Batch, Request, rates_of

Backbone = VideoDiT | OpenBackbone


@dataclass(frozen=True)
class SecondExpert:
    """The network that predicts for samples whose noise level, as they are told it, is below `boundary`."""

    transformer: Backbone
    boundary: float
    guidance: Guidance


def make_predict(
    transformer: Backbone,
    text: TextEncoder | TextReader,
    batch: Batch,
    guidance: Guidance,
    scheduler: LatentVideoScheduler,
    cache: KeyValueCache | None = None,
    second: SecondExpert | None = None,
) -> Predict:
    """The guided prediction for a batch; both branches go through the network as one pack, at the same frame rates.

    cache: of a causal model, with the frames before the batch's (`record`). second: who predicts at low noise levels.
    """
    experts = [(transformer, guidance)] + ([] if second is None else [(second.transformer, second.guidance)])
    guided = any(of_expert.scale != 1.0 for _, of_expert in experts)
    one, both = _branches(text, batch.requests, batch.layout, guided, batch.given, transformer.without(batch.given))
    predicts = [_guided(network, one, both, batch, scale, scheduler, cache) for network, scale in experts]
    if second is None:
        return predicts[0]
    high, low = predicts

    def predict(z: Tensor, t: Tensor) -> Tensor:
        above = sample_level(scheduler.told(batch.on_host(t)), batch.host_layout) >= second.boundary - 1e-6  # [N]
        if bool(above.all()):
            return high(z, t)
        if not bool(above.any()):
            return low(z, t)
        of_token = above.to(z.device, non_blocking=True).index_select(0, batch.layout.segment)[:, None]
        return torch.where(of_token, high(z, t), low(z, t))

    return predict


def _guided(
    transformer: Backbone,
    one: Branch,
    both: Branch,
    batch: Batch,
    guidance: Guidance,
    scheduler: LatentVideoScheduler,
    cache: KeyValueCache | None,
) -> Predict:
    layout = batch.layout
    guided = guidance.scale != 1.0
    still = _zero_until(guidance, scheduler, batch)
    network = alone = transformer
    if cache is not None:
        network = alone = partial(transformer, cache=cache)
        if guided and guidance.interval is not None:
            alone = partial(transformer, cache=cache.select(range(layout.segments if cache.frames else 0)))

    def predict(z: Tensor, t: Tensor) -> Tensor:
        at = batch.on_host(t)
        if still is not None and bool((at > still).any()):
            return _zero_velocity(scheduler, z, t, layout)
        (read, told), control = scheduler.inputs(z, batch.seen(t)), control_at(transformer, batch, t)
        if not guided or bool((guidance.scales(at) == 1).all()):
            more = one.more if control is None else {**one.more, "control": control}
            return alone(read, told, *one.text, fps=batch.fps, **more).float()
        more = both.more if control is None else {**both.more, "control": control.map(_doubled)}
        together = network(read.repeat(2, 1), told.repeat(2), *both.text, fps=batch.fps.repeat(2), **more)
        conditional, unconditional = together.float().chunk(2)
        return guidance.combine(conditional, unconditional, t, layout)

    return predict


def record(
    transformer: VideoDiT,
    text: TextEncoder | TextReader,
    requests: Sequence[Request],
    latents: Sequence[Tensor],
    guidance: Guidance,
    cache: KeyValueCache,
    given: Conditions,
    scheduler: LatentVideoScheduler,
) -> None:
    """Adds finished latents [C,f,h,w] of the requests to the cache, at noise level 0, for each branch of guidance.
    given: what the network is told of each request beside its text."""
    z, grids = patchify(latents, transformer.patch)
    layout = Packed.of(grids).to(z.device)
    _, both = _branches(text, requests, layout, guidance.scale != 1.0, given, transformer.without(given))
    layout = both.text[1]
    branches, fps = layout.segments // len(latents), rates_of(requests).to(z.device)
    with cache.recording():
        read = scheduler.inputs(z.repeat(branches, 1), z.new_zeros(layout.frames))
        transformer(*read, *both.text, cache=cache, fps=fps.repeat(branches), **both.more)


@dataclass(frozen=True)
class Branch:
    """What the network is given beside state and levels. text: states, layout of the samples, and of the text."""

    text: tuple[TextContext, Packed, Packed]
    given: Conditions

    @property
    def more(self) -> dict[str, Conditions]:
        """Nothing for networks that take no conditions."""
        held = any(isinstance(getattr(self.given, field.name), Tensor) for field in fields(Conditions))
        return {"conditions": self.given} if held else {}


def _branches(
    text: TextEncoder | TextReader,
    requests: Sequence[Request],
    layout: Packed,
    guided: bool,
    given: Conditions,
    without: Conditions,
) -> tuple[Branch, Branch]:
    """For the prompts alone, and as guidance needs it, with the negative prompts as samples of their own after them,
    which are given what `without` has."""
    device = layout.segment.device
    prompts, negatives = ([getattr(r, name) or "" for r in requests] for name in ("prompt", "negative_prompt"))
    found = text.encode(prompts + negatives if guided else prompts)
    n, split = len(prompts), sum(found.lengths[: len(prompts)])
    words = Packed.of_lengths(found.lengths[:n]).to(device)
    if not torch.is_autocast_enabled(device.type):  # then the network computes in fp32, the encoder perhaps not
        found = found.float()
    states = found.states.to(device)
    one = Branch((TextContext(states[:split]), layout, words), _with_text(given, found, n).to(device))
    if not guided:
        return one, one
    both = layout.repeated(2).to(device), Packed.of_lengths(found.lengths).to(device)
    return one, Branch((TextContext(states), *both), _with_text(_together(given, without), found, 2 * n).to(device))


def _together(one: Conditions, other: Conditions) -> Conditions:
    """Of samples, and of as many more after them."""
    pairs = {field.name: (getattr(one, field.name), getattr(other, field.name)) for field in fields(Conditions)}
    both = {name: torch.cat(pair) for name, pair in pairs.items() if isinstance(pair[0], Tensor)}
    return replace(one, **both, has_image=one.has_image * 2)


def _doubled(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.ndim - 1))


def _with_text(given: Conditions, found: PackedText, samples: int) -> Conditions:
    """With what other encoders made of the first prompts."""
    pooled, second, lengths = found.pooled, found.second, tuple((found.second_lengths or [])[:samples])
    return replace(
        given,
        pooled=None if pooled is None else pooled[:samples],
        second=None if second is None else second[: sum(lengths)],
        second_lengths=lengths,
    )


def _zero_until(guidance: Guidance, scheduler: LatentVideoScheduler, batch: Batch) -> Tensor | None:
    """Noise levels [R], in host memory, above which the velocity is 0, if the guidance asks for such steps."""
    if not guidance.zero_init:
        return None
    if scheduler.config.path != "rectified_flow":
        raise UserError(f"zero_init needs path 'rectified_flow'; this model's is {scheduler.config.path!r}")
    if guidance.zero_init >= len(batch.levels) - 1:
        raise UserError(f"zero_init {guidance.zero_init}: must be fewer than the {len(batch.levels) - 1} steps")
    return batch.host_levels[guidance.zero_init]


def _zero_velocity(scheduler: LatentVideoScheduler, z: Tensor, t: Tensor, layout: Packed) -> Tensor:
    """What the network would predict if x and eps were both z, so that no step moves it."""
    p, q = target_coefficients(scheduler.config.target, scheduler.path, t.index_select(0, layout.frame)[:, None])
    return (p + q) * z
