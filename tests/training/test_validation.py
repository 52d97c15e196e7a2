"""Looks at a run: the same noise for every run, the exact loss of every bin, nothing disturbed, the best one kept."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from comparing import lines, same, state

from latentvid.data.clips import open_sources
from latentvid.data.plan.plan import Draw
from latentvid.data.video.reading import read_frames
from latentvid.errors import UserError
from latentvid.evaluation.pairs.reconstruction import evaluate
from latentvid.models.interchange import load_vae
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.export import export_run, read_model
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.run import TrainingRun
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
MEASURED = ("validation.every=2", "validation.samples=7", "validation.bins=4")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def validation(run: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run, "validation.jsonl")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, dit_config, tiny_latents) -> Path:
    """Six steps, measured on the training data (so that it is known) at 2, 4 and 6, with samples at 3 and 6."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("measured")
    looks = ("samples.every=3", "samples.weights=[ema,raw]", 'samples.prompts=["a red 7 moves up", "a blue 3"]')
    trackers = "log.trackers=[tensorboard]"
    train(dit_config(run, *MEASURED, *looks, trackers, f"validation.latents={tiny_latents}"), DitTask)
    return run


def test_looks_disturb_nothing(measured, dit_config, tmp_path):
    train(dit_config(tmp_path), DitTask)
    assert lines(measured) == lines(tmp_path) and same(state(measured, 6), state(tmp_path, 6))
    assert same(state(measured, 6, "ema"), state(tmp_path, 6, "ema"))
    assert not (tmp_path / "validation.jsonl").exists() and not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_every_bin_has_the_loss_of_each_window_alone(measured, dit_config, tiny_latents, weights):
    """The exact slow way: one window at one level after another, the weights from the checkpoint."""
    task = DitTask(dit_config(measured, *MEASURED, f"validation.latents={tiny_latents}"), CPU)
    model = read_model(task.new_model(), measured / "checkpoints/step-00000006", raw=weights == "raw").eval()
    held_out = task.held_out()
    assert len(held_out.windows) == 7 and len(held_out.packs) > 1
    want = torch.zeros(2, 4)
    for window in held_out.windows:
        for b in range(4):
            pack = held_out.make_pack([Draw(4 * window + b, window)])
            assert torch.equal(pack.clean, held_out.prepare(pack).clean) and pack.layout.segments == 1
            assert b / 4 < float(pack.timestep[0]) <= (b + 1) / 4 and pack.timestep.unique().numel() == 1
            with torch.no_grad():
                loss, of_clean = held_out.errors(model, pack, of_clean=True)
            want[:, b] += torch.stack([loss, of_clean])[:, 0] / 7
    found = next(r for r in validation(measured) if r["step"] == 6 and r["weights"] == weights)
    got = torch.tensor([[part[name] for part in found["bins"]] for name in ("loss", "x_mse")])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert found["loss"] == pytest.approx(float(want[0].mean()), rel=1e-5) and found["samples"] == 7


def test_the_noise_is_that_of_the_validation_s_seed_alone(dit_config, tiny_latents, tmp_path):
    def packs(*changes: str) -> list:
        options = (*MEASURED, f"validation.latents={tiny_latents}", *changes)
        held_out = DitTask(dit_config(tmp_path, *options), CPU).held_out()
        return [held_out.make_pack(draws) for draws in held_out.packs]

    plain = packs()
    for same_noise in (packs("run.seed=5", "caption.dropout=1", "given.plain=0", "given.first=1"),):
        for a, b in zip(plain, same_noise, strict=True):
            assert torch.equal(a.noise, b.noise) and torch.equal(a.timestep, b.timestep)
            assert torch.equal(a.clean, b.clean) and torch.equal(a.text, b.text)
    smaller = packs("data.tokens_per_pack=100")
    assert len(smaller) > len(plain)
    assert torch.equal(torch.cat([p.noise for p in plain]), torch.cat([p.noise for p in smaller]))
    assert not torch.equal(plain[0].noise, packs("validation.seed=1")[0].noise)


def test_clips_are_measured_like_their_cache(dit_config, digits_data, tiny_latents, tmp_path):
    """Up to the cache's half precision."""
    figures = []
    for held_out in (f"validation.latents={tiny_latents}", f"validation.manifest={digits_data / 'train.jsonl'}"):
        task = DitTask(dit_config(tmp_path, *MEASURED, held_out), CPU)
        measure = task.held_out()
        figures.append(measure.record(measure.measure(task.model.eval(), 0, 1)))
    a, b = ([part["loss"] for part in f["bins"]] for f in figures)
    assert a == pytest.approx(b, rel=1e-3)


