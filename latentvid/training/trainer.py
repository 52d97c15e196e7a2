"""The training loop of both stages."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.plan import Draw, Plan
from ..errors import UserError
from ..files import written_whole
from ..world import check_world
from .checkpoint import CheckpointStore
from .config import TrainingConfig
from .ema import EMA
from .load import save_config, to_dict
from .loader import iterate_steps
from .metrics import MetricsLog, Progress, ThroughputMeter
from .optim import lr_factor, make_optimizer, set_lr

logger = logging.getLogger(__name__)

# what may change between a run and its continuation; all else would make it another run
MAY_CHANGE = ("train.steps", "data.workers", "checkpoint", "log", "samples", "attention", "train.compile")
BAD_STEPS_IN_A_ROW = 10


class Task(Protocol):
    """A stage: what is trained, on what, with which loss."""

    model: nn.Module
    tokens: Sequence[int]  # of each sample, for the plan
    product: str  # name of the folder in run.dir that the finished model goes to

    def summary(self) -> str:
        """What it trains on, and what was left out for which reason; shown at the start."""

    def make_pack(self, draws: Sequence[Draw]) -> Any:
        """The inputs of a pack; runs in loader processes. Has `.to(device)` and `.tokens`, a list a sample."""

    def loss(self, model: nn.Module, pack: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample [N], and parts of it to log, [N] each."""

    def sample(self, model: nn.Module, step: int, folder: Path) -> None:
        """Writes what the model makes now, to look at; called on the main process with the averaged weights."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the finished model (averaged weights) in diffusers' format; called on the main process."""


MakeTask = Callable[[TrainingConfig, torch.device], Task]


