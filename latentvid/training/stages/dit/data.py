"""Samples of the transformer's stage: packs of them, and a model's error on a pack.

Axes: T tokens, P token features, R latent frames, S text tokens, N samples of a pack; latents are [C,f,h,w].
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....config.schema import DitConfig
from ....data.cache.latents import LatentCaches, module_fingerprint
from ....data.cache.shards import Encoded
from ....data.clips import ClipSource
from ....data.manifest.columns import Lookup, paired
from ....data.motion import motion_strength
from ....data.plan.plan import PER_SAMPLE, Draw
from ....data.stacks import Stacks
from ....data.transforms import from_uint8
from ....diffusion.objective import loss_per_sample
from ....errors import UserError
from ....models.conditions import Conditions, known_channels
from ....models.control import Control
from ....models.interchange import Vae
from ....packing import (
    Packed,
    Patch,
    Shape,
    patch_size,
    spans,
    token_grid,
)
from ....rng import generator
from ....sequence import makers
from ....text import TextEncoder
from ...compute import compute_type
from .before import Before
from .cache_check import check_cache
from .clips import open_clips
from .conditions import ConditionMaker
from .drawn import Drawn
from .known import is_told, kept_by, notes_of_known, sees_low
from .low import Low, encoded, latent_shape, tokens_of_low
from .pack import DitPack
from .parts import Parts
from .prior import class_source, notes_of, notes_of_word, sources_of, weights_of
from .shown import clean_tokens, references_of, shown_latents
from .strength import check_motion, is_measured, tells_motion
from .trade import traded_pack


class DitPacks(Drawn):
    """Samples from a latent cache, or from clips that are encoded as they are needed.

    `config` says where they are. clips_each: clips of a sample, all of one shape.
    """

    clips_each = 1
    before: Before | None = None

    def __init__(self, config: DitConfig, parts: Parts, patch: Patch, conditions: ConditionMaker | None = None) -> None:
        """conditions: what a published model reads beside tokens, levels and text; None: nothing."""
        self.config, self.parts, self.patch, self.conditions = config, parts, patch, conditions
        self.scheduler, self.device, self.sequence = parts.scheduler, parts.device, parts.sequence
        self.channels, self.stride = parts.vae.latent_channels, parts.vae.temporal_stride
        self.strides = parts.vae.temporal_stride, parts.vae.spatial_stride
        self.features = self.channels * patch_size(patch)
        self.told, self.sees_low = is_told(config), sees_low(config)
        self.of_column = check_motion(config, self.clips_each, conditions is not None and conditions.tells_motion)
        self.cache: LatentCaches | None = None
        self.source = self.clips = None  # of clips

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network, and nothing that is of every sample."""
        return {k: v for k, v in self.__dict__.items() if k not in ("model", "parts", "weights", "before", *PER_SAMPLE)}

    @property
    def vae(self) -> Vae:
        return self.parts.vae

    @property
    def text(self) -> TextEncoder:
        return self.parts.text

    def open(self) -> None:
        """Raises UserError where there are none, or not such as the model takes."""
        data, named = self.config.data, sources_of(self.config)
        if data.latents is not None:
            self.cache = LatentCaches(named, data.retry_s)
            self.sources, self.source_of = self.cache.sources, self.cache.source_of
            self.is_image = np.array([grid[0] == 1 for grid in self.cache.grids])
            self.cache.check({"vae": module_fingerprint(self.vae, self.vae.config), "text": self.text.fingerprint()})
            self.cache_notes = check_cache(self.cache, self.config, self.vae)
            self.null = self.cache.null()
            latent_grids = Lookup.among(self.cache.grids)
        elif data.manifest is not None:
            self.source = self.clips = self._open_clips(named)
            self.sources, self.source_of = self.source.sources, self.source.source_of
            self.is_image = self.source.is_image
            latent_grids = self.source.shapes.map(lambda shape: self.vae.latent_grid(*shape))
        else:
            raise UserError(
                "give data.latents (a cache from vae/encode_latents.py) or data.manifest (a table of clips)"
            )
        try:
            self.grids = latent_grids.map(lambda grid: token_grid(grid, self.patch))
        except ValueError as error:
            raise UserError(f"{error}: encode again with --patch {self.patch[1]}, or set another model.patch") from None
        self.shapes = self.grids.map(Shape)
        if self.source is not None and self.source.references is not None:
            of_window = partial(references_of, self.config.data.references, self.vae, self.patch)
            self.shapes = paired(self.grids, self.source.references.shapes.map(of_window)).map(
                lambda pair: Shape(*pair)
            )
        if self.conditions is not None and self.cache is not None:
            self.conditions.check_cache(self.cache)
        self.of_class = class_source(self.config, self.sources)
        self.notes = notes_of(self.config, self.sources, self.source_of) + notes_of_known(self.config)
        if self.source is not None:
            self.notes += notes_of_word(self.config, self.source, self.text)

    def _open_clips(self, paths: Sequence[Path]) -> ClipSource:
        return open_clips(self.config, self.parts, paths, self.patch)

    @property
    def controlled(self) -> bool:
        """Whether what samples are shown is the signal of a control branch, and not tokens of theirs."""
        return self.config.controlnet.on

    def summary(self) -> str:
        opened, notes = (self.source, ()) if self.cache is None else (self.cache, self.cache_notes)
        return "\n".join([opened.summary(), *notes, *self.notes])

    @property
    def source_weights(self) -> tuple[float, ...]:
        tokens = self.shapes.map(lambda shape: shape.tokens).array()
        return weights_of(self.config, self.sources, self.source_of, tokens)

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        return (self.source if self.cache is None else self.cache).identity(first)

    @property
    def null_text(self) -> Tensor:
        """Text states [S,Dt] of the empty caption, of a cache."""
        return self.null.states

    # --- packs, in loader processes ---

    def make_pack(self, draws: Sequence[Draw]) -> DitPack:
        """The pack of these draws; where processes share it, this one's piece and what it makes for all."""
        seed = self.config.run.seed
        draws = sorted(draws, key=lambda draw: (self.grids[draw.index], draw.number))  # equal shapes side by side
        whole = Packed.of(
            [self.grids[draw.index] for draw in draws],
            [self.augmentation.shown(draw, self.shapes[draw.index]) for draw in draws],
        )
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        span = spans(whole.lengths, size)[rank]
        layout = whole if size == 1 else whole.piece(span)
        noise, skip = [], span.start - int(whole.cu_seqlens[span.first])
        for draw, shape, length in zip(draws[span.first : span.last], layout.shapes, layout.lengths, strict=True):
            own = math.prod(shape.grid)
            tokens = torch.randn(own, self.features, generator=generator(seed, draw.number, "noise"))
            if shape.references:
                tokens = torch.cat([tokens, self.augmentation.noise(draw, shape, self.features)])
            noise.append(tokens[skip : skip + length])
            skip = 0
        made = [draw for draw, maker in zip(draws, makers(whole.lengths, size), strict=True) if maker == rank]
        content, masks = (self._from_clips if self.cache is None else self._from_cache)(made)
        known = self._known_of(draws, whole, masks) if self.told else None
        levels = [self._noise_levels(draw, grid) for draw, grid in zip(draws, whole.grid, strict=True)]
        there = [0] * len(draws) if known is None else known.frames
        counted = [
            int(((level > 0) * (h * w - n)).sum())
            for level, n, (_, h, w) in zip(levels, there, whole.grid, strict=True)
        ]
        here = slice(span.first, span.last)
        seen = self.augmentation.seen(levels[here], draws[here], layout.shapes)
        levels = [  # with those of references' latent frames, which are 0
            torch.cat([level, level.new_zeros(shape.frames - len(level))])
            for level, shape in zip(levels, whole.shapes, strict=True)
        ]
        if (tells_motion(self.config) or self.of_column) and self.clips_each == 1 and "motion" not in content:
            content["motion"] = self._motion_of(draws[here])
        return DitPack(
            noise=torch.cat(noise),
            timestep=torch.cat(levels[here]),
            seen=seen,
            layout=layout,
            rates=torch.tensor([self._rate(draw) for draw in draws[span.first : span.last]]),
            counted=tuple(counted[span.first : span.last]),
            counted_in_all=sum(counted),
            numbers=tuple(draw.number for draw in draws[span.first : span.last]),
            made=tuple(draw.number for draw in made),
            known=None if known is None else known.tokens(span),
            known_tokens=None if known is None else known.of_frames(span),
            by_model=self._by_model(draws[span.first : span.last]),
            **content,
        )

    def _from_cache(self, draws: Sequence[Draw]) -> tuple[dict[str, Any], dict[int, Tensor]]:
        """What of a pack these samples have, and what masks leave known of those that have some, by their numbers."""
        entries = self._entries(draws)
        latents = [
            e.mean + e.std * self._posterior(draw.number, e.mean.shape) for draw, e in zip(draws, entries, strict=True)
        ]
        words = [self.null if self._drops(draw) else e.words for draw, e in zip(draws, entries, strict=True)]
        texts = [each.states if self.conditions is None else self.conditions.filled(each.states) for each in words]
        given = None if self.conditions is None else self.conditions.of_entries(entries, words)
        parted = [self._parted(draw, e.references) for draw, e in zip(draws, entries, strict=True)]
        shown, none = [others for others, _ in parted], torch.empty(0, self.features)
        if self.sees_low:
            given = self._of_low([low for _, low in parted], latents, shown, none)
        masks = {draw.number: e.known for draw, e in zip(draws, entries, strict=True) if e.known is not None}
        content = {
            **clean_tokens(latents, shown, self.patch, self.controlled, none),
            "conditions": given,
            "text": torch.cat(texts) if texts else self.null_text[:0],
            "text_layout": Packed.of_lengths([len(text) for text in texts]) if texts else None,
        }
        if is_measured(self.config):
            content["motion"] = self._motion_of(draws, [e.motion for e in entries])
        return content, masks

    def _entries(self, draws: Sequence[Draw]) -> list[Encoded]:
        return [self.cache.load(draw.index, self._caption(draw)) for draw in draws]

    def _from_clips(self, draws: Sequence[Draw]) -> tuple[dict[str, Any], dict[int, Tensor]]:
        """As `_from_cache`."""
        videos, captions, replaced = Stacks(self.source.shapes[draw.index] for draw in draws), [], 0
        parted: list[tuple[list[Tensor], Low | None]] = []
        masks: dict[int, Tensor] = {}
        measured: list[float] = []
        for draw, clip in zip(draws, self.source.load_each(draws, self.config.run.seed), strict=True):
            videos.append(clip.pixels)
            parted.append(self._parted(draw, clip.references))
            captions.append("" if self._drops(draw) else clip.caption)
            replaced += clip.replaced
            if is_measured(self.config):
                measured.append(motion_strength(clip.pixels, self.source.rate(clip.index)))
            if (known := kept_by(clip.masks, len(clip.pixels), *self.strides)) is not None:
                masks[draw.number] = known
        shapes, references = [self._latent_shape(draw) for draw in draws], [others for others, _ in parted]
        content = {
            "videos": [video for group in videos.tensors().values() for video in group],  # equal ones stand together
            "posterior": [self._posterior(draw.number, shape) for draw, shape in zip(draws, shapes, strict=True)],
            "captions": captions,
            "references": references if any(references) else None,
            "low": [low for _, low in parted] if self.sees_low else None,
            "replaced": replaced,
        }
        if is_measured(self.config):
            content["motion"] = self._motion_of(draws, measured)
        return content, masks

    def _parted(self, draw: Draw, shown: Sequence[Tensor]) -> tuple[list[Tensor], Low | None]:
        return self.augmentation.parted(draw, shown, partial(latent_shape, self.channels, self.strides))

    def _of_low(
        self, low: Sequence[Low | None], own: Sequence[Tensor], shown: Sequence[Sequence[Tensor]], none: Tensor
    ) -> Conditions:
        return Conditions(channels=tokens_of_low(low, own, shown, self.patch, self.scheduler, none))

    def _latent_shape(self, draw: Draw) -> tuple[int, int, int, int]:
        """C, f, h, w of a window of clips."""
        _, h, w = self.grids[draw.index]
        frames = 1 + (self.source.shapes[draw.index][0] - 1) // self.stride
        return self.channels, frames, h * self.patch[1], w * self.patch[2]

    # --- on the device ---

    def _encode(self, pack: DitPack) -> DitPack:
        """Latents and text states of a pack of clips: on a GPU in the type that the model computes in, on CPUs in fp32,
        whatever that is."""
        on_gpu = self.device.type == "cuda"
        with torch.no_grad(), compute_type(self.config, self.device) if on_gpu else nullcontext():
            return self._encoded(pack)

    def _encoded(self, pack: DitPack) -> DitPack:
        """Equal shapes go through the VAE together."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, video in enumerate(pack.videos):
            groups[tuple(video.shape)].append(i)
        latents: list[Tensor | None] = [None] * len(pack.videos)
        for members in groups.values():
            posterior = self.vae.encode(from_uint8(torch.stack([pack.videos[i] for i in members]))).latent_dist
            for i, mean, std in zip(members, posterior.mean, posterior.std, strict=True):
                latents[i] = self.vae.normalise((mean + std * pack.posterior[i])[None])[0]
        text = self.text.encode(pack.captions)
        layout = Packed.of_lengths(text.lengths).to(text.states.device) if text.lengths else None
        given = None
        if self.conditions is not None:
            made, without = (pack.videos, latents, pack.made), [not caption for caption in pack.captions]
            given = self.conditions.of_clips(self.vae, self.parts.image, *made, text, self.config.run.seed, without)
        shown, none = shown_latents(self.vae, pack.references, len(latents)), pack.noise[:0]
        if pack.low is not None:
            given = self._of_low(encoded(self.vae, pack.low), latents, shown, none)
        clean = clean_tokens(latents, shown, self.patch, self.controlled, none)
        return replace(pack, **clean, low=None, text=text.states.float(), text_layout=layout, conditions=given)

    def prepare(self, pack: DitPack) -> DitPack:
        if pack.clean is None:
            pack = self._encode(pack)
        if pack.layout.whole is not None:
            pack = traded_pack(self.sequence, pack)
        if self.conditions is not None:
            pack = replace(pack, conditions=self.conditions.finished(pack.conditions, pack.layout))
        if pack.known is not None:
            pack = replace(pack, conditions=Conditions(channels=known_channels(pack.clean, pack.known)))
        if pack.motion is not None:
            pack = replace(pack, conditions=replace(pack.conditions or Conditions(), motion=pack.motion))
        return replace(pack, ready=True)

    def errors(self, model: nn.Module, pack: DitPack, of_clean: bool = False) -> tuple[Tensor, Tensor | None]:
        """The loss of each sample [N] and, if asked, the mean squared error of the clean tokens [N] that the
        prediction implies, which compares models of any target."""
        pack = pack if pack.ready else self.prepare(pack)
        seen = pack.timestep if pack.seen is None else pack.seen
        t = seen.index_select(0, pack.layout.frame)[:, None]  # [T,1]
        noised = self.scheduler.mix(pack.clean, pack.noise, t)
        target = self.scheduler.target(pack.clean, pack.noise, t)
        more = {} if pack.conditions is None else {"conditions": pack.conditions}
        if pack.control is not None:
            more["control"] = Control.of(pack.control)
        read = (*self.scheduler.inputs(noised, seen, sampling=False), pack.text, pack.layout, pack.text_layout)
        if pack.by_model is not None:
            with self.before.instead_of(model) as frozen:  # first: what it gathers of a sharded model is still right
                told = frozen(*read, fps=pack.rates, **more).float()
            target = torch.where(pack.by_model.index_select(0, pack.layout.segment)[:, None], told, target)
        prediction = model(*read, fps=pack.rates, **more)
        weight = self.config.weighting(self.scheduler.config.target, self.scheduler.path, pack.timestep)
        known = {} if pack.known is None else {"known": pack.known.all(1), "known_tokens": pack.known_tokens}
        loss = loss_per_sample(prediction, target, pack.timestep, pack.layout, weight, **known)
        if not of_clean:
            return loss, None
        clean, _ = self.scheduler.recover(noised, prediction.float(), t)
        return loss, loss_per_sample(clean, pack.clean, pack.timestep, pack.layout, **known)
