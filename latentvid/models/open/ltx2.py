"""The video part of LTX-2 (`LTX2VideoTransformer3DModel`): 2.0, and the forms of 2.3 and 2.5 that its class takes.

The class makes video and sound side by side, which read each other. Here video is made alone, as the class makes it
with `isolate_modalities=True`: its sound half is neither run nor trained. It stays in `raw`, so that what is saved is
whole; its weights are frozen, since weights that get no gradient stop DDP.

The text is what the pipeline's connectors give to the video half, padding included: 1,024 states a prompt of width
`caption_channels` (2.0), or of `cross_attention_dim` where `use_prompt_embeddings` is false (2.3 and later). They make
them of the states of all layers of Gemma, with learned registers instead of padding, and all are attended to.

Axes: T tokens, N samples, R latent frames, S text tokens, D width, A heads, K head width, M vectors of modulation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...packing import Packed, Shape
from ...text.policy import Reading
from ...transfer import to_device
from ..attention_context import AttentionContext, Rotary, make_contexts
from ..layers import gated_residual
from .backbone import (
    Inputs,
    OpenBackbone,
    Patch,
    heads_of,
    modulate,
    of_each,
    pass_of,
    sample_level,
    turn_halves,
    turn_pairs,
)
from .ltx import BY_TOKENS, GIVEN, LORA, TIMESTEPS, check_patch, rates
from .recipe import Recipe

# Names of what sound has and what joins it to video; and a mark on key frames that the plain pipelines do not make.
IDLE = re.compile(r"audio|a2v|v2a|av_cross_attn|keyframes_abs_pos_embedding")


class LTX2(OpenBackbone):
    family = "ltx2"
    levels_by_frame = True
    reads_fps = True
    takes_references = True
    default_fps: float = 24.0  # of the pipelines, for samples that have no rate

    def prepare(self) -> None:
        check_patch(self.raw.config)
        for block in self.raw.transformer_blocks:
            pass_of(block, ltx2_block)

    def idle(self, name: str) -> bool:
        return IDLE.search(name) is not None

    @property
    def patch(self) -> Patch:
        return 1, 1, 1

    @property
    def text_width(self) -> int:
        config = self.raw.config
        return config.caption_channels if config.use_prompt_embeddings else config.cross_attention_dim

    def check_references(self, shapes: Sequence[Shape]) -> None:
        """Positions are the middles of tokens as large as the clip's."""
        for (frames, *sides), references in shapes:
            aligned = [r.grid for r in references if r.place == "aligned"]
            if any(rest != sides or f not in (1, frames) for f, *rest in aligned):
                raise UserError(
                    "ltx2 has positions of tokens of one size alone: give a reference that is aligned with the clip "
                    "the clip's own size (max_area: null)"
                )

    def predict(self, inputs: Inputs) -> Tensor:
        raw, config = self.raw, self.raw.config
        text, layout, text_layout = inputs.text, inputs.layout, inputs.text_layout
        x = raw.proj_in(inputs.tokens)  # [T,D]
        timestep = config.timestep_scale_multiplier * inputs.timestep
        rows, level = raw.time_embed(timestep, hidden_dtype=x.dtype)  # [R,MD], [R,D]
        words = raw.caption_projection(text) if config.use_prompt_embeddings else text  # [S,D]
        prompts = None  # [N,2,D], where the text is modulated by its sample's level
        if raw.prompt_modulation and config.use_prompt_adaln_single:
            prompts, _ = raw.prompt_adaln(sample_level(timestep, layout), hidden_dtype=x.dtype)
            prompts = prompts.unflatten(1, (2, -1))
        rotary = self._rotary(layout, inputs.fps)
        (context,) = make_contexts("full", layout, text_layout, rotary, self._backend(x), self.sequence)
        rows = rows.unflatten(1, (-1, level.shape[1]))  # [R,M,D]
        for block in raw.transformer_blocks:
            x = self._run(block, x, words, rows, prompts, context, text_layout.segment)
        shift, scale = (raw.scale_shift_table + level[:, None]).unbind(1)  # [R,D] each
        return raw.proj_out(modulate(raw.norm_out(x), shift, scale, layout.frame))

    def _rotary(self, layout: Packed, fps: Tensor) -> Rotary:
        """`LTX2AudioVideoRotaryPosEmbed` at the bounds of each token in seconds and pixels: two tables, [T,A,K] for
        neighbouring pairs, [T,A,K/2] for halves.

        The highest frequencies turn 15,700 radians over the range, so the order of the class's roundings is kept.
        """
        rope = self.raw.rope
        rate = of_each(rates(fps, self.default_fps).float(), layout.segment)  # [T]
        position = layout.position.float()  # [T,3]
        bounds = torch.stack([position, position + 1], dim=-1)  # [T,3,2]
        bounds = bounds * to_device(rope.scale_factors, bounds.device, bounds.dtype)[:, None]
        seconds = (bounds[:, 0] + rope.causal_offset - rope.scale_factors[0]).clamp_min(0.0) / rate[:, None]
        bounds = torch.cat([seconds[:, None], bounds[:, 1:]], dim=1)
        tables = rope(bounds.transpose(0, 1)[None])  # of [1,3,T,2]
        if rope.rope_type == "split":
            return tuple(table[0].transpose(0, 1) for table in tables)  # [A,T,K/2] each
        return tuple(heads_of(table[0], self.heads) for table in tables)


