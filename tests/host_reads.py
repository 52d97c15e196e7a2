"""Where a pass on a GPU makes the host wait for the device, counted on CUDA tensors without storage.

The host waits where it reads a number of the device (`item`, `bool`, `tolist`), and where it copies from memory that is
not pinned, unless it asks not to wait. Shapes that depend on values (`nonzero`, indexing by a mask) raise here.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import latentvid

PACKAGE = str(Path(latentvid.__file__).parent)
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.convolution.default}
COPIES = {aten._to_copy.default: None, aten.copy_.default: 2}  # and the place of `non_blocking`

# these kernels of CUDA take floating tensors of one dtype at these places, which tensors without storage do not check
ONE_DTYPE = {
    torch.ops.aten.native_layer_norm.default: (0, 2, 3),
    torch.ops.aten.native_layer_norm_backward.default: (0, 1, 5, 6),
    torch.ops.torch_attn._varlen_attn.default: (0, 1, 2),
    torch.ops.torch_attn._varlen_attn_backward.default: (0, 1, 2, 3, 4),
}


class Waits(TorchDispatchMode):
    """Counts waits by the line of the package that makes them; of what is read the answer is `answer`."""

    def __init__(self, answer: float = 1.0) -> None:
        super().__init__()
        self.answer, self.reads, self.copies = answer, Counter(), Counter()
        self.calls = Counter()  # of operators by name
        self.products = Counter()  # of matrices and convolutions, by type

    def clear(self) -> None:
        self.reads.clear()
        self.copies.clear()

    @property
    def lines(self) -> set[str]:
        """Files and functions that read."""
        return {f"{file.partition(':')[0]} {function}" for file, function in map(str.split, self.reads)}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves):
            with unset_fake_temporarily():  # the host's tensors are real
                return func(*args, **kwargs)
        self.calls[func._opname] += 1
        if func in READS:
            if _on_cuda(args):  # else it was copied from there, and that was counted
                self.reads[_line()] += 1
            kind = args[0].dtype
            return {torch.bool: bool, torch.float32: float}.get(kind, float if kind.is_floating_point else int)(
                self.answer
            )
        given = [args[i] for i in ONE_DTYPE.get(func, ()) if i < len(args) and isinstance(args[i], Tensor)]
        assert len({x.dtype for x in given}) <= 1, f"{func} of {[x.dtype for x in given]}"
        if func in PRODUCTS and _on_cuda(args):
            self.products[func._opname, args[1].dtype] += 1
        result = func(*args, **kwargs)
        if func in COPIES:
            place = COPIES[func]
            late = kwargs.get("non_blocking", False) or (place is not None and len(args) > place and args[place])
            source, target = (args[1], args[0]) if place else (args[0], result)
            if {source.device.type, target.device.type} == {"cpu", "cuda"} and not late:
                self.copies[_line()] += 1
        return result


def _on_cuda(values) -> bool:
    return any(isinstance(x, Tensor) and x.device.type == "cuda" for x in tree_leaves(values))


def _line() -> str:
    frame, found = sys._getframe(2), "outside"
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return found


@contextmanager
def on_fake_cuda(answer: float = 1.0) -> Iterator[Waits]:
    """Inside, tensors of the device "cuda" have no storage, others are real, and what would wait is counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), Waits(answer) as waits:
        yield waits


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, with parameters and buffers of the device "cuda", inside `on_fake_cuda`."""
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                new = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                part._parameters[name] = torch.nn.Parameter(new, requires_grad=x.requires_grad)
        for name, x in part._buffers.items():
            if x is not None:
                part._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device="cuda")
    return module


def run_backward(out: Tensor, grad: Tensor) -> None:
    """out.backward(grad), node by node: autograd's own engine asks for the device."""
    waits, seen, stack = defaultdict(int), {out.grad_fn}, [out.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    grads, ready = {out.grad_fn: {out.output_nr: grad}}, [out.grad_fn]
    while ready:
        node = ready.pop()
        taken = [_fitted(grads.get(node, {}).get(i), meta) for i, meta in enumerate(node._input_metadata)]
        if hasattr(node, "variable"):
            (given,) = taken
            node.variable.grad = given if node.variable.grad is None else node.variable.grad + given
            continue
        with torch.no_grad():
            given = node.apply(*taken) if hasattr(node, "apply") else node(*taken)
        given = given if isinstance(given, tuple) else (given,)
        # functions in Python give None for arguments that are no tensors, here always the last
        for (follower, place), x in zip(node.next_functions, given, strict=False):
            if follower is not None:
                if x is not None:
                    held = grads.setdefault(follower, {})
                    held[place] = x if place not in held else held[place] + x
                waits[follower] -= 1
                if not waits[follower]:
                    ready.append(follower)


def _fitted(x: Tensor | None, meta) -> Tensor:
    """As the engine does: zeros for none, and gradients in shape and dtype of what they are of."""
    if x is None:
        return torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device)
    assert x.device == meta.device
    return (x if x.shape == meta.shape else x.sum_to_size(tuple(meta.shape))).to(meta.dtype)
