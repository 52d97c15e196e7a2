"""The Inception networks of FID, KID and IS (Szegedy et al. 2016; Heusel et al. 2017), from a file or their package.

Three kinds of file are read:
- NVIDIA's TorchScript (`forward(img, return_features, ..., no_output_bias)`): pictures of any size, 0..255, which it
  resizes as TensorFlow 1 did; 2048 pool features, and the probabilities of 1008 classes;
- TorchScript of pictures [N,3,299,299] in [-1,1] -> 2048 pool features;
- the weights of the package torch-fidelity, which torchmetrics uses: 2048 pool features and 1008 logits.
Axes: N pictures, H W height and width in pixels, D columns.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import UserError, brief
from .networks import identify
from .resizing import RESIZINGS, SIDE

FEATURES = 2048  # columns of pool features; what follows are logits
NVIDIA = "inception-2015-12-05.pt"
SCRIPT = "fid_inception.pt"
PACKAGED = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{PACKAGED}"
FLAT = 1e-4  # of features' size: less difference between a texture and a plane is none


class Inception(nn.Module):
    """uint8 [N,H,W,3] -> [N,D]: pool features and, where the network has them, logits; in eval mode for good.

    resize: one of `RESIZINGS`; None: `own`. identity: which file it is. has_logits: D is beyond `FEATURES`.
    """

    has_logits: bool
    own: str  # how pictures are resized unless it is said

    def __init__(self, network: nn.Module, file: Path, resize: str | None = None) -> None:
        super().__init__()
        self.network, self.resize = network.eval(), resize or self.own
        self.identity = identify(file)

    @property
    def source(self) -> str:
        return f"Inception: {self.identity.said}"

    def resized(self, pixels: Tensor) -> Tensor:
        """[N,3,299,299] in 0..255."""
        return RESIZINGS[self.resize](pixels)

    def train(self, mode: bool = True) -> Inception:
        return super().train(False)


class ScriptedInception(Inception):
    has_logits, own = False, "torchmetrics"

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(self.resized(pixels).sub(128).div(128)).flatten(1)


class NvidiaInception(Inception):
    """Logits are the logarithms of the probabilities without the last layer's bias, as StyleGAN's `is50k` has them."""

    has_logits, own = True, "tensorflow"

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        # the network resizes by itself; what has its size already stays as it is
        own = self.resize == self.own
        pictures = rearrange(pixels, "N H W C -> N C H W") if own else self.resized(pixels)
        features = self.network(pictures, return_features=True)
        classes = self.network(pictures, no_output_bias=True)
        return torch.cat([features, classes.clamp_min(torch.finfo(classes.dtype).tiny).log()], dim=1)


class PackagedInception(Inception):
    """It resizes uint8 pictures by itself, as torchmetrics does or as TensorFlow 1 did; no other way is published."""

    has_logits, own = True, "torchmetrics"

    def __init__(self, network: nn.Module, file: Path, resize: str | None = None) -> None:
        super().__init__(network, file, resize)
        if self.resize not in ("torchmetrics", "tensorflow"):
            raise UserError(f"resize={self.resize!r}: clean-fid's figures are of NVIDIA's network: give {NVIDIA}")
        self.network.use_antialias = self.resize == "torchmetrics"

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat(self.network._torch_fidelity_forward(rearrange(pixels, "N H W C -> N C H W")), dim=1)


def load_inception(weights: Path | None, resize: str | None = None) -> Inception:
    """The network on the CPU in float32.

    weights: a folder that holds inception/ with NVIDIA's file, fid_inception.pt or torch-fidelity's, the first that is
        there; or such a file. None, or a folder without: torch-fidelity's, where package and weights are on this
        machine. Nothing is ever downloaded.
    resize: how pictures are resized (`RESIZINGS`); None: as the network's own code does.
    Raises UserError where there is none, or where the file is something else.
    """
    if resize is not None and resize not in RESIZINGS:
        raise UserError(f"resize={resize!r}: must be one of {', '.join(RESIZINGS)}")
    cached = Path(torch.hub.get_dir(), "checkpoints", PACKAGED)
    if weights is not None and weights.is_file():
        tried = [weights]
    else:
        folder = None if weights is None else weights / "inception"
        tried = [] if folder is None else [folder / name for name in (NVIDIA, SCRIPT, PACKAGED)]
        tried.append(cached)
    file = next((file for file in tried if file.is_file()), None)
    if file is None:
        raise UserError(
            f"there is no Inception network: put {NVIDIA} (NVIDIA's) or {SCRIPT} (TorchScript, [-1,1] at {SIDE} x "
            f"{SIDE} -> {FEATURES} features) into WEIGHTS/inception and give the folder WEIGHTS, or install "
            f"torch-fidelity and put {URL} at {cached}"
        )
    return _packaged(file, resize) if file.suffix == ".pth" else _scripted(file, resize)


def _scripted(file: Path, resize: str | None) -> Inception:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but the file is what it is
            network = torch.jit.load(file, map_location="cpu").eval()
            options = {argument.name for argument in network.forward.schema.arguments}
            kind = NvidiaInception if {"return_features", "no_output_bias"} <= options else ScriptedInception
            found = kind(network, file, resize)
            texture = torch.arange(3 * SIDE * SIDE).square().remainder(251).view(1, SIDE, SIDE, 3)  # nothing is drawn
            features = found(torch.cat([texture, torch.full_like(texture, 128)]).to(torch.uint8))[:, :FEATURES]
    except RuntimeError as error:
        raise UserError(f"{file} is no TorchScript Inception network: {brief(error)}") from error
    except AttributeError as error:
        raise UserError(f"{file} does not give one tensor for pictures: {brief(error)}") from error
    if features.shape[1] != FEATURES:
        raise UserError(f"{file} gives {features.shape[1]} numbers for a picture: Inception's features are {FEATURES}")
    if float((features[0] - features[1]).norm()) <= FLAT * float(features.norm()):
        raise UserError(
            f"{file} gives the same features for a texture and a plane: it is no Inception with its weights"
        )
    return found


def _packaged(file: Path, resize: str | None) -> Inception:
    from torchmetrics.image import fid  # here: it may import matplotlib, which writes

    try:
        torch.load(file, map_location="cpu", weights_only=True)  # the package would unpickle anything
        network = fid.NoTrainInceptionV3("inception-v3-compat", [str(FEATURES), "logits_unbiased"], str(file))
    except ModuleNotFoundError as error:
        raise UserError(f"{file} needs the package torch-fidelity: pip install torch-fidelity") from error
    except Exception as error:  # RuntimeError, UnpicklingError, KeyError: whatever the file may be
        raise UserError(f"{file} does not hold torch-fidelity's weights: {brief(error)}") from error
    return PackagedInception(network, file, resize)
