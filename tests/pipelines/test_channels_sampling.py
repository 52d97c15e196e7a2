"""Sampling by a model that is told what is known by channels: what it sees, what stays, and the programs."""

import shutil

import pytest
import torch

from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.conditions import Conditions
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, patchify
from latentvid.pipelines.command import note_condition
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.rollout import rollout
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.pipelines.tasks import interpolate
from latentvid.references import Role

GRID = (2, 8, 8)
RED, BLUE = "a red 7 moves up", "a blue three bounces down"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, given_pipeline):
    """`given_pipeline` with a transformer of random weights that is told by channels."""
    folder = shutil.copytree(given_pipeline, tmp_path_factory.mktemp("told") / "pipeline")
    torch.manual_seed(0)
    old = VideoDiT.from_pretrained(folder / "transformer").config
    arguments = {key: value for key, value in old.items() if not key.startswith("_")}
    model = VideoDiT(**arguments | {"condition_channels": "mask_and_latents"})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def pipeline(folder) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu")


def latent(seed: int) -> torch.Tensor:
    return torch.randn(4, *GRID, generator=torch.Generator().manual_seed(seed))


def requests() -> list[Request]:
    """The first frame, nothing, and all but a rectangle that cuts tokens."""
    first, around = torch.zeros(2, 1, 1, dtype=torch.bool), torch.ones(GRID, dtype=torch.bool)
    first[0] = True
    around[:, 1:5, 2:7] = False
    return [
        Request(prompt=RED, grid=GRID, seed=1, given=latent(1), known=first),
        Request(prompt=BLUE, grid=GRID, seed=2),
        Request(prompt=BLUE, grid=GRID, seed=3, given=latent(2), known=around),
    ]


@torch.no_grad()
def test_both_branches_of_guidance_are_told_mask_and_latents(pipeline):
    asked = requests()
    batch, predict = pipeline._prepare(asked, Sampling(guidance=Guidance(scale=2.5), progress=False))
    t = batch.levels[1]
    assert bool((t > 0).all())  # also of the known frame
    got = batch.layout.own(predict(batch.z, t))
    for i, request in enumerate(asked):
        known = torch.zeros(GRID, dtype=torch.bool) if request.known is None else request.known.expand(GRID)
        values = torch.zeros(4, *GRID) if request.given is None else request.given
        channels, _ = patchify([torch.cat([known[None].float(), torch.where(known, values, torch.zeros(()))])], 2)
        tokens, levels = batch.layout.own(batch.z)[i], t[2 * i : 2 * i + 2]
        parts = []
        for prompt in (request.prompt, ""):
            text = pipeline.reader.encode([prompt])
            layouts = Packed.of([(2, 4, 4)]), Packed.of_lengths(text.lengths)
            given = Conditions(channels=channels)
            parts.append(pipeline.transformer(tokens, levels, text.states, *layouts, conditions=given))
        want = parts[1] + 2.5 * (parts[0] - parts[1])
        torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "ddpm"])
def test_known_positions_stay_and_alone_equals_packed(pipeline, solver):
    sampling = Sampling(steps=3, solver=solver, guidance=Guidance(scale=2.0), progress=False)
    together = pipeline.sample(requests(), sampling)
    for request, made in zip(requests(), together, strict=True):
        torch.testing.assert_close(made, pipeline.sample([request], sampling)[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(together[0][:, 0], latent(1)[:, 0])
    stays = torch.ones(GRID, dtype=torch.bool)
    stays[:, 0:6, 2:8] = False  # tokens of which some position is to be made
    assert torch.equal(together[2][:, stays], latent(2)[:, stays])
    plain = pipeline.sample([Request(prompt=RED, grid=GRID, seed=1)], sampling)[0]
    replaced = pipeline.sample(requests()[:1], Sampling(steps=3, condition="replacement", progress=False))[0]
    assert torch.equal(replaced[:, 0], latent(1)[:, 0])
    assert min((together[0] - other)[:, 1].abs().max() for other in (plain, replaced)) > 1e-3


def test_references_are_told_nothing(pipeline):
    pipeline.register_to_config(references={"style": Role(place="beside").as_json()})
    shown = Request(prompt=RED, grid=GRID, seed=1, references={"style": [latent(3)[:, :1, :4, :4]]})
    batch, _ = pipeline._prepare([shown, *requests()[:1]], Sampling(progress=False))
    channels = batch.given.channels
    assert len(channels) == batch.layout.tokens == 32 + 4 + 32
    assert not channels[:36].any() and channels[36:52, :4].eq(1).all() and not channels[52:].any()


def test_what_the_model_is_not_trained_for_is_said(pipeline, given_pipeline, capsys):
    one = Sampling(steps=1, condition="levels", progress=False)
    with pytest.raises(UserError, match="told what is known by channels, not by noise levels"):
        pipeline.sample(requests()[:1], one)
    with pytest.raises(
        UserError, match="condition 'channels' is of a model that was trained with model.condition_chan"
    ):
        load_pipeline(given_pipeline, "cpu").sample(requests()[:1], Sampling(condition="channels", progress=False))
    with pytest.raises(UserError, match="a rollout with a cache is of models that are told what is known by noise"):
        pipeline.sample(requests()[1:2], Sampling(progress=False), KeyValueCache())
    with pytest.raises(UserError, match="channels: those of this model are made of what is known"):
        pipeline.sample([Request(prompt=RED, grid=GRID, channels=latent(1))], Sampling(progress=False))
    pipeline.register_to_config(given=("plain", "first", "independent"))
    picture = torch.zeros(32, 32, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match="never with the last one: ask for condition 'reconstruction'"):
        interpolate(pipeline, [picture], [picture], [RED], 4)
    with pytest.raises(UserError, match="never with the first 2"):
        list(rollout(pipeline, [RED], 9, window=13))
    capsys.readouterr()
    note_condition(pipeline, Sampling(), "inpaint", "outpaint", "mask")
    assert "none of which is inpaint or outpaint or mask: it does this badly" in capsys.readouterr().err
    pipeline.register_to_config(given=("plain", "mask"))
    note_condition(pipeline, Sampling(), "inpaint", "outpaint", "mask")
    assert capsys.readouterr() == ("", "")


def test_the_programs(folder, tmp_path, run):
    """Each of what is known."""
    rand = torch.Generator().manual_seed(0)
    clip, picture, mask = tmp_path / "clip.mp4", tmp_path / "picture.png", tmp_path / "mask.png"
    write_video(clip, torch.randint(256, (5, 32, 32, 3), generator=rand, dtype=torch.uint8), 8)
    write_video(picture, torch.full((1, 32, 32, 3), 90, dtype=torch.uint8), 8)
    white = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    white[:, 8:20, 8:] = 255
    write_video(mask, white, 8)
    common = ["--model", folder, "--device", "cpu", "--steps", "1", "--large", "--prompt", RED]
    for program, more, frames in (
        ("t2v", [], 5),
        ("i2v", ["--image", picture], 5),
        ("interpolate", ["--first", picture, "--last", picture, "--between", "4"], 6),
        ("extend", ["--clip", clip, "--frames", "4", "--window", "9", "--context", "5"], 9),
        ("inpaint", ["--clip", clip, "--mask", mask], 5),
    ):
        out = tmp_path / f"{program}.mp4"
        status, _, err = run(f"inference/{program}.py", *common, *more, "--output", out)
        assert status == 0, err
        assert len(read_frames(out, 0, frames)) == frames
