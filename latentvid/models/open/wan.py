"""Wan 2.1 and 2.2 (`WanTransformer3DModel`): text to video, image to video with channels and with CLIP tokens.

Axes: T tokens, R latent frames, S text tokens, I image tokens of a sample, D width, A heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...packing import Packed, Segments
from ..attention_context import AttentionContext, Rotary, make_contexts
from .backbone import Conditions, OpenBackbone, Patch, channels_first, heads_of, modulate, of_each, pass_of, turn_pairs


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """states [N I, D] of an image encoder, and their segments."""

    states: Tensor
    layout: Segments


class Wan(OpenBackbone):
    family = "wan"
    levels_by_frame = True

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
    def blocks(self) -> nn.ModuleList:
        return self.raw.blocks

    def predict(
        self,
        tokens: Tensor,
        timestep: Tensor,
        text: Tensor,
        layout: Packed,
        text_layout: Packed,
        fps: Tensor,
        given: Conditions,
    ) -> Tensor:
        raw = self.raw
        x = raw.patch_embedding(tokens.unflatten(-1, (-1, *self.patch))).flatten(1)  # [T,D]
        level, rows, words, images = raw.condition_embedder(1000.0 * timestep, text, given.image)  # [R,D], [R,6D], ...
        rotary = rotary_of(raw.rope, layout.position)
        (context,) = make_contexts("full", layout, text_layout, rotary, self._backend(x), self.sequence)
        if images is not None:
            images = ImageTokens(images.flatten(0, 1), Packed.of_lengths([images.shape[1]] * len(images)).to(x.device))
        rows = rows.unflatten(1, (6, -1))  # [R,6,D]
        for block in raw.blocks:
            x = self._run(block, x, words, rows, context, images)
        shift, scale = (raw.scale_shift_table + level[:, None]).unbind(1)  # [R,D] each
        x = modulate(raw.norm_out(x.float()), shift, scale, layout.frame).type_as(x)
        return channels_first(raw.proj_out(x), self.patch)


def wan_block(
    self: nn.Module, x: Tensor, text: Tensor, rows: Tensor, context: AttentionContext, images: ImageTokens | None
) -> Tensor:
    """`WanTransformerBlock`: x [T,D], text [S,D], rows [R,6,D] -> [T,D]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + rows.float()).unbind(1)  # [R,D] each
    y = modulate(self.norm1(x.float()), shift1, scale1, context.frame).type_as(x)
    x = (x.float() + _self_attention(self.attn1, y, context) * of_each(gate1, context.frame)).type_as(x)
    x = x + _cross_attention(self.attn2, self.norm2(x.float()).type_as(x), text, context, images)
    y = modulate(self.norm3(x.float()), shift2, scale2, context.frame).type_as(x)
    return (x.float() + self.ffn(y).float() * of_each(gate2, context.frame)).type_as(x)


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
