"""The adversary of the autoencoder's training: a 3D patch discriminator for images and clips of any size.

Axes: B clips, C channels, F H W pixels' frames/height/width, f h w the scores'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3x3x3(nn.Conv3d):
    """Padded by 1 on all sides, in time by hand: where oneDNN's bf16 kernels for AMX pad one frame in time, they return
    what was in memory before (torch 2.15)."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(channels_in, channels_out, 3, stride=stride, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # [B,C,F,H,W] -> [B,C',f,h,w]
        x = F.pad(x, (0, 0, 0, 0, 1, 1)).contiguous(memory_format=torch.channels_last_3d)
        return super().forward(x)


class PatchCritic(nn.Module):
    """Scores patches: high for real ones, low for reconstructions (PatchGAN, Isola et al. 2017, in three dimensions).

    Strided 3x3x3 convolutions; every level halves height and width and divides time by its stride, rounding up, so
    that one frame and one pixel are legal sizes. Norms are over the channels of each position: no sample, frame or
    patch changes another one's score beyond the convolutions' reach.

    Args:
        in_channels: C of the pixels.
        widths: channels of each level.
        time_strides: of each level.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 256),
        time_strides: tuple[int, ...] = (1, 2, 2, 1),
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(time_strides):
            raise ValueError(f"widths and time_strides need one entry a level, got {len(widths)}, {len(time_strides)}")
        inputs = (in_channels, *widths[:-1])
        self.convs = nn.ModuleList(
            Conv3x3x3(c, width, (time, 2, 2)) for c, width, time in zip(inputs, widths, time_strides, strict=True)
        )
        # the generous epsilon keeps noise on flat patches from being blown up to the size of a texture
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-3) for width in widths[1:])
        self.score = Conv3x3x3(widths[-1], 1)
        self.initialise()

    def initialise(self) -> None:
        for conv in (*self.convs, self.score):
            nn.init.kaiming_normal_(conv.weight, a=0.2)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B,C,F,H,W] in [-1,1] -> [B,f,h,w]
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i:  # channels are last in memory, so moving the axis is free
                x = self.norms[i - 1](x.movedim(1, -1)).movedim(-1, 1)
            x = F.leaky_relu(x, 0.2)
        return self.score(x).squeeze(1)


class VaeWithCritic(nn.Module):
    """An autoencoder and its adversary as one module, so that one optimiser and one checkpoint hold both.

    What the critic sees of a reconstruction is cut from the autoencoder's graph: the critic's loss moves the critic
    alone. The autoencoder's adversarial loss is made from the scores' gradient at the cut
    (`training/stages/vae/losses.py`).
    """

    def __init__(self, vae: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.vae, self.critic = vae, critic

    def forward(
        self,
        video: Tensor,
        noise: Tensor,
        judge: bool = False,
        shift: Tensor | None = None,
        move: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The autoencoder's pass, and the critic's scores when `judge`.

        Args:
            video: [B,3,F,H,W] in [-1,1].
            noise: of the posterior, [B,C,f,h,w].
            judge: without it the critic does not work.
            shift: [B,3,F,H,W], added to the real clips for a third score.
            move: int64 [B,2], by which the autoencoder moves the latents.

        Returns: reconstruction, mean and log-variance; then, without `judge`, a zero that gives every parameter of the
            critic a gradient of zero, so that processes which wait for it get it; with `judge` the reconstruction cut
            off as a leaf that takes gradients, the scores [B,f,h,w] of that leaf and of the real clips and, with
            `shift`, of the shifted ones.
        """
        reconstruction, mean, logvar = self.vae(video, noise, move)
        if not judge:
            idle = sum(p.sum() for p in self.critic.parameters()) * 0.0
            return reconstruction, mean, logvar, idle
        cut = reconstruction.detach().float().requires_grad_()
        scores = [self.critic(cut), self.critic(video)]
        if shift is not None:
            scores.append(self.critic(video + shift))
        return reconstruction, mean, logvar, cut, *scores

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return self.vae._supports_gradient_checkpointing

    def enable_gradient_checkpointing(self) -> None:
        self.vae.enable_gradient_checkpointing()


def without_critic(model: nn.Module) -> nn.Module:
    """The autoencoder alone."""
    return model.vae if isinstance(model, VaeWithCritic) else model
