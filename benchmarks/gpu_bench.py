"""How gpu.py's rows are timed, on the device that is there, and where each kind of row is.

A row's function takes its arguments and returns its figures: seconds (medians), bytes, FLOPs of the model (a
multiply-add is 2, nothing that is computed again), shares of the rate of bf16 matrix products measured around them.
Needs torch alone.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 4.0  # of timed repetitions, at least 3 and at most 20 of them
MODULES = {"attention": "gpu_attention", "step": "gpu_rows", "peer": "gpu_rows", "vae": "gpu_rows"}
MODULES |= {"sampling": "gpu_sampling", "held": "gpu_held"}


class Bench:
    """The device, and how to time and measure on it."""

    def __init__(self, tiny: bool, report: Callable[[dict], None]) -> None:
        self.report = report  # takes what is known so far
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cuda, self.tiny = self.device.type == "cuda", tiny
        self.side = 256 if tiny else 8192
        torch.manual_seed(0)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], warm: int = 2) -> float:
        """Median of one call, after `warm` others."""
        for _ in range(warm):
            run()
        self.sync()
        times: list[float] = []
        while len(times) < 3 or (sum(times) < SECONDS and len(times) < 20 and not self.tiny):
            start = time.perf_counter()
            run()
            self.sync()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def product_rate(self, times: int = 20) -> float:
        """FLOP/s of products of square bf16 matrices of random numbers, one after another."""
        a, b = (torch.randn(self.side, self.side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        self.sync()
        start = time.perf_counter()
        for _ in range(times):
            a @ b
        self.sync()
        return 2 * self.side**3 * times / (time.perf_counter() - start)

    def peak(self) -> int | None:
        """Bytes allocated at the most since `forget_peak`; None on CPUs, which do not count them."""
        return torch.cuda.max_memory_allocated() if self.cuda else None

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def compiler(self) -> str:
        """Tiny models go without the kernels' compiler, which takes minutes on CPUs."""
        return "aot_eager" if self.tiny else "inductor"


def measure(kind: str, arguments: dict[str, Any], tiny: bool, report: Callable[[dict], None]) -> dict:
    """The figures of one row; {"failed": "out of memory"} where that is why there are none.

    report: called with what is known, as parts of the row are done.
    """
    try:
        return getattr(importlib.import_module(MODULES[kind]), kind)(Bench(tiny, report), **arguments)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
