"""What an autoencoder keeps of held-out clips.

Axes: F H W pixels' frames/height/width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....config.schema import VaeConfig
from ....data.clips import Transform
from ....data.transforms import to_uint8
from ....errors import UserError
from ....evaluation.pairs.fidelity import SSIM_WINDOW, Fidelity
from ....models.discriminator import without_critic
from ....words import counted
from ...compute import compute_type
from ...feed.manifests import open_manifests
from ...task import shares
from .losses import divergence, pixel_losses

FIGURES = ("loss", "psnr", "ssim")


def reconstruct(
    model: nn.Module, video: Tensor, config: VaeConfig, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """video [3,F,H,W] -> reconstruction, mean and log variance [C,f,h,w], from the mode; on the CPU."""
    vae = without_critic(model)
    noise = torch.zeros(1, vae.latent_channels, *vae.latent_grid(*video.shape[1:]))
    with compute_type(config, device):
        return tuple(x[0].float().cpu() for x in vae(video[None].to(device), noise.to(device)))


class HeldOutClips:
    """Held-out windows, cut as in training at places keyed by `validation.seed`, reconstructed from the mode.

    `loss` is that of the configuration without the perceptual and the adversarial part; psnr (dB) and ssim are of
    8-bit frames; all are means over the windows.
    """

    def __init__(self, config: VaeConfig, transform: Transform, device: torch.device) -> None:
        """transform: how training cuts its windows."""
        self.config, self.device = config, device
        self.settings, self.weights = config.validation, config.loss
        try:
            self.source = open_manifests([self.settings.manifest], replace(transform, flip=False), config.data)
        except UserError as error:
            raise UserError(f"validation: {error}") from error
        least = min(min(shape[1:]) for shape in self.source.shapes.counts())
        if least < SSIM_WINDOW:
            raise UserError(
                f"validation: a held-out window has {least} pixels a side, SSIM needs {SSIM_WINDOW}: leave small clips "
                "out of validation.manifest"
            )
        count = min(self.settings.samples, len(self.source))
        self.windows = torch.linspace(0, len(self.source) - 1, count).round().long().tolist()

    def summary(self) -> str:
        return f"held out: {counted(len(self.windows), 'window')}\n{self.source.summary()}"

    def higher_is_better(self, figure: str) -> bool:
        if figure not in FIGURES:
            raise UserError(f"validation.best is {figure!r}: one of {', '.join(FIGURES)}")
        return figure != "loss"

    @torch.no_grad()
    def measure(self, model: nn.Module, rank: int, world: int) -> Tensor:
        """Sums of `FIGURES` over this process's windows."""
        sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        for i, counts in shares(len(self.windows), rank, world):
            video = self.source.load(self.windows[i], self.settings.seed, i).video
            reconstruction, mean, logvar = reconstruct(model, video, self.config, self.device)
            if not counts:
                continue
            found = pixel_losses(self.weights, video[None], reconstruction[None])
            found["kl"] = divergence(mean[None], logvar[None])
            loss = sum(getattr(self.weights, name) * float(value) for name, value in found.items())
            fidelity = Fidelity()
            fidelity.add(to_uint8(video), to_uint8(reconstruction))
            sums += torch.tensor([loss, fidelity.psnr, fidelity.ssim], dtype=torch.float64)
        return sums

    def record(self, sums: Tensor) -> dict[str, Any]:
        means = (sums / len(self.windows)).tolist()
        return {**dict(zip(FIGURES, means, strict=True)), "samples": len(self.windows)}

    def begin(self, rank: int, world: int) -> None:
        """Nothing has to be made."""

    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        return {}  # it makes nothing that is not a reconstruction
