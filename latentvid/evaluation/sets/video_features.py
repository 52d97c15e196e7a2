"""Rows of clips by video transformers: VideoMAE's for content-debiased FVD (Ge et al. 2024), V-JEPA's for JEDi (Luo et
al. 2025).

Axes: F frames, H W height and width in pixels, D width of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor

from ...errors import ClipError, UserError, brief
from ...words import counted
from ..rows import Clip
from .networks import identify
from .video_transformer import SIDE, VideoMae, VideoTransformer, VJepa, read_weights

VIDEOMAE = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
ENCODER, PROBE = "vith16.pth.tar", "ssv2-probe.pth.tar"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class _TransformerRows:
    """One row a clip, float32."""

    name: str
    needs: frozenset = frozenset()
    network: VideoTransformer
    device: torch.device

    def __call__(self, clip: Clip) -> Tensor:
        """[1,D]. Raises ClipError for a clip of another length than the network's."""
        frames = self.network.frames
        if len(clip.pixels) != frames:
            said = (
                f"{counted(len(clip.pixels), 'frame')}, but the network takes {frames}: --frames {frames} --drop-short"
            )
            raise ClipError(clip.name, "other-length", said)
        return self._features(clip.pixels.to(self.device)).float().cpu()

    def _features(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


class VideoMaeRows(_TransformerRows):
    """The features of VideoMAE v2 ViT-g, fine-tuned on Something-Something v2, as the authors' code makes them: frames
    in [0,1], not normalised, bilinear without antialiasing to 224 x 224 whatever their aspect ratio is; 16 of them.

    weights: a folder that holds videomae/`VIDEOMAE`. Raises UserError where it is missing or something else.
    """

    name = "videomae"

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        file = _file(weights, "videomae", VIDEOMAE)
        self.identity = identify(file)
        try:
            self.network = VideoMae(read_weights(file, "model", "module")).to(device)
        except (KeyError, ValueError, RuntimeError) as error:
            raise _wrong(file, "VideoMAE", error) from error
        self.device = device
        self.fingerprint = f"VideoMAE: {self.identity.said}; bilinear to {SIDE} x {SIDE} pixels; on {device.type}"

    def remarks(self, rows: Sequence[Tensor]) -> list[str]:
        """What a reader must know of the network."""
        return self.identity.remarks("VideoMAE")

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        frames = rearrange(pixels, "F H W C -> F C H W").float() / 255
        frames = nnf.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network(rearrange(frames, "F C H W -> 1 C F H W"))


class VJepaRows(_TransformerRows):
    """What V-JEPA's attentive probe of Something-Something v2 pools of the encoder ViT-H/16, in 16 frames normalised by
    ImageNet's colours. The authors' code takes frames of 224 x 224 as they come; here they are resized, bilinear with
    antialiasing.

    weights: a folder that holds vjepa/`ENCODER` and vjepa/`PROBE`. Raises UserError where one is missing or wrong.
    """

    name = "vjepa"

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        encoder, probe = (_file(weights, "vjepa", name) for name in (ENCODER, PROBE))
        self.hashes = ", ".join(identify(file).sha256[:16] for file in (encoder, probe))
        head = {
            name.removeprefix("pooler."): value
            for name, value in read_weights(probe, "classifier").items()
            if name.startswith("pooler.")
        }
        try:
            self.network = VJepa(read_weights(encoder, "target_encoder", "encoder"), head).to(device)
        except (KeyError, ValueError, RuntimeError) as error:
            raise _wrong(encoder, "V-JEPA", error) from error
        self.device = device
        self.fingerprint = f"V-JEPA with probe (sha256 {self.hashes}); bilinear to {SIDE} x {SIDE}; on {device.type}"

    def remarks(self, rows: Sequence[Tensor]) -> list[str]:
        """What a reader must know of the network."""
        return [f"V-JEPA: sha256 {self.hashes}: no hash of the published files is known to compare these with"]

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        frames = rearrange(pixels, "F H W C -> F C H W").float() / 255
        frames = nnf.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        mean, deviation = (torch.tensor(x, device=frames.device)[:, None, None] for x in (MEAN, DEVIATION))
        return self.network(rearrange((frames - mean) / deviation, "F C H W -> 1 C F H W"))


def _file(weights: Path | None, folder: str, name: str) -> Path:
    file = None if weights is None else weights / folder / name
    if file is None or not file.is_file():
        raise UserError(f"there is no WEIGHTS/{folder}/{name}: put it there and give WEIGHTS")
    return file


def _wrong(file: Path, what: str, error: Exception) -> UserError:
    return UserError(f"{file} does not hold the weights of {what}: {brief(error)} is missing or wrong")
