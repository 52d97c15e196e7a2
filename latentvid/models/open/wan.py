"""Wan 2.1 and 2.2 (`WanTransformer3DModel`): text to video, image to video with channels and with CLIP tokens.

Axes: T tokens, R latent frames, S text tokens, I image tokens of a sample, D width, A heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...packing import Packed, Segments, Shape, positions_of
from ...text.policy import Reading
from ..attention_context import AttentionContext, Rotary, make_contexts
from ..layers import gated_residual
from .backbone import (
    Inputs,
    OpenBackbone,
    Patch,
    channels_first,
    heads_of,
    norm_modulated,
    of_each,
    pass_of,
    turn_pairs,
)
from .recipe import Recipe


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """states [N I, D] of an image encoder, and their segments."""

    states: Tensor
    layout: Segments


class Wan(OpenBackbone):
    family = "wan"
    levels_by_frame = True
    takes_references = True

    def prepare(self) -> None:
        for block in self.raw.blocks:
            pass_of(block, wan_block)

    @property
    def patch(self) -> Patch:
        return tuple(self.raw.config.patch_size)

    @property
    def text_width(self) -> int:
        return self.raw.config.text_dim

    @property
    def image_width(self) -> int:
        return self.raw.config.image_dim or 0

    @property
    def of_two_images(self) -> bool:
        embedder = self.raw.condition_embedder.image_embedder
        return embedder is not None and embedder.pos_embed is not None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.raw.blocks

    def check_references(self, shapes: Sequence[Shape]) -> None:
        """Positions are rows of a table."""
        rows = self.raw.rope.max_seq_len
        for shape in shapes:
            positions = positions_of(shape)
            if positions.dtype.kind == "f":
                raise UserError(
                    "wan has positions of whole numbers alone: give a reference that is aligned with the clip the "
                    "clip's own size (max_area: null)"
                )
            if int(positions.max()) >= rows:
                raise UserError(f"wan has {rows} positions along an axis: give fewer, or shorter, references")

    def predict(self, inputs: Inputs) -> Tensor:
        raw, layout, pictures = self.raw, inputs.layout, self._pictures(inputs.given.image)
        x = raw.patch_embedding(inputs.tokens.unflatten(-1, (-1, *self.patch))).flatten(1)  # [T,D]
        # [R,D], [R,6D], [S,D], [N,I,D]
        level, rows, words, images = raw.condition_embedder(1000.0 * inputs.timestep, inputs.text, pictures)
        rotary = rotary_of(raw.rope, layout.position)
        (context,) = make_contexts("full", layout, inputs.text_layout, rotary, self._backend(x), self.sequence)
        if images is not None:
            images = ImageTokens(images.flatten(0, 1), Packed.of_lengths([images.shape[1]] * len(images)).to(x.device))
        rows = rows.unflatten(1, (6, -1))  # [R,6,D]
        for block in raw.blocks:
            x = self._run(block, x, words, rows, context, images)
        shift, scale = (raw.scale_shift_table + level[:, None]).unbind(1)  # [R,D] each
        x = norm_modulated(raw.norm_out, x.float(), shift, scale, layout.frame).type_as(x)
        return channels_first(raw.proj_out(x), self.patch)

    def _pictures(self, states: Tensor | None) -> Tensor | None:
        """States [N,I,Di] as the class takes them: of models that know places among them, a row each of the first and
        the last picture."""
        if states is None or not self.of_two_images:
            return states
        if states.shape[1] != self.raw.condition_embedder.image_embedder.pos_embed.shape[1]:
            raise UserError(
                "this Wan model reads a first and a last picture: give both (inference/interpolate.py --first --last)"
            )
        return states.unflatten(1, (2, -1)).flatten(0, 1)


def wan_block(
    self: nn.Module, x: Tensor, text: Tensor, rows: Tensor, context: AttentionContext, images: ImageTokens | None
) -> Tensor:
    """`WanTransformerBlock`: x [T,D], text [S,D], rows [R,6,D] -> [T,D]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + rows.float()).unbind(1)  # [R,D] each
    frame = context.frame
    y = norm_modulated(self.norm1, x.float(), shift1, scale1, frame).type_as(x)
    x = gated_residual(x.float(), _self_attention(self.attn1, y, context).float(), gate1, frame).type_as(x)
    x = x + _cross_attention(self.attn2, self.norm2(x.float()).type_as(x), text, context, images)
    y = norm_modulated(self.norm3, x.float(), shift2, scale2, frame).type_as(x)
    return gated_residual(x.float(), self.ffn(y).float(), gate2, frame).type_as(x)


