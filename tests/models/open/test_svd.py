"""Stable Video Diffusion's U-Net over packs: equal shapes as a batch, each sample as the class makes it alone."""

import pytest
import torch
from open_models import lively
from open_svd import svd, unet, vae
from PIL import Image

from latentvid.errors import UserError
from latentvid.models.conditions import NO_MOTION, Conditions
from latentvid.models.interchange import as_vae
from latentvid.models.open import packed
from latentvid.models.open.image import EmbeddingReader
from latentvid.packing import Packed, patchify, unpatchify
from latentvid.text.reader import NoText

GRIDS = [(3, 4, 6), (2, 4, 4), (3, 4, 6)]
TOLD = torch.tensor([-1.2, 0.4, 1.6])  # log(sigma) / 4
FPS, MOTION, NOISE = (
    torch.tensor([8.0, 0.0, 25.0]),
    torch.tensor([127.0, 30.0, NO_MOTION]),
    torch.tensor([0.02, 0.3, 0.0]),
)
NUMBERS = torch.tensor([[7.0, 127.0, 0.02], [6.0, 30.0, 0.3], [24.0, 127.0, 0.0]])  # none is 7 a second, and 127


def pack(model):
    """A pack's inputs, and its latents [4,f,h,w] and image's latents."""
    latents = [torch.randn(4, *grid) for grid in GRIDS]
    images = [torch.randn(4, 1, *grid[1:]).expand(-1, grid[0], -1, -1) for grid in GRIDS]
    (tokens, grids), (channels, _) = patchify(latents, model.patch), patchify(images, model.patch)
    layout = Packed.of(grids)
    given = Conditions(channels=channels, image=torch.randn(3, 1, 16), motion=MOTION, image_noise=NOISE)
    level = TOLD.index_select(0, layout.frame_segment)
    return (tokens, level, torch.zeros(3, 1), layout, Packed.of_lengths([1] * 3)), given, latents, images


@torch.no_grad()
def test_a_pack_equals_each_sample_alone():
    model = packed(lively(unet()))
    arguments, given, latents, images = pack(model)
    seen = []
    model.raw.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    out = unpatchify(model(*arguments, fps=FPS, conditions=given), arguments[3], model.patch)
    assert sorted(seen) == [1, 2]
    for i, got in enumerate(out):
        frames = torch.cat([latents[i], images[i]]).transpose(0, 1)[None]  # [1,f,8,h,w]
        want = model.raw(frames, TOLD[i], given.image[i][None], NUMBERS[i][None], return_dict=False)[0][0]
        torch.testing.assert_close(got, want.transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_it_makes_nothing_of_no_picture_and_none_is_zeros():
    model = packed(lively(unet()))
    arguments, given, *_ = pack(model)
    with pytest.raises(UserError, match="makes videos from pictures alone"):
        model(*arguments, conditions=Conditions(channels=given.channels))
    without = model.without(given)
    assert not without.image.any() and not without.channels.any() and without.motion is given.motion


@torch.no_grad()
def test_the_autoencoder_encodes_frame_by_frame_and_decodes_clips():
    torch.manual_seed(0)
    adapter, clips = as_vae(vae().eval()), torch.rand(2, 3, 3, 8, 12) * 2 - 1
    assert (adapter.temporal_stride, adapter.spatial_stride, adapter.latent_channels) == (1, 2, 4)
    found = adapter.encode(clips).latent_dist
    for i, clip in enumerate(clips):
        for frame in range(3):
            want = adapter.raw.encode(clip[:, frame][None]).latent_dist
            torch.testing.assert_close(found.mean[i, :, frame], want.mean[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.std[i, :, frame], want.std[0], rtol=1e-4, atol=1e-5)
        want = adapter.raw.decode(found.mean[i].transpose(0, 1), num_frames=3).sample.transpose(0, 1)
        torch.testing.assert_close(adapter.decode(found.mean[i : i + 1]).sample[0], want, rtol=1e-4, atol=1e-5)
    z = torch.randn(1, 4, 2, 4, 6)
    torch.testing.assert_close(adapter.normalise(z), z * 0.18215)
    out, mean, _ = adapter(clips, torch.zeros_like(found.mean))  # as a decoder is trained
    torch.testing.assert_close(out, adapter.decode(mean).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_picture_is_read_as_the_published_pipeline_reads_it():
    pipe = svd()
    reader = EmbeddingReader(pipe.image_encoder, pipe.feature_extractor, None)
    picture = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    want = pipe._encode_image(Image.fromarray(picture.numpy()), "cpu", 1, False)[0]
    torch.testing.assert_close(reader.read([picture], torch.device("cpu")), want, rtol=1e-4, atol=1e-5)


def test_a_reader_of_no_text_gives_one_state_for_any_prompt():
    reader = NoText()
    found = reader.encode(["a", "b c"])
    assert found.lengths == [1, 1] and not found.states.any() and reader.dim == 1 and reader.networks == ()
    assert [fit.tokens for fit in reader.fits(["x" * 1000])] == [1]
