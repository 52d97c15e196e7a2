"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import Muon
from torch import nn

from .config import Optim


def make_optimizer(model: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """AdamW, or Muon (Jordan et al. 2024) on matrices and convolution kernels with NAdamW on the rest.

    Vectors (biases, norm scales) are never decayed. Each group keeps its peak learning rate as `peak_lr`.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in trainable if p.ndim >= 2]
    vectors = [p for _, p in trainable if p.ndim < 2]
    if config.name == "adamw":
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    else:
        vector_lr = config.lr if config.vector_lr is None else config.vector_lr
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "use_fallback": False},
            {"params": vectors, "weight_decay": 0.0, "lr": vector_lr, "use_fallback": True},
        ]
        # conv_mode "flatten": a kernel is the matrix [C_out, C_in * kt * kh * kw]
        optimizer = Muon(
            groups, lr=config.lr, momentum=config.momentum, nesterov=True, betas=config.betas, conv_mode="flatten"
        )
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def lr_factor(step: int, steps: int, config: Optim) -> float:
    """Learning rate of step 0..steps-1 over its peak: linear warm-up, then cosine to `final`, or constant."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(groups: Sequence[dict[str, Any]], factor: float) -> float:
    """Sets each of an optimiser's groups to its peak times `factor`; returns the first group's learning rate."""
    for group in groups:
        group["lr"] = group["peak_lr"] * factor
    return groups[0]["lr"]
