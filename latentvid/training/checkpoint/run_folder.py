"""A run's folder: one run at a time, nothing in it that must not be opened, and the run that it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ...config.schema import TrainingConfig
from ...data.manifest.identity import appended, difference
from ...data.plan.plan import Plan
from ...errors import UserError
from ...files import leads_out
from ...lock import FolderLock
from ...world import from_main
from .records import PlanState, State
from .same_run import check_same_run

logger = logging.getLogger(__name__)

Identify = Callable[..., dict[str, Any]]  # `Task.identity`

FILES = ("config.yaml", "run.json", "best.json", "metrics.jsonl", "validation.jsonl", "draws.jsonl", "quarantine.jsonl")
FOLDERS = ("checkpoints", "samples", "logs", "prior")


@contextmanager
def run_folder(config: TrainingConfig, main: bool) -> Iterator[tuple[Callable[[], None], list[str]]]:
    """The run's folder, held against a second run. All processes enter it, or all raise UserError.

    Gives what raises UserError on the main process where another run took the folder meanwhile; and what of the
    configuration is another than it was, in words.
    """
    folder, fix = config.run.dir, "wait for it, stop it, or give another run.dir"
    with ExitStack() as stack:
        held: list[FolderLock] = []

        def enter() -> list[str]:
            check_folder(folder)
            held.append(stack.enter_context(FolderLock(folder, fix)))
            return check_same_run(config)

        changed = from_main(enter)
        if changed and main:
            logger.warning("%s goes on with another configuration: %s", folder, "; ".join(changed))
        yield held[0].check if main else lambda: None, changed


def check_folder(run: Path) -> None:
    """Raises UserError for what a run would read or write in its folder and must not: links that lead out of it, pipes
    and devices (to open them can hang), folders instead of files."""
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


def same_data(identity: Identify, state: State | None, may_grow: bool) -> dict[str, Any]:
    """What the data are, which a run from the start may be of any kind; see `Task.identity`. Raises UserError where the
    checkpoint's were others; with `may_grow` they are the same where samples were appended."""
    now, before = identity(), None if state is None else state.get("data")
    then = None if before is None or not may_grow else appended(before, now)
    if before is not None and (what := difference(before, now if then is None else identity(then))):
        raise UserError(
            f"these are not the data that the run began with: {what}. Give it those again, or start a new run.dir"
        )
    if then is not None:
        more = now["samples"] - before["samples"]
        logger.warning("%d samples were appended to %d: drawn from the next epoch on", more, before["samples"])
    if state is not None and before is None:
        logger.warning("the checkpoint is of a version that did not note its data: taken on trust to be these")
    return now


def load_plan(plan: Plan, state: PlanState, folder: Path, may_grow: bool) -> None:
    """`plan` at the place that a checkpoint's state names; UserError for a state that cannot be."""
    _placed(lambda: plan.load_state_dict(state, may_grow), folder)


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
