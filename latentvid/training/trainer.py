"""Training of both kinds of model, one stage of the run after another."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from ..config.curriculum import CurriculumStage, curriculum, errors_of
from ..config.parsing import save_config, to_dict
from ..config.schema import TrainingConfig, stage_of
from ..data.quarantine import Quarantine
from ..files import check_writable, written_whole
from ..progress import phase
from ..world import from_main, meet
from .afterwards import next_command
from .checkpoint.checkpoint import CheckpointStore
from .checkpoint.place import next_stage
from .checkpoint.records import State
from .checkpoint.run_folder import run_folder
from .checkpoint.saver import newest_state
from .compute import deterministic, settle
from .dryrun.run import dry_run
from .export import export_checkpoint
from .feed.loader import start_server
from .launch import make_accelerator, make_plan, start_trackers, warn_of_missing_data
from .machine import take_threads
from .monitor.about import write_about
from .run import Launched, TrainingRun
from .signals import Preempted, StopRequest, StopWaiting
from .task import MakeTask

logger = logging.getLogger(__name__)


def train(config: TrainingConfig, make_task: MakeTask) -> None:
    """Trains from the newest whole checkpoint of `run.dir`, or from the start, to `train.steps`, then exports.

    With `stages` each is trained for its own steps, from what the one before it left. SIGTERM, SIGUSR1 and Ctrl-C save
    after the step that is being made and end the process with status 75 (`Preempted`).
    """
    if config.run.dry_run:
        dry_run(config, make_task)
        return
    with StopRequest() as stop, said_when_stopped(config), deterministic(config.train.deterministic):
        check_writable(config.run.dir, "give another run.dir")
        accelerator = make_accelerator(config)
        config = make_task.settled(config)
        threads = take_threads(accelerator.device)
        if config.data.workers:
            start_server(make_task.__module__)
        with run_folder(config, accelerator.is_main_process) as (check_folder, changed):
            start_trackers(accelerator, config)
            settled, compute = settle(config, accelerator.device)
            prepare(settled, make_task, accelerator.device, stop)
            launched = Launched(accelerator, config, compute, stop, check_folder, make_task, threads, changed=changed)
            stages, stage = curriculum(settled), None
            if accelerator.is_main_process:
                warn_of_missing_data(stages)
            while stage is None or not stage.last:
                if stage is not None:
                    stop_between(stop)
                    accelerator.free_memory()
                    launched = replace(launched, again=True)
                folder, state = newest_state(CheckpointStore(config.run.dir / "checkpoints"))
                stage = next_stage(stages, state)
                with errors_of(stage):
                    train_stage(launched, stages, stage, folder, state)
            accelerator.end_training()


@contextmanager
def said_when_stopped(config: TrainingConfig) -> Iterator[None]:
    """Where the run was asked to stop, and saved, the main process says how it goes on."""
    try:
        yield
    except Preempted:
        if PartialState().is_main_process and (config.run.dir / "config.yaml").is_file():
            say_next(config, finished=False)
        raise


def say_next(config: TrainingConfig, finished: bool) -> None:
    """Prints the next useful command, on stderr."""
    settings = to_dict(config)
    if line := next_command(config.run.dir, stage_of(settings), settings, finished):
        print(f"next: {line}", file=sys.stderr, flush=True)


def prepare(config: TrainingConfig, make_task: MakeTask, device: torch.device, stop: StopRequest) -> None:
    """What is made before the first step; asked to stop it ends at once, and the next start goes on with it."""
    try:
        make_task.prepare_run(config, device, lambda: stop.waiting(0.0))
    except StopWaiting:
        raise Preempted from None


def train_stage(
    launched: Launched,
    stages: Sequence[CurriculumStage[TrainingConfig]],
    stage: CurriculumStage[TrainingConfig],
    folder: Path | None,
    state: State | None,
) -> None:
    """One stage, from a checkpoint or the start to its end; the last one is exported. Nothing of it stays in memory."""
    config, run_dir, accelerator = stage.config, stage.config.run.dir, launched.accelerator
    task = launched.make_task(config, accelerator.device)
    task.follow(CheckpointStore(run_dir / "checkpoints").path(stage.begin) if stage.begin else None)
    plan = make_plan(config, task)
    if task.clips is not None:
        task.clips.quarantine = Quarantine(run_dir / "quarantine.jsonl")
    run = TrainingRun(launched, stages, stage, task, plan)
    run.resume(folder, state)
    if accelerator.is_main_process:
        threads = "" if launched.again else launched.threads
        held_out, origin = run.watch.held_out, task.origin
        about = [task.summary(), held_out and held_out.summary(), origin and origin.summary(), run.summary(), threads]
        print(*filter(None, about), sep="\n", file=sys.stderr, flush=True)
        with written_whole(run_dir / "config.yaml") as beside:
            save_config(replace(launched.config, model=task.config.model), beside)  # also what it took from `init`
        spread = {"strategy": run.strategy.name, "world": run.world, "compute": launched.compute}
        spread |= {"changed": launched.changed}
        write_about(stage, task, plan, run.parameters, step=run.step, again=launched.again, **spread)
    product = run_dir / task.product
    if stage.last and run.step >= stage.end and product.is_dir():
        logger.warning("%s is finished: raise train.steps to go on", run_dir)
    else:
        run.loop()
        if stage.last and accelerator.is_main_process:
            with phase(f"{run_dir.name}: exporting"):
                export_checkpoint(task, run.store.path(run.step), product)
            say_next(config, finished=True)
    meet()  # for as long as the export takes


def stop_between(stop: StopRequest) -> None:
    """Raises Preempted where the main process was asked to stop since a stage's last step, which is saved."""
    if from_main(lambda: stop.asked is not None):
        raise Preempted
