"""The critic takes every size, keeps samples apart, and learns apart from the autoencoder."""

import pytest
import torch
from torch import nn

from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.discriminator import PatchCritic, VaeWithCritic

WIDTHS = (8, 12, 16)


def critic() -> PatchCritic:
    return PatchCritic(widths=WIDTHS, time_strides=(1, 2, 2))


@pytest.mark.parametrize(
    ("shape", "scores"),
    [((1, 8, 8), (1, 1, 1)), ((1, 1, 1), (1, 1, 1)), ((17, 24, 40), (5, 3, 5)), ((6, 9, 31), (2, 2, 4))],
)
def test_every_size_of_clip_or_image_has_scores(shape, scores):
    out = critic()(torch.randn(2, 3, *shape))
    assert tuple(out.shape) == (2, *scores) and out.isfinite().all()


def test_neither_samples_nor_distant_patches_change_a_score():
    net, clips = critic(), torch.randn(3, 3, 9, 64, 32)
    together = net(clips)
    alone = torch.cat([net(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    clips[:, :, :, 40:] = 0.0  # beyond the reach of the topmost patch
    assert torch.equal(net(clips)[:, :, 0], together[:, :, 0])
    assert not torch.equal(net(clips)[:, :, -1], together[:, :, -1])


def test_levels_need_matching_lists():
    with pytest.raises(ValueError, match="one entry a level, got 2, 4"):
        PatchCritic(widths=(8, 8))


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [p.grad for p in module.parameters()]


def test_the_critics_scores_move_the_critic_alone():
    both = VaeWithCritic(CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)), critic())
    video, noise = torch.randn(2, 3, 5, 8, 8), torch.randn(2, 4, 2, 2, 2)
    reconstruction, mean, logvar, cut, *scores = both(video, noise, True, 0.1 * torch.randn_like(video))
    assert torch.equal(cut, reconstruction) and cut.is_leaf and [len(s) for s in scores] == [2, 2, 2]
    assert [torch.equal(a, b) for a, b in zip((reconstruction, mean, logvar), both.vae(video, noise), strict=True)]
    sum(score.sum() for score in scores).backward()
    assert all(grad is None for grad in gradients(both.vae))
    assert all(grad.abs().sum() > 0 for grad in gradients(both.critic))


def test_an_idle_critic_gets_gradients_of_zero():
    both = VaeWithCritic(CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)), critic())
    reconstruction, _, _, idle = both(torch.randn(1, 3, 1, 8, 8), torch.randn(1, 4, 1, 2, 2))
    assert idle == 0
    (reconstruction.mean() + idle).backward()
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients(both.critic))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("in_channels", [1, 3, 12])
def test_bf16_is_fp32_but_for_its_rounding(frames, in_channels):
    """Some processors' bf16 kernels are wrong for one frame that is padded in time."""
    torch.manual_seed(0)
    critic = PatchCritic(in_channels, widths=(8, 8), time_strides=(1, 2))
    for conv in (*critic.convs, critic.score):
        x = torch.randn(1, conv.in_channels, frames, 28, 20)
        plain = torch.nn.functional.conv3d(x, conv.weight, conv.bias, conv.stride, padding=1)
        assert torch.allclose(conv(x), plain, atol=1e-4)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                half = conv(x).float()
            assert (half - plain).abs().max() < 0.05 * plain.abs().max()
