"""Training the diffusion transformer, from a latent cache or from clips encoded as it trains.

Axes: T tokens, P token features, R latent frames, S text tokens, N samples of a pack; latents are [C,f,h,w].
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....attention import resolve_backend
from ....config.schema import DitConfig, several
from ....data.cache.latents import LatentCaches, module_fingerprint
from ....data.clips import ClipSource, Transform
from ....data.manifest.columns import Lookup
from ....data.plan.plan import PER_SAMPLE, Draw
from ....data.stacks import Stacks
from ....data.transforms import from_uint8
from ....diffusion.objective import loss_per_sample
from ....diffusion.scheduler import LatentVideoScheduler
from ....errors import UserError
from ....evaluation.sheet import Row
from ....models.attention_context import attended_pairs
from ....models.flops import GridFlops, dit_flops, vae_flops
from ....models.interchange import channels_last, load_vae
from ....models.transformer import VideoDiT
from ....packing import Grid, Packed, patchify, spans, token_grid
from ....pipelines.latent_video import LatentVideoPipeline
from ....pipelines.sampling import Sampling
from ....precision import dtype_of
from ....rng import generator
from ....sequence import make_sequence_group, makers
from ....text import TextEncoder
from ...feed.manifests import check_cache, open_manifests
from ...task import HeldOut, build_model, shares
from .captions import check_captions
from .pack import DitPack
from .seen import defaults_of, seen_by, seen_in


class DitTask:
    product = "pipeline"
    ragged = False
    apart = ()

    def __init__(self, config: DitConfig, device: torch.device, data: bool = True) -> None:
        """`data=False` leaves the data closed: enough to export."""
        self.config, self.device = config, device
        self.sequence = None if config.run.dry_run else make_sequence_group(config.train.sequence_parallel)
        self.vae = channels_last(load_vae(config.vae)).to(device).requires_grad_(False)
        self.text = TextEncoder.from_pretrained(config.text_encoder).to(device)
        self.scheduler = build_model(LatentVideoScheduler, config.scheduler, "scheduler")
        try:
            config.weighting.check(self.scheduler.config.target, self.scheduler.path)
        except ValueError as error:
            raise UserError(f"weighting: {error}") from None
        self.model = self.new_model()
        self.patch = self.model.config.patch
        self.features = self.model.config.latent_channels * self.patch**2
        if data:
            self._check_prompts()
            self._open_data()
            self.tokens = self.grids.map(math.prod).array()
            # a block's attention is 4 D a pair of tokens, its linear layers about 24 D^2 a token
            c = self.model.config
            pairs = self.grids.map(lambda grid: attended_pairs(c.attention, c.depth, grid) / c.depth).array()
            self.costs = self.tokens + pairs / (6 * c.width)

    def _check_prompts(self) -> None:
        try:
            self.text.check(self.config.samples.prompts)
        except UserError as error:
            raise UserError(f"samples.prompts: {error}") from None

    @property
    def partial(self) -> bool:
        """Whether some clips have given frames, whose tokens have no loss."""
        return not {"plain", "independent"}.issuperset(self.config.given.names)

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network, and nothing that is of every sample."""
        return {k: v for k, v in self.__dict__.items() if k not in ("model", "vae", "text", *PER_SAMPLE)}

    def new_model(self) -> VideoDiT:
        known = {"latent_channels": self.vae.latent_channels, "text_width": self.text.dim}
        for key, value in known.items():
            if self.config.model.get(key, value) != value:
                raise UserError(
                    f"model.{key} is {self.config.model[key]} but the loaded parts have {value}: leave it out"
                )
        torch.manual_seed(self.config.run.seed)
        model = build_model(VideoDiT, {**self.config.model, **known}, "model")
        model.attention_backend = resolve_backend(self.config.attention, self.device, self.dtype)
        if self.sequence is not None and model.config.heads % self.sequence.size:
            raise UserError(
                f"train.sequence_parallel is {self.sequence.size}, which does not divide model.heads, "
                f"{model.config.heads}: each process takes as many heads as the others"
            )
        if self.sequence is not None and model.config.attention != "full":
            raise UserError(
                f"train.sequence_parallel is {self.sequence.size}, but model.attention is {model.config.attention!r}: "
                "set train.sequence_parallel to 1, or model.attention to full"
            )
        model.sequence = self.sequence
        return model

    def _open_data(self) -> None:
        data = self.config.data
        self.cache = self.source = self.clips = None
        if data.latents is not None:
            self.cache = LatentCaches(several(data.latents), data.retry_s)
            self.sources, self.source_of = self.cache.sources, self.cache.source_of
            self.is_image = np.array([grid[0] == 1 for grid in self.cache.grids])
            self.cache.check({"vae": module_fingerprint(self.vae, self.vae.config), "text": self.text.fingerprint()})
            self.cache_notes = check_cache(self.cache, self.config, self.vae)
            self.null_text = self.cache.null_text()
            latent_grids = Lookup.among(self.cache.grids)
        elif data.manifest is not None:
            transform = Transform(
                spatial_stride=self.vae.spatial_stride * self.patch,
                temporal_stride=self.vae.temporal_stride,
                max_area=data.max_area,
                max_frames=data.max_frames,
                flip=data.flip,
            )
            self.source = self.clips = self.open_sources(several(data.manifest), transform)
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
            raise UserError(f"{error}: encode again with --patch {self.patch}, or set another model.patch") from None

    def open_sources(self, paths: Sequence[Path], transform: Transform, drop_unknown: bool = False) -> ClipSource:
        """As `clips.open_sources`, of what the text encoder can take, and opened by the main process first."""
        check = partial(check_captions, text=self.text, rules=self.config.caption, drop_unknown=drop_unknown)
        return open_manifests(paths, transform, self.config.data, check)

    def summary(self) -> str:
        return self.source.summary() if self.cache is None else "\n".join([self.cache.summary(), *self.cache_notes])

    def identity(self) -> dict[str, Any]:
        return self.source.identity() if self.cache is None else self.cache.identity()

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return self.vae, self.text.encoder

    def pixels(self, grid: Grid) -> Grid:
        side = self.vae.spatial_stride * self.patch
        return 1 + (grid[0] - 1) * self.vae.temporal_stride, grid[1] * side, grid[2] * side

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return dtype_of(self.config.train.mixed_precision)

    @cached_property
    def mean_text(self) -> float:
        """Text tokens of a sample, dropped captions included, by 64 samples spread over the data set."""
        asked = torch.linspace(0, len(self.grids) - 1, min(64, len(self.grids))).long().tolist()
        if self.cache is not None:
            lengths, null = [len(self.cache.load(i).text) for i in asked], len(self.null_text)
        else:
            *lengths, null = map(len, self.text.tokenize([*(self.source.caption(i) for i in asked), ""]))
        dropout = self.config.data.caption_dropout
        return (1 - dropout) * sum(lengths) / len(lengths) + dropout * null

    def grid_flops(self, grid: Grid) -> GridFlops:
        model = dit_flops(self.model.config, [grid], [self.mean_text])
        online = self.cache is None
        return GridFlops(model, vae_flops(self.vae, self.pixels(grid)).encode if online else 0)

    def flops(self, pack: DitPack) -> float:
        whole = pack.layout.whole or pack.layout
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        made = [g for g, maker in zip(whole.grid, makers(whole.lengths, size), strict=True) if maker == rank]
        if pack.captions is not None:
            text = [len(ids) for ids in self.text.tokenize(pack.captions)]
        else:
            text = [] if pack.text_layout is None else pack.text_layout.lengths
        return dit_flops(self.model.config, made, text)

    def blank_pack(self, grids: Sequence[Grid]) -> DitPack:
        layout, text_layout = Packed.of(grids), Packed.of_lengths([round(self.mean_text)] * len(grids))
        blank = torch.zeros(layout.tokens, self.features)
        text = torch.zeros(text_layout.tokens, self.text.dim)
        return DitPack(blank, torch.ones(layout.frames), layout, clean=blank, text=text, text_layout=text_layout)

    def make_pack(self, draws: Sequence[Draw]) -> DitPack:
        """The pack of these draws; where processes share it, this one's piece and what it makes for all."""
        seed = self.config.run.seed
        draws = sorted(draws, key=lambda draw: (self.grids[draw.index], draw.number))  # equal shapes side by side
        whole = Packed.of([self.grids[draw.index] for draw in draws])
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        span = spans(whole.lengths, size)[rank]
        layout = whole if size == 1 else whole.piece(span)
        noise, skip = [], span.start - int(whole.cu_seqlens[span.first])
        for draw, grid, length in zip(draws[span.first : span.last], layout.grid, layout.lengths, strict=True):
            tokens = torch.randn(math.prod(grid), self.features, generator=generator(seed, draw.number, "noise"))
            noise.append(tokens[skip : skip + length])
            skip = 0
        levels = [self._noise_levels(draw, grid) for draw, grid in zip(draws, whole.grid, strict=True)]
        counted = [int((level > 0).sum()) * h * w for level, (_, h, w) in zip(levels, whole.grid, strict=True)]
        made = [draw for draw, maker in zip(draws, makers(whole.lengths, size), strict=True) if maker == rank]
        make = self._from_clips if self.cache is None else self._from_cache
        return DitPack(
            noise=torch.cat(noise),
            timestep=torch.cat(levels[span.first : span.last]),
            layout=layout,
            counted=tuple(counted[span.first : span.last]),
            counted_in_all=sum(counted),
            numbers=tuple(draw.number for draw in draws[span.first : span.last]),
            **make(made),
        )

    def _noise_levels(self, draw: Draw, grid: Grid) -> Tensor:
        """Of each latent frame [f]; 0 where it is given."""
        seed, frames = self.config.run.seed, grid[0]
        given, independent = self.config.given.draw(generator(seed, draw.number, "given"), frames)
        source = generator(seed, draw.number, "timestep")
        level = self.config.timesteps.draw(source, math.prod(grid), frames if independent else 1)
        return self.scheduler.path.snap(level).expand(frames).masked_fill(given, 0.0)

    def _from_cache(self, draws: Sequence[Draw]) -> dict[str, Any]:
        entries = [self.cache.load(draw.index) for draw in draws]
        latents = [
            e.mean + e.std * self._posterior(draw.number, e.mean.shape) for draw, e in zip(draws, entries, strict=True)
        ]
        texts = [self.null_text if self._drops(draw) else e.text for draw, e in zip(draws, entries, strict=True)]
        return {
            "clean": patchify(latents, self.patch)[0] if latents else torch.empty(0, self.features),
            "text": torch.cat(texts) if texts else self.null_text[:0],
            "text_layout": Packed.of_lengths([len(text) for text in texts]) if texts else None,
        }

    def _from_clips(self, draws: Sequence[Draw]) -> dict[str, Any]:
        videos, captions, replaced = Stacks(self.source.shapes[draw.index] for draw in draws), [], 0
        for draw, clip in zip(draws, self.source.load_each(draws, self.config.run.seed), strict=True):
            videos.append(clip.pixels)
            captions.append("" if self._drops(draw) else clip.caption)
            replaced += clip.replaced
        channels = self.features // self.patch**2
        grids = [self.grids[draw.index] for draw in draws]
        shapes = [(channels, f, h * self.patch, w * self.patch) for f, h, w in grids]
        return {
            "videos": [video for group in videos.tensors().values() for video in group],  # equal ones stand together
            "posterior": [self._posterior(draw.number, shape) for draw, shape in zip(draws, shapes, strict=True)],
            "captions": captions,
            "replaced": replaced,
        }

    def _posterior(self, number: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator(self.config.run.seed, number, "posterior"))

    def _drops(self, draw: Draw) -> bool:
        chance = torch.rand((), generator=generator(self.config.run.seed, draw.number, "caption-dropout"))
        return bool(chance < self.config.data.caption_dropout)

    @torch.no_grad()
    def _encode(self, pack: DitPack) -> DitPack:
        """Latents and text states of a pack of clips; equal shapes go through the VAE together."""
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
        clean = patchify(latents, self.patch)[0] if latents else pack.noise[:0]
        return replace(pack, clean=clean, text=text.states, text_layout=layout)

    def _trade(self, pack: DitPack) -> DitPack:
        """From the samples that each process of the group made, the clean tokens and the text of this one's piece."""
        words = [] if pack.text_layout is None else pack.text_layout.lengths
        clean, text, words = self.sequence.redistribute(pack.layout.whole.lengths, pack.clean, pack.text, words)
        return replace(pack, clean=clean, text=text, text_layout=Packed.of_lengths(words).to(text.device))

    def prepare(self, pack: DitPack) -> DitPack:
        if pack.clean is None:
            pack = self._encode(pack)
        if pack.layout.whole is not None:
            pack = self._trade(pack)
        return replace(pack, ready=True)

    def loss(self, model: nn.Module, pack: DitPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.errors(model, pack)[0], {}

    def errors(self, model: nn.Module, pack: DitPack, of_clean: bool = False) -> tuple[Tensor, Tensor | None]:
        """The loss of each sample [N] and, if asked, the mean squared error of the clean tokens [N] that the
        prediction implies, which compares models of any target."""
        pack = pack if pack.ready else self.prepare(pack)
        t = pack.timestep.index_select(0, pack.layout.frame)[:, None]  # [T,1]
        noised = self.scheduler.mix(pack.clean, pack.noise, t)
        target = self.scheduler.target(pack.clean, pack.noise, t)
        prediction = model(noised, pack.timestep, pack.text, pack.layout, pack.text_layout)
        weight = self.config.weighting(self.scheduler.config.target, self.scheduler.path, pack.timestep)
        loss = loss_per_sample(prediction, target, pack.timestep, pack.layout, weight)
        if not of_clean:
            return loss, None
        clean, _ = self.scheduler.recover(noised, prediction.float(), t)
        return loss, loss_per_sample(clean, pack.clean, pack.timestep, pack.layout)

    def pipeline(self, model: VideoDiT) -> LatentVideoPipeline:
        s = self.config.samples
        return LatentVideoPipeline(
            vae=self.vae,
            transformer=model,
            scheduler=self.scheduler,
            text_encoder=self.text.encoder,
            tokenizer=self.text.tokenizer,
            frames=s.frames,
            height=s.height,
            width=s.width,
            fps=s.fps,
            steps=s.steps,
            guidance=s.guidance,
            given=self.config.given.names,
        )

    def sample(self, model: VideoDiT, rank: int, world: int) -> dict[int, Row]:
        prompts = self.config.samples.prompts
        mine = shares(len(prompts), rank, world)
        wanted = [prompts[i] for i, _ in mine]
        sampling = Sampling(precision=self.dtype, progress=False, large=True)
        clips = self.pipeline(model)(wanted, seed=mine[0][0], sampling=sampling).frames
        return {i: Row([clip], prompts[i]) for (i, counts), clip in zip(mine, clips, strict=True) if counts}

    def held_out(self) -> HeldOut | None:
        from .validation import HeldOutLatents  # which is a task itself

        return HeldOutLatents(self) if self.config.validation.every else None

    def export(self, model: VideoDiT, folder: Path) -> None:
        """The pipeline, which makes by default what it was trained on; `samples` is of the looks at it alone."""
        seen, inference = self.trained or seen_by(self.config.run.dir), self.config.inference
        pipeline = self.pipeline(model)
        pipeline.register_to_config(
            **defaults_of(seen),
            steps=inference.steps,
            guidance=inference.guidance,
            trained=seen or None,
            given_shares=asdict(self.config.given),
        )
        pipeline.save_pretrained(folder)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """What sizes, lengths and rates the data have; none where they are not open."""
        source = getattr(self, "cache", None) or getattr(self, "source", None)
        return [] if source is None else seen_in(source, self.vae)
