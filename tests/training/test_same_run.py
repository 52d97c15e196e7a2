"""What of a configuration may change where a run goes on: the table of docs/distributed.md."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from comparing import assert_each_once, draws, lines, state

from latentvid.config.distillation import Distillation
from latentvid.config.entries import flat
from latentvid.config.parsing import save_config, to_dict
from latentvid.errors import UserError
from latentvid.training.checkpoint.same_run import FREE, SAID, check_same_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import lr_factor
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
DOCS = Path(__file__).parents[2] / "docs" / "distributed.md"


def begun(config, done: int, data: bool = True):
    """The configuration, of a run that has a checkpoint of step `done`, as far as its configuration is looked at."""
    checkpoint = config.run.dir / f"checkpoints/step-{done:08d}"
    checkpoint.mkdir(parents=True)
    told = {"step": done, "plan": {}, "ema_updates": 1, "skipped_steps": 0, "bad_steps": 0}
    told |= {"data": {"samples": 1, "prints": {}}} if data else {}
    (checkpoint / "state.json").write_text(json.dumps(told))
    save_config(config, config.run.dir / "config.yaml")
    return config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train.compile=true", "data.workers=3", "checkpoint.every=9", "log.draws=true"], []),
        (["train.gradient_checkpointing=true", "inference.steps=7", "attention=sdpa", "data.may_grow=true"], []),
        (["vae=elsewhere", "data.latents=elsewhere", "text_encoder=elsewhere", "caption.too_long=truncate"], []),
        (["optim.clip=2"], ["optim.clip was 1.0, is 2.0"]),
        (["train.ema=0.5", "data.packs_per_step=4", "data.tokens_per_pack=512", "caption.dropout=0.2"], None),
        (["timesteps.shift=3", "given={plain: 1, first: 1}", "optim.betas=[0.8,0.9]", "train.loss_by=sample"], None),
        (["optim.lr=1e-3"], ["optim.lr was 0.003, is 0.001", "the learning rate of step 4 was 0.00"]),
    ],
)
def test_what_is_free_and_what_is_said(options, said, dit_config, tmp_path):
    begun(dit_config(tmp_path), 3)
    found = check_same_run(dit_config(tmp_path, *options))
    if said is None:
        assert {line.split(" was ")[0] for line in found} >= {o.split("=")[0] for o in options if "{" not in o}
        assert len(found) >= len(options)
    else:
        assert len(found) == len(said) and all(a.startswith(b) for a, b in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.depth=3", r"model\.depth was 2, is 3"),
        ("run.seed=1", r"run\.seed was 0, is 1"),
        ("scheduler.target=x", r"scheduler\.target was None, is x"),
        ("optim.name=muon", r"optim\.name was adamw, is muon"),
        ("data.max_frames=9", r"data\.max_frames was 17, is 9"),
        ("data.flip=true", r"data\.(flip|latents) was"),
        ("init=somewhere", r"init was None, is somewhere"),
    ],
)
def test_what_makes_it_another_run_is_refused(option, said, dit_config, tmp_path):
    begun(dit_config(tmp_path), 3)
    more = ("data.latents=null", "data.manifest=x.jsonl") if "flip" in option else ()
    with pytest.raises(UserError, match=rf"another configuration \(.*{said}.*choose another run\.dir \(and init "):
        check_same_run(dit_config(tmp_path, *more, option))


def test_another_place_is_other_data_where_the_checkpoint_did_not_note_which(dit_config, tmp_path):
    begun(dit_config(tmp_path), 3, data=False)
    with pytest.raises(UserError, match=r"data\.latents was .*, is elsewhere"):
        check_same_run(dit_config(tmp_path, "data.latents=elsewhere"))


def test_a_critic_neither_comes_nor_goes(vae_config, tmp_path):
    critic = ("loss.adversarial=0.1", "loss.critic={widths: [8, 8]}")
    begun(vae_config(tmp_path, *critic), 3)
    assert check_same_run(vae_config(tmp_path, *critic, "loss.adversarial=0.2", "loss.r1=0.3"))
    with pytest.raises(UserError, match=r"loss\.adversarial was 0\.1, is 0\.0: with and without a critic"):
        check_same_run(vae_config(tmp_path, *critic, "loss.adversarial=0"))


@pytest.mark.parametrize(
    ("schedule", "steps", "jumps"),
    [
        ("optim.schedule=constant", 20, False),
        ("optim.schedule=inverse_sqrt", 20, False),
        ("optim.schedule=wsd", 20, False),
        ("optim.schedule=cosine", 20, True),
        ("optim.schedule=cosine", 8, True),
    ],
)
def test_a_length_that_makes_the_rate_jump_is_asked_for(schedule, steps, jumps, dit_config, tmp_path):
    config = begun(dit_config(tmp_path, schedule, "train.steps=10"), 6)
    longer = (schedule, f"train.steps={steps}")
    if not jumps:
        assert check_same_run(dit_config(tmp_path, *longer)) == [f"train.steps was 10, is {steps}"]
        return
    old, new = (config.optim.lr * lr_factor(6, n, config.optim) for n in (10, steps))
    said = rf"after step 6 it would jump from {old:.3g} to {new:.3g}, and end at .*train\.steps=10 again, or "
    with pytest.raises(UserError, match=said + r"train\.extend=true .* or optim\.schedule=constant with optim\.lr="):
        check_same_run(dit_config(tmp_path, *longer))
    lines = check_same_run(dit_config(tmp_path, *longer, "train.extend=true"))
    assert lines[-1] == f"the learning rate of step 7 was {old:.3g}, is {new:.3g}"
    held = (f"train.steps={steps}", "optim.schedule=constant", f"optim.lr={old}", "optim.warmup=2")
    assert not any("learning rate" in line for line in check_same_run(dit_config(tmp_path, *held)))


def test_a_decay_that_has_begun_is_not_left_without_a_word(dit_config, tmp_path):
    """And a run at a constant rate is cooled down by naming the schedule."""
    wsd = ("optim.schedule=wsd", "optim.decay_steps=5")
    begun(dit_config(tmp_path / "begun", *wsd, "train.steps=10"), 8)
    with pytest.raises(UserError, match="after step 8 it would jump from .* to 0.003"):
        check_same_run(dit_config(tmp_path / "begun", *wsd, "train.steps=20"))
    begun(dit_config(tmp_path / "level", "optim.schedule=constant", "train.steps=100"), 8)
    said = check_same_run(dit_config(tmp_path / "level", *wsd, "train.steps=13"))
    assert said == ["optim.decay_steps was None, is 5", "optim.schedule was constant, is wsd",
                    "train.steps was 100, is 13", "the learning rate of step 9 was 0.003, is 0.00167"]  # fmt: skip


def test_the_table_is_what_is_done(dit_config, vae_config, tmp_path):
    """Each key that may change stands in its row of the document, by itself or by its section, and no other does."""
    text = DOCS.read_text(encoding="utf-8").partition("### What may change in between")[2]
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    free, said = (
        next(row for row in rows if row.startswith(f"| {begin}")) for begin in ("`checkpoint`", "`optim` except")
    )
    levels = ("shift=2", "base_tokens=16", "log_shift=[0.5, 1.0]", "shift_tokens=[16, 64]", "spacing=even")
    levels += ("lowest=0.0", "terminal=0.1", "whole_steps=1000")
    dit = dit_config(tmp_path, *(f"scheduler.{level}" for level in levels))
    keys = {key for config in (dit, vae_config(tmp_path)) for key in flat(to_dict(config))}
    keys |= {f"distill.{field.name}" for field in fields(Distillation)}
    for row, expected in ((free, FREE), (said, SAID)):
        named = re.findall(r"`([a-z_0-9.]+)`", row.rpartition("|")[0].rpartition("|")[0])
        unnamed = {key for key in keys if among(key, expected) and not among(key, named)}
        assert unnamed <= {"train.mixed_precision", "train.steps"}, unnamed  # each has a row of its own
        stray = {key for key in keys if among(key, named) and not among(key, expected)}
        assert stray <= {"optim.name", *(key for key in keys if key.startswith("loss."))}, stray
    for key in (*FREE, *SAID):
        assert any(among(each, [key]) or among(key, [each]) for each in keys), f"there is no key {key}"
    assert not {key for key in keys if among(key, SAID) and among(key, FREE)}


def among(key: str, names: Sequence[str]) -> bool:
    return f"{key}.".startswith(tuple(f"{name}." for name in names))


# --- real runs ---


@pytest.fixture(scope="module")
def some(tmp_path_factory, dit_config) -> Path:
    """A run of three steps at a constant rate, with a log of what they drew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("some") / "run"
    train(dit_config(run, *LEVEL, "train.steps=3"), DitTask)
    return run


