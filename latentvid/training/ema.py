"""Exponential moving average of a model's trainable parameters, in fp32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``shadow[name] = d * shadow[name] + (1 - d) * parameter`` after every optimizer step.

    With ``warmup`` the decay of update n (from 0) is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights
    are forgotten early. Give the unwrapped model: ``shadow`` (fp32, on the parameters' devices) keeps its names.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay={decay} must be at least 0 and below 1")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in _trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the parameters as they are now."""
        ramp = (1 + self.updates) / (10 + self.updates) if self.warmup else self.decay
        parameters = [p.float() for p in self._matching(model)]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1 - min(self.decay, ramp))
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the model's trainable parameters (in their dtype) with the average."""
        torch._foreach_copy_(self._matching(model), list(self.shadow.values()))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit for bit, errors included."""
        parameters = self._matching(model)
        raw = [p.detach().clone() for p in parameters]
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, raw)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only, so that safetensors can hold it: ``updates`` (int64 scalar) and ``shadow.NAME``."""
        return {"updates": torch.tensor(self.updates), **{f"shadow.{k}": v for k, v in self.shadow.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores exactly what :meth:`state_dict` gave; ValueError names a parameter that does not match."""
        expected = {f"shadow.{k}": v.shape for k, v in self.shadow.items()} | {"updates": torch.Size()}
        found = {k: v.shape for k, v in state.items()}
        _check_same(expected, found, "the saved average")
        for name, value in self.shadow.items():
            value.copy_(state[f"shadow.{name}"])
        self.updates = int(state["updates"])

    def _matching(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's trainable parameters in the shadow's order."""
        parameters = _trainable(model)
        expected = {k: v.shape for k, v in self.shadow.items()}
        _check_same(expected, {k: p.shape for k, p in parameters.items()}, "the model")
        return [parameters[name] for name in self.shadow]


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _check_same(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], where: str) -> None:
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            have, want = found.get(name), expected.get(name)
            raise ValueError(
                f"{where} does not fit this EMA at {name}: {'missing' if have is None else tuple(have)} "
                f"instead of {'absent' if want is None else tuple(want)}"
            )
