"""References in sampling: the network sees them as by hand, alone as in a pack; roles that are wrong are named."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from latentvid.adapters import merge_folder
from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.adapters.lora import save_lora
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, Reference, patchify
from latentvid.pipelines.arguments import Lora, add_references, parser_of, read_reference
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.limit import cost
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.references import add_roles, read_references
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.references import Role, header_of

ROLES = {
    "control": {"place": "aligned", "max_area": None, "max_frames": None},
    "subject": {"place": "beside", "max_area": 256, "max_frames": 1},
}
GRID = (2, 8, 8)
RED, BLUE = "a red 7 moves up", "a blue three bounces down"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_pipeline):
    """`tiny_pipeline` as one that was trained with references and with first frames."""
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("shown") / "pipeline")
    index = json.loads((folder / "model_index.json").read_text()) | {"references": ROLES, "given": ["plain", "first"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def pipeline(folder) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu")


def latent(seed: int, grid=GRID) -> torch.Tensor:
    return torch.randn(4, *grid, generator=torch.Generator().manual_seed(seed))


def requests() -> list[Request]:
    first = torch.zeros(2, 1, 1, dtype=torch.bool)
    first[0] = True
    both = {"subject": [latent(3, (1, 4, 4)), latent(4, (1, 8, 4))], "control": [latent(1)]}
    return [
        Request(prompt=RED, grid=GRID, seed=1, references=both),
        Request(prompt=BLUE, grid=GRID, seed=2),
        Request(prompt=BLUE, grid=GRID, seed=3, references={"control": [latent(2)]}, given=latent(5), known=first),
    ]


SHOWN = [
    (Reference((2, 4, 4), "aligned"), Reference((1, 2, 2)), Reference((1, 4, 2))),
    (),
    (Reference((2, 4, 4), "aligned"),),
]


@torch.no_grad()
def test_the_prediction_is_the_networks_by_hand(pipeline):
    """Both branches of guidance see the references, in the order of the roles, at noise level 0."""
    asked = requests()
    batch, predict = pipeline._prepare(asked, Sampling(guidance=Guidance(scale=2.5), progress=False))
    assert list(batch.layout.references) == SHOWN and batch.layout.grid == ((2, 4, 4),) * 3
    t = batch.levels[1]
    got = batch.layout.own(predict(batch.z, t))
    rows = iter(t)
    for place, (request, references) in enumerate(zip(asked, SHOWN, strict=True)):
        start, stop = batch.layout.cu_seqlens[place : place + 2].tolist()
        latents = [*request.references.get("control", []), *request.references.get("subject", [])]
        if latents:
            assert torch.equal(batch.z[start + 32 : stop], patchify(latents, 2)[0])
        levels = torch.stack([next(rows) for _ in range(2 + sum(r.grid[0] for r in references))])
        assert (levels[2:] == 0).all() and (levels[1] > 0) and bool(levels[0] > 0) == (request.given is None)
        layout, parts = Packed.of([(2, 4, 4)], [references]), []
        for prompt in (request.prompt, ""):
            text = pipeline.reader.encode([prompt])
            words = Packed.of_lengths(text.lengths)
            fps = torch.zeros(1)
            parts.append(pipeline.transformer(batch.z[start:stop], levels, text.states, layout, words, fps=fps)[:32])
        conditional, unconditional = parts
        want = unconditional + 2.5 * (conditional - unconditional)
        made = levels[:2].repeat_interleave(16) > 0  # what is predicted for given frames has no meaning
        torch.testing.assert_close(got[place][made], want[made], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun", "ddpm"])
def test_alone_equals_packed_and_the_clip_is_as_large_as_ever(pipeline, solver):
    sampling = Sampling(steps=3, solver=solver, guidance=Guidance(scale=2.0, rescale=0.5), progress=False)
    together = pipeline.sample(requests(), sampling)
    for request, made in zip(requests(), together, strict=True):
        torch.testing.assert_close(made, pipeline.sample([request], sampling)[0], rtol=1e-3, atol=1e-3)
        assert made.shape == (4, *GRID)
    torch.testing.assert_close(together[2][:, 0], latent(5)[:, 0], rtol=0, atol=0)  # its given frame
    plain = pipeline.sample([Request(prompt=RED, grid=GRID, seed=1)], sampling)[0]
    assert (plain - together[0]).abs().max() > 1e-3


def test_noise_and_levels_of_the_clip_are_those_without_references(pipeline):
    sampling = Sampling(progress=False)
    shown, _ = pipeline._prepare(requests()[:1], sampling)
    plain, _ = pipeline._prepare([Request(prompt=RED, grid=GRID, seed=1)], sampling)
    assert torch.equal(shown.layout.own(shown.z)[0], plain.z)
    assert torch.equal(shown.levels[:, :2], plain.levels) and not shown.levels[:, 2:].any()
    assert torch.equal(shown.layout.own(shown.noise())[0], plain.noise())


def test_clips_and_pictures_through_the_call(pipeline):
    rand = torch.Generator().manual_seed(0)
    clip = torch.randint(256, (5, 32, 32, 3), generator=rand, dtype=torch.uint8)
    sampling = Sampling(steps=2, progress=False, large=True)
    shown = {"control": clip, "subject": [clip[0, :16, :16], clip[:1, :16]]}
    made = pipeline([RED, BLUE], references=[shown, None], sampling=sampling, output_type="uint8").frames
    assert [tuple(x.shape) for x in made] == [(5, 32, 32, 3)] * 2
    alone = pipeline(BLUE, seed=1, sampling=sampling, output_type="uint8").frames[0]
    assert (alone.int() - made[1].int()).abs().max() <= 1
    for references, message in [
        ({"pose": clip}, "reference pose: there is no such role: this model knows control, subject"),
        ([None], "references: 1 given, and the prompts are 2"),
        ({"control": clip.float()}, r"reference control: float32 .*give a clip uint8 \[F,H,W,3\]"),
        ({"control": clip[:, :30]}, "30 x 32 pixels: this model makes multiples of 8"),
    ]:
        with pytest.raises(UserError, match=message):
            pipeline([RED, BLUE], references=references, sampling=sampling)


def test_what_has_no_place_for_them_says_so(pipeline, tiny_pipeline):
    shown = [Request(prompt=RED, grid=GRID, references={"control": [latent(1)]})]
    with pytest.raises(UserError, match="control: there is no such role: this model was trained without references"):
        load_pipeline(tiny_pipeline, "cpu").sample(shown, Sampling(progress=False))
    with pytest.raises(UserError, match="a rollout with a cache has no place for references"):
        pipeline.sample(shown, Sampling(progress=False), KeyValueCache())
    with pytest.raises(UserError, match="cost .* times a clip that the model was trained on"):
        many = Request(prompt=RED, grid=GRID, references={"control": [latent(1)] * 30})
        pipeline.sample([many], Sampling(progress=False))
    one = Reference((2, 4, 4), "aligned")
    assert cost(pipeline, GRID, [one]) > 2 * cost(pipeline, GRID)
    causal = VideoDiT(latent_channels=4, width=32, depth=2, heads=2, text_width=32, attention="causal")
    pipeline.register_modules(transformer=causal)
    with pytest.raises(UserError, match="references: model.attention is causal"):
        pipeline.sample(shown, Sampling(progress=False))


def test_roles_of_several_loras_agree(pipeline):
    add_roles(pipeline, {"style": Role(place="beside", max_area=64)}, "a.safetensors")
    assert list(pipeline.roles) == ["control", "subject", "style"]
    with pytest.raises(UserError, match="b.safetensors was trained with another reference style"):
        add_roles(pipeline, {"style": Role(place="beside", max_area=128)}, "b.safetensors")


def test_files_are_shown_as_in_training(pipeline, tmp_path, capsys):
    ramp = torch.arange(48, dtype=torch.uint8)[None, None, :, None].expand(9, 32, 48, 3).contiguous()
    write_video(tmp_path / "clip.mp4", ramp, 8)
    write_video(tmp_path / "short.mp4", ramp[:4], 8)
    write_video(tmp_path / "picture.png", ramp[:1], 8)
    asked = [("subject", "picture.png"), ("control", "clip.mp4"), ("subject", "clip.mp4")]
    asked = [(role, tmp_path / name) for role, name in asked]
    found = read_references(pipeline, asked, 5, 32, 32)
    assert {name: [tuple(x.shape) for x in clips] for name, clips in found.items()} == {
        "subject": [(1, 8, 16, 3)] * 2,  # of 256 pixels at most
        "control": [(5, 32, 32, 3)],
    }
    assert "clip.mp4: 32 x 48 pixels scaled and cropped to 32 x 32" in capsys.readouterr().out
    (still,) = read_references(pipeline, [("control", tmp_path / "picture.png")], 5, 32, 32)["control"]
    assert still.shape == (1, 32, 32, 3)
    with pytest.raises(UserError, match=r"--reference control=.*short\.mp4 has 4 frames, the clip 5"):
        read_references(pipeline, [("control", tmp_path / "short.mp4")], 5, 32, 32)
    with pytest.raises(UserError, match="--reference pose: there is no such role: this model knows control, subject"):
        read_references(pipeline, [("pose", tmp_path / "nowhere.mp4")], 5, 32, 32)


def test_the_option_and_the_programs(folder, tmp_path, run):
    assert read_reference("style=a=b.png") == ("style", Path("a=b.png"))
    for wrong in ("style", "=a.png", "style="):
        with pytest.raises(argparse.ArgumentTypeError, match="give ROLE=FILE"):
            read_reference(wrong)
    parser = parser_of("")
    add_references(parser)
    asked = parser.parse_args(["--reference", "a=b.png", "--reference", "a=c.png"]).reference
    assert [(one.role, str(one.file)) for one in asked] == [("a", "b.png"), ("a", "c.png")]
    picture, clip = tmp_path / "picture.png", tmp_path / "clip.mp4"
    write_video(picture, torch.full((1, 32, 32, 3), 90, dtype=torch.uint8), 8)
    write_video(clip, torch.full((5, 32, 32, 3), 90, dtype=torch.uint8), 8)
    common = ["--model", folder, "--device", "cpu", "--steps", "1", "--large", "--prompt", RED]
    shown = ["--reference", f"control={clip}", "--reference", f"subject={picture}"]
    for program, more in (("t2v", []), ("i2v", ["--image", picture])):
        out = tmp_path / f"{program}.mp4"
        status, _, err = run(f"inference/{program}.py", *common, *more, *shown, "--output", out)
        assert status == 0, err
        assert (probe(out).frames, probe(out).height, probe(out).width) == (5, 32, 32)
    status, _, err = run("inference/t2v.py", *common, "--reference", f"pose={picture}", "--output", tmp_path / "x.mp4")
    assert status and "there is no such role: this model knows control, subject" in err
    rows = ["--prompts", "rows.csv", "--model", folder, "--reference", f"control={clip}", "--output", tmp_path / "many"]
    status, _, err = run("inference/t2v.py", *rows)
    assert status and "--reference, --signal and --control are with --prompt" in err


def test_a_lora_brings_its_roles_loaded_or_merged(tiny_pipeline, tmp_path):
    dit = load_component(VideoDiT, tiny_pipeline / "transformer")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), dit)
    roles = {"style": Role(place="beside", max_area=256, max_frames=1)}
    file = save_lora(dit, tmp_path / "lora", note=header_of(roles))
    assert load_pipeline(tiny_pipeline, "cpu", lora=[Lora(file)]).roles == roles
    merge_folder(tiny_pipeline, tmp_path / "merged", [Lora(file)])
    assert load_pipeline(tmp_path / "merged", "cpu").roles == roles
    assert load_pipeline(tiny_pipeline, "cpu").roles == {}
