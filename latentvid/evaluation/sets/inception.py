"""The Inception networks of FID, KID and IS (Szegedy et al. 2016; Heusel et al. 2017), from a file or their package.

Two kinds of file are read: TorchScript, pictures [N,3,299,299] in [-1,1] -> pool features [N,2048] (or any width), and
the weights of the package torch-fidelity, which torchmetrics uses: 2048 pool features and 1008 logits.
Axes: N pictures, H W height and width in pixels, D columns.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from ...errors import UserError, brief

SIDE = 299  # pixels
FEATURES = 2048  # columns of pool features; what follows are logits
SCRIPT = "fid_inception.pt"
PACKAGED = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{PACKAGED}"


def resized(pixels: Tensor) -> Tensor:
    """uint8 [N,H,W,3] -> float32 [N,3,299,299]: (p - 128) / 128 after bilinear resizing with antialiasing.

    This is what torchmetrics does. The TensorFlow code of the FID paper does not antialias, and clean-fid (Parmar et
    al. 2022) takes Pillow's bicubic filter: their figures differ from these.
    """
    pictures = rearrange(pixels, "N H W C -> N C H W").float()
    return (
        nnf.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True).sub(128).div(128)
    )


class Inception(nn.Module):
    """uint8 [N,H,W,3] -> [N,D]: pool features and, where the network has them, logits; in eval mode for good.

    fingerprint: of the weights. source: which network it is, in words. has_logits: D is beyond `FEATURES`.
    """

    has_logits: bool

    def __init__(self, network: nn.Module, file: Path, source: str) -> None:
        super().__init__()
        self.network = network.eval()
        self.source = source
        with file.open("rb") as content:
            self.fingerprint = hashlib.file_digest(content, "sha256").hexdigest()[:16]

    def train(self, mode: bool = True) -> Inception:
        return super().train(False)


class ScriptedInception(Inception):
    has_logits = False

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(resized(pixels)).flatten(1)


class PackagedInception(Inception):
    has_logits = True

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        pictures = rearrange(pixels, "N H W C -> N C H W")
        return torch.cat(self.network._torch_fidelity_forward(pictures), dim=1)  # torchmetrics'; it resizes by itself


def load_inception(weights: Path | None) -> Inception:
    """The network on the CPU in float32.

    weights: a folder that holds inception/fid_inception.pt (or torch-fidelity's file), or such a file. None, or a
        folder without: torch-fidelity's, where package and weights are on this machine. Nothing is ever downloaded.
    Raises UserError where there is none, or where the file is something else.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", PACKAGED)
    if weights is not None and weights.is_file():
        tried = [weights]
    else:
        tried = [] if weights is None else [weights / "inception" / SCRIPT, weights / "inception" / PACKAGED]
        tried.append(cached)
    file = next((file for file in tried if file.is_file()), None)
    if file is None:
        raise UserError(
            f"there is no Inception network: put {SCRIPT} (TorchScript, [-1,1] at {SIDE} x {SIDE} -> {FEATURES} "
            f"features) into WEIGHTS/inception and give the folder WEIGHTS, or install torch-fidelity and put {URL} "
            f"at {cached}"
        )
    return _packaged(file) if file.suffix == ".pth" else _scripted(file)


def _scripted(file: Path) -> Inception:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but the file is what it is
            network = torch.jit.load(file, map_location="cpu").eval()
            found = network(torch.zeros(1, 3, SIDE, SIDE))
    except RuntimeError as error:
        raise UserError(f"{file} is no TorchScript Inception network: {brief(error)}") from error
    if not isinstance(found, Tensor) or found.flatten(1).shape[1] > FEATURES:
        raise UserError(f"{file} does not give one tensor of at most {FEATURES} features for a picture")
    return ScriptedInception(network, file, f"Inception from {file.name}")


def _packaged(file: Path) -> Inception:
    from torchmetrics.image import fid  # here: it may import matplotlib, which writes

    try:
        torch.load(file, map_location="cpu", weights_only=True)  # the package would unpickle anything
        network = fid.NoTrainInceptionV3("inception-v3-compat", [str(FEATURES), "logits_unbiased"], str(file))
    except ModuleNotFoundError as error:
        raise UserError(f"{file} needs the package torch-fidelity: pip install torch-fidelity") from error
    except Exception as error:  # RuntimeError, UnpicklingError, KeyError: whatever the file may be
        raise UserError(f"{file} does not hold torch-fidelity's weights: {brief(error)}") from error
    return PackagedInception(network, file, "torch-fidelity's Inception, as torchmetrics runs it")
