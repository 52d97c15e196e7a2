"""DeepSpeed's ZeRO-1/2/3 as strategies, and the choice among all strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ...config.schema import TrainingConfig
from ...errors import UserError
from ...world import check_calls
from .. import adamw8bit
from .pieces import Piece
from .strategy import Fsdp2, Read, Strategy, Whole, on_device, refuse_quantised


def make_strategy(
    accelerator: Accelerator, config: TrainingConfig, model: nn.Module, optimizer: torch.optim.Optimizer, ragged: bool
) -> Strategy:
    """Spreads the model and its optimiser as the launch asked for.

    ragged: processes may call the model unequally often for a pack, which would hang where they meet in each call.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        chosen = {1: Zero12, 2: Zero12, 3: Zero3}.get(stage)
        if chosen is None:
            raise UserError(f"zero_optimization.stage is {stage}: 1, 2 or 3 is supported; without ZeRO launch DDP")
    else:
        chosen = Fsdp2 if kind == DistributedType.FSDP else Whole
    if chosen is Zero3 and config.train.compile:
        raise UserError(
            "train.compile=true: ZeRO-3 gathers weights module by module, which compiled blocks do not allow: set "
            "train.compile=false, or launch FSDP2, ZeRO-2 or DDP"
        )
    if config.train.swap_blocks and chosen is not Whole:
        raise UserError(
            f"train.swap_blocks={config.train.swap_blocks}: FSDP2 and ZeRO shard the blocks' weights, or offload them "
            "themselves: launch DDP, or set train.swap_blocks=0"
        )
    if ragged:
        check_calls(type(model).__name__)
    return chosen(accelerator, config, model, optimizer)


