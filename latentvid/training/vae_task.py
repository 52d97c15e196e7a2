"""Training the autoencoder: images and clips of any legal shape in one run.

Axes: B clips, F H W pixels' frames/height/width, C f h w the latent's, N samples of a pack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.clips import ClipSource, Transform
from ..data.manifest import read_manifest
from ..data.plan import Draw
from ..data.transforms import to_uint8
from ..data.writing import write_video
from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder
from ..rng import generator
from .config import VaeConfig


@dataclass(frozen=True)
class ClipGroup:
    """Clips of one shape: video [B,3,F,H,W] in [-1,1] and the posterior's noise [B,C,f,h,w]."""

    video: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ClipPack:
    groups: list[ClipGroup]
    tokens: list[int]  # of each sample, group after group

    def _map(self, change) -> ClipPack:
        return replace(self, groups=[ClipGroup(change(g.video), change(g.noise)) for g in self.groups])

    def to(self, device: torch.device) -> ClipPack:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def pin_memory(self) -> ClipPack:
        return self._map(lambda v: v.pin_memory())


class VaeTask:
    """A "token" is one position of the latent grid."""

    product = "vae"

    def __init__(self, config: VaeConfig, device: torch.device) -> None:
        if config.data.manifest is None:
            raise UserError("data.manifest is required: the table of clips to train on")
        torch.manual_seed(config.run.seed)
        self.config = config
        self.model = build_model(CausalVideoAutoencoder, config.model, "model").to(memory_format=torch.channels_last_3d)
        data = config.data
        transform = Transform(
            spatial_stride=self.model.spatial_stride,
            temporal_stride=self.model.temporal_stride,
            max_area=data.max_area,
            max_frames=data.max_frames,
            crop=data.crop,
            flip=data.flip,
        )
        if data.crop is not None and data.crop % self.model.spatial_stride:
            raise UserError(f"data.crop {data.crop} is not a multiple of the VAE's stride {self.model.spatial_stride}")
        self.source = ClipSource(read_manifest(data.manifest), transform)
        self.grids = [self.model.latent_grid(*shape) for shape in self.source.shapes]
        self.tokens = [f * h * w for f, h, w in self.grids]
        self.channels = self.model.config.latent_channels

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network."""
        return {k: v for k, v in self.__dict__.items() if k != "model"}

    def summary(self) -> str:
        return self.source.summary()

    def make_pack(self, draws: Sequence[Draw]) -> ClipPack:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        seed = self.config.run.seed
        for number, index in draws:
            video = self.source.load(index, seed, number).video
            noise = torch.randn(self.channels, *self.grids[index], generator=generator(seed, number, "posterior"))
            by_shape[tuple(video.shape)].append((video, noise))
        groups = [ClipGroup(*map(torch.stack, zip(*pairs, strict=True))) for pairs in by_shape.values()]
        return ClipPack(groups, [g.noise[0, 0].numel() for g in groups for _ in range(len(g.video))])

    def loss(self, model: nn.Module, pack: ClipPack) -> tuple[Tensor, dict[str, Tensor]]:
        weights, parts = self.config.loss, defaultdict(list)
        for group in pack.groups:
            video = group.video.contiguous(memory_format=torch.channels_last_3d)
            reconstruction, mean, logvar = model(video, group.noise)
            error = reconstruction.float() - video
            parts["l1"].append(error.abs().mean(dim=(1, 2, 3, 4)))
            parts["mse"].append(error.square().mean(dim=(1, 2, 3, 4)))
            # Kingma & Welling 2013, appendix B, a latent element
            divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1.0 - logvar.float())
            parts["kl"].append(divergence.mean(dim=(1, 2, 3, 4)))
        named = {name: torch.cat(values) for name, values in parts.items()}
        return weights.l1 * named["l1"] + weights.mse * named["mse"] + weights.kl * named["kl"], named

    @torch.no_grad()
    def sample(self, model: CausalVideoAutoencoder, step: int, folder: Path) -> None:
        """A sheet of the first windows, the originals above their reconstructions."""
        videos = [self.source.read(i) for i in range(min(4, len(self.source)))]
        device = next(model.parameters()).device
        for i, video in enumerate(videos):
            mean = model.encode(video[None].to(device)).latent_dist.mode()
            both = torch.cat([video, model.decode(mean).sample[0].cpu()], dim=2)  # one above the other
            write_video(folder / f"step-{step:06d}-{i}.png", to_uint8(both), 1.0)

    def export(self, model: CausalVideoAutoencoder, folder: Path) -> None:
        """Measures the latents' statistics, which go into the config."""
        mean, std = self.statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
        model.save_pretrained(folder)

    @torch.no_grad()
    def statistics(self, model: CausalVideoAutoencoder) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel, over evenly spaced windows, every element alike."""
        count = min(self.config.statistics_samples, len(self.source))
        device = next(model.parameters()).device
        total = torch.zeros(3, self.channels, dtype=torch.float64)
        for i in torch.linspace(0, len(self.source) - 1, count).long().tolist():
            video = self.source.load(i, self.config.run.seed, i).video[None].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.mixed_precision == "bf16"):
                z = model.encode(video).latent_dist.mode()[0]
            z = z.double().flatten(1).cpu()
            total += torch.stack([torch.full((self.channels,), float(z.shape[1])), z.sum(1), z.square().sum(1)])
        mean = total[1] / total[0]
        std = (total[2] / total[0] - mean.square()).clamp_min(1e-12).sqrt()
        return mean.tolist(), std.tolist()


def build_model(cls: type, arguments: dict, section: str):
    """`cls(**arguments)`; a wrong name or value becomes a UserError that names the section."""
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None