def _self_attention(attention: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    q, k, v = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x)), attention.to_v(x)
    q, k, v = (heads_of(z, attention.heads) for z in (q, k, v))  # [T,A,K]
    q, k = turn_pairs(q, *context.rotary), turn_pairs(k, *context.rotary)
    return attention.to_out[0](context.attend(q, k, v).flatten(-2))


def _cross_attention(
    attention: nn.Module, x: Tensor, text: Tensor, context: AttentionContext, images: ImageTokens | None
) -> Tensor:
    heads = attention.heads
    q = heads_of(attention.norm_q(attention.to_q(x)), heads)
    k, v = heads_of(attention.norm_k(attention.to_k(text)), heads), heads_of(attention.to_v(text), heads)
    out = context.attend_to_text(q, k, v)
    if images is not None:
        k = heads_of(attention.norm_added_k(attention.add_k_proj(images.states)), heads)
        v = heads_of(attention.add_v_proj(images.states), heads)
        out = out + context.attend_to(q, k, v, images.layout)
    return attention.to_out[0](out.flatten(-2))


def rotary_of(rope: nn.Module, position: Tensor) -> Rotary:
    """`WanRotaryPosEmbed` at positions [T,3]: two tables [T,1,K]."""
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    return tuple(
        torch.cat([of_each(part, position[:, i]) for i, part in enumerate(table.split(sizes, dim=1))], dim=-1)[:, None]
        for table in (rope.freqs_cos, rope.freqs_sin)
    )


# Sampling defaults are those of Wan's own code (Wan-Video/Wan2.1 generate.py; Wan2.2 wan/configs), its negative prompt
# in the English of diffusers' documentation. There is no official trainer: shift 3 is musubi-tuner's.
NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
SHARED = dict(
    scheduler={"path": "rectified_flow", "target": "flow", "shift": 3.0, "spacing": "points"},
    timesteps={"shift": 3.0},
    text=(Reading(tokens=512, pad="zero", cut=True, clean="mend"),),  # UMT5
    negative_prompt=NEGATIVE,
    lora=("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
)
LORA_OF_IMAGES = (*SHARED["lora"], "add_k_proj", "add_v_proj")


def text_to_video(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """Of `WanPipeline`: 2.1, 2.2 A14B with its two experts, 2.2 5B."""
    if index.get("expand_timesteps"):
        return _five_billion("t2v")
    if (boundary := index.get("boundary_ratio")) is not None:
        sizes = dict(height=720, width=1280, steps=40, guidance=4.0, guidance_low=3.0)
        return Recipe(task="t2v", **SHARED, **sizes, boundary=boundary)
    return Recipe(task="t2v", **SHARED)


def image_to_video(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """Of `WanImageToVideoPipeline`: 2.1 with CLIP's image tokens (of first and last frame, too), 2.2 A14B, 2.2 5B."""
    if index.get("expand_timesteps"):
        return _five_billion("i2v")
    if (boundary := index.get("boundary_ratio")) is not None:
        return Recipe(task="i2v", image="wan", **SHARED, steps=40, guidance=3.5, boundary=boundary)
    return Recipe(task="i2v", image="wan", **SHARED | {"lora": LORA_OF_IMAGES})


def _five_billion(task: str) -> Recipe:
    """2.2 5B: one network for text and for images, whose first latent frame is at noise level 0."""
    sizes = dict(frames=121, height=704, width=1280, fps=24.0)
    return Recipe(task=task, image="first", given={"plain": 0.5, "first": 0.5}, **SHARED, **sizes)


RECIPES = {"WanPipeline": text_to_video, "WanImageToVideoPipeline": image_to_video}
