"""CogVideoX 2b, 5b and 1.5 (`CogVideoXTransformer3DModel`), text and image to video: Yang et al. 2024.

Axes: T video tokens, S text tokens, N samples, D width, E width of the time embedding, A heads, K head width. The
blocks have one stream of T + S rows, video before text: both go through the same maps, with modulations of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...packing import Grid, Packed
from ...text.policy import Reading
from ...transfer import to_device
from ..attention_context import Rotary
from ..layers import gated_residual
from .backbone import (
    Inputs,
    OpenBackbone,
    Patch,
    heads_of,
    norm_modulated,
    of_each,
    pass_of,
    sample_level,
    turn_pairs,
)
from .joint import JointContext, make_joint_context
from .recipe import Recipe

STEPS = 1000  # noise levels of its training: level i / STEPS is step i - 1
OFS = 2.0  # what 1.5's image-to-video model is told in all of its training and sampling

Axes = tuple[Tensor, Tensor, Tensor]  # coordinates of the frames, rows and columns of a token grid


class CogVideoX(OpenBackbone):
    family = "cogvideox"

    def prepare(self) -> None:
        for block in self.raw.transformer_blocks:
            pass_of(block, cogvideox_block)

    @property
    def patch(self) -> Patch:
        p = self.raw.config.patch_size
        return self.raw.config.patch_size_t or 1, p, p

    @property
    def text_width(self) -> int:
        return self.raw.config.text_embed_dim

    def predict(self, inputs: Inputs) -> Tensor:
        raw, tokens = self.raw, inputs.tokens
        layout, text_layout = inputs.layout, inputs.text_layout
        if raw.config.patch_size_t is None:
            tokens = tokens.unflatten(-1, (-1, *self.patch[1:]))  # the map of 1.0 is a convolution
        x, words = raw.patch_embed.proj(tokens).flatten(1), raw.patch_embed.text_proj(inputs.text)  # [T,D], [S,D]
        x, words = self._with_added_positions(x, words, layout, text_layout)
        context, own = make_joint_context(layout, text_layout, None, self._backend(x), self.sequence)
        words = own.of(words)
        context = replace(context, rotary=self._rotary(layout, len(words)))
        time = self._time(sample_level(inputs.timestep, layout), x.dtype)  # [N,E]
        rows = torch.cat([layout.segment, layout.segments + context.sample])  # [T+S], of [2N,...]: video's, then text's
        x = raw.embedding_dropout(torch.cat([x, words]))
        for block in raw.transformer_blocks:
            x = self._run(block, x, time, rows, context)
        x = raw.norm_final(x[: layout.tokens])
        shift, scale = raw.norm_out.linear(raw.norm_out.silu(time)).chunk(2, dim=-1)  # [N,D] each
        return raw.proj_out(norm_modulated(raw.norm_out.norm, x, shift, scale, layout.segment))

    def _time(self, level: Tensor, dtype: torch.dtype) -> Tensor:
        """Noise levels [N] -> [N,E]."""
        raw = self.raw
        step = ((STEPS * level).round() - 1).clamp_min(0)
        out = raw.time_embedding(raw.time_proj(step).to(dtype))
        if raw.ofs_embedding is None:
            return out
        return out + raw.ofs_embedding(raw.ofs_proj(level.new_full((1,), OFS)).to(dtype))

    # --- positions ---

    def _rotary(self, layout: Packed, words: int) -> Rotary | None:
        """Tables [T+S,1,K], by which text is not turned; None: the model has none."""
        if not self.raw.config.use_rotary_positional_embeddings:
            return None
        cos, sin = rotary_positions(layout, self.raw.config)
        none = cos.new_zeros(words, *cos.shape[1:])
        return torch.cat([cos, none + 1]), torch.cat([sin, none])

    def _with_added_positions(
        self, x: Tensor, words: Tensor, layout: Packed, text_layout: Packed
    ) -> tuple[Tensor, Tensor]:
        """[T,D] and [S,D] with what 2b adds (sines, to video alone) and 5b's image-to-video model (learned).

        Clips of other lengths than the one trained on have sines there too, as in the class.
        """
        config = self.raw.config
        if not config.use_learned_positional_embeddings:
            rotary = config.use_rotary_positional_embeddings
            return (x if rotary else x + sine_positions(layout, config).to(x.dtype)), words
        most, grid = config.max_text_seq_length, self._trained_grid(layout, text_layout)
        of_text, of_video = self.raw.patch_embed.pos_embedding[0].to(x.dtype).tensor_split([most])
        trained = to_device([each == grid for each in layout.grid], x.device)[:, None]
        f, h, w = layout.position.unbind(1)
        place = ((f * grid[1] + h) * grid[2] + w).clamp_max(len(of_video) - 1)
        learned, sines = of_each(of_video, place), sine_positions(layout, config).to(x.dtype)
        x = x + torch.where(of_each(trained, layout.segment), learned, sines)
        return x, words + of_each(trained, text_layout.segment) * of_each(of_text, text_layout.position[:, 2])

    def _trained_grid(self, layout: Packed, text_layout: Packed) -> Grid:
        """The token grid that learned positions are for. Raises UserError where they do not fit."""
        config = self.raw.config
        high, wide, p = config.sample_height, config.sample_width, config.patch_size
        for _, h, w in layout.grid:
            if (h, w) != (high // p, wide // p):
                raise UserError(
                    f"this CogVideoX has learned positions for latents of {high} x {wide} alone, and got {h * p} x "
                    f"{w * p}: give clips of that size"
                )
        if text_layout.max_len > config.max_text_seq_length:
            raise UserError(
                f"a prompt of {text_layout.max_len} tokens, but this CogVideoX has learned positions for "
                f"{config.max_text_seq_length}: shorten it"
            )
        return (config.sample_frames - 1) // config.temporal_compression_ratio + 1, high // p, wide // p


def cogvideox_block(self: nn.Module, x: Tensor, time: Tensor, rows: Tensor, context: JointContext) -> Tensor:
    """`CogVideoXBlock`: x [T+S,D], time [N,E], rows [T+S] -> [T+S,D]."""
    y, gate = _norm(self.norm1, x, time, rows)
    x = gated_residual(x, _attention(self.attn1, y, context), gate, rows)
    y, gate = _norm(self.norm2, x, time, rows)
    return gated_residual(x, self.ff(y), gate, rows)


def _norm(norm: nn.Module, x: Tensor, time: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`CogVideoXLayerNormZero`: x [T+S,D] modulated, and the gates [2N,D]."""
    of_both = norm.linear(norm.silu(time)).unflatten(-1, (2, 3, -1))  # [N,2,3,D]: of video and of text
    shift, scale, gate = of_both.transpose(0, 1).flatten(0, 1).unbind(1)  # [2N,D] each
    return norm_modulated(norm.norm, x, shift, scale, rows), gate


