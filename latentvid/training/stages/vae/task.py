"""Training the autoencoder: images and clips of any legal shape in one run.

Axes: B clips, F H W pixels' frames/height/width, C f h w the latent's, N samples of a pack.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....config.schema import VaeConfig
from ....config.sections import UNKNOWN_FPS, several
from ....data.clips import Transform
from ....data.plan.plan import PER_SAMPLE, Draw
from ....data.stacks import Stacks
from ....data.transforms import to_uint8
from ....errors import UserError
from ....evaluation.pairs.lpips import SMALLEST, load_lpips
from ....evaluation.sheet import Row
from ....files import read_json
from ....models.discriminator import PatchCritic, VaeWithCritic, without_critic
from ....models.flops import GridFlops, vae_flops
from ....models.interchange import Vae, build_vae, channels_last, load_vae
from ....packing import Grid, Shape
from ....progress import phase
from ....rng import generator
from ....words import counted
from ....world import check_calls
from ...checkpoint.init import goes_on
from ...compute import compute_type
from ...feed.manifests import open_manifests
from ...optim import Part
from ...origin import Origin
from ...task import HeldOut, build_model, shares
from .losses import VaeObjective
from .validation import HeldOutClips, reconstruct

SHOWN = 4  # windows in a look at the model


@dataclass(frozen=True)
class ClipGroup:
    """Clips of one shape: video uint8 [B,F,H,W,3], the posterior's noise [B,C,f,h,w], global sample numbers."""

    video: Tensor
    noise: Tensor
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class ClipPack:
    groups: list[ClipGroup]
    tokens: list[int]  # of each sample, group after group
    replaced: int = 0  # clips read instead of others

    @property
    def counted(self) -> list[int]:
        return self.tokens

    @property
    def counted_in_all(self) -> int:
        return sum(self.tokens)

    def _map(self, change) -> ClipPack:
        return replace(self, groups=[replace(g, video=change(g.video), noise=change(g.noise)) for g in self.groups])

    def to(self, device: torch.device) -> ClipPack:
        return self._map(lambda v: v.to(device, non_blocking=True))

    def pin_memory(self) -> ClipPack:
        return self._map(lambda v: v.pin_memory())


