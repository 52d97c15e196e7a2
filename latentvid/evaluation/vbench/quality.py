"""Aesthetic quality, imaging quality and motion smoothness.

Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from ...data.cache.latents import module_fingerprint
from ...errors import ClipError, UserError, brief
from ..prompts.clip_similarity import ClipNetwork, open_clip
from ..rows import Clip, check_motion
from .files import FOLDER, fill, network_file, read_weights

HEAD, MUSIQ, AMT = "sa_0_4_vit_l_14_linear.pth", "musiq_spaq_ckpt-358bb6af.pth", "amt_s.pt"
LONGEST = 512  # pixels of a side that MUSIQ sees
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pictures(pixels: Tensor, side: int = 224) -> Tensor:
    """uint8 [F,H,W,3] -> [F,3,side,side] as VBench has them: bicubic without antialiasing, the middle, normalised."""
    height, width = pixels.shape[1:3]
    shorter = min(height, width)
    size = [side if each == shorter else int(side * each / shorter) for each in (height, width)]
    x = rearrange(pixels, "F H W C -> F C H W").float()
    x = nnf.interpolate(x, size=size, mode="bicubic", antialias=False).round().clamp(0, 255) / 255
    top, left = (round((each - side) / 2) for each in size)
    mean, std = (torch.tensor(each, device=x.device)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    return (x[..., top : top + side, left : left + side] - mean) / std


class AestheticRows:
    """A row a frame, float64: LAION's aesthetic predictor of CLIP ViT-L/14's features of unit length, divided by 10.

    weights: a folder that holds vbench/clip, a transformers folder of openai/clip-vit-large-patch14 with its processor,
    and vbench/sa_0_4_vit_l_14_linear.pth. network, head: instead of them.
    """

    name = "aesthetic_quality"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __init__(
        self,
        weights: Path | None,
        device: torch.device,
        network: ClipNetwork | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        if network is None or head is None:
            file = network_file(weights, HEAD, "https://github.com/LAION-AI/aesthetic-predictor has it")
            if not (weights / FOLDER / "clip").is_dir():
                raise UserError(
                    f"there is no WEIGHTS/{FOLDER}/clip: hf download openai/clip-vit-large-patch14 --local-dir "
                    f"WEIGHTS/{FOLDER}/clip"
                )
            network, head = open_clip(weights / FOLDER, device), nn.Linear(768, 1)
            fill(head, read_weights(file), file)
        if network.model.config.projection_dim != head.in_features:
            raise UserError(
                f"CLIP's features are {network.model.config.projection_dim} wide and the aesthetic head takes "
                f"{head.in_features}: give CLIP ViT-L/14"
            )
        self.network, self.head = network, head.double().requires_grad_(False)
        print_of = module_fingerprint(head, {})[:16]
        self.fingerprint = f"{self.name}: CLIP {network.fingerprint} with LAION's head {print_of}, divided by 10"

    def __call__(self, clip: Clip) -> Tensor:
        return self.head(self.network.images(clip.pixels)) / 10


class ImagingRows:
    """A row a frame, float64: MUSIQ (Ke et al. 2021) trained on SPAQ, 0..100, divided by 100; a longer side above
    512 pixels becomes 512, bilinear without antialiasing.

    weights: a folder that holds vbench/musiq_spaq_ckpt-358bb6af.pth; the network is pyiqa's. network: instead of
    it, pictures [1,3,H,W] in 0..1 to a score.
    """

    name = "imaging_quality"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __init__(self, weights: Path | None, device: torch.device, network: nn.Module | None = None) -> None:
        if network is None:
            file = network_file(weights, MUSIQ, "https://github.com/chaofengc/IQA-PyTorch has it among its releases")
            try:
                from pyiqa.archs.musiq_arch import MUSIQ as Musiq
            except ImportError as error:
                raise UserError("imaging_quality needs the package pyiqa: pip install pyiqa") from error
            network = Musiq(pretrained_model_path=str(file))
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.fingerprint = f"{self.name}: MUSIQ {module_fingerprint(self.network, {})[:16]}, divided by 100"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        return torch.tensor([[float(self.network(x[None])) / 100] for x in self._pictures(clip.pixels)]).double()

    def _pictures(self, pixels: Tensor) -> Tensor:
        x = rearrange(pixels.to(self.device), "F H W C -> F C H W").float()
        height, width = x.shape[-2:]
        if (longer := max(height, width)) > LONGEST:
            size = [int(LONGEST / longer * side) for side in (height, width)]
            x = nnf.interpolate(x, size=size, mode="bilinear", antialias=False)
        return x / 255


class SmoothnessRows:
    """A row a frame in between, float64, 0..1: 1 less the mean absolute difference of the frame and of what AMT-S (Li
    et al. 2023) makes of its two neighbours, in parts of 255. Every second frame is left out and made again.

    weights: a folder that holds vbench/amt_s.pt, AMT-S as TorchScript (docs/evaluation.md says how to write it).
    network: instead of it: pictures [1,3,H,W] in 0..1 of two frames, sides multiples of 16, and the time
    [1,1,1,1], 0.5, to the one in between.
    """

    name = "motion_smoothness"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __init__(self, weights: Path | None, device: torch.device, network: nn.Module | None = None) -> None:
        if network is None:
            file = network_file(weights, AMT, "docs/evaluation.md says how to write it of the published AMT-S")
            try:
                network = torch.jit.load(file, map_location=device)
            except (RuntimeError, ValueError) as error:
                raise UserError(f"{file} is no TorchScript network: {brief(error)}") from error
        self.network, self.device = network.eval(), device
        self.fingerprint = f"{self.name}: AMT-S {module_fingerprint(self.network, {})[:16]}"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        if len(clip.pixels) < 3:
            raise ClipError(clip.name, "too-short", "motion smoothness needs 3 frames: one between two others")
        frames = rearrange(clip.pixels, "F H W C -> F 1 C H W")
        height, width = frames.shape[-2:]
        half = torch.full((1, 1, 1, 1), 0.5, device=self.device)
        down, across = -height % 16, -width % 16
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)  # equal on both sides
        found = []
        for k in range(1, len(frames) - 1, 2):
            before, after = (
                nnf.pad(frames[j].to(self.device).float() / 255, edges, mode="replicate") for j in (k - 1, k + 1)
            )
            try:
                made = self.network(before, after, half)
            except RuntimeError as error:
                size = f"{before.shape[-2]} x {before.shape[-1]}"
                raise UserError(
                    f"{AMT} does not take frames of {size}, trace it at that size: {brief(error)}"
                ) from error
            made = made[..., edges[2] : edges[2] + height, edges[0] : edges[0] + width]
            made = (made.clamp(0, 1) * 255).to(torch.uint8).cpu()
            found.append(1 - float((made.double() - frames[k].double()).abs().mean()) / 255)
        return torch.tensor(found, dtype=torch.float64)[:, None]
