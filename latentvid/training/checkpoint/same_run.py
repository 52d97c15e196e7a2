"""Which keys of a run's configuration may change where it goes on: the table of docs/distributed.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...config.conversion import build
from ...config.curriculum import CurriculumStage, curriculum, errors_of
from ...config.entries import flat
from ...config.parsing import default_values, load_config, to_dict
from ...config.schema import TrainingConfig
from ...config.sections import Optim
from ...config.yaml_files import read_yaml
from ...errors import UserError
from ...words import counted
from ..optim import lr_factor
from .checkpoint import CheckpointStore
from .records import State, read_record

# Changes no step that the run makes, or nothing of what it trains.
FREE = (
    *("run.dir", "run.dry_run", "checkpoint", "log", "samples", "validation", "inference", "statistics_samples"),
    *("data.workers", "data.timeout_s", "data.retry_s", "data.may_grow", "attention"),
    *("train.extend", "train.compile", "train.gradient_checkpointing", "train.max_bad_steps"),
    *("train.deterministic", "train.swap_blocks", "train.collective_timeout_s"),
    "text.place",
    *("train.sequence_parallel", "train.mixed_precision"),  # the last is settled by `compute.settle`
    *("loss.lpips_path", "loss.lpips_optional", "distill.endpoints"),
)
# How it trains from here on: taken, and said in a line. `optim.name` is not among them: its state is another.
SAID = (
    *("train.steps", "train.ema", "train.loss_by", "data.packs_per_step", "data.tokens_per_pack"),
    *("text.dtype", "text.quantization", "adapter.base", "caption.dropout", "data.fps_dropout", "data.motion_dropout"),
    *("timesteps", "weighting", "given"),
    *("scheduler.shift", "scheduler.base_tokens", "scheduler.log_shift", "scheduler.shift_tokens"),
    *("scheduler.spacing", "scheduler.lowest", "scheduler.terminal", "scheduler.whole_steps"),
    *(f"optim.{key}" for key in ("lr", "vector_lr", "betas", "weight_decay", "momentum", "warmup", "schedule")),
    *(f"optim.{key}" for key in ("final", "decay_steps", "decay_from", "clip", "skip_norm")),
    *(f"loss.{key}" for key in ("l1", "charbonnier", "mse", "temporal", "kl", "lpips", "lpips_net", "lpips_frames")),
    *(f"loss.{key}" for key in ("adversarial", "adversarial_start", "adversarial_lr", "adaptive", "adaptive_max")),
    *("loss.r1", "loss.r1_sigma", "distill.critic_lr", "distill.critic_updates"),
)
RATE = ("lr", "warmup", "schedule", "final", "decay_steps", "decay_from")  # of `optim`: what the rate follows
# what a key that a run's config.yaml lacks meant before there was one, where that is not its default
ONCE = {"data.frames_per_read": None}


def check_same_run(config: TrainingConfig) -> list[str]:
    """What of the run in `run.dir` is said to change, in words; nothing where there is none.

    Raises UserError where it holds checkpoints of a run of another model or other data, or where the learning rate
    would jump without being asked to. Of a curriculum each stage that has begun is compared with what it was; those to
    come may be any.
    """
    saved = config.run.dir / "config.yaml"
    if not saved.is_file() or not (steps := CheckpointStore(config.run.dir / "checkpoints").steps()):
        return []
    raw, stages = read_yaml(saved), curriculum(config)
    if not (raw.get("stages") or config.stages):
        return _compare(flat(raw), config, steps[-1])
    begun = [stage for stage in curriculum(load_config(type(config), saved)) if stage.begin < steps[-1]]
    if len(begun) > len(stages):
        raise UserError(
            f"{config.run.dir} has trained {len(begun)} stages, and stages names {len(stages)}: put those back that it "
            "began with, or choose another run.dir"
        )
    said = []
    for before, stage in zip(begun, stages, strict=False):
        name, done = stage.name or before.name, steps[-1] - stage.begin
        with errors_of(name):
            _check_steps(before, stage, steps[-1], over=before is not begun[-1])
            said += [f"{name}: {change}" for change in _compare(flat(to_dict(before.config)), stage.config, done)]
    return said


def _check_steps(before: CurriculumStage, stage: CurriculumStage, done: int, over: bool) -> None:
    """Raises UserError where a stage that has begun would be of another length than it can be."""
    if over and before.steps != stage.steps:
        raise UserError(f"train.steps was {before.steps}, is {stage.steps}: the stage is over, so set it back")
    if not over and stage.end < done and not stage.last:
        raise UserError(
            f"train.steps is {stage.steps}, but {counted(done - stage.begin, 'step')} of the stage are "
            "trained: give at least that"
        )


def _compare(before: dict[str, Any], config: TrainingConfig, done: int) -> list[str]:
    """before: the saved configuration's values by their keys. done: steps that were made with it."""
    run, now = config.run.dir, flat(to_dict(config))
    usual = {**default_values(type(config)), **ONCE}
    before = {key: usual[key] for key in now if key in usual} | before  # an older version had fewer keys
    if now.get("init") is not None:  # whose model the run has where `model` does not say it
        now = {key: value for key, value in before.items() if key.startswith("model.")} | now
    changed = {
        key: f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if str(before.get(key)) != str(now.get(key)) and not _among(key, FREE)
    }
    by_content = _checked_by_content(run, before, now)
    other = [said for key, said in changed.items() if not _among(key, (*SAID, *by_content))]
    other += _critic(before, now)
    if other:
        raise UserError(
            f"{run} holds checkpoints of a run with another configuration ({'; '.join(other)}): "
            "choose another run.dir (and init to begin with these weights), or remove that folder"
        )
    said = [said for key, said in changed.items() if _among(key, SAID)]
    return said + _rate(before, config, done, [key for key in RATE if f"optim.{key}" in changed])


