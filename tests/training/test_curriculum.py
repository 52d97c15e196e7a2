"""`stages:` of one configuration: trained one after another as one run, whatever moment it is stopped at."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from comparing import assert_measured_alike, assert_same_run, difference, draws, lines, same, state
from launching import ROOT, launch

from latentvid.config.curriculum import curriculum
from latentvid.config.parsing import load_config, save_config
from latentvid.config.schema import DitConfig
from latentvid.errors import UserError
from latentvid.files import read_json
from latentvid.pipelines.loading import load_pipeline
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.export import export_run
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.optim import lr_factor
from latentvid.training.run import TrainingRun
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ENDS = (4, 9, 14)
SHARDED = ("fsdp2", "zero1", "zero2", "zero3")
THREE = """stages=[
  {name: images, data: {max_frames: 1, max_area: 256}, train: {steps: 4}, given: {first: 0}},
  {name: small, data: {max_area: 256}, train: {steps: 5}, optim: {warmup: 0, schedule: constant}},
  {name: large, data: {tokens_per_pack: 320, packs_per_step: 4}, scheduler: {shift: 3.0}, optim: {lr: 1.0e-3},
   train: {steps: 5, ema: 0.8}}]"""


@pytest.fixture(scope="module")
def three(dit_config, digits_data):
    """`three(run_dir, "section.key=value", ...)`: images, 17 frames small, 17 frames larger; from clips."""
    base = (
        "data.latents=null",
        f"data.manifest={digits_data / 'train.jsonl'}",
        "given={plain: 1, first: 1}",
        "validation.every=3",
        f"validation.manifest={digits_data / 'val.jsonl'}",
        "validation.samples=3",
        "validation.bins=2",
        "log.draws=true",
        THREE,
    )

    def make(run: Path, *options: str) -> DitConfig:
        return dit_config(run, *base, *options)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, three) -> Path:
    """The run that is never stopped."""
    forget()
    run = tmp_path_factory.mktemp("whole") / "run"
    train(three(run), DitTask)
    return run


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Stop(Exception):
    """What interrupts a run in these tests."""


def stopping(at: int, tasks: int | None = None) -> type:
    """The task, whose loss raises at a pack of the launch; or that cannot be made a second, third ... time."""
    made = {"packs": 0, "tasks": 0}

    class Stopping(DitTask):
        def __init__(self, *arguments, **options):
            made["tasks"] += 1
            if made["tasks"] == tasks:
                raise Stop
            super().__init__(*arguments, **options)

        def loss(self, model, pack, step):
            made["packs"] += 1
            if made["packs"] == at:
                raise Stop
            return super().loss(model, pack, step)

    return Stopping


def assert_same(run: Path, whole: Path) -> None:
    """Weights, average, optimiser, log, draws and measurements to the last bit, at the end of every stage."""
    for end in ENDS:
        assert_same_run(run, whole, end)
    assert draws(run) == draws(whole)
    timeless = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(r, "validation.jsonl")]
        for r in (run, whole)
    ]
    assert timeless[0] == timeless[1]
    assert read_json(run / "best.json") == read_json(whole / "best.json")


def test_a_curriculum_is_one_run(whole, three):
    records, stages = read_metrics(whole), curriculum(three(whole))
    assert [r["step"] for r in records] == list(range(1, 15))
    assert [r["stage"] for r in records] == [1] * 4 + [2] * 5 + [3] * 5
    # each stage's learning rate is its own schedule over its own steps
    rates = [s.config.optim.lr * lr_factor(n, s.steps, s.config.optim) for s in stages for n in range(s.steps)]
    assert [r["lr"] for r in records] == pytest.approx(rates)
    assert rates[4] == rates[8] == 3e-3 and rates[9] == 5e-4  # the second without warm-up, the third with one
    # each has its own sizes, packs and epochs, and no global sample number comes twice
    numbers = [number for step in draws(whole) for number, _ in step]
    assert len(set(numbers)) == len(numbers)
    of_stage = [[n for step in draws(whole)[s.begin : s.end] for n, _ in step] for s in stages]
    assert max(of_stage[0]) < min(of_stage[1]) and max(of_stage[1]) < min(of_stage[2])
    assert records[3]["epoch"] > records[4]["epoch"] and records[9]["epoch"] < records[8]["epoch"]
    # what was measured goes on in one file; the best is of the last stage
    measured = read_metrics(whole, "validation.jsonl")
    steps = [3, 4, 6, 9, 12, 14]
    assert [(m["step"], m["stage"]) for m in measured[::2]] == list(zip(steps, [1, 1, 2, 2, 3, 3], strict=True))
    assert read_json(whole / "best.json")["step"] in (12, 14)
    about = read_json(whole / "run.json")
    assert [(s["name"], s["begin"]) for s in about["stages"]] == [("images", 0), ("small", 4), ("large", 9)]
    assert {kind["frames"] for kind in about["stages"][0]["trained"]} == {1} and len(about["starts"]) == 1
    assert load_config(DitConfig, whole / "config.yaml") == three(whole)


@pytest.mark.slow
def test_weights_average_and_moments_go_on(whole, three, tmp_path):
    """The second stage by itself, from the first one's checkpoint: an average with its updates, moments, weights."""
    run, short = tmp_path / "run", THREE[: THREE.index("  {name: large")].rstrip().rstrip(",") + "]"
    train(three(run, short), DitTask)
    for name in ("model", "ema", "optimizer"):
        assert same(state(run, 9, name), state(whole, 9, name))
    states = [read_json(whole / f"checkpoints/step-{end:08d}/state.json") for end in ENDS]
    assert [s["ema_updates"] for s in states] == list(ENDS)
    moments = [state(whole, end, "optimizer") for end in ENDS]
    steps = [{float(v) for k, v in found.items() if k.endswith(".step")} for found in moments]
    assert all(found in ({float(end)}, set()) for found, end in zip(steps, ENDS, strict=True))
    # more stages may be added to a run that is over
    forget()
    train(three(run), DitTask)
    assert_same(run, whole)


