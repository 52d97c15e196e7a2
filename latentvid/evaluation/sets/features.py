"""Rows of clips for the scores of sets: Inception features of pictures, I3D features of whole clips.

Axes: F frames, H W height and width in pixels, n rows of a clip, D columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...data.cache.latents import module_fingerprint
from ...data.transforms import from_uint8
from ...errors import ClipError, UserError
from ...limits import check
from ..defaults import COMMON, PICTURES
from ..rows import Clip
from .i3d import I3D, SHORTEST, SIDE, load_i3d
from .inception import load_inception

BATCH = 16  # pictures that Inception sees at once


def spread(frames: int, pictures: int) -> list[int]:
    """Which `pictures` of a clip's frames are seen: the middles of that many equal parts; all where it has no more,
    or for 0."""
    count = min(pictures, frames) or frames
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


class InceptionRows:
    """A row a picture, float32: 2048 pool features and, of torch-fidelity's network, 1008 logits.

    pictures: how many of a clip's frames are seen (`spread`); 0: all.
    Raises UserError where there is no network (`load_inception`).
    """

    name = "inception"
    needs: frozenset = frozenset()
    alike = frozenset(COMMON) - {"rate"}  # pictures have none

    def __init__(self, weights: Path | None, device: torch.device, pictures: int = PICTURES) -> None:
        self.network = load_inception(weights).to(device)
        self.device, self.pictures = device, check("pictures", pictures)
        self.has_logits = self.network.has_logits
        seen = f"{pictures} of a clip's frames, the middles of equal parts" if pictures else "all frames"
        self.about = f"{self.network.source}; bilinear with antialiasing to 299 x 299, as torchmetrics; {seen}"
        self.fingerprint = f"{self.about}; {self.network.fingerprint} on {device.type}"

    def __call__(self, clip: Clip) -> Tensor:
        seen = clip.pixels[spread(len(clip.pixels), self.pictures)]
        return torch.cat([self.network(part.to(self.device)).float().cpu() for part in seen.split(BATCH)])


class I3DRows:
    """One row a clip, float32: the 400 Kinetics logits, averaged over the whole clip, however long it is.

    weights: a folder that holds i3d/*.safetensors, or such a file. network: in the place of it.
    Raises UserError where there are none, and ClipError for a clip shorter than 9 frames.
    """

    name = "i3d"
    needs: frozenset = frozenset()
    has_logits = True

    def __init__(self, weights: Path | None, device: torch.device, network: I3D | None = None) -> None:
        self.network, self.device = (network or _i3d(weights)).to(device), device
        self.about = f"I3D of Kinetics-400, logits averaged over the whole clip; bilinear to {SIDE} x {SIDE}"
        self.fingerprint = f"{self.about}; {module_fingerprint(self.network, {})[:16]} on {device.type}"

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        frames = len(clip.pixels)
        if frames < SHORTEST:
            raise ClipError(clip.name, "too-short", f"{frames} frames are too few for I3D, which takes {SHORTEST}")
        return self.network(from_uint8(clip.pixels.to(self.device))[None]).float().cpu()


def _i3d(weights: Path | None) -> I3D:
    if weights is None or not (weights.is_file() or (weights / "i3d").is_dir()):
        raise UserError("there is no I3D network: put i3d_kinetics400.safetensors into WEIGHTS/i3d and give WEIGHTS")
    return load_i3d(weights if weights.is_file() else weights / "i3d")
