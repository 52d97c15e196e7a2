"""A new model of which each process makes its own part alone, with the numbers that the whole one would have.

It is built without storage, while what its constructor draws is written down (`without_storage`). Once it is sharded,
the draws are made again in their order, a tensor at a time, and of each a process keeps its rows (`fill`). So the
weights are bit for bit those of a model that is built whole, on any number of processes, and no process holds more than
its part and the largest parameter. What is drawn and written over by a later draw is drawn too, and let go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

M = TypeVar("M", bound=nn.Module)

_aten = torch.ops.aten
_DRAWN = (_aten.uniform_.default, _aten.normal_.default)  # in their place, over all of a tensor
_FILLED = (_aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor)
_MADE = (_aten.ones.default, _aten.zeros.default, _aten.full.default)  # of a shape, full of a value
_BARE = (_aten.empty.memory_format, _aten.empty_strided.default, _aten.detach.default, _aten.alias.default)


@dataclass(frozen=True)
class Write:
    """A constructor's write over all of a tensor: `call(tensor, *arguments)`, of a tensor of this shape.

    target: by which parameters are known; tensors of one storage have the same.
    """

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    shape: torch.Size
    target: int

    @property
    def drawn(self) -> bool:
        return self.call in _DRAWN


@dataclass
class _Recorder(TorchDispatchMode):
    writes: list[Write] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)  # storages, so that none takes another's address

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (*_DRAWN, *_FILLED):
            tensor, *rest = args
            given = {key for key, value in kwargs.items() if value is not None}
            if given or tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
                raise NotImplementedError(f"{func} of a part of a tensor, or with {sorted(given)}")
            self._write(func, tuple(rest), tensor)
        elif func in _MADE:
            value = args[1] if func is _aten.full.default else float(func is _aten.ones.default)
            self._write(_aten.fill_.Scalar, (value,), made)
        elif func not in _BARE:
            raise NotImplementedError(f"{func} in a constructor whose tensors have no storage")
        return made

    def _write(self, call: Callable[..., Any], arguments: tuple[Any, ...], tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.held.append(storage)
        self.writes.append(Write(call, arguments, tensor.shape, storage._cdata))


@dataclass
class Deferred:
    """How to fill a model that was built without storage. last: of each parameter, by name, the number of the last of
    the `writes`, which is what it begins with."""

    seed: int
    writes: list[Write]
    last: dict[str, int]


def without_storage(make: Callable[[], M], seed: int) -> tuple[M, Deferred]:
    """What `make` gives, on `meta`, and how to fill it as `torch.manual_seed(seed)` and `make` would.

    Raises NotImplementedError for a constructor that does more than to draw and to fill whole tensors.
    """
    with _Recorder() as recorder, torch.device("meta"):
        model = make()
    number = {write.target: i for i, write in enumerate(recorder.writes)}  # the last one stands
    if next(model.buffers(), None) is not None:
        raise NotImplementedError(f"{type(model).__name__} has buffers, whose values nothing tells")
    if len([*model.named_parameters(remove_duplicate=False)]) > len([*model.parameters()]):
        raise NotImplementedError(f"{type(model).__name__} has parameters in two places, which would become two")
    last = {}
    for name, parameter in model.named_parameters():
        target = parameter.untyped_storage()._cdata
        if target not in number:
            raise NotImplementedError(f"{name} is never written")
        last[name] = number[target]
    return model, Deferred(seed, recorder.writes, last)


@torch.no_grad()
def fill(model: nn.Module, deferred: Deferred) -> None:
    """Writes the parameters, sharded by rows (DTensor) or whole, wherever they are, with storage of any content."""
    generator = torch.Generator().manual_seed(deferred.seed)
    wanted: dict[int, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        wanted.setdefault(deferred.last[name], []).append(parameter)
    for i, write in enumerate(deferred.writes):
        targets = wanted.get(i, [])
        if write.drawn:
            whole = torch.empty(write.shape)
            write.call(whole, *write.arguments, generator=generator)
            for parameter in targets:
                mine, rows = _local(parameter)
                mine.copy_(whole[rows] if whole.ndim else whole)
        else:
            for parameter in targets:
                write.call(_local(parameter)[0], *write.arguments)


def _local(parameter: Tensor) -> tuple[Tensor, slice]:
    """What this process has of a parameter, and which rows these are."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), slice(None)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    start = offset[0] if offset else 0
    return parameter.detach().to_local(), slice(start, start + (shape[0] if shape else 1))
