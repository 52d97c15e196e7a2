"""Mochi 1 (`MochiTransformer3DModel`), text to video.

Axes: T video tokens, S text tokens, N samples, D width, E width of the text stream, A heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import packed_attention
from ...packing import Packed, Segments
from ...text.policy import Reading
from ...transfer import to_device
from ..attention_context import Rotary
from .backbone import (
    Inputs,
    OpenBackbone,
    Patch,
    channels_first,
    heads_of,
    modulate,
    of_each,
    pass_of,
    sample_level,
)
from .joint import JointContext, make_joint_context
from .recipe import Recipe


class Mochi(OpenBackbone):
    """The network counts time from noise to clean and predicts x - eps: here both are turned."""

    family = "mochi"

    def prepare(self) -> None:
        for block in self.raw.transformer_blocks:
            pass_of(block, mochi_block)

    @property
    def patch(self) -> Patch:
        return 1, self.raw.config.patch_size, self.raw.config.patch_size

    @property
    def text_width(self) -> int:
        return self.raw.config.text_embed_dim

    def predict(self, inputs: Inputs) -> Tensor:
        raw, embed = self.raw, self.raw.time_embed
        text, layout, text_layout = inputs.text, inputs.layout, inputs.text_layout
        x = raw.patch_embed.proj(inputs.tokens.unflatten(-1, (-1, *self.patch[1:]))).flatten(1)  # [T,D]
        time = embed.time_proj(1000.0 * (1.0 - sample_level(inputs.timestep, layout)))
        condition = embed.timestep_embedder(time.to(x.dtype)) + pooled(embed.pooler, text, text_layout)  # [N,D]
        context, own = make_joint_context(layout, text_layout, rotary_of(raw, layout), self._backend(x), self.sequence)
        words = embed.caption_proj(own.of(text))  # [S,E]
        for block in raw.transformer_blocks:
            x, words = self._run(block, x, words, condition, layout.segment, context)
        out = raw.norm_out
        scale, shift = out.linear(out.silu(condition).to(x.dtype)).chunk(2, dim=-1)  # [N,D] each
        x = raw.proj_out(modulate(out.norm(x), shift, scale, layout.segment))
        return -channels_first(x, self.patch)


def mochi_block(
    self: nn.Module, x: Tensor, text: Tensor, condition: Tensor, sample: Tensor, context: JointContext
) -> tuple[Tensor, Tensor]:
    """`MochiTransformerBlock`: x [T,D], text [S,E], condition [N,D], sample [T] (that of each token) -> both."""
    y, gates = _norm(self.norm1, x, condition, sample)
    if self.context_pre_only:  # the last block: text is only read
        norm = self.norm1_context
        scale = norm.linear_1(norm.silu(condition).to(text.dtype))
        words, gates_text = norm.norm(text, 1 + of_each(scale, context.sample).float()), None
    else:
        words, gates_text = _norm(self.norm1_context, text, condition, context.sample)
    y, words = _attention(self.attn1, y, words, context)
    x = _rest(x, y, gates, self.norm2, self.norm3, self.ff, self.norm4)
    if gates_text is not None:
        text = _rest(
            text, words, gates_text, self.norm2_context, self.norm3_context, self.ff_context, self.norm4_context
        )
    return x, text


Gates = tuple[Tensor, Tensor, Tensor]  # of attention, scale of the feed-forward, its gate: [T,D] each


def _norm(norm: nn.Module, x: Tensor, condition: Tensor, sample: Tensor) -> tuple[Tensor, Gates]:
    """`MochiRMSNormZero`."""
    scale, *gates = (of_each(each, sample) for each in norm.linear(norm.silu(condition)).chunk(4, dim=-1))
    return (norm.norm(x.float()) * (1 + scale.float())).to(x.dtype), tuple(gates)


def _rest(
    x: Tensor, y: Tensor, gates: Gates, norm_out: nn.Module, norm_in: nn.Module, ff: nn.Module, norm_ff: nn.Module
) -> Tensor:
    """x with what attention y and the feed-forward add, both normed before they are gated."""
    gate, scale, gate_ff = gates
    x = x + norm_out(y, gate.tanh())
    return x + norm_ff(ff(norm_in(x, 1 + scale.float())), gate_ff.tanh())


def _attention(attention: nn.Module, x: Tensor, text: Tensor, context: JointContext) -> tuple[Tensor, Tensor]:
    heads, tokens = attention.heads, len(x)
    q, k = attention.norm_q(heads_of(attention.to_q(x), heads)), attention.norm_k(heads_of(attention.to_k(x), heads))
    q, k, v = _turn(q, *context.rotary), _turn(k, *context.rotary), heads_of(attention.to_v(x), heads)
    q_text = attention.norm_added_q(heads_of(attention.add_q_proj(text), heads))
    k_text = attention.norm_added_k(heads_of(attention.add_k_proj(text), heads))
    v_text = heads_of(attention.add_v_proj(text), heads)
    out = context.attend(torch.cat([q, q_text]), torch.cat([k, k_text]), torch.cat([v, v_text])).flatten(-2)
    x, text = out.tensor_split([tokens])
    return attention.to_out[0](x), attention.to_add_out(text) if hasattr(attention, "to_add_out") else text


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbouring pairs of x [T,A,K] turned by angles of their own in each head: cos and sin [T,A,K/2]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def rotary_of(raw: nn.Module, layout: Packed) -> Rotary:
    """`MochiRoPE`: tables [T,A,K/2] by learned frequencies [3,A,K/2].

    Rows and columns lie around 0, so far apart that all grids cover the same area.
    """
    area = raw.rope.target_area
    spread = torch.tensor([(area / (h * w)) ** 0.5 for _, h, w in layout.grid])  # [N]
    middle = torch.tensor([[(h - 1) / 2, (w - 1) / 2] for _, h, w in layout.grid])  # [N,2]
    spread, middle = (of_each(z.to(layout.segment.device), layout.segment) for z in (spread, middle))
    place = (layout.position[:, 1:] - middle) * spread[:, None]  # [T,2]
    coordinates = layout.position[:, 0].float(), *place.unbind(1)
    frequencies = raw.pos_frequencies.float()
    # products and sums, which are made in fp32 under autocast too
    angle = sum(c[:, None, None] * f for c, f in zip(coordinates, frequencies, strict=True))
    return angle.cos(), angle.sin()


def pooled(pooler: nn.Module, text: Tensor, layout: Packed) -> Tensor:
    """`MochiAttentionPool`: the mean of a prompt attends to itself and to the prompt; text [S,Dt] -> [N,D]."""
    n, heads, device = layout.segments, pooler.num_attention_heads, text.device
    words = to_device(layout.lengths, device, text.dtype)[:, None]
    mean = text.new_zeros(n, text.shape[1]).index_add(0, layout.segment, text) / words.clamp_min(1)  # [N,Dt]
    order = torch.cat([torch.arange(n, device=device), layout.segment]).argsort(stable=True)  # mean, then prompt
    k, v = pooler.to_kv(torch.cat([mean, text])).index_select(0, order).unflatten(-1, (2, heads, -1)).unbind(1)
    lengths = [1 + length for length in layout.lengths]
    # not the model's backend: heads of the published size, 512, are too wide for FlashAttention
    backend = "efficient" if device.type == "cuda" else "grouped"
    out = packed_attention(
        heads_of(pooler.to_q(mean), heads), k, v, _segments([1] * n, device), _segments(lengths, device), backend
    )
    return pooler.to_out(out.flatten(-2))


def _segments(lengths: list[int], device: torch.device) -> Segments:
    cu_seqlens = to_device([0, *accumulate(lengths)], device, torch.int32)
    return Segments(cu_seqlens, max(lengths), lengths)


def _recipe(empty: str | None) -> Recipe:
    """As Genmo's own code trains (noise levels uniform) and samples."""
    return Recipe(
        task="t2v",
        scheduler={"path": "rectified_flow", "target": "flow", "spacing": "linear_quadratic"},
        timesteps={"kind": "uniform"},
        text=(Reading(tokens=256, cut=True, empty=empty),),
        frames=163,
        height=480,
        width=848,
        fps=30.0,
        steps=64,
        guidance=4.5,
        lora=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )


# zeros: of a repository whose model_index.json says `force_zeros_for_empty_prompt`, as that of Genmo does: an empty
# prompt has no tokens there
RECIPE: dict[str, Recipe] = {"plain": _recipe(""), "zeros": _recipe(None)}


def recipe_of(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """That of a repository, by its index and the configuration of its transformer."""
    return RECIPE["zeros" if index.get("force_zeros_for_empty_prompt") else "plain"]


RECIPES = {"MochiPipeline": recipe_of}