LEVEL = ("optim.schedule=constant", "log.draws=true", "checkpoint.every=1")


def test_a_run_goes_on_with_another_rate_and_other_packs(some, dit_config, tmp_path, caplog):
    run = shutil.copytree(some, tmp_path / "run")
    other = ("optim.lr=1e-3", "optim.betas=[0.8,0.9]", "data.packs_per_step=3", "data.tokens_per_pack=200")
    train(dit_config(run, *LEVEL, *other, "train.ema=0.5", "train.steps=12"), DitTask)
    assert [r["lr"] for r in lines(run)][2:] == [3e-3] + [1e-3] * 9
    assert "goes on with another configuration: data.packs_per_step was 2, is 3; " in caplog.text
    start = json.loads((run / "run.json").read_text())["starts"][1]
    assert "optim.lr was 0.003, is 0.001" in start["changed"] and start["step"] == 3
    assert_each_once(run, 24)
    again = shutil.copytree(some, tmp_path / "again")  # stopped on the way, it is the same run
    for steps in (5, 12):
        train(dit_config(again, *LEVEL, *other, "train.ema=0.5", f"train.steps={steps}"), DitTask)
    assert lines(again) == lines(run)
    assert all((state(again, 12)[k] == v).all() for k, v in state(run, 12).items())


