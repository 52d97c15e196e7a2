"""The video transformers of diffusers and ours at one shape: width, heads, depth, tokens and text, random weights.

Used by benchmarks/training_step.py. Blocks keep what is their own (joint or cross attention, RoPE, norms, activation);
hidden widths are as published (4 x width, or of equal parameters where gated). HunyuanVideo has a third of its blocks
in two streams and the rest in one, as published; Latte alternates blocks of space and of time, so do ours beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

CHANNELS, PATCH, TEXT_WIDTH = 16, 2, 512
FEATURES = CHANNELS * PATCH**2


@dataclass(frozen=True)
class Shape:
    """grid: (frames, rows, columns) of the tokens. text: tokens of the prompt."""

    width: int
    heads: int
    depth: int
    grid: tuple[int, int, int]
    text: int

    @property
    def tokens(self) -> int:
        f, h, w = self.grid
        return f * h * w

    @property
    def head_width(self) -> int:
        return self.width // self.heads


# (model, and its forward pass: the model, dtype of its inputs -> prediction)
Net = tuple[nn.Module, Callable[[nn.Module, torch.dtype], Tensor]]


def ours(shape: Shape, attention: str = "full") -> Net:
    model = VideoDiT(
        latent_channels=CHANNELS,
        patch=PATCH,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        text_width=TEXT_WIDTH,
        attention=attention,
    )
    layout, text_layout = Packed.of([shape.grid]), Packed.of_lengths([shape.text])
    tokens, text, level = torch.randn(shape.tokens, FEATURES), _text(shape)[0], torch.full((layout.frames,), 0.5)
    return model, lambda m, dtype: m(tokens.to(dtype), level, text.to(dtype), layout, text_layout)


def wan(shape: Shape) -> Net:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        ffn_dim=4 * shape.width,
        num_layers=shape.depth,
    )
    latent, text = _latent(shape), _text(shape)
    return model, lambda m, dtype: m(latent.to(dtype), torch.tensor([500]), text.to(dtype), return_dict=False)[0]


def ltx(shape: Shape) -> Net:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=FEATURES,
        out_channels=FEATURES,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        cross_attention_dim=shape.width,
        num_layers=shape.depth,
        caption_channels=TEXT_WIDTH,
    )
    tokens, text, seen = torch.randn(1, shape.tokens, FEATURES), _text(shape), torch.ones(1, shape.text)
    sizes = dict(zip(("num_frames", "height", "width"), shape.grid, strict=True))
    return model, lambda m, dtype: m(
        tokens.to(dtype), text.to(dtype), torch.tensor([500]), seen, **sizes, return_dict=False
    )[0]


def cogvideox(shape: Shape) -> Net:
    f, h, w = shape.grid
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_embed_dim=TEXT_WIDTH,
        num_layers=shape.depth,
        sample_width=PATCH * w,
        sample_height=PATCH * h,
        sample_frames=4 * f - 3,
        max_text_seq_length=shape.text,
        use_rotary_positional_embeddings=True,
    )
    latent, text = _latent(shape).transpose(1, 2), _text(shape)
    rotary = get_3d_rotary_pos_embed(shape.head_width, ((0, 0), (h, w)), (h, w), f)
    return model, lambda m, dtype: m(
        latent.to(dtype), text.to(dtype), torch.tensor([500]), image_rotary_emb=rotary, return_dict=False
    )[0]


def hunyuan(shape: Shape) -> Net:
    space = shape.head_width // 8 * 3 // 2 * 2  # the published division: 16, 56, 56 of 128
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        num_layers=shape.depth // 3,
        num_single_layers=shape.depth - shape.depth // 3,
        guidance_embeds=False,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        rope_axes_dim=(shape.head_width - 2 * space, space, space),
    )
    latent, text, seen = _latent(shape), _text(shape), torch.ones(1, shape.text, dtype=torch.bool)
    return model, lambda m, dtype: m(
        latent.to(dtype), torch.tensor([500]), text.to(dtype), seen, text[:, 0].to(dtype), return_dict=False
    )[0]


def mochi(shape: Shape) -> Net:
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        num_layers=shape.depth,
        pooled_projection_dim=shape.width // 2,
        in_channels=CHANNELS,
        text_embed_dim=TEXT_WIDTH,
    )
    latent, text, seen = _latent(shape), _text(shape), torch.ones(1, shape.text, dtype=torch.bool)
    return model, lambda m, dtype: m(latent.to(dtype), text.to(dtype), torch.tensor([500]), seen, return_dict=False)[0]


def latte(shape: Shape) -> Net:
    f, h, w = shape.grid
    if h != w:
        raise ValueError(f"Latte takes square frames, not {h} x {w}")
    model = diffusers.LatteTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_width,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=shape.depth // 2,
        cross_attention_dim=shape.width,
        attention_bias=True,
        sample_size=PATCH * h,
        patch_size=PATCH,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_WIDTH,
        video_length=f,
    )
    latent, text = _latent(shape), _text(shape)
    return model, lambda m, dtype: m(latent.to(dtype), torch.tensor([500]), text.to(dtype), return_dict=False)[0]


def _latent(shape: Shape) -> Tensor:
    f, h, w = shape.grid
    return torch.randn(1, CHANNELS, f, PATCH * h, PATCH * w)


def _text(shape: Shape) -> Tensor:
    return torch.randn(1, shape.text, TEXT_WIDTH)


NETS: dict[str, Callable[[Shape], Net]] = {
    "latentvid": ours,
    "latentvid, factorised": lambda shape: ours(shape, "factorised"),
    "Wan 2.1": wan,
    "LTX-Video": ltx,
    "CogVideoX": cogvideox,
    "HunyuanVideo": hunyuan,
    "Mochi 1": mochi,
    "Latte": latte,
}
FACTORISED = ("latentvid, factorised", "Latte")  # the others attend to the whole clip


def make(name: str, shape: Shape) -> Net:
    """The network, with noise on what starts at zero, so that every gradient is there to compute."""
    torch.manual_seed(0)
    model, forward = NETS[name](shape)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.02)
    return model.train(), forward
