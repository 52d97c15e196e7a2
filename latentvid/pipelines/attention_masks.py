"""Where a clip shows what a word names, by the cross-attention of the model: masks for local edits.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3]; T tokens of a sample, S of its prompt, A heads, K head
width; f h w are latent frames, rows and columns of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as nnf
from einops import rearrange, repeat
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..errors import UserError
from ..models.layers import CrossAttention
from ..models.transformer import VideoDiT
from ..packing import token_grid
from .latent_video import LatentVideoPipeline
from .local import encode_whole, noised
from .sampling import Request, Sampling

LEVELS = (0.3, 0.5, 0.7)  # noise levels at which the model looks; where attention says what is where, not yet how
THRESHOLD = 0.3  # of the largest (Prompt-to-Prompt, Hertz et al. 2023, section 3, "local editing")


def tokens_of_words(pipeline: LatentVideoPipeline, prompt: str, words: str) -> list[int]:
    """Numbers of the prompt's tokens that these words of it are made of. Raises UserError where it has none such."""
    found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(words.strip())}(?!\w)", prompt, re.IGNORECASE)]
    if not words.strip() or not found:
        raise UserError(f"{words!r} is no word of {prompt!r}, whose attention would show where it is: give one that is")
    spans = pipeline.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (low, high) in enumerate(spans) if any(low < b and high > a for a, b in found)]


@torch.no_grad()
def attention_mask(
    pipeline: LatentVideoPipeline,
    clip: Tensor,
    prompt: str,
    words: str,
    *,
    threshold: float = THRESHOLD,
    fps: float | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Tensor:
    """bool [F,H,W], True where the attention to `words`, which are part of a prompt for the clip as it is, is above
    `threshold` of the way from its least to its largest: the mean over noise levels, layers and heads.

    Raises UserError for models without cross-attention of their own, and for words that the prompt has not.
    """
    if not isinstance(pipeline.transformer, VideoDiT):
        raise UserError("masks by attention need a VideoDiT's cross-attention, which this model has not: give --mask")
    chosen = tokens_of_words(pipeline, prompt, words)
    sampling = replace(sampling or Sampling(), guidance=Guidance(), progress=False)
    (latent,) = encode_whole(pipeline, [clip], sampling)
    grid = tuple(latent.shape[1:])
    total = torch.zeros(token_grid(grid, pipeline.transformer.patch))
    for number, level in enumerate(LEVELS):
        start = noised(pipeline, latent, seed + number, level)
        request = Request(prompt=prompt, grid=grid, fps=pipeline.rate(fps, grid), seed=seed, start=start, level=level)
        with pipeline._autocast(sampling.precision), recorded(pipeline.transformer) as seen:
            batch, predict = pipeline._prepare([request], sampling)
            predict(batch.z, batch.levels[0])
        total += sum(shares(q, k, chosen) for q, k in seen).reshape(total.shape)
    low, high = total.min(), total.max()
    shown = (total - low) / (high - low).clamp_min(1e-12)
    size = (grid[0], *(side * pipeline.codec.spatial_stride for side in grid[1:]))
    shown = nnf.interpolate(shown[None, None], size=size, mode="trilinear")[0, 0]  # rows and columns alone
    frames = torch.cat([shown[:1], repeat(shown[1:], "f H W -> (f t) H W", t=pipeline.codec.temporal_stride)])
    return frames[: len(clip)] > threshold


def shares(q: Tensor, k: Tensor, chosen: Sequence[int]) -> Tensor:
    """[T]: how much of the attention of q [T,A,K] to k [S,A,K] goes to the chosen keys; the mean over heads."""
    q, k = (rearrange(x.float(), "n A K -> A n K") for x in (q, k))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # [A,T,S]
    return weights[..., list(chosen)].sum(-1).mean(0).cpu()


@contextmanager
def recorded(model: VideoDiT) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries [T,A,K] and keys [S,A,K] of each block's cross-attention in the passes within."""
    seen, hooks = [], []

    def keep(module: CrossAttention, given: tuple[Any, ...], _: Tensor) -> None:
        x, text, *_ = given
        k = module.keys_values(text)[0] if isinstance(text, Tensor) else text[0]
        seen.append((module.queries(x), k))

    try:
        hooks += [block.cross.register_forward_hook(keep) for block in model.blocks]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