@pytest.mark.parametrize("stops", [[(7, None), (3, None)], pytest.param([(0, 2), (17, None)], marks=pytest.mark.slow)])
def test_stopped_inside_and_between_stages_equals_never_stopped(stops, whole, three, tmp_path):
    """After packs of a launch, or between two stages: before the second one's data are open."""
    run = tmp_path / "run"
    config = three(run, "checkpoint.every=1", "checkpoint.keep_last=2")
    for at, tasks in stops:
        forget()
        with pytest.raises(Stop):
            train(config, stopping(at, tasks))
    forget()
    train(config, DitTask)
    assert_same(run, whole)
    # the last checkpoint of every stage stays
    assert CheckpointStore(run / "checkpoints").steps() == sorted({4, 9, 13, 14, read_json(run / "best.json")["step"]})


@pytest.mark.slow  # inside a stage: test_signals.py; between stages: the test before
@pytest.mark.parametrize("step", [4, 6])
def test_asked_to_stop_it_saves_and_goes_on_in_the_right_stage(step, whole, three, tmp_path, monkeypatch):
    """At the end of a stage too: what is due there is then measured by the next launch, once."""
    run, after = tmp_path / "run", TrainingRun._after_step
    monkeypatch.setattr(TrainingRun, "_after_step", lambda self, stop: after(self, stop or self.step == step))
    with pytest.raises(Preempted):
        train(three(run), DitTask)
    assert CheckpointStore(run / "checkpoints").steps()[-1] == step
    monkeypatch.setattr(TrainingRun, "_after_step", after)
    forget()
    train(three(run), DitTask)
    assert_same(run, whole)
    starts = read_json(run / "run.json")["starts"]
    assert [start["step"] for start in starts] == [0, step]


def test_data_that_stay_the_same_go_on_where_they_were(dit_config, tmp_path):
    """A stage that only cools down: the draws are those of one long run, and so is everything at the same rate."""
    one, two = tmp_path / "one", tmp_path / "two"
    same_rate = ("optim.schedule=constant", "optim.warmup=0", "log.draws=true")
    train(dit_config(one, *same_rate, "train.steps=6"), DitTask)
    forget()
    train(
        dit_config(two, *same_rate, "stages=[{train: {steps: 2}}, {train: {steps: 4}, optim: {lr: 3.0e-3}}]"), DitTask
    )
    assert draws(one) == draws(two)
    assert [{k: v for k, v in line.items() if k != "stage"} for line in lines(two)] == lines(one)
    for name in ("model", "ema", "optimizer"):
        assert same(state(one, 6, name), state(two, 6, name))


