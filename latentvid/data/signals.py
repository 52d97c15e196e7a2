"""Control signals that are computed of a clip's own frames.

| signal      | what a frame shows                                                                       |
|-------------|------------------------------------------------------------------------------------------|
| `canny`     | white edges of one pixel (Canny 1986: Gaussian, Sobel, thinning, two thresholds)         |
| `lines`     | soft edges: the size of the luminance's Sobel gradient                                   |
| `luminance` | luma of BT.601                                                                           |
| `flow`      | optical flow from this frame to the next (DIS): direction as hue, length as brightness   |
| `tracks`    | dots that follow corners of the first frame (pyramids of Lucas and Kanade)               |
| `depth`     | what a network of depth estimates (depth.py)                                             |

All are functions of the frames alone: nothing is drawn, so that sampling computes what training was shown.
Axes: F frames, H height, W width; clips are uint8 [F,H,W,3].
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import UserError
from ..references import Placed
from .depth import check_depth, depth

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
SIGMA = 1.0  # of Canny's Gaussian, pixels; its window has 5
WEAK, STRONG = 50.0, 100.0  # thresholds of the gradient's size, of luma in 0 to 255 by Sobel's masks
FULL_FLOW = 0.05  # share of the frame's diagonal that the longest flow of full brightness is
POINTS = 64  # tracks at most


def signal_of(role: Placed, pixels: Tensor) -> Tensor:
    """uint8 [F,H,W,3] -> the role's signal, uint8 [F,H,W,3]."""
    return depth(pixels, role.signal_model) if role.signal == "depth" else _TABLE[role.signal](pixels)


def check_signal(role: Placed) -> None:
    """Raises UserError where its signal cannot be computed here."""
    if role.signal in ("flow", "tracks"):
        _opencv()
    elif role.signal == "depth":
        check_depth(role.signal_model)


def luminance(pixels: Tensor) -> Tensor:
    return _grey(_luma(pixels).round())


def lines(pixels: Tensor) -> Tensor:
    gx, gy = _sobel(_luma(pixels))
    return _grey((gx.hypot(gy) / 4).round().clamp(max=255))  # Sobel's masks weigh 4


def canny(pixels: Tensor) -> Tensor:
    """Edges of the luma, with its border repeated."""
    size, way = _gradient(_blurred(_luma(pixels)))
    kept = torch.where(_is_ridge(size, way), size, 0.0)
    edges, near = kept >= STRONG, kept >= WEAK
    while True:  # weak ones that touch an edge are edges
        grown = near & (nnf.max_pool2d(edges.float()[:, None], 3, 1, 1)[:, 0] > 0)
        if torch.equal(grown, edges):
            return _grey(255.0 * edges)
        edges = grown


def flow(pixels: Tensor) -> Tensor:
    """Of the last frame it is that of the frame before it; of a picture it is 0."""
    found = flow_vectors(pixels)
    found = [*found, found[-1] if found else torch.zeros(*pixels.shape[1:3], 2)]
    return torch.stack([flow_colours(each) for each in found])


def flow_vectors(pixels: Tensor) -> list[Tensor]:
    """The flow [H,W,2] (right, down) in pixels from each frame to the next (DIS, Kroeger et al. 2016)."""
    cv2, grey = _opencv(), _luma(pixels).round().to(torch.uint8).numpy()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    _, height, width, _ = pixels.shape
    pad = [(0, max(0, 16 - height)), (0, max(0, 16 - width))]  # the search takes no smaller frames
    frames = [np.pad(frame, pad, mode="edge") for frame in grey]
    found = [search.calc(a, b, None)[:height, :width] for a, b in zip(frames, frames[1:], strict=False)]
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in found]


def flow_colours(flow: Tensor) -> Tensor:
    """Flow [H,W,2] (right, down) in pixels -> uint8 [H,W,3]."""
    height, width, _ = flow.shape
    right, down = flow.unbind(-1)
    hue = (torch.atan2(down, right) / (2 * math.pi)) % 1.0
    value = (right.hypot(down) / (FULL_FLOW * math.hypot(height, width))).clamp(max=1.0)
    parts = [_ramp(hue, shift) for shift in (0.0, -1 / 3, 1 / 3)]  # red, green, blue
    return (255 * value[..., None] * torch.stack(parts, dim=-1)).round().to(torch.uint8)


