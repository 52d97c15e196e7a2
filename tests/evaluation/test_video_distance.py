"""I3D against a slow reference that is written out, on random weights of small widths; the Frechet distance."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from random_networks import MIXED, i3d_weights
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from latentvid.errors import UserError
from latentvid.evaluation.sets import frechet as module
from latentvid.evaluation.sets.frechet import frechet_derivatives, frechet_of_halves, weighted_frechet
from latentvid.evaluation.sets.i3d import SHORTEST, load_i3d, same_padding


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return i3d_weights()


def reference(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """In float64, with explicit padding of each axis, batch norms by themselves and -inf around what is pooled."""
    w = {name: value.double() for name, value in w.items()}

    def pad(x, kernel, stride, value):
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
            total = max(0, (math.ceil(x.shape[2 + axis] / s) - 1) * s + k - x.shape[2 + axis])
            for count, before in ((total // 2, True), (total - total // 2, False)):
                shape = list(x.shape)
                shape[2 + axis] = count
                edge = torch.full(shape, value, dtype=x.dtype)
                x = torch.cat([edge, x] if before else [x, edge], dim=2 + axis)
        return x

    def unit(layer, x, stride=1):
        kernel, norm = w[f"params/{layer}/Conv_0/kernel"], f"{layer}/BatchNorm_0"
        x = nnf.conv3d(pad(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
        mean, var, bias = w[f"batch_stats/{norm}/mean"], w[f"batch_stats/{norm}/var"], w[f"params/{norm}/bias"]
        return nnf.batch_norm(x, mean, var, None, bias, eps=1e-3).relu()

    def pool(x, kernel, stride):
        return nnf.max_pool3d(pad(x, kernel, stride, -math.inf), kernel, stride)

    frames = nnf.interpolate(x[0].movedim(1, 0).double(), (224, 224), mode="bilinear", align_corners=False)
    x = unit("Conv3d_1a_7x7", frames.movedim(0, 1)[None], 2)
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", pool(x, (1, 3, 3), (1, 2, 2))))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        at = f"Mixed_{name}/Branch_"
        one = unit(f"{at}0/Conv3d_0a_1x1", x)
        two, three = (unit(f"{at}{i}/Conv3d_0b_3x3", unit(f"{at}{i}/Conv3d_0a_1x1", x)) for i in (1, 2))
        four = unit(f"{at}3/Conv3d_0b_1x1", pool(x, (3, 3, 3), (1, 1, 1)))
        x = torch.cat([one, two, three, four], dim=1)
        if name == "3c":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "4f":
            x = pool(x, (2, 2, 2), (2, 2, 2))
    logits = w["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"], w["params/Logits/Conv3d_0c_1x1/Conv_0/bias"]
    return nnf.conv3d(nnf.avg_pool3d(x, (2, 7, 7), 1), *logits)[..., 0, 0].mean(2)


@pytest.mark.parametrize("frames", [SHORTEST, 12])
def test_i3d_is_its_reference(weights, frames, tmp_path):
    save_file(weights, tmp_path / "i3d.safetensors")
    network = load_i3d(tmp_path)
    clip = torch.rand(1, 3, frames, 60, 44) * 2 - 1
    features = network(clip)
    assert features.shape == (1, 7) and not network.train().training
    torch.testing.assert_close(features.double(), reference(weights, clip), rtol=1e-4, atol=1e-4)
    two = network(torch.cat([clip, -clip]))
    torch.testing.assert_close(two[:1], features, rtol=1e-4, atol=1e-4)


def test_clips_that_are_too_short_and_wrong_weights_are_refused(weights, tmp_path):
    save_file(weights, tmp_path / "i3d.safetensors")
    with pytest.raises(UserError, match="8 frames, too few"):
        load_i3d(tmp_path)(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(UserError, match="no I3D weights"):
        load_i3d(tmp_path / "none.safetensors")
    save_file({"conv0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold I3D's weights"):
        load_i3d(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="or the safetensors file"):
        load_i3d(tmp_path)  # two of them


def test_same_padding_gives_the_ceiling():
    for size in range(1, 12):
        for kernel, stride in ((3, 2), (7, 2), (2, 2), (3, 1), (1, 1)):
            before, after = same_padding(size, kernel, stride)
            assert (size + before + after - kernel) // stride + 1 == math.ceil(size / stride)
            assert after - before in (0, 1)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of sets of features [N,D] and [M,D]."""
    return float(weighted_frechet(a, b, *(torch.ones(1, len(x), dtype=torch.float64) for x in (a, b))))


def samples(mean: torch.Tensor, covariance: torch.Tensor, count: int) -> torch.Tensor:
    """[N,D] of just this mean [D] and unbiased covariance [D,D]."""
    x = torch.randn(count, len(mean)).double()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), (x - x.mean(0)).T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def test_a_common_mean_does_not_cancel():
    a, b = torch.randn(50, 6) * 3 + 1000, torch.randn(40, 6) + 1000  # in sums of squares of float32 it would
    for few in (slice(None), slice(5)):
        assert frechet(a[few], b[few]) == pytest.approx(frechet(a[few].double() - 1000, b[few].double() - 1000))


def test_the_distance_of_gaussians_is_the_closed_form():
    mean, a, b = torch.randn(5).double(), torch.rand(5).double(), torch.rand(5).double()
    rotation = torch.linalg.qr(torch.randn(5, 5).double())[0]
    turned = lambda values: rotation @ values.diag() @ rotation.T  # noqa: E731
    found = frechet(samples(mean, turned(a), 11), samples(-mean, turned(b), 14))
    assert found == pytest.approx(float((2 * mean).square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)
    # covariances that do not commute: scipy's matrix root of A B
    x, y = torch.randn(40, 5).double(), torch.randn(30, 5).double() @ torch.randn(5, 5).double()
    cov = x.T.cov(), y.T.cov()
    root = torch.from_numpy(sqrtm((cov[0] @ cov[1]).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (cov[0] + cov[1] - 2 * root).trace()
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_blocks_of_rows_give_what_all_rows_do(monkeypatch):
    a, b = torch.randn(53, 6) @ torch.randn(6, 6) + 20, torch.randn(40, 6) + 19
    halves = torch.rand(2, 53) < 0.5, torch.rand(2, 40) < 0.5
    functions = (frechet, frechet_derivatives, lambda x, y: frechet_of_halves(x, y, *halves))
    whole = [function(a, b) for function in functions]
    monkeypatch.setattr(module, "BLOCK", 7)
    for function, expected in zip(functions, whole, strict=True):
        torch.testing.assert_close(function(a, b), expected)


def test_fewer_samples_than_dimensions_do_and_one_does_not():
    small, other = torch.randn(3, 20), torch.randn(1, 20)
    assert frechet(small, small) == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match="2 or more"):
        frechet(small, other)