def _among(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key, or the section that it is in, is one of these."""
    return f"{key}.".startswith(tuple(f"{each}." for each in keys))


def _critic(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A weight that makes or takes away the critic makes another model."""
    there = [bool(config.get("loss.adversarial")) for config in (before, now)]
    if there[0] == there[1]:
        return []
    return [f"loss.adversarial was {before.get('loss.adversarial')}, is {now.get('loss.adversarial')}: with and without"
            " a critic"]  # fmt: skip


def _checked_by_content(run: Path, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Keys that may name another place, because the checkpoint notes what lies there: `same_data` compares it."""
    cached = [config.get("data.latents") is not None for config in (before, now)]
    if cached[0] != cached[1]:
        return ()
    store = CheckpointStore(run / "checkpoints")
    try:
        state = read_record(store.path(store.steps()[-1]) / "state.json", State, run)
    except UserError:
        return ()
    if state.get("data") is None:
        return ()
    base = ("model.from",) if state.get("base") is not None else ()  # `check_base` compares it
    # a cache is made by certain weights, and checked against those that are loaded
    cache = "data.latents", "vae", "text_encoder"
    clips = "data.manifest", "data.path_column", "data.caption_column", "preference.rejected_column"
    return (*(cache if cached[0] else clips), *base, "caption", "prior.dir")


def _rate(before: dict[str, Any], config: TrainingConfig, done: int, asked: list[str]) -> list[str]:
    """What becomes of the learning rate after `done` steps, in words. asked: keys of `optim` that it follows and that
    were changed. Raises UserError where another length alone would make it jump, and that is not asked for."""
    was, steps = before.get("train.steps"), config.train.steps
    if not isinstance(was, int) or was < 1:
        return []
    optim = _optim(before)
    old, new = _rate_at(done, was, optim), _rate_at(done, steps, config.optim)
    if abs(old - new) <= 1e-9 * max(old, new) or done >= steps:
        return []
    if not asked and not config.train.extend:
        last = config.optim.lr * lr_factor(steps - 1, steps, config.optim)
        raise UserError(
            f"train.steps was {was}, is {steps}, and the learning rate follows it (optim.schedule is "
            f"{optim.schedule}): after step {done} it would jump from {old:.3g} to {new:.3g}, and end at {last:.3g}. "
            f"Set train.steps={was} again, or train.extend=true to go on with that jump, or optim.schedule=constant "
            f"with optim.lr={old:.3g} to go on at the rate it had; constant and inverse_sqrt have no end"
        )
    return [f"the learning rate of step {done + 1} was {old:.3g}, is {new:.3g}"]


def _rate_at(done: int, steps: int, optim: Optim) -> float:
    """The learning rate after `done` steps; where the schedule has ended, that of its last step."""
    endless = optim.schedule in ("constant", "inverse_sqrt")
    return optim.lr * lr_factor(done if endless else min(done, steps - 1), steps, optim)


def _optim(before: dict[str, Any]) -> Optim:
    """The section of a saved configuration."""
    return build(
        Optim, {key.removeprefix("optim."): v for key, v in before.items() if key.startswith("optim.")}, "optim"
    )
