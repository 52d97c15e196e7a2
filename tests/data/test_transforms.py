"""Legal sizes, exact pixels, and crops that fall where they should."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latentvid.data.transforms import fit, from_uint8, legal_frames, legal_size, resize_and_crop, to_uint8
from latentvid.errors import UserError

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@quick
@given(st.integers(1, 1000), st.integers(1, 16))
def test_legal_frames(frames, stride):
    legal = legal_frames(frames, stride)
    assert legal <= frames < legal + stride and (legal - 1) % stride == 0


@quick
@given(st.integers(8, 2200), st.integers(8, 2200), st.sampled_from([8, 16, 32]), st.integers(64, 10**6) | st.none())
def test_legal_size(height, width, stride, max_area):
    assume(min(height, width) >= stride and (max_area is None or max_area >= stride * stride))
    h, w = legal_size(height, width, stride=stride, max_area=max_area)
    assert h % stride == w % stride == 0
    assert stride <= h <= height and stride <= w <= width
    assert max_area is None or h * w <= max_area
    assert legal_size(width, height, stride=stride, max_area=max_area) == (w, h)
    if min(h, w) >= 8 * stride:  # with room to choose from, the shape is kept and the area used
        assert abs(math.log(h * width / (w * height))) < 0.13
        assert h * w > 0.7 * min(height * width, max_area or math.inf)


def test_legal_size_known_values():
    assert legal_size(720, 1280, stride=16, max_area=256 * 256) == (192, 336)
    assert legal_size(512, 512, stride=32, max_area=None) == (512, 512)
    assert legal_size(40, 24, stride=8, max_area=32 * 32) == (40, 24)  # 960 is within 1024: as it is
    with pytest.raises(UserError, match="smaller than one stride"):
        legal_size(15, 64, stride=16, max_area=None)
    with pytest.raises(UserError, match="raise it to at least 256"):
        legal_size(64, 64, stride=16, max_area=255)


@quick
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_a_size_that_fits_is_bit_exact(frames, height, width, seed):
    clip = torch.randint(0, 256, (frames, height, width, 3), generator=torch.manual_seed(seed)).to(torch.uint8)
    video = resize_and_crop(clip, height, width)
    assert video.shape == (3, frames, height, width) and video.dtype == torch.float32 and video.is_contiguous()
    assert video.min() >= -1 and video.max() <= 1
    assert torch.equal(to_uint8(video), clip)
    assert torch.equal(fit(clip, height, width), clip) and torch.equal(from_uint8(clip[None])[0], video)
    wide = torch.cat([clip, clip.flip(2)], 2)  # covers already: only cut
    assert torch.equal(to_uint8(resize_and_crop(wide, height, width, crop=(0.3, 0.0))), clip)
    assert torch.equal(to_uint8(resize_and_crop(wide, height, width, crop=(0.3, 1.0))), clip.flip(2))


@pytest.mark.parametrize("native", [(90, 160), (160, 90), (37, 53), (8, 200)])
def test_resize_covers_and_keeps_proportions(native):
    height, width = 32, 48
    y, x = (torch.arange(native[0])[:, None] + 0.5) / native[0], (torch.arange(native[1])[None] + 0.5) / native[1]
    clip = torch.stack([255 * y + 0 * x, 255 * x + 0 * y, 0 * x * y], -1).round().to(torch.uint8)[None]
    for crop in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        video = resize_and_crop(clip, height, width, crop=crop)
        assert video.shape == (3, 1, height, width)
        scale = max(height / native[0], width / native[1])
        shown_y, shown_x = height / (native[0] * scale), width / (native[1] * scale)  # the fractions of the picture
        centre = (video[:2, 0, height // 2, width // 2] + 1) / 2
        expected = torch.tensor(
            [crop[0] * (1 - shown_y) + shown_y / 2, crop[1] * (1 - shown_x) + shown_x / 2], dtype=torch.float32
        )
        assert torch.allclose(centre, expected, atol=0.04), (crop, centre, expected)


def test_shrinking_is_antialiased():
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8)[None, None, :, None].expand(1, 256, 256, 3)
    assert resize_and_crop(stripes, 64, 64)[..., 4:-4].abs().max() < 0.02


def test_resizing_is_bicubic():
    """As torch has it in floating point, but for rounding between the two axes; bilinear is far off."""
    clip = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8)
    found = fit(clip, 24, 36).float()
    for mode, near in (("bicubic", True), ("bilinear", False)):
        want = F.interpolate(clip.movedim(3, 1).float(), (24, 36), mode=mode, antialias=True).movedim(1, 3)
        assert ((found - want.clamp(0, 255)).abs().mean() < 1) == near


def test_to_uint8_clips_and_bad_input_is_named():
    video = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 1, 1, 5)
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match=r"uint8 \[F,H,W,3\]"):
        resize_and_crop(torch.zeros(1, 4, 4, 3), 4, 4)
    with pytest.raises(ValueError, match="fractions"):
        resize_and_crop(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 2, 2, crop=(0.5, 1.5))
    with pytest.raises(ValueError, match="at least 1"):
        legal_frames(0)
