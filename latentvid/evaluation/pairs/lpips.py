"""LPIPS, the learned perceptual distance of pictures (Zhang et al. 2018, equation 1), with weights from a file.

The network is torchmetrics'. Its weights come from a safetensors file, named `conv0..N.{weight,bias}` (the backbone's
convolutions in order, OIHW) and `lin0..4.weight` (the linear heads, [1,C,1,1]).
Axes: N pictures, H W height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Literal
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError, brief

SMALLEST = {"alex": 32, "vgg": 16}  # pixels a side: below, the last level has nothing left
HEADS = 5
KINDS = ("weight", "bias")


class Lpips(nn.Module):
    """[N,3,H,W] twice, in [-1,1] -> distances [N], 0 for equal pictures; frozen, and in eval mode for good.

    Differentiable in both pictures. Raises UserError where they are too small for the network.
    """

    def __init__(self, net: Literal["alex", "vgg"], weights: dict[str, Tensor]) -> None:
        super().__init__()
        from torchmetrics.functional.image import lpips  # here: it may import matplotlib, which writes

        self.net = net
        with torch.device("meta"):  # every weight is loaded: none need be drawn
            network = lpips._LPIPS(pretrained=False, net=net, pnet_rand=True)
        network.scaling_layer = lpips.ScalingLayer()  # its constants are in no state dict
        backbone = [f"net.{name}" for name, layer in network.net.named_modules() if isinstance(layer, nn.Conv2d)]
        state = {f"{layer}.{kind}": weights[f"conv{k}.{kind}"] for k, layer in enumerate(backbone) for kind in KINDS}
        for j in range(HEADS):  # torchmetrics lists its heads twice
            state |= {f"{head}.model.1.weight": weights[f"lin{j}.weight"] for head in (f"lin{j}", f"lins.{j}")}
        network.load_state_dict(state, assign=True)
        self.network = network.float().requires_grad_(False).to(memory_format=torch.channels_last).eval()

    def train(self, mode: bool = True) -> Lpips:
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        smallest = SMALLEST[self.net]
        if min(a.shape[-2:]) < smallest:
            raise UserError(
                f"LPIPS ({self.net}) needs pictures of at least {smallest} x {smallest} pixels, got "
                f"{a.shape[-2]} x {a.shape[-1]}: give larger ones, or leave LPIPS out"
            )
        return self.network(a, b).flatten()


def load_lpips(path: str | Path | None, net: Literal["alex", "vgg"] = "vgg") -> Lpips:
    """The LPIPS network `net`, on the CPU in float32.

    path: a safetensors file, or a folder that holds `{net}.safetensors`, or the package lpips' heads `{net}.pth` with
        torchvision's backbone beside them or in torchvision's cache; None: torchmetrics' heads, which are the same, on
        torchvision's backbone, where torchvision has that in its cache. Nothing is ever downloaded.
    Raises UserError where the weights are missing or are not those of `net`.
    """
    if net not in SMALLEST:
        raise UserError(f"LPIPS network {net!r}: one of {', '.join(SMALLEST)}")
    if path is None:
        import torchmetrics  # here: it may import matplotlib, which writes

        return Lpips(net, _usual(net, Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"))
    if Path(path, f"{net}.pth").is_file() and not Path(path, f"{net}.safetensors").is_file():
        return Lpips(net, _usual(net, Path(path)))
    file = Path(path) / f"{net}.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"there are no LPIPS weights at {file}: correct the path, or leave it out to do without LPIPS")
    try:
        return Lpips(net, load_file(file))
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{file} does not hold the weights of LPIPS {net} (conv0, conv1 .. and lin0..{HEADS - 1}): {brief(error)}"
        ) from error


def _usual(net: str, heads: Path) -> dict[str, Tensor]:
    """The package's heads, `heads`/{net}.pth, on torchvision's backbone, from that folder or torchvision's cache.

    Raises UserError where one is missing or is something else.
    """
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    url = {"alex": AlexNet_Weights, "vgg": VGG16_Weights}[net].IMAGENET1K_V1.url
    name = Path(urlsplit(url).path).name
    cached = Path(torch.hub.get_dir(), "checkpoints", name)
    file = heads / name if (heads / name).is_file() else cached
    if not file.is_file():
        raise UserError(
            f"LPIPS ({net}) has no weights here: give the path of a file or a folder with {net}.safetensors, or put "
            f"{url} at {cached}"
        )
    try:
        read = [torch.load(f, map_location="cpu", weights_only=True) for f in (file, heads / f"{net}.pth")]
        layers = [key.removesuffix(".weight") for key in read[0] if key.startswith("features.") and "weight" in key]
        weights = {f"conv{k}.{kind}": read[0][f"{layer}.{kind}"] for k, layer in enumerate(layers) for kind in KINDS}
        return weights | {f"lin{j}.weight": read[1][f"lin{j}.model.1.weight"] for j in range(HEADS)}
    except (RuntimeError, KeyError, EOFError, TypeError, UnpicklingError) as error:
        raise UserError(
            f"{file} and {heads / net}.pth are not LPIPS {net}'s backbone and heads: {brief(error)}"
        ) from error
