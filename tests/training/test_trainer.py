"""Training: stopped equals not stopped, clips equal their cache, what it leaves is whole."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from comparing import TIMES, assert_same_run, lines, same, state
from launching import family, wait_for
from safetensors.torch import load_file

from latentvid.config.parsing import load_config, save_config
from latentvid.data.plan.plan import Plan
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import lr_factor
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Stop(Exception):
    """What interrupts a run in these tests."""


def stopping(task: type, after: int) -> type:
    """`task`, whose loss raises after so many packs."""

    class Stopping(task):
        packs = 0

        def loss(self, model, pack, step):
            if self.packs == after:
                raise Stop
            self.packs += 1
            return super().loss(model, pack, step)

    return Stopping


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dit_config) -> Path:
    """A finished run of six steps with curves for TensorBoard."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("whole")
    train(dit_config(run, "log.trackers=[tensorboard]"), DitTask)
    return run


def test_a_run_leaves_its_records(whole, dit_config):
    records = read_metrics(whole)
    config = dit_config(whole)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    known = {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "samples",
        "replaced",
        "epoch",
        "skipped_steps",
        "fill",
        "balance",
    }
    keys = known | set(TIMES)
    assert all(r.keys() == keys and r["loss"] > 0 and r["grad_norm"] > 0 for r in records)
    assert [r["lr"] for r in records] == [pytest.approx(3e-3 * lr_factor(n, 6, config.optim)) for n in range(6)]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert list(whole.glob("logs/**/events*"))
    assert load_config(type(config), whole / "config.yaml").model == config.model
    about = json.loads((whole / "run.json").read_text())
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] and about["machine"]["cores"] >= 1
    pipeline = load_pipeline(whole / "pipeline", "cpu")
    # by default it makes what most of its training's tokens were, not what the samples on the way are
    first = about["trained"][0]
    tokens = [
        kind["count"] * (1 + (kind["frames"] - 1) // 4) * kind["height"] * kind["width"] for kind in about["trained"]
    ]
    assert tokens[0] == max(tokens) and sum(kind["count"] for kind in about["trained"]) == about["plan"]["samples"]
    assert {name: pipeline.config[name] for name in ("frames", "height", "width")}.items() <= first.items()
    assert pipeline.config.fps == 8.0 and pipeline.config.trained == about["trained"]
    model = pipeline.transformer
    assert about["parameters"] == sum(p.numel() for p in model.parameters())
    assert about["plan"]["samples"] == sum(shape["count"] for shape in about["plan"]["shapes"])
    assert [(start["step"], start["world"]) for start in about["starts"]] == [(0, 1)]


@pytest.mark.parametrize("given", ["{plain: 1}", "{plain: 1, first: 1, prefix: 1, ends: 1}"])
def test_a_step_weighs_every_token_that_has_a_loss_or_every_sample_alike(given, dit_config, tmp_path):
    """The first loss is that of the step's samples, computed one by one; given frames have none. So is its gradient."""
    for by in ("token", "sample"):
        config = dit_config(tmp_path / by, f"train.loss_by={by}", f"given={given}", "train.steps=1")
        train(config, DitTask)
        task = DitTask(config, torch.device("cpu"))
        step = Plan(task.tokens, budget=256, packs=2, seed=0).next()
        each, weights = [], []
        for draw in (draw for pack in step.packs for draw in pack):
            alone = task.make_pack([draw])
            each.append(task.loss(task.model, alone, 0)[0])
            noised = alone.timestep[alone.layout.frame] > 0  # of each token
            weights.append(int(noised.sum()) if by == "token" else 1)
        if by == "token":
            assert (sum(weights) < step.tokens) == ("first" in given)
        expected = sum(w * loss for w, loss in zip(weights, each, strict=True)) / sum(weights)
        record = read_metrics(tmp_path / by)[0]
        assert record["loss"] == pytest.approx(expected.item(), rel=1e-5)
        expected.backward()
        norm = torch.stack([p.grad.norm() for p in task.model.parameters() if p.grad is not None]).norm().item()
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert (record["tokens"], record["samples"]) == (step.tokens, step.samples)


def test_the_export_is_the_average_and_makes_clips(whole):
    transformer = load_pipeline(whole / "pipeline", "cpu").transformer.state_dict()
    average = state(whole, 6, "ema")
    assert same(transformer, average) and not same(transformer, state(whole, 6))
    quiet = {"sampling": Sampling(progress=False), "output_type": "uint8"}
    clip = load_pipeline(whole / "pipeline", "cpu")("a red 7 moves up", **quiet)
    assert tuple(clip.frames[0].shape) == (17, 32, 24, 3)  # of most of the training's tokens


@pytest.mark.parametrize("stage", ["dit", "vae"])
def test_interrupted_equals_uninterrupted(stage, whole, dit_config, vae_config, tmp_path):
    """Stopped in step 5, after the checkpoint of step 3; AdamW on the transformer, Muon on the autoencoder."""
    make, task = {"dit": (dit_config, DitTask), "vae": (vae_config, VaeTask)}[stage]
    if stage == "vae":
        whole = tmp_path / "whole"
        train(make(whole), task)
    run = tmp_path / "stopped"
    with pytest.raises(Stop):
        train(make(run), stopping(task, after=2 * 4 + 1))
    assert [r["step"] for r in read_metrics(run)] == [1, 2, 3, 4]
    train(make(run), task)
    assert_same_run(run, whole, 6)
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 3]
    part = {"dit": "pipeline/transformer", "vae": "vae"}[stage]
    a, b = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for folder in (run, whole))
    assert same(a, b)


