"""ViCLIP (Wang et al. 2023, InternVid): CLIP of whole clips and texts, and VBench's overall consistency by it.

Names of the weights are the published file's. Axes: F frames, h w height and width in patches, S text tokens, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...data.cache.latents import module_fingerprint
from ..prompts.clip_similarity import open_clip
from ..rows import Clip
from .files import fill, network_file, read_weights
from .quality import clip_pictures

FILE = "ViClip-InternVid-10M-FLT.pth"
FRAMES, TOKENS = 8, 32


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGelu(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential()
        for name, part in parts.items():
            self.mlp.add_module(name, part)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, out: int, side: int = 224, patch: int = 14) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) * width**-0.5)
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, FRAMES, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, heads)
        self.proj = nn.Parameter(torch.randn(width, out) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[F,3,H,W] -> [D]."""
        x = rearrange(self.conv1(rearrange(x, "F C H W -> 1 C F H W")), "1 D F h w -> F (h w) D")
        x = x + self.positional_embedding[1:] + rearrange(self.temporal_positional_embedding, "1 F D -> F 1 D")
        first = self.class_embedding + self.positional_embedding[0]
        x = torch.cat([first[None], rearrange(x, "F n D -> (n F) D")])
        return self.ln_post(self.transformer(self.ln_pre(x)[None])[0, 0]) @ self.proj


class Text(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, out: int, vocabulary: int = 49408) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(TOKENS, width) * 0.01)
        self.transformer = Transformer(width, depth, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, out) * width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Numbers [S], the last one the end's -> [D]. What would stand after the end is not seen by it."""
        x = self.token_embedding(tokens) + self.positional_embedding[: len(tokens)]
        mask = torch.full((len(tokens),) * 2, -torch.inf, device=x.device).triu(1)
        return self.ln_final(self.transformer(x[None], mask)[0, -1]) @ self.text_projection


class ViClip(nn.Module):
    """Sizes: those of the published ViT-L/14 where nothing is said."""

    def __init__(
        self, vision: tuple[int, int, int] = (1024, 24, 16), text: tuple[int, int, int] = (768, 12, 12), out: int = 768
    ) -> None:
        super().__init__()
        self.vision_encoder, self.text_encoder = Vision(*vision, out), Text(*text, out)
        self.temp = nn.Parameter(torch.tensor(0.01))  # of the training loss; in the file


def middles(frames: int) -> list[int]:
    """The `FRAMES` frames that are seen: the middles of equal parts, the last repeated where there are fewer."""
    edges = np.linspace(0, frames, min(FRAMES, frames) + 1).astype(int)
    found = [int(a + b - 1) // 2 for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return found + found[-1:] * (FRAMES - len(found))


class OverallRows:
    """One row a clip, float64: the cosine of ViCLIP's features of 8 of its frames and of its caption, -1..1.

    weights: a folder that holds vbench/ViClip-InternVid-10M-FLT.pth and clip/, whose tokenizer is ViCLIP's. network,
    tokenizer: instead of them. A caption beyond 32 tokens is cut, as VBench's is.
    """

    name = "overall_consistency"
    needs = frozenset({"caption"})
    alike: frozenset = frozenset()

    def __init__(
        self,
        weights: Path | None,
        device: torch.device,
        network: ViClip | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ) -> None:
        if network is None:
            file = network_file(weights, FILE, "https://huggingface.co/OpenGVLab/ViCLIP has it")
            network = ViClip()
            fill(network, read_weights(file), file)
        self.tokenizer = tokenizer or open_clip(weights, device).processor.tokenizer
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.fingerprint = f"{self.name}: ViCLIP {module_fingerprint(self.network, {})[:16]}"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        if clip.caption is None:
            raise ValueError(f"{clip.name} has no caption")
        pictures = clip_pictures(clip.pixels[middles(len(clip.pixels))].to(self.device))
        tokens = self.tokenizer(clip.caption, truncation=True, max_length=TOKENS)["input_ids"]
        features = (
            self.network.vision_encoder(pictures),
            self.network.text_encoder(torch.tensor(tokens, device=self.device)),
        )
        return nnf.cosine_similarity(*(x.double() for x in features), dim=0).reshape(1, 1).cpu()
