"""What a transformer reads beside tokens, noise levels and text: what is known of a clip, or a smaller one of it, as
further channels.

Axes: T tokens in a pack, C latent channels, p q of a patch, P = C p q token features, N samples, S text tokens,
f h w of a latent, F H W frames, height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

NO_MOTION = -1.0  # motion strength that is not known


@dataclass(frozen=True, eq=False)
class Conditions:
    """What some models read beside tokens, noise levels and text. None: not given.

    channels: [T,P'] further input features of each token, after the noised ones: masks and latents of given frames, or
        of a smaller clip.
    pooled: [N,Dp] one state a prompt, of a second text encoder.
    second: [S',D'] token states of a second text encoder; `second_lengths` has the tokens of each sample, 0 among them.
    image: [N,I,Di] states of an image encoder; where `has_image` is given, of the samples alone that it is true of.
    guidance: [N] guidance scale that the model is told, 1 to 10 or so.
    image_noise: [N] level, or deviation, of noise in the image that the model is told.
    motion: [N] motion strength that the model is told, from 0 up; `NO_MOTION` where it is not known.
    whole_extra: where the layout is a piece of a pack, how many tokens of `second` and `image` each sample of the whole
        pack has.
    """

    channels: Tensor | None = None
    pooled: Tensor | None = None
    second: Tensor | None = None
    second_lengths: tuple[int, ...] = ()
    image: Tensor | None = None
    has_image: tuple[bool, ...] = ()
    guidance: Tensor | None = None
    motion: Tensor | None = None
    image_noise: Tensor | None = None
    whole_extra: tuple[int, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})

    def to(self, *args: Any, **kwargs: Any) -> Conditions:
        return self.map(lambda x: x.to(*args, **kwargs))


def known_channels(clean: Tensor, known: Tensor) -> Tensor:
    """What is known of a clip, for `Conditions.channels`: a mask that is 1 at known latent positions, and the latents
    there, 0 elsewhere: [T, (1 + C) p q], in the order of the channels that Wan's models read after the noised ones.

    clean: [T, C p q]. known: bool [T, p q], latent positions of each token.
    """
    mask = known.to(clean.dtype)
    latents = clean.unflatten(-1, (-1, known.shape[-1])) * mask[:, None]
    return torch.cat([mask, latents.flatten(1)], dim=-1)


def low_channels(low: Tensor, level: Tensor, grid: Sequence[int]) -> Tensor:
    """What is seen of a smaller clip, for `Conditions.channels`: how much of it is no noise, 1 - level, and its latents
    in the size of the clip that is made: [1 + C, f,h,w]. Where there is none all of it is 0.

    low: [C,f',h',w'], with noise of that level []. grid: (f,h,w).
    """
    return torch.cat([(1 - level.to(low)).expand(1, *grid), resized(low, grid)])


def resized(latent: Tensor, grid: Sequence[int]) -> Tensor:
    """[C,f',h',w'] -> [C,f,h,w], linear between neighbours. The places are those of aligned references (packing.py):
    middles of rows and columns keep theirs in the picture, the first frame is at the first, the last at the last."""
    frames, *size = grid
    x = F.interpolate(rearrange(latent.float(), "c f h w -> f c h w"), size=size, mode="bilinear")
    x = F.interpolate(rearrange(x, "f c h w -> (h w) c f"), size=frames, mode="linear", align_corners=True)
    return rearrange(x, "(h w) c f -> c f h w", h=size[0])


def known_latents(keep: Tensor, temporal: int, spatial: int) -> Tensor:
    """Pixels bool [1 + k * temporal,H,W] -> bool [f,h,w]: positions all of whose pixels are kept."""
    keep = torch.cat([repeat(keep[:1], "1 h w -> t h w", t=temporal), keep[1:]])  # the first stands for one frame
    return rearrange(keep, "(f t) (h p) (w q) -> f h w (t p q)", t=temporal, p=spatial, q=spatial).all(-1)
