"""HunyuanVideo (`HunyuanVideoTransformer3DModel`): text to video, image to video by channels or by a given first frame.

Axes: T video tokens, R latent frames, N samples, S text tokens, D width, A heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import packed_attention
from ...errors import UserError
from ...packing import Packed
from ...text.policy import Reading
from ..attention_context import Rotary
from ..layers import gated_residual, modulated_norm
from .backbone import Inputs, OpenBackbone, Patch, heads_of, of_each, pass_of, sample_level, turn_pairs
from .joint import JointContext, make_joint_context
from .recipe import Recipe


class Hunyuan(OpenBackbone):
    family = "hunyuan"

    def prepare(self) -> None:
        prepare_refiner(self.raw.context_embedder)
        for block in self.raw.transformer_blocks:
            pass_of(block, dual_block)
        for block in self.raw.single_transformer_blocks:
            pass_of(block, single_block)

    @property
    def patch(self) -> Patch:
        return patch_of(self.raw)

    @property
    def text_width(self) -> int:
        return self.raw.config.text_embed_dim

    @property
    def pooled_width(self) -> int:
        return self.raw.config.pooled_projection_dim

    @property
    def takes_guidance(self) -> bool:
        return self.raw.config.guidance_embeds

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.raw.transformer_blocks, *self.raw.single_transformer_blocks]

    @property
    def levels_by_frame(self) -> bool:
        """Given frames have level 0 in models that replace tokens; the others have one level in all frames."""
        return self.raw.config.image_condition_type == "token_replace"

    def predict(self, inputs: Inputs) -> Tensor:
        raw, layout, text_layout = self.raw, inputs.layout, inputs.text_layout
        x = patches(raw, inputs.tokens)  # [T,D]
        backend, level = self._backend(x), sample_level(inputs.timestep, layout)
        frames, samples = self._levels(inputs, level, x.dtype)  # [R,D], [N,D]
        words = raw.context_embedder(inputs.text, level, text_layout, backend)  # [S,D]
        rotary = rotary_of(raw.rope, layout.position)
        context, own = make_joint_context(layout, text_layout, rotary, backend, self.sequence)
        words = own.of(words)
        for block in self.blocks:
            x, words = self._run(block, x, words, frames, samples, context)
        # the class has the sample's level in the last norm of given frames too
        last = of_each(samples, layout.frame_segment) if self.levels_by_frame else frames
        return features_of(raw, x, last, layout.frame)

    def _levels(self, inputs: Inputs, level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What modulates the video tokens of each latent frame [R,D] and the text of each sample [N,D].

        The class tells no guidance to the given frames of models that replace tokens.
        """
        embed, guided = self.raw.time_text_embed, self.takes_guidance
        timestep, layout, given = inputs.timestep, inputs.layout, inputs.given
        if given.pooled is None:
            raise ValueError("hunyuan reads a pooled state of each prompt: give conditions.pooled [N,Dp]")
        if guided != (given.guidance is not None):
            need = "is told a guidance scale: give" if guided else "has no guidance embedding: leave out"
            raise ValueError(f"this HunyuanVideo {need} conditions.guidance")
        pooled = embed.text_embedder(given.pooled)  # [N,D]
        frames = level_states(embed, timestep, dtype) + of_each(pooled, layout.frame_segment)
        samples = level_states(embed, level, dtype) + pooled
        if guided:
            told = embed.guidance_embedder(embed.time_proj(1000.0 * given.guidance.float()).to(dtype))  # [N,D]
            samples = samples + told
            told = of_each(told, layout.frame_segment)
            frames = frames + (told * (timestep > 0)[:, None] if self.levels_by_frame else told)
        return frames, samples


# --- what HunyuanVideo 1.5 has too -----------------------------------------------------------------------------------