def runs(pid: int) -> bool:
    """Not of one that has ended, and waits for whoever has inherited it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def test_killed_and_started_again_equals_uninterrupted(dit_config, tmp_path):
    """kill -9 of the real script while it writes a checkpoint every step and a loader process reads ahead."""
    options = ("optim.schedule=constant", "checkpoint.every=1", "checkpoint.keep_last=2")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    save_config(dit_config(killed, *options, "train.steps=100000", "data.workers=1"), tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train/train_dit.py"), str(tmp_path / "config.yaml")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 400  # where others use the processors too
    while len(read_metrics(killed)) < 5 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    loaders = family(process.pid)[1:]
    process.kill()  # the trainer alone
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    assert loaders  # and they end by themselves
    # they look for it every 5 seconds
    wait_for(lambda: not any(map(runs, loaders)), 60, "the end of the loader's processes")

    done = max(r["step"] for r in read_metrics(killed))
    last = done + 3
    train(dit_config(killed, *options, f"train.steps={last}"), DitTask)
    train(dit_config(whole, *options, f"train.steps={last}"), DitTask)
    assert [r["step"] for r in lines(killed)] == list(range(1, last + 1))
    assert_same_run(killed, whole, last)


def test_a_failing_run_with_loader_processes_ends(dit_config, tmp_path):
    """So that a launcher starts it again; the exception's traceback keeps the loader alive until the end."""
    save_config(dit_config(tmp_path, "data.workers=1"), tmp_path / "config.yaml")
    program = (
        "import sys; from latentvid.config import parsing, schema; from latentvid.training import trainer\n"
        "from latentvid.training.stages.dit.task import DitTask\n"
        "class Failing(DitTask):\n"
        "    def loss(self, model, pack, step): raise RuntimeError('as asked')\n"
        "if __name__ == '__main__': trainer.train(parsing.load_config(schema.DitConfig, sys.argv[1]), Failing)\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "config.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 1 and "as asked" in done.stderr


def test_started_again_when_finished_it_only_exports(whole, dit_config):
    before = (whole / "metrics.jsonl").read_text()
    shutil.rmtree(whole / "pipeline")  # as when killed before the export, which is there only when whole
    train(dit_config(whole, "log.trackers=[]"), stopping(DitTask, after=0))
    assert (whole / "metrics.jsonl").read_text() == before
    load_pipeline(whole / "pipeline", "cpu")


def test_a_run_says_what_it_leaves_out(vae_config, digits_data, tmp_path, capsys):
    rows = (digits_data / "train.jsonl").read_text().splitlines()
    good = [json.dumps(row | {"path": str(digits_data / row["path"])}) for row in map(json.loads, rows)]
    (tmp_path / "empty.mp4").write_bytes(b"")
    bad = json.dumps({"path": "empty.mp4", "caption": "nothing", "frames": 9, "fps": 8, "height": 24, "width": 24})
    (tmp_path / "some.jsonl").write_text("\n".join([*good, bad]))
    train(vae_config(tmp_path / "run", f"data.manifest={tmp_path / 'some.jsonl'}", "train.steps=1"), VaeTask)
    said = capsys.readouterr().err
    assert f"{len(good)} windows of {len(good)} clips and images" in said
    assert "dropped 1 (empty-file): " in said and "empty.mp4" in said


def test_another_configuration_in_the_same_folder_is_refused(whole, dit_config):
    with pytest.raises(UserError, match=r"\(model\.depth was 2, is 3\): choose another run\.dir \(and init "):
        train(dit_config(whole, "model.depth=3", "optim.lr=1e-3"), DitTask)


def test_clips_train_like_their_cache(dit_config, digits_data, tmp_path):
    """The same samples, noise and levels; the cache only rounds latents and text to 16 bits."""
    online = ("data.latents=none", f"data.manifest={digits_data / 'train.jsonl'}")
    packs = {}
    for name, overrides in {"cache": (), "clips": online}.items():
        config = dit_config(tmp_path / name, "train.steps=1", "caption.dropout=0.3", *overrides)
        train(config, DitTask)
        task = DitTask(config, torch.device("cpu"))
        draws = Plan(task.tokens, budget=2000, packs=1, seed=0).next().packs[0]
        packs[name] = task.make_pack(draws) if name == "cache" else task._encode(task.make_pack(draws))
    first, second = packs["cache"], packs["clips"]
    assert first.layout.grid == second.layout.grid and first.text_layout.grid == second.text_layout.grid
    assert torch.equal(first.noise, second.noise) and torch.equal(first.timestep, second.timestep)
    torch.testing.assert_close(first.clean, second.clean, atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(first.text, second.text, atol=5e-3, rtol=1e-3)
    losses = [read_metrics(tmp_path / name)[0]["loss"] for name in packs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("kind", ["cache", "clips", "vae"])
def test_packs_are_the_same_in_a_loader_process(kind, dit_config, vae_config, digits_data, tmp_path):
    """What a loader process gets makes the same packs, and holds no network."""
    online = ("data.latents=none", f"data.manifest={digits_data / 'train.jsonl'}") if kind == "clips" else ()
    config = vae_config(tmp_path) if kind == "vae" else dit_config(tmp_path, *online)
    task = (VaeTask if kind == "vae" else DitTask)(config, torch.device("cpu"))
    sent = pickle.dumps(task.make_pack)
    draws = Plan(task.tokens, budget=config.data.tokens_per_pack, packs=1, seed=0).next().packs[0]
    here, there = task.make_pack(draws), pickle.loads(sent)(draws)
    if kind == "vae":
        pairs = [(a.video, b.video) for a, b in zip(here.groups, there.groups, strict=True)]
    else:
        pairs = [(here.noise, there.noise), (here.timestep, there.timestep)]
        pairs += [(here.clean, there.clean)] if kind == "cache" else list(zip(here.videos, there.videos, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(isinstance(v, torch.nn.Module) for v in task.__getstate__().values())
    assert isinstance(task.model, torch.nn.Module)


@pytest.mark.parametrize("stage", ["dit", "vae"])
def test_the_loss_falls(stage, dit_config, vae_config, tmp_path):
    if stage == "dit":
        train(dit_config(tmp_path, "train.steps=60", "checkpoint.every=0"), DitTask)
    else:
        train(vae_config(tmp_path, "train.steps=40", "checkpoint.every=0", "optim.lr=1e-2"), VaeTask)
    losses = [r["loss"] for r in read_metrics(tmp_path)]
    assert sum(losses[-10:]) < (0.9 if stage == "dit" else 0.5) * sum(losses[:10])


def test_the_autoencoder_is_exported_with_its_latents_statistics(vae_config, tmp_path):
    config = vae_config(tmp_path, "train.steps=3", "statistics_samples=1000")
    train(config, VaeTask)
    vae = load_vae(tmp_path / "vae")
    source = VaeTask(config, torch.device("cpu")).source
    with torch.no_grad():
        videos = [source.load(i, 0, i).video[None] for i in range(len(source))]
        latents = [vae.normalise(vae.encode(video).latent_dist.mean)[0] for video in videos]
    values = torch.cat([z.flatten(1) for z in latents], dim=1)
    torch.testing.assert_close(values.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(4), atol=1e-3, rtol=0)


def test_the_last_step_has_a_sheet_and_a_measurement_whatever_their_intervals(dit_config, tiny_latents, tmp_path):
    shown = ("samples.every=2", "samples.prompts=[a]", f"validation.latents={tiny_latents}", "validation.every=2")
    few = ("validation.samples=2", "validation.bins=1", "validation.weights=[raw]")
    train(dit_config(tmp_path, "train.steps=3", *shown, *few), DitTask)
    assert sorted(file.name for file in (tmp_path / "samples").glob("step-*-ema.png")) == [
        "step-000002-ema.png",
        "step-000003-ema.png",
    ]
    assert [r["step"] for r in read_metrics(tmp_path, "validation.jsonl")] == [2, 3]


def test_checkpointing_and_loader_settings_change_no_result(whole, dit_config, tmp_path):
    """Recomputed activations and pack-by-pack accumulation give the same curve up to rounding."""
    train(dit_config(tmp_path, "train.gradient_checkpointing=true", "checkpoint.every=0"), DitTask)
    for a, b in zip(lines(whole), lines(tmp_path), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a["tokens"] == b["tokens"]
    manifest = json.loads((tmp_path / "checkpoints/step-00000006/manifest.json").read_text())
    assert manifest["step"] == 6  # the last step has a checkpoint, whatever the interval
