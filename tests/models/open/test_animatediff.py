"""Stable Diffusion's U-Net over packs of clips, alone and with motion modules, beside diffusers' own classes."""

import pytest
import torch
from diffusers import UNetMotionModel
from open_animatediff import adapter, stable_diffusion
from open_models import check_packed_equals_alone, lively, run_packed, samples

from latentvid.errors import UserError
from latentvid.models.diffusers_vae import ImageVae
from latentvid.models.interchange import as_vae
from latentvid.models.open import packed
from latentvid.models.open.animatediff import new_adapter, train_motion_alone, with_motion

GRIDS = [(3, 4, 4), (1, 6, 4), (3, 4, 4)]
WORDS = [7, 7, 7]


def made():
    return samples(4, (1, 1, 1), 12, GRIDS, WORDS, [0.9, 0.25, 0.5])


def alone(raw, s):
    frames, level = s.latent.shape[1], (1000 * s.level - 1)[None]
    text = s.text[None].repeat_interleave(frames, 0)  # of each frame
    if isinstance(raw, UNetMotionModel):
        return raw(s.latent[None], level, text, return_dict=False)[0][0]
    return raw(s.latent.transpose(0, 1), level.expand(frames), text, return_dict=False)[0].transpose(0, 1)


def test_frames_are_pictures_of_their_own():
    check_packed_equals_alone(stable_diffusion().unet, alone, made())


def test_a_pack_with_motion_equals_each_clip_alone():
    raw = UNetMotionModel.from_unet2d(lively(stable_diffusion().unet), adapter())
    check_packed_equals_alone(raw, alone, made(), change=lambda model: model.enable_gradient_checkpointing())


def test_new_motion_changes_nothing_at_first_and_alone_is_trained():
    image = packed(lively(stable_diffusion().unet))
    want = run_packed(image, made(), image.patch, None)
    model = with_motion(image, new_adapter(image, {"motion_num_attention_heads": 2, "motion_max_seq_length": 3}))
    for got, expected in zip(run_packed(model, made(), model.patch, None), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))
    train_motion_alone(model.raw)
    trained = [name for name, p in model.raw.named_parameters() if p.requires_grad]
    assert trained and all("motion_modules" in name for name in trained)
    with pytest.raises(UserError, match="4 frames: animatediff has positions for at most 3"):
        run_packed(model, samples(4, (1, 1, 1), 12, [(4, 4, 4)], [7], [0.5]), model.patch, None)


def test_what_does_not_fit_is_refused_by_name():
    image = packed(stable_diffusion().unet)
    with pytest.raises(UserError, match=r"model\.motion\.block_out_channels is that of the U-Net"):
        new_adapter(image, {"block_out_channels": [8]})
    with pytest.raises(UserError, match=r"model\.motion: MotionAdapter: there is no argument heads"):
        new_adapter(image, {"heads": 2})
    moved = with_motion(image, adapter())
    with pytest.raises(UserError, match="has motion modules already"):
        with_motion(moved, adapter())
    other = adapter()
    other.register_to_config(block_out_channels=(8, 8))
    with pytest.raises(UserError, match=r"for levels of \(8, 8\) channels, and the U-Net has \(8, 16\)"):
        with_motion(image, other)


def test_the_autoencoder_sees_a_frame_at_a_time():
    raw = stable_diffusion().vae.eval()
    vae, video = as_vae(raw), torch.rand(2, 3, 5, 8, 12) * 2 - 1
    assert isinstance(vae, ImageVae) and (vae.temporal_stride, vae.spatial_stride) == (1, 2)
    with torch.no_grad():
        posterior = vae.encode(video).latent_dist
        frame = raw.encode(video[1, :, 3][None]).latent_dist
        torch.testing.assert_close(posterior.mean[1, :, 3], frame.mean[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(posterior.std[1, :, 3], frame.std[0], rtol=0, atol=1e-5)
        z = vae.normalise(posterior.mean)
        torch.testing.assert_close(z, posterior.mean * raw.config.scaling_factor)
        pixels = vae.decode(vae.denormalise(z)).sample
        want = raw.decode(posterior.mean[1, :, 3][None]).sample[0]
    torch.testing.assert_close(pixels[1, :, 3], want, rtol=0, atol=1e-5)
