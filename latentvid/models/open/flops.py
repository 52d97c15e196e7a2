"""Floating-point operations of open transformers, counted once a configuration on passes without storage.

What a packed pass computes is a sum over its samples: a number for each sample, each latent frame, each video and text
token, and each pair of tokens that attend to each other. These numbers are found from a few small samples at two
depths; any pack of any depth is their sum. A U-Net attends to the positions of a frame, and to the frames of a
position; of heights and widths that its levels do not divide the sum is near. Axes: N samples, R latent frames, T video
tokens, S text tokens, f h w of a sample's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...attention import BACKENDS
from ...packing import Grid, Packed, Reference, Shape, shapes_of
from .backbone import Conditions, OpenBackbone, patch_size
from .registry import UNETS, packed

DEPTHS = ("num_layers", "num_single_layers")  # of all classes: blocks of a kind, which cost the same
_SAMPLES: tuple[tuple[Grid, int], ...] = (  # token grid and text tokens; as many as `_sizes` has numbers
    ((1, 1, 1), 1),
    ((9, 2, 2), 2),
    ((1, 12, 10), 3),
    ((2, 8, 6), 64),
    ((2, 2, 3), 64),
    ((1, 2, 2), 20),
    ((4, 8, 8), 12),
)
_SAMPLES_OF_UNETS: tuple[tuple[Grid, int], ...] = (  # the same; heights and widths are times that of the last level
    ((1, 1, 1), 1),
    ((2, 1, 1), 2),
    ((1, 2, 1), 5),
    ((2, 2, 1), 3),
    ((1, 3, 2), 2),
    ((2, 2, 2), 9),
    ((1, 1, 1), 7),
)


def open_flops(
    model: OpenBackbone,
    grids: Sequence[Grid],
    text_lengths: Sequence[float],
    references: Sequence[Sequence[Reference]] = (),
    changes: Mapping[str, int] | None = None,
) -> int:
    """Forward FLOPs of a pack; means serve as text lengths for an estimate. What is in the model beside the class's own
    does not count. changes: of the configuration.

    grids: token grid (frames, rows, columns) of each sample. text_lengths: its text tokens. references: of each; empty:
    none has any.
    """
    config = {key: value for key, value in model.config.items() if not key.startswith("_")} | dict(changes or {})
    numbers = _numbers(type(model.raw), json.dumps(config, sort_keys=True))
    sizes = _sizes_in_unets if type(model.raw).__name__ in UNETS else _sizes
    return round(float(sizes(shapes_of(grids, references), text_lengths) @ numbers))


def _sizes(shapes: Sequence[Shape], text_lengths: Sequence[float]) -> np.ndarray:
    """N, R, T, S, and the sums over the samples of T^2, T S and S^2."""
    tokens, words = np.array([shape.tokens for shape in shapes], float), np.array(text_lengths, float)
    frames = sum(shape.frames for shape in shapes)
    pairs = [(tokens**2).sum(), (tokens * words).sum(), (words**2).sum()]
    return np.array([len(shapes), frames, tokens.sum(), words.sum(), *pairs])


def _sizes_in_unets(shapes: Sequence[Shape], text_lengths: Sequence[float]) -> np.ndarray:
    """N, R, T, and the sums over the samples of f (h w)^2, h w f^2, f S and T S: each frame reads the text anew."""
    f, h, w = np.array([shape.grid for shape in shapes], float).T
    area = h * w
    words, tokens = np.array(text_lengths, float), f * area
    sums = [tokens, f * area**2, area * f**2, f * words, tokens * words]
    return np.array([len(shapes), f.sum(), *(each.sum() for each in sums)])


def flops_of(cls: type[ModelMixin], config: Mapping[str, Any], grid: Grid, words: int) -> int:
    """Forward FLOPs of one sample alone, without what `open_flops` finds for all others."""
    return round(float(_at_depth(cls, config, [(grid, words)])[0]))


@lru_cache(maxsize=64)
def _numbers(cls: type[ModelMixin], config: str) -> np.ndarray:
    """FLOPs for one of each of `_sizes`."""
    arguments, samples, sizes, count = json.loads(config), _SAMPLES, _sizes, _at_depth
    if cls.__name__ in UNETS:
        side = 2 ** (len(arguments["block_out_channels"]) - 1)
        samples = [((f, h * side, w * side), words) for (f, h, w), words in _SAMPLES_OF_UNETS]
        sizes, count = _sizes_in_unets, _in_unet
    rows = np.stack([sizes([Shape(grid)], [words]) for grid, words in samples])
    return np.linalg.solve(rows, count(cls, arguments, samples))


def _in_unet(cls: type[ModelMixin], config: Mapping[str, Any], samples: Sequence[tuple[Grid, int]]) -> np.ndarray:
    """FLOPs of each sample."""
    found = []
    with torch.device("meta"), torch.no_grad():
        model = packed(cls(**config)).to("meta")  # some parameters of SVD's class are made on the CPU whatever is said
        for grid, words in samples:
            latents = torch.empty(1, model.latent_channels + model.channels, *grid)
            given = blank_conditions(model, Packed.of([grid])).map(lambda x: x.to("meta"))
            with FlopCounterMode(display=False) as counter:
                model.run(latents, torch.empty(1), torch.empty(1, words, model.text_width), None, given)
            found.append(counter.get_total_flops())
    return np.array(found, float)


def _at_depth(cls: type[ModelMixin], config: Mapping[str, Any], samples: Sequence[tuple[Grid, int]]) -> np.ndarray:
    """FLOPs of each sample, from one block of each kind and from two."""
    depths = {key: config[key] for key in DEPTHS if config.get(key)}
    shallow = {**config, **dict.fromkeys(depths, 1)}
    base = _counted(cls, shallow, samples)
    found = base.copy()
    for key, depth in depths.items():
        if depth > 1:
            found += (depth - 1) * (_counted(cls, {**shallow, key: 2}, samples) - base)
    return found


def _counted(cls: type[ModelMixin], config: Mapping[str, Any], samples: Sequence[tuple[Grid, int]]) -> np.ndarray:
    """FLOPs of each sample."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = packed(cls(**config))
    found = []
    with _sample_by_sample():
        for grid, words in samples:
            arguments, conditions = blank_inputs(model, [grid], [words])
            with mode, torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(*arguments, **conditions)
            found.append(counter.get_total_flops())
    return np.array(found, float)


