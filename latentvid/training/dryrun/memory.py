"""Memory that training takes on each device, estimated without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from ... import kernels
from ...config.schema import TrainingConfig
from ...models import transformer
from ...models.budget import Lifetimes
from ...models.compiling import compile_blocks, uncompile_blocks
from ...models.open import backbone as open_backbone
from ...models.quantised import is_quantised
from .. import adamw8bit
from ..optim import Part
from ..parallel.block_swap import swapped_bytes
from ..task import Pack, Task

# optimisers of whole parameters, and the strategies that cut these
UNCUT = {"muon": ("ZeRO-1", "ZeRO-2", "ZeRO-3"), adamw8bit.NAME: ("FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")}


class StateBytes(NamedTuple):
    """Bytes on each device."""

    weights: float
    gradients: float
    optimizer: float
    average: float


def state_bytes(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    optimizer: str,
    world: int,
    apart: Sequence[Part] = (),
    ragged: bool = False,
    swap: int = 0,
) -> Iterator[tuple[str, int, StateBytes]]:
    """(strategy, processes, what it holds) for all strategies at this world size (8 where that is one process).

    What is trained and its state are fp32. Sharding is by 1/n: by ZeRO-1 of the moments and the average, with a second,
    sharded copy of the trained weights; by ZeRO-2 of the gradients too; by FSDP2 and ZeRO-3 of everything, plus the one
    block that is gathered. ragged: as a task says it, without FSDP2 and ZeRO-3, which gather in every call. swap:
    so many blocks are on the host, which needs whole weights.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, held = size(model), sum(4 * p.numel() for p in trained)
    beside = {id(p) for part in apart for p in model.get_submodule(part.name).parameters()}  # which AdamW steps
    matrices = sum(4 * p.numel() for p in trained if p.ndim >= 2 and id(p) not in beside)
    moments = 2 * held - (matrices if optimizer == "muon" else 0)  # Muon keeps one moment of a matrix, AdamW two
    if optimizer == adamw8bit.NAME:
        moments = sum(map(adamw8bit.moment_bytes, trained))
    weights -= swapped_bytes(getattr(model, "in_order", blocks), swap)
    rows = shared_state(weights, held, moments, largest(model, blocks), world)
    left_out = set(UNCUT[adamw8bit.NAME] if swap or is_quantised(model) else UNCUT.get(optimizer, ()))
    left_out |= {"FSDP2", "ZeRO-3"} if ragged else set()
    return (row for row in rows if row[0] not in left_out)


def shared_state(
    weights: float, held: float, moments: float, block: float, world: int
) -> Iterator[tuple[str, int, StateBytes]]:
    """`state_bytes` of so many bytes of weights, of trained ones in fp32, of moments, and of the largest block."""
    if world == 1:
        yield "single", 1, StateBytes(weights, held, moments, held)
    n = world if world > 1 else 8
    yield "DDP", n, StateBytes(weights, held, moments, held)
    yield "FSDP2", n, StateBytes(weights / n + block, held / n, moments / n, held / n)
    yield "ZeRO-1", n, StateBytes(weights + held / n, held, moments / n, held / n)
    yield "ZeRO-2", n, StateBytes(weights + held / n, held / n, moments / n, held / n)
    yield "ZeRO-3", n, StateBytes((weights + held) / n + block, held / n, moments / n, held / n)


