"""What a run's folder may hold: nothing is lost, and each refusal says why in one line."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from comparing import assert_same_run, lines
from run_folders import go_on
from safetensors.torch import load_file

from latentvid.config.parsing import to_dict
from latentvid.config.schema import stage_of
from latentvid.errors import UserError
from latentvid.training.checkpoint import run_folder as module
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.export import export_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import lr_factor
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def rewrite(checkpoint: Path, change) -> None:
    """Changes state.json of a checkpoint, and its manifest so that it counts as whole."""
    store = CheckpointStore(checkpoint.parent)
    step = int(checkpoint.name.removeprefix("step-"))
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    partial = store.begin(step)
    for file in checkpoint.glob("*.safetensors"):
        shutil.copy(file, partial)
    (partial / "state.json").write_text(json.dumps(state))
    store.commit(step)


# --- what may be in it ---


@pytest.mark.parametrize(
    ("place", "make", "said"),
    [
        ("metrics.jsonl", os.mkfifo, "is no regular file"),
        ("quarantine.jsonl", os.mkfifo, "is no regular file"),
        ("config.yaml", os.mkdir, "is a folder, where the run keeps a file"),
        ("checkpoints", Path.touch, "is no folder, but the run needs one there"),
        ("samples", lambda path: path.symlink_to("/usr"), "is a link that leads out of"),
        ("checkpoints", lambda path: path.symlink_to("/usr"), "is a link that leads out of"),
        ("checkpoints/step-00000001", lambda path: path.symlink_to("/usr"), "is a link that leads out of"),
        ("checkpoints/step-00000009", os.mkfifo, "is no regular file"),
    ],
)
def test_what_must_not_be_opened_is_refused(place, make, said, dit_config, begun):
    target = begun / place
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    make(target)
    with pytest.raises(UserError, match=said) as error:
        go_on(dit_config, begun)
    assert str(target) in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_links_out_of_a_checkpoint_are_damage(name, finished, tmp_path):
    copy = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    for step in (1, 2):
        file = copy / f"step-0000000{step}" / name
        shutil.move(file, tmp_path / f"{step}-{name}")
        file.symlink_to(tmp_path / f"{step}-{name}")
    with pytest.raises(UserError, match=f"{name} is a link that leads out"):
        CheckpointStore(copy).newest()
    with pytest.raises(UserError, match="model-2.safetensors is not of this checkpoint"):
        shutil.copy(finished / "checkpoints/step-00000002/model.safetensors", tmp_path / "model-2.safetensors")
        whole = shutil.copytree(finished / "checkpoints/step-00000002", tmp_path / "c/step-00000002")
        shutil.copy(tmp_path / "model-2.safetensors", whole)
        CheckpointStore(tmp_path / "c").newest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(step="2"), "step: input should be a valid integer"),
        (lambda s: s.pop("ema_updates"), "ema_updates: field required"),
        (lambda s: s.update(plan=[1]), "plan: "),
        (lambda s: s["plan"].update(carried=[-1]), "plan.carried.0: "),
        (lambda s: s["plan"].update(place=10**6), "step 1000000 of .*, cannot be"),
        (lambda s: s["plan"].pop("window"), "another version"),
        (lambda s: s.update(best={"step": 1}), "best.metric: field required"),
        (lambda s: s.update(data={"samples": 24}), "data.prints: field required"),
    ],
)
def test_a_state_of_wrong_types_is_named(change, said, dit_config, begun):
    shutil.rmtree(begun / "checkpoints/step-00000001")
    rewrite(begun / "checkpoints/step-00000002", change)
    with pytest.raises(UserError, match=said):
        go_on(dit_config, begun)


@pytest.mark.parametrize("text", ["steps: [", "\0", "[1, 2]", "train: 5"])
def test_a_config_that_cannot_be_read_is_named(text, dit_config, begun):
    (begun / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml|train was 5"):
        go_on(dit_config, begun)


def test_a_damaged_run_json_is_kept_and_written_anew(dit_config, begun, caplog):
    (begun / "run.json").write_text('{"started": "2026", "starts": 5}')
    go_on(dit_config, begun)
    about = json.loads((begun / "run.json").read_text())
    assert about["started"] == "2026" and [start["step"] for start in about["starts"]] == [2]
    assert "starts: input should be a valid list" in caplog.text
    assert (begun / "run.json.1").read_text() == '{"started": "2026", "starts": 5}'


# --- the run that it was ---


def test_what_cannot_matter_may_change(dit_config, finished, begun, tmp_path, tiny_latents, tiny_vae, tiny_t5):
    """Another place of the cache and its encoders, recomputed activations, and what is shown or kept."""
    cache = shutil.copytree(tiny_latents, tmp_path / "cache")
    moved = (f"data.latents={cache}", f"vae={shutil.copytree(tiny_vae, tmp_path / 'vae')}")
    other = ("train.gradient_checkpointing=true", "checkpoint.keep_last=5", "log.draws=true", "validation.samples=3")
    alike = shutil.copytree(finished, tmp_path / "alike")
    go_on(dit_config, alike)
    go_on(dit_config, begun, *moved, f"text_encoder={shutil.copytree(tiny_t5, tmp_path / 't5')}", *other)
    assert [r["loss"] for r in lines(begun)] == pytest.approx([r["loss"] for r in lines(alike)], rel=1e-6)


def test_a_config_of_an_older_version_had_fewer_keys(dit_config, begun, caplog):
    saved = yaml.safe_load((begun / "config.yaml").read_text())
    del saved["train"]["extend"], saved["optim"]["skip_norm"], saved["weighting"], saved["data"]["frames_per_read"]
    (begun / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError, match=r"data\.frames_per_read was None, is 256"):
        go_on(dit_config, begun)
    go_on(dit_config, begun, "data.frames_per_read=null", "optim.skip_norm=300")
    assert "optim.skip_norm was None, is 300.0" in caplog.text


def test_the_configuration_says_the_stage_and_an_older_one_still_exports(dit_config, vae_config, begun, tmp_path):
    saved = yaml.safe_load((begun / "config.yaml").read_text())
    assert saved["stage"] == "dit" and to_dict(vae_config(tmp_path))["stage"] == "vae"
    with pytest.raises(UserError, match="stage='dit': expected one of 'vae'"):
        vae_config(tmp_path, "stage=dit")
    del saved["stage"]
    (begun / "config.yaml").write_text(yaml.safe_dump(saved))
    export_run(begun, tmp_path / "out", STAGES)
    go_on(dit_config, begun)
    assert yaml.safe_load((begun / "config.yaml").read_text())["stage"] == "dit"
    older = to_dict(vae_config(tmp_path))
    assert stage_of({key: value for key, value in older.items() if key != "stage"}) == "vae"
    (begun / "config.yaml").write_text(yaml.safe_dump(saved | {"stage": "lora"}))
    with pytest.raises(UserError, match="no `stage` that can be exported"):
        export_run(begun, tmp_path / "other", STAGES)


def test_data_of_equal_sizes_are_still_other_data(dit_config, digits_data, tmp_path):
    """Another file, or caption, instead of one of the same size; the same in another folder is the same."""
    run, folder = tmp_path / "run", tmp_path / "data"
    shutil.copytree(digits_data, folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    clips = [i for i, row in enumerate(rows) if row["frames"] == rows[0]["frames"]]

    def begin(where: Path, rows: list[dict], steps: int) -> None:
        (where / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        online = ("data.latents=null", f"data.manifest={where / 'train.jsonl'}", f"train.steps={steps}")
        train(dit_config(run, *online, "checkpoint.every=1", "optim.schedule=constant"), DitTask)

    begin(folder, rows, 1)
    caption = [row | {"caption": "a BLUE 3 bounces"} if i == 2 else row for i, row in enumerate(rows)]
    with pytest.raises(UserError, match=r"not the data .* began with: the captions of sample 2 \(of 24\) changed"):
        begin(folder, caption, 2)
    name = [row | {"path": rows[clips[1]]["path"]} if i == clips[0] else row for i, row in enumerate(rows)]
    with pytest.raises(UserError, match=rf"the names of sample {clips[0]} \(of 24\) changed"):
        begin(folder, name, 2)
    moved = shutil.move(folder, tmp_path / "moved")
    begin(moved, rows, 2)
    assert len(read_metrics(run)) == 2


def test_a_checkpoint_without_a_note_of_its_data_is_taken_on_trust(dit_config, begun, caplog):
    rewrite(begun / "checkpoints/step-00000002", lambda state: state.pop("data"))
    go_on(dit_config, begun)
    assert "did not note its data" in caplog.text and len(read_metrics(begun)) == 3


def test_another_length_of_a_cosine_is_asked_for_by_name(dit_config, tmp_path):
    run = tmp_path / "run"
    options = ("checkpoint.every=1", "optim.warmup=1", "optim.schedule=cosine")
    config = dit_config(run, *options, "train.steps=2")
    train(config, DitTask)
    rate = config.optim.lr * lr_factor(2, 4, config.optim)
    said = rf"train\.steps was 2, is 4, .* after step 2 it would jump from 0\.003 to {rate:.3g}.*train\.extend=true"
    with pytest.raises(UserError, match=said):
        train(dit_config(run, *options, "train.steps=4"), DitTask)
    train(dit_config(run, *options, "train.steps=4", "train.extend=true"), DitTask)
    assert len(read_metrics(run)) == 4
    module.check_same_run(dit_config(run, *options, "train.steps=4"))  # it is asked once


# --- what is no model ---


def test_a_run_whose_every_step_was_skipped_exports_nothing(dit_config, tmp_path):
    class Nan(DitTask):
        def loss(self, model, pack, step):
            losses, parts = super().loss(model, pack, step)
            return losses * float("nan"), parts

    config = dit_config(tmp_path, "train.steps=2", "optim.schedule=constant")
    for _ in range(2):  # nor when it is started again
        with pytest.raises(UserError, match="no trained weights. If every step was skipped"):
            train(config, Nan)
    assert not (tmp_path / "pipeline").exists()
    with pytest.raises(UserError, match="no trained weights"):
        export_run(tmp_path, tmp_path / "out", STAGES)


def test_weights_that_are_no_numbers_are_not_saved(dit_config, begun):
    class Breaking(DitTask):
        def loss(self, model, pack, step):
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[0] = float("nan")
            losses, parts = super().loss(model, pack, step)
            return losses.nan_to_num(), parts

    config = dit_config(begun, "checkpoint.every=1", "optim.schedule=constant", "train.steps=3")
    with pytest.raises(UserError, match="is not finite, so it is not saved.*goes on from step-00000002"):
        train(config, broken_but_stepping(Breaking))
    assert CheckpointStore(begun / "checkpoints").steps() == [1, 2]
    assert not list((begun / "checkpoints").glob(".*"))


def broken_but_stepping(task: type) -> type:
    """A task whose gradients are numbers although its first weight is none."""

    class Stepping(task):
        def loss(self, model, pack, step):
            losses, parts = super().loss(model, pack, step)
            zero = sum(p.sum().nan_to_num() * 0 for p in self.model.parameters())
            return torch.zeros_like(losses) + zero, parts

    return Stepping


def test_nan_in_a_checkpoint_is_not_exported(finished, tmp_path, monkeypatch):
    from latentvid.training import export

    monkeypatch.setattr(export, "not_finite", lambda tensors: next(iter(tensors)))
    with pytest.raises(UserError, match="is not finite: export another step"):
        export_run(finished, tmp_path / "out", STAGES)
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_a_run_whose_type_was_chosen_for_it_is_exported(finished, tmp_path):
    """config.yaml says what was asked for, `auto` by default: what it came to is in the checkpoints."""
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert (changed := re.sub("mixed_precision: '?no'?", "mixed_precision: auto", text)) != text
    (run / "config.yaml").write_text(changed)
    export_run(run, tmp_path / "out", STAGES)
    exported = next((tmp_path / "out/transformer").glob("*.safetensors"))
    assert exported.read_bytes() == (finished / "pipeline/transformer" / exported.name).read_bytes()


def test_an_export_that_cannot_be_written_is_said_before_the_work(finished, tmp_path, monkeypatch):
    from latentvid.training import export

    monkeypatch.setattr(export, "export_checkpoint", None)  # it does not come to that
    with pytest.raises(UserError, match="its name has 250 bytes, and at most 246 can be"):
        export_run(finished, tmp_path / ("x" * 250), STAGES)
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="out exists"):
        export_run(finished, tmp_path / "out", STAGES)


def test_statistics_of_nothing_are_refused(vae_config, tmp_path):
    config = vae_config(tmp_path)
    task = VaeTask(config, torch.device("cpu"))
    config.statistics_samples = 0
    with pytest.raises(UserError, match="have no mean and deviation: set statistics_samples"):
        task.export(task.model, tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


def test_files_of_a_run_follow_the_umask(finished):
    modes = {oct(p.stat().st_mode & 0o777) for p in finished.rglob("*") if p.is_file()}
    assert modes == {oct(0o666 & ~os.umask(os.umask(0o022)))}  # read, not changed
    assert load_file(finished / "checkpoints/step-00000002/model.safetensors")


def test_going_on_is_still_exact(dit_config, begun, tmp_path):
    options = ("checkpoint.every=1", "optim.schedule=constant", "train.steps=3")
    train(dit_config(tmp_path / "whole", *options), DitTask)
    go_on(dit_config, begun)
    assert_same_run(begun, tmp_path / "whole", 3)
