"""AdamW whose two moments take a byte each of a parameter, by the kernels of bitsandbytes (an extra)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

BLOCK = 256  # elements that share a scale
LEAST = 4096  # elements of a parameter below which the moments stay fp32, as bitsandbytes has it
NAME = "adamw8bit"  # of `optim.name`
# key of a moment, of its blocks' scales, and whether it has a sign
MOMENTS = (("exp_avg", "exp_avg_scale", True), ("exp_avg_sq", "exp_avg_sq_scale", False))


def check_there() -> None:
    """Raises UserError where the package is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"optim.name={NAME} needs the package bitsandbytes: pip install 'latentvid[quantised]', or set "
            "optim.name=adamw"
        )


def refusal(strategy: str) -> UserError:
    """What a strategy that cuts the optimiser's state says."""
    return UserError(
        f"optim.name={NAME} has one scale for {BLOCK} elements of a whole parameter, which {strategy} cuts elsewhere: "
        "use adamw, or launch DDP"
    )


def moment_bytes(parameter: Tensor) -> int:
    """What the optimiser holds of a parameter."""
    count = parameter.numel()
    return 8 * count if count < LEAST else 2 * (count + 4 * -(-count // BLOCK))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with moments in 8 bits (Dettmers et al. 2022, section 2).

    A block of `BLOCK` elements, in the row-major order of the parameter, has a scale: its largest magnitude. An element
    is a code (uint8) of a number in [-1, 1], of the second moment in [0, 1], that the scale multiplies; codes are dense
    where numbers are small. Both are decoded, moved on in fp32 and coded again by one kernel. Parameters are fp32, and
    those of fewer than `LEAST` elements have fp32 moments. Raises UserError without bitsandbytes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        check_there()
        from bitsandbytes.functional import create_dynamic_map

        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "eps": eps})
        self._maps = {signed: create_dynamic_map(signed=signed) for _, _, signed in MOMENTS}

    def new_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What is held of a parameter before its first step."""
        state: dict[str, Any] = {"step": 0}
        small = parameter.numel() < LEAST
        like = {"device": parameter.device, "dtype": torch.float32}
        for key, scale, _ in MOMENTS:
            state[key] = torch.zeros(parameter.shape, **like | ({} if small else {"dtype": torch.uint8}))
            if not small:
                state[scale] = torch.zeros(-(-parameter.numel() // BLOCK), **like)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Steps all parameters that have a gradient. The host waits for nothing."""
        if closure is not None:
            raise ValueError("a step of AdamW8bit evaluates no loss: call it without a closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.state[parameter] = self.new_state(parameter)
                    self._update(parameter, group, self.state[parameter])

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
        state["step"] += 1
        # kernels read memory in its order: weights whose channels come last are brought into that of the moments
        value, gradient = parameter.detach().contiguous(), parameter.grad.contiguous()
        (first, second), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        step, lr = state["step"], float(group["lr"])
        both = (gradient, value, state["exp_avg"], state["exp_avg_sq"])
        if "exp_avg_scale" not in state:
            update = torch.ops.bitsandbytes.optimizer_update_32bit
            update("adam", *both, None, 0.0, 0.0, first, second, 0.0, 0.0, eps, decay, step, lr, 1.0, False)
        else:
            update = torch.ops.bitsandbytes.optimizer_update_8bit_blockwise
            maps = (self._map(signed, parameter.device) for _, _, signed in MOMENTS)
            scales = (state[scale] for _, scale, _ in MOMENTS)
            update("adam", *both, first, second, 0.0, 0.0, eps, step, lr, *maps, *scales, decay, 1.0, False)
        if value.data_ptr() != parameter.data_ptr():
            parameter.copy_(value)

    def _map(self, signed: bool, device: torch.device) -> Tensor:
        """[256] what each code stands for."""
        if self._maps[signed].device != device:
            self._maps[signed] = self._maps[signed].to(device)
        return self._maps[signed]
