"""Motion strength as a condition of the modulation, and how it is measured."""

import math

import pytest
import torch
from test_transformer import GRIDS, SMALL, WORDS, disturbed, samples

from latentvid.data.motion import motion_strength
from latentvid.models.conditions import NO_MOTION, Conditions
from latentvid.models.flops import backbone_flops
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

STRENGTHS = [0.0, NO_MOTION, 3.0, 40.0]


def make(**options) -> VideoDiT:
    torch.manual_seed(0)
    return disturbed(VideoDiT(**SMALL, **options))


def forward(model, strengths):
    tokens, timestep, text = (torch.cat(part) for part in zip(*samples(), strict=True))
    given = None if strengths is None else Conditions(motion=torch.tensor(strengths))
    layout = Packed.of(GRIDS)
    return model(tokens, timestep, text, layout, Packed.of_lengths(WORDS), conditions=given).split(layout.lengths)


def test_a_new_condition_changes_nothing_at_first():
    old, new = make(), VideoDiT(**SMALL, motion_condition=True)
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert missing and all(name.startswith("motion_in.") for name in missing) and not unexpected
    for got, want in zip(forward(new, STRENGTHS), forward(old, None), strict=True):
        assert torch.equal(got, want)


def test_a_sample_sees_its_own_strength_alone_and_none_is_not_0():
    model = make(motion_condition=True)
    before = forward(model, STRENGTHS)
    for i in range(4):
        changed = forward(model, [1.5 if j == i else each for j, each in enumerate(STRENGTHS)])
        for j in range(4):
            assert torch.equal(before[j], changed[j]) == (i != j)
    unknown = forward(model, [NO_MOTION] * 4)
    assert torch.equal(unknown[1], before[1]) and not torch.allclose(unknown[0], before[0], atol=1e-4)
    for got, want in zip(forward(model, None), unknown, strict=True):
        assert torch.equal(got, want)


def test_what_is_read_of_a_strength_by_hand():
    """The logarithm of 1 + strength, in waves of one e-fold to 32; nothing of an unknown one."""
    model, fps = make(motion_condition=True), torch.zeros(3)
    angle = [[2 * math.pi * math.log(1 + m) * 32 ** (-k / 128) for k in range(128)] for m in (0.0, 3.0)]
    features = torch.tensor([[*map(math.cos, row), *map(math.sin, row)] for row in angle] + [[0.0] * 256])
    got = model._motion(torch.tensor([0.0, 3.0, NO_MOTION]), fps, torch.float32)
    torch.testing.assert_close(got, model.motion_in(features), rtol=1e-4, atol=1e-4)


def test_a_model_without_it_refuses_a_strength_and_its_cost_counts():
    with pytest.raises(ValueError, match="motion is of models of motion_condition"):
        forward(make(), STRENGTHS)
    with pytest.raises(ValueError, match="one number a sample"):
        forward(make(motion_condition=True), STRENGTHS[:2])
    costs = [backbone_flops(model, GRIDS, WORDS) for model in (make(motion_condition=True), make())]
    width = SMALL["width"]
    assert costs[0] - costs[1] == len(GRIDS) * 2 * width * (256 + width)


def moving(pixels: float, frames: int = 5, side: int = 48) -> torch.Tensor:
    """A smooth texture that moves to the right by so many pixels a frame, uint8 [F,H,W,3]."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [(0.21, 0.13), (-0.17, 0.29), (0.4, -0.1), (0.05, 0.45)]
    clip = [sum(((x - pixels * f) * a + y * b).sin() for a, b in waves) for f in range(frames)]
    return ((torch.stack(clip) / 4 + 1) * 127).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()


def test_the_measure_is_the_speed_in_percent_of_the_diagonal():
    for pixels in (0.5, 1.0, 2.0):
        want = 100 * 8 * pixels / math.hypot(48, 48)
        assert motion_strength(moving(pixels), 8.0) == pytest.approx(want, rel=0.1)
    assert motion_strength(moving(0.0), 8.0) == pytest.approx(0, abs=0.2)
    assert motion_strength(moving(1.0), 16.0) == pytest.approx(2 * motion_strength(moving(1.0), 8.0))
    assert math.isnan(motion_strength(moving(1.0)[:1], 8.0)) and math.isnan(motion_strength(moving(1.0), 0.0))
