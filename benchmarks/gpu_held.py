"""gpu.py's row of a model that stays as it is: its weights in bf16, in codes, and in main memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from gpu_bench import Bench
from gpu_rows import CHANNELS, PATCH, attempt
from torch import nn

from latentvid.attention import resolve_backend
from latentvid.models.flops import dit_flops
from latentvid.models.quantised import quantise
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.training.parallel.block_swap import BlockSwap

BASES = ("whole", "int8", "nf4")
PASSES = 2  # forward, and backward to the activations: no weight but those of the norms has a gradient


def held(bench: Bench, *, grids: list[list[int]], text: int, text_width: int, **network: Any) -> dict:
    """Forward and backward pass of frozen blocks, recomputed, their weights on the device and on the host."""
    grids = [tuple(grid) for grid in grids]
    layout, words = Packed.of(grids).to(bench.device), Packed.of_lengths([text] * len(grids)).to(bench.device)
    tokens = torch.randn(layout.tokens, CHANNELS * PATCH**2, device=bench.device)
    level = torch.rand(layout.frames, device=bench.device)
    states = torch.randn(words.tokens, text_width, device=bench.device)
    found: dict[str, Any] = {"tokens": layout.tokens, "ways": {}}
    for base in BASES:
        for swapped in (False, True):
            model = made(bench, base, swapped, {"text_width": text_width, **network})
            found.setdefault("parameters", sum(p.numel() for p in model.parameters()))
            flops = PASSES * dit_flops(model.config, grids, [text] * len(grids))

            def whole(model: nn.Module = model) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    out = model(tokens, level, states, layout, words)
                out.float().square().mean().backward()
                model.zero_grad(set_to_none=True)

            way = f"{base}{', on the host' * swapped}"
            found["ways"][way] = attempt(bench, whole, flops, layout.tokens)
            bench.report(found)
            del model, whole
    return found


def made(bench: Bench, base: str, swapped: bool, arguments: dict[str, Any]) -> VideoDiT:
    with bench.device:
        model = VideoDiT(latent_channels=CHANNELS, patch=PATCH, **arguments).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("query_norm" in name)
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()
    model.attention_backend = resolve_backend("auto", bench.device, torch.bfloat16, model.head_width)
    model.enable_gradient_checkpointing()
    if base != "whole":
        quantise(model.blocks, base)
    swap = BlockSwap(model.blocks.cpu(), len(model.blocks), bench.device) if swapped else None
    with swap.apart() if swap else nullcontext():
        return model.to(bench.device)