def tracks(pixels: Tensor) -> Tensor:
    """Dots of 3 x 3 pixels, one colour a point in all frames; a point that is lost is not shown from there on."""
    cv2, grey = _opencv(), _luma(pixels).round().to(torch.uint8).numpy()
    frames, height, width, _ = pixels.shape
    shown = torch.zeros_like(pixels)
    found = cv2.goodFeaturesToTrack(grey[0], POINTS, 0.02, 3)
    if found is None:
        return shown
    points, lives = np.float32(found).reshape(-1, 1, 2), np.ones(len(found), bool)
    for number in range(frames):
        if number:
            points, kept, _ = cv2.calcOpticalFlowPyrLK(grey[number - 1], grey[number], points, None, winSize=(9, 9))
            lives &= kept.reshape(-1) == 1
        for i in np.flatnonzero(lives):
            x, y = (round(float(each)) for each in points[i, 0])
            lives[i] = 0 <= x < width and 0 <= y < height
            if lives[i]:
                shown[number, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = _colour(i)
    return shown


_TABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "canny": canny,
    "lines": lines,
    "luminance": luminance,
    "flow": flow,
    "tracks": tracks,
}


def _luma(pixels: Tensor) -> Tensor:
    """uint8 [F,H,W,3] -> float32 [F,H,W] in 0 to 255."""
    return pixels.float() @ torch.tensor(LUMA)


def _grey(values: Tensor) -> Tensor:
    """[F,H,W] -> uint8 [F,H,W,3]."""
    return values.to(torch.uint8)[..., None].repeat(1, 1, 1, 3)


def _filtered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x [F,H,W] with weights along rows [n] and columns [n], borders repeated."""
    n = len(rows) // 2
    x = nnf.pad(x[:, None], (n, n, n, n), mode="replicate")
    return nnf.conv2d(nnf.conv2d(x, rows[None, None, :, None]), columns[None, None, None])[:, 0]


def _blurred(x: Tensor) -> Tensor:
    weights = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return _filtered(x, weights, weights)


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to the right and down, [F,H,W] each."""
    smooth, change = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    return _filtered(x, smooth, change), _filtered(x, change, smooth)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient's size, and which of four ways it goes: 0 across, 1 down right, 2 down, 3 down left."""
    gx, gy = _sobel(x)
    eighth = math.tan(math.pi / 8)
    across, down = gy.abs() <= eighth * gx.abs(), gx.abs() <= eighth * gy.abs()
    way = torch.where(across, 0, torch.where(down, 2, torch.where(gx * gy > 0, 1, 3)))
    return gx.hypot(gy), way


def _is_ridge(size: Tensor, way: Tensor) -> Tensor:
    """Whether the gradient is larger than before it on its way, and not smaller than behind it."""
    around = nnf.pad(size, (1, 1, 1, 1))
    _, height, width = size.shape

    def beside(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steps = ((0, 1), (1, 1), (1, 0), (1, -1))
    found = [(size > beside(-dy, -dx)) & (size >= beside(dy, dx)) for dy, dx in steps]
    return torch.stack(found).gather(0, way[None])[0]


def _ramp(hue: Tensor, shift: float) -> Tensor:
    """One channel of the fully saturated colour of a hue in 0 to 1."""
    return (2 - 6 * ((hue + shift + 0.5) % 1.0 - 0.5).abs()).clamp(0, 1)


@cache
def _colour(i: int) -> Tensor:
    """Of point i: hues that lie apart, by the golden ratio."""
    return torch.tensor(
        [round(255 * part) for part in colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.6, 1.0)], dtype=torch.uint8
    )


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError("the signals flow and tracks need OpenCV: pip install latentvid[evaluation]") from error
    return cv2
