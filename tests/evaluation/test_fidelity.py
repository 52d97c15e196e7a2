"""PSNR and SSIM against their definitions and torchmetrics, whole and in pieces."""

import math

import pytest
import torch
import torch.nn.functional as nnf

from latentvid.errors import UserError
from latentvid.evaluation.pairs.fidelity import MAX_PSNR, Fidelity


def noise(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def compared(a: torch.Tensor, b: torch.Tensor) -> Fidelity:
    fidelity = Fidelity()
    fidelity.add(a, b)
    return fidelity


def test_psnr_is_that_of_the_mean_square_over_the_clip():
    a = noise(3, 16, 12, 3, high=200)
    assert compared(a, a + 10).psnr == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    b = a.clone()
    b[0] += 10  # one frame of three: the error is averaged, not the decibels
    assert compared(a, b).psnr == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(3), abs=1e-4)
    assert compared(a, a).psnr == MAX_PSNR


def test_ssim_is_the_definition_frame_by_frame():
    a = noise(2, 20, 14, 3)
    b = (a.float() * 0.8 + noise(2, 20, 14, 3, high=50)).to(torch.uint8)
    tap = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (tap[:, None] * tap / tap.sum() ** 2)[None, None]

    def local_mean(x):  # over the window, reflected at the borders
        return nnf.conv2d(nnf.pad(x, (5, 5, 5, 5), mode="reflect"), window)

    x, y = (clip.permute(0, 3, 1, 2).reshape(6, 1, 20, 14).double() for clip in (a, b))
    mx, my = local_mean(x), local_mean(y)
    vx, vy, vxy = local_mean(x * x) - mx**2, local_mean(y * y) - my**2, local_mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert compared(a, b).ssim == pytest.approx(float(expected), abs=1e-5)
    assert compared(a, a).ssim == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (48, 64), (49, 129), (150, 67)])
def test_ssim_is_torchmetrics_at_any_size(height, width):
    from torchmetrics.functional.image import structural_similarity_index_measure

    ramp = torch.linspace(0, 200, width).expand(3, height, width)[..., None]
    a = (ramp + torch.rand(3, height, width, 3) * 50).to(torch.uint8)
    b = (a.float() * 0.9 + torch.rand(a.shape) * 20).to(torch.uint8)
    x, y = (clip.permute(0, 3, 1, 2).float() for clip in (a, b))
    expected = structural_similarity_index_measure(x, y, sigma=1.5, kernel_size=11, data_range=255.0)
    assert compared(a, b).ssim == pytest.approx(float(expected), abs=1e-5)


def test_pieces_score_as_the_whole():
    a, b = noise(5, 12, 13, 3), noise(5, 12, 13, 3)
    whole, pieces = compared(a, b), Fidelity()
    for first, second in zip(a.split(2), b.split(2), strict=True):
        pieces.add(first, second)
    assert (pieces.frames, pieces.psnr, pieces.ssim) == (5, pytest.approx(whole.psnr), pytest.approx(whole.ssim))


def test_bad_pairs_are_refused():
    a = noise(2, 16, 16, 3)
    for other in (a.float(), a[:1], a[..., :1]):
        with pytest.raises(ValueError, match="PSNR and SSIM want|equal shapes"):
            compared(a, other)
    with pytest.raises(UserError, match="11 x 11"):
        compared(noise(2, 8, 16, 3), noise(2, 8, 16, 3))