def test_an_error_in_x_is_the_loss_of_a_model_of_x_and_compares_other_targets(dit_config, tiny_latents, tmp_path):
    def figures(target: str) -> dict:
        options = (*MEASURED, f"validation.latents={tiny_latents}", f"scheduler={{target: {target}}}")
        task = DitTask(dit_config(tmp_path, *options), CPU)
        for parameter in task.model.parameters():
            torch.nn.init.zeros_(parameter)  # every model then predicts 0
        measure = task.held_out()
        return measure.record(measure.measure(task.model.eval(), 0, 1))

    of_x = figures("x")
    assert of_x["x_mse"] == pytest.approx(of_x["loss"], rel=1e-6)
    # flow = eps - x predicted as 0: x is z, so its error is t^2 times the loss
    flow = figures("flow")
    for part in flow["bins"]:
        assert part["from"] ** 2 < part["x_mse"] / part["loss"] <= part["to"] ** 2


def test_the_best_checkpoint_stays_and_can_be_exported(dit_config, tiny_latents, tmp_path):
    run = tmp_path / "run"
    options = (*MEASURED, f"validation.latents={tiny_latents}", "checkpoint.keep_last=1", "checkpoint.every=0")
    train(dit_config(run, *options, "optim.lr=0.3", "optim.clip=100", "validation.weights=[raw]"), DitTask)
    measured = {r["step"]: r["loss"] for r in validation(run)}
    step = min(measured, key=measured.get)
    assert step < 6, "the run was to get worse at its end"
    best = json.loads((run / "best.json").read_text())
    assert best == {"step": step, "metric": "loss", "weights": "raw", "value": measured[step]}
    assert CheckpointStore(run / "checkpoints").steps() == [step, 6]
    export_run(run, tmp_path / "best", STAGES, best=True)
    ours = read_model(DitTask(dit_config(run), CPU).new_model(), run / f"checkpoints/step-{step:08d}", raw=True)
    theirs = type(ours).from_pretrained(tmp_path / "best" / "transformer")
    assert same(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_a_run_that_was_stopped_is_measured_as_one_that_was_not(
    measured, dit_config, tiny_latents, tmp_path, monkeypatch
):
    """Also at the very step at which it was asked to stop."""
    options = (*MEASURED, f"validation.latents={tiny_latents}")
    after_step = TrainingRun._after_step

    def stop_at_four(self, stop):
        after_step(self, stop=self.step == 4)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(TrainingRun, "_after_step", stop_at_four)
        train(dit_config(tmp_path, *options), DitTask)
    assert [r["step"] for r in validation(tmp_path)] == [2, 2]
    train(dit_config(tmp_path, *options), DitTask)
    assert validation(tmp_path) == validation(measured)
    assert (tmp_path / "best.json").read_text() == (measured / "best.json").read_text()


def test_samples_are_sheets_and_clips_of_both_weights_and_reach_the_tracker(measured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = {p.name for p in (measured / "samples").iterdir()}
    parts = [".png", "-0.mp4", "-1.mp4"]
    assert names == {f"step-{step:06d}-{w}{part}" for step in (3, 6) for w in ("ema", "raw") for part in parts}
    ema, raw = (read_frames(measured / f"samples/step-000006-{w}-0.mp4", 0, 5) for w in ("ema", "raw"))
    assert not torch.equal(ema, raw)
    events = next((measured / "logs").rglob("events*")).parent
    found = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert {"samples/ema", "samples/raw"} <= set(found.Tags()["images"])
    scalars = found.Tags()["scalars"]
    assert {"validation/ema/loss", "validation/raw/x_mse", "validation/ema/loss 0.25-0.50"} <= set(scalars)
    assert [e.step for e in found.Scalars("validation/ema/loss")] == [2, 4, 6]


def test_an_autoencoder_is_measured_as_its_export_is(vae_config, digits_data, tmp_path):
    options = ("validation.every=3", "validation.samples=5", f"validation.manifest={digits_data / 'train.jsonl'}")
    config = vae_config(tmp_path, *options, "validation.best=psnr", "samples.every=6")
    train(config, VaeTask)
    records = validation(tmp_path)
    assert [(r["step"], r["weights"]) for r in records] == [(s, w) for s in (3, 6) for w in ("ema", "raw")]
    source = open_sources([digits_data / "train.jsonl"], VaeTask(config, CPU).source.transform)
    windows = torch.linspace(0, len(source) - 1, 5).round().long().tolist()
    want = evaluate(load_vae(tmp_path / "vae"), (source.load(w, 0, i).video for i, w in enumerate(windows)))
    last = records[-2]
    assert (last["psnr"], last["ssim"]) == pytest.approx((want["psnr"], want["ssim"]), rel=1e-4)
    ema = {r["step"]: r["psnr"] for r in records if r["weights"] == "ema"}
    assert json.loads((tmp_path / "best.json").read_text())["step"] == max(ema, key=ema.get)
    assert (tmp_path / "samples/step-000006-ema.png").is_file()


def test_scores_are_those_of_clips_made_one_by_one(dit_config, digits_data, tiny_latents, tmp_path):
    manifest = digits_data / "train.jsonl"
    scored = (f"validation.latents={tiny_latents}", f"validation.manifest={manifest}", "validation.clips=5")
    scores = "validation.scores=[flicker,'latentvid.demo.prompt_following:digit']"
    options = (*MEASURED, *scored, scores, "validation.every=6", "validation.best=digit")
    train(dit_config(tmp_path, *options, "data.tokens_per_pack=400"), DitTask)
    record = next(r for r in validation(tmp_path) if r["weights"] == "ema")
    assert record["step"] == 6 and record["scores"].keys() == {"flicker", "digit"}
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["metric"] == "digit" and best["value"] == record["scores"]["digit"]["value"]

    pipeline = load_pipeline(tmp_path / "pipeline", "cpu")
    source = open_sources([manifest], DitTask(dit_config(tmp_path, *options), CPU).held_out().scores.source.transform)
    videos = [i for i in range(len(source)) if not source.is_image[i]]
    windows = [videos[i] for i in torch.linspace(0, len(videos) - 1, 5).round().long()]
    made, real = [], []
    for place, window in enumerate(windows):
        frames, height, width = source.shapes[window]
        size = {"num_frames": frames, "height": height, "width": width}
        clip = pipeline(
            source.caption(window),
            **size,
            seed=1_000_000 + place,
            sampling=Sampling(progress=False),
            output_type="uint8",
        )
        made.append(clip.frames[0].float().diff(dim=0).abs().mean())
        real.append(source.load(window, 0, place).pixels.float().diff(dim=0).abs().mean())
    found = record["scores"]["flicker"]
    assert found["value"] == pytest.approx(float(torch.stack(made).mean()), rel=2e-3)  # rounded to 8 bits
    assert found["floor"] == pytest.approx(float(torch.stack(real).mean()), rel=1e-5)
    assert found["low"] <= found["value"] <= found["high"] and found["count"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("validation.every=2",), "every=2, but there is no held-out data: give its manifest or latents"),
        (("validation.every=2", "validation.latents=[]"), "every=2, but there is no held-out data: give its manifest"),
        (("validation.latents=/no/cache",), "validation: /no/cache holds no finished latent cache"),
        (("validation.best=psnr",), "validation.best is 'psnr': one of loss, x_mse"),
        (("validation.weights=[ema,ema]",), "name ema, raw or both"),
        (("validation.scores=[fvd]",), "need held-out clips with captions: give their manifest"),
        (("validation.scores=[fdv]", "validation.manifest=DIGITS"), "there is no score 'fdv': did you mean fvd"),
        (("validation.scores=[psnr]", "validation.manifest=DIGITS"), "psnr compares a clip with the one it should"),
        (
            ("validation.scores=[fvd]", "validation.manifest=DIGITS"),
            "fvd: there is no I3D.*validation.networks",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_first_step(
    changes, message, dit_config, digits_data, tiny_latents, tmp_path
):
    changes = [change.replace("DIGITS", str(digits_data / "val.jsonl")) for change in changes]
    given = () if "every" in changes[0] else (f"validation.latents={tiny_latents}",)
    with pytest.raises(UserError, match=message):
        train(dit_config(tmp_path, "validation.every=2", *given, *changes), DitTask)
    assert not read_metrics(tmp_path)
