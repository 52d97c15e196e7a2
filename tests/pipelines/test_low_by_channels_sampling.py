"""Sampling by a model that sees its clips made smaller by further channels: what it sees, cascades, refusals."""

import json
import re
import shutil

import pytest
import torch
from scripting import refused

from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.conditions import Conditions, low_channels
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, patchify
from latentvid.pipelines.cascade import Stage
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.rollout import _can_cache
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.pipelines.upscale import Plan, upscaled
from latentvid.rng import derived_seed, generator

GRID = (2, 8, 8)
RED, BLUE = "a red 7 moves up", "a blue three bounces down"
ROLES = {
    "style": {"place": "beside"},
    "low": {"place": "channels", "degrade": [{"kind": "resize", "amount": [2, 2]}], "noise": [0.1, 0.5]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, given_pipeline):
    """`given_pipeline` with a transformer of random weights that sees clips made smaller."""
    folder = shutil.copytree(given_pipeline, tmp_path_factory.mktemp("sees") / "pipeline")
    torch.manual_seed(0)
    old = VideoDiT.from_pretrained(folder / "transformer").config
    arguments = {key: value for key, value in old.items() if not key.startswith("_")}
    model = VideoDiT(**arguments | {"condition_channels": "latents"})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"references": ROLES, "steps": 1}))
    return folder


@pytest.fixture
def pipeline(folder) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu")


def latent(seed: int, *grid: int) -> torch.Tensor:
    return torch.randn(4, *grid, generator=torch.Generator().manual_seed(seed))


def requests() -> list[Request]:
    """One that sees a clip and is shown a style, one that sees nothing, and one whose first frame is given."""
    first = torch.zeros(2, 1, 1, dtype=torch.bool)
    first[0] = True
    return [
        Request(prompt=RED, grid=GRID, seed=1, references={"low": [latent(1, 2, 4, 4)], "style": [latent(2, 1, 4, 4)]}),
        Request(prompt=BLUE, grid=GRID, seed=2),
        Request(
            **{"prompt": BLUE, "grid": GRID, "seed": 3, "given": latent(5, *GRID), "known": first},
            references={"low": [latent(3, 2, 4, 6)]},
        ),
    ]


@torch.no_grad()
def test_both_branches_of_guidance_see_the_clip_with_its_noise(pipeline):
    asked = requests()
    sampling = Sampling(guidance=Guidance(scale=2.5), progress=False, reference_noise=0.3)
    batch, predict = pipeline._prepare(asked, sampling)
    t = batch.levels[0]
    assert not t[5:6].any()  # the given frame, by its level
    got = predict(batch.z, t).split(batch.layout.lengths)
    frames = [shape.frames for shape in batch.layout.shapes]
    each = zip(asked, batch.z.split(batch.layout.lengths), t.split(frames), batch.layout.shapes, got, strict=True)
    for request, z, levels, shape, found in each:
        seen = torch.zeros(5, *GRID)
        for low in request.references.get("low", ()):
            fresh = torch.randn(low.shape, generator=generator(request.seed, 0, "channels-noise"))
            seen = low_channels(0.7 * low + 0.3 * fresh, torch.tensor(0.3), GRID)
        channels = torch.cat([patchify([seen], 2)[0], torch.zeros(len(z) - 32, 20)])
        parts = []
        for prompt in (request.prompt, ""):
            text = pipeline.reader.encode([prompt])
            layouts = Packed.of([shape.grid], [shape.references]), Packed.of_lengths(text.lengths)
            parts.append(pipeline.transformer(z, levels, text.states, *layouts, conditions=Conditions(channels)))
        want = parts[1] + 2.5 * (parts[0] - parts[1])
        made = levels[:2].repeat_interleave(16) > 0
        torch.testing.assert_close(found[:32][made], want[:32][made], rtol=1e-4, atol=1e-4)