@contextmanager
def _sample_by_sample() -> Iterator[None]:
    """Inside, attention is that of `sdpa`, which is counted without reading a tensor."""
    before = dict(BACKENDS)
    BACKENDS.update(dict.fromkeys(BACKENDS, BACKENDS["sdpa"]))
    try:
        yield
    finally:
        BACKENDS.update(before)


def blank_inputs(
    model: nn.Module, grids: Sequence[Grid], text_lengths: Sequence[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a backbone's pass over a pack reads, where its numbers do not matter: arguments of `forward`."""
    layout, words = Packed.of(grids), Packed.of_lengths(text_lengths)
    tokens = torch.zeros(layout.tokens, model.latent_channels * patch_size(model.patch))
    text, level = torch.zeros(words.tokens, model.text_width), torch.ones(layout.frames)
    given = {"conditions": blank_conditions(model, layout)} if isinstance(model, OpenBackbone) else {}
    return (tokens, level, text, layout, words), given


def blank_conditions(model: OpenBackbone, layout: Packed) -> Conditions:
    """The conditions without which the model's class does not work, of zeros."""
    n, given = layout.segments, {}
    if model.channels:
        given["channels"] = torch.zeros(layout.tokens, model.channels * patch_size(model.patch))
    if model.family == "wan" and model.config.image_dim:
        states = model.config.pos_embed_seq_len if model.of_two_images else 257  # of CLIP
        given["image"] = torch.zeros(n, states, model.config.image_dim)
    if model.family == "svd":
        given["image"], given["pooled"] = torch.zeros(n, 1, model.image_width), torch.zeros(n, 3)
    if width := model.pooled_width:
        given["pooled"] = torch.zeros(n, width)
    if model.takes_guidance:
        given["guidance"] = torch.ones(n)
    return Conditions(**given)
