"""diffusers' video transformers at a given width, depth and heads, over clips of a given token grid (random weights).

Features a token, text width and text tokens are ours; whatever else a class chooses stays its own: kind of MLP, text in
its own stream (CogVideoX, Hunyuan, Mochi) or by cross-attention, masks of full length where it asks for one.
Axes: B clips, C channels, f h w the latent's, S text tokens a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

CHANNELS, PATCH = 16, 2


@dataclass(frozen=True)
class Shape:
    """width, depth, heads: of the network. grid: a clip's tokens (frames, rows, columns). clips: B. text: S.
    text_width: of the text states."""

    width: int
    depth: int
    heads: int
    grid: tuple[int, int, int]
    clips: int
    text: int
    text_width: int

    @property
    def latent(self) -> tuple[int, int, int]:
        f, h, w = self.grid
        return f, h * PATCH, w * PATCH

    @property
    def tokens(self) -> int:
        f, h, w = self.grid
        return self.clips * f * h * w


def _rotary_axes(head: int) -> tuple[int, int, int]:
    """Rotary features of time, rows and columns: 16, 56, 56 of 128 in HunyuanVideo, whole even numbers at any width."""
    side = head * 7 // 16 // 2 * 2
    return head - 2 * side, side, side


def _latents(s: Shape, device: torch.device) -> Tensor:  # [B,C,f,h,w]
    return torch.randn(s.clips, CHANNELS, *s.latent, device=device)


def _text(s: Shape, device: torch.device) -> Tensor:
    return torch.randn(s.clips, s.text, s.text_width, device=device)


def _timestep(s: Shape, device: torch.device) -> Tensor:
    return torch.full((s.clips,), 500, dtype=torch.int64, device=device)


def _mask(s: Shape, device: torch.device) -> Tensor:
    return torch.ones(s.clips, s.text, dtype=torch.bool, device=device)


def _wan(s: Shape) -> tuple[dict[str, Any], Callable]:
    arguments = {
        "num_attention_heads": s.heads,
        "attention_head_dim": s.width // s.heads,
        "text_dim": s.text_width,
        "ffn_dim": 4 * s.width,
        "num_layers": s.depth,
    }
    return arguments, lambda d: {
        "hidden_states": _latents(s, d),
        "timestep": _timestep(s, d),
        "encoder_hidden_states": _text(s, d),
    }


def _ltx(s: Shape) -> tuple[dict[str, Any], Callable]:
    features = CHANNELS * PATCH**2  # its own latent has 128 channels and patches of 1
    arguments = {
        "in_channels": features,
        "out_channels": features,
        "num_attention_heads": s.heads,
        "attention_head_dim": s.width // s.heads,
        "cross_attention_dim": s.width,
        "num_layers": s.depth,
        "caption_channels": s.text_width,
    }
    f, h, w = s.grid
    return arguments, lambda d: {
        "hidden_states": torch.randn(s.clips, f * h * w, features, device=d),
        "encoder_hidden_states": _text(s, d),
        "timestep": _timestep(s, d),
        "encoder_attention_mask": None,
        "num_frames": f,
        "height": h,
        "width": w,
    }


def _cogvideox(s: Shape) -> tuple[dict[str, Any], Callable]:
    f, h, w = s.latent
    head = s.width // s.heads
    arguments = {
        "num_attention_heads": s.heads,
        "attention_head_dim": head,
        "text_embed_dim": s.text_width,
        "num_layers": s.depth,
        "sample_width": w,
        "sample_height": h,
        "sample_frames": 1 + 4 * (f - 1),
        "max_text_seq_length": s.text,
        "use_rotary_positional_embeddings": True,
    }
    tokens = s.tokens // s.clips

    def inputs(d: torch.device) -> dict[str, Any]:
        angle = torch.rand(tokens, head, device=d)  # the table's values change no cost
        return {
            "hidden_states": _latents(s, d).transpose(1, 2).contiguous(),
            "encoder_hidden_states": _text(s, d),
            "timestep": _timestep(s, d),
            "image_rotary_emb": (angle.cos(), angle.sin()),
        }

    return arguments, inputs


def _hunyuan(s: Shape) -> tuple[dict[str, Any], Callable]:
    double = max(1, s.depth // 3)  # 20 of 60 as published
    arguments = {
        "num_attention_heads": s.heads,
        "attention_head_dim": s.width // s.heads,
        "num_layers": double,
        "num_single_layers": s.depth - double,
        "text_embed_dim": s.text_width,
        "guidance_embeds": False,
        "rope_axes_dim": _rotary_axes(s.width // s.heads),
    }
    return arguments, lambda d: {
        "hidden_states": _latents(s, d),
        "timestep": _timestep(s, d),
        "encoder_hidden_states": _text(s, d),
        "encoder_attention_mask": _mask(s, d),
        "pooled_projections": torch.randn(s.clips, 768, device=d),
    }


def _mochi(s: Shape) -> tuple[dict[str, Any], Callable]:
    arguments = {
        "num_attention_heads": s.heads,
        "attention_head_dim": s.width // s.heads,
        "num_layers": s.depth,
        "in_channels": CHANNELS,
        "text_embed_dim": s.text_width,
        "max_sequence_length": s.text,
        "pooled_projection_dim": s.width // 2,  # 1536 of 3072 as published
    }
    return arguments, lambda d: {
        "hidden_states": _latents(s, d),
        "encoder_hidden_states": _text(s, d),
        "timestep": _timestep(s, d),
        "encoder_attention_mask": _mask(s, d),
    }


def _latte(s: Shape) -> tuple[dict[str, Any], Callable]:
    f, h, _ = s.latent
    arguments = {
        "num_attention_heads": s.heads,
        "attention_head_dim": s.width // s.heads,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": s.depth // 2,  # of space, and as many of time
        "cross_attention_dim": s.width,
        "attention_bias": True,
        "sample_size": h,
        "patch_size": PATCH,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": s.text_width,
        "video_length": f,
    }
    return arguments, lambda d: {
        "hidden_states": _latents(s, d),
        "timestep": _timestep(s, d),
        "encoder_hidden_states": _text(s, d),
    }


PEERS = {
    "Wan": ("WanTransformer3DModel", _wan),
    "LTX": ("LTXVideoTransformer3DModel", _ltx),
    "CogVideoX": ("CogVideoXTransformer3DModel", _cogvideox),
    "Hunyuan": ("HunyuanVideoTransformer3DModel", _hunyuan),
    "Mochi": ("MochiTransformer3DModel", _mochi),
    "Latte": ("LatteTransformer3DModel", _latte),
}
BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks", "temporal_transformer_blocks")


def make_peer(name: str, shape: Shape, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The model in bf16 on the device, and the keyword arguments of its forward pass, floating ones in bf16."""
    cls, settle = PEERS[name]
    arguments, inputs = settle(shape)
    with device:
        model = getattr(diffusers, cls)(**arguments)
    return model.to(torch.bfloat16), {k: _half(v) for k, v in inputs(device).items()}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a peer, or of ours."""
    return [block for name in BLOCKS for block in getattr(model, name, ())]


def _half(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
