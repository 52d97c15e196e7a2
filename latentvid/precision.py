"""What networks compute in: fp32, or bf16 where the device computes that faster.

A processor without bf16 instructions (most laptops') computes in bf16 16 to 80 times slower than in fp32, and its name
does not tell which kind it is, nor what the libraries make of it. So `auto` measures both, for some 50 ms, once in a
process. Weights are fp32 under either: bf16 is autocast of the forward pass.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from .errors import UserError

if TYPE_CHECKING:  # what parses options imports this file, and is to start fast: torch comes when it is needed
    import torch
    from torch import Tensor

Computed = Literal["no", "bf16"]
MixedPrecision = Literal["auto", "no", "bf16"]
LEAST, BUDGET = 5, 0.008  # times that each is measured, and seconds
HELP = "what networks compute in: bf16 where this device does so faster (auto, measured), fp32 (no), or bf16"

logger = logging.getLogger(__name__)


class Speed(NamedTuple):
    """How many times as fast as in fp32 a device computes in bf16."""

    products: float
    convolutions: float

    @property
    def both(self) -> float:
        return math.sqrt(self.products * self.convolutions)

    @property
    def faster(self) -> Computed:
        return "bf16" if self.both > 1 else "no"

    def __str__(self) -> str:
        return f"{self.both:.2g} times as fast as fp32 (matrix products {self.products:.2g}, convolutions " + (
            f"{self.convolutions:.2g}: measured)"
        )


def add_argument(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds --mixed-precision, the same option to every script."""
    text = f"{HELP}; {more}" if more else HELP
    parser.add_argument("--mixed-precision", choices=get_args(MixedPrecision), default="auto", help=text)


def dtype_of(computed: Computed) -> torch.dtype:
    import torch

    return {"no": torch.float32, "bf16": torch.bfloat16}[computed]


def choose(asked: MixedPrecision, device: torch.device | str) -> Computed:
    """What to compute in on this device. What is slow here and asked for by name gets one warning. On a GPU what is
    computed in fp32 nevertheless is `fast_fp32` from here on."""
    fast_fp32(device)
    if asked not in get_args(MixedPrecision):
        raise UserError(f"mixed_precision={asked!r}: choose {', '.join(get_args(MixedPrecision))}")
    if asked == "bf16":
        _check_bf16(_kind(device), speed(device))
    return speed(device).faster if asked == "auto" else asked


def fast_fp32(device: torch.device | str) -> None:
    """Products of fp32 matrices on a GPU are made in TF32 from here on, in the whole process: ten bits of mantissa and
    fp32's range, some eight times as fast. Convolutions are so by torch's own default. Nothing changes on CPUs."""
    if _kind(device) == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")


def describe(chosen: Computed, device: torch.device | str) -> str:
    """The choice in words, with bf16's speed on this device."""
    if chosen == "bf16":
        return f"computing in bf16, on this {_kind(device)} {speed(device)}"
    tf32 = ", products in TF32" if _kind(device) == "cuda" else ""
    return f"computing in fp32{tf32}; bf16 is on this {_kind(device)} {speed(device)}"


def autocast(device: torch.device | str, computed: Computed) -> torch.autocast:
    """Inside, forward passes compute in this."""
    import torch

    return torch.autocast(_kind(device), torch.bfloat16, enabled=computed == "bf16")


def speed(device: torch.device | str) -> Speed:
    """Of bf16 on this device, measured once in this process. The random state stays as it is."""
    return _speed(str(device))


def _kind(device: torch.device | str) -> str:
    return str(device).partition(":")[0]


@cache
def _speed(device: str) -> Speed:
    import torch

    side, clip = (192, (2, 16, 2, 12, 12)) if _kind(device) == "cpu" else (2048, (2, 128, 8, 32, 32))
    with torch.inference_mode(), torch.autocast(_kind(device), enabled=False):
        square = torch.full((side, side), 0.5, device=device)
        channels_last = {"memory_format": torch.channels_last_3d}
        video = torch.full(clip, 0.5, device=device).contiguous(**channels_last)
        kernel = torch.full((clip[1], clip[1], 3, 3, 3), 0.5, device=device).contiguous(**channels_last)
        found = Speed(
            _ratio(lambda a: a @ a, square),
            _ratio(lambda x, w: torch.nn.functional.conv3d(x, w, padding=1), video, kernel),
        )
    logger.info("bf16 on %s is %s", device, found)
    return found


def _ratio(work: Callable[..., Tensor], *tensors: Tensor) -> float:
    """Seconds in fp32 over those in bf16; 0 where the device cannot compute in bf16."""
    exact = _seconds(work, tensors)
    try:
        return exact / _seconds(work, [x.bfloat16() for x in tensors], enough=4 * exact)
    except (RuntimeError, TypeError):
        return 0.0


def _seconds(work: Callable[..., Tensor], tensors: Sequence[Tensor], enough: float = math.inf) -> float:
    """The best of `LEAST` times and of as many as go into `BUDGET`; of two where both are beyond `enough`."""

    def once() -> float:
        start = time.perf_counter()
        work(*tensors).flatten()[0].item()  # reads one number, so that the work is done
        return time.perf_counter() - start

    once()  # the first makes kernels
    start, times = time.perf_counter(), [once(), once()]
    while min(times) < enough and (len(times) < LEAST or time.perf_counter() - start < BUDGET):
        times.append(once())
    return min(times)


@cache
def _check_bf16(where: str, found: Speed) -> None:
    """Raises UserError where bf16 cannot be computed in, and warns, once, where it is slow."""
    if found.both == 0:
        raise UserError(f"mixed_precision=bf16: this {where} cannot compute in bf16; choose auto or no")
    if found.faster == "no":
        logger.warning("mixed_precision=bf16, but bf16 is on this %s %s: choose auto or no", where, found)


def _main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(describe(choose("auto", device), device))


if __name__ == "__main__":
    _main()
