"""Sizes of the published transformers, as their configurations have them: enough to plan a run without their weights.

Only what differs from the defaults of diffusers' class stands here. `parameters` are those of the published weights, by
the sizes of their files: what the sizes are checked by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers.models.modeling_utils import ModelMixin


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """cls: in diffusers. config: what differs from its defaults. parameters: as published, rounded.

    text: tokens that a prompt is read as, padding of the model's own recipe included. frames, height, width: in pixels,
    of the clip that it is known for. strides: of its VAE in time and space. experts: networks of this size, one of
    which works at a noise level.
    """

    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: float
    text: int
    frames: int
    height: int
    width: int
    strides: tuple[int, int]
    experts: int = 1

    def make(self, **changes: Any) -> ModelMixin:
        """The transformer, with random weights (under `torch.device("meta")` without any); `changes` to its sizes."""
        return getattr(diffusers, self.cls)(**{**self.config, **changes})

    def grid(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens (frames, rows, columns) of the clip."""
        time, space = self.strides
        latent = -(-(1 + (self.frames - 1) // time) // patch[0]), self.height // space, self.width // space
        return latent[0], latent[1] // patch[1], latent[2] // patch[2]


_WAN, _LTX, _COG = "WanTransformer3DModel", "LTXVideoTransformer3DModel", "CogVideoXTransformer3DModel"
_WAN_1B = dict(num_attention_heads=12, ffn_dim=8960, num_layers=30)
_WAN_5B = dict(num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48)
_CLIP = dict(image_dim=1280, added_kv_proj_dim=5120)
_COG_5B = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_COG_15 = dict(patch_size_t=2, patch_bias=False, sample_frames=81, sample_height=96, sample_width=170)

PUBLISHED: dict[str, PublishedSize] = {
    "Wan 2.1 T2V 1.3B": PublishedSize(
        cls=_WAN, config=_WAN_1B, parameters=1.42e9, text=512, frames=81, height=480, width=832, strides=(4, 8)
    ),
    "Wan 2.1 T2V 14B": PublishedSize(
        cls=_WAN, parameters=14.29e9, text=512, frames=81, height=480, width=832, strides=(4, 8)
    ),
    "Wan 2.1 I2V 14B": PublishedSize(
        cls=_WAN,
        config={"in_channels": 36, **_CLIP},
        parameters=16.4e9,
        text=512,
        frames=81,
        height=480,
        width=832,
        strides=(4, 8),
    ),
    "Wan 2.2 TI2V 5B": PublishedSize(
        cls=_WAN, config=_WAN_5B, parameters=5.0e9, text=512, frames=121, height=704, width=1280, strides=(4, 16)
    ),
    "Wan 2.2 T2V A14B": PublishedSize(
        cls=_WAN, parameters=14.29e9, text=512, frames=81, height=480, width=832, strides=(4, 8), experts=2
    ),
    "Wan 2.2 I2V A14B": PublishedSize(
        cls=_WAN,
        config={"in_channels": 36},
        parameters=14.29e9,
        text=512,
        frames=81,
        height=480,
        width=832,
        strides=(4, 8),
        experts=2,
    ),
    "LTX-Video 2B": PublishedSize(
        cls=_LTX, parameters=1.923e9, text=128, frames=161, height=480, width=704, strides=(8, 32)
    ),
    "LTX-Video 13B": PublishedSize(
        cls=_LTX,
        config=dict(num_layers=48, attention_head_dim=128, cross_attention_dim=4096),
        parameters=13.04e9,
        text=256,
        frames=121,
        height=704,
        width=1216,
        strides=(8, 32),
    ),
    "CogVideoX 2b": PublishedSize(
        cls=_COG, parameters=1.694e9, text=226, frames=49, height=480, width=720, strides=(4, 8)
    ),
    "CogVideoX 5b": PublishedSize(
        cls=_COG, config=_COG_5B, parameters=5.57e9, text=226, frames=49, height=480, width=720, strides=(4, 8)
    ),
    "CogVideoX 1.5 5b": PublishedSize(
        cls=_COG,
        config={**_COG_5B, **_COG_15},
        parameters=5.57e9,
        text=226,
        frames=81,
        height=768,
        width=1360,
        strides=(4, 8),
    ),
    "HunyuanVideo 13B": PublishedSize(
        cls="HunyuanVideoTransformer3DModel",
        parameters=12.82e9,
        text=256,
        frames=129,
        height=544,
        width=960,
        strides=(4, 8),
    ),
    "HunyuanVideo-1.5 8.3B": PublishedSize(
        cls="HunyuanVideo15Transformer3DModel",
        parameters=8.33e9,
        text=1000,
        frames=121,
        height=480,
        width=848,
        strides=(4, 16),
    ),
    "Mochi 10B": PublishedSize(
        cls="MochiTransformer3DModel",
        parameters=10.03e9,
        text=256,
        frames=85,
        height=480,
        width=848,
        strides=(6, 8),
    ),
    "LTX-2 19B": PublishedSize(
        cls="LTX2VideoTransformer3DModel",
        config={"rope_type": "split"},
        parameters=18.9e9,
        text=1024,
        frames=121,
        height=512,
        width=768,
        strides=(8, 32),
    ),
}
