"""The training loop of both stages."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config.parsing import save_config
from ..config.schema import TrainingConfig
from ..data.plan.plan import Draw, Plan, Step
from ..data.quarantine import Quarantine
from ..errors import UserError
from ..files import check_writable, written_whole
from ..models.compiling import compile_blocks
from ..models.flops import TRAINING, peak_flops
from ..precision import describe, dtype_of
from ..progress import phase
from ..world import from_main, meet
from .checkpoint.checkpoint import CheckpointStore
from .checkpoint.records import State, read_record
from .checkpoint.run_folder import check_same_run, load_plan, run_folder, same_data
from .checkpoint.saver import Saver, newest_for_all
from .compute import Compute, settle
from .dryrun.preflight import preflight
from .ema import EMA
from .export import export_checkpoint
from .feed.loader import iterate_steps
from .feed.waiting import advice
from .launch import make_accelerator, make_plan, start_trackers
from .machine import loader_processes, take_threads
from .monitor.about import write_about
from .monitor.bar import Progress
from .monitor.efficiency import EfficiencyMeter, rank_balance
from .monitor.logs import RunLogs
from .monitor.watch import Watch
from .optim import make_optimizer, set_lr
from .parallel.pieces import PieceReader, load_moments, load_values, model_tensors, optimizer_tensors, saved_state
from .parallel.zero import make_strategy
from .signals import Preempted, StopRequest, StopWaiting
from .task import MakeTask, Task

logger = logging.getLogger(__name__)

GRACE_S = 15.0  # to wait for data once asked to stop, of several processes: launchers kill after 30


def train(config: TrainingConfig, make_task: MakeTask) -> None:
    """Trains from the newest whole checkpoint of `run.dir`, or from the start, to `train.steps`, then exports.

    SIGTERM, SIGUSR1 and Ctrl-C save after the step that is being made and end the process with status 75
    (`Preempted`).
    """
    with StopRequest() as stop:
        if config.run.dry_run:
            dry_run(config, make_task)
            return
        check_writable(config.run.dir, "give another run.dir")
        accelerator = make_accelerator(config)
        threads = take_threads(accelerator.device)
        with run_folder(config, accelerator.is_main_process) as check_folder:
            start_trackers(accelerator, config)
            asked, (config, compute) = config, settle(config, accelerator.device)
            task = make_task(config, accelerator.device)
            plan = make_plan(config, task)
            if task.clips is not None:
                task.clips.quarantine = Quarantine(config.run.dir / "quarantine.jsonl")
            run = TrainingRun(accelerator, config, task, plan, compute, stop, check_folder)
            run.resume()
            if accelerator.is_main_process:
                about = [task.summary(), run.watch.held_out and run.watch.held_out.summary(), run.summary(), threads]
                print(*filter(None, about), sep="\n", file=sys.stderr, flush=True)
                with written_whole(config.run.dir / "config.yaml") as beside:
                    save_config(asked, beside)
                run.describe()
            product = config.run.dir / task.product
            if run.step >= config.train.steps and product.is_dir():
                logger.warning("%s is finished: raise train.steps to go on", config.run.dir)
            else:
                run.loop()
                if accelerator.is_main_process:
                    with phase(f"{config.run.dir.name}: exporting"):
                        export_checkpoint(task, run.store.path(run.step), product)
            meet()  # for as long as the export takes
            accelerator.end_training()


def dry_run(config: TrainingConfig, make_task: MakeTask) -> None:
    """Says what the run would be; writes nothing."""
    accelerator = make_accelerator(config)
    from_main(lambda: check_same_run(config))
    config, _ = settle(config, accelerator.device)
    task = make_task(config, accelerator.device)
    plan = make_plan(config, task)
    if accelerator.is_main_process:
        print(preflight(config, task, plan, world=accelerator.num_processes, device=accelerator.device))
        if (held_out := task.held_out()) is not None:
            print(f"\n{held_out.summary()}")


@dataclass
class StepResult:
    """Over all processes: means of the loss and its parts, whether some process was asked to stop, clips replaced by
    others, floating point operations."""

    loss: float
    parts: dict[str, float]
    stop: bool
    replaced: int
    flops: float


class TrainingRun:
    """Everything that a checkpoint holds, and the loop over it."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        task: Task,
        plan: Plan,
        compute: Compute,
        stop: StopRequest,
        check_folder: Callable[[], None],
    ) -> None:
        self.accelerator, self.config, self.task, self.plan, self.stop = accelerator, config, task, plan, stop
        self.compute = compute
        self.rank, self.world, self.main = (
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.is_main_process,
        )
        self.store = CheckpointStore(
            config.run.dir / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every
        )
        if config.train.gradient_checkpointing:
            _need(task.model._supports_gradient_checkpointing, "gradient_checkpointing", task.model)
            task.model.enable_gradient_checkpointing()
        if config.train.compile:
            _need(hasattr(task.model, "blocks"), "compile", task.model)
            compile_blocks(task.model)
        self.parameters = sum(p.numel() for p in task.model.parameters())  # before any strategy cuts them
        optimizer = make_optimizer(task.model, config.optim, task.apart, dtype_of(compute.newton_schulz))
        self.strategy = make_strategy(accelerator, config, task.model, optimizer, task.ragged)
        self.ema = EMA(self.strategy.pieces(), config.train.ema)
        self.watch = Watch(accelerator, config, task, self.strategy, self.ema)
        parts = self.world if self.strategy.sharded else 1
        self.saver = Saver(self.store, self.rank, parts, meet, beside=config.checkpoint.background, check=check_folder)
        peak, self.peak_source = peak_flops(accelerator.device, config.train.mixed_precision)
        self.meter = EfficiencyMeter(accelerator.device, peak, self.world)
        self.workers, self.why_workers = loader_processes(
            config.data.workers, accelerator.device.type, of_files=task.clips is not None
        )
        self.step = self.saved = 0  # done; of the last checkpoint
        self.bad_steps = 0  # in a row
        self.skipped = 0  # in all
        self.data: dict[str, Any] | None = None  # which they are; the main process's

    def summary(self) -> str:
        """One line: how the run is spread, and where it begins."""
        where = f"going on from step {self.step}" if self.step else "from the start"
        peak = f"{self.meter.peak / self.world / 1e12:.3g} TFLOP/s a device ({self.peak_source})"
        precision = describe(self.compute.passes, self.accelerator.device)
        spread = f"{self.strategy.name}, {self.world} x {self.accelerator.device.type}"
        loaders = f"{self.workers} loader processes each ({self.why_workers})"
        return f"{spread}, {where}; {precision}; MFU is of {peak}; {loaders}"

    def describe(self) -> None:
        """Writes run.json."""
        write_about(
            self.config.run.dir,
            self.task,
            self.plan,
            self.parameters,
            step=self.step,
            strategy=self.strategy.name,
            world=self.world,
            compute=self.compute,
        )

    # --- the loop ---

    def loop(self) -> None:
        config = self.config
        total = config.train.steps
        if self.step >= total:
            return
        steps = iterate_steps(
            self.plan,
            self.task.make_pack,
            rank=self.rank,
            world=self.world,
            sequence=config.train.sequence_parallel,
            workers=self.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            waiting=lambda: self.stop.waiting(0.0 if self.world == 1 else GRACE_S),
        )
        ranks = self.world // config.train.sequence_parallel  # that take packs of their own
        meter = self.meter
        logs = RunLogs(config, self.step) if self.main else None
        with phase("preparing validation"):
            self.watch.open(self.step)
        self.stop.saves = True
        self.strategy.module.train()
        with self._progress() as self.progress:
            if self.watch.looked < self.step:  # it was stopped right after that step
                self._look()
            while self.step < total:
                try:
                    with meter.span("data"):
                        step, packs = next(steps)
                except StopWaiting:
                    self._stop_waiting()
                lr = set_lr(self.strategy.groups(), self.step, total, config.optim)
                result = self._forward_backward([pack for _, pack in packs], self._weight(step, packs))
                with meter.span("optimizer"):
                    norms = self._update()
                self.step += 1
                meter.step(tokens=step.tokens, samples=step.samples, flops=result.flops)
                record = {
                    "step": self.step,
                    "loss": result.loss,
                    **result.parts,
                    "lr": lr,
                    **norms,
                    "tokens": step.tokens,
                    "samples": step.samples,
                    "fill": step.fill,
                    "balance": rank_balance(step.costs, ranks),
                    "replaced": result.replaced,
                    "epoch": self.plan.epoch,
                    "skipped_steps": self.skipped,
                    **meter.record(),
                }
                draws = self._all_draws(packs) if config.log.draws else None
                if logs is not None:
                    logs.write(record, draws)
                self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)
                self.progress.update(loss=result.loss, tokens_per_s=record["tokens_per_s"])
                self._after_step(result.stop)
        self.saver.finish()
        meet()  # the last checkpoint is in place
        self.stop.saves = False
        self.watch.close()
        if logs is not None:
            logs.close()
            print(f"{config.run.dir.name}: {meter.summary()}", file=sys.stderr, flush=True)
            if said := advice(meter.totals["data"] / meter.seconds, self.workers, self.task.clips):
                print(f"{config.run.dir.name}: {said}", file=sys.stderr, flush=True)

    def _progress(self) -> Progress:
        config = self.config
        every = {
            "validation": config.validation.every,
            "samples": config.samples.every,
            "checkpoint": config.checkpoint.every or config.train.steps,
        }
        name = config.run.dir.name
        return Progress(config.train.steps, self.step, desc=name, main=self.main, beside_every=every)

    def _weight(self, step: Step, packs: Sequence[tuple[Sequence[Draw], Any]]) -> int:
        """Samples of the step, or its tokens that have a loss, over all processes."""
        if self.config.train.loss_by == "sample":
            return step.samples
        if not self.task.partial:
            return step.tokens
        counted = torch.tensor(sum(pack.counted_in_all for _, pack in packs), device=self.accelerator.device)
        if self.world > 1:
            torch.distributed.all_reduce(counted)
        return int(counted) // self.config.train.sequence_parallel  # whose processes all have the same packs

    def _forward_backward(self, packs: Sequence[Any], weight: int) -> StepResult:
        """Gradients of the step's mean loss: each rank sums its share over `weight`, strategies average over ranks."""
        sums: dict[str, Tensor] = {}
        flops = sum(self.task.flops(pack) for pack in packs)
        replaced = sum(pack.replaced for pack in packs)
        for i, pack in enumerate(packs):
            pack = pack.to(self.accelerator.device)
            with self.meter.span("encode"):
                pack = self.task.prepare(pack)
            with self.meter.span("compute"), self.strategy.accumulating(last=i + 1 == len(packs)):
                losses, parts = self.task.loss(self.strategy, pack, self.step)
                if self.config.train.loss_by == "token":
                    tokens = pack.counted if self.task.partial else pack.tokens
                    share = torch.tensor(tokens, dtype=torch.float32, device=losses.device) / weight
                else:
                    share = torch.full_like(losses, 1.0 / weight)
                self.strategy.backward((losses * share).sum() * self.world)
            for name, part in {"loss": losses, **parts}.items():
                sums[name] = sums.get(name, 0.0) + (part.detach().float() * share).sum()
        counts = {"stop": self.stop.asked is not None, "replaced": replaced, "flops": flops * TRAINING / 1e9}
        shared = torch.stack([*sums.values(), *(torch.full_like(sums["loss"], float(n)) for n in counts.values())])
        *values, stop, replaced, flops = self.accelerator.reduce(shared, reduction="sum").tolist()
        named = dict(zip(sums, values, strict=True))
        return StepResult(named.pop("loss"), named, stop > 0, round(replaced), flops * 1e9)

    def _update(self) -> dict[str, float]:
        """One optimiser step; one that must not be made changes nothing, and too many in a row stop the run."""
        norms, stepped = self.strategy.update()
        if stepped:
            self.ema.update(self.strategy.pieces())
            self.bad_steps = 0
            return norms
        self.bad_steps += 1
        self.skipped += 1
        limit = self.config.optim.skip_norm
        norm = next((n for n in norms.values() if not math.isfinite(n)), norms["grad_norm"])
        why = f"above optim.skip_norm={limit}" if math.isfinite(norm) else "not finite"
        if self.main:
            logger.warning("step %d skipped: its gradient norm %s is %s", self.step + 1, norm, why)
        if self.bad_steps >= self.config.train.max_bad_steps:
            self.saver.finish()
            last = self.store.path(self.store.steps()[-1]).name if self.store.steps() else "none"
            raise UserError(
                f"{self.bad_steps} steps in a row were skipped (gradient norm {why}): lower optim.lr or optim.clip, or "
                f"set train.mixed_precision=no; the last checkpoint is {last}"
            )
        return norms

    def _all_draws(self, packs: Sequence[tuple[Sequence[Draw], Any]]) -> list[Draw]:
        """What the loaders of all processes made for this step."""
        mine = [draw for draws, _ in packs for draw in draws]
        if self.world == 1:
            return sorted(mine)
        every: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(every, mine)
        groups = every[:: self.config.train.sequence_parallel]  # whose processes all have the same
        return sorted(Draw(*draw) for draws in groups for draw in draws)

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
        every, total = self.config.checkpoint.every, self.config.train.steps
        if stop and self.step < total:
            self.save()
            self.saver.finish()
            meet()
            if self.main:
                name = self.store.path(self.step).name
                print(f"asked to stop: saved {name}; start again to go on", file=sys.stderr, flush=True)
            raise Preempted
        self._look(save=self.step == total or (every and self.step % every == 0))

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
            "skipped_steps": self.skipped,
            "bad_steps": self.bad_steps,
            "looked": self.watch.looked,
            "best": self.watch.best,
            "computes_in": asdict(self.compute),
            "written_by": f"{self.strategy.name} x{self.world}",
            "data": self.data,
        }
        if self.watch.best is not None:
            self.store.best = self.watch.best["step"]
        with self.meter.span("checkpoint"):
            pieces = self.strategy.pieces()
            tensors = {
                "model": model_tensors(pieces),
                "ema": self.ema.tensors(pieces),
                "optimizer": optimizer_tensors(pieces),
            }
            self.saver.save(self.step, tensors, state)
        self.saved = self.step

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, whatever strategy and number of processes wrote it."""
        folder = newest_for_all(self.store)
        state = None if folder is None else read_record(folder / "state.json", State, folder)
        if state is not None:
            load_plan(self.plan, state["plan"], folder)
        self.data = from_main(lambda: same_data(self.task.identity(), state))
        if state is None:
            return
        pieces = self.strategy.pieces()
        load_values(pieces, PieceReader(folder, "model"))
        self.strategy.push()
        self.ema.load(pieces, PieceReader(folder, "ema"), state["ema_updates"])
        moments = PieceReader(folder, "optimizer")
        self.strategy.make_state(*saved_state(moments))
        load_moments(self.strategy.pieces(), moments)
        self.step, self.skipped, self.bad_steps = state["step"], state["skipped_steps"], state["bad_steps"]
        self.saved = self.step
        self.watch.looked, self.watch.best = state.get("looked", self.step), state.get("best")


def _need(able: bool, key: str, model: nn.Module) -> None:
    if not able:
        raise UserError(f"train.{key}: {type(model).__name__} cannot do it; set train.{key}=false")