def test_alone_equals_packed_and_what_is_seen_and_its_level_change_what_is_made(pipeline):
    sampling = Sampling(steps=2, solver="ddpm", guidance=Guidance(scale=2.0), progress=False)
    together = pipeline.sample(requests(), sampling)
    for request, made in zip(requests(), together, strict=True):
        torch.testing.assert_close(made, pipeline.sample([request], sampling)[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(together[2][:, 0], latent(5, *GRID)[:, 0])
    plain = Request(prompt=RED, grid=GRID, seed=1)
    each = [
        pipeline.sample([Request(prompt=RED, grid=GRID, seed=1, references=shown)], Sampling(progress=False, **more))[0]
        for shown, more in (
            ({}, {}),
            ({"low": [latent(1, 2, 4, 4)]}, {}),
            ({"low": [latent(1, 2, 4, 4)]}, {"reference_noise": 0.5}),
        )
    ]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(each, each[1:], strict=False))
    assert torch.equal(each[0], pipeline.sample([plain], Sampling(progress=False))[0])


@torch.no_grad()
def test_a_stage_of_a_cascade_is_one_request_by_hand(pipeline):
    stage = Stage.of(pipeline, "--model")
    assert (stage.by, stage.times, stage.model.name) == (2, 1, "low")
    small = torch.randint(0, 256, (5, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    quick = Sampling(steps=1, progress=False)
    (found,) = upscaled(stage.model, iter([small]), Plan.of(stage.model, 5, 16, 16), RED, seed=3, sampling=quick)
    fields = [torch.randn(4, 8, 8, generator=generator(3, i, "upscale-noise")) for i in range(2)]
    request = Request(
        prompt=RED,
        grid=GRID,
        seed=derived_seed(3, 0, "upscale"),
        fps=pipeline.config.fps,
        references={"low": pipeline.encode([small])},
        start=torch.stack(fields, 1),
    )
    assert torch.equal(found, pipeline.decode(pipeline.sample([request], quick))[0])


def test_the_programs(run, folder, tiny_pipeline, tmp_path):
    """Behind a base model, and with the clip named as a reference."""
    clip = torch.randint(0, 256, (5, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    write_video(tmp_path / "small.mp4", clip, 8.0)
    words = ("--prompt", RED, "--steps", 1, "--reference-noise", 0.2)
    sizes = ("--frames", 5, "--height", 16, "--width", 16)
    for name, model, more in (
        ("then", tiny_pipeline, (*sizes, "--then", folder)),
        ("named", folder, ("--reference", f"low={tmp_path / 'small.mp4'}")),
    ):
        status, _, errors = run(
            "inference/t2v.py", *words, "--model", model, *more, "--output", tmp_path / f"{name}.mp4"
        )
        assert status == 0, errors
        info = probe(tmp_path / f"{name}.mp4")
        assert (info.frames, info.height, info.width) == (5, 32, 32)
    write_video(tmp_path / "one.png", clip[:1], 8.0)
    for file, level, message in (
        ("small.mp4", 0.7, "reference noise 0.7: the model was trained with 0.1 to 0.5 in low"),
        ("one.png", 0.2, "low=.*one.png has 1 frame, the clip 5: .* a frame for each"),
    ):
        more = ("--reference", f"low={tmp_path / file}", "--reference-noise", level, "--output", tmp_path / "no.mp4")
        said = refused(run("inference/t2v.py", "--model", folder, "--prompt", RED, *more))
        assert re.search(message, said) and not (tmp_path / "no.mp4").exists()


def test_what_the_model_does_not_take_is_said(pipeline, tiny_pipeline):
    sees, quick = {"low": [latent(1, 2, 4, 4)]}, Sampling(steps=1, progress=False)
    request = Request(prompt=RED, grid=GRID, references=sees)
    other = load_pipeline(tiny_pipeline, "cpu")
    other.register_to_config(references=ROLES)
    with pytest.raises(UserError, match="reference low is shown by channels, which this transformer does not have"):
        other.sample([request], quick)
    with pytest.raises(UserError, match="reference low: 2 clips for one that is made: give one"):
        pipeline.sample([Request(prompt=RED, grid=GRID, references={"low": sees["low"] * 2})], quick)
    with pytest.raises(UserError, match="channels: those of this model are made of a reference"):
        pipeline.sample([Request(prompt=RED, grid=GRID, channels=latent(1, *GRID))], quick)
    with pytest.raises(UserError, match="'channels' is of a model .*condition_channels=mask_and_latents"):
        pipeline.sample([request], Sampling(condition="channels"))
    with pytest.raises(UserError, match="a rollout with a cache is of models that are told what is known by noise lev"):
        pipeline.sample([Request(prompt=RED, grid=GRID)], quick, KeyValueCache())
    causal = VideoDiT(latent_channels=4, width=32, depth=2, heads=2, text_width=32, attention="causal")
    pipeline.transformer = causal
    assert _can_cache(pipeline, quick)
    pipeline.transformer = VideoDiT(**dict(causal.config) | {"condition_channels": "latents"})
    assert not _can_cache(pipeline, quick)  # each window's beginning is encoded anew
    assert pipeline.sample([request], quick)[0].isfinite().all()  # no tokens, so any attention
