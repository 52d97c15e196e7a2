"""Tensors that the backward pass computes again rather than keep: those that cost little to make from what is kept.

`rematerialised` marks a tensor with how it is made. What runs inside `rematerialising` keeps, instead of a marked
tensor, what it is made of, whatever keeps it: an attention operator, a linear layer, an adapter around one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def rematerialised(x: Tensor, make: Callable[..., Tensor], *of: Tensor | None) -> Tensor:
    """x, marked as equal to make(*of)."""
    if x.requires_grad and torch.is_grad_enabled():
        x._made = make, [None if part is None else part.detach() for part in of]
    return x


def rematerialising() -> AbstractContextManager:
    """Inside, autograd keeps of marked tensors what they are made of.

    Hooks that are in place already, such as those of activation checkpointing, go on to see what is kept.
    """
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
    keep, give = outer if outer is not None else (Tensor.detach, _same)

    def pack(x: Tensor) -> Any:
        if not hasattr(x, "_made"):
            return None, keep(x)
        make, of = x._made
        return make, [None if part is None else keep(part) for part in of]

    def unpack(kept: Any) -> Tensor:
        make, of = kept
        return give(of) if make is None else make(*(None if part is None else give(part) for part in of))

    return saved_tensors_hooks(pack, unpack)


def _same(x: Tensor) -> Tensor:
    return x