class VaeTask:
    """A "token" is one position of the latent grid."""

    product = "vae"
    ragged = True
    base = None
    partial = False
    blocks = ()
    width = 0
    trained = None

    @staticmethod
    def settled(config: VaeConfig) -> VaeConfig:
        return config

    @staticmethod
    def prepare_run(config: VaeConfig, device: torch.device, may_stop: Callable[[], AbstractContextManager]) -> None:
        """Nothing is made before."""

    def __init__(self, config: VaeConfig, device: torch.device, data: bool = True) -> None:
        """`data=False`, enough to export, leaves out LPIPS alone: statistics are measured on the data."""
        manifests = several(config.data.manifest)
        if not manifests:
            raise UserError("data.manifest is required: the table of clips to train on")
        if config.train.sequence_parallel > 1:
            raise UserError("train.sequence_parallel cuts the transformer's packs; the VAE cannot do it: leave it at 1")
        check_calls("the VAE")
        self.config, self.device = config, device
        self.model, self.origin = self.new_model(), None
        if data and config.init is not None and not goes_on(config.run.dir):
            taken, total = (sum(p.numel() for p in m.parameters()) for m in (self.vae, self.model))
            self.origin = Origin(str(config.init), taken, total)
        vae, settings = self.vae, config.data
        transform = Transform(
            spatial_stride=vae.spatial_stride,
            temporal_stride=vae.temporal_stride,
            max_area=settings.max_area,
            max_frames=settings.max_frames,
            crop=settings.crop,
            flip=settings.flip,
            fps=settings.fps,
            fps_slack=settings.fps_slack,
        )
        if settings.crop is not None and settings.crop % vae.spatial_stride:
            raise UserError(f"data.crop {settings.crop} is not a multiple of the VAE's stride {vae.spatial_stride}")
        self.source = self.clips = open_manifests(manifests, transform, settings)
        self.sources, self.source_of = self.source.sources, self.source.source_of
        self.source_weights = settings.weights
        self.is_image = self.source.is_image
        self.grids = self.source.shapes.map(lambda shape: vae.latent_grid(*shape))
        self.shapes, self.tokens = self.grids.map(Shape), self.grids.map(math.prod).array()
        self.costs = self.tokens.astype(float)  # convolutions
        self.channels = vae.latent_channels
        self.without_lpips = ""  # why, where it was asked for
        self.objective = VaeObjective(config, self._load_lpips() if data else None)

    def __getstate__(self) -> dict[str, Any]:
        """What loader processes need to make packs: no network, and nothing that is of every sample."""
        return {k: v for k, v in self.__dict__.items() if not isinstance(v, nn.Module) and k not in PER_SAMPLE}

    @property
    def fps(self) -> float:
        rates, counts = np.unique(self.source.rates[~self.source.is_image], return_counts=True)
        usual = float(rates[counts.argmax()]) if len(rates) else 0.0
        return self.config.samples.fps or usual or UNKNOWN_FPS

    @property
    def vae(self) -> Vae:
        return without_critic(self.model)

    @property
    def recomputes(self) -> bool:
        return self.model._supports_gradient_checkpointing

    @property
    def apart(self) -> tuple[Part, ...]:
        loss = self.config.loss
        return (Part("critic", loss.adversarial_lr, loss.adversarial_start),) if loss.adversarial else ()

    def new_model(self) -> Vae | VaeWithCritic:
        config = self.config
        torch.manual_seed(config.run.seed)
        vae = build_vae(config.model, "model") if config.init is None else load_init(config.init, config.model)
        if not any(True for _ in vae.parameters()):
            raise UserError(f"model._class_name={type(vae).__name__}: it has nothing to train: name an autoencoder")
        if config.freeze_encoder:
            vae.normalise(torch.zeros(1, vae.latent_channels, 1, 1, 1))  # says it now, if there are no statistics
            vae.requires_grad_(False).decoder.requires_grad_(True)
        if not config.loss.adversarial:
            return channels_last(vae)
        return channels_last(VaeWithCritic(vae, build_model(PatchCritic, config.loss.critic, "loss.critic")))

    def _load_lpips(self) -> nn.Module | None:
        loss = self.config.loss
        if not loss.lpips:
            return None
        try:
            network = load_lpips(loss.lpips_path, loss.lpips_net)
        except UserError as error:
            if loss.lpips_path is not None:
                raise
            if not loss.lpips_optional:
                raise UserError(
                    f"loss.lpips is {loss.lpips:g}, but {error}. To train without: loss.lpips=0, or "
                    "loss.lpips_optional=true to leave it out where it is not there"
                ) from None
            self.without_lpips = str(error)
            return None
        side, least = min(min(self.pixels(grid)[1:]) for grid in self.grids.counts()), SMALLEST[loss.lpips_net]
        if side < least:
            raise UserError(
                f"loss.lpips needs pictures of at least {least} pixels a side for {loss.lpips_net}, the data has some "
                f"of {side}: set loss.lpips=0, or leave the small ones out"
            )
        return network.to(self.device)

    def follow(self, before: Path | None) -> None:
        """It learns from its data alone, whatever was before."""

    def summary(self) -> str:
        missing = f"\nwarning: trained without loss.lpips={self.config.loss.lpips}: {self.without_lpips}"
        return self.source.summary() + (missing if self.without_lpips else "")

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        return self.source.identity(first)

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return () if self.objective.lpips is None else (self.objective.lpips,)

    def pixels(self, grid: Grid) -> Grid:
        side = self.vae.spatial_stride
        return 1 + (grid[0] - 1) * self.vae.temporal_stride, grid[1] * side, grid[2] * side

    def grid_flops(self, grid: Grid) -> GridFlops:
        encode, forward = vae_flops(self.vae, self.pixels(grid))
        return GridFlops(forward - encode, encode) if self.config.freeze_encoder else GridFlops(forward, 0)

    def flops(self, pack: ClipPack) -> float:
        """Of what is trained of the autoencoder; the critic and LPIPS are not counted."""
        counts = [(len(group.video), tuple(group.noise.shape[2:])) for group in pack.groups]
        return sum(n * self.grid_flops(grid).model for n, grid in counts)

    def blank_pack(self, grids: Sequence[Grid]) -> ClipPack:
        counts = Counter(map(tuple, grids))
        groups = [
            ClipGroup(
                torch.zeros(n, *self.pixels(grid), 3, dtype=torch.uint8),
                torch.zeros(n, self.channels, *grid),
                tuple(range(n)),
            )
            for grid, n in counts.items()
        ]
        return ClipPack(groups, [math.prod(grid) for grid, n in counts.items() for _ in range(n)])

    def make_pack(self, draws: Sequence[Draw]) -> ClipPack:
        shapes = [self.source.shapes[draw.index] for draw in draws]
        videos, noises, numbers = Stacks(shapes), defaultdict(list), defaultdict(list)
        seed, replaced = self.config.run.seed, 0
        clips = self.source.load_each(draws, seed)
        for (number, index), shape, clip in zip(draws, shapes, clips, strict=True):
            videos.append(clip.pixels)
            replaced += clip.replaced
            noise = torch.randn(self.channels, *self.grids[index], generator=generator(seed, number, "posterior"))
            noises[shape].append(noise)
            numbers[shape].append(number)
            del clip  # its memory serves the next
        groups = [
            ClipGroup(video, torch.stack(noises[shape]), tuple(numbers[shape]))
            for shape, video in videos.tensors().items()
        ]
        return ClipPack(groups, [g.noise[0, 0].numel() for g in groups for _ in range(len(g.video))], replaced)

    def prepare(self, pack: ClipPack) -> ClipPack:
        return pack

    def loss(self, model: nn.Module, pack: ClipPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(model, pack, step)

    @torch.no_grad()
    def sample(self, model: Vae | VaeWithCritic, rank: int, world: int) -> dict[int, Row]:
        """The first windows, the originals above their reconstructions."""
        rows = {}
        for i, counts in shares(min(SHOWN, len(self.source)), rank, world):
            video = self.source.load(i, self.config.run.seed, i).video
            reconstruction = reconstruct(model, video, self.config, self.device)[0]
            if counts:
                rows[i] = Row([to_uint8(video), to_uint8(reconstruction)], f"window {i}: above it is the original")
        return rows

    def held_out(self) -> HeldOut | None:
        return HeldOutClips(self.config, self.source.transform, self.device) if self.config.validation.every else None

    def export(self, model: Vae | VaeWithCritic, folder: Path) -> None:
        """The autoencoder alone, with its latents' statistics: measured, or with a frozen encoder those it had."""
        vae = without_critic(model)
        if not self.config.freeze_encoder:
            vae.set_statistics(*self.statistics(vae.to(self.device)))
        vae.save_pretrained(folder)

    @torch.no_grad()
    def statistics(self, model: Vae) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel, over evenly spaced windows, every element alike."""
        count = min(self.config.statistics_samples, len(self.source))
        device = next(model.parameters()).device
        total = torch.zeros(3, self.channels, dtype=torch.float64)
        with phase("measuring the latents' statistics", count) as advance:
            for i in torch.linspace(0, len(self.source) - 1, count).long().tolist():
                video = self.source.load(i, self.config.run.seed, i).video[None].to(device)
                with compute_type(self.config, device):
                    z = model.encode(video).latent_dist.mode()[0]
                z = z.double().flatten(1).cpu()
                total += torch.stack([torch.full((self.channels,), float(z.shape[1])), z.sum(1), z.square().sum(1)])
                advance()
        if not (count and total.isfinite().all()):
            raise UserError(
                f"the latents of {counted(count, 'window')} have no mean and deviation: set "
                "statistics_samples to 1 or more, and "
                "look at the loss of the run"
            )
        mean = total[1] / total[0]
        std = (total[2] / total[0] - mean.square()).clamp_min(1e-12).sqrt()
        return mean.tolist(), std.tolist()


def load_init(folder: Path, arguments: dict[str, Any]) -> Vae:
    """The VAE in a folder; raises UserError where `arguments` (of `model`) ask for another than its config says."""
    vae = load_vae(folder)
    saved = read_json(folder / "config.json")
    wrong = [
        f"model.{key} is {value}, the VAE's {saved.get(key)}"
        for key, value in json.loads(json.dumps(arguments)).items()
        if saved.get(key) != value
    ]
    if wrong:
        raise UserError(f"init: {folder} is another model ({'; '.join(wrong)}): leave out `model`, or change init")
    return vae
