"""How a model is spread over processes, behind one interface: one process, DDP, FSDP2 (ZeRO: see zero.py).

`accelerate launch` chooses (its configuration file or flags); the trainer asks for nothing that only one of them has.
Parameters, moments and averages are fp32 under every strategy; `train.mixed_precision` is autocast of the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...config.schema import TrainingConfig
from ...errors import UserError
from ...models.quantised import is_quantised
from .. import adamw8bit
from ..adamw8bit import AdamW8bit
from .deferred import fill
from .pieces import Piece


def load_whole(accelerator: Accelerator) -> None:
    """Frozen encoders are loaded whole: without this, transformers partitions what it loads under ZeRO-3."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        from transformers.integrations import unset_hf_deepspeed_config

        plugin.zero3_init_flag = False
        unset_hf_deepspeed_config()


def refuse_quantised(model: nn.Module, strategy: str) -> None:
    """Raises UserError for frozen layers of codes: a strategy that shards weights knows floating ones alone."""
    if is_quantised(model):
        raise UserError(
            f"adapter.base: {strategy} cannot shard quantised weights: launch DDP, where each process holds them all, "
            "or set adapter.base=whole"
        )


Read = Callable[[Mapping[str, Tensor]], dict[str, float]]


def whole(norm: Tensor) -> Tensor:
    """A norm that is spread over processes, put together."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _read(norms: Mapping[str, Tensor]) -> dict[str, float]:
    return {key: float(whole(norm)) for key, norm in norms.items()}


class Strategy:
    """What the trainer needs of any strategy. `module` is the model itself, `model` what to call in training."""

    name: str
    sharded = False  # processes hold different elements
    keeps_gradients = False  # between steps, as tensors that are written again

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, model: nn.Module, optimizer) -> None:
        self.accelerator, self.module = accelerator, model
        self.clip = config.optim.clip or math.inf  # 0 is off
        self.skip_above = config.optim.skip_norm
        self.precision = torch.bfloat16 if config.train.mixed_precision == "bf16" else None
        self.raw_optimizer = optimizer  # without what accelerate puts around it
        self.apart = [group["part"] for group in optimizer.param_groups if group["part"]]
        self._set_up(config)
        if self.sharded:  # neither FSDP2 nor ZeRO takes weights whose channels come last
            for parameter in model.parameters():
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self.model, self.optimizer = self._spread(model, optimizer)

    def _spread(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return self.accelerator.prepare(model, optimizer)

    def _set_up(self, config: TrainingConfig) -> None:
        """Settles what must be known before the model is spread."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass in the compute type; what it returns is fp32."""
        device = self.accelerator.device.type
        with torch.autocast(device, self.precision) if self.precision else nullcontext():
            out = self.model(*args, **kwargs)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Inside, forward and backward pass of one of a step's packs; gradients meet with the last one."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Adds this process's share of the gradient; over the processes the mean is taken."""
        loss.backward()

    def update(self, rest: bool = False, read: Read | None = None) -> tuple[dict[str, float], bool]:
        """Clips and steps, or skips a gradient norm that is not finite or, of the main part, above `optim.skip_norm`.

        Returns ({"grad_norm": of the main part, "NAME_grad_norm": of each other}, stepped). Each part is clipped by
        its own norm, so that none shrinks another's step. rest: the main part does not learn at this step: neither its
        weights nor the optimiser's state of them change, and it has no norm. read: brings the norms to the host, once;
        not called where something else reads them.
        """
        beside = {name: list(self.module.get_submodule(name).parameters()) for name in self.apart}
        known = {id(p) for parameters in beside.values() for p in parameters}
        main = [p for p in self.model.parameters() if id(p) not in known]
        parts = {} if rest else {"grad_norm": main}
        parts |= {f"{name}_grad_norm": parameters for name, parameters in beside.items()}
        norms = (read or _read)({key: self.accelerator.clip_grad_norm_(part, self.clip) for key, part in parts.items()})
        good = self._good(norms.get("grad_norm", 0.0)) and all(map(math.isfinite, norms.values()))
        if good:
            with _left_out(main if rest else ()):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        return norms, good

    def _good(self, norm: float) -> bool:
        return math.isfinite(norm) and (self.skip_above is None or norm <= self.skip_above)

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        return self.optimizer.param_groups

    def pieces(self) -> list[Piece]:
        """What this process holds of each parameter, in the model's order, with the optimiser's state as it is now."""
        raise NotImplementedError

    def push(self) -> None:
        """Makes the model compute with the pieces' values, after something wrote to them."""

    def make_state(self, keys: Mapping[str, Sequence[str]], scalars: Mapping[str, Mapping[str, Any]]) -> None:
        """Gives the optimiser the state (zeros) that its first step would: {parameter: keys}, {parameter: scalars}."""
        raise NotImplementedError


