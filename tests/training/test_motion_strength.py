"""Motion strength and noise in given frames: what packs hold, what the model is told, and the pipeline that is left."""

import json
import math
from pathlib import Path

import pytest
import torch
from small_tasks import draws_of, lively

from latentvid.data.motion import motion_strength
from latentvid.errors import UserError
from latentvid.models.conditions import NO_MOTION
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.rng import generator
from latentvid.training.stages.dit.strength import check_motion
from latentvid.training.stages.dit.task import DitTask

CPU = torch.device("cpu")
TOLD = ("model.motion_condition=true", "data.motion_dropout=0")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits_data) -> Path:
    """Some of the digits, every second with a column that says how much moves."""
    rows = []
    for i, line in enumerate((digits_data / "train.jsonl").read_text().splitlines()[:8]):
        row = json.loads(line)
        row |= {"path": str(digits_data / row["path"]), "speed": 2.5 * i if i % 2 else None}
        rows.append(row)
    file = tmp_path_factory.mktemp("motion") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def config(dit_config, manifest):
    def make(run: Path, *more: str):
        return dit_config(run, "data.latents=null", f"data.manifest={manifest}", "data.max_frames=5", *more)

    return make


def told(task: DitTask, count: int) -> dict[int, float]:
    """By global number, what the network is told."""
    pack = task.prepare(task.make_pack(draws_of(task, count)))
    return dict(zip(pack.numbers, pack.conditions.motion.tolist(), strict=True))


def test_what_is_told_is_measured_of_the_window_that_is_read(config, tmp_path):
    task = DitTask(config(tmp_path / "run", *TOLD), CPU)
    found = told(task, 10)
    for number, strength in found.items():
        clip = task.source.load(number % len(task.grids), 0, number)
        want = motion_strength(clip.pixels, task.source.rate(clip.index))
        assert strength == (NO_MOTION if math.isnan(want) else pytest.approx(want, rel=1e-6))
    assert max(found.values()) > 0


def test_a_column_says_it_and_it_is_dropped_by_the_samples_number(config, tmp_path):
    options = ("model.motion_condition=true", "data.motion_column=speed", "data.motion_dropout=0.4")
    task = DitTask(config(tmp_path / "run", *options), CPU)
    for number, strength in told(task, 16).items():
        index = number % len(task.grids)
        row = int(task.source.windows.sample[index])
        dropped = torch.rand((), generator=generator(0, number, "motion-dropout")) < 0.4
        says = row % 2 and not dropped and task.source.shapes[index][0] > 1
        assert strength == (2.5 * row if says else NO_MOTION)


