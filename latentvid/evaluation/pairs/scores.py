"""PSNR, SSIM and LPIPS of each clip against its pair.

Axes: F frames, H W height and width in pixels, n rows, D columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...data.cache.latents import module_fingerprint
from ...data.transforms import from_uint8
from ...errors import ClipError, UserError
from ...words import counted
from ..mean_score import MeanScore
from ..rows import Clip, check_size
from .fidelity import SSIM_WINDOW, Fidelity
from .lpips import SMALLEST, Lpips, load_lpips

LPIPS_NET = "alex"  # what Zhang et al. recommend to compare pictures with; "vgg" is for losses
LPIPS_PIXELS = 2**21  # frames x height x width that LPIPS compares together


class FidelityRows:
    """One row a clip, float64: PSNR in dB (of the mean square over the clip, at most 100), SSIM (mean over frames)."""

    name = "fidelity"
    fingerprint = "fidelity: PSNR over the clip, SSIM with an 11 x 11 Gaussian window"
    needs = frozenset({"pair"})

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.device = device  # no weights are needed

    def __call__(self, clip: Clip) -> Tensor:
        pair = pair_of(clip)
        check_size(clip, SSIM_WINDOW, "SSIM")
        fidelity = Fidelity()
        fidelity.add(clip.pixels.to(self.device), pair.to(self.device))
        return torch.tensor([[fidelity.psnr, fidelity.ssim]], dtype=torch.float64)


class LpipsRows:
    """A row a frame: its LPIPS distance (AlexNet's) from the pair's.

    weights: a folder that holds lpips/alex.safetensors; without one, the networks that torchvision and torchmetrics
    have on this machine. network: instead of it. Raises UserError where there are none.
    """

    name = "lpips"
    needs = frozenset({"pair"})

    def __init__(self, weights: Path | None, device: torch.device, network: Lpips | None = None) -> None:
        self.network, self.device = (network or lpips_network(weights)).to(device), device
        self.fingerprint = f"lpips: {self.network.net} {module_fingerprint(self.network, {})[:16]}"

    def __call__(self, clip: Clip) -> Tensor:
        pair = pair_of(clip)
        check_size(clip, SMALLEST[self.network.net], "LPIPS")
        return frame_distances(self.network, clip.pixels.to(self.device), pair.to(self.device))[:, None].cpu()


def lpips_network(weights: Path | None) -> Lpips:
    """Of `weights`/lpips, or what this machine has by itself. Raises UserError where there is none."""
    if weights is not None and (weights / "lpips").is_dir():
        return load_lpips(weights / "lpips", LPIPS_NET)
    try:
        return load_lpips(None, LPIPS_NET)
    except UserError as error:
        raise UserError(f"there is no WEIGHTS/lpips/{LPIPS_NET}.safetensors, and {error}") from error


def pair_of(clip: Clip) -> Tensor:
    """The pair's pixels, uint8 [F,H,W,3]. Raises ClipError for one of another shape, ValueError where there is none."""
    if clip.pair is None:
        raise ValueError(f"{clip.name} has no pair")
    if clip.pair.shape != clip.pixels.shape:
        ours, theirs = (
            "{} of {} x {}".format(counted(len(each), "frame"), *each.shape[1:3]) for each in (clip.pixels, clip.pair)
        )
        raise ClipError(clip.name, "unlike-pair", f"{ours} pixels, but its pair has {theirs}: give equal shapes")
    return clip.pair


@torch.no_grad()
def frame_distances(network: Lpips, a: Tensor, b: Tensor) -> Tensor:
    """The LPIPS distance of each frame [F], of two clips uint8 [F,H,W,3] on the network's device; some at a time."""
    step = max(1, LPIPS_PIXELS // (a.shape[1] * a.shape[2]))
    return torch.cat(
        [
            network(*(from_uint8(clip).movedim(0, 1) for clip in parts))  # [F,3,H,W] each
            for parts in zip(a.split(step), b.split(step), strict=True)
        ]
    )


PAIR_SCORES = (
    MeanScore(name="psnr", extractor="fidelity", compares="pairs", better="higher"),
    MeanScore(name="ssim", extractor="fidelity", compares="pairs", better="higher", column=1),
    MeanScore(name="lpips", extractor="lpips", compares="pairs", better="lower"),
)
