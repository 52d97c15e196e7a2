"""How pictures of any size become Inception's 299 x 299: the ways that published figures were made.

FID depends on it (Parmar et al. 2022). Axes: N pictures, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from einops import rearrange
from PIL import Image
from torch import Tensor

SIDE = 299  # pixels


def antialiased(pixels: Tensor) -> Tensor:
    """Bilinear with antialiasing: torchmetrics'. uint8 [N,H,W,3] -> float32 [N,3,299,299], 0..255."""
    pictures = rearrange(pixels, "N H W C -> N C H W").float()
    return nnf.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)


def tensorflow(pixels: Tensor) -> Tensor:
    """Bilinear of TensorFlow 1 (`resize_bilinear`), as the code of the FID paper, torch-fidelity and StyleGAN have it.

    Place i of the output is place i H / 299 of the input, not the one whose middle is there; nothing is averaged, so
    that large pictures alias. uint8 [N,H,W,3] -> float32 [N,3,299,299], 0..255.
    """
    pictures = rearrange(pixels, "N H W C -> N C H W").float()
    return _between(_between(pictures, 2), 3)


def _between(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    at = torch.arange(SIDE, dtype=torch.float32, device=x.device) * (size / SIDE)
    first = at.floor().long().clamp_max(size - 1)
    share = (at - first).view([-1 if k == axis else 1 for k in range(x.ndim)])
    low, high = x.index_select(axis, first), x.index_select(axis, (first + 1).clamp_max(size - 1))
    return low + (high - low) * share


def clean(pixels: Tensor) -> Tensor:
    """clean-fid's (Parmar et al. 2022): Pillow's bicubic filter, which antialiases, of each colour in float32.

    uint8 [N,H,W,3] -> float32 [N,3,299,299], about 0..255: what the filter overshoots stays.
    """

    def one(plane: Tensor) -> Tensor:
        picture = Image.fromarray(plane.numpy()).resize((SIDE, SIDE), resample=Image.Resampling.BICUBIC)
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.float32).view(SIDE, SIDE)

    planes = rearrange(pixels.cpu().float(), "N H W C -> (N C) H W").contiguous()
    found = torch.stack([one(plane) for plane in planes])
    return rearrange(found, "(N C) H W -> N C H W", C=3).to(pixels.device)


RESIZINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "torchmetrics": antialiased,
    "tensorflow": tensorflow,
    "clean": clean,
}