class Passes(Protocol):
    """What counting a pass needs of a task."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    config: TrainingConfig

    def loss(self, model: Callable, pack: Pack | None, step: int) -> tuple[Tensor, dict[str, Tensor]]: ...


class Activations(NamedTuple):
    """Bytes that a forward pass and its loss keep for the backward pass.

    recomputing: with gradient checkpointing, when the backward pass has one block's again; None where the model
    cannot do it.
    """

    kept: int
    recomputing: int | None


class PassBytes(NamedTuple):
    """The most that passes hold at a time beside weights and inputs, in bytes.

    Activations, autocast's copies of the weights, and temporaries: in the `forward` pass, and in the backward pass with
    gradients: `leaving` if a parameter's gradient leaves as soon as it is whole, `staying` if all of them stay, from
    none at the start.
    """

    forward: int
    leaving: int
    staying: int


def activation_bytes(task: Task, pack: Pack, gpu: bool = False) -> Activations:
    """What training on this pack keeps, parameters left out and autocast's copies of them counted.

    gpu: as bf16 on CUDA computes, by plain formulas and with `torch` attention. With `train.compile` the compiler is
    asked what it keeps, which takes some seconds.

    Counted on tensors without storage: neither the time nor the memory of the pass is spent, nor a GPU needed.
    """
    kept = _saved_bytes(task, pack, False, gpu, _compiles(task))
    if not task.recomputes:
        return Activations(kept, None)
    inputs = _saved_bytes(task, pack, True, gpu)
    return Activations(kept, inputs + (kept - inputs) // max(1, len(task.blocks)))


def pass_bytes(task: Passes, pack: Pack | None, checkpointing: bool, gpu: bool = False) -> PassBytes:
    """What training on this pack takes when it takes most.

    Counted as `activation_bytes` does. What kernels take inside is not seen. Compiled blocks are counted as eager ones,
    less what these keep more.
    """
    with _fake(task, checkpointing, gpu) as parameters:
        count = _Peaks(torch.device("cpu"))

        def have(p: Tensor) -> None:
            count.gradients += p.grad.untyped_storage().nbytes()

        hooks = [p.register_post_accumulate_grad_hook(have) for p in parameters]
        with count:
            losses, _ = task.loss(_autocast(task), pack, task.config.train.steps - 1)
            forward = count.begin_anew()
            losses.sum().backward()
        for hook in hooks:
            hook.remove()
    less = 0
    if _compiles(task):
        less = _saved_bytes(task, pack, False, gpu) - _saved_bytes(task, pack, False, gpu, compiled=True)
        less //= len(task.blocks) if checkpointing else 1
    return PassBytes(forward - less, count.leaving - less, count.peak - less)


class _Peaks(Lifetimes):
    """`leaving`: the peak of what is alive beside whole gradients, of which there are `gradients` bytes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.gradients = self.leaving = 0

    def begin_anew(self) -> int:
        """The peak so far; later ones are of what follows."""
        peak, self.peak, self.leaving = self.peak, self.live, self.live - self.gradients
        return peak

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.leaving = max(self.leaving, self.live - self.gradients)
        return result


def _autocast(task: Passes) -> Callable:
    """The model's forward pass as strategies call it."""
    half = task.config.train.mixed_precision == "bf16"

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            out = task.model(*args, **kwargs)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    call.module = task.model  # as what wraps a model has it, for losses that look into it
    return call


@contextmanager
def _fake(task: Passes, checkpointing: bool, gpu: bool) -> Iterator[list[nn.Parameter]]:
    """Inside, nothing that is computed has storage, and the model's parameters are these, which have none either."""
    known = [p for p in task.model.parameters() if isinstance(p, FakeTensor)]
    mode = known[0].fake_mode if known else FakeTensorMode(allow_non_fake_inputs=True)
    bare = {id(p): p.detach() if known else mode.from_tensor(p.detach()) for p in task.model.parameters()}
    made = {id(p): nn.Parameter(bare[id(p)], p.requires_grad) for p in task.model.parameters()}
    places = [(m, name, p) for m in task.model.modules() for name, p in m._parameters.items() if p is not None]
    settings = {"attention_backend": "auto", "gradient_checkpointing": checkpointing}
    # what has no storage needs no GPU for its attention
    choice = {"resolve_backend": (lambda *_: "torch") if gpu else transformer.resolve_backend}
    try:
        for module, name, p in places:
            module._parameters[name] = made[id(p)]
        with (
            _set(task.model, settings),
            _set(transformer, choice),
            _set(open_backbone, choice),
            _set(kernels, {"plain": gpu}),
            mode,
        ):
            yield [p for p in made.values() if p.requires_grad]
    finally:
        for module, name, p in places:
            module._parameters[name] = p


def _saved_bytes(task: Passes, pack: Pack, checkpointing: bool, gpu: bool, compiled: bool = False) -> int:
    kept: dict[int, Any] = {}  # storages; held, so that none takes another's address
    with _fake(task, checkpointing, gpu), _compiled(task.model) if compiled else nullcontext():
        own = {p.untyped_storage()._cdata for p in task.model.parameters()}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            task.loss(_autocast(task), pack, task.config.train.steps - 1)  # when everything that ever works does
    return sum(storage.nbytes() for storage in kept.values())


def _compiles(task: Passes) -> bool:
    return task.config.train.compile and len(task.blocks) > 0


@contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """Inside, blocks keep what compiled ones do: cut by the compiler into passes, but without its kernels."""
    compile_blocks(model, backend="aot_eager_decomp_partition")
    try:
        yield
    finally:
        uncompile_blocks(model)


@contextmanager
def _set(model: Any, settings: dict[str, Any]) -> Iterator[None]:
    """Inside, those of the attributes that it has are as given."""
    before = {key: getattr(model, key) for key in settings if hasattr(model, key)}
    try:
        for key in before:
            setattr(model, key, settings[key])
        yield
    finally:
        for key, value in before.items():
            setattr(model, key, value)


def size(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def largest(model: nn.Module, blocks: Sequence[nn.Module]) -> int:
    """Bytes of the largest of a model's blocks, which strategies gather one by one; of all where it has none."""
    return max(map(size, blocks), default=size(model))
