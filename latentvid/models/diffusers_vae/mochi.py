"""Mochi's autoencoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .adapter import DiffusersVae


class MochiVae(DiffusersVae):
    """`AutoencoderKLMochi`.

    Statistics as in diffusers/pipelines/mochi/pipeline_mochi.py: those of its configuration, where they are given, and
    `scaling_factor`.
    """

    @property
    def temporal_stride(self) -> int:
        return math.prod(self.config.temporal_expansions)

    @property
    def spatial_stride(self) -> int:
        return math.prod(self.config.spatial_expansions)

    def _pixel_channels(self) -> int:
        return self.config.in_channels // 5  # its encoder sees each beside sines and cosines of it at two frequencies

    def _shift_and_scale(self) -> tuple[Tensor, Tensor]:
        mean, std, scale = self.config.latents_mean, self.config.latents_std, self.config.scaling_factor
        if mean is None or std is None:
            return super()._shift_and_scale()
        return torch.tensor(mean), scale / torch.tensor(std)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        self.raw.register_to_config(latents_mean=list(mean), latents_std=list(std), scaling_factor=1.0)

    def _moments(self, x: Tensor) -> Tensor:
        moments = super()._moments(x)
        if x.shape[2] > 1 or not torch.is_grad_enabled():
            return moments
        # a single frame attends to nothing else; DDP and the optimiser want a gradient, of zero, of each weight
        idle = [p for name, p in self.raw.encoder.named_parameters() if ".to_q." in name or ".to_k." in name]
        return moments + 0.0 * sum(p.sum() for p in idle)