def test_appended_clips_are_drawn_from_the_next_epoch_on(dit_config, digits_data, tmp_path, caplog):
    folder, run = shutil.copytree(digits_data, tmp_path / "data"), tmp_path / "run"
    rows = (folder / "train.jsonl").read_text().splitlines()

    def begin(count: int, steps: int, *options: str) -> None:
        (folder / "train.jsonl").write_text("\n".join(rows[:count]))
        online = ("data.latents=null", f"data.manifest={folder / 'train.jsonl'}", f"train.steps={steps}")
        train(dit_config(run, *LEVEL, *online, *options), DitTask)

    begin(20, 2)
    with pytest.raises(UserError, match="began with 20 samples, the data set now has 24: .*data.may_grow=true"):
        begin(24, 4)
    begin(24, 4, "data.may_grow=true")
    assert "4 samples were appended to 20: drawn from the next epoch on" in caplog.text
    begin(24, 14, "data.may_grow=true")
    found = sorted(draw for step in draws(run) for draw in step)
    numbers = [number for number, _ in found]
    whole = next(n for n in range(len(numbers) + 1) if n not in set(numbers))
    order = [index for _, index in found]
    later = next(n for n in (20, 40, 60) if sorted(order[n : n + 24]) == list(range(24)))  # epochs of 20 come before
    assert whole >= later + 48 and sorted(order[later + 24 : later + 48]) == list(range(24))
    assert all(sorted(order[n : n + 20]) == list(range(20)) for n in range(0, later, 20))
    rows[3] = json.dumps(json.loads(rows[3]) | {"caption": "a BLUE 3"})
    with pytest.raises(UserError, match=r"the captions of sample 3 \(of 24\) changed"):
        begin(24, 15, "data.may_grow=true")
    assert len(read_metrics(run)) == 14