class Whole(Strategy):
    """One process, or DDP: every process holds every parameter."""

    @property
    def name(self) -> str:
        return "DDP" if self.accelerator.num_processes > 1 else "single"

    @property
    def keeps_gradients(self) -> bool:
        """DDP's are views of its buckets, which are there from the start."""
        return self.accelerator.num_processes > 1

    def _owner(self, parameter: Tensor) -> bool:
        return self.accelerator.is_main_process

    def _local(self, parameter: Tensor) -> tuple[int, Tensor]:
        return 0, parameter.detach()

    def _local_state(self, value: Tensor) -> Tensor:
        return value

    def pieces(self) -> list[Piece]:
        state = self.optimizer.state
        found = []
        for name, parameter in self.module.named_parameters():
            start, value = self._local(parameter)
            piece = Piece(name, tuple(parameter.shape), start, value, parameter.requires_grad, self._owner(parameter))
            for key, entry in state.get(parameter, {}).items():
                if torch.is_tensor(entry) and entry.shape == parameter.shape:
                    piece.moments[key] = self._local_state(entry)
                elif torch.is_tensor(entry) and entry.ndim:
                    piece.scales[key] = entry
                else:
                    piece.scalars[key] = entry
            found.append(piece)
        return found

    def make_state(self, keys: Mapping[str, Sequence[str]], scalars: Mapping[str, Mapping[str, Any]]) -> None:
        group_of = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in self.module.named_parameters():
            if name in keys:
                made = {k: on_device(v, group_of[id(parameter)], parameter) for k, v in scalars[name].items()}
                if isinstance(self.raw_optimizer, AdamW8bit):
                    made = self.raw_optimizer.new_state(parameter) | made
                else:
                    made |= {k: torch.zeros_like(parameter) for k in keys[name]}
                self.optimizer.state[parameter] = made


class Fsdp2(Whole):
    """Parameters, gradients and moments sharded by rows (DTensor); gathered block by block for computing.

    They are gathered in fp32 and cast by autocast: a policy of bf16 parameters would also round the norms' weights.
    """

    name = "FSDP2"
    keeps_gradients = False
    sharded = True

    def _set_up(self, config: TrainingConfig) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UserError("FSDP version 1 is not supported: set fsdp_version: 2 in the accelerate configuration")
        if config.optim.name == adamw8bit.NAME:
            raise adamw8bit.refusal("FSDP2")
        refuse_quantised(self.module, "FSDP2")

    def _spread(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """A model without storage (`deferred`) gets its shards here, and no process ever has the whole."""
        if (how := getattr(model, "deferred", None)) is None:
            return super()._spread(model, optimizer)
        for number, parameter in enumerate(model.parameters()):  # by which accelerate knows them again: all are at 0
            parameter.data_ptr = partial(int, number)
        model, optimizer = super()._spread(model, optimizer)
        bare = list(model.parameters())
        offloaded = self.accelerator.state.fsdp_plugin.cpu_offload
        model.to_empty(device="cpu" if offloaded else self.accelerator.device)
        made = {id(before): after for before, after in zip(bare, model.parameters(), strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [made[id(parameter)] for parameter in group["params"]]
        fill(model, how)
        return model, optimizer

    def _owner(self, parameter: Tensor) -> bool:
        mesh = parameter.device_mesh
        return all(mesh.get_local_rank(i) == 0 for i, p in enumerate(parameter.placements) if p.is_replicate())

    def _local(self, parameter: Tensor) -> tuple[int, Tensor]:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if any(p.is_shard() and p.dim != 0 for p in parameter.placements):
            raise RuntimeError(f"FSDP2 sharded a parameter by another dimension than its rows: {parameter.placements}")
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        row = torch.Size(parameter.shape[1:]).numel()
        return (offset[0] if offset else 0) * row, parameter.detach().to_local()

    def _local_state(self, value: Tensor) -> Tensor:
        return value.to_local()

    def push(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        for module in self.module.modules():  # what a forward pass without a backward pass left gathered is stale
            if isinstance(module, FSDPModule):
                module.reshard()


@contextmanager
def _left_out(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, these have no gradient, so that an optimiser passes over them and their state."""
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient


def on_device(value: Any, group: Mapping[str, Any], parameter: Tensor) -> Any:
    """A scalar of the optimiser's state where torch keeps it: fused and capturable steps live beside the parameter."""
    if torch.is_tensor(value) and (group.get("fused") or group.get("capturable")):
        return value.to(parameter.device)
    return value
