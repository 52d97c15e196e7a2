"""LTX-Video 0.9.x (`LTXVideoTransformer3DModel`): text to video, and image to video by a first frame at level 0.

A prompt's own text tokens are attended to, and no padding: the class masks it. Positions are fractions of 20 seconds
and of 2,048 pixels, so that a sample's frames a second are among them.

Axes: T tokens, N samples, R latent frames, S text tokens, D width, A heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...text.policy import Reading
from ..attention_context import AttentionContext, Rotary, make_contexts
from ..layers import gated_residual
from .backbone import Inputs, OpenBackbone, Patch, heads_of, modulate, of_each, pass_of, turn_pairs
from .recipe import Recipe


class LTX(OpenBackbone):
    """causal_positions: a latent frame f is at max(0, 8f - 7) / fps seconds, as in diffusers' `LTXConditionPipeline`;
    else at 8f / fps, as in its `LTXPipeline` and `LTXImageToVideoPipeline`. The class does not tell: the pipeline does.
    """

    family = "ltx"
    levels_by_frame = True
    reads_fps = True
    takes_references = True
    causal_positions: bool = False
    strides: tuple[int, int] = (8, 32)  # of the published autoencoder; whoever has another at hand says it
    default_fps: float = 25.0  # of the pipelines, for samples that have no rate

    def prepare(self) -> None:
        check_patch(self.raw.config)
        for block in self.raw.transformer_blocks:
            pass_of(block, ltx_block)

    @property
    def patch(self) -> Patch:
        return 1, 1, 1

    @property
    def text_width(self) -> int:
        return self.raw.config.caption_channels

    def predict(self, inputs: Inputs) -> Tensor:
        raw, layout = self.raw, inputs.layout
        x = raw.proj_in(inputs.tokens)  # [T,D]
        rows, level = raw.time_embed(1000.0 * inputs.timestep, hidden_dtype=x.dtype)  # [R,6D], [R,D]
        words = raw.caption_projection(inputs.text)  # [S,D]
        rotary = self._rotary(inputs)
        (context,) = make_contexts("full", layout, inputs.text_layout, rotary, self._backend(x), self.sequence)
        rows = rows.unflatten(1, (6, -1))  # [R,6,D]
        for block in raw.transformer_blocks:
            x = self._run(block, x, words, rows, context)
        shift, scale = (raw.scale_shift_table + level[:, None]).unbind(1)  # [R,D] each
        return raw.proj_out(modulate(raw.norm_out(x), shift, scale, layout.frame))

    def _rotary(self, inputs: Inputs) -> Rotary:
        """`LTXVideoRotaryPosEmbed` in seconds and pixels: two tables [T,A,K].

        The highest frequencies turn 15,700 radians over the range, so the order of the class's roundings is kept.
        """
        layout, (time, size) = inputs.layout, self.strides
        frame, row, column = layout.position.float().unbind(-1)  # [T] each
        rate = rates(inputs.fps, self.default_fps)  # [N]
        if self.causal_positions:
            seconds = (time * frame + 1 - time).clamp_min(0.0) * of_each((1.0 / rate).float(), layout.segment)
        else:
            seconds = frame * of_each((time / rate).float(), layout.segment)
        tables = self.raw.rope(
            inputs.tokens[None], video_coords=torch.stack([seconds, size * row, size * column])[None]
        )
        return tuple(heads_of(table[0], self.heads) for table in tables)


def ltx_block(self: nn.Module, x: Tensor, text: Tensor, rows: Tensor, context: AttentionContext) -> Tensor:
    """`LTXVideoTransformerBlock`: x [T,D], text [S,D], rows [R,6,D] -> [T,D]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + rows).unbind(1)  # [R,D] each
    y = modulate(self.norm1(x), shift1, scale1, context.frame)
    x = gated_residual(x, _self_attention(self.attn1, y, context), gate1, context.frame)
    x = x + _cross_attention(self.attn2, x, text, context)
    y = modulate(self.norm2(x), shift2, scale2, context.frame)
    return gated_residual(x, self.ff(y), gate2, context.frame)


def _self_attention(attention: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    q, k, v = attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x)), attention.to_v(x)
    q, k, v = (heads_of(z, attention.heads) for z in (q, k, v))  # [T,A,K]
    q, k = turn_pairs(q, *context.rotary), turn_pairs(k, *context.rotary)
    return attention.to_out[0](context.attend(q, k, v).flatten(-2))


def _cross_attention(attention: nn.Module, x: Tensor, text: Tensor, context: AttentionContext) -> Tensor:
    q = heads_of(attention.norm_q(attention.to_q(x)), attention.heads)
    k = heads_of(attention.norm_k(attention.to_k(text)), attention.heads)
    v = heads_of(attention.to_v(text), attention.heads)
    return attention.to_out[0](context.attend_to_text(q, k, v).flatten(-2))


def rates(fps: Tensor, default: float) -> Tensor:
    """float64 [N]: frames a second of each sample, the default where it has none (0)."""
    fps = fps.double()
    return torch.where(fps > 0, fps, default)


def check_patch(config: Mapping[str, Any]) -> None:
    """Raises UserError for token sizes that no published model has: the classes count channels by token there."""
    if (config["patch_size_t"], config["patch_size"]) != (1, 1):
        sizes = f"patch_size_t {config['patch_size_t']} and patch_size {config['patch_size']}"
        raise UserError(f"a transformer of LTX with {sizes} cannot be used: published ones have 1 and 1")


# Published shift: its log is 0.95 at 1,024 tokens and 2.05 at 4,096, on a line
# (diffusers/pipelines/ltx/pipeline_ltx.py, `calculate_shift`; the values are of the repositories' scheduler configs).
BY_TOKENS = {"log_shift": (0.95, 2.05), "shift_tokens": (1024, 4096)}
# Levels of training: LTX-2's trainer (Lightricks/LTX-2, ltx_trainer/timestep_samplers.py), which LTX-Video's became.
TIMESTEPS = {"kind": "logit_normal", **BY_TOKENS, "stretch": True, "uniform": 0.1}
GIVEN = {"plain": 0.9, "first": 0.1}  # one in ten samples of training has its first frame clean, in the same trainer
LORA = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
# The encoder sees the padding, which the class then masks; the condition pipeline masks it in the encoder too.
T5 = Reading(tokens=128, cut=True, pad="seen")
BASE = dict(
    scheduler={"path": "rectified_flow", "target": "flow", **BY_TOKENS, "terminal": 0.1},
    timesteps=TIMESTEPS,
    image="first",
    given=GIVEN,
    text=(T5,),
    frames=161,
    height=512,
    width=704,
    fps=25.0,
    steps=50,
    guidance=3.0,
    lora=LORA,
)
CONDITION = BASE | dict(
    scheduler={"path": "rectified_flow", "target": "flow", "spacing": "linear_quadratic"},
    text=(Reading(tokens=256, cut=True),),
    backbone={"causal_positions": True},
)
RECIPES: dict[str, Recipe] = {  # by the repository's pipeline; the last takes pictures or none
    "LTXPipeline": Recipe(task="t2v", **BASE),
    "LTXImageToVideoPipeline": Recipe(task="i2v", **BASE),
    "LTXConditionPipeline": Recipe(task="t2v", **CONDITION),
}
