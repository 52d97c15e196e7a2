"""Subject and background consistency: how like the frames of a clip are, by DINO's and by CLIP's features.

Axes: F frames, H W height and width in pixels, h w in patches, D features.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...data.cache.latents import module_fingerprint
from ..prompts.clip_similarity import open_clip
from ..rows import Clip, check_motion
from .files import fill, network_file, read_weights

DINO = "dino_vitbase16_pretrain.pth"
SIDE = 224  # pixels of the shorter side
BATCH = 8  # frames
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by which DINO's pictures are normalised


def consistency(features: Tensor) -> Tensor:
    """[F-1]: of each frame but the first the mean of its cosines, at least 0, with the one before and with the first.

    features: [F,D].
    """
    unit = nnf.normalize(features.double(), dim=-1)
    before = (unit[1:] * unit[:-1]).sum(dim=-1).clamp_min(0)
    first = (unit[1:] @ unit[0]).clamp_min(0)
    return (before + first) / 2


class Dino(nn.Module):
    """DINO's ViT-B/16 (Caron et al. 2021): timm's blocks, which hold the published file, and DINO's own way to
    interpolate the positions, so that frames need not be square."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        self.vit = VisionTransformer(img_size=SIDE, patch_size=16, num_classes=0, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures [F,3,H,W] -> [F,D], the class token's."""
        x = self._embedded(x)
        for block in self.vit.blocks:
            x = block(x)
        return self.vit.norm(x)[:, 0]

    def keys(self, x: Tensor) -> Tensor:
        """Normalised pictures [F,3,H,W] -> [F,n,D]: the last layer's keys of all tokens, the class token's first, heads
        side by side."""
        x = self._embedded(x)
        *before, last = self.vit.blocks
        for block in before:
            x = block(x)
        return last.attn.qkv(last.norm1(x)).chunk(3, dim=-1)[1]

    def _embedded(self, x: Tensor) -> Tensor:
        """[F,3,H,W] -> [F,n,D]"""
        patches = self.vit.patch_embed.proj(x)
        height, width = patches.shape[-2:]
        tokens = torch.cat(
            [self.vit.cls_token.expand(len(x), -1, -1), rearrange(patches, "F D h w -> F (h w) D")], dim=1
        )
        return tokens + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        own, side = self.vit.pos_embed, SIDE // 16
        if (height, width) == (side, side):
            return own
        grid = rearrange(own[:, 1:], "1 (h w) D -> 1 D h w", h=side)
        scale = ((height + 0.1) / side, (width + 0.1) / side)  # as published: against rounding
        grid = nnf.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([own[:, :1], rearrange(grid, "1 D h w -> 1 (h w) D")], dim=1)


def dino_pictures(pixels: Tensor) -> Tensor:
    """uint8 [F,H,W,3] -> [F,3,H,W], the shorter side `SIDE` pixels: bilinear without antialiasing, normalised."""
    height, width = pixels.shape[1:3]
    shorter = min(height, width)
    size = [SIDE if side == shorter else int(SIDE * side / shorter) for side in (height, width)]
    x = rearrange(pixels, "F H W C -> F C H W").float()
    x = nnf.interpolate(x, size=size, mode="bilinear", antialias=False).round().clamp(0, 255) / 255
    mean, std = (torch.tensor(each, device=x.device)[:, None, None] for each in (MEAN, STD))
    return (x - mean) / std


def open_dino(weights: Path | None, device: torch.device) -> Dino:
    """Of `weights`/vbench/dino_vitbase16_pretrain.pth. Raises UserError where it is not there."""
    file = network_file(weights, DINO, "https://github.com/facebookresearch/dino has it")
    network = Dino()
    fill(network.vit, read_weights(file), file)
    return network.eval().requires_grad_(False).to(device)


class SubjectRows:
    """A row a frame but the first, float64 (`consistency` of DINO's features).

    weights: a folder that holds vbench/dino_vitbase16_pretrain.pth. network: instead of it.
    """

    name = "subject_consistency"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()  # nothing that two sets must share: clips by themselves

    def __init__(self, weights: Path | None, device: torch.device, network: Dino | None = None) -> None:
        if network is None:
            network = open_dino(weights, device)
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.fingerprint = f"{self.name}: DINO ViT-B/16 {module_fingerprint(self.network, {})[:16]}"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        parts = clip.pixels.split(BATCH)
        features = torch.cat([self.network(dino_pictures(part.to(self.device))).cpu() for part in parts])
        return consistency(features)[:, None]


class BackgroundRows:
    """A row a frame but the first, float64 (`consistency` of CLIP's features). CLIP is that of the other scores:
    VBench's is ViT-B/32."""

    name = "background_consistency"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.network = open_clip(weights, device)
        self.fingerprint = f"{self.name}: CLIP {self.network.fingerprint}"

    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        return consistency(self.network.images(clip.pixels))[:, None]
