"""Dense optical flow between two frames: RAFT where its weights are, else OpenCV's DIS.

A flow [H,W,2] holds (dx, dy) in pixels: what is at (x, y) in the first frame is at (x + dx, y + dy) in the second.
Axes: H W height and width in pixels, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol
from urllib.parse import urlsplit

import torch
import torch.nn.functional as nnf
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...data.cache.latents import module_fingerprint
from ...data.transforms import from_uint8
from ...errors import UserError, brief

SMALLEST = 16  # pixels a side; OpenCV's DIS crashes below
RAFT_SMALLEST = 128  # pixels a side: the coarsest of its correlations has nothing left below
RAFT_UPDATES = 20  # as VBench
FIRST_LAYER = "feature_encoder.convnormrelu.0.weight"  # 64 channels in RAFT large, 32 in small


class Flow(Protocol):
    """uint8 frames [H,W,3] twice -> the flow from the first to the second, float32 [H,W,2], on `device`."""

    method: str  # readable, with a fingerprint of the weights
    device: torch.device

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class Dis:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's, preset "medium", of the grey frames; on the CPU."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise UserError(
                "there is no optical flow: put RAFT's weights into WEIGHTS/raft, or pip install latentvid[evaluation]"
            ) from error
        self.cv2 = cv2
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.method = f"optical flow by DIS (medium, OpenCV {cv2.__version__})"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        _check(a, b)
        grey = (self.cv2.cvtColor(frame.cpu().contiguous().numpy(), self.cv2.COLOR_RGB2GRAY) for frame in (a, b))
        return torch.from_numpy(self.search.calc(*grey, None))


class Raft:
    """RAFT (Teed & Deng 2020), torchvision's, with weights in its names; 20 updates.

    Frames are padded to multiples of 8 pixels by repeating their borders; those below 128 pixels a side are enlarged
    first, and their flow is made smaller.
    """

    def __init__(self, weights: dict[str, Tensor], device: torch.device) -> None:
        from torchvision.models.optical_flow import raft_large, raft_small

        size, make = {64: ("large", raft_large), 32: ("small", raft_small)}[weights[FIRST_LAYER].shape[0]]
        network: nn.Module = make(weights=None, progress=False)
        network.load_state_dict(weights)
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device
        self.method = f"optical flow by RAFT ({size}, {RAFT_UPDATES} updates, {module_fingerprint(network, {})[:16]})"

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        _check(a, b)
        height, width, _ = a.shape
        times = math.ceil(RAFT_SMALLEST / min(height, width))
        pictures = from_uint8(torch.stack([a, b]).to(self.device)).movedim(0, 1)  # [2,3,H,W]
        if times > 1:
            pictures = nnf.interpolate(pictures, scale_factor=times, mode="bilinear", align_corners=False)
        down, across = pictures.shape[-2:]
        pictures = nnf.pad(pictures, (0, -across % 8, 0, -down % 8), mode="replicate")
        flow = self.network(*pictures[:, None], num_flow_updates=RAFT_UPDATES)[-1][..., :down, :across]
        if times > 1:
            flow = nnf.avg_pool2d(flow, times) / times
        return rearrange(flow, "1 xy H W -> H W xy")


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 3 or {a.dtype, b.dtype} != {torch.uint8}:
        raise ValueError(f"optical flow wants uint8 [H,W,3] twice, got {list(a.shape)} and {list(b.shape)}")
    if min(a.shape[:2]) < SMALLEST:
        raise UserError(f"{a.shape[0]} x {a.shape[1]} pixels: optical flow needs at least {SMALLEST} a side")


def open_flow(weights: Path | None, device: torch.device) -> Flow:
    """RAFT of `weights`/raft (one .pth or .safetensors file), or of torchvision's cache, the large before the small;
    without these OpenCV's DIS. Nothing is downloaded.

    Raises UserError where weights are not RAFT's, and where there is none of the three.
    """
    file = _raft_file(weights)
    if file is None:
        return Dis()
    try:
        if file.suffix == ".safetensors":
            return Raft(load_file(file), device)
        return Raft(torch.load(file, map_location="cpu", weights_only=True), device)
    except (KeyError, RuntimeError, UnpicklingError, SafetensorError, AttributeError, TypeError) as error:
        raise UserError(f"{file} does not hold the weights of torchvision's RAFT: {brief(error)}") from error


def _raft_file(weights: Path | None) -> Path | None:
    if weights is not None and (weights / "raft").is_dir():
        found = sorted(f for f in (weights / "raft").iterdir() if f.suffix in (".pth", ".safetensors"))
        if len(found) != 1:
            raise UserError(f"{weights / 'raft'} holds {len(found)} files of weights (.pth, .safetensors): leave one")
        return found[0]
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    urls = (kind.DEFAULT.url for kind in (Raft_Large_Weights, Raft_Small_Weights))
    cached = (Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name) for url in urls)
    return next((file for file in cached if file.is_file()), None)


def warp(second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The second frame float [H,W,C] as it looks from the first, [H,W,C], bilinear; and where that lies inside the
    picture, bool [H,W] (outside, the border is repeated)."""
    height, width, _ = flow.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    at = torch.stack([x, y], dim=-1) + flow  # [H,W,2], (x, y)
    last = at.new_tensor([width - 1, height - 1])
    inside = ((at >= 0) & (at <= last)).all(dim=-1)
    seen = nnf.grid_sample(
        rearrange(second, "H W C -> 1 C H W"), (2 * at / last - 1)[None], padding_mode="border", align_corners=True
    )
    return rearrange(seen, "1 C H W -> H W C"), inside


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a pixel of the first frame can be found in the second, bool [H,W], by the flows [H,W,2] both ways.

    Ruder, Dosovitskiy & Brox 2016: with w the flow forward and w' the flow backward at its end, hidden is
    |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5, and on an edge of motion is |grad u|^2 + |grad v|^2 > 0.01 |w|^2 + 0.002.
    What moves out of the picture is hidden as well.
    """
    back, inside = warp(backward, forward)
    squares = forward.square().sum(dim=-1)
    hidden = (forward + back).square().sum(dim=-1) > 0.01 * (squares + back.square().sum(dim=-1)) + 0.5
    slope = torch.zeros_like(squares)
    slope[:, :-1] += (forward[:, 1:] - forward[:, :-1]).square().sum(dim=-1)
    slope[:-1] += (forward[1:] - forward[:-1]).square().sum(dim=-1)
    return inside & ~hidden & (slope <= 0.01 * squares + 0.002)
