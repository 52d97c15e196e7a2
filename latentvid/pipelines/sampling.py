"""What is asked of the sampler, and a pack of such requests before the network.

Axes: T tokens of a pack, P token features, R latent frames, N samples, K steps; latents are [C,f,h,w], normalised.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.scheduler import LatentVideoScheduler
from ..diffusion.solvers import Noise
from ..errors import UserError
from ..models.conditions import NO_MOTION, Conditions, known_channels
from ..packing import Grid, Packed, Patch, Reference, lead, patch_size, patchify, sides_of, token_grid
from ..rng import generator
from .convention import OnStepEnd
from .defaults import RECONSTRUCTION_WEIGHT


@dataclass(frozen=True, kw_only=True)
class Request:
    """One clip to sample.

    grid: of its latent, (f,h,w). seed: of its noise, whatever it is packed with. fps: frames a second that it is made
    for, by models that know of it; 0: it has no rate, as pictures have none, or the model is to find one.
    given: latent [C,f,h,w], and known: bool [f,h,w] or [f,1,1], which of it is kept (token by token; a token is known
    where all of its latent positions are).
    start: latent [C,f,h,w] at noise level `level`, where sampling begins in place of noise at level 1. What is known
    keeps the noise that it has there.
    references: latents [C,f',h',w'] that it is shown beside its own, by the roles of the model (`pipeline.roles`).
    motion_strength: how much is to move, for models that are told of it; None: what the sampling says.
    channels: further input channels [C',f,h,w], and image: states [I,Di] of an image encoder; of models that take them.
    negative_prompt: None is the model's.
    """

    prompt: str
    grid: Grid
    seed: int = 0
    negative_prompt: str | None = None
    fps: float = 0.0
    given: Tensor | None = None
    known: Tensor | None = None
    start: Tensor | None = None
    level: float = 1.0
    references: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    motion_strength: float | None = None
    channels: Tensor | None = None
    image: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample; what is None is the model's default.

    condition: how known tokens condition the rest. "levels": frames that are wholly known have noise level 0, for
    models that were trained so; what is known besides is put back, with noise, after each step ("replacement", which
    does so for all that is known). "channels": that of replacement, and the model is told what is known by further
    input channels, for models that have them. "reconstruction": that of replacement, and guidance by the gradient of
    the error in what is known (Ho et al. 2022), of weight `reconstruction_weight`. None: channels if the model has
    them, levels if it was trained with given frames.
    guidance_low: scale of guidance of a second expert, at low noise levels (None: the model's, or that of `guidance`).
    guidance_embedded: the scale that a model with a guidance embedding is told.
    reference_noise: noise level of references whose roles have such (None: the lowest that each was trained with).
    image_noise: noise level of frames that are given by noise levels, of which the model is told, where it was trained
        with such (None: the lowest of training).
    motion_strength: how much is to move in each clip, for models that are told of it (None: as the model finds right).
    large: whether a clip may cost more than `limit.TIMES` those that the model was trained on.
    precision: autocast type of the networks; None is bf16 where the device computes it faster, else fp32.
    on_step_end: called after each step, as diffusers' `callback_on_step_end` is (`convention.step_ender`).
    """

    steps: int | None = None
    solver: str | None = None
    guidance: Guidance | None = None
    guidance_low: float | None = None
    guidance_embedded: float | None = None
    condition: Literal["levels", "channels", "replacement", "reconstruction"] | None = None
    reconstruction_weight: float = RECONSTRUCTION_WEIGHT
    precision: torch.dtype | None = None
    reference_noise: float | None = None
    image_noise: float | None = None
    motion_strength: float | None = None
    progress: bool = True
    large: bool = False
    on_step_end: OnStepEnd | None = None

    def by_euler(self, refused: str) -> Sampling:
        """With solver euler. Raises UserError, which `refused` begins, where another one is asked for."""
        if self.solver not in (None, "euler"):
            raise UserError(f"{refused} {self.solver!r}: leave --solver out")
        return replace(self, solver="euler")


class ShownReference(NamedTuple):
    """What a request is shown: a reference, its clean latent [C,f,h,w], and the noise level that both have."""

    reference: Reference
    latent: Tensor
    level: float = 0.0


def condition_of(given: Sequence[str], asked: str | None, told: bool = False) -> str:
    """How what is known conditions the rest, by the frames that were given in training; told: the model has channels
    for it. Raises UserError where the model was not trained for what is asked."""
    if told:
        if asked == "levels":
            raise UserError("this model is told what is known by channels, not by noise levels: leave condition out")
        return asked or "channels"
    if asked == "channels":
        raise UserError(
            "condition 'channels' is of a model that was trained with model.condition_channels=mask_and_latents"
        )
    trained = tuple(given) != ("plain",)
    if asked == "levels" and not trained:
        raise UserError(
            "this model was trained without given frames (`given` in its training config): use condition "
            "'reconstruction' or 'replacement', or train it with them"
        )
    return asked or ("levels" if trained else "reconstruction")


@dataclass
class Batch:
    """A pack of requests: state, noise levels and what is known, token by token."""

    requests: Sequence[Request]
    layout: Packed
    fps: Tensor  # [N]
    levels: Tensor  # [K+1,R]
    z: Tensor  # [T,P], the state at levels[0]
    known: Tensor  # bool [T,1], not those in rows of level 0
    clean: Tensor  # [T,P], the known tokens
    eps: Tensor  # [T,P], their noise
    given: Conditions  # of the samples, but for what comes of their prompts
    sources: list[torch.Generator] = field(repr=False)
    noisy: Tensor  # [R], levels of references and given frames that have noise in z; 0 of all else
    signals: Mapping[str, Any] = field(default_factory=dict)  # of control branches, by role (`controls.Signal`)

    def __post_init__(self) -> None:
        """What decides on the way of a step stays in host memory, so that no step waits for the device."""
        self.host_layout, self.host_levels = self.layout, self.levels
        self.any_known, self.any_noisy = bool(self.known.any()), bool((self.noisy > 0).any())

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        scheduler: LatentVideoScheduler,
        patch: Patch,
        channels: int,
        steps: int,
        by_levels: bool,
        device: torch.device,
        past: Sequence[int] | None = None,
        shown: Sequence[Sequence[ShownReference]] = (),
        told: Literal["", "nothing", "known"] = "",
        image_noise: float = 0.0,
    ) -> Batch:
        """With `by_levels` latent frames that are wholly known have noise level 0 throughout, as references have; of
        those with noise the network is told by `noisy` alone, since no solver moves them.

        past: latent frames before each request's that the network has in a cache; they count as tokens of its clip.
        shown: references of each request with their latents; empty: none has any.
        told: of a model with channels for what is known: whether it is told of that, or of nothing.
        image_noise: level of frames that are given by noise levels.
        """
        shown = shown or [()] * len(requests)
        grids = [token_grid(r.grid, patch) for r in requests]
        layout = Packed.of(grids, [[one.reference for one in each] for each in shown])
        sources = [generator(r.seed, 0, "sample") for r in requests]
        eps = draw_noise(sources, layout, channels * patch_size(patch))
        columns, known, clean, z, noisy, channels_of = [], [], [], [], [], []
        past, noised_level = past or [0] * len(requests), scheduler.path.snap(torch.tensor(image_noise))
        for r, grid, noise, before, each in zip(requests, layout.grid, layout.own(eps), past, shown, strict=True):
            f, h, w = grid
            latent = _known(r)  # [f,h,w] of the latent
            mask = _known_tokens(latent, patch)  # [f,h,w] of tokens
            given = mask.flatten(1).all(1) if by_levels else torch.zeros(f, dtype=torch.bool)
            level = scheduler.levels(steps, (before + f) * h * w, r.level)  # [K+1]
            columns.append(torch.where(given, 0.0, level[:, None]))  # [K+1,f]
            values = noise if r.given is None else patchify([r.given.float().cpu()], patch)[0]
            begin = scheduler.begin(noise) if r.start is None else patchify([r.start.float().cpu()], patch)[0]
            rows = repeat(given, "f -> (f n) 1", n=h * w)
            seen = values if image_noise == 0 else scheduler.mix(values, noise, noised_level)
            z.append(torch.where(rows, seen, begin))
            known.append(rearrange(mask, "f h w -> (f h w) 1") & ~rows)
            clean.append(values)
            if r.start is not None:  # what is known has the noise that is in it, not other noise (`own` is of eps)
                alpha, sigma = scheduler.path.coefficients(level[0])
                noise.copy_(torch.where(known[-1], (begin - alpha * values) / sigma.clamp_min(1e-12), noise))
            if told:
                at = patchify([latent[None] & (told == "known")], patch)[0]  # [n, p q]
                beside = sum(math.prod(one.reference.grid) for one in each)  # tokens that are told nothing
                channels_of.append(F.pad(known_channels(values, at), (0, 0, 0, beside)))
            noisy.append(torch.where(given, noised_level if image_noise else 0.0, torch.zeros(f)))
            fresh = generator(r.seed, 0, "reference-noise")
            for reference, latent, noised in each:
                tokens = patchify([latent.float().cpu()], patch)[0]
                if noised:
                    tokens = scheduler.mix(tokens, torch.randn(tokens.shape, generator=fresh), torch.tensor(noised))
                noisy.append(torch.full((reference.grid[0],), noised))
                columns.append(level.new_zeros(len(level), reference.grid[0]))
                z.append(tokens)
                known.append(torch.zeros(len(tokens), 1, dtype=torch.bool))
                clean.append(tokens)
        levels = torch.cat(columns, 1)
        tokens = (torch.cat(parts) for parts in (z, known, clean))
        given = _given(requests, patch)
        if told and given.channels is not None:
            raise UserError("channels: those of this model are made of what is known: give `given` and `known`")
        if told:
            given = replace(given, channels=torch.cat(channels_of))
        batch = cls(requests, layout, rates_of(requests), levels, *tokens, eps, given, sources, torch.cat(noisy))
        for name in ("layout", "fps", "levels", "z", "known", "clean", "eps", "given", "noisy"):
            setattr(batch, name, getattr(batch, name).to(device))
        batch.z = batch.put_back(scheduler, batch.z, batch.levels[0])
        return batch

    def put_back(self, scheduler: LatentVideoScheduler, z: Tensor, t: Tensor) -> Tensor:
        """The state z [T,P] at levels t [R] with the known tokens in their place, with their noise."""
        if not self.any_known:
            return z
        level = t.index_select(0, self.layout.frame)[:, None]
        return torch.where(self.known, scheduler.mix(self.clean, self.eps, level), z)

    def finished(self, z: Tensor) -> Tensor:
        """The end of a run [T,P], with the given frames as they are without their noise."""
        if not self.any_noisy:
            return z
        return torch.where(self.noisy.index_select(0, self.layout.frame)[:, None] > 0, self.clean, z)

    def seen(self, t: Tensor) -> Tensor:
        """The noise levels [R] that the network sees where those of the samples are t [R]."""
        return torch.where(self.noisy > 0, self.noisy, t)

    def on_host(self, t: Tensor) -> Tensor:
        """Noise levels [R] in host memory; those of a step, a row of `levels`, are there already."""
        if t.untyped_storage()._cdata != self.levels.untyped_storage()._cdata:
            return t.cpu()
        return self.host_levels[(t.storage_offset() - self.levels.storage_offset()) // self.levels.shape[1]]

    @property
    def noise(self) -> Noise:
        """Fresh noise [T,P], each sample's from its own source."""
        return lambda: draw_noise(self.sources, self.layout, self.z.shape[1]).to(self.z.device, non_blocking=True)


def same_number(**lists: Sequence) -> None:
    """Raises ValueError where lists are not of one length."""
    if len({len(values) for values in lists.values()}) != 1:
        raise ValueError("one of each is needed: " + ", ".join(f"{len(v)} {name}" for name, v in lists.items()))


def with_frames(grid: Grid, places: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """`given` and `known` of a request whose latent frames at these places are known, each [C,1,h,w]."""
    first = next(iter(places.values()))
    given, known = first.new_zeros(first.shape[0], *grid), torch.zeros(grid[0], 1, 1, dtype=torch.bool)
    for place, latent in places.items():
        given[:, place], known[place] = latent[:, 0], True
    return {"given": given, "known": known}


def by_shape(items: Sequence[Tensor], each: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """What `each` makes of the items, in their order; those of equal shape go through it as one stack."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        groups[item.shape].append(i)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        results |= dict(zip(members, each(torch.stack([items[i] for i in members])), strict=True))
    return [results[i] for i in range(len(items))]


def one_each(value: Any, count: int, name: str) -> list:
    """One value for each of so many prompts: the one that is given for all, or those of a list. Raises UserError."""
    values = [value] * count if value is None or isinstance(value, str | int | float | Mapping) else list(value)
    if len(values) != count:
        raise UserError(f"{name}: {len(values)} given, and the prompts are {count}; give one, or one a prompt")
    return values


def draw_noise(sources: Sequence[torch.Generator], layout: Packed, features: int) -> Tensor:
    """[T,P] on the CPU, each segment from its own source; 0 of references."""
    parts = []
    for shape, source in zip(layout.shapes, sources, strict=True):
        own = math.prod(shape.grid)
        parts.append(torch.randn(own, features, generator=source))
        if shape.references:
            parts.append(torch.zeros(shape.tokens - own, features))
    return torch.cat(parts)


def rates_of(requests: Sequence[Request]) -> Tensor:
    """[N] frames a second of each; 0: none."""
    return torch.tensor([float(request.fps) for request in requests])


def told_motion(requests: Sequence[Request]) -> Tensor | None:
    """[N] for `Conditions.motion`; None where none of them says."""
    asked = [r.motion_strength for r in requests]
    if all(each is None for each in asked):
        return None
    return torch.tensor([NO_MOTION if each is None else float(each) for each in asked])


def _given(requests: Sequence[Request], patch: Patch) -> Conditions:
    """Further channels [T,P'], which all requests have or none, and image states [N,I,Di] of those that have them."""
    channels = [r.channels.float().cpu() for r in requests if r.channels is not None]
    images, has_image = [r.image for r in requests if r.image is not None], tuple(r.image is not None for r in requests)
    return Conditions(
        channels=patchify(channels, patch)[0] if channels else None,
        image=torch.stack(images) if images else None,
        motion=told_motion(requests),
        has_image=has_image if any(has_image) and not all(has_image) else (),
    )


def _known(request: Request) -> Tensor:
    """bool [f,h,w] over the latent. Raises UserError where latent and mask do not fit the request."""
    f, h, w = request.grid
    for name in ("given", "start"):
        value = getattr(request, name)
        if value is not None and tuple(value.shape[1:]) != (f, h, w):
            raise UserError(f"{name}: a latent {list(value.shape)} for a clip of latent size {f} x {h} x {w}")
    if request.known is None:
        return torch.zeros(f, h, w, dtype=torch.bool)
    if request.given is None:
        raise UserError("known says which tokens to keep, but there is no latent to keep them from: give `given`")
    if request.known.ndim != 3 or any(a not in (1, b) for a, b in zip(request.known.shape, (f, h, w), strict=True)):
        raise UserError(f"the mask of what is known is {list(request.known.shape)}, the latent {f} x {h} x {w}")
    known = request.known.cpu().bool().expand(f, h, w)
    if known.all():
        raise UserError("all of the clip is known: nothing is left to sample")
    return known


def _known_tokens(known: Tensor, patch: Patch) -> Tensor:
    """bool [f,h,w] over the latent -> over the token grid: tokens all of whose latent positions are known."""
    t, p, q = sides_of(patch)
    return rearrange(lead(known, patch), "(f t) (h p) (w q) -> f h w (t p q)", t=t, p=p, q=q).all(-1)
