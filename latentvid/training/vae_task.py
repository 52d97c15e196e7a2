"""Training the autoencoder: images and clips of any legal shape in one run.

Axes: B clips, F H W pixels' frames/height/width, C f h w the latent's, N samples of a pack.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.clips import Transform, open_sources
from ..data.plan import Draw
from ..data.stacks import Stacks
from ..data.transforms import from_uint8, to_uint8
from ..data.writing import write_video
from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder
from ..packing import Grid
from ..rng import generator
from .config import VaeConfig, several
from .flops import GridFlops, vae_flops
from .task import build_model, shares


@dataclass(frozen=True)
class ClipGroup:
    """Clips of one shape: video uint8 [B,F,H,W,3] and the posterior's noise [B,C,f,h,w]."""

    video: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ClipPack:
    groups: list[ClipGroup]
    tokens: list[int]  # of each sample, group after group
    replaced: int = 0  # clips read in the place of others

    def _map(self, change) -> ClipPack:
        return replace(self, groups=[ClipGroup(change(g.video), change(g.noise)) for g in self.groups])

    def to(self, device: torch.device) -> ClipPack:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def pin_memory(self) -> ClipPack:
        return self._map(lambda v: v.pin_memory())


class VaeTask:
    """A "token" is one position of the latent grid."""

    product = "vae"
    ragged = True

    def __init__(self, config: VaeConfig, device: torch.device, data: bool = True) -> None:
        """The export measures statistics on the data, so that `data=False` changes nothing here."""
        manifests = several(config.data.manifest)
        if not manifests:
            raise UserError("data.manifest is required: the table of clips to train on")
        if config.train.sequence_parallel > 1:
            raise UserError("train.sequence_parallel cuts the transformer's packs; the VAE cannot do it: leave it at 1")
        self.config, self.device = config, device
        self.model = self.new_model()
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
        self.source = self.clips = open_sources(manifests, transform, timeout_s=data.timeout_s)
        self.source_of, self.is_image = self.source.source_of, self.source.is_image
        self.grids = self.source.shapes.map(lambda shape: self.model.latent_grid(*shape))
        self.tokens = self.grids.map(math.prod).array()
        self.costs = self.tokens.astype(float)  # convolutions
        self.channels = self.model.config.latent_channels

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network."""
        return {k: v for k, v in self.__dict__.items() if k != "model"}

    def new_model(self) -> CausalVideoAutoencoder:
        torch.manual_seed(self.config.run.seed)
        model = build_model(CausalVideoAutoencoder, self.config.model, "model")
        return model.to(memory_format=torch.channels_last_3d)

    def summary(self) -> str:
        return self.source.summary()

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return ()

    def pixels(self, grid: Grid) -> Grid:
        side = self.model.spatial_stride
        return 1 + (grid[0] - 1) * self.model.temporal_stride, grid[1] * side, grid[2] * side

    def grid_flops(self, grid: Grid) -> GridFlops:
        return GridFlops(vae_flops(self.model.config, self.pixels(grid)).forward, 0)

    def flops(self, pack: ClipPack) -> float:
        shapes = [group.video.shape[:4] for group in pack.groups]
        return sum(shape[0] * vae_flops(self.model.config, shape[1:]).forward for shape in shapes)

    def blank_pack(self, grids: Sequence[Grid]) -> ClipPack:
        counts = Counter(map(tuple, grids))
        groups = [
            ClipGroup(torch.zeros(n, *self.pixels(grid), 3, dtype=torch.uint8), torch.zeros(n, self.channels, *grid))
            for grid, n in counts.items()
        ]
        return ClipPack(groups, [math.prod(grid) for grid, n in counts.items() for _ in range(n)])

    def make_pack(self, draws: Sequence[Draw]) -> ClipPack:
        shapes = [self.source.shapes[draw.index] for draw in draws]
        videos, noises = Stacks(shapes), defaultdict(list)
        seed, replaced = self.config.run.seed, 0
        for (number, index), shape in zip(draws, shapes, strict=True):
            clip = self.source.load(index, seed, number)
            videos.append(clip.pixels)
            replaced += clip.replaced
            del clip  # its memory serves the next
            noise = torch.randn(self.channels, *self.grids[index], generator=generator(seed, number, "posterior"))
            noises[shape].append(noise)
        groups = [ClipGroup(video, torch.stack(noises[shape])) for shape, video in videos.tensors().items()]
        return ClipPack(groups, [g.noise[0, 0].numel() for g in groups for _ in range(len(g.video))], replaced)

    def prepare(self, pack: ClipPack) -> ClipPack:
        return pack

    def loss(self, model: nn.Module, pack: ClipPack) -> tuple[Tensor, dict[str, Tensor]]:
        weights, parts = self.config.loss, defaultdict(list)
        for group in pack.groups:
            video = from_uint8(group.video).contiguous(memory_format=torch.channels_last_3d)
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
    def sample(self, model: CausalVideoAutoencoder, step: int, folder: Path, rank: int, world: int) -> None:
        """A sheet of the first windows, the originals above their reconstructions."""
        for i, write in shares(min(4, len(self.source)), rank, world):
            video = self.source.load(i, self.config.run.seed, i).video
            noise = torch.zeros(1, self.channels, *self.model.latent_grid(*video.shape[1:]))  # the posterior's mode
            reconstruction = model(video[None].to(self.device), noise.to(self.device))[0][0].cpu()
            if write:
                both = torch.cat([video, reconstruction], dim=2)  # one above the other
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
