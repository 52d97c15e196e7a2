"""What image-to-video models are given of an image, against diffusers' own pipelines."""

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, WanImageToVideoPipeline
from open_cogvideox import cogvideox_image
from open_wan import wan_image

from latentvid.models.interchange import as_vae
from latentvid.models.open.conditioning import (
    condition_channels,
    encode_condition,
    frame_mask,
    noised_image,
    pixels_to_encode,
)
from latentvid.rng import generator

FRAMES, SIDE = 9, 32
GRID = (3, 4, 4)


def image() -> torch.Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("last", [False, True])
def test_wan_is_given_mask_and_latents_as_its_pipeline_gives_them(last):
    pipeline: WanImageToVideoPipeline = wan_image()
    vae = as_vae(pipeline.vae.eval())
    end = -image() if last else None
    with torch.no_grad():
        _, want = pipeline.prepare_latents(
            image()[None],
            1,
            4,
            SIDE,
            SIDE,
            FRAMES,
            torch.float32,
            torch.device("cpu"),
            torch.Generator(),
            last_image=None if end is None else end[None],
        )
        latents = encode_condition("wan", vae, pixels_to_encode("wan", image(), FRAMES, end))
        given = (0, FRAMES - 1) if last else (0,)
        got = condition_channels("wan", latents, GRID, channels=4, stride=4, given=given)
    torch.testing.assert_close(got, want[0])


@pytest.mark.parametrize("inverted", [False, True])
def test_cogvideox_is_given_latents_as_its_pipeline_gives_them(inverted):
    pipeline: CogVideoXImageToVideoPipeline = cogvideox_image()
    pipeline.vae.register_to_config(invert_scale_latents=inverted)
    vae = as_vae(pipeline.vae.eval())
    with torch.no_grad():
        source = torch.Generator().manual_seed(5)
        _, want = pipeline.prepare_latents(
            image()[None], 1, 4, FRAMES, SIDE, SIDE, torch.float32, torch.device("cpu"), source
        )
        noise = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        latents = encode_condition("cogvideox", vae, pixels_to_encode("cogvideox", image(), FRAMES), noise)
        got = condition_channels("cogvideox", latents, GRID, channels=4)
    torch.testing.assert_close(got, want[0].transpose(0, 1))


def test_the_mask_of_a_channel_is_of_its_pixel_frame():
    mask = frame_mask((3, 1, 1), 4, (0, 6))
    assert mask[..., 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_model_that_takes_images_makes_videos_of_text_with_zeros():
    assert torch.equal(condition_channels("concat", None, GRID, channels=4), torch.zeros(5, *GRID))
    got = condition_channels("concat", torch.ones(4, 1, 4, 4), GRID, channels=4)
    assert (got[:, 0] == 1).all() and (got[:, 1:] == 0).all()


def test_the_noise_on_images_has_the_published_spread():
    sizes = [
        float(noised_image(torch.zeros(3, 16, 16), generator(0, n, "image-noise")).std().log()) for n in range(200)
    ]
    assert abs(sum(sizes) / 200 + 3) < 0.15
    assert 0.4 < torch.tensor(sizes).std() < 0.6
