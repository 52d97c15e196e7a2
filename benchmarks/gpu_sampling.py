"""The row of gpu.py that samples: a guided step of a clip, and how often the host waits for the device on its way.

Axes: T tokens, S text tokens, f h w a token grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_bench import Bench
from gpu_peers import CHANNELS, PATCH
from torch import Tensor

from latentvid.attention import describe_backend, resolve_backend
from latentvid.diffusion.guidance import Guidance
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import solve
from latentvid.models.compiling import compile_blocks
from latentvid.models.flops import dit_flops
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines.predict import make_predict
from latentvid.pipelines.sampling import Batch, Request
from latentvid.text import PackedText

FEW, MANY = 4, 8  # steps of two runs: what the longer one has more is its steps' own


class Words:
    """Random states instead of a text encoder's."""

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        self.tokens, self.width, self.device = tokens, width, device

    def encode(self, prompts: Sequence[str]) -> PackedText:
        lengths = [self.tokens] * len(prompts)
        return PackedText(torch.randn(sum(lengths), self.width, device=self.device), lengths)


def sampling(bench: Bench, *, grid: list[int], text: int, text_width: int, **network: Any) -> dict:
    """Of one clip of this token grid: fp32 weights under bf16 autocast, two branches of guidance a step, compiled
    blocks and not; a step is what a longer run takes more than a shorter one."""
    with bench.device:
        model = VideoDiT(latent_channels=CHANNELS, patch=PATCH, text_width=text_width, **network).eval()
    backend = resolve_backend("auto", bench.device, torch.bfloat16, model.head_width)
    model.attention_backend, scheduler = backend, LatentVideoScheduler()
    words, (f, h, w) = Words(text, text_width, bench.device), grid
    request = Request(prompt="", grid=(f, h * PATCH, w * PATCH))
    guidance = Guidance(scale=5.0, interval=(0.1, 0.9))

    def run(steps: int) -> Callable[[], Tensor]:
        batch = Batch.of([request], scheduler, model.patch, CHANNELS, steps, False, bench.device)
        predict = make_predict(model, words, batch, guidance, scheduler)

        @torch.no_grad()
        def sampled() -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16):
                return solve(scheduler, predict, batch.z, batch.levels, batch.layout)

        return sampled

    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "ways": {}}
    found["attention"] = describe_backend(backend, bench.device)
    flops = 2 * dit_flops(model.config, [tuple(grid)], [text])  # of two branches
    for way in ("eager", "compiled"):
        if way == "compiled":
            compile_blocks(model, backend=bench.compiler)
        bench.forget_peak()
        few, many = run(FEW), run(MANY)
        rate = bench.product_rate()
        taken = max(bench.seconds(many) - bench.seconds(few), 1e-9) / (MANY - FEW)
        figures = {"seconds": taken, "tokens_per_s": f * h * w / taken, "mfu": flops / taken / rate}
        waits = (waits_of(bench, many) - waits_of(bench, few)) / (MANY - FEW)
        found["ways"][f"{way}, {waits:g} waits a step"] = {**figures, "waits": waits, "peak_bytes": bench.peak()}
        bench.report(found)
    return found


def waits_of(bench: Bench, run: Callable[[], Any]) -> int:
    """How often the host waits for the device, as torch counts it; 0 on CPUs, where there is nothing to wait for."""
    if not bench.cuda:
        return 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in said)
