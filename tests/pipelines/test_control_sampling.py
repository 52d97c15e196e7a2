"""ControlNets in sampling: bit-equal where they do not act, the network's prediction by hand, parts of the steps."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.data.signals import signal_of
from latentvid.data.video.writing import write_video
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.models.adapters.control_files import base_of, save_control
from latentvid.models.control import Control, ControlBranch
from latentvid.models.saved import load_component
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, patchify
from latentvid.pipelines.arguments import ControlNet, add_references, parser_of, read_controlnet
from latentvid.pipelines.controls import control_at
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.references import read_references
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.references import Role

GRID = (2, 8, 8)
RED, BLUE = "a red 7 moves up", "a blue three bounces down"
STEPS = Sampling(steps=4, guidance=Guidance(scale=2.5), progress=False)


@pytest.fixture(scope="module")
def nets(tmp_path_factory, tiny_pipeline) -> dict[str, Path]:
    """Two trained ones: of edges that are computed, and of a path that is given."""
    found = {}
    for seed, (role, signal) in enumerate({"edges": "canny", "path": None}.items()):
        dit = load_component(VideoDiT, tiny_pipeline / "transformer")
        base = base_of(dit, "there")
        dit.controls.append(ControlBranch(dit, 1 + seed))
        rand = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in dit.controls.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=rand))
        found[role] = tmp_path_factory.mktemp("nets") / role
        save_control(dit, found[role], role, Role(place="control", signal=signal), base)
    return found


def latent(seed: int, grid=GRID) -> torch.Tensor:
    return torch.randn(4, *grid, generator=torch.Generator().manual_seed(seed))


def requests(shown=True) -> list[Request]:
    signals = [{"edges": [latent(1)], "path": [latent(2)]}, {"path": [latent(3)]}, {"edges": [latent(4)]}]
    return [
        Request(prompt=text, grid=GRID, seed=i, references=each if shown else {})
        for i, (text, each) in enumerate(zip((RED, BLUE, BLUE), signals, strict=True))
    ]


def loaded(folder: Path, *nets: ControlNet) -> LatentVideoPipeline:
    return load_pipeline(folder, "cpu", control=nets)


def test_at_scale_0_it_is_the_base_bit_for_bit(nets, tiny_pipeline, capsys):
    plain = loaded(tiny_pipeline).sample(requests(shown=False), STEPS)
    off = loaded(tiny_pipeline, ControlNet(nets["edges"], 0.0))
    assert all(torch.equal(a, b) for a, b in zip(off.sample(requests(shown=False), STEPS), plain, strict=True))
    assert f"ControlNet {nets['edges']} times 0, of edges\n" in capsys.readouterr().err
    on = loaded(tiny_pipeline, ControlNet(nets["edges"]))
    made = on.sample(requests_of("edges"), STEPS)
    assert torch.equal(made[1], plain[1])  # in one pack with clips that have a signal
    assert not torch.allclose(made[0], plain[0], atol=1e-3) and not torch.allclose(made[2], plain[2], atol=1e-3)
    alone = on.sample(requests_of("edges")[2:], STEPS)[0]
    torch.testing.assert_close(alone, made[2], rtol=1e-4, atol=1e-4)


def requests_of(role: str) -> list[Request]:
    return [replace(r, references={k: v for k, v in r.references.items() if k == role}) for r in requests()]


@torch.no_grad()
def test_several_act_by_their_scales_in_their_steps(nets, tiny_pipeline):
    pipeline = loaded(
        tiny_pipeline, ControlNet(nets["edges"], 0.5, 0.0, 0.5), ControlNet(nets["path"], -1.0, 0.25, 1.0)
    )
    batch, predict = pipeline._prepare(requests(), STEPS)
    acting = []
    for t in batch.levels[:-1]:
        control = control_at(pipeline.transformer, batch, t)
        of = dict(zip(control.branches, control.scales, strict=True))
        acting.append({number: scale.tolist() for number, scale in of.items()})
    edges, path = {0: [0.5, 0.0, 0.5]}, {1: [-1.0, -1.0, 0.0]}
    assert acting == [edges, {**edges, **path}, path, path]
    t, z = batch.levels[1], batch.z
    signals = [[latent(1), torch.zeros(4, *GRID), latent(4)], [latent(2), latent(3), torch.zeros(4, *GRID)]]
    tokens = [torch.cat([patchify([x], 2)[0] for x in each]).repeat(2, 1) for each in signals]
    scales = [torch.tensor([0.5, 0.0, 0.5]).repeat(2), torch.tensor([-1.0, -1.0, 0.0]).repeat(2)]
    text = pipeline.reader.encode([RED, BLUE, BLUE, "", "", ""])
    both = pipeline.transformer(
        z.repeat(2, 1),
        pipeline.scheduler.told(t).repeat(2),
        text.states,
        batch.layout.repeated(2),
        Packed.of_lengths(text.lengths),
        control=Control((0, 1), tuple(tokens), tuple(scales)),
    )
    one, other = both.chunk(2)
    torch.testing.assert_close(predict(z, t), other + 2.5 * (one - other), rtol=1e-4, atol=1e-4)


def test_what_is_asked_wrongly_is_named(nets, tiny_pipeline, tmp_path):
    pipeline = loaded(tiny_pipeline, ControlNet(nets["edges"]))
    with pytest.raises(UserError, match="a ControlNet reads a signal in the role edges: give --reference edges=FILE"):
        pipeline(RED)
    short = [Request(prompt=RED, grid=GRID, references={"edges": [latent(1, (1, 8, 8))]})]
    with pytest.raises(UserError, match="reference edges: a ControlNet reads one clip of the size and length"):
        pipeline.sample(short, STEPS)
    with pytest.raises(UserError, match="the pipeline has ControlNets in it"):
        pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="holds no ControlNet"):
        loaded(tiny_pipeline, ControlNet(tmp_path))
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8), 8.0)
    with pytest.raises(UserError, match="--signal path=.*: nothing is computed for that role"):
        read_references(loaded(tiny_pipeline, ControlNet(nets["path"])), [], 5, 32, 32, [("path", clip)])
    with pytest.raises(UserError, match="--reference edges=.* has 5 frames, the clip 9.*ask for fewer"):
        read_references(pipeline, [("edges", clip)], 9, 32, 32)
    shown = read_references(pipeline, [], 5, 32, 32, [("edges", clip)])["edges"][0]
    given = read_references(pipeline, [("edges", clip)], 5, 32, 32)["edges"][0]
    assert torch.equal(shown, signal_of(Role(place="control", signal="canny"), given)) and not torch.equal(shown, given)


def test_a_folder_and_how_much_of_it_and_when(tmp_path):
    assert read_controlnet("a") == (Path("a"), 1.0, 0.0, 1.0)
    assert read_controlnet("a:0.5") == (Path("a"), 0.5, 0.0, 1.0)
    assert read_controlnet("a:-0.5") == (Path("a"), -0.5, 0.0, 1.0)
    assert read_controlnet("b:c:0.8:0.1-0.6") == (Path("b:c"), 0.8, 0.1, 0.6)
    odd = tmp_path / "x:2:0-1"
    odd.mkdir()
    assert read_controlnet(str(odd)) == (odd, 1.0, 0.0, 1.0)
    for wrong in ("", "a:b", ":1", "a:1e9", "a:1:0-2", ":1:0-1", "x" * 5000 + ":b"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{wrong}': give FOLDER, FOLDER:SCALE"):
            read_controlnet(wrong)
    with pytest.raises(argparse.ArgumentTypeError, match="no steps"):
        read_controlnet("a:1:0.6-0.1")
    parser = parser_of("")
    add_references(parser)
    args = parser.parse_args(["--control", "a:0.5", "--control", "b", "--signal", "edges=c.mp4"])
    assert [net.scale for net in args.control] == [0.5, 1.0] and args.signal[0].role == "edges"


@pytest.mark.slow
def test_the_program_makes_a_clip(nets, tiny_pipeline, tmp_path, run):
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8), 8.0)
    asked = ("--model", tiny_pipeline, "--prompt", RED, "--output", tmp_path / "out.mp4", "--device", "cpu")
    status, _, err = run(
        "inference/t2v.py", *asked, "--control", f"{nets['edges']}:0.7:0-0.5", "--signal", f"edges={clip}"
    )
    assert status == 0 and (tmp_path / "out.mp4").is_file() and "times 0.7 in steps 0 to 0.5, of edges" in err
    status, _, err = run("inference/t2v.py", *asked, "--control", nets["edges"])
    assert status == 1 and "give --reference edges=FILE" in err
