"""What an autoencoder keeps of held-out clips.

Axes: F H W pixels' frames/height/width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....data.transforms import to_uint8
from ....errors import UserError
from ....evaluation.pairs.fidelity import SSIM_WINDOW, Fidelity
from ...feed.manifests import open_manifests
from ...task import shares
from .losses import divergence, pixel_losses

if TYPE_CHECKING:
    from .task import VaeTask

FIGURES = ("loss", "psnr", "ssim")


class HeldOutClips:
    """Held-out windows, cut as in training at places keyed by `validation.seed`, reconstructed from the mode.

    `loss` is that of the configuration without the perceptual and the adversarial part; psnr (dB) and ssim are of
    8-bit frames; all are means over the windows.
    """

    def __init__(self, task: VaeTask) -> None:
        self.task, self.settings, self.weights = task, task.config.validation, task.config.loss
        data = task.config.data
        try:
            transform = replace(task.source.transform, flip=False)
            self.source = open_manifests([self.settings.manifest], transform, data)
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
        return f"held out: {len(self.windows)} windows\n{self.source.summary()}"

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
            reconstruction, mean, logvar = self.task.reconstruct(model, video)
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
        """Nothing."""

    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        return {}  # it makes nothing that is not a reconstruction
