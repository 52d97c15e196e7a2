"""A run's folder: one run at a time, nothing in it that must not be opened, and the run that it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ...config.curriculum import CurriculumStage, curriculum, errors_of
from ...config.entries import flat
from ...config.parsing import default_values, load_config, to_dict
from ...config.schema import TrainingConfig
from ...config.yaml_files import read_yaml
from ...data.manifest.identity import difference
from ...data.plan.plan import Plan
from ...errors import UserError
from ...files import leads_out
from ...lock import FolderLock
from ...world import from_main
from ..optim import lr_factor
from .checkpoint import CheckpointStore
from .records import PlanState, State, read_record

logger = logging.getLogger(__name__)

# what may change between a run and its continuation; all else would make it another run
MAY_CHANGE = (
    "train.steps",
    "train.extend",
    "train.compile",
    "train.gradient_checkpointing",
    "train.mixed_precision",  # settled by `compute.settle`
    "train.max_bad_steps",
    "train.sequence_parallel",
    "data.workers",
    "data.timeout_s",
    "data.retry_s",
    "checkpoint",
    "log",
    "samples",
    "validation",
    "attention",
    "run.dir",
    "run.dry_run",
)
# what a key that a run's config.yaml lacks meant before there was one, where that is not its default
ONCE = {"data.frames_per_read": None}
FILES = ("config.yaml", "run.json", "best.json", "metrics.jsonl", "validation.jsonl", "draws.jsonl", "quarantine.jsonl")
FOLDERS = ("checkpoints", "samples", "logs")


@contextmanager
def run_folder(config: TrainingConfig, main: bool) -> Iterator[Callable[[], None]]:
    """The run's folder, held against a second run. All processes enter it, or all raise UserError.

    Gives what raises UserError on the main process where another run took the folder meanwhile.
    """
    folder, fix = config.run.dir, "wait for it, stop it, or give another run.dir"
    with ExitStack() as stack:
        held: list[FolderLock] = []

        def enter() -> None:
            check_folder(folder)
            held.append(stack.enter_context(FolderLock(folder, fix)))
            check_same_run(config)

        from_main(enter)
        yield held[0].check if main else lambda: None


def check_folder(run: Path) -> None:
    """Raises UserError for what a run would read or write in its folder and must not: links that lead out of it, pipes
    and devices (to open them can hang), folders in the place of files."""
    if not run.is_dir():
        return
    checkpoints = run / "checkpoints"
    for path in [*run.iterdir(), *(checkpoints.iterdir() if checkpoints.is_dir() else ())]:
        if path.is_symlink() and leads_out(path, run):
            raise UserError(f"{path} is a link that leads out of {run}: remove it, or put there what it leads to")
        if not (path.is_file() or path.is_dir() or path.is_symlink()):
            raise UserError(f"{path} is no regular file (a pipe, socket or device): remove it")
    for name in FILES:
        if (run / name).is_dir():
            raise UserError(f"{run / name} is a folder, where the run keeps a file: move it away")
    for name in FOLDERS:
        if (run / name).exists() and not (run / name).is_dir():
            raise UserError(f"{run / name} is no folder, but the run needs one there: move it away")


def check_same_run(config: TrainingConfig) -> None:
    """Raises UserError where `run.dir` holds checkpoints of a run with another configuration.

    Of a curriculum each stage that has begun is compared with what it was; those to come may be any.
    """
    saved = config.run.dir / "config.yaml"
    if not saved.is_file() or not (steps := CheckpointStore(config.run.dir / "checkpoints").steps()):
        return
    raw, stages = read_yaml(saved), curriculum(config)
    if not (raw.get("stages") or config.stages):
        _check_same(flat(raw), config, config.run.dir)
        _check_length(flat(raw), config, steps[-1])
        return
    begun = [stage for stage in curriculum(load_config(type(config), saved)) if stage.begin < steps[-1]]
    if len(begun) > len(stages):
        raise UserError(
            f"{config.run.dir} has trained {len(begun)} stages, and stages names {len(stages)}: put those back that it "
            "began with, or choose another run.dir"
        )
    for before, stage in zip(begun, stages, strict=False):
        with errors_of(stage.name or before.name):
            _check_same(flat(to_dict(before.config)), stage.config, config.run.dir)
            _check_steps(before, stage, steps[-1], over=before is not begun[-1])


def _check_steps(before: CurriculumStage, stage: CurriculumStage, done: int, over: bool) -> None:
    """Raises UserError where a stage that has begun would be of another length than it can be."""
    if over and before.steps != stage.steps:
        raise UserError(f"train.steps was {before.steps}, is {stage.steps}: the stage is over, so set it back")
    if not over and stage.end < done and not stage.last:
        raise UserError(
            f"train.steps is {stage.steps}, but {done - stage.begin} steps of the stage are trained: give at least that"
        )
    if not over:
        _check_length(flat(to_dict(before.config)), stage.config, done - stage.begin)


def _check_same(before: dict[str, Any], config: TrainingConfig, run: Path) -> None:
    """before: the saved configuration's values by their keys."""
    now = flat(to_dict(config))
    usual = {**default_values(type(config)), **ONCE}
    before = {key: usual[key] for key in now if key in usual} | before  # an older version had fewer keys
    if now.get("init") is not None:  # whose model the run has where `model` does not say it
        now = {key: value for key, value in before.items() if key.startswith("model.")} | now
    free = tuple(f"{key}." for key in (*MAY_CHANGE, *_checked_by_content(run, before, now)))
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if str(before.get(key)) != str(now.get(key)) and not f"{key}.".startswith(free)
    ]
    if changed:
        raise UserError(
            f"{run} holds checkpoints of a run with another configuration ({'; '.join(changed)}): "
            "choose another run.dir, or remove that folder"
        )


