"""Segments of shots: legal lengths, one after the other, and the frames that training will read of them."""

import math

import pytest

from latentvid.curation.probing import GAP, SHORT, fitted_size, groups, segments
from latentvid.curation.settings import Segments
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.windows import Transform, cut_windows

NTSC = 30000 / 1001


def row(frames: int, fps: float, *cuts: int) -> dict:
    return {"frames": frames, "fps": fps, "cuts": list(cuts), "height": 64, "width": 64}


@pytest.mark.parametrize("fps", [8.0, NTSC, 23.976, 59.94, 12.5, 7.03125])
@pytest.mark.parametrize("rate", [None, 7.0, 24.0])
def test_training_reads_exactly_the_frames_of_each_segment(fps, rate):
    wanted = Segments(min_frames=9, max_frames=33, margin=2, fps=rate)
    made, left = segments(row(1000, fps, 40, 47, 500), wanted)
    if rate is not None and rate > fps:
        assert made == [] and [reason for _, reason in left] == ["slower-than-fps"]
        return
    samples = [Sample("x.mp4", "x", 1000, fps, 64, 64, each["start"], each["end"]) for each in made]
    transform = Transform(spatial_stride=16, temporal_stride=4, max_frames=33, fps=rate, fps_slack=0.02)
    windows, shown = cut_windows(Manifest.of("test", samples).samples, transform)
    assert not shown.reason.any()
    assert [window.frames for window in windows] == [each["length"] for each in made]  # one window a segment, whole
    if rate is None:
        assert [(w.start, w.frames) for w in windows] == [(each["first"], each["count"]) for each in made]
    lengths = {each["length"] for each in made}
    assert max(lengths) == 33 and all(length % 4 == 1 and 9 <= length <= 33 for length in lengths)


def test_segments_follow_each_other_and_keep_off_the_cuts():
    made, left = segments(row(100, 10.0, 50, 56), Segments(min_frames=5, max_frames=17, margin=1))
    assert [(each["shot"], each["first"], each["count"]) for each in made] == [
        (0, 0, 17), (0, 17, 17), (0, 34, 13), (2, 57, 17), (2, 74, 17), (2, 91, 9),
    ]  # fmt: skip
    assert left == [(0.2, "remainder"), (0.4, "short-shot")]  # frames 47, 48; 51 to 54
    assert [(each["start"], each["end"]) for each in made[:2]] == [(0.0, 1.7), (1.7, 3.4)]


def test_an_image_is_one_segment_and_a_file_of_no_rate_none():
    made, left = segments(row(1, 0.0), Segments())
    assert [(each["count"], each["start"], each["end"]) for each in made] == [(1, None, None)] and not left
    assert segments(row(40, 0.0), Segments()) == ([], [(0.0, "unknown-rate")])


def test_groups_are_read_in_one_go_and_no_longer_than_is_held():
    made = segments(row(5000, 24.0, 2000, 2000 + GAP // 2, 2200), Segments(min_frames=65, max_frames=121))[0]
    made = [each for each in made if not 3000 < each["first"] < 3000 + 2 * GAP + 121]
    found = groups(made)
    assert [each for group in found for each in group] == made and len(found) > 4
    for group in found:
        assert group[-1]["first"] + group[-1]["count"] - group[0]["first"] <= SHORT
        for before, after in zip(group, group[1:], strict=False):
            assert after["first"] - before["first"] - before["count"] <= GAP
    long = segments(row(5000, 24.0), Segments(max_frames=4001))[0]
    assert [len(group) for group in groups(long)] == [1] * len(long)


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (1080, 607), (64, 64), (20, 4000), (8, 8)])
def test_fitted_sizes_keep_the_shape(height, width):
    h, w = fitted_size(height, width, 10_000)
    assert h <= height and w <= width and h * w <= 10_000 * 1.02 or min(h, w) <= 16
    if min(h, w) > 16:
        assert math.isclose(h / w, height / width, rel_tol=0.05)
