"""Floating-point operations of the models, counted from shapes, and what a device can do of them in a second.

One multiply-add is 2. Matrix products, convolutions and attention count; what is elementwise does not (its share is
small, and no datasheet counts it). Axes: T tokens, N segments, R latent frames, S text tokens, D width.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..packing import Grid, Reference, Shape, patch_size, shapes_of
from ..precision import Computed, dtype_of
from .attention_context import attended_pairs
from .interchange import Vae, arguments_of, build_vae
from .open.backbone import OpenBackbone
from .open.flops import DEPTHS, open_flops
from .temporal import temporal_count
from .transformer import FPS_FEATURES, GUIDANCE_FEATURES, MOTION_FEATURES, TIMESTEP_FEATURES, VideoDiT

# a training step over a forward pass: the backward pass makes two products for each of the forward's. Activations
# computed again under gradient checkpointing do not count: MFU asks how fast the model trains (Chowdhery et al. 2022)
TRAINING = 3


def dit_flops(
    config: Mapping[str, Any],
    grids: Sequence[Grid],
    text_lengths: Sequence[float],
    references: Sequence[Sequence[Reference]] = (),
) -> int:
    """Forward FLOPs of a `VideoDiT` with this config for one pack, without cached frames.

    In temporal blocks clips count alone, as pictures pass them unchanged.

    Args:
        config: the model's config.
        grids: token grid (frames, rows, columns) of each of the N segments.
        text_lengths: text tokens of each segment; means serve for an estimate.
        references: of each segment; empty: none has any.
    """
    shapes = shapes_of(grids, references)
    width, text_width = config["width"], config["text_width"]
    features, hidden = config["latent_channels"] * config["patch"] ** 2, int(config["mlp_ratio"] * width)
    lengths = [shape.tokens for shape in shapes]
    tokens, text, rows = sum(lengths), sum(text_lengths), sum(shape.frames for shape in shapes)
    square = width * width
    attention, depth = config["attention"], config["depth"]
    blocks = depth * _block_flops(width, hidden, shapes, text_lengths)
    blocks += sum(4 * width * attended_pairs(attention, depth, *shape) for shape in shapes)
    if temporal := temporal_count(attention, depth, config.get("temporal_every", 1)):
        clips = [(shape, n) for shape, n in zip(shapes, text_lengths, strict=True) if shape.grid[0] > 1]
        blocks += temporal * _block_flops(width, hidden, [shape for shape, _ in clips], [n for _, n in clips])
        blocks += sum(4 * width * attended_pairs(attention, 0, *shape, temporal=temporal) for shape, _ in clips)
    outside = tokens * 4 * features * width + rows * 4 * square  # tokens in and out, last modulation
    outside += rows * 2 * width * (TIMESTEP_FEATURES + width)
    outside += (text + len(lengths)) * 2 * width * (text_width + width)  # states, and their means
    if config.get("condition_channels", "none") != "none":
        outside += tokens * 2 * (features + config["patch"] ** 2) * width
    if config.get("fps_condition"):
        outside += len(grids) * 2 * width * (FPS_FEATURES + width)
    if config.get("guidance_condition"):
        outside += len(grids) * 2 * width * (GUIDANCE_FEATURES + width)
    if config.get("motion_condition"):
        outside += len(grids) * 2 * width * (MOTION_FEATURES + width)
    return round(blocks + outside)


def _block_flops(width: int, hidden: int, shapes: Sequence[Shape], text_lengths: Sequence[float]) -> float:
    """Of a block for one pack, but for the products of self-attention."""
    tokens, rows, square = sum(shape.tokens for shape in shapes), sum(shape.frames for shape in shapes), width * width
    block = tokens * (8 * square + 4 * square + 6 * width * hidden)  # self-attention, cross query and out, SwiGLU
    block += sum(text_lengths) * 4 * square + rows * 12 * square  # cross key and value, modulation
    return block + sum(4 * width * shape.tokens * s for shape, s in zip(shapes, text_lengths, strict=True))  # cross


def pairs_a_block(model: VideoDiT | OpenBackbone, shape: Shape) -> float:
    """(Query, key) pairs of self-attention of one sample, the mean over a backbone's blocks, 0 where it has none;
    attention of published models joins a whole sample."""
    kind, depth = getattr(model.config, "attention", "full"), len(model.blocks)
    temporal = len(getattr(model, "temporal", ()))
    return attended_pairs(kind, depth, *shape, temporal=temporal) / max(1, depth + temporal)


def backbone_flops(
    model: VideoDiT | OpenBackbone,
    grids: Sequence[Grid],
    text_lengths: Sequence[float],
    references: Sequence[Sequence[Reference]] = (),
) -> int:
    """Forward FLOPs of a backbone for one pack: token grids, text tokens and references of its segments, as in
    `dit_flops`.

    Control branches count, as if all of them acted; adapters in a published model do not.
    """

    def count(**changes: int) -> int:
        """Of the model without its branches, with other depths."""
        if isinstance(model, VideoDiT):
            return dit_flops({**model.config, **changes}, grids, text_lengths, references)
        return open_flops(model, grids, text_lengths, references, changes)

    whole = count()
    depths = {key: model.config[key] for key in ("depth", *DEPTHS) if model.config.get(key)}
    alone = {"temporal_every": 10**6} if isinstance(model, VideoDiT) else {}  # one more block brings no temporal one
    block = {
        key: count(**alone, **{key: depth + 1}) - count(**alone) for key, depth in depths.items() if len(model.controls)
    }
    kinds = [key for key, depth in depths.items() for _ in range(depth)]  # of each block
    tokens, width = sum(shape.tokens for shape in shapes_of(grids, references)), model.width
    features = model.latent_channels * patch_size(model.patch)
    for branch in model.controls:
        copied = kinds[:: branch.every]
        maps = 2 * width * (features + len(copied) * width)
        whole += sum(block[kind] for kind in copied) + tokens * maps
    return whole


class GridFlops(NamedTuple):
    """Forward FLOPs for one sample: of the `model` that is trained, and of `encode`, the frozen VAE before it."""

    model: int
    encode: int


class VaeFlops(NamedTuple):
    """FLOPs of one clip: `encode` alone, and a whole `forward` pass (encode and decode)."""

    encode: int
    forward: int


def vae_flops(vae: Vae, shape: Sequence[int]) -> VaeFlops:
    """FLOPs of such a VAE, ours or one of diffusers', for one clip of `shape` (F,H,W).

    Counted on a model without storage, once a shape.
    """
    return _vae_flops(json.dumps(arguments_of(vae), sort_keys=True), tuple(map(int, shape)))


@lru_cache(maxsize=65536)
def _vae_flops(config: str, shape: tuple[int, ...]) -> VaeFlops:
    model = _bare_vae(config)
    video = torch.empty(1, 3, *shape, device="meta")
    noise = torch.empty(1, model.latent_channels, *model.latent_grid(*shape), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode(video)
        encode = counter.get_total_flops()
        model(video, noise)
    return VaeFlops(encode, counter.get_total_flops() - encode)


@lru_cache(maxsize=4)
def _bare_vae(arguments: str) -> Vae:
    with torch.device("meta"):  # some parameters of SVD's class are made on the CPU whatever is said
        return build_vae(json.loads(arguments), "model").to("meta")


# Dense TFLOP/s by NVIDIA's datasheets: (bf16 with fp32 sums, fp32 without TF32); None where the device has no such
# units. The names are CUDA's and match whole: a laptop's chip or a MIG slice is another device.
_DATASHEET: dict[str, tuple[float | None, float]] = {
    r"V100-SXM2-\d+GB": (None, 15.7),
    r"V100-PCIE-\d+GB": (None, 14),
    r"T4": (None, 8.1),
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": (312, 19.5),
    r"A10": (125, 31.2),
    r"A40": (149.7, 37.4),
    r"RTX A6000": (154.8, 38.7),
    r"L4": (121, 30.3),
    r"L40": (181, 90.5),
    r"L40S": (362, 91.6),
    r"RTX 3090": (71, 35.6),
    r"RTX 4090": (165.2, 82.6),
    r"H100 PCIe|H100 80GB HBM2e": (756, 51),
    r"H100 NVL|H200 NVL": (835, 60),
    r"H100 \d+GB HBM3|H200|GH200 .*": (989, 67),
    r"B200": (2250, 75),
}


def peak_flops(device: torch.device, precision: Computed) -> tuple[float, str]:
    """FLOP/s that `device` can do in `precision` ("bf16", or "no": fp32), and where the figure is from.

    By the datasheet (dense, no TF32) for the GPUs of the table; for any other device, CPUs included, the rate that
    large matrix products reach there now, with all of torch's threads. The random state stays as it is.
    """
    column = ("bf16", "no").index(precision)
    if device.type == "cuda":
        known = _datasheet(torch.cuda.get_device_name(device), column)
        if known is not None:
            return known, f"datasheet of {torch.cuda.get_device_name(device)}, {_named(precision)}"
    n = torch.get_num_threads()
    threads = f", {n} thread{'s' * (n > 1)}" if device.type == "cpu" else ""
    return _measured(device, dtype_of(precision)), f"measured on this {device.type}{threads}, {_named(precision)}"


def _named(precision: str) -> str:
    return "fp32" if precision == "no" else precision


def _datasheet(name: str, column: int) -> float | None:
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    for pattern, rates in _DATASHEET.items():
        if re.fullmatch(pattern, short):
            return None if rates[column] is None else rates[column] * 1e12
    return None


def _measured(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The best rate of products of square matrices over about so many seconds."""
    side = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # reads one number, so that the product is done
        return time.perf_counter() - start

    product()  # the first is slower
    best, until = product(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, product())
    return 2 * side**3 / best
