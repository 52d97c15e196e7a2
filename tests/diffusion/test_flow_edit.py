"""FlowEdit against its algorithm written out, on perfect denoisers of two mixtures of Gaussians."""

import pytest
import torch
from gaussian_mixture import Mixture, sliced_wasserstein, three_in_a_plane
from torch import Tensor

from latentvid.diffusion.flow_edit import flow_edit
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.packing import Packed

OLD = three_in_a_plane()
NEW = Mixture(OLD.weights, OLD.means + torch.tensor([2.0, 0.5]), torch.diag_embed(OLD.spread.flip(1)))
COUNT, STEPS, N_MAX = 6, 12, 9
CASES = [("rectified_flow", "flow", {}), ("rectified_flow", "x", {}), ("cosine", "v", {}), ("ddpm", "x", {})]
CASES += [("edm", "edm", {"sigma_data": 1.0})]


class Noise:
    """The same draws for every run."""

    def __init__(self, count: int = COUNT) -> None:
        self.source, self.count = torch.Generator().manual_seed(1), count

    def __call__(self) -> Tensor:
        return torch.randn(self.count, 2, generator=self.source)


def written_out(x: Tensor, times: list[float], n_min: int, n_avg: int, noise: Noise) -> Tensor:
    """Algorithm 1 of the paper on the straight line, in its names: `times` are t_{n_max} .. t_0."""

    def velocity(mixture: Mixture, z: Tensor, t: float) -> Tensor:
        level = torch.full((len(z), 1), t).double()
        denoised = mixture.denoise(z, 1 - level, level)
        return ((z.double() - (1 - level) * denoised) / level - denoised).float()  # eps - x

    z_fe, n_max = x.clone(), len(times) - 1
    for i in range(n_max, n_min, -1):
        t, s = times[n_max - i], times[n_max - i + 1]
        total = 0
        for _ in range(n_avg):
            z_src = (1 - t) * x + t * noise()
            z_tar = z_fe + z_src - x
            total = total + velocity(NEW, z_tar, t) - velocity(OLD, z_src, t)
        z_fe = z_fe + (s - t) * total / n_avg
    if n_min == 0:
        return z_fe
    t = times[n_max - n_min]
    z_tar = z_fe + ((1 - t) * x + t * noise()) - x
    for i in range(n_min, 0, -1):
        t, s = times[n_max - i], times[n_max - i + 1]
        z_tar = z_tar + (s - t) * velocity(NEW, z_tar, t)
    return z_tar


def edited(scheduler: LatentVideoScheduler, x: Tensor, levels: Tensor, noise: Noise, **options) -> Tensor:
    layout = Packed.of([(1, 1, 1)] * len(x))
    predicts = [mixture.predictor(scheduler, layout) for mixture in (OLD, NEW)]
    each = levels[:, None].expand(-1, len(x))
    return flow_edit(scheduler, *predicts, x, each, each, layout, noise, **options)


def points(count: int = COUNT) -> Tensor:
    return OLD.sample(count, torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(("n_min", "n_avg"), [(0, 1), (0, 3), (4, 1), (4, 2)])
@pytest.mark.parametrize(("path", "target", "options"), CASES)
def test_every_path_does_what_the_paper_writes_of_the_straight_line(path, target, options, n_min, n_avg):
    scheduler = LatentVideoScheduler(path, target, **options)
    levels = scheduler.levels(STEPS)[-1 - N_MAX :]
    alpha, sigma = (c.double() for c in scheduler.path.coefficients(levels))
    want = written_out(points(), (sigma / (alpha + sigma)).tolist(), n_min, n_avg, Noise())
    found = edited(scheduler, points(), levels, Noise(), n_min=n_min, n_avg=n_avg)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)
    assert (found - points()).abs().max() > 0.5


def test_the_same_prompt_changes_nothing():
    scheduler, x = LatentVideoScheduler(), points()
    layout = Packed.of([(1, 1, 1)] * COUNT)
    predict, levels = OLD.predictor(scheduler, layout), scheduler.levels(STEPS)[:, None].expand(-1, COUNT)
    made = flow_edit(scheduler, predict, predict, x, levels, levels, layout, Noise())
    torch.testing.assert_close(made, x, rtol=0, atol=1e-4)  # (x + y) - x is y but for rounding


def test_many_points_become_points_of_the_target():
    scheduler, x = LatentVideoScheduler(), points(400)
    made = edited(scheduler, x, scheduler.levels(40), Noise(400))
    want = NEW.sample(400, torch.Generator().manual_seed(5))
    assert sliced_wasserstein(made, want) < sliced_wasserstein(x, want) / 4


@pytest.mark.parametrize("n_min", [0, 2])
def test_what_is_given_or_known_comes_out_so_and_the_source_is_seen_whole(n_min):
    scheduler, x = LatentVideoScheduler(), points()
    layout = Packed.of([(3, 1, 2)])  # one sample of three frames
    levels = scheduler.levels(4)[:, None].expand(-1, 3)
    target_levels = levels * torch.tensor([0.0, 1.0, 1.0])
    known = torch.tensor([0, 0, 1, 0, 0, 0]).bool()[:, None]
    clean, seen = torch.full_like(x, 7.0), []

    def predict(name: str, mixture: Mixture):
        inner = mixture.predictor(scheduler, layout)
        return lambda z, t: seen.append((name, z, t)) or inner(z, t)

    words = {"n_min": n_min, "clean": clean, "known": known}
    both = predict("source", OLD), predict("target", NEW)
    made = flow_edit(scheduler, *both, x, levels, target_levels, layout, Noise(), **words)
    assert (made[:3] == 7).all() and (made[3:] != x[3:]).all()
    for name, z, t in seen:
        if name == "source":
            assert (t > 0).all()  # no frame of the clip as it was is given
        else:
            assert t[0] == 0 and (z[:2] == 7).all()
            assert (z[2] - 7 * (1 - t[1])).abs().max() < 4 * t[1]  # noised from what is known
