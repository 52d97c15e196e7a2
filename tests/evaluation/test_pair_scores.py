"""PSNR, SSIM and LPIPS of clips against their pairs: torchmetrics' figures, bounded batches, what is refused."""

from pathlib import Path

import pytest
import torch
from random_networks import lpips_weights
from safetensors.torch import save_file
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.pairs import scores as pair_scores
from latentvid.evaluation.pairs.scores import PAIR_SCORES, FidelityRows, LpipsRows
from latentvid.evaluation.rows import Clip

CPU = torch.device("cpu")
SCORES = {score.name: score for score in PAIR_SCORES}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "lpips").mkdir()
    save_file(lpips_weights("alex"), folder / "lpips" / "alex.safetensors")
    return folder


def clip(frames: int = 5, height: int = 40, width: int = 48, noise: int = 30) -> Clip:
    pair = torch.randint(0, 200, (frames, height, width, 3), dtype=torch.uint8)
    return Clip(pair + torch.randint(0, noise, pair.shape, dtype=torch.uint8), pair=pair, name="a.mp4")


def pictures(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.movedim(-1, 1).float()


def test_psnr_and_ssim_are_torchmetrics_and_every_clip_counts_once():
    clips = [clip(noise=10), clip(frames=2, noise=50)]
    rows = [FidelityRows(None, CPU)(each) for each in clips]
    pairs = [(pictures(each.pixels), pictures(each.pair)) for each in clips]
    psnr = [float(peak_signal_noise_ratio(a, b, data_range=255.0)) for a, b in pairs]
    ssim = [float(structural_similarity_index_measure(a, b, data_range=255.0)) for a, b in pairs]
    assert SCORES["psnr"](rows) == pytest.approx(sum(psnr) / 2, rel=1e-5)
    assert SCORES["ssim"](rows) == pytest.approx(sum(ssim) / 2, rel=1e-5)
    assert SCORES["psnr"].of_clip(rows[0]) == pytest.approx(psnr[0], rel=1e-5)


def test_lpips_is_that_of_each_frame_however_many_go_together(weights, monkeypatch):
    extractor, given = LpipsRows(weights, CPU), clip()
    a, b = (pictures(pixels) / 127.5 - 1 for pixels in (given.pixels, given.pair))
    expected = extractor.network.network(a, b).flatten()  # torchmetrics'
    together = []
    forward = extractor.network.network.forward
    monkeypatch.setattr(pair_scores, "LPIPS_PIXELS", 2 * 40 * 48)
    monkeypatch.setattr(extractor.network.network, "forward", lambda x, y: together.append(len(x)) or forward(x, y))
    rows = extractor(given)
    assert together == [2, 2, 1] and rows.shape == (5, 1)
    torch.testing.assert_close(rows[:, 0], expected, rtol=1e-4, atol=1e-6)
    assert SCORES["lpips"]([rows]) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_other_weights_are_another_fingerprint(weights, tmp_path):
    (tmp_path / "lpips").mkdir()
    save_file(lpips_weights("alex"), tmp_path / "lpips" / "alex.safetensors")
    first, again, other = (LpipsRows(folder, CPU).fingerprint for folder in (weights, weights, tmp_path))
    assert first == again != other


def test_what_cannot_be_compared_is_refused(weights, tmp_path, monkeypatch):
    lpips, fidelity = LpipsRows(weights, CPU), FidelityRows(None, CPU)
    unlike = Clip(clip().pixels, pair=clip(frames=4).pixels, name="a.mp4")
    for extractor in (lpips, fidelity):
        with pytest.raises(ClipError, match=r"a\.mp4: 5 frames of 40 x 48 pixels, but its pair has 4 frames"):
            extractor(unlike)
        with pytest.raises(ClipError, match=r"a\.mp4: .* 8 x 48") as error:
            extractor(clip(height=8))
        assert error.value.reason == "too-small"
        with pytest.raises(ValueError, match="no pair"):
            extractor(Clip(clip().pixels))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"WEIGHTS/lpips/alex\.safetensors"):
        LpipsRows(None, CPU)
    with pytest.raises(ValueError, match="no clips"):
        SCORES["psnr"]([])
