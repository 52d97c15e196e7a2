"""Measures of frames against what they must be, and against slow references."""

import math

import numpy as np
import pytest
import torch
from curated_footage import FPS, shot, write

from latentvid.curation.measuring import (
    _blur_effect,
    _shrunk,
    blur,
    borders,
    exposure,
    flicker,
    hashed_frames,
    measured,
    measures,
    motion,
    static,
)
from latentvid.curation.probing import cut, groups, probed, segments
from latentvid.curation.settings import Segments, Shots
from latentvid.data.motion import motion_strength


def grey(seed: int, frames: int, **more: int) -> np.ndarray:
    return shot(seed, frames, **more).mean(-1).astype(np.uint8)


def slow_blur(picture: np.ndarray) -> float:
    """Crete et al. 2007, pixel by pixel."""
    found = []
    for image in (picture, picture.T):
        height, width = image.shape
        sharp = lost = 0.0
        for y in range(height):
            line = [float(image[y, min(max(x, 0), width - 1)]) for x in range(-4, width + 4)]
            soft = [sum(line[x : x + 9]) / 9 for x in range(width)]
            for x in range(1, width):
                d, s = abs(float(image[y, x]) - float(image[y, x - 1])), abs(soft[x] - soft[x - 1])
                sharp, lost = sharp + d, lost + max(0.0, d - s)
        found.append(1.0 if sharp == 0 else (sharp - lost) / sharp)
    return max(found)


def test_blur_is_that_of_the_paper_and_grows_as_a_picture_is_smoothed():
    noise = np.random.default_rng(0).uniform(0, 255, (20, 31)).astype(np.float32)
    assert _blur_effect(noise) == pytest.approx(slow_blur(noise), abs=1e-6)
    assert _blur_effect(np.full((20, 31), 7, np.float32)) == 1.0
    levels = [noise]
    for _ in range(3):
        levels.append((levels[-1] + np.roll(levels[-1], 1, 0) + np.roll(levels[-1], 1, 1)) / 3)
    found = [blur(level[None].astype(np.uint8)) for level in levels]
    assert found == sorted(found) and found[-1] > found[0] + 0.05


def test_borders_are_found_on_each_side_and_none_in_the_dark():
    inside = np.maximum(grey(1, 4), 60)
    bars = np.pad(inside, ((0, 0), (10, 6), (0, 8)), constant_values=16)
    assert borders(bars) == (11, 7, 0, 9)  # and a line more where there is a bar
    assert borders(inside) == (0, 0, 0, 0)
    bars[2, 3, 40] = 200  # a line that once shows something is no border
    assert borders(bars)[0] == 4
    assert borders(np.zeros((3, 40, 60), np.uint8)) == (0, 0, 0, 0)
    shaded = inside.copy()
    shaded[:, :10] = np.linspace(0, 31, 96, dtype=np.uint8)  # dark, but not flat
    assert borders(shaded)[0] == 0


def test_measures_are_of_what_lies_within_the_borders_and_borders_are_in_pixels_of_the_file():
    inside = np.maximum(grey(5, 9, height=64, width=64), 60)
    bars = np.pad(inside, ((0, 0), (8, 8), (0, 0)), constant_values=16)
    found, alone = measures(bars, FPS, (160, 128)), measures(inside[:, 1:-1], FPS, (124, 128))
    assert (found["border_top"], found["border_bottom"], found["border_left"], found["border_right"]) == (18, 18, 0, 0)
    assert found["border"] == pytest.approx(18 / 80)
    for name in ("brightness", "contrast", "clipped", "blur", "flicker", "static", "motion", "looks", "changes"):
        assert found[name] == alone[name], name


def test_motion_is_what_training_conditions_on_and_follows_speed_and_rate():
    slow, fast = grey(3, 9), grey(3, 9, step=3)
    pixels = np.repeat(slow[..., None], 3, -1)
    assert motion(slow, 4.0) == pytest.approx(motion_strength(torch.from_numpy(pixels), 4.0), rel=0.3)
    assert motion(fast, 4.0) > 2 * motion(slow, 4.0) > 0
    assert motion(slow, 8.0) == pytest.approx(2 * motion(slow, 4.0), rel=0.3)
    assert math.isnan(motion(slow[:1], 8.0)) and math.isnan(motion(slow, 0.0))


def test_static_flicker_and_exposure():
    still = np.repeat(grey(1, 1), 6, axis=0)
    half = still.copy()
    half[3, :36] ^= 128
    assert static(still) == 1.0 and static(half) == 0.5 and math.isnan(static(still[:1]))
    fade = np.arange(0, 60, 10, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    assert flicker(fade) == 0.0
    fade[2] += 51  # a fifth of white, in one frame of the four that have neighbours
    assert flicker(fade) == pytest.approx((20 + 10 + 10) / 4)
    found = exposure(np.concatenate([np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)]))
    assert found == {"brightness": 0.5, "contrast": 0.0, "clipped": 1.0}
    assert exposure(np.full((2, 8, 8), 51, np.uint8)) == {"brightness": 0.2, "contrast": 0.0, "clipped": 0.0}


def test_pictures_are_shrunk_by_means_of_blocks():
    picture = np.arange(2 * 12 * 18).reshape(2, 12, 18).astype(np.uint8)
    small = _shrunk(picture, 24)
    assert small.shape == (2, 4, 6)
    assert small[1, 2, 3] == round(picture[1, 6:9, 9:12].astype(float).mean())
    assert _shrunk(picture, 12 * 18) is picture


@pytest.mark.parametrize("fps", [8.0, 23.976, 30.0, 1.5])
def test_two_frames_a_second_are_hashed(fps):
    found = hashed_frames(100, fps)
    assert found[0] == 0 and found[-1] < 100
    assert all(abs(n - k * fps / 2) <= 0.5 for k, n in enumerate(found))
    assert len(found) == len({*found}) or fps < 2


def test_segments_read_together_are_measured_as_each_alone(tmp_path):
    file = write(tmp_path / "x.mp4", shot(1, 30), shot(2, 30))
    row = probed({"file": str(file), "source": "x.mp4"}) | {"cuts": [30]}
    found, _ = segments(row, Segments(min_frames=5, max_frames=13, margin=2))
    (group,) = groups(found)
    together = measured(row, group, 5000)
    assert [each["first"] for each in together] == [each["first"] for each in found] and len(found) > 3
    assert together == [measured(row, [each], 5000)[0] for each in found]


def test_shots_are_cut_where_the_picture_changes(tmp_path):
    pytest.importorskip("scenedetect")
    file = write(tmp_path / "x.mp4", shot(1, 20), shot(2, 15), shot(7, 85))
    row = probed({"file": str(file), "source": "x.mp4"})
    assert cut(row, Shots())["cuts"] == cut(row, Shots(detector="content"))["cuts"] == [20, 35]
    assert cut(row, Shots(shortest_s=2.0))["cuts"] == [20]
    assert cut(row, Shots(detector="none"))["cuts"] == []
    assert cut({**row, "frames": 1, "fps": 0.0}, Shots())["cuts"] == []