def train(config: TrainingConfig, make_task: MakeTask) -> None:
    """Trains from the newest whole checkpoint of `run.dir`, or from the start, to `train.steps`, then exports."""
    accelerator = make_accelerator(config)
    check_same_run(config)
    task = make_task(config, accelerator.device)
    plan = Plan(task.tokens, budget=config.data.tokens_per_pack, packs=config.data.packs_per_step, seed=config.run.seed)
    run = TrainingRun(accelerator, config, task, plan)
    run.resume()
    if accelerator.is_main_process:
        print(task.summary(), file=sys.stderr, flush=True)
        with written_whole(config.run.dir / "config.yaml") as beside:
            save_config(config, beside)
    product = config.run.dir / task.product
    if run.step >= config.train.steps and product.is_dir():
        logger.warning("%s is finished: raise train.steps to go on", config.run.dir)
    else:
        run.loop()
        run.export(product)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator, checked: the world must be the one that the launcher asked for."""
    if config.train.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.mixed_precision=fp16 needs a GPU: take bf16, or no")
    trackers = list(config.log.trackers)
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(config.run.dir), logging_dir=str(config.run.dir / "logs")),
    )
    check_world(accelerator.num_processes)
    if trackers:
        init = {"wandb": {"dir": str(config.run.dir)}} if "wandb" in trackers else {}
        accelerator.init_trackers(config.log.project, init_kwargs=init)
    return accelerator


def check_same_run(config: TrainingConfig) -> None:
    """Raises UserError where `run.dir` holds checkpoints of a run with another configuration."""
    saved = config.run.dir / "config.yaml"
    if not saved.is_file() or not CheckpointStore(config.run.dir / "checkpoints").steps():
        return
    before, now = (_flat(c) for c in (yaml.safe_load(saved.read_text(encoding="utf-8")), to_dict(config)))
    free = tuple(f"{key}." for key in MAY_CHANGE)
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if str(before.get(key)) != str(now.get(key)) and not f"{key}.".startswith(free) and key != "run.dir"
    ]
    if changed:
        raise UserError(
            f"{config.run.dir} holds checkpoints of a run with another configuration ({'; '.join(changed)}): "
            "choose another run.dir, or remove that folder"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@dataclass
class StepResult:
    """Means over the whole step, over all processes."""

    loss: float
    parts: dict[str, float]


class TrainingRun:
    """Everything that a checkpoint holds, and the loop over it."""

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, task: Task, plan: Plan) -> None:
        self.accelerator, self.config, self.task, self.plan = accelerator, config, task, plan
        self.store = CheckpointStore(
            config.run.dir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every
        )
        self.raw_model = task.model
        self.optimizer = make_optimizer(task.model, config.optim)
        self.ema = EMA(task.model.to(accelerator.device), config.train.ema)
        if config.train.gradient_checkpointing:
            _need(task.model._supports_gradient_checkpointing, "gradient_checkpointing", task.model)
            task.model.enable_gradient_checkpointing()
        if config.train.compile:
            _need(hasattr(task.model, "blocks"), "compile", task.model)
            for block in task.model.blocks:
                block.compile(fullgraph=True, dynamic=True)
        self.model, self.optimizer = accelerator.prepare(task.model, self.optimizer)
        self.step = 0
        self.bad_steps = 0

    # --- the loop ---

    def loop(self) -> None:
        config, main = self.config, self.accelerator.is_main_process
        total = config.train.steps
        if self.step >= total:
            return
        steps = iterate_steps(
            self.plan,
            self.task.make_pack,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            workers=config.data.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        meter = ThroughputMeter()
        log = MetricsLog(config.run.dir, self.step or None) if main else None
        self.model.train()
        with Progress(total, self.step, desc=config.run.dir.name, main=main) as progress:
            while self.step < total:
                step, packs = next(steps)
                lr = set_lr(self.optimizer, lr_factor(self.step, total, config.optim))
                weight = step.tokens if config.train.loss_by == "token" else step.samples
                result = self._forward_backward(packs, weight)
                norm = self._update()
                self.step += 1
                meter.update(step.tokens, step.samples)
                record = {
                    "step": self.step,
                    "loss": result.loss,
                    **result.parts,
                    "lr": lr,
                    "grad_norm": norm,
                    "tokens": step.tokens,
                    "samples": step.samples,
                    "tokens_per_s": meter.tokens_per_s,
                    "epoch": self.plan.epoch,
                    "seconds": meter.seconds,
                }
                if log is not None:
                    log.write(record)
                self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)
                progress.update(loss=result.loss, tokens_per_s=meter.tokens_per_s)
                self._after_step()
        if log is not None:
            log.close()

    def _forward_backward(self, packs: Sequence[Any], weight: int) -> StepResult:
        """Gradients of the step's mean loss: each rank sums its share over `weight`, DDP averages over the ranks."""
        world = self.accelerator.num_processes
        sums: dict[str, Tensor] = {}
        for i, pack in enumerate(packs):
            pack = pack.to(self.accelerator.device)
            last = i + 1 == len(packs)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses, parts = self.task.loss(self.model, pack)
                if self.config.train.loss_by == "token":
                    share = torch.tensor(pack.tokens, dtype=torch.float32, device=losses.device) / weight
                else:
                    share = torch.full_like(losses, 1.0 / weight)
                loss = (losses * share).sum()
                self.accelerator.backward(loss * world)
            for name, part in {"loss": losses, **parts}.items():
                sums[name] = sums.get(name, 0.0) + (part.detach().float() * share).sum()
        values = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="sum").tolist()
        named = dict(zip(sums, values, strict=True))
        return StepResult(loss=named.pop("loss"), parts=named)

    def _update(self) -> float:
        """Clips and steps; a step whose gradient is not finite changes nothing, and too many in a row stop the run."""
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optim.clip))
        if norm == norm and norm != float("inf"):
            self.optimizer.step()
            self.ema.update(self.raw_model)
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            logger.warning("step %d skipped: its gradient norm is %s", self.step + 1, norm)
            if self.accelerator.scaler is not None:  # fp16: lowers the loss scale, which the optimiser's step else does
                self.accelerator.scaler.update()
            if self.bad_steps >= BAD_STEPS_IN_A_ROW:
                raise UserError(
                    f"{self.bad_steps} steps in a row had a gradient that is not finite: lower optim.lr or optim.clip, "
                    f"or set train.mixed_precision=no; the last good checkpoint is {self.store.newest()}"
                )
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _after_step(self) -> None:
        every, total = self.config.checkpoint.every, self.config.train.steps
        if self.step == total or (every and self.step % every == 0):
            self.save()
        look = self.config.samples.every
        if look and self.step % look == 0 and self.accelerator.is_main_process:
            with self.ema.swapped(self.raw_model):
                self.raw_model.eval()
                self.task.sample(self.raw_model, self.step, self.config.run.dir / "samples")
            self.raw_model.train()

    def export(self, product: Path) -> None:
        """The finished model at `product`, there only when whole."""
        if not self.accelerator.is_main_process:
            return
        beside = product.with_name(f".{product.name}.partial")
        for folder in (beside, product):
            shutil.rmtree(folder, ignore_errors=True)
        with self.ema.swapped(self.raw_model):
            self.task.export(self.raw_model.eval(), beside)
        beside.rename(product)

    # --- checkpoints ---

    def save(self) -> None:
        """Weights, their average, optimiser and data position. All randomness is keyed, so there is no other state."""
        if self.accelerator.is_main_process:
            folder = self.store.begin(self.step)
            save_file(_contiguous(self.raw_model.state_dict()), folder / "model.safetensors")
            save_file(_contiguous(self.ema.state_dict()), folder / "ema.safetensors")
            tensors, plain = _split_optimizer(self.optimizer.state_dict())
            save_file(tensors, folder / "optimizer.safetensors")
            state = {"step": self.step, "plan": self.plan.state_dict(), "optimizer": plain}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            self.store.commit(self.step)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        folder = self.store.newest()
        if folder is None:
            return
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.raw_model.load_state_dict(load_file(folder / "model.safetensors"))
        self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
        self.optimizer.load_state_dict(_join_optimizer(load_file(folder / "optimizer.safetensors"), state["optimizer"]))
        self.plan.load_state_dict(state["plan"])
        self.step = state["step"]
        if self.accelerator.is_main_process:
            logger.warning("going on from step %d (%s)", self.step, folder)


def _need(able: bool, key: str, model: nn.Module) -> None:
    if not able:
        raise UserError(f"train.{key}: {type(model).__name__} cannot do it; set train.{key}=false")


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in state.items()}


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as flat tensors, and the rest as JSON values."""
    tensors = {
        f"{i}.{k}": v.contiguous() for i, s in state["state"].items() for k, v in s.items() if torch.is_tensor(v)
    }
    plain = {i: {k: v for k, v in s.items() if not torch.is_tensor(v)} for i, s in state["state"].items()}
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in plain["state"].items()}
    for name, value in tensors.items():
        i, key = name.split(".", 1)
        state.setdefault(int(i), {})[key] = value
    return {"state": state, "param_groups": plain["param_groups"]}
