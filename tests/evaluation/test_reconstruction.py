"""Clips through the autoencoder and back."""

import pytest
import torch

from latentvid.errors import UserError
from latentvid.evaluation.pairs.reconstruction import evaluate, reconstruct
from latentvid.models.autoencoder import CausalVideoAutoencoder


@pytest.fixture(scope="module")
def vae() -> CausalVideoAutoencoder:
    torch.manual_seed(0)
    return CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)).eval()


@torch.no_grad()
def test_reconstruct_takes_the_mode(vae):
    video = torch.rand(3, 17, 16, 12) * 2 - 1
    whole = reconstruct(vae, video)
    assert whole.shape == video.shape and whole.abs().max() <= 1
    mean = vae.encode(video[None]).latent_dist.mean
    torch.testing.assert_close(whole, vae.decode(mean).sample[0].clamp(-1, 1))
    with pytest.raises(UserError, match="16 frames"):
        reconstruct(vae, video[:, :16])


def test_evaluate_averages_clips_of_any_shape(vae):
    videos = [torch.rand(3, 1, 12, 16) * 2 - 1, torch.full((3, 9, 16, 12), -1.0)]
    found = evaluate(vae, iter(videos))
    alone = [evaluate(vae, [video]) for video in videos]
    assert found["count"] == 2 and found["per_clip"] == [one["per_clip"][0] for one in alone]
    assert found["psnr"] == pytest.approx((alone[0]["psnr"] + alone[1]["psnr"]) / 2)
    assert found["ssim"] == pytest.approx((alone[0]["ssim"] + alone[1]["ssim"]) / 2)
    with pytest.raises(UserError, match="no clip"):
        evaluate(vae, [])
