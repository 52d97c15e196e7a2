"""Rows of gpu.py that run models: training steps of ours and of peers, VAEs.

Axes: T tokens, S text tokens, f h w a token grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_bench import Bench
from gpu_peers import CHANNELS, PATCH, Shape, blocks_of, make_peer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentvid.attention import resolve_backend
from latentvid.models.compiling import compile_blocks
from latentvid.models.flops import TRAINING, dit_flops, vae_flops
from latentvid.models.interchange import build_vae, channels_last
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vae"


# --- training steps --------------------------------------------------------------------------------------------------


def step(
    bench: Bench,
    *,
    grids: list[list[int]],
    text: int,
    text_width: int,
    recompute: bool,
    backend: str,
    **network: Any,
) -> dict:
    """Our step on a pack of clips of these token grids: fp32 weights, bf16 autocast, compiled blocks and not."""
    with bench.device:
        model = VideoDiT(latent_channels=CHANNELS, patch=PATCH, text_width=text_width, **network).train()
    backend = resolve_backend(backend if bench.cuda else "auto", bench.device, torch.bfloat16, model.head_width)
    model.attention_backend = backend
    grids = [tuple(grid) for grid in grids]
    layout, words = Packed.of(grids).to(bench.device), Packed.of_lengths([text] * len(grids)).to(bench.device)
    tokens = torch.randn(layout.tokens, CHANNELS * PATCH**2, device=bench.device)
    level = torch.rand(layout.frames, device=bench.device)
    states = torch.randn(words.tokens, text_width, device=bench.device)
    autocast = torch.autocast(bench.device.type, torch.bfloat16)

    def forward() -> Tensor:
        with autocast:
            return model(tokens, level, states, layout, words)

    flops = dit_flops(model.config, grids, [text] * len(grids))
    found = _steps(bench, model, forward, TRAINING * flops, layout.tokens, recompute, ours=True)
    return found | {"attention": model.attention_backend}


def peer(bench: Bench, *, name: str, grid: list[int], clips: int, text: int, recompute: bool, **network: int) -> dict:
    """A peer's step on as many equal clips, one batch: bf16 weights and optimiser, which is its fastest way."""
    text_width = network.pop("text_width")
    shape = Shape(**network, grid=tuple(grid), clips=clips, text=text, text_width=text_width)
    model, inputs = make_peer(name, shape, bench.device)

    def forward() -> Tensor:
        return model(**inputs, return_dict=False)[0]

    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # the counter sees no compiled attention
        forward()
    flops = TRAINING * counter.get_total_flops()
    return _steps(bench, model.train(), forward, flops, shape.tokens, recompute, ours=False)


def _steps(
    bench: Bench,
    model: nn.Module,
    forward: Callable[[], Tensor],
    flops: int,
    tokens: int,
    recompute: bool,
    ours: bool,
) -> dict:
    """Forward, backward and AdamW, first as it is, then with compiled blocks; what one of them could not do is said."""
    if recompute:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def whole() -> None:
        forward().float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "flops": flops,
        "recompute": recompute,
        "ways": {},
    }
    for way in ("eager", "compiled"):
        if way == "compiled":
            _compile(bench, model, ours)
        found["ways"][way] = attempt(bench, whole, flops, tokens)
        bench.report(found)
        optimizer.zero_grad(set_to_none=True)
    done = {way: row for way, row in found["ways"].items() if "seconds" in row}
    if not done:
        return found | {"failed": found["ways"]["eager"]["failed"]}
    return found | {"best": min(done, key=lambda way: done[way]["seconds"])}


def _compile(bench: Bench, model: nn.Module, ours: bool) -> None:
    """Ours as the trainer does, for packs of any shape; peers for the one shape, and with breaks where they must."""
    if ours:
        compile_blocks(model, backend=bench.compiler)
        return
    for block in blocks_of(model):
        block.compile(dynamic=False, backend=bench.compiler)


def attempt(bench: Bench, whole: Callable[[], None], flops: int, tokens: int) -> dict:
    bench.forget_peak()
    try:
        start = time.perf_counter()
        whole()
        bench.sync()
        first = time.perf_counter() - start
        before = bench.product_rate()
        bench.forget_peak()
        taken = bench.seconds(whole)
        peak = bench.peak()
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # another way of the same row may still work
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    rate = (before + bench.product_rate()) / 2
    figures = {"seconds": taken, "tokens_per_s": tokens / taken, "mfu": flops / taken / rate}
    return figures | {"matmul": rate, "peak_bytes": peak, "first_s": first}


# --- autoencoders ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def vae(bench: Bench, *, name: str, frames: int, height: int, width: int) -> dict:
    """Encoding and decoding a clip in bf16: ours by the name of its file in configs/vae/, or a class of diffusers."""
    path = CONFIGS / f"{name}.yaml"
    arguments = yaml.safe_load(path.read_text(encoding="utf-8"))["model"] if path.is_file() else {"_class_name": name}
    with bench.device:
        model = channels_last(build_vae(arguments, "model").eval().to(torch.bfloat16))
        clip = torch.rand(1, 3, frames, height, width, dtype=torch.bfloat16).mul_(2).sub_(1)
        latent = torch.randn(1, model.latent_channels, *model.latent_grid(frames, height, width), dtype=torch.bfloat16)
    flops = vae_flops(model, (frames, height, width))
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    work = {"encode": flops.encode, "decode": flops.forward - flops.encode}
    passes = {"encode": lambda: model.encode(clip), "decode": lambda: model.decode(latent)}
    for side, run in passes.items():
        before = bench.product_rate()
        bench.forget_peak()
        taken, peak = bench.seconds(run, warm=1), bench.peak()
        rate = (before + bench.product_rate()) / 2
        found[side] = {"seconds": taken, "frames_per_s": frames / taken, "flops": work[side]}
        found[side] |= {"of_matmul": work[side] / taken / rate, "peak_bytes": peak, "matmul": rate}
        bench.report(found)
    return found
