"""Rows of clips for the scores of sets: Inception features of pictures, I3D features of whole clips.

Axes: F frames, H W height and width in pixels, n rows of a clip, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data.cache.latents import module_fingerprint
from ...data.transforms import from_uint8
from ...errors import ClipError, UserError
from ...limits import check
from ...words import counted
from ..defaults import COMMON, PICTURES
from ..rows import Clip
from .i3d import I3D, SCRIPT, SHORTEST, ScriptedI3D, load_i3d
from .inception import load_inception
from .resizing import SIDE

BATCH = 16  # pictures that Inception sees at once
WAYS = {"torchmetrics": "torchmetrics does", "tensorflow": "TensorFlow 1 did", "clean": "clean-fid does"}


def spread(frames: int, pictures: int) -> list[int]:
    """Which `pictures` of a clip's frames are seen: the middles of that many equal parts; all where it has no more,
    or for 0."""
    count = min(pictures, frames) or frames
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


class InceptionRows:
    """A row a picture, float32: 2048 pool features and, of torch-fidelity's network, 1008 logits.

    pictures: how many of a clip's frames are seen (`spread`); 0: all. resize: as in `load_inception`.
    Raises UserError where there is no network (`load_inception`).
    """

    name = "inception"
    needs: frozenset = frozenset()
    alike = frozenset(COMMON) - {"rate"}  # pictures have none

    def __init__(
        self, weights: Path | None, device: torch.device, pictures: int = PICTURES, resize: str | None = None
    ) -> None:
        self.network = load_inception(weights, resize).to(device)
        self.device, self.pictures = device, check("pictures", pictures)
        self.has_logits = self.network.has_logits
        seen = f"{pictures} of a clip's frames, the middles of equal parts" if pictures else "all frames"
        self.about = f"{self.network.source}; to {SIDE} x {SIDE} pixels as {WAYS[self.network.resize]}; {seen}"
        self.fingerprint = f"{self.about}; on {device.type}"

    def remarks(self, rows: Sequence[Tensor]) -> list[str]:
        """What a reader must know of the network."""
        return self.network.identity.remarks("Inception")

    def __call__(self, clip: Clip) -> Tensor:
        seen = clip.pixels[spread(len(clip.pixels), self.pictures)]
        return torch.cat([self.network(part.to(self.device)).float().cpu() for part in seen.split(BATCH)])


class I3DRows:
    """One row a clip, float32: the 400 Kinetics logits, averaged over the whole clip, however long it is.

    weights: a folder that holds i3d/ with a file of `load_i3d`, or such a file. network: instead of it.
    Raises UserError where there are none, and ClipError for a clip shorter than 9 frames.
    """

    name = "i3d"
    needs: frozenset = frozenset()
    has_logits = True

    def __init__(self, weights: Path | None, device: torch.device, network: I3D | ScriptedI3D | None = None) -> None:
        self.network, self.device = (network or _i3d(weights)).to(device), device
        self.identity = self.network.identity
        which = module_fingerprint(self.network, {})[:16] if self.identity is None else self.identity.said
        self.about = f"I3D of Kinetics-400: {which}; logits averaged over the whole clip; bilinear to 224 x 224 pixels"
        self.fingerprint = f"{self.about}; on {device.type}"

    def remarks(self, rows: Sequence[Tensor]) -> list[str]:
        """What a reader must know of the network."""
        return [] if self.identity is None else self.identity.remarks("I3D")

    @torch.no_grad()
    def __call__(self, clip: Clip) -> Tensor:
        frames = len(clip.pixels)
        if frames < SHORTEST:
            raise ClipError(
                clip.name, "too-short", f"{counted(frames, 'frame')}, too few for I3D, which takes {SHORTEST}"
            )
        return self.network(from_uint8(clip.pixels.to(self.device))[None]).float().cpu()


def _i3d(weights: Path | None) -> I3D:
    if weights is None or not (weights.is_file() or (weights / "i3d").is_dir()):
        raise UserError(f"there is no I3D network: put {SCRIPT} (StyleGAN-V's) into WEIGHTS/i3d and give WEIGHTS")
    return load_i3d(weights if weights.is_file() else weights / "i3d")
