"""Temporal blocks in an image model: frames as before at first, pictures for ever; a module as a folder of its own."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_control import GRIDS, SMALL, WORDS, forward, lively, make, parts
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.adapters.control_files import base_of, is_of
from latentvid.models.adapters.fingerprint import fingerprint
from latentvid.models.adapters.motion_files import (
    fill_motion,
    is_its_image_model,
    load_motion,
    read_motion,
    save_motion,
)
from latentvid.models.control import Control, ControlBranch
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

NOISE = {"path": "rectified_flow", "target": "flow"}


def inflated(image: VideoDiT, every: int = 1, trained: int | None = None, **other) -> VideoDiT:
    """With an image model's weights. trained: seed of what moves the temporal blocks."""
    torch.manual_seed(3)
    model = VideoDiT(**SMALL, attention="inflated", temporal_every=every, **other)
    model.controls.extend(copy.deepcopy(branch) for branch in image.controls)
    missing, unexpected = model.load_state_dict(image.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("temporal.") for name in missing)
    if trained is not None:
        lively(model.temporal, trained)
    return model


def by_frames(image: VideoDiT, control: bool = False) -> Tensor:
    """What the image model makes of each frame as a picture of its own."""
    found = []
    for (f, h, w), (tokens, levels, text, signal) in zip(GRIDS, parts(), strict=True):
        rows = zip(tokens.split(h * w), levels.split(1), signal.split(h * w), strict=True)
        frames = [(x, t, text, shown) for x, t, shown in rows]
        found.append(forward(image, frames, [(1, h, w)] * f, control=Control.of if control else None))
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2])
def test_at_first_each_frame_is_the_image_models(every):
    image = make()
    model = inflated(image, every)
    assert len(model.temporal) == (3 if every == 1 else 2)
    torch.testing.assert_close(forward(model), by_frames(image), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(forward(inflated(image, every, 4)), forward(model), atol=1e-3)
    torch.testing.assert_close(forward(model, context=True), forward(model), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_branches_of_the_image_model_act_on_each_frame():
    image = make()
    image.controls.append(ControlBranch(image, 2))
    lively(image.controls, 5)
    found = forward(inflated(image), control=Control.of)
    torch.testing.assert_close(found, by_frames(image, control=True), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, forward(inflated(image)), atol=1e-3)


def test_pictures_pass_unchanged_for_ever():
    """With gradients and without, beside clips and by themselves; all temporal weights have a gradient in any case."""
    image = make()
    model, layout = inflated(image, 2, trained=4), Packed.of(GRIDS)
    picture = layout.segment == 1  # of one frame
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(forward(model)[picture], by_frames(image)[picture], rtol=1e-5, atol=1e-6)
            alone = forward(model, parts()[1:2], GRIDS[1:2])
            assert torch.equal(alone, forward(image, parts()[1:2], GRIDS[1:2]))
    forward(model, parts()[1:2], GRIDS[1:2]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.temporal.parameters())
    model.zero_grad()
    forward(model).square().sum().backward()
    assert all(p.grad.any() for p in model.temporal.parameters())


def changed(model: VideoDiT) -> set[tuple[int, ...]]:
    """Places of a clip that change when the token (frame 1, row 0, column 1) does."""
    grid, rand = (3, 2, 2), torch.Generator().manual_seed(7)
    tokens, text = torch.randn(12, 12, generator=rand), torch.randn(2, 10, generator=rand)
    other = tokens.clone()
    other[5] += 1
    made = [forward(model, [(x, torch.full((3,), 0.5), text, x)], [grid]) for x in (tokens, other)]
    places = Packed.of([grid]).position[(made[1] - made[0]).abs().amax(-1) > 0]
    return {tuple(place) for place in places.tolist()}


@torch.no_grad()
def test_blocks_see_a_frame_and_temporal_ones_a_place():
    model = inflated(make(), 3, trained=4)
    assert len(model.temporal) == 1 and len(changed(model)) == 12
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    assert changed(model) == {(f, 0, 1) for f in range(3)}
    model = inflated(make())
    assert changed(model) == {(1, r, c) for r in (0, 1) for c in (0, 1)}


@torch.no_grad()
def test_blocks_of_images_know_no_time_and_temporal_ones_do():
    """Positions in time, of frames or of seconds, are of the temporal blocks alone."""
    image = make()
    plain = inflated(image)
    seconds = inflated(image, rope_fps=8.0)
    rates = torch.tensor([16.0, 0.0, 4.0])
    tokens, levels, text, _ = (torch.cat(part) for part in zip(*parts(), strict=True))

    def at(model: VideoDiT) -> Tensor:
        return model(tokens, levels, text, Packed.of(GRIDS), Packed.of_lengths(WORDS), fps=rates)

    assert torch.equal(at(plain), at(seconds))
    lively(plain.temporal, 4)
    lively(seconds.temporal, 4)
    first, second = at(plain), at(seconds)
    of = Packed.of(GRIDS).segment
    assert torch.equal(first[of == 1], second[of == 1]) and not torch.allclose(first[of == 0], second[of == 0])


@pytest.fixture
def saved(tmp_path) -> Path:
    """A module that was trained on `make()`."""
    model = inflated(make(), 2, trained=4, rope_fps=8.0)
    save_motion(model, tmp_path / "motion", base_of(make(), "there"), NOISE, {"frames": 9})
    return tmp_path / "motion"


@torch.no_grad()
def test_a_folder_makes_image_models_move(saved):
    want, model = inflated(make(), 2, trained=4, rope_fps=8.0), make()
    found = load_motion(model, saved)
    assert torch.equal(forward(model), forward(want)) and model.config.attention == "inflated"
    assert not any(p.requires_grad for p in model.temporal.parameters())
    assert (found.clips, found.noise, found.base["where"]) == ({"frames": 9}, NOISE, "there")
    assert is_its_image_model(model, found) and fingerprint(model, temporal=False) == fingerprint(make())
    assert is_of(model, base_of(make(), "there")) and is_of(model, base_of(model, "there"))  # of a control branch
    other = make()
    lively(other, 9)
    load_motion(other, saved)
    assert not is_its_image_model(other, found)
    again = inflated(make(), 2)
    assert fill_motion(again, read_motion(saved)) == sum(p.numel() for p in want.temporal.parameters())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), want.parameters(), strict=True))


