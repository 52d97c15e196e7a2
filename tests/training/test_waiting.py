"""A run that waits for its data says what was measured and what to do."""

import torch

from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.video.writing import write_video
from latentvid.training.feed.waiting import advice, measure


def clips(folder, side: int, max_area: int | None) -> ClipSource:
    write_video(folder / "x.mp4", torch.randint(0, 255, (5, side, side, 3), dtype=torch.uint8), 8.0)
    sample = Sample(str(folder / "x.mp4"), "noise", 5, 8.0, side, side)
    return ClipSource(Manifest.of("test", [sample]), Transform(spatial_stride=8, temporal_stride=4, max_area=max_area))


def test_what_scaling_the_files_once_would_bring_is_measured_on_one_of_them(tmp_path):
    source = clips(tmp_path, 256, 64 * 64)
    times = iter([0.0, 0.3, 1.0, 1.02])
    found = measure(source, lambda: next(times))
    assert (found.size, found.frames, round(found.now, 3), round(found.then, 3)) == ((64, 64), 5, 0.3, 0.02)
    said = advice(0.57, 0, source)
    assert said.startswith("57% of the time went into waiting for data, with data.workers=0: raise it")
    assert "5 frames of x.mp4 (256x256) take " in said and "from a copy of 64x64" in said and "scale=64:64" in said


def test_nothing_is_said_where_there_is_nothing_to_gain(tmp_path):
    source = clips(tmp_path, 64, None)
    assert advice(0.05, 0, source) == ""
    assert measure(source) is None and "copy" not in advice(0.5, 2, source)
    (tmp_path / "x.mp4").unlink()
    assert measure(clips_of_gone(tmp_path)) is None
    assert advice(0.5, 2, None).endswith("as far as there are cores")  # latents


def clips_of_gone(folder) -> ClipSource:
    sample = Sample(str(folder / "gone.mp4"), "c", 5, 8.0, 512, 512)
    return ClipSource(Manifest.of("test", [sample]), Transform(spatial_stride=8, temporal_stride=4, max_area=64 * 64))
