"""Training the diffusion transformer, from a latent cache or from clips encoded as it trains.

Axes: T tokens, P token features, R noise rows, S text tokens, N samples of a pack; latents are [C,f,h,w].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import resolve_backend
from ..data.clips import ClipSource, Transform
from ..data.latents import LatentCache, module_fingerprint
from ..data.manifest import read_manifest
from ..data.plan import Draw
from ..data.writing import write_video
from ..diffusion.objective import loss_per_sample
from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder
from ..models.transformer import VideoDiT
from ..packing import Packed, patchify, token_grid
from ..pipelines.latent_video import LatentVideoPipeline
from ..pipelines.loading import load_component
from ..rng import generator
from ..text import TextEncoder
from .config import DitConfig
from .vae_task import build_model


@dataclass(frozen=True)
class DitPack:
    """Everything random is drawn; what is missing is what the VAE and the text encoder make on the device.

    noise: [T,P]. timestep: [R]. layout: the samples' token grids, equal ones next to each other.
    From a cache: clean [T,P], text [S,Dt], text_layout. From clips: videos [3,F,H,W], posterior noise, captions.
    """

    noise: Tensor
    timestep: Tensor
    layout: Packed
    clean: Tensor | None = None
    text: Tensor | None = None
    text_layout: Packed | None = None
    videos: list[Tensor] | None = None
    posterior: list[Tensor] | None = None
    captions: list[str] | None = None

    @property
    def tokens(self) -> list[int]:
        return self.layout.lengths

    def _map(self, change) -> DitPack:
        def each(value: Any) -> Any:
            if isinstance(value, list):
                return [each(v) for v in value]
            return change(value) if isinstance(value, Tensor | Packed) else value

        return replace(self, **{f.name: each(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device) -> DitPack:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def pin_memory(self) -> DitPack:
        return self._map(lambda v: v.pin_memory())


class DitTask:
    product = "pipeline"

    def __init__(self, config: DitConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.vae = load_component(CausalVideoAutoencoder, config.vae).to(device).requires_grad_(False)
        self.text = TextEncoder.from_pretrained(config.text_encoder).to(device)
        self.scheduler = build_model(LatentVideoScheduler, config.scheduler, "scheduler")
        self.model = self._build_model()
        self.patch = self.model.config.patch
        self.features = self.model.config.latent_channels * self.patch**2
        self._open_data()
        self.tokens = [f * h * w for f, h, w in self.grids]

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network."""
        return {k: v for k, v in self.__dict__.items() if k not in ("model", "vae", "text")}

    def _build_model(self) -> VideoDiT:
        known = {"latent_channels": self.vae.config.latent_channels, "text_width": self.text.dim}
        for key, value in known.items():
            if self.config.model.get(key, value) != value:
                raise UserError(
                    f"model.{key} is {self.config.model[key]} but the loaded parts have {value}: leave it out"
                )
        torch.manual_seed(self.config.run.seed)
        model = build_model(VideoDiT, {**self.config.model, **known}, "model")
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.mixed_precision, torch.float32)
        model.attention_backend = resolve_backend(self.config.attention, self.device, half)
        return model

    def _open_data(self) -> None:
        data = self.config.data
        self.cache = self.source = None
        if data.latents is not None:
            self.cache = LatentCache(data.latents)
            self.cache.check({"vae": module_fingerprint(self.vae, self.vae.config), "text": self.text.fingerprint()})
            self.null_text = self.cache.null_text()
            latent_grids = self.cache.grids
        elif data.manifest is not None:
            transform = Transform(
                spatial_stride=self.vae.spatial_stride * self.patch,
                temporal_stride=self.vae.temporal_stride,
                max_area=data.max_area,
                max_frames=data.max_frames,
                flip=data.flip,
            )
            self.source = ClipSource(read_manifest(data.manifest), transform)
            latent_grids = [self.vae.latent_grid(*shape) for shape in self.source.shapes]
        else:
            raise UserError(
                "give data.latents (a cache from vae/encode_latents.py) or data.manifest (a table of clips)"
            )
        try:
            self.grids = [token_grid(grid, self.patch) for grid in latent_grids]
        except ValueError as error:
            raise UserError(f"{error}: encode again with --patch {self.patch}, or set another model.patch") from None

    def summary(self) -> str:
        return self.source.summary() if self.cache is None else self.cache.summary()

    def make_pack(self, draws: Sequence[Draw]) -> DitPack:
        seed = self.config.run.seed
        draws = sorted(draws, key=lambda draw: (self.grids[draw.index], draw.number))  # equal shapes side by side
        layout = Packed.of([self.grids[draw.index] for draw in draws])
        noise, rows, dropped = [], [], []
        for (number, _), length, grid in zip(draws, layout.lengths, layout.grid, strict=True):
            noise.append(torch.randn(length, self.features, generator=generator(seed, number, "noise")))
            level = self.config.timesteps.draw(generator(seed, number, "timestep"))
            rows.append(self.scheduler.path.snap(level).expand(grid[0]))  # every frame of a sample has the same level
            draw = torch.rand((), generator=generator(seed, number, "caption-dropout"))
            dropped.append(bool(draw < self.config.data.caption_dropout))
        common = {"noise": torch.cat(noise), "timestep": torch.cat(rows), "layout": layout}
        numbers = [draw.number for draw in draws]
        if self.cache is not None:
            entries = [self.cache.load(draw.index) for draw in draws]
            latents = [e.mean + e.std * self._posterior(n, e.mean) for n, e in zip(numbers, entries, strict=True)]
            texts = [self.null_text if gone else e.text for gone, e in zip(dropped, entries, strict=True)]
            text_layout = Packed.of_lengths([len(text) for text in texts])
            return DitPack(
                **common, clean=patchify(latents, self.patch)[0], text=torch.cat(texts), text_layout=text_layout
            )
        clips = [self.source.load(index, seed, number) for number, index in draws]
        shapes = [(self.features // self.patch**2, f, h * self.patch, w * self.patch) for f, h, w in layout.grid]
        return DitPack(
            **common,
            videos=[clip.video for clip in clips],
            posterior=[self._posterior(n, torch.empty(shape)) for n, shape in zip(numbers, shapes, strict=True)],
            captions=["" if gone else clip.caption for gone, clip in zip(dropped, clips, strict=True)],
        )

    def _posterior(self, number: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator(self.config.run.seed, number, "posterior"))

    @torch.no_grad()
    def _encode(self, pack: DitPack) -> DitPack:
        """Latents and text states of a pack of clips; equal shapes go through the VAE together."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, video in enumerate(pack.videos):
            groups[tuple(video.shape)].append(i)
        latents: list[Tensor | None] = [None] * len(pack.videos)
        for members in groups.values():
            posterior = self.vae.encode(torch.stack([pack.videos[i] for i in members])).latent_dist
            for i, mean, std in zip(members, posterior.mean, posterior.std, strict=True):
                latents[i] = self.vae.normalise((mean + std * pack.posterior[i])[None])[0]
        text = self.text.encode(pack.captions)
        layout = Packed.of_lengths(text.lengths).to(text.states.device)
        return replace(pack, clean=patchify(latents, self.patch)[0], text=text.states, text_layout=layout)

    def loss(self, model: nn.Module, pack: DitPack) -> tuple[Tensor, dict[str, Tensor]]:
        if pack.clean is None:
            pack = self._encode(pack)
        t = pack.timestep.index_select(0, pack.layout.row)[:, None]  # [T,1]
        noised = self.scheduler.mix(pack.clean, pack.noise, t)
        target = self.scheduler.target(pack.clean, pack.noise, t)
        prediction = model(noised, pack.timestep, pack.text, pack.layout, pack.text_layout)
        return loss_per_sample(prediction, target, pack.timestep, pack.layout), {}

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
        )

    def sample(self, model: VideoDiT, step: int, folder: Path) -> None:
        clips = self.pipeline(model)(list(self.config.samples.prompts), seed=0, progress=False).frames
        for i, clip in enumerate(clips):
            write_video(folder / f"step-{step:06d}-{i}.mp4", clip, self.config.samples.fps)

    def export(self, model: VideoDiT, folder: Path) -> None:
        self.pipeline(model).save_pretrained(folder)