def _checked_by_content(run: Path, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Keys that may name another place, because the checkpoint notes what lies there: `same_data` compares it."""
    cached = [config.get("data.latents") is not None for config in (before, now)]
    if cached[0] != cached[1]:
        return ()
    store = CheckpointStore(run / "checkpoints")
    try:
        noted = read_record(store.path(store.steps()[-1]) / "state.json", State, run).get("data") is not None
    except UserError:
        noted = False
    # a cache is made by certain weights, and checked against those that are loaded
    return (("data.latents", "vae", "text_encoder") if cached[0] else ("data.manifest",)) if noted else ()


def _check_length(before: dict[str, Any], config: TrainingConfig, done: int) -> None:
    """Raises UserError where the learning rate would jump after `done` steps, unless that is asked for."""
    was, steps, optim = before.get("train.steps"), config.train.steps, config.optim
    settled = optim.schedule == "constant" or config.train.extend or done >= steps
    if was == steps or settled or not isinstance(was, int) or was < 1:
        return
    old, new = (optim.lr * lr_factor(min(done, length - 1), length, optim) for length in (was, steps))
    raise UserError(
        f"train.steps was {was}, is {steps}, and the learning rate follows it (optim.schedule is {optim.schedule}): "
        f"after step {done} it would jump from {old:.3g} to {new:.3g}. Set train.steps={was} again, or "
        "train.extend=true to go on with that jump; to train on at any length begin with optim.schedule=constant"
    )


def same_data(now: dict[str, Any], state: State | None) -> dict[str, Any]:
    """`now`, which a run from the start may be of any kind. Raises UserError where the checkpoint's was another."""
    before = None if state is None else state.get("data")
    if before is not None and (what := difference(before, now)):
        raise UserError(
            f"these are not the data that the run began with: {what}. Give it those again, or start a new run.dir"
        )
    if state is not None and before is None:
        logger.warning("the checkpoint is of a version that did not note its data: taken on trust to be these")
    return now


def load_plan(plan: Plan, state: PlanState, folder: Path) -> None:
    """`plan` at the place that a checkpoint's state names; UserError for a state that cannot be."""
    _placed(lambda: plan.load_state_dict(state), folder)


def follow_plan(plan: Plan, state: PlanState, same_data: bool, folder: Path) -> None:
    """`plan` of a stage that begins at a checkpoint of the one before it: see `Plan.follow`."""
    _placed(lambda: plan.follow(state, same_data), folder)


def _placed(place: Callable[[], None], folder: Path) -> None:
    try:
        place()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / 'state.json'} is damaged: plan: {error!r}") from None
