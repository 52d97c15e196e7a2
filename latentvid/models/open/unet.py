"""U-Nets of diffusers: a token is a latent position, and equal shapes of a pack pass as a batch.

Axes: B samples of a batch, C latent channels, f h w of a latent, S text tokens, Dt their width.
"""

from __future__ import annotations

from torch import Tensor, nn

from .backbone import Patch
from .batches import ByShape


class UNet(ByShape):
    """What the U-Nets share; a family says how its class is called (`run`)."""

    lora = ("to_q", "to_k", "to_v", "to_out.0")  # endings of the names of the layers that LoRA changes by default

    @property
    def patch(self) -> Patch:
        return 1, 1, 1

    @property
    def text_width(self) -> int:
        return self.raw.config.cross_attention_dim

    @property
    def heads(self) -> int:
        """Of no account: processes cannot share a pack of it."""
        return 1

    @property
    def width(self) -> int:
        """Channels of the first level."""
        return self.raw.config.block_out_channels[0]

    @property
    def drops(self) -> bool:
        """Whether passes in training leave something out at random."""
        return any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.raw.modules())

    @property
    def scale(self) -> int:
        """By how much the last level is smaller than the first, in height and in width."""
        return 2 ** (len(self.raw.config.block_out_channels) - 1)


def ddpm_steps(level: Tensor) -> Tensor:
    """Noise levels in [0,1] as DDPM's steps 0 to 999, of which level i / 1000 is step i - 1 (Ho et al. 2020)."""
    return (1000.0 * level - 1.0).clamp_min(0.0)
