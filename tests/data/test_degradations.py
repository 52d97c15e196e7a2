"""What makes clips worse, against slow references; the draws; the sizes that come out; what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from latentvid.data.degradations import blur, degraded, frames, h264, resize, stretched
from latentvid.data.references import shape_of
from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.data.windows import Transform
from latentvid.errors import UserError
from latentvid.references import Degradation, ReferenceColumn, Role, read_roles
from latentvid.rng import generator


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_blur_is_the_weighted_mean_written_out():
    x, deviation = noise(1, 5, 6, 3), 0.6
    reach = math.ceil(3 * deviation)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    want = np.zeros(tuple(x.shape))
    for i in range(5):
        for j in range(6):
            for a, u in enumerate(weights):
                for b, v in enumerate(weights):
                    row, column = (min(max(k, 0), n - 1) for k, n in ((i + a - reach, 5), (j + b - reach, 6)))
                    want[0, i, j] += u * v * x[0, row, column].numpy()
    assert np.abs(blur(x, deviation).numpy() - want).max() < 0.51
    assert torch.equal(blur(x, 0.0), x)


@pytest.mark.parametrize("factor", [2, 3, 1.5])
def test_resize_is_the_mean_of_the_areas(factor):
    """Of whole pixels that an area touches, as adaptive pooling takes them."""
    x = noise(2, 12, 18, 3)
    found = resize(x, factor)
    h, w = round(12 / factor), round(18 / factor)
    assert found.shape == (2, h, w, 3)
    for i in range(h):
        for j in range(w):
            rows = slice(math.floor(Fraction(i * 12, h)), math.ceil(Fraction((i + 1) * 12, h)))
            columns = slice(math.floor(Fraction(j * 18, w)), math.ceil(Fraction((j + 1) * 18, w)))
            want = x[:, rows, columns].double().mean((1, 2))
            assert (found[:, i, j].double() - want).abs().max() < 0.51


def test_coding_is_that_of_a_file(tmp_path):
    clip = stretched(noise(5, 6, 8, 3), 24, 32)
    write_video(tmp_path / "a.mp4", clip, 25.0, crf=35)
    found = h264(clip, 35.2)
    assert torch.equal(found, read_frames(tmp_path / "a.mp4")) and found.shape == clip.shape
    error = [float((h264(clip, crf).float() - clip.float()).square().mean()) for crf in (0, 20, 45)]
    assert error[0] < error[1] < error[2]
    assert h264(clip[:1, :23], 20).shape == (1, 23, 32, 3)  # an odd side


def test_frames_are_the_first_of_so_many():
    x = noise(9, 4, 4, 3)
    assert torch.equal(frames(x, 4.0), x[[0, 4, 8]]) and torch.equal(frames(x[:1], 4.0), x[:1])


def test_they_are_done_in_order_with_what_is_drawn():
    what = (
        Degradation(kind="blur", amount=(0.5, 2.0), share=0.5),
        Degradation(kind="resize", amount=(1.5, 3.0)),
        Degradation(kind="h264", amount=(10, 40), share=0.5),
    )
    clip, done = stretched(noise(3, 6, 8, 3), 24, 32), set()
    for number in range(9):
        draws = torch.rand(3, 2, generator=generator(7, number, "degrade/low"), dtype=torch.float64)
        (a, sigma), (_, factor), (b, crf) = draws.tolist()
        want = blur(clip, 0.5 + 1.5 * sigma) if a < 0.5 else clip
        want = resize(want, 1.5 + 1.5 * factor)
        want = h264(want, 10 + 30 * crf) if b < 0.5 else want
        found = degraded(clip, what, (16, 24), generator(7, number, "degrade/low"))
        assert torch.equal(found, stretched(want, 16, 24)) and found.shape == (3, 16, 24, 3)
        done.add((a < 0.5, b < 0.5))
    assert len(done) == 4


def test_the_whole_picture_is_there_whatever_the_aspect():
    x = torch.zeros(1, 8, 16, 3, dtype=torch.uint8)
    x[:, :, :2] = 255  # at the left, where a crop would cut it
    assert (stretched(x, 8, 8)[0, :, 0] > 200).all() and torch.equal(stretched(x, 8, 16), x)


def test_sizes_are_shares_of_the_clips():
    transform = Transform(spatial_stride=8, temporal_stride=4)
    role = Role(place="aligned", degrade=[{"kind": "resize", "amount": [2, 4]}, {"kind": "frames", "amount": 2}])
    assert shape_of(role, (17, 48, 64), (17, 48, 64), transform) == (9, 24, 32)
    assert shape_of(role, (17, 40, 24), (17, 40, 24), transform) == (9, 24, 16)  # in whole strides, rather more
    assert shape_of(role, (1, 48, 64), (1, 48, 64), transform) == (1, 24, 32)
    assert tuple(role.factors) == (2.0, 4.0, 2)
    with pytest.raises(UserError, match="take clips of 1 . a multiple of 8 frames"):
        shape_of(role, (13, 48, 64), (13, 48, 64), transform)


def test_roles_are_saved_and_older_ones_as_before():
    worse = [{"kind": "blur", "amount": (0.0, 1.0), "share": 0.5}, {"kind": "resize", "amount": 2}]
    role = Role(place="aligned", degrade=worse, noise=(0.0, 0.5))
    held = role.as_json()
    assert held["degrade"][1] == {"kind": "resize", "amount": [2.0, 2.0]} and held["noise"] == [0.0, 0.5]
    assert read_roles({"low": held}, "here") == {"low": role}
    assert Role(place="aligned").as_json() == {"place": "aligned", "max_area": None, "max_frames": None}


def test_what_cannot_be_is_refused():
    two = {"kind": "resize", "amount": 2}
    for words, message in [
        ({"degrade": [{"kind": "resize", "amount": 0.5}]}, "amount of resize is 0.5: a number from 1 to 16"),
        ({"degrade": [{"kind": "h264", "amount": [40, 20]}]}, "the lower one first"),
        ({"degrade": [{"kind": "frames", "amount": [2, 4]}]}, "amount of frames is one whole number"),
        ({"degrade": [two | {"share": 0.5}]}, "share of resize must be 1"),
        ({"degrade": [two, two]}, "degrade has resize more than once"),
        ({"degrade": [two], "signal": "canny"}, "degrade and signal both say"),
        ({"degrade": [two], "place": "beside"}, "degrade is of what runs along with the clip"),
        ({"degrade": [two], "max_area": 64}, "the resize of degrade says how large it is"),
        ({"noise": [0.5, 0.2], "column": "low"}, "two levels below 1, the lower one first"),
        ({"noise": 1.0, "column": "low"}, "noise"),
        ({"noise": 0.1, "place": "control", "column": "low"}, "a ControlNet reads its signal"),
        ({"degrade": [two], "column": "low"}, "one of both"),
    ]:
        with pytest.raises((ValueError, UserError), match=message):
            ReferenceColumn(**{"place": "aligned"} | words)