def dual_block(
    self: nn.Module, x: Tensor, words: Tensor, frames: Tensor, samples: Tensor, context: JointContext
) -> tuple[Tensor, Tensor]:
    """Blocks with weights of their own for the text: x [T,D], words [S,D], frames [R,D], samples [N,D] -> x, words."""
    frame, sample, attention = context.frame, context.sample, self.attn
    shift, scale, gate, shift2, scale2, gate2 = _modulation(self.norm1, frames, 6)  # [R,D] each
    text_shift, text_scale, text_gate, text_shift2, text_scale2, text_gate2 = _modulation(
        self.norm1_context, samples, 6
    )
    y = modulated_norm(x, shift, scale, frame)
    z = modulated_norm(words, text_shift, text_scale, sample)
    q, k, v = _heads(attention, y, attention.to_q, attention.to_k, attention.to_v)
    q, k = _turned(_normed(attention.norm_q, q), context), _turned(_normed(attention.norm_k, k), context)
    text_q, text_k, text_v = _heads(attention, z, attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
    text_q, text_k = _normed(attention.norm_added_q, text_q), _normed(attention.norm_added_k, text_k)
    out = context.attend(torch.cat([q, text_q]), torch.cat([k, text_k]), torch.cat([v, text_v])).flatten(-2)
    y, z = out.split([len(x), len(words)])
    x = gated_residual(x, attention.to_out[0](y), gate, frame)
    words = gated_residual(words, attention.to_add_out(z), text_gate, sample)
    x = gated_residual(x, self.ff(modulated_norm(x, shift2, scale2, frame)), gate2, frame)
    z = modulated_norm(words, text_shift2, text_scale2, sample)
    return x, gated_residual(words, self.ff_context(z), text_gate2, sample)


def single_block(
    self: nn.Module, x: Tensor, words: Tensor, frames: Tensor, samples: Tensor, context: JointContext
) -> tuple[Tensor, Tensor]:
    """Blocks with one set of weights, attention beside the MLP: as `dual_block`."""
    frame, sample, attention = context.frame, context.sample, self.attn
    shift, scale, gate = _modulation(self.norm, frames, 3)  # [R,D] each
    text_shift, text_scale, text_gate = _modulation(self.norm, samples, 3)  # [N,D] each
    y = torch.cat([modulated_norm(x, shift, scale, frame), modulated_norm(words, text_shift, text_scale, sample)])
    q, k, v = _heads(attention, y, attention.to_q, attention.to_k, attention.to_v)  # [T+S,A,K] each
    q, k = _turned(_normed(attention.norm_q, q), context), _turned(_normed(attention.norm_k, k), context)
    out = context.attend(q, k, v).flatten(-2)
    out = self.proj_out(torch.cat([out, self.act_mlp(self.proj_mlp(y))], dim=-1))
    y, z = out.split([len(x), len(words)])
    return gated_residual(x, y, gate, frame), gated_residual(words, z, text_gate, sample)


def prepare_refiner(refiner: nn.Module) -> None:
    """Gives the token refiner and its blocks their packed passes."""
    pass_of(refiner, refine)
    for block in refiner.token_refiner.refiner_blocks:
        pass_of(block, refiner_block)


def refine(self: nn.Module, text: Tensor, level: Tensor, layout: Packed, backend: str) -> Tensor:
    """The token refiner: text [S,Dt] and the level [N] of its sample -> [S,D]; a prompt's tokens see each other."""
    words = layout.cu_seqlens.diff().to(torch.float32)[:, None]
    total = text.new_zeros(layout.segments, text.shape[1], dtype=torch.float32).index_add(
        0, layout.segment, text.float()
    )
    state = self.time_text_embed(1000.0 * level.float(), (total / words).to(text.dtype))  # [N,D]
    x = self.proj_in(text)
    for block in self.token_refiner.refiner_blocks:
        x = block(x, state, layout, backend)
    return x


def refiner_block(self: nn.Module, x: Tensor, state: Tensor, layout: Packed, backend: str) -> Tensor:
    """x [S,D], state [N,D] -> [S,D]."""
    gate, gate2 = self.norm_out.linear(self.norm_out.nonlinearity(state)).chunk(2, dim=-1)  # [N,D] each
    attention = self.attn
    q, k, v = _heads(attention, self.norm1(x), attention.to_q, attention.to_k, attention.to_v)
    y = attention.to_out[0](packed_attention(q, k, v, layout, layout, backend).flatten(-2))
    x = gated_residual(x, y, gate, layout.segment)
    return gated_residual(x, self.ff(self.norm2(x)), gate2, layout.segment)


def patch_of(raw: nn.Module) -> Patch:
    return raw.config.patch_size_t, raw.config.patch_size, raw.config.patch_size


def patches(raw: nn.Module, tokens: Tensor) -> Tensor:
    """[T,P] -> [T,D]."""
    return raw.x_embedder.proj(tokens.unflatten(-1, (-1, *patch_of(raw)))).flatten(1)


def features_of(raw: nn.Module, x: Tensor, states: Tensor, index: Tensor) -> Tensor:
    """The last norm, modulated by states [.,D] of which `index` has each token's, and projection: x [T,D] -> [T,P]."""
    scale, shift = raw.norm_out.linear(raw.norm_out.silu(states).to(x.dtype)).chunk(2, dim=-1)
    return raw.proj_out(modulated_norm(x, shift, scale, index))


def level_states(embed: nn.Module, level: Tensor, dtype: torch.dtype) -> Tensor:
    """States [R,D] of noise levels [R] in [0,1]."""
    return embed.timestep_embedder(embed.time_proj(1000.0 * level.float()).to(dtype))


def rotary_of(rope: nn.Module, position: Tensor) -> Rotary:
    """`HunyuanVideoRotaryPosEmbed` at positions [T,3]: two tables [T,1,K], an axis after another, each angle twice."""
    angles = []
    for axis, size in enumerate(rope.rope_dim):
        frequency = 1.0 / rope.theta ** (torch.arange(0, size, 2, device=position.device) / size)
        angles.append(position[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)[:, None]
    return angle.cos(), angle.sin()


def _modulation(norm: nn.Module, states: Tensor, parts: int) -> tuple[Tensor, ...]:
    return norm.linear(norm.silu(states)).chunk(parts, dim=-1)


def _heads(attention: nn.Module, x: Tensor, *layers: nn.Module) -> list[Tensor]:
    return [heads_of(layer(x), attention.heads) for layer in layers]


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _turned(x: Tensor, context: JointContext) -> Tensor:
    """Rotary positions of the video tokens at the front of x."""
    n = len(context.frame)
    turned = turn_pairs(x[:n], *context.rotary)
    return turned if len(x) == n else torch.cat([turned, x[n:]])


# --- how it was trained and is sampled: diffusers/pipelines/hunyuan_video, and diffusers' script that converts it; in
# training musubi-tuner's levels, and no guidance

TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
_T2V = Recipe(
    task="t2v",
    scheduler={"path": "rectified_flow", "target": "flow", "shift": 7.0},
    timesteps={"kind": "logit_normal", "shift": 7.0},
    text=(
        Reading(tokens=256, cut=True, layer=-3, template=TEMPLATE, crop=95),
        Reading(part="text_encoder_2", tokenizer="tokenizer_2", gives="pooled", tokens=77, cut=True),
    ),
    frames=129,
    height=720,
    width=1280,
    fps=24.0,
    guidance=1.0,
    guidance_embedded=6.0,
    guidance_training=1.0,
    # the last two are of the blocks with one set of weights: proj_out makes the output of their attention too
    lora=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    + ("proj_mlp", "proj_out"),
)


def _of_text(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """Models without a guidance embedding are sampled with guidance itself."""
    if config.get("guidance_embeds", True):
        return _T2V
    return replace(_T2V, guidance=6.0, guidance_embedded=None, guidance_training=None)


def _of_images(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    raise UserError(
        "HunyuanVideo's image to video reads its prompts with a Llava that sees the image too, which is not supported: "
        "take HunyuanVideo 1.5"
    )


RECIPES = {"HunyuanVideoPipeline": _of_text, "HunyuanVideoImageToVideoPipeline": _of_images}
