"""The target that a step implies, and the levels of steps, for every path and target."""

import pytest
import torch

from latentvid.diffusion.distillation.guided import draw_scales
from latentvid.diffusion.distillation.point import Point, up_to
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.packing import Packed


@pytest.mark.parametrize(
    "path, target",
    [(path, target) for path in ("rectified_flow", "cosine", "ddpm") for target in ("flow", "v", "x", "eps")],
)
def test_one_step_with_the_implied_target_lands_where_it_should(path, target):
    if (path, target) in {("ddpm", "flow"), ("rectified_flow", "eps"), ("cosine", "eps")}:
        pytest.skip("there is no such scheduler")
    scheduler = LatentVideoScheduler(path=path, target=target)
    layout = Packed.of([(3, 1, 2), (2, 2, 2)])
    levels = scheduler.levels(4)
    place = torch.tensor([0, 1, 4, 3, 2])  # of each latent frame; the third is given
    t, s = levels[place], torch.tensor([*levels, 0.0])[place + 1]
    z, landed = torch.randn(2, layout.tokens, 6)
    point = Point(scheduler, layout, z, t, levels.expand(5, -1))
    assert point.place.tolist() == place.tolist() and torch.equal(point.after(point.place + 1), s)
    given = point.tokens(t) == 0
    y = point.implied(landed, s)
    assert y.isfinite().all()
    found = point.step(y, t, s, z)
    torch.testing.assert_close(found, torch.where(given, z, landed), rtol=1e-3, atol=1e-3)


def test_levels_move_up_to_those_of_steps():
    levels = LatentVideoScheduler(shift=3.0).levels(4)
    t = torch.tensor([0.0, 1e-6, 0.5, 0.5001, 1.0])
    assert up_to(levels, t).tolist() == [0.0, 0.5, 0.5, 0.75, 1.0]
    drawn = up_to(LatentVideoScheduler().levels(4), torch.rand(4000))  # even draws are even steps
    assert all(abs(float((drawn == level).float().mean()) - 0.25) < 0.03 for level in (0.25, 0.5, 0.75, 1.0))


def test_scales_are_keyed_by_the_samples_numbers():
    first, again = (draw_scales(2.0, 5.0, 0, numbers) for numbers in ([3, 9, 4], [9, 4, 3]))
    assert torch.equal(first[[1, 2, 0]], again) and not torch.equal(first, draw_scales(2.0, 5.0, 1, [3, 9, 4]))
    many = draw_scales(2.0, 5.0, 0, range(300))
    assert 2 <= float(many.min()) < 2.1 and 4.9 < float(many.max()) <= 5