def ltx2_block(
    self: nn.Module,
    x: Tensor,
    text: Tensor,
    rows: Tensor,
    prompts: Tensor | None,
    context: AttentionContext,
    prompt: Tensor,
) -> Tensor:
    """The video half of `LTX2VideoTransformerBlock`: x [T,D], text [S,D], rows [R,M,D], prompts [N,2,D] -> [T,D].

    prompt: int64 [S], the sample of each text token. 2.3: the text and what reads it are modulated too.
    """
    frame = context.frame
    vectors = (self.scale_shift_table + rows).unbind(1)  # [R,D] each
    shift1, scale1, gate1, shift2, scale2, gate2 = vectors[:6]
    y = modulate(self.norm1(x), shift1, scale1, frame)
    x = gated_residual(x, _self_attention(self.attn1, y, context), gate1, frame)
    y = self.norm2(x)
    if self.video_cross_attn_adaln:
        y = modulate(y, vectors[6], vectors[7], frame)
    if self.cross_attn_adaln:
        shift, scale = self.prompt_scale_shift_table.to(text.dtype)[:, None].unbind(0)  # [1,D] each
        index = torch.zeros_like(prompt)
        if prompts is not None:
            shift, scale = (self.prompt_scale_shift_table + prompts).unbind(1)  # [N,D] each
            index = prompt
        text = modulate(text, shift, scale, index)
    read = _cross_attention(self.attn2, y, text, context)
    x = x + (read * of_each(vectors[8], frame) if self.video_cross_attn_adaln else read)
    y = modulate(self.norm3(x), shift2, scale2, frame)
    return gated_residual(x, self.ff(y), gate2, frame)


def _self_attention(attention: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    turn = turn_halves if attention.rope_type == "split" else turn_pairs
    q, k, v = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x)), attention.to_v(x)
    q, k, v = (heads_of(z, attention.heads) for z in (q, k, v))  # [T,A,K]
    out = context.attend(turn(q, *context.rotary), turn(k, *context.rotary), v)
    return attention.to_out[0](_gated(attention, x, out).flatten(-2))


def _cross_attention(attention: nn.Module, x: Tensor, text: Tensor, context: AttentionContext) -> Tensor:
    q = heads_of(attention.norm_q(attention.to_q(x)), attention.heads)
    k = heads_of(attention.norm_k(attention.to_k(text)), attention.heads)
    v = heads_of(attention.to_v(text), attention.heads)
    out = context.attend_to_text(q, k, v)
    return attention.to_out[0](_gated(attention, x, out).flatten(-2))


def _gated(attention: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """What heads made [T,A,K], each times a gate between 0 and 2 by the input x [T,D], where the class has gates."""
    if attention.to_gate_logits is None:
        return out
    return out * (2.0 * torch.sigmoid(attention.to_gate_logits(x)))[..., None]


# Prompts of Gemma 3 stand at the end of 1,024 positions (diffusers/pipelines/ltx2/pipeline_ltx2.py).
GEMMA = Reading(tokens=1024, cut=True, side="left", layer="all", connectors="connectors", clean="strip")
BASE = dict(
    scheduler={"path": "rectified_flow", "target": "flow", **BY_TOKENS, "terminal": 0.1},
    timesteps=TIMESTEPS,
    image="first",
    given=GIVEN,
    text=(GEMMA,),
    frames=121,
    height=512,
    width=768,
    fps=24.0,
    steps=30,
    guidance=3.0,
    guidance_rescale=0.7,
    lora=LORA,
)
RECIPES: dict[str, Recipe] = {  # by the repository's pipeline; the last takes pictures or none
    "LTX2Pipeline": Recipe(task="t2v", **BASE),
    "LTX2ImageToVideoPipeline": Recipe(task="i2v", **BASE),
    "LTX2ConditionPipeline": Recipe(task="t2v", **BASE),
}
