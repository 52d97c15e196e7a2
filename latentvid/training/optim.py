"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.optim import muon
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from ..config.sections import Optim
from . import adamw8bit


@dataclass(frozen=True)
class Part:
    """A sub-module that is trained beside the rest: at a rate of its own, clipped by its own norm.

    name: of the sub-module, and in the log (`NAME_grad_norm`). lr: its peak. start: step from which it learns; its
    warm-up begins there. updates: of it for each one of the rest of the model, which comes with the last of them.
    """

    name: str
    lr: float
    start: int = 0
    updates: int = 1


def rests(apart: Sequence[Part], step: int) -> bool:
    """Whether the rest of the model does not learn at a step (from 0) of a stage."""
    return any((step + 1) % part.updates for part in apart)


class Muon(muon.Muon):
    """timm's, with Newton-Schulz in a type of choice: it has no setting for it, and bf16 is 50 times slower than fp32
    on processors without bf16 instructions."""

    def __init__(self, *args: Any, newton_schulz: torch.dtype, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.newton_schulz = newton_schulz

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        usual = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(_orthogonalised, usual=usual, dtype=self.newton_schulz)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = usual


def _orthogonalised(
    g: Tensor,
    steps: int,
    coefficients: Sequence[tuple[float, float, float]],
    *,
    usual: Callable[..., Tensor],
    dtype: torch.dtype,
    eps: float,
    safety_factor: float,
    scale_eps: bool,
) -> Tensor:
    """Newton-Schulz of g [m,n] or [n,m]: `usual` is timm's.

    In fp32, matrices of n >= 2m go through powers of g g^T, which all commute: X_k = P_k X_0, and A_k = X_k X_k^T
    follows from P_k alone. The products are [m,m] then, but for the first and the last.

    Of a matrix that FSDP2 shards, each process gathers the whole, computes as one alone does, and keeps its own rows.
    """
    if isinstance(g, DTensor):
        options = {"eps": eps, "safety_factor": safety_factor, "scale_eps": scale_eps}
        made = _orthogonalised(g.full_tensor(), steps, coefficients, usual=usual, dtype=dtype, **options)
        same = DTensor.from_local(made, g.device_mesh, [Replicate()] * g.device_mesh.ndim, run_check=False)
        return same.redistribute(placements=g.placements)
    if dtype != torch.float32 or g.ndim != 2 or max(g.shape) < 2 * min(g.shape) or scale_eps:
        options = {"eps": eps, "safety_factor": safety_factor, "scale_eps": scale_eps}
        return usual(g, steps, coefficients, dtype=dtype, **options)
    x = g.float()
    x = x.mT if len(x) > x.shape[1] else x
    x = x / (x.norm() * safety_factor).clamp(min=eps)
    sequence = [*coefficients[:steps], *[coefficients[-1]] * (steps - len(coefficients))]
    a, total = x @ x.mT, None
    for number, (first, second, third) in enumerate(sequence, 1):
        factor = torch.addmm(a, a, a, beta=second, alpha=third)
        factor.diagonal().add_(first)
        total = factor if total is None else factor @ total
        if number < len(sequence):
            a = factor @ (a @ factor)
    x = total @ x
    return x.mT if len(g) > g.shape[1] else x


ADAMW: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    adamw8bit.NAME: adamw8bit.AdamW8bit,
}


def make_optimizer(
    model: nn.Module, config: Optim, apart: Sequence[Part] = (), newton_schulz: torch.dtype = torch.bfloat16
) -> torch.optim.Optimizer:
    """AdamW, also in 8 bits, or Muon (Jordan et al. 2024) on matrices and convolution kernels with NAdamW on the rest.

    Vectors (biases, norm scales) are never decayed, nor is what is `apart`, which AdamW (NAdamW) steps under either
    name; `newton_schulz` is the type that Muon's iteration computes in. Each group keeps its peak learning rate as
    `peak_lr`, its `start`, and the name of its `part` ("": the rest).
    """
    beside = {id(p) for part in apart for p in model.get_submodule(part.name).parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in beside]
    matrices = [p for p in trainable if p.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2]
    others = [
        {"params": list(model.get_submodule(part.name).parameters()), "weight_decay": 0.0, "lr": part.lr}
        | {"start": part.start, "part": part.name}
        for part in apart
    ]
    if config.name in ADAMW:
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            *others,
        ]
        optimizer = ADAMW[config.name](_filled(groups), lr=config.lr, betas=config.betas)
    else:
        vector_lr = config.lr if config.vector_lr is None else config.vector_lr
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "use_fallback": False},
            {"params": vectors, "weight_decay": 0.0, "lr": vector_lr, "use_fallback": True},
            *({**group, "use_fallback": True} for group in others),
        ]
        # conv_mode "flatten": a kernel is the matrix [C_out, C_in * kt * kh * kw]
        optimizer = Muon(
            _filled(groups),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=True,
            betas=config.betas,
            conv_mode="flatten",
            newton_schulz=newton_schulz,
        )
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
        group.setdefault("start", 0)
        group.setdefault("part", "")
    return optimizer


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without groups of no parameters, which an adapter without vectors leaves: ZeRO cannot flatten them."""
    return [group for group in groups if group["params"]]


def ramp(since: int, length: int) -> float:
    """0 before step 0, then linearly up to 1 within `length` steps."""
    return 0.0 if since < 0 else min(1.0, (since + 1) / max(1, length))


def _constant(step: int, steps: int, config: Optim) -> float:
    return 1.0


def _cosine(step: int, steps: int, config: Optim) -> float:
    """Half a cosine over the whole run, down to `final` (Loshchilov & Hutter 2017)."""
    progress = max(0, step - config.warmup) / max(1, steps - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _wsd(step: int, steps: int, config: Optim) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the last steps fall as 1 - sqrt(progress) (Haegele et al. 2024)."""
    length = min(steps, max(1, steps // 10) if config.decay_steps is None else config.decay_steps)
    progress = min(1.0, max(0, step + 1 - (steps - length)) / length)
    return config.final + (1 - config.final) * (1 - math.sqrt(progress))


def _inverse_sqrt(step: int, steps: int, config: Optim) -> float:
    """sqrt(n / step) from step n on (Vaswani et al. 2017; Karras et al. 2024)."""
    begin = max(1, config.warmup) if config.decay_from is None else config.decay_from
    return math.sqrt(begin / max(begin, step + 1))


# of a step from 0 in a run of so many, over the peak; the warm-up multiplies it
SCHEDULES: dict[str, Callable[[int, int, Optim], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
}


def lr_factor(step: int, steps: int, config: Optim, start: int = 0) -> float:
    """Learning rate of step 0..steps-1 over its peak: 0 before `start`, linear warm-up from there, times what the
    schedule gives over the whole run."""
    return ramp(step - start, config.warmup) * SCHEDULES[config.schedule](step, steps, config)


def set_lr(groups: Sequence[dict[str, Any]], step: int, steps: int, config: Optim) -> float:
    """Sets each of an optimiser's groups to its rate at a step; returns the first group's learning rate."""
    for group in groups:
        group["lr"] = group["peak_lr"] * lr_factor(step, steps, config, group["start"])
    return groups[0]["lr"]
