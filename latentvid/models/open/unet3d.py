"""The factorised 3D U-Net (`UNet3DConditionModel`): that of Video Diffusion Models (Ho et al. 2022), as ModelScope's
text to video (Wang et al. 2023) has it. Convolutions and attention are over a frame and over time, in turn.

Axes: B samples of a batch, C latent channels, f h w of a latent, S text tokens, Dt their width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...text.policy import Reading
from ..block_pass import pass_of
from ..saved import load_component
from .backbone import Conditions
from .recipe import Recipe
from .unet import UNet, ddpm_steps


class UNet3D(UNet, ModelMixin):
    """Text is read by cross-attention in each frame. Saved and loaded as diffusers' own class, in its format."""

    family = kind = "unet3d"
    masks_text = True

    def prepare(self) -> None:
        self.raw.set_attn_processor(TextMasked())
        for block in self._levels():
            block.gradient_checkpointing = False
            pass_of(block, _level)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Of a folder that it, or diffusers' class, was saved to. Raises UserError."""
        return cls(load_component(UNet3DConditionModel, Path(folder) / (options.get("subfolder") or "")))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.raw.save_pretrained(*args, **kwargs)

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        more = {}
        if mask is not None:
            more["cross_attention_kwargs"] = {"text_mask": mask.repeat_interleave(latents.shape[2], dim=0)}
        return self.raw(latents, ddpm_steps(level), text, return_dict=False, **more)[0]

    # --- recomputing, which diffusers' class does not have ---

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return True

    def _recompute(self, on: bool) -> None:
        for block in self._levels():
            block.gradient_checkpointing = on

    def _levels(self) -> list[nn.Module]:
        """The parts of the way down, at the bottom and of the way up."""
        return [*self.raw.down_blocks, self.raw.mid_block, *self.raw.up_blocks]


def _level(self: nn.Module, *arguments: Any, **named: Any) -> Any:
    """The class's own pass, computed again in the backward pass where that is asked for."""
    forward = type(self).forward
    if self.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(forward, self, *arguments, use_reentrant=False, **named)
    return forward(self, *arguments, **named)


class TextMasked(AttnProcessor2_0):
    """As diffusers', with a mask for what is not the layer's own input: diffusers' 3D levels leave that out."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        text_mask: Tensor | None = None,  # bool [B f,S], which tokens of the text are attended to
    ) -> Tensor:
        if encoder_hidden_states is not None and text_mask is not None:
            attention_mask = text_mask[:, None]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


# As ModelScope's 1.7b is published (diffusers/pipelines/text_to_video_synthesis): OpenCLIP's text encoder, 77 tokens
# with the padding in sight, and Stable Diffusion's noise and autoencoder.
RECIPES = {
    "TextToVideoSDPipeline": Recipe(
        task="t2v",
        scheduler={"path": "ddpm", "target": "eps", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        text=(Reading(tokens=77, cut=True, pad="encoded"),),
        frames=16,
        height=256,
        width=256,
        fps=8.0,
        guidance=9.0,
        lora=UNet.lora,
    )
}
