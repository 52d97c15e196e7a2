"""Frame rates that are asked for: what the model is told of them, in every task, and what files are written at."""

import json
from pathlib import Path

import pytest
import torch

from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.transformer import VideoDiT
from latentvid.pipelines import edits, tasks
from latentvid.pipelines.clip_windows import Window
from latentvid.pipelines.hierarchy import nuwa_xl
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.limit import trained_rates
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.prompts import read_prompts
from latentvid.pipelines.rollout import rollout
from latentvid.pipelines.sampling import Sampling

RED, BLUE = "a red 7 moves up", "a blue three"
FAST = Sampling(steps=1, progress=False, guidance=Guidance(scale=2.0))
TRAINED = [{"frames": 5, "height": 32, "width": 32, "fps": fps, "count": 1} for fps in (12.0, 48.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_pipeline) -> Path:
    """A pipeline whose model knows of rates, with random weights; it was trained on 12 to 48 frames a second."""
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    torch.manual_seed(0)
    config = {k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}
    config |= {"fps_condition": True, "rope_fps": 24.0, "temporal_stride": 4, "attention": "causal"}
    transformer = VideoDiT(**config)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipeline.register_modules(transformer=transformer)
    pipeline.register_to_config(fps=24.0, trained=TRAINED, given=("plain", "first", "prefix", "ends"))
    folder = tmp_path_factory.mktemp("rates")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu")


@pytest.fixture
def told(monkeypatch) -> list[tuple[float, ...]]:
    """The rates of each pass through the network."""
    found, forward = [], VideoDiT.forward

    def spy(self, *inputs, fps=None, **more):
        found.append(tuple(round(rate, 4) for rate in fps.tolist()))
        return forward(self, *inputs, fps=fps, **more)

    monkeypatch.setattr(VideoDiT, "forward", spy)
    return found


def clip(frames: int, seed: int = 0) -> torch.Tensor:
    rand = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 16, 24, 3), dtype=torch.uint8, generator=rand)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one grey level."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def test_both_passes_of_guidance_are_told_the_rate_of_each_clip(pipeline, told):
    output = pipeline([RED, BLUE], fps=[12.0, 30], sampling=FAST, output_type="uint8")
    assert told == [(12, 30, 12, 30)] and output.fps == [12, 30]
    assert pipeline(RED, fps=12, sampling=FAST).fps == 12 and told[-1] == (12, 12)
    assert pipeline(RED, sampling=FAST).fps == 24 and told[-1] == (24, 24)  # the model's
    pipeline([RED, BLUE], num_frames=[1, 5], fps=12, sampling=FAST)
    assert told[-1] == (0, 12, 0, 12)  # a picture has none


def test_a_clip_is_that_of_its_rate_whatever_it_is_packed_with(pipeline):
    together = pipeline([RED, RED, RED], fps=[12, 48, 24], seed=5, sampling=FAST, output_type="uint8").frames
    alone = [
        pipeline(RED, fps=fps, seed=5 + i, sampling=FAST, output_type="uint8").frames[0]
        for i, fps in enumerate((12, 48, 24))
    ]
    assert all(map(close, together, alone))
    assert not close(alone[0], pipeline(RED, fps=48, seed=5, sampling=FAST, output_type="uint8").frames[0])
    pictures = [pipeline(RED, num_frames=1, fps=fps, sampling=FAST, output_type="uint8").frames[0] for fps in (12, 48)]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("fps", [0, -1.0, 1e9, float("nan")])
def test_what_is_no_rate_is_refused(pipeline, fps):
    with pytest.raises(UserError, match="fps=.* must be a finite number from 0.001 to 1,000"):
        pipeline(RED, fps=fps, sampling=FAST)


def window_of() -> Window:
    return Window(1, 4, clip(5), clip(5)[..., 0] > 100, clip(1))


