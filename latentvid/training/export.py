"""One folder in diffusers' format from a run's checkpoint, whichever strategy and number of processes wrote it.

    python -m latentvid.training.export RUN OUT [--step N | --best] [--raw]

The averaged weights go out, with --raw those of the optimiser; --best is the checkpoint, and the weights, that
RUN/best.json names. OUT is what inference and `from_pretrained` load.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import export

    export()
    raise SystemExit

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..config.curriculum import curriculum, stage_at
from ..config.parsing import load_config
from ..config.schema import stage_of
from ..config.yaml_files import read_yaml
from ..errors import UserError
from ..files import check_name, check_writable, follow_umask
from ..precision import choose
from .checkpoint.checkpoint import CheckpointStore, find_damage
from .checkpoint.records import About, State, read_best, read_record
from .checkpoint.tensors import check_base
from .compute import kept_in
from .parallel.pieces import PieceReader, not_finite
from .task import Stage, Task


def export_checkpoint(task: Task, checkpoint: Path, out: Path, raw: bool = False) -> None:
    """Writes the task's product at `out`, there only when whole.

    The model is built on the CPU, beside whatever else the device holds. What was at `out` stays until then. Raises
    UserError for weights that were never trained, or are no numbers.
    """
    state = read_record(checkpoint / "state.json", State, checkpoint)
    if state["ema_updates"] == 0:
        raise UserError(
            f"{checkpoint} holds no trained weights. If every step was skipped, lower optim.lr or mend the data, and "
            "begin anew; a student with a critic learns at the last of each distill.critic_updates steps: train longer"
        )
    check_base(task.base, state, checkpoint)
    model = read_model(task.new_model(), checkpoint, raw, based=task.base is not None).eval()
    if (name := not_finite(dict(model.named_parameters()))) is not None:
        raise UserError(f"{checkpoint}: {name} is not finite: export another step")
    beside, old = (out.with_name(f".{out.name}.{word}") for word in ("partial", "old"))
    for folder in (beside, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        task.export(model, beside)
        follow_umask(beside)
        if out.exists():
            out.rename(old)
        beside.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{out} could not be written ({error}): make room or mend the disk, and export again"
        ) from error
    finally:
        for folder in (beside, old):
            shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def read_model(model: nn.Module, checkpoint: Path, raw: bool = False, based: bool = False) -> nn.Module:
    """Overwrites a whole model's parameters with a checkpoint's averaged (or raw) ones.

    Parameters that were not trained have no average: theirs are the raw ones, or with `based` those that the model has.
    """
    weights = PieceReader(checkpoint, "model")
    average = weights if raw else PieceReader(checkpoint, "ema")
    for name, parameter in model.named_parameters():
        if based and not parameter.requires_grad:
            continue
        reader = average if name in average else weights
        parameter.copy_(reader.full(name, parameter.shape))
    return model


def export_run(
    run: Path,
    out: Path,
    stages: Mapping[str, Stage],
    step: int | None = None,
    raw: bool = False,
    best: bool = False,
) -> Path:
    """Exports a step's checkpoint of a run (the newest whole one by default); returns the checkpoint's folder.

    stages: what the run may have trained, by name. Of a curriculum the export is as the stage that made the step says.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run: it holds no config.yaml")
    check_name(out, "OUT", more=len("..partial"))
    if os.path.lexists(out):
        raise UserError(f"{out} exists: choose another folder, or remove it")
    if best:
        chosen = read_best(run)
        if chosen is None:
            raise UserError(f"{run} has no best.json: it was not measured; set validation.every, or give a step")
        step, raw = chosen["step"], chosen["weights"] == "raw"
    store = CheckpointStore(run / "checkpoints")
    checkpoint = store.newest() if step is None else store.path(step)
    if checkpoint is None or not checkpoint.is_dir():
        have = ", ".join(map(str, store.steps())) or "none"
        raise UserError(f"{run} has no {'whole checkpoint' if step is None else f'checkpoint of step {step}'}: {have}")
    if step is not None and (damage := find_damage(checkpoint, step)):
        raise UserError(f"{checkpoint} is damaged: {damage}")
    check_writable(out.parent)
    name = stage_of(read_yaml(run / "config.yaml"))
    if name not in stages:
        raise UserError(f"{run / 'config.yaml'} has no `stage` that can be exported ({', '.join(stages)})")
    of = curriculum(load_config(stages[name].config, run / "config.yaml"))
    made_by = stage_at(of, read_record(checkpoint / "state.json", State, checkpoint)["step"])
    made_by.config.train.sequence_parallel = 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = made_by.config.train
    train.mixed_precision = kept_in(run).get("passes") or choose(train.mixed_precision, device)  # "auto" was settled
    task = stages[name].task(made_by.config, device, data=False)
    if made_by.name and (trained := _trained(run, made_by.number)) is not None:
        task.trained = trained  # run.json says first what the newest stage trains on
    export_checkpoint(task, checkpoint, out, raw)
    return checkpoint


def _trained(run: Path, number: int) -> list[dict[str, Any]] | None:
    """What sizes, lengths and rates a stage of a curriculum was trained on; None where the run does not say."""
    try:
        facts = read_record(run / "run.json", About, run).get("stages", [])
    except UserError:
        return None
    return next((each.get("trained") for each in facts if each["number"] == number), None)
