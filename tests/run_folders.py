"""A run's folder: going on in it, and what it holds."""

from pathlib import Path

from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


def go_on(dit_config, run: Path, *options: str, steps: int = 3) -> None:
    """Goes on with the run, for a step."""
    train(dit_config(run, "checkpoint.every=1", "optim.schedule=constant", f"train.steps={steps}", *options), DitTask)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