def _attention(attention: nn.Module, x: Tensor, context: JointContext) -> Tensor:
    q, k, v = (heads_of(of(x), attention.heads) for of in (attention.to_q, attention.to_k, attention.to_v))
    if attention.norm_q is not None:
        q, k = attention.norm_q(q), attention.norm_k(k)
    if context.rotary is not None:
        q, k = turn_pairs(q, *context.rotary), turn_pairs(k, *context.rotary)
    return attention.to_out[0](context.attend(q, k, v).flatten(-2))


# --- position tables: from coordinates along each axis, gathered for each token ---


def by_axis(layout: Packed, axes_of: Callable[[Grid], Axes], features: Sequence[Callable[[Tensor], Tensor]]) -> list:
    """For each axis (frames, rows, columns): the features [n, ...] of its coordinates [n], gathered to [T, ...]."""
    device = layout.position.device
    axes = [axes_of(grid) for grid in layout.grid]
    parts = []
    for i, make in enumerate(features):
        of_samples = [each[i] for each in axes]
        begin = to_device([0, *accumulate(len(c) for c in of_samples)][:-1], device)
        index = begin.index_select(0, layout.segment) + layout.position[:, i]
        parts.append(make(torch.cat(of_samples).to(device, non_blocking=True)).index_select(0, index))
    return parts