TASKS = {
    "i2v": lambda p, **o: tasks.image_to_video(p, [clip(1)[0]], [RED], 5, **o),
    "inpaint": lambda p, **o: edits.inpaint(p, [clip(5)], [clip(5)[0, :, :, 0]], [RED], **o),
    "inpaint window": lambda p, **o: edits.inpaint_window(p, RED, window_of(), **o),
    "inversion": lambda p, **o: edits.edit(p, [clip(5)], [RED], [BLUE], "inversion", **o),
    "sdedit": lambda p, **o: edits.edit_window(p, "", BLUE, "sdedit", None, window_of(), **o),
    "rollout": lambda p, **o: list(rollout(p, [RED], 9, height=16, width=24, **o)),
    "encoded rollout": lambda p, **o: list(rollout(p, [RED], 9, height=16, width=24, cached=False, **o)),
    "extend": lambda p, **o: list(rollout(p, [RED], 4, clips=[clip(5)], window=9, context=1, **o)),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_tells_the_rate(task, pipeline, told):
    TASKS[task](pipeline, fps=12, sampling=FAST)
    assert {rate for rates in told for rate in rates} == {12}
    told.clear()
    TASKS[task](pipeline, sampling=FAST)
    assert {rate for rates in told for rate in rates} == {24}


def test_between_two_pictures_the_model_is_told_of_the_frames_that_it_makes(pipeline, told):
    """Four frames in the time of three wanted ones have 5 / 4 of their rate."""
    words = {"fps": 24, "sampling": FAST}
    tasks.interpolate(pipeline, [clip(1)[0]], [clip(1, 1)[0]], [RED], 3, **words)
    tasks.interpolate(pipeline, [clip(1)[0]], [clip(1, 1)[0]], [RED], 4, **words)
    tasks.raise_rate(pipeline, clip(3), 4, **words)
    assert [set(rates) for rates in told] == [{30}, {24}, {30}]


def test_each_level_of_keyframes_is_told_its_own_rate_or_the_lowest_of_training(pipeline, told):
    """52 frames: 3 segments of 25 frames' time in a clip of 5, then infilled by 5 and by 5."""
    list(nuwa_xl(pipeline, RED, 52, height=16, width=24, fps=400.0, sampling=FAST))
    assert [round(rates[0], 2) for rates in told] == [21.33, 80.0, 400.0]  # 400 x 4 / 75, 400 / 5, 400
    told.clear()
    list(nuwa_xl(pipeline, RED, 52, height=16, width=24, fps=24.0, sampling=FAST))
    assert [rates[0] for rates in told] == [12, 12, 24]
    told.clear()
    list(nuwa_xl(pipeline, RED, 4, height=16, width=24, fps=24.0, sampling=FAST))
    assert [rates[0] for rates in told] == [24]


def test_rows_of_a_file_have_rates_of_their_own(pipeline, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,fps,frames,name\na,,,\nb,12,,\nc,29.97,9,\nd,48,,x.gif\n")
    rows = read_prompts(tmp_path / "p.csv", pipeline, fps=30)
    assert [(row.fps, row.frames) for row in rows] == [(30, 5), (12, 5), (29.97, 9), (48, 5)]
    rows = read_prompts(tmp_path / "p.csv", pipeline, seconds=0.5)  # each at its rate, in lengths that the model makes
    assert [(row.fps, row.frames) for row in rows] == [(24, 13), (12, 5), (29.97, 9), (48, 25)]
    for text, message in (("fast", "line 2: fps 'fast': give a number"), ("0", "line 2: fps=0: must be")):
        (tmp_path / "p.csv").write_text(f"prompt,fps\na,{text}\n")
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / "p.csv", pipeline)
    (tmp_path / "p.csv").write_text("prompt,fps,name\na,60,x.gif\n")
    with pytest.raises(UserError, match="line 2: fps 60: a gif plays at most 50"):
        read_prompts(tmp_path / "p.csv", pipeline)


def test_what_was_trained_tells_its_rates(pipeline, tiny_pipeline):
    assert trained_rates(pipeline) == (12, 48)
    assert trained_rates(load_pipeline(tiny_pipeline, "cpu")) is None


def test_scripts_make_and_write_at_one_rate(run, folder, tmp_path, told, tiny_pipeline):
    common = ("--steps", 1, "--device", "cpu", "--guidance", 1)
    out = tmp_path / "out.mp4"
    status, _, said = run("inference/t2v.py", "--model", folder, "--prompt", RED, "--output", out, "--fps", 12, *common)
    assert status == 0 and "note" not in said and told[-1] == (12,) and probe(out).fps == 12
    status, _, said = run("inference/t2v.py", "--model", folder, "--prompt", RED, "--output", out, "--fps", 60, *common)
    assert status == 0 and "note: 60 frames a second: the model was trained on 12 to 48" in said
    words = ("--model", tiny_pipeline, "--prompt", RED, "--output", out, "--fps", 60, *common)
    status, _, said = run("inference/t2v.py", *words)
    assert status == 0 and "note: --fps 60 plays the clip faster or slower, no more" in said and probe(out).fps == 60
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": RED, "fps": fps}) + "\n" for fps in (12, 24)))
    words = ("--model", folder, "--prompts", prompts, "--output", tmp_path / "many", *common)
    assert run("inference/t2v.py", *words)[0] == 0
    assert [probe(tmp_path / "many" / f"0000{i}.mp4").fps for i in (0, 1)] == [12, 24]
    assert sorted(told[-1]) == [12, 24]


def test_scripts_tell_the_rate_of_the_footage(run, folder, tmp_path, told):
    """And the files that they write have it, unless another is asked for."""
    write_video(tmp_path / "clip.mp4", clip(5), 30)
    write_video(tmp_path / "a.png", clip(1), 30)
    common = ("--model", folder, "--steps", 1, "--device", "cpu", "--guidance", 1, "--output", tmp_path / "out.mp4")
    clip_, prompt = ("--clip", tmp_path / "clip.mp4"), ("--prompt", RED)
    mask = tmp_path / "mask.png"
    white = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    white[:, :, 12:] = 255
    write_video(mask, white, 30)
    cases = [
        (("edit", *clip_, *prompt, "--method", "sdedit"), 30),
        (("edit", *clip_, *prompt, "--method", "sdedit", "--fps", 15), 15),
        (("inpaint", *clip_, *prompt, "--mask", mask), 30),
        (("extend", *clip_, *prompt, "--frames", 4, "--window", 9, "--context", 1), 30),
        (("long", *prompt, "--frames", 6, "--fps", 15), 15),
        (("i2v", "--image", tmp_path / "a.png", *prompt), 24),
        (("interpolate", "--first", tmp_path / "a.png", "--last", tmp_path / "a.png", "--between", 4), 24),
    ]
    for (script, *words), fps in cases:
        told.clear()
        status, _, said = run(f"inference/{script}.py", *words, *common)
        assert status == 0, said
        assert {rate for rates in told for rate in rates} == {fps} and probe(tmp_path / "out.mp4").fps == fps, script
