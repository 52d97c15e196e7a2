"""One stage of a run: everything that a checkpoint holds, and the loop over it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from ..config.curriculum import CurriculumStage
from ..config.schema import TrainingConfig
from ..data.manifest.identity import difference
from ..data.plan.plan import Plan, Step
from ..errors import UserError
from ..models.compiling import compile_blocks
from ..models.flops import peak_flops
from ..precision import describe, dtype_of
from ..progress import phase
from ..words import counted
from ..world import from_main, limit_exchanges, meet
from .checkpoint.checkpoint import CheckpointStore
from .checkpoint.place import begins
from .checkpoint.records import State
from .checkpoint.run_folder import follow_plan, load_plan, same_data
from .checkpoint.saver import Saver
from .checkpoint.tensors import check_base, held_tensors, load_tensors
from .compute import Compute
from .ema import EMA
from .feed.loader import iterate_steps
from .feed.waiting import advice
from .machine import Collection, loader_processes
from .monitor.bar import run_progress
from .monitor.device import Profile, gpu_memory
from .monitor.efficiency import EfficiencyMeter, rank_balance
from .monitor.logs import RunLogs
from .monitor.watch import Watch
from .optim import make_optimizer, set_lr
from .parallel.block_swap import swapped
from .parallel.zero import make_strategy
from .signals import Preempted, StopRequest, StopWaiting
from .step import Packs, Stepper, all_draws
from .task import MakeTask, Task

logger = logging.getLogger(__name__)

Steps = Iterator[tuple[Step, Packs]]
GRACE_S = 15.0  # to wait for data once asked to stop, of several processes: launchers kill after 30


@dataclass(frozen=True)
class Launched:
    """What all stages of a launched run share. config: as it was asked for. changed: what of it is another than it was,
    in words. again: a stage was trained before."""

    accelerator: Accelerator
    config: TrainingConfig
    compute: Compute
    stop: StopRequest
    check_folder: Callable[[], None]
    make_task: MakeTask
    threads: str
    again: bool = False
    changed: Sequence[str] = ()


class TrainingRun:
    """Everything that a checkpoint holds, and the loop over it."""

    def __init__(
        self,
        launched: Launched,
        stages: Sequence[CurriculumStage[TrainingConfig]],
        stage: CurriculumStage[TrainingConfig],
        task: Task,
        plan: Plan,
    ) -> None:
        accelerator, config, compute = launched.accelerator, stage.config, launched.compute
        self.accelerator, self.config, self.task, self.plan, self.stop = accelerator, config, task, plan, launched.stop
        self.stage, self.compute = stage, compute
        rank, self.world, self.main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
        keep = config.checkpoint
        ends = [each.end for each in stages[:-1]]  # to train a stage again, another way
        self.store = CheckpointStore(config.run.dir / "checkpoints", keep.keep_last, keep.keep_every, keep=ends)
        if config.train.gradient_checkpointing:
            _need(task.recomputes, "gradient_checkpointing", task.model)
            task.model.enable_gradient_checkpointing()
        if config.train.compile:
            _need(len(task.blocks) > 0, "compile", task.model)
            compile_blocks(task.model)
        self.parameters = sum(p.numel() for p in task.model.parameters())  # before any strategy cuts them
        self.trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
        optimizer = make_optimizer(task.model, config.optim, task.apart, dtype_of(compute.newton_schulz))
        swap = swapped(task.model, task.blocks, config.train.swap_blocks, accelerator.device)
        with swap.apart() if swap else nullcontext():
            self.strategy = make_strategy(accelerator, config, task.model, optimizer, task.ragged)
        limit_exchanges(config.train.collective_timeout_s)
        self.ema = EMA(self.strategy.pieces(), config.train.ema)
        self.watch = Watch(accelerator, stage, task, self.strategy, self.ema)
        parts = self.world if self.strategy.sharded else 1
        options = {"check": launched.check_folder, "part_timeout": config.train.collective_timeout_s}
        self.saver = Saver(self.store, rank, parts, meet, beside=keep.background, **options)
        peak, self.peak_source = peak_flops(accelerator.device, config.train.mixed_precision)
        self.meter = EfficiencyMeter(accelerator.device, peak, self.world)
        self.stepper = Stepper(accelerator, config, task, self.strategy, self.ema, self.meter)
        self.workers, self.why_workers = loader_processes(
            config.data.workers, accelerator.device.type, of_files=task.clips is not None
        )
        self.step = self.saved = 0  # done; of the last checkpoint
        self.data: dict[str, Any] | None = None  # which they are; the main process's

    def summary(self) -> str:
        """One line: how the run is spread, and where it begins."""
        begun = "new weights" if self.task.origin is None else "the weights of init"
        where = f"going on from step {self.step}" if self.step else f"from the start, with {begun}"
        peak = f"{self.meter.peak / self.world / 1e12:.3g} TFLOP/s a device ({self.peak_source})"
        precision = describe(self.compute.passes, self.accelerator.device)
        spread = f"{self.strategy.name}, {self.world} x {self.accelerator.device.type}"
        where = f"{self.stage}, {where}" if self.stage.name else where
        loaders = f"{self.workers} loader processes each ({self.why_workers})"
        if self.trained < self.parameters:
            where = f"{where}; of {self.parameters:,} parameters {self.trained:,} are trained"
        return f"{spread}, {where}; {precision}; MFU is of {peak}; {loaders}"

    # --- the loop ---

    def loop(self) -> None:
        """Steps up to the end of the stage, and what is due between them."""
        config, meter = self.config, self.meter
        if self.step >= self.stage.end and self.watch.looked >= self.step:
            return
        steps = iterate_steps(
            self.plan,
            self.task.make_pack,
            rank=self.accelerator.process_index,
            world=self.world,
            sequence=config.train.sequence_parallel,
            workers=self.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            waiting=lambda: self.stop.waiting(0.0 if self.world == 1 else GRACE_S),
        )
        logs = RunLogs(config, self.step) if self.main else None
        with phase("preparing validation"):
            self.watch.open(self.step)
        self.stop.saves = True
        self.strategy.module.train()
        follow, left = config.log.profile if self.main else 0, self.stage.end - self.step
        profile = Profile(config.run.dir / "profile", follow, self.step, left)
        collection = Collection(self.accelerator.device)
        with run_progress(self.stage, self.step, self.main) as self.progress, collection, profile:
            if self.watch.looked < self.step:  # it was stopped right after that step
                self._look(save=self.step == self.stage.end)
            if not self.step and self.task.origin is not None:
                with self.progress.beside("validation"):
                    self.watch.measure(0, contest=False)
            while self.step < self.stage.end:
                self._step(steps, logs)
                collection.step()
                profile.step()
        self.saver.finish()
        meet()  # the last checkpoint is in place
        self.stop.saves = False
        self.watch.close()
        if logs is not None:
            logs.close()
            print(f"{config.run.dir.name}: {meter.summary()}", file=sys.stderr, flush=True)
            if said := advice(meter.totals["data"] / meter.seconds, self.workers, self.task.clips):
                print(f"{config.run.dir.name}: {said}", file=sys.stderr, flush=True)

    def _step(self, steps: Steps, logs: RunLogs | None) -> None:
        """The next step: packs, gradients, update, a line of the log."""
        train, sequence = self.config.train, self.config.train.sequence_parallel
        try:
            with self.meter.span("data"):
                step, packs = next(steps)
        except StopWaiting:
            self._stop_waiting()
        own = self.step - self.stage.begin  # of the stage, whose schedules begin with it
        lr = set_lr(self.strategy.groups(), own, train.steps, self.config.optim)
        sums = self.stepper.gradients(step, packs, own, stop=self.stop.asked is not None)
        result, norms = self.stepper.update(sums, self.step, own)
        if self.stepper.bad_steps >= train.max_bad_steps:
            self._give_up()
        self.step += 1
        self.meter.step(tokens=step.tokens, samples=step.samples, flops=result.flops)
        record = {
            "step": self.step,
            **({"stage": self.stage.number} if self.stage.name else {}),
            "loss": result.loss,
            **result.parts,
            "lr": lr,
            **norms,
            "tokens": step.tokens,
            "samples": step.samples,
            "fill": step.fill,
            "balance": rank_balance(step.costs, self.world // sequence),
            "replaced": result.replaced,
            "epoch": self.plan.epoch,
            "skipped_steps": self.stepper.skipped,
            **self.meter.record(),
        }
        draws = all_draws(packs, self.world, sequence) if self.config.log.draws else None
        if logs is not None and draws is not None:
            logs.write_draws(self.step, draws)
        if self.step % self.config.log.every == 0 or self.step == self.stage.end:
            record |= gpu_memory(self.accelerator.device)
            if logs is not None:
                logs.write(record)
            self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)
        self.progress.update(loss=result.loss, tokens_per_s=record["tokens_per_s"])
        self._after_step(result.stop)

    def _give_up(self) -> None:
        """Too many steps in a row were skipped."""
        self.saver.finish()
        last = self.store.path(self.store.steps()[-1]).name if self.store.steps() else "none"
        raise UserError(
            f"{counted(self.stepper.bad_steps, 'step')} in a row were skipped (gradient norm "
            f"{self.stepper.why}): lower optim.lr "
            f"or optim.clip, or set train.mixed_precision=no; the last checkpoint is {last}"
        )

    def _stop_waiting(self) -> None:
        """Asked to stop while data do not come: alone it saves what is done; of several, the others may wait for it."""
        if self.world == 1 and self.step > self.saved:
            self.save()
            self.saver.finish()
        newest = self.store.newest()
        saved = "nothing was done yet" if newest is None else f"{newest.name} is the last checkpoint"
        print(f"asked to stop while waiting for data after step {self.step}: {saved}", file=sys.stderr, flush=True)
        raise Preempted

    def _after_step(self, stop: bool) -> None:
        """Measures, saves and shows what is due; what is asked to stop saves first, and measures when it goes on."""
        every, over = self.config.checkpoint.every, self.step == self.stage.end
        if stop and not (over and self.stage.last):
            self.save()
            self.saver.finish()
            meet()
            if self.main:
                name = self.store.path(self.step).name
                print(f"asked to stop: saved {name}; start again to go on", file=sys.stderr, flush=True)
            raise Preempted
        self._look(save=over or (every and self.step % every == 0))

    def _look(self, save: bool = False) -> None:
        """What is due at this step: measures, saves (also what is the best so far), shows samples."""
        with self.meter.span("validation"), self.progress.beside("validation"):
            best = self.watch.measure(self.step)
        if save or best:
            with self.progress.beside("checkpoint" if save else "validation"):
                self.save()
        with self.meter.span("validation"), self.progress.beside("samples"):
            self.watch.show(self.step)

    # --- checkpoints ---

    def save(self) -> None:
        """Weights, their average, optimiser and data position. All randomness is keyed, so there is no other state."""
        state = {
            "step": self.step,
            "plan": self.plan.state_dict(),
            "ema_updates": self.ema.updates,
            "skipped_steps": self.stepper.skipped,
            "bad_steps": self.stepper.bad_steps,
            "looked": self.watch.looked,
            "best": self.watch.best,
            "computes_in": asdict(self.compute),
            "written_by": f"{self.strategy.name} x{self.world}",
            "data": self.data,
            **({"model": model} if (model := _arguments(self.task.model)) else {}),
            **({} if self.task.base is None else {"base": asdict(self.task.base)}),
        }
        if self.watch.best is not None:
            self.store.best = self.watch.best["step"]
        with self.meter.span("checkpoint"):
            self.saver.save(self.step, self._held(), state)
        self.saved = self.step

    def _held(self) -> dict[str, dict[str, Tensor]]:
        return held_tensors(self.strategy, self.ema, trained_only=self.task.base is not None)

    def resume(self, folder: Path | None, state: State | None) -> None:
        """Goes on from a checkpoint, whatever strategy and number of processes wrote it; at the end of the stage before
        this one, this one begins: weights, average and optimiser go on, and data that are the same."""
        begins_here, may_grow = begins(self.stage, state), self.config.data.may_grow
        if state is not None and not begins_here:
            load_plan(self.plan, state["plan"], folder, may_grow)
        self.data = from_main(lambda: same_data(self.task.identity, None if begins_here else state, may_grow))
        if state is None:
            return
        if begins_here:
            before = state.get("data")
            same = before is not None and difference(before, self.data) is None
            follow_plan(self.plan, state["plan"], same, folder)
        check_base(self.task.base, state, folder)
        based = self.task.base is not None
        load_tensors(folder, self.strategy, self.ema, state["ema_updates"], trained_only=based)
        self.step = self.saved = state["step"]
        self.stepper.skipped, self.stepper.bad_steps = state["skipped_steps"], state["bad_steps"]
        self.watch.looked = state.get("looked", self.step)
        self.watch.best = None if begins_here else state.get("best")


def _arguments(model: nn.Module) -> dict[str, Any]:
    """What its constructor was given, as JSON; nothing of a model that does not keep it."""
    found = {key: value for key, value in getattr(model, "config", {}).items() if not key.startswith("_")}
    kind = getattr(model, "kind", None)  # of `models.kinds`, where it is no transformer
    return found if kind is None else {**found, "kind": kind}


def _need(able: bool, key: str, model: nn.Module) -> None:
    if not able:
        raise UserError(f"train.{key}: {type(model).__name__} cannot do it; set train.{key}=false")
