"""Sets that differ in how they were read are brought together by options or refused; what those options read."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, UserError
from latentvid.evaluation.clip_folder import list_clips, paired
from latentvid.evaluation.footage import Cut, Excerpt
from latentvid.evaluation.guards import LevelRows, unlike_levels
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.scoring import ScoringConfig, score_clips

CUT = Cut(frames=6, size=None, temporal_stride=1, spatial_stride=1)


def pictures(number: int, frames: int, height: int = 12, width: int = 16) -> torch.Tensor:
    """uint8 [F,H,W,3]: other colours in each frame, from black to white."""
    random = torch.Generator().manual_seed(number)
    colours = torch.rand(frames, 1, 1, 3, generator=random) * 200
    clip = colours + torch.rand(frames, height, width, 3, generator=random) * 55
    clip[:, 0], clip[:, 1] = 0, 255
    return clip.byte()


def write(folder: Path, clips: list[torch.Tensor], fps: float | list[float] = 10, ending: str = "gif") -> Path:
    for i, clip in enumerate(clips):
        write_video(folder / f"{i:02d}.{ending}", clip, fps[i] if isinstance(fps, list) else fps, crf=1)
    return folder


def many(first: int = 0, count: int = 6, frames: int = 6, **size: int) -> list[torch.Tensor]:
    return [pictures(first + k, frames, **size) for k in range(count)]


def twice(clips: list[torch.Tensor]) -> list[torch.Tensor]:
    return [clip.repeat_interleave(2, 0) for clip in clips]


def studio(clips: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(clip.float() * 219 / 255 + 16).round().byte() for clip in clips]


MIXED_RATES = [many(count=3) + twice(many(first=3, count=3)), [10, 10, 10, 20, 20, 20]]
PAIRS = {  # how they differ: clips, real ones (frames and rate), what is said, options that bring them together if any
    "rate": ((many(), 10), (twice(many()), 20), "--fps 10", {"fps": 10.0, "frames": 6}),
    "rates that are no multiples": ((many(), 20), (many(), 25), "--fps 20", {"fps": 20.0, "frames": 5, "max_clips": 6}),
    "rates within a set": (
        tuple(MIXED_RATES),
        (many(), 10),
        "10 to 20 frames",
        {"fps": 10.0, "frames": 6, "allow": ["repeats"]},
    ),
    "size": ((many(), 10), (many(50, height=24, width=32), 10), "--size 12 16", {"size": (12, 16)}),
    "aspect ratio": ((many(), 10), (many(50, width=12), 10), "--size 12 12", {"size": (12, 12)}),
    "length of files": ((many(frames=17), 10), (many(50, frames=24), 10), "17 frames .* 24.*--frames", {"frames": 16}),
    "length of clips": ((many(), 10), (many(50, frames=9), 10), "of 6 frames and real ones of 9", {"frames": 6}),
    "a short file": (
        (many(count=5) + many(7, 1, frames=3), 10),
        (many(50, count=5), 10),
        "3 to 6 frames.*--drop-short",
        {"frames": 6, "drop_short": True},
    ),
    "pictures and videos": ((many(frames=1), 10), (many(50, count=6), 10), "--frames 1", {"frames": 1, "max_real": 6}),
    "count": ((many(count=4), 10), (many(50, count=7), 10), "4 clips and 7 real.*--max-real 4", {"max_real": 4}),
    "range of colours": ((studio(many(count=12)), 10), (many(50, count=12), 10), "keep within the levels 16 to", None),
    "colours of 0 to 1": (([clip // 128 for clip in many()], 10), (many(50), 10), "not 0..1", None),
    "repeated files": ((many(count=5) + many(count=1), 10), (many(50), 10), r"1 copy of files within a set", None),
    "files of both sets": ((many(), 10), (many(5), 10), r"1 copy of files in both sets", None),
}


@pytest.fixture
def score(tmp_path, fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def score(made: Path, real: Path, **more):
        config = {"metrics": ["own_scores:colours"], "resamples": 0, "out": tmp_path / "out"} | more
        return score_clips(ScoringConfig(clips=made, real=real, **config))

    return score


@pytest.mark.parametrize("name", PAIRS)
def test_unequal_sets_are_brought_together_or_refused(name, score, tmp_path):
    made, real, said, options = PAIRS[name]
    ending = "mp4" if name.startswith("rate") else "gif"  # a gif holds no frame twice
    folders = write(tmp_path / "made", *made, ending), write(tmp_path / "real", *real, ending)
    with pytest.raises(UserError, match=f"^colours: .*{said}"):
        score(*folders)
    if options is None:
        score(*folders, allow=["repeats", "levels"])
        return
    scored = score(*folders, **options)
    result = scored.results["colours"]
    assert result.count == result.real_count
    if name in ("rate", "rates within a set"):  # the same frames, once they are read at one rate
        assert result.value == pytest.approx(0, abs=1e-3)


def test_what_is_allowed_is_said_and_the_rest_is_refused(score, tmp_path):
    folders = write(tmp_path / "made", many(count=4)), write(tmp_path / "real", many(50, count=6), 20)
    with pytest.raises(UserError, match="^colours: clips are at 10 .*; 4 clips and 6"):
        score(*folders)
    with pytest.raises(UserError, match="^colours: 4 clips and 6 real ones"):
        score(*folders, allow=["rate"])
    scored = score(*folders, allow=["rate", "count"])
    assert scored.results["colours"].real_count == 6
    assert "allowed: the sets may differ in rate" in scored.notes
    with pytest.raises(UserError, match="allow 'speed': sets may differ in rate, size"):
        ScoringConfig(clips=folders[0], allow=["speed"])


def test_scores_of_single_clips_have_no_floor_of_clips_unlike(score, tmp_path):
    folders = write(tmp_path / "made", many()), write(tmp_path / "real", many(50, count=8), 20)
    scored = score(*folders, metrics=["flicker"])
    assert scored.results["flicker"].floor is None
    assert any("flicker has no floor of real clips: clips are at 10 frames" in note for note in scored.notes)
    assert score(*folders, metrics=["flicker"], fps=10.0, frames=3).results["flicker"].floor is not None


def test_clips_that_cannot_be_read_leave_as_many_of_both(score, tmp_path, monkeypatch):
    folders = write(tmp_path / "made", many()), write(tmp_path / "real", many(50))
    read = Excerpt.read

    def damaged(self):
        if self.path == folders[0] / "02.gif":
            raise ClipError(self.path, "truncated", "breaks off")
        return read(self)

    monkeypatch.setattr(Excerpt, "read", damaged)
    scored = score(*folders)
    result = scored.results["colours"]
    assert result.count == result.real_count == 5
    assert "colours: 5 clips and 6 real ones could be used, 5 of each are compared" in scored.notes
    assert score(*folders, allow=["count"]).results["colours"].real_count == 6


def test_the_same_files_read_at_a_rate_and_stride(tmp_path):
    frames = pictures(0, 24)
    folder = write(tmp_path / "clips", [frames], 20)
    at = lambda **more: [item.excerpt for item in list_clips(folder, replace(CUT, **more)).items]  # noqa: E731
    native = at()[0].read()
    (slow, second) = at(fps=10.0)
    assert (slow.rate, slow.fps, slow.of, second.start) == (Fraction(10), 10.0, 13, 6)
    near = at(frames=24)[0].read()  # what the view takes: every second frame, rounded to the nearest time
    assert all(any(torch.equal(frame, other) for other in near[max(0, 2 * k - 1) : 2 * k + 2])
               for k, frame in enumerate(slow.read()))  # fmt: skip
    strided = at(stride=3)
    assert [(e.start, e.frames, e.fps, e.of) for e in strided] == [(0, 6, 20 / 3, 8)]
    assert torch.equal(strided[0].read(), near[:18:3]) and torch.equal(native, near[:6])
    assert at(fps=20.1)[0].rate is None  # one rate within 1 %
    with pytest.raises(UserError, match="20 frames a second would be shown twice to make 40"):
        at(fps=40.0)
    with pytest.raises(UserError, match="24 frames are fewer than 30"):
        at(frames=30, drop_short=True)


def test_pairs_of_another_rate_or_length_are_no_pairs(tmp_path):
    made = write(tmp_path / "made", many(count=3))
    real = write(tmp_path / "real", [pictures(0, 6), pictures(1, 6), pictures(2, 9)], [10, 20, 10])
    clips = paired(list_clips(made, CUT), real, CUT)
    assert [item.pair is not None for item in clips.items] == [True, False, False]
    reasons = " ".join(fault.reason for fault in clips.skipped)
    assert "20 frames a second, but its clip has 10: give a rate" in reasons
    assert "9 frames, but its clip has 6: say how many" in reasons
    clips = paired(list_clips(made, CUT), real, CUT, {"length", "rate"})
    assert all(item.pair is not None for item in clips.items)


def levels(low: float, high: float) -> torch.Tensor:
    return torch.tensor([[low, high]], dtype=torch.float64)


def test_levels_of_a_clip_leave_out_one_pixel_in_a_thousand():
    pixels = torch.full((2, 50, 100, 3), 100, dtype=torch.uint8)
    pixels[:, :2], pixels[:, 2:4] = 20, 200
    pixels[0, 4, :3], pixels[0, 4, 3:6] = 0, 255  # three of 10,000
    assert LevelRows()(Clip(pixels)).tolist() == [[20, 200]]


def test_a_set_within_video_levels_is_only_suspect_beside_a_full_one():
    within, full = [levels(17, 234)] * 12, [levels(0, 255)] * 12
    assert "all clips keep within" in unlike_levels(within, full)
    assert "all real clips keep within" in unlike_levels(full, within)
    assert unlike_levels(within, within) is None and unlike_levels(full, full) is None
    assert unlike_levels([levels(60, 190)] * 12, full) is None  # a set of little contrast
    assert unlike_levels(within[:2], full[:5] + [levels(20, 230)] * 5) is None  # too few to tell


def test_a_remuxed_copy_is_another_file_but_a_link_is_not(score, tmp_path):
    folders = write(tmp_path / "made", many()), write(tmp_path / "real", many(50, count=5))
    (folders[1] / "05.gif").symlink_to(folders[0] / "03.gif")
    with pytest.raises(UserError, match="03.gif is in both sets"):
        score(*folders)
    (folders[1] / "05.gif").unlink()
    shutil.copy(folders[0] / "03.gif", folders[1] / "05.gif")
    with pytest.raises(UserError, match="1 copy of files in both sets"):
        score(*folders)
