"""Windows of a manifest: all of long clips, random choices by sample number, and bad files replaced in place."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest import Manifest, Sample, read_manifest
from latentvid.data.transforms import hflip, resize_and_crop
from latentvid.data.writing import write_video
from latentvid.errors import UserError

PLAIN = Transform(spatial_stride=8, temporal_stride=4)


def make_clip(path: Path, frames: int, height: int = 32, width: int = 32) -> Path:
    """A clip whose every frame is one grey, four levels brighter than the one before it."""
    grey = torch.arange(frames, dtype=torch.uint8)[:, None, None, None] * 4 + 20
    write_video(path, grey.expand(frames, height, width, 3).contiguous(), 8.0, crf=0)
    return path


def listing(*samples: Sample, dropped: tuple[tuple[str, str], ...] = ()) -> Manifest:
    return Manifest("test", list(samples), list(dropped))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six 9-frame clips (0..5) and two images (6, 7), of one size."""
    for i in range(6):
        make_clip(tmp_path / f"{i}.mp4", 9)
    for i in (6, 7):
        write_video(tmp_path / f"{i}.png", torch.full((1, 32, 32, 3), 10 * i, dtype=torch.uint8), 1.0)
    return tmp_path


def source(folder: Path, transform: Transform = PLAIN) -> ClipSource:
    frames = [9] * 6 + [1] * 2
    samples = (
        Sample(str(folder / f"{i}.{'mp4' if n > 1 else 'png'}"), f"clip {i}", n, 8.0 if n > 1 else 0.0, 32, 32)
        for i, n in enumerate(frames)
    )
    return ClipSource(listing(*samples), transform)


@pytest.mark.parametrize("frames", [1, 4, 5, 16, 17, 18, 33, 34, 40, 51])
def test_windows_follow_each_other_through_the_clip(tmp_path, frames):
    sample = Sample("x.mp4", "long", frames, 8.0, 32, 48)
    windows = ClipSource(listing(sample), PLAIN).windows
    length = windows[0].frames
    assert length % 4 == 1 and length <= min(frames, 17)
    assert [w.start for w in windows] == [n * length for n in range(len(windows))]
    assert frames - length < windows[-1].start + length <= frames  # less than a window is left over
    assert {(w.height, w.width) for w in windows} == {(32, 48)}


def test_windows_hold_their_own_frames(tmp_path):
    make_clip(tmp_path / "long.mp4", 35)
    clips = ClipSource(listing(Sample(str(tmp_path / "long.mp4"), "long", 35, 8.0, 32, 32)), PLAIN)
    assert len(clips) == 2
    for n, start in enumerate((0, 17)):
        levels = (clips.read(n).mean(dim=(0, 2, 3)) + 1) * 127.5
        torch.testing.assert_close(levels, 20.0 + 4.0 * torch.arange(start, start + 17), atol=1.5, rtol=0)


def test_sizes_are_legal_and_too_small_ones_listed():
    samples = (Sample(f"{h}x{w}.png", "c", 1, 0.0, h, w) for h, w in ((37, 50), (6, 90), (64, 64)))
    manifest = listing(*samples, dropped=(("gone.mp4", "missing"),))
    clips = ClipSource(manifest, replace(PLAIN, max_area=1024))
    assert all(h % 8 == 0 and w % 8 == 0 and h * w <= 1024 for _, h, w in clips.shapes)
    assert clips.dropped == [("gone.mp4", "missing"), ("6x90.png", "smaller-than-one-stride")]
    assert [clips.caption(i) for i in range(len(clips))] == ["c", "c"]


def test_nothing_left_is_said():
    with pytest.raises(UserError, match="no clip is left to train on"):
        ClipSource(listing(Sample("a.png", "c", 1, 0.0, 4, 4)), PLAIN)