def test_a_model_with_a_module_is_saved_as_an_inflated_one(saved, tmp_path):
    model = make()
    load_motion(model, saved)
    model.save_pretrained(tmp_path / "whole")
    again = VideoDiT.from_pretrained(tmp_path / "whole")
    assert (again.config.attention, again.config.temporal_every, again.config.rope_fps) == ("inflated", 2, 8.0)
    with torch.no_grad():
        assert torch.equal(forward(again), forward(model))


def test_what_does_not_fit_is_named(saved, tmp_path):
    def said(model: VideoDiT, folder: Path = saved) -> str:
        with pytest.raises(UserError) as error:
            load_motion(model, folder)
        return str(error.value)

    assert "give the folder of training" in said(make(), tmp_path / "none")
    assert "image models of attention full, and this one's is causal" in said(make("causal"))
    assert "has temporal blocks already" in said(inflated(make()))
    assert "width 24, not 36" in said(VideoDiT(**SMALL | {"width": 36}))
    assert "depth 3, not 4" in said(VideoDiT(**SMALL | {"depth": 4}))
    branched = make()
    branched.controls.append(ControlBranch(branched, 2))
    assert "put the motion module in before them" in said(branched)
    with pytest.raises(UserError, match="no temporal blocks to save"):
        save_motion(make(), tmp_path / "no", {}, NOISE, {})
    with pytest.raises(ValueError, match="temporal_every 4: there are 3 blocks"):
        VideoDiT(**SMALL, attention="inflated", temporal_every=4)
    file = saved / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: x for name, x in tensors.items() if "temporal.1" not in name}, file)
    assert "missing" in said(make())
    config = json.loads((saved / "config.json").read_text())
    for key, value, message in [
        ("heads", "2", "heads='2': must be a whole number"),
        ("noise", 3, "says no motion module"),
        ("_class_name", "ControlBranch", "holds a 'ControlBranch', not a MotionModule"),
    ]:
        (saved / "config.json").write_text(json.dumps(config | {key: value}))
        assert message in said(make()), key