def test_the_strength_reaches_the_model_and_nothing_else_changes(config, tmp_path):
    task = DitTask(config(tmp_path / "run", *TOLD), CPU)
    plain = DitTask(config(tmp_path / "plain"), CPU)
    lively(task.model)
    pack, before = (each.make_pack(draws_of(each, 6)) for each in (task, plain))
    assert torch.equal(pack.noise, before.noise) and torch.equal(pack.timestep, before.timestep)
    assert before.motion is None and plain.prepare(before).conditions is None
    losses = [task.loss(task.model, task.prepare(pack.__class__(**{**vars(pack), "motion": m})), 0)[0]
              for m in (pack.motion, pack.motion + 5)]  # fmt: skip
    assert torch.equal(losses[0] != losses[1], torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.motion_column=speed",), "data.motion_column is for model.motion_condition=true"),
        ((*TOLD, "data.motion_column=pace"), "no manifest has a column `pace`"),
        ((*TOLD, "data.motion_column=caption"), "the column `caption` of .* give a number from 0 up"),
        (("given.first=1", "given.noise=[0.1, 0.3]", "model.condition_channels=mask_and_latents"), "given.noise is of"),
    ],
)
def test_what_cannot_be_is_named(config, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        DitTask(config(tmp_path / "run", *options), CPU)


def test_what_is_measured_is_of_clips_that_a_process_reads_itself(config, tmp_path):
    shared = config(tmp_path / "run", *TOLD, "train.sequence_parallel=2")
    with pytest.raises(UserError, match="set train.sequence_parallel=1, name data.motion_column"):
        check_motion(shared, 1)
    assert check_motion(config(tmp_path / "run", *TOLD, "train.sequence_parallel=2", "data.motion_column=speed"), 1)
    with pytest.raises(UserError, match="the clips of a pair have no motion strength in common: train without any"):
        check_motion(config(tmp_path / "run", *TOLD), 2)


def test_a_cache_holds_no_motion(dit_config, tmp_path):
    with pytest.raises(UserError, match="a cache does not hold motion strengths.* data.motion_dropout=1"):
        DitTask(dit_config(tmp_path / "run", *TOLD), CPU)
    task = DitTask(dit_config(tmp_path / "run", TOLD[0], "data.motion_dropout=1"), CPU)
    assert set(told(task, 4).values()) == {NO_MOTION}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("given.first=1", "given.noise=[0.4, 0.3]"), "give the lower level first"),
        (("given.noise=[0.1, 0.3]",), "noise is of frames that are given, and none are"),
        (("given.first=1", "given.noise=[0.1, 1.0]"), "given.noise.*must be a finite number"),
    ],
)
def test_noise_that_cannot_be_is_named(dit_config, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        dit_config(tmp_path / "run", *options)


def test_given_frames_have_the_noise_that_is_told_and_no_loss(dit_config, tmp_path):
    """Each sample written out."""
    shares = ("given.plain=0", "given.prefix=1")
    task = DitTask(dit_config(tmp_path / "run", *shares, "given.noise=[0.1, 0.4]"), CPU)
    clean = DitTask(dit_config(tmp_path / "clean", *shares), CPU)
    lively(task.model)
    draws = [draw for draw in draws_of(task, 12) if task.grids[draw.index][0] > 1][:4]
    pack, before = task.prepare(task.make_pack(draws)), clean.make_pack(draws)
    assert torch.equal(pack.timestep, before.timestep) and torch.equal(pack.noise, before.noise) and before.seen is None
    of_frame = pack.seen.clone()
    for place, number in enumerate(pack.numbers):
        own = pack.layout.frame_segment == place
        level = 0.1 + 0.3 * torch.rand((), generator=generator(0, number, "given-level"))
        given = own & (pack.timestep == 0)
        assert given.any() and torch.equal(of_frame[given], level.expand(int(given.sum())))
        assert torch.equal(of_frame[own & ~given], pack.timestep[own & ~given])
    level = of_frame[pack.layout.frame][:, None]
    noised = (1 - level) * pack.clean + level * pack.noise
    with torch.no_grad():
        out = task.model(noised, of_frame, pack.text, pack.layout, pack.text_layout, fps=pack.rates)
        losses, _ = task.loss(task.model, pack, 0)
    error, counts = (out - (pack.noise - pack.clean)).square().mean(1), pack.timestep[pack.layout.frame] > 0
    for place, loss in enumerate(losses):
        mine = counts & (pack.layout.segment == place)
        torch.testing.assert_close(loss, error[mine].mean(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, dit_config):
    """Of a model that was trained with both, its weights random."""
    folder = tmp_path_factory.mktemp("told")
    options = ("model.motion_condition=true", "data.motion_dropout=1", "given.first=1", "given.noise=[0.1, 0.4]")
    task = DitTask(dit_config(folder / "run", *options), CPU)
    lively(task.model)
    task.export(task.model, folder / "pipeline")
    return load_pipeline(folder / "pipeline", device="cpu")


def request(**more) -> Request:
    torch.manual_seed(1)
    known = torch.tensor([True, False])[:, None, None]
    return Request(prompt="a digit", grid=(2, 8, 8), given=torch.randn(4, 2, 8, 8), known=known, **more)


QUICK = {"steps": 2, "progress": False, "precision": torch.float32}


def test_sampling_tells_what_it_adds_and_gives_the_picture_back(pipeline, monkeypatch):
    seen, forward = [], pipeline.transformer.forward

    def spy(tokens, timestep, *args, conditions=None, **kwargs):
        seen.append((tokens.clone(), timestep.clone(), conditions.motion.clone()))
        return forward(tokens, timestep, *args, conditions=conditions, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", spy)
    assert tuple(pipeline.config.given_noise) == (0.1, 0.4) and pipeline.transformer.config.motion_condition
    both = [request(), request(motion_strength=7.0)]
    latents = pipeline.sample(both, Sampling(image_noise=0.25, motion_strength=2.0, **QUICK))
    for latent in latents:
        torch.testing.assert_close(latent[:, 0], both[0].given[:, 0])
    first = seen[0]
    assert first[2].tolist() == [2.0, 7.0] * 2 and first[1].tolist() == [0.25, 1.0] * 4  # and for guidance once more
    clean = latents[0][:, 0].unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4).reshape(16, 16)
    added = (first[0][:16] - 0.75 * clean) / 0.25
    assert abs(added.std() - 1) < 0.2 and abs(added.mean()) < 0.3
    assert all(torch.equal(tokens[:16], first[0][:16]) for tokens, *_ in seen)


def test_more_noise_and_more_motion_make_other_clips_and_the_least_is_the_default(pipeline):
    def made(**more):
        return pipeline.sample([request()], Sampling(**QUICK, **more))[0]

    usual = made()
    assert torch.equal(usual, made(image_noise=0.1)) and not torch.allclose(usual, made(image_noise=0.4), atol=1e-3)
    assert not torch.allclose(made(motion_strength=1.0), made(motion_strength=30.0), atol=1e-3)


def test_what_a_model_does_not_know_is_refused(pipeline, given_pipeline):
    with pytest.raises(UserError, match="image noise 0.6: the model was trained with 0.1 to 0.4"):
        pipeline.sample([request()], Sampling(image_noise=0.6))
    with pytest.raises(UserError, match="is of condition 'levels', not of 'replacement'"):
        pipeline.sample([request()], Sampling(image_noise=0.2, condition="replacement"))
    plain = load_pipeline(given_pipeline, device="cpu")
    with pytest.raises(UserError, match="trained without noise in given frames"):
        plain.sample([request()], Sampling(image_noise=0.2))
    with pytest.raises(UserError, match="trained without model.motion_condition: leave --motion-strength out"):
        plain.sample([request()], Sampling(motion_strength=2.0))