class Zero(Strategy):
    """DeepSpeed. The engine reduces gradients, clips and steps; a norm not to be stepped with is shown to it as inf."""

    sharded = True

    def _set_up(self, config: TrainingConfig) -> None:
        if config.optim.name == "muon":
            raise UserError(
                "optim.name=muon needs whole matrices, which ZeRO flattens: use adamw, or launch DDP or FSDP2"
            )
        if config.optim.name == adamw8bit.NAME:
            raise adamw8bit.refusal("ZeRO")
        refuse_quantised(self.module, "ZeRO")
        if self.apart:
            raise UserError(f"ZeRO clips all gradients by one norm, but {self.apart[0]} needs its own: launch DDP")
        settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
        offload = settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
        if "nvme" in (offload, settings["zero_optimization"].get("offload_param", {}).get("device", "none")):
            raise UserError("ZeRO offload to nvme is not supported: its state cannot be saved here; offload to cpu")
        for kind in ("fp16", "bf16"):
            if settings.get(kind, {}).get("enabled") not in (None, False, "auto"):
                raise UserError(f"{kind} in the DeepSpeed file would keep {kind} parameters: set train.mixed_precision")
        settings |= {
            "train_micro_batch_size_per_gpu": 1,  # a pack; how many a step holds is the plan's business
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.optim.clip,
            "zero_force_ds_cpu_optimizer": False,
        }
        settings.pop("train_batch_size", None)
        if self.precision is not None:
            settings["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # no module's gradients are summed in bf16
            }

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.engine = self.model
        self.zero = self.engine.optimizer
        self.norm = float("nan")
        self._watch_norm()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def update(self, rest: bool = False, read: Read | None = None) -> tuple[dict[str, float], bool]:
        self.engine.step()  # which has no parts, so that none can rest
        return {"grad_norm": self.norm}, self._good(self.norm)

    def _seen(self, norm: Tensor) -> Tensor:
        self.norm = float(norm)
        return norm if self._good(self.norm) else torch.full_like(norm, float("inf"))

    def groups(self) -> list[dict[str, Any]]:
        return self.zero.optimizer.param_groups

    def _watch_norm(self) -> None:
        raise NotImplementedError

    def _flats(self) -> Iterator[tuple[Tensor, list[tuple[str, nn.Parameter]]]]:
        """This process's flat fp32 tensors, which the optimiser steps, with the parameters that each is made of."""
        raise NotImplementedError

    def _where(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """(start in the parameter, start in its flat tensor, elements) of what this process holds."""
        raise NotImplementedError

    def pieces(self) -> list[Piece]:
        found = {}
        for flat, members in self._flats():
            state = self.zero.optimizer.state.get(flat, {})
            for name, parameter in members:
                start, at, count = self._where(parameter)
                shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
                piece = Piece(name, shape, start, flat.detach().narrow(0, at, count))
                for key, entry in state.items():
                    if torch.is_tensor(entry) and entry.shape == flat.shape:
                        piece.moments[key] = entry.narrow(0, at, count)
                    else:
                        piece.scalars[key] = entry
                found[name] = piece
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                found[name] = self._frozen(name, parameter)
        return [found[name] for name, _ in self.module.named_parameters() if name in found]

    def _frozen(self, name: str, parameter: nn.Parameter) -> Piece:
        return Piece(name, tuple(parameter.shape), 0, parameter.detach(), False, self.accelerator.is_main_process)

    def make_state(self, keys: Mapping[str, Sequence[str]], scalars: Mapping[str, Mapping[str, Any]]) -> None:
        base = self.zero.optimizer
        for group_number, (flat, members) in enumerate(self._flats()):
            name = next((name for name, _ in members if name in keys), None)  # all of a flat tensor step together
            if name is not None:
                group = base.param_groups[self._group_of(group_number)]
                made = {k: on_device(v, group, flat) for k, v in scalars[name].items()}
                base.state[flat] = made | {k: torch.zeros_like(flat) for k in keys[name]}

    def _group_of(self, number: int) -> int:
        return number


class Zero12(Zero):
    """Moments (1) and gradients (2) sharded; every process holds the parameters it computes with."""

    @property
    def name(self) -> str:
        return f"ZeRO-{self.engine.zero_optimization_stage()}"

    def _watch_norm(self) -> None:
        measure = self.zero.scaled_global_norm
        self.zero.scaled_global_norm = lambda *args, **kwargs: self._seen(measure(*args, **kwargs))

    def _flats(self) -> Iterator[tuple[Tensor, list[tuple[str, nn.Parameter]]]]:
        names = {id(p): name for name, p in self.module.named_parameters()}
        for flat, group in zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups, strict=True):
            yield flat, [(names[id(p)], p) for p in group if p._hp_mapping is not None]

    def _where(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        mapping = parameter._hp_mapping
        return (
            mapping.lp_fragment_address.start,
            mapping.hp_fragment_address.start,
            mapping.lp_fragment_address.numel,
        )

    def push(self) -> None:
        self.zero.update_lp_params()
        for i in range(len(self.zero.bit16_groups)):
            self.zero._update_model_bit16_weights(i)


class Zero3(Zero):
    """Parameters sharded too; gathered module by module for computing."""

    name = "ZeRO-3"

    def _watch_norm(self) -> None:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        measure = self.zero._get_norm_groups
        self.zero._get_norm_groups = lambda: [self._seen(combine_grad_norm_groups(measure()))]

    def _flats(self) -> Iterator[tuple[Tensor, list[tuple[str, nn.Parameter]]]]:
        names = {id(p): name for name, p in self.module.named_parameters()}
        for flat, group in zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups, strict=True):
            yield flat, [(names[id(p)], p) for p in group]

    def _where(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        _, at, count = self.zero.grad_position[self.zero.get_param_id(parameter)]
        start = count * self.zero._get_param_partition_rank(parameter)
        return start, at, max(0, min(count, parameter.ds_numel - start))  # the last ones are padded

    def _group_of(self, number: int) -> int:
        return self.zero.sub_group_to_group_id[number]

    def _frozen(self, name: str, parameter: nn.Parameter) -> Piece:
        count = parameter.ds_tensor.numel()
        start = count * self.accelerator.process_index
        count = max(0, min(count, parameter.ds_numel - start))
        return Piece(name, tuple(parameter.ds_shape), start, parameter.ds_tensor.detach().narrow(0, 0, count), False)

    def push(self) -> None:
        self.zero._partition_all_parameters()
        for i in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(i)
        self.zero._post_step(set())