def test_stages_of_other_data_draw_in_other_orders(dit_config, digits_data, tmp_path):
    """The same clips at another size: not the last stage's order once more."""
    options = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "log.draws=true", "train.steps=3")
    train(dit_config(tmp_path / "run", *options, "stages=[{}, {data: {flip: true}}, {data: {weights: [1]}}]"), DitTask)
    made = draws(tmp_path / "run")
    orders = [[index for step in made[i : i + 3] for _, index in step] for i in (0, 3, 6)]
    assert orders[0] != orders[2] and {tuple(order) for order in orders}


def test_an_export_is_of_the_stage_that_made_its_step(whole, tmp_path):
    for step, shift, frames in ((4, 1.0, 1), (9, 1.0, 17), (14, 3.0, 17)):
        export_run(whole, tmp_path / f"out-{step}", STAGES, step=step)
        pipeline = load_pipeline(tmp_path / f"out-{step}", "cpu")
        assert (pipeline.scheduler.config.shift, pipeline.config.frames) == (shift, frames)
        assert same(pipeline.transformer.state_dict(), state(whole, step, "ema"))
    last = load_pipeline(whole / "pipeline", "cpu")
    assert last.scheduler.config.shift == 3.0 and last.config.trained == pipeline.config.trained


def test_what_was_trained_stays_and_what_is_to_come_may_change(three, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        train(three(run, "checkpoint.every=1"), stopping(13))  # in the second stage: steps 5, 6 are done
    changes = {
        THREE.replace("steps: 4", "steps: 6"): "in images: train.steps was 4, is 6: the stage is over",
        THREE.replace("steps: 5}, optim: {warmup", "steps: 1}, optim: {warmup"): "2 steps of the stage are trained",
        THREE.replace("max_area: 256}, train: {steps: 5}", "max_area: 512}, train: {steps: 5}"): "in small",
        THREE[: THREE.index(",\n  {name: small")] + "]": "has trained 2 stages, and stages names 1",
    }
    for text, said in changes.items():
        forget()
        with pytest.raises(UserError) as error:
            train(three(run, text), DitTask)
        assert said in str(error.value)
    forget()
    train(three(run, THREE.replace("packs_per_step: 4", "packs_per_step: 2").replace("ema: 0.8", "ema: 0.7")), DitTask)
    assert [r["stage"] for r in read_metrics(run)] == [1] * 4 + [2] * 5 + [3] * 5


def test_the_autoencoder_learns_in_stages(vae_config, tmp_path):
    """Pictures, then clips; a critic that learns from the second stage's second step."""
    critic = "{adversarial: 0.1, adversarial_start: %d, critic: {widths: [8, 8], time_strides: [1, 2]}}"
    stages = "stages=[{data: {max_frames: 1}, train: {steps: 2}}, {train: {steps: 3}, loss: {adversarial_start: 1}}]"
    options = (f"loss={critic % 2}", stages, "optim.name=adamw")
    train(vae_config(tmp_path / "run", *options), STAGES["vae"].task)
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5] and (tmp_path / "run/vae").is_dir()
    assert [r["critic_grad_norm"] > 0 for r in records] == [False, False, False, True, True]


@pytest.mark.slow
def test_a_dry_run_plans_each_stage_and_names_the_largest(three, tmp_path, capsys):
    train(three(tmp_path / "run", "run.dry_run=true", "--stages.large.data.tokens_per_pack=512"), DitTask)
    said = capsys.readouterr().out
    parts = said.split("=== stage ")
    assert [part.split()[0] for part in parts[1:]] == ["images", "small", "large"] and not (tmp_path / "run").exists()
    assert "of at most 256 tokens" in parts[2] and "of at most 512 tokens" in parts[3]
    assert "17 x" not in parts[1] and "17 x 16 x 16" in parts[2] and "17 x 24 x 32" in parts[3]
    assert "all 3 stages, 14 steps" in said and "the largest is large: a step of it holds" in said
    forget()
    with pytest.raises(UserError, match=r"stages: in small: data.packs_per_step|stages: in small: .*tokens_per_pack"):
        train(three(tmp_path / "run", "run.dry_run=true", "--stages.small.data.tokens_per_pack=8"), DitTask)


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) for r in ("ddp", *SHARDED)])
def test_two_processes_train_the_stages_as_one_does(recipe, whole, three, tmp_path):
    """In one launch, stage after stage; the images' checkpoint goes on in either."""
    run = tmp_path / "run"
    save_config(three(run), tmp_path / "config.yaml")
    launch(recipe, 2, [ROOT / "train/train_dit.py", tmp_path / "config.yaml"])
    difference(run, whole).check()
    assert_measured_alike(run, whole)
