"""What one row of gpu.py measures, on the device that is there: attention, training steps of ours and peers, VAEs.

Each function takes one row's arguments and returns its figures: seconds (medians), bytes, FLOPs of the model (a
multiply-add is 2, nothing that is computed again), shares of the rate of bf16 matrix products measured around them.
Axes: T tokens, A heads, K head width, S text tokens, f h w a token grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_peers import CHANNELS, PATCH, Shape, blocks_of, make_peer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentvid.attention import packed_attention, resolve_backend
from latentvid.errors import UserError
from latentvid.models.interchange import build_vae, channels_last
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.training.flops import TRAINING, dit_flops, vae_flops

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vae"
SECONDS = 4.0  # of timed repetitions, at least 3 and at most 20 of them
TOLERANCE = 2.0  # a backend's error over that of sdpa in bf16, both against sdpa in fp32


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

    def compile(self, blocks: Sequence[nn.Module], ours: bool) -> None:
        """Ours as the trainer does, for packs of any shape; peers for the one shape, and with breaks where they must.

        Tiny models go without the kernels' compiler, which takes minutes on CPUs.
        """
        for block in blocks:
            block.compile(fullgraph=ours, dynamic=ours, backend="aot_eager" if self.tiny else "inductor")


# --- attention -------------------------------------------------------------------------------------------------------


def attention(bench: Bench, *, lengths: list[int], text: int, heads: int, head: int, clip: int, clips: int) -> dict:
    """Each backend that is there against sdpa in fp32, forward and backward, over segments of `lengths`; and the
    speed of both passes over `clips` segments of `clip` tokens."""
    layout, text_layout = Packed.of_lengths(lengths), Packed.of_lengths([text + i for i in range(len(lengths))])
    found: dict[str, Any] = {"backends": {}, "absent": {}}
    for name, kv in (("self", layout), ("cross", text_layout)):
        sizes = (layout.tokens, kv.tokens, kv.tokens, layout.tokens)
        q, k, v, grad = (_heads(n, heads, head, bench.device) for n in sizes)
        layouts = layout.to(bench.device), kv.to(bench.device)
        exact = _with_gradients([x.float() for x in (q, k, v, grad)], *layouts, "sdpa")
        bound = _errors(_with_gradients([q, k, v, grad], *layouts, "sdpa"), exact)
        for backend in ("torch", "flash", "grouped"):
            try:
                resolve_backend(backend, bench.device, torch.bfloat16)
            except UserError as error:
                found["absent"][backend] = str(error)
                continue
            error = _errors(_with_gradients([q, k, v, grad], *layouts, backend), exact)
            agrees = all(e <= TOLERANCE * b + 1e-6 for e, b in zip(error, bound, strict=True))
            found["backends"].setdefault(backend, {})[name] = {"error": error, "sdpa_bf16": bound, "agrees": agrees}
    equal = Packed.of_lengths([clip] * clips).to(bench.device)
    flops = TRAINING * 4 * heads * head * clips * clip**2
    rate = bench.product_rate()
    for backend, row in found["backends"].items():
        if bench.cuda and backend == "grouped":
            continue  # made for CPUs
        inputs = [_heads(equal.tokens, heads, head, bench.device) for _ in range(4)]
        taken = bench.seconds(lambda b=backend, i=inputs: _with_gradients(i, equal, equal, b))
        row |= {"seconds": taken, "of_matmul": flops / taken / rate}
    found["agree"] = all(row[name]["agrees"] for row in found["backends"].values() for name in ("self", "cross"))
    return found | {"matmul": rate}


def _heads(tokens: int, heads: int, head: int, device: torch.device) -> Tensor:
    return torch.randn(tokens, heads, head, device=device, dtype=torch.bfloat16)


def _with_gradients(tensors: Sequence[Tensor], layout: Packed, kv: Packed, backend: str) -> list[Tensor]:
    """Output and gradients of q, k, v for the last tensor as the output's gradient."""
    *inputs, grad = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = packed_attention(*inputs, layout, kv, backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Root mean squared difference of each over the exact one's root mean square."""
    return [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


# --- training steps --------------------------------------------------------------------------------------------------


def step(bench: Bench, *, grids: list[list[int]], text: int, text_width: int, recompute: bool, **network: int) -> dict:
    """Our step on a pack of clips of these token grids: fp32 weights, bf16 autocast, compiled blocks and not."""
    with bench.device:
        model = VideoDiT(latent_channels=CHANNELS, patch=PATCH, text_width=text_width, **network).train()
    grids = [tuple(grid) for grid in grids]
    layout, words = Packed.of(grids).to(bench.device), Packed.of_lengths([text] * len(grids)).to(bench.device)
    tokens = torch.randn(layout.tokens, CHANNELS * PATCH**2, device=bench.device)
    level = torch.rand(layout.rows, device=bench.device)
    states = torch.randn(words.tokens, text_width, device=bench.device)
    autocast = torch.autocast(bench.device.type, torch.bfloat16)

    def forward() -> Tensor:
        with autocast:
            return model(tokens, level, states, layout, words)

    flops = dit_flops(model.config, grids, [text] * len(grids))
    found = _steps(bench, model, forward, TRAINING * flops, layout.tokens, recompute, ours=True)
    backend = resolve_backend("auto", bench.device, torch.bfloat16)
    return found | {"attention": backend}


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
            bench.compile(blocks_of(model), ours)
        found["ways"][way] = _attempt(bench, whole, flops, tokens)
        bench.report(found)
        optimizer.zero_grad(set_to_none=True)
    done = {way: row for way, row in found["ways"].items() if "seconds" in row}
    if not done:
        return found | {"failed": found["ways"]["eager"]["failed"]}
    return found | {"best": min(done, key=lambda way: done[way]["seconds"])}


def _attempt(bench: Bench, whole: Callable[[], None], flops: int, tokens: int) -> dict:
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


KINDS = {"attention": attention, "step": step, "peer": peer, "vae": vae}


def measure(kind: str, arguments: dict[str, Any], tiny: bool, report: Callable[[dict], None]) -> dict:
    """The figures of one row; {"failed": "out of memory"} where that is why there are none.

    report: called with what is known, as parts of the row are done.
    """
    try:
        return KINDS[kind](Bench(tiny, report), **arguments)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