def test_crop_and_flip_belong_to_the_sample_number(folder):
    """The same number gives the same pixels in any order and from any source; other numbers give other choices."""
    transform = replace(PLAIN, crop=16, flip=True)
    picture = torch.arange(32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(1, 32, 32, 1)
    write_video(folder / "6.png", picture.expand(1, 32, 32, 3).contiguous(), 1.0)
    first = source(folder, transform)
    assert first.shapes[6] == (1, 16, 16) and first.read(6).shape == (3, 1, 32, 32)
    numbers = list(range(24))
    forward = {n: first.load(6, 3, n).video for n in numbers}
    second = source(folder, transform)
    backward = {n: second.load(6, 3, n).video for n in reversed(numbers)}
    assert all(torch.equal(forward[n], backward[n]) for n in numbers)
    assert all(video.shape == (3, 1, 16, 16) and video.is_contiguous() for video in forward.values())
    assert len({v.numpy().tobytes() for v in forward.values()}) > 15
    assert not torch.equal(first.load(6, 4, 0).video, forward[0])  # nor is it the seed alone

    whole = resize_and_crop(picture.expand(1, 32, 32, 3).contiguous(), 32, 32)
    windows = whole.unfold(2, 16, 1).unfold(3, 16, 1)  # [3,1,17,17,16,16]
    mirrored = 0
    for video in forward.values():
        at = [(windows == v[:, :, None, None]).all(dim=(0, 1, 4, 5)).any() for v in (video, hflip(video))]
        assert any(at), "a crop is a square of the picture, or its mirror image"
        mirrored += bool(at[1])
    assert 4 < mirrored < 20


def test_without_crop_and_flip_the_window_is_whole(folder):
    clips = source(folder)
    clip = clips.load(2, seed=0, number=11)
    assert torch.equal(clip.video, clips.read(2)) and (clip.caption, clip.index) == ("clip 2", 2)


def test_a_truncated_clip_is_replaced_by_the_next_of_its_shape(folder, caplog):
    good = source(folder)
    expected = good.load(3, 0, 7).video
    cut_short(folder / "2.mp4")
    (folder / "6.png").write_bytes(b"")
    clips = source(folder)
    with caplog.at_level(logging.WARNING):
        replaced = clips.load(2, 0, 7)
        image = clips.load(6, 0, 8)
        clips.load(2, 0, 9)
        clips.load(1, 0, 10)
    assert (replaced.index, replaced.caption) == (3, "clip 3") and torch.equal(replaced.video, expected)
    assert image.index == 7 and image.video.shape == (3, 1, 32, 32)
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2 and "2.mp4" in messages[0] and "6.png" in messages[1]  # each once, by name
    shuffled = source(folder)  # who met which bad file first does not matter
    shuffled.load(6, 0, 8)
    assert shuffled.load(2, 0, 7).index == 3


def test_the_replacement_wraps_around(folder):
    cut_short(folder / "5.mp4")
    assert source(folder).load(5, 0, 0).index == 0


def test_no_good_clip_of_a_shape_is_an_error(folder):
    for name in ("6.png", "7.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no readable clip of shape \(1, 32, 32\) is left"):
        source(folder).load(6, 0, 0)


def test_packs_keep_their_shape_with_bad_clips(digits_data, tmp_path, caplog):
    """A pack of the VAE's task with a cut file among good ones has the plan's tokens."""
    from latentvid.data.plan import Plan
    from latentvid.training.config import VaeConfig
    from latentvid.training.load import load_config
    from latentvid.training.vae_task import VaeTask

    shutil.copytree(digits_data, tmp_path / "data")
    data = tmp_path / "data"
    names = [s.path for s in read_manifest(data / "train.jsonl").samples if s.frames == 17]
    cut_short(Path(names[0]))
    config = load_config(
        VaeConfig, None, [f"run.dir={tmp_path}", f"data.manifest={data / 'train.jsonl'}", "model={widths: [8, 8, 8]}"]
    )
    task = VaeTask(config, torch.device("cpu"))
    step = Plan(task.tokens, budget=sum(task.tokens), packs=1, seed=0).next()  # an epoch in one pack
    pack = task.make_pack(step.packs[0])
    assert len([r for r in caplog.records if names[0] in r.getMessage()]) == 1
    assert sorted(pack.tokens) == sorted(task.tokens[draw.index] for draw in step.packs[0])
    assert sum(pack.tokens) == step.tokens and all(g.video.isfinite().all() for g in pack.groups)
