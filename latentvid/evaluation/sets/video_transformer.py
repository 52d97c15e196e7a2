"""Video transformers whose features distances of sets are made of: VideoMAE (Tong et al. 2022; Wang et al. 2023) and
V-JEPA (Bardes et al. 2024), with the names of their published weights.

Both cut a clip into tubes of frames x height x width pixels, add a position to each, and run pre-norm blocks.
Axes: B clips, C channels, F H W frames/height/width, T tubes, D width, A heads, K head width.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from ...errors import UserError, brief

SIDE = 224  # pixels
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # by width, of the published sizes
EPS = 1e-6  # of the transformers' norms; V-JEPA's pooler has torch's own
Weights = Mapping[str, Tensor]


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nnf.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B,T,D]
        q, k, v = rearrange(self.qkv(x), "B T (three A K) -> three B A T K", three=3, A=self.heads)
        return self.proj(rearrange(nnf.scaled_dot_product_attention(q, k, v), "B A T K -> B T (A K)"))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tubes(nn.Module):
    """[B,3,F,H,W] -> [B,T,D]."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.size = tuple(kernel.shape[2:])
        self.proj = nn.Conv3d(kernel.shape[1], kernel.shape[0], self.size, stride=self.size)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "B D F H W -> B (F H W) D")


class VideoTransformer(nn.Module):
    """[B,3,F,224,224] with F = `frames` -> tubes [B,T,D]; of the sizes that the weights have."""

    def __init__(self, weights: Weights, tubes: int) -> None:
        super().__init__()
        kernel, hidden = weights["patch_embed.proj.weight"], weights["blocks.0.mlp.fc1.weight"].shape[0]
        self.width = kernel.shape[0]
        if self.width not in HEADS:
            raise ValueError(f"a width of {self.width}, not one of {', '.join(map(str, HEADS))}, is")
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.patch_embed = Tubes(kernel)
        self.blocks = nn.ModuleList(Block(self.width, hidden, HEADS[self.width]) for _ in range(depth))
        time, high, wide = self.patch_embed.size
        self.frames = time * tubes // ((SIDE // high) * (SIDE // wide))

    def train(self, mode: bool = True) -> VideoTransformer:
        return super().train(False)

    def tubes(self, x: Tensor, position: Tensor) -> Tensor:
        x = self.patch_embed(x) + position
        for block in self.blocks:
            x = block(x)
        return x


class VideoMae(VideoTransformer):
    """[B,3,F,224,224] in [0,1] -> [B,D]: the norm of the mean over tubes, as the fine-tuned network feeds its head."""

    FRAMES = 16  # its positions are of so many, and no part of its weights

    def __init__(self, weights: Weights) -> None:
        time, high, wide = weights["patch_embed.proj.weight"].shape[2:]
        count = self.FRAMES // time * (SIDE // high) * (SIDE // wide)
        super().__init__(weights, count)
        self.fc_norm = nn.LayerNorm(self.width, EPS)
        self.register_buffer("position", sinusoids(count, self.width), persistent=False)
        self.load_state_dict(_joined({name: value for name, value in weights.items() if not name.startswith("head.")}))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_norm(self.tubes(x, self.position).mean(1))


def sinusoids(count: int, width: int) -> Tensor:
    """[T,D]: sines at even and cosines at odd places of Vaswani et al. 2017, in float64 and then float32."""
    rates = 10_000 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def _joined(weights: Weights) -> dict[str, Tensor]:
    """VideoMAE's biases of queries and values as one of all; keys have none."""
    found = {name: value for name, value in weights.items() if not name.endswith(("q_bias", "v_bias"))}
    for name in weights:
        if name.endswith("q_bias"):
            q, v = weights[name], weights[name.replace("q_bias", "v_bias")]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(v), v])
    return found


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:  # [B,1,D], [B,T,D] -> [B,1,D]
        q = rearrange(self.q(query), "B T (A K) -> B A T K", A=self.heads)
        k, v = rearrange(self.kv(x), "B T (two A K) -> two B A T K", two=2, A=self.heads)
        return self.proj(rearrange(nnf.scaled_dot_product_attention(q, k, v), "B A T K -> B T (A K)"))


class Pooler(nn.Module):
    """V-JEPA's attentive probe without its head: one query looks at all tubes. [B,T,D] -> [B,D]."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        parts = {"norm1": nn.LayerNorm(width), "xattn": CrossAttention(width, heads)}
        parts |= {"norm2": nn.LayerNorm(width), "mlp": Mlp(width, hidden)}
        self.cross_attention_block = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        block, query = self.cross_attention_block, self.query_tokens.expand(len(x), -1, -1)
        query = query + block["xattn"](query, block["norm1"](x))
        return (query + block["mlp"](block["norm2"](query)))[:, 0]


class VJepa(VideoTransformer):
    """[B,3,F,224,224], normalised by ImageNet's colours -> [B,D]: what the probe of Something-Something v2 pools."""

    def __init__(self, encoder: Weights, probe: Weights) -> None:
        super().__init__(encoder, encoder["pos_embed"].shape[1])
        self.norm = nn.LayerNorm(self.width, EPS)
        self.pos_embed = nn.Parameter(torch.zeros_like(encoder["pos_embed"]))
        self.load_state_dict(dict(encoder))
        hidden = probe["cross_attention_block.mlp.fc1.weight"].shape[0]
        self.pooler = Pooler(self.width, hidden, HEADS[self.width])
        self.pooler.load_state_dict(dict(probe))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.pooler(self.norm(self.tubes(x, self.pos_embed)))


def read_weights(file: Path, *keys: str) -> dict[str, Tensor]:
    """The tensors under the first of `keys` that the file has (or all of it), without the wrappers' names.

    Nothing but tensors and plain values is unpickled. Raises UserError where the file is no such thing.
    """
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read as weights: {brief(error)}") from error
    found = next((found[key] for key in keys if isinstance(found, Mapping) and key in found), found)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} does not hold weights under {', '.join(keys)}: give the file as it is published")
    return {name.replace("module.", "").replace("backbone.", ""): value for name, value in found.items()}