def sine_positions(layout: Packed, config: object) -> Tensor:
    """[T,D]: sines and cosines of the frame, the column and the row, in a quarter and two times three eighths of D."""
    width = config.num_attention_heads * config.attention_head_dim
    space, time = config.spatial_interpolation_scale, config.temporal_interpolation_scale

    def axes(grid: Grid) -> Axes:
        return tuple(
            torch.arange(n, dtype=torch.float32) / by for n, by in zip(grid, (time, space, space), strict=True)
        )

    def features(size: int) -> Callable[[Tensor], Tensor]:
        def make(coordinate: Tensor) -> Tensor:
            angle = coordinate[:, None] * _frequencies(size, coordinate.device)
            return torch.cat([angle.sin(), angle.cos()], dim=-1)  # [n,size]

        return make

    in_space = 3 * width // 8
    frame, row, column = by_axis(layout, axes, [features(size) for size in (width // 4, in_space, in_space)])
    return torch.cat([frame, column, row], dim=-1)


def rotary_positions(layout: Packed, config: object) -> Rotary:
    """Tables [T,1,K]: a quarter of K turns with the frame, three eighths with the row and with the column.

    1.5 counts rows and columns. 1.0 spreads them over the largest part of the size that it was trained on with the
    clip's aspect, in the middle (`_prepare_rotary_positional_embeddings` of its pipelines).
    """
    width = config.attention_head_dim

    def axes(grid: Grid) -> Axes:
        if config.patch_size_t is not None:
            return tuple(torch.arange(n, dtype=torch.float32) for n in grid)
        base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
        (top, bottom), (left, right) = _middle(grid[1:], base)
        frames, h, w = grid
        spread = torch.linspace(top, bottom * (h - 1) / h, h), torch.linspace(left, right * (w - 1) / w, w)
        return torch.arange(frames, dtype=torch.float32), *spread

    def features(size: int) -> Callable[[Tensor], Tensor]:
        def make(coordinate: Tensor) -> Tensor:
            angle = coordinate[:, None] * _frequencies(size, coordinate.device)
            return torch.stack([angle.cos(), angle.sin()], dim=1).repeat_interleave(2, dim=-1)  # [n,2,size]

        return make

    in_space = width // 8 * 3
    parts = by_axis(layout, axes, [features(size) for size in (width // 4, in_space, in_space)])
    cos, sin = torch.cat(parts, dim=-1)[:, :, None].unbind(1)
    return cos, sin


def _frequencies(size: int, device: torch.device) -> Tensor:
    """10000^(-2 i / size), i from 0 to before size / 2 (Vaswani et al. 2017, section 3.5)."""
    return 10_000.0 ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def _middle(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, end) of the rows and of the columns of `base` that a grid of another size covers, scaled to fit."""
    (h, w), (rows, columns) = grid, base
    tall = h / w > rows / columns
    size = (rows, round(rows / h * w)) if tall else (round(columns / w * h), columns)
    begin = tuple(round((whole - part) / 2.0) for whole, part in zip(base, size, strict=True))
    return tuple((b, b + part) for b, part in zip(begin, size, strict=True))


# --- recipes ---


OLDER = dict(frames=49, height=480, width=720, fps=8.0)
NEWER = dict(frames=81, height=768, width=1360, fps=16.0)  # 1.5


def _recipe(task: str, snr_shift_scale: float, sizes: Mapping[str, Any] = OLDER) -> Recipe:
    """Noise path and text as in Yang et al. 2024 and the published scheduler_config.json; sampling as its pipelines."""
    return Recipe(
        task=task,
        scheduler={
            "path": "ddpm",
            "target": "v",
            "betas": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": STEPS,
            "zero_terminal_snr": True,
            "snr_shift_scale": snr_shift_scale,
        },
        timesteps={"kind": "uniform"},
        text=(Reading(tokens=226, cut=True, pad="encoded"),),
        image="cogvideox" if task == "i2v" else None,
        **sizes,
        steps=50,
        guidance=6.0,
    )


RECIPE: dict[str, Recipe] = {
    "2b": _recipe("t2v", 3.0),
    "5b": _recipe("t2v", 1.0),
    "5b-i2v": _recipe("i2v", 1.0),
    "1.5": _recipe("t2v", 1.0, NEWER),
    "1.5-i2v": _recipe("i2v", 1.0, NEWER),
}


def recipe_of(index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """That of a repository, by its index and the configuration of its transformer."""
    return RECIPE[variant(config)]


def variant(config: Mapping[str, Any]) -> str:
    """The key in `RECIPE` of a transformer's configuration."""
    size = "1.5" if config.get("patch_size_t") else "5b" if config.get("use_rotary_positional_embeddings") else "2b"
    return f"{size}-i2v" if config.get("in_channels", 16) != config.get("out_channels", 16) else size


RECIPES = {"CogVideoXPipeline": recipe_of, "CogVideoXImageToVideoPipeline": recipe_of}
