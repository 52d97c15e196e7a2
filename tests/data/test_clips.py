"""Windows of a manifest: all of long clips, and random choices by sample number."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from clip_sources import PLAIN, listing, make_clip, source
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.clips import ClipSource, open_sources
from latentvid.data.manifest.manifest import Sample, write_manifest
from latentvid.data.transforms import legal_frames, legal_size, to_uint8
from latentvid.data.video.writing import write_video
from latentvid.data.windows import Window
from latentvid.errors import UserError


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
    assert first.load(6, 3, 0).video.shape == (3, 1, 16, 16)
    numbers = list(range(24))
    forward = {n: first.load(6, 3, n).pixels for n in numbers}
    second = source(folder, transform)
    backward = {n: second.load(6, 3, n).pixels for n in reversed(numbers)}
    assert all(torch.equal(forward[n], backward[n]) for n in numbers)
    assert all(pixels.shape == (1, 16, 16, 3) and pixels.is_contiguous() for pixels in forward.values())
    assert len({v.numpy().tobytes() for v in forward.values()}) > 15
    assert not torch.equal(first.load(6, 4, 0).pixels, forward[0])  # nor is it the seed alone

    windows = picture.expand(1, 32, 32, 3).unfold(1, 16, 1).unfold(2, 16, 1)  # [1,17,17,3,16,16]
    mirrored = 0
    for pixels in forward.values():
        tiles = [p.permute(0, 3, 1, 2)[:, None, None] for p in (pixels, pixels.flip(2))]
        at = [(windows == tile).all(dim=(0, 3, 4, 5)).any() for tile in tiles]
        assert any(at), "a crop is a square of the picture, or its mirror image"
        mirrored += bool(at[1])
    assert 4 < mirrored < 20


def test_without_crop_and_flip_the_window_is_whole(folder):
    clips = source(folder)
    clip = clips.load(2, seed=0, number=11)
    assert torch.equal(clip.video, clips.read(2)) and (clip.caption, clip.index) == ("clip 2", 2)


def grey_levels(pixels: torch.Tensor) -> list[int]:
    """The numbers of `make_clip`'s frames."""
    return ((pixels.float().mean(dim=(1, 2, 3)) - 20) / 4).round().int().tolist()


def test_a_window_moves_within_what_its_clip_has_beyond_its_windows(tmp_path):
    make_clip(tmp_path / "long.mp4", 40)  # two windows of 17, and 6 frames
    make_clip(tmp_path / "full.mp4", 17)
    samples = [Sample(str(tmp_path / f"{name}.mp4"), name, n, 8.0, 32, 32) for name, n in (("long", 40), ("full", 17))]
    clips = ClipSource(listing(*samples), PLAIN)
    firsts: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for number in range(60):
        for index in firsts:
            firsts[index].add(clips.start(index, 0, number))
    assert firsts == {0: set(range(7)), 1: set(range(17, 24)), 2: {0}}
    again = ClipSource(listing(*samples), PLAIN)
    for number in (3, 1, 2):
        shown = grey_levels(clips.load(1, 0, number).pixels)
        assert shown == [clips.start(1, 0, number) + n for n in range(17)]
        assert torch.equal(again.load(1, 0, number).pixels, clips.load(1, 0, number).pixels)
    assert grey_levels(to_uint8(clips.read(1))) == list(range(17, 34))  # as it is encoded: where it lies


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=8),
    st.integers(1, 20),
    st.sampled_from([None, 8]),
)
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
def test_windows_are_those_of_each_sample_in_turn(facts, max_frames, crop):
    transform = replace(PLAIN, max_frames=max_frames, max_area=600, crop=crop)
    samples = [Sample(f"{i}.mp4", f"clip {i}", n, 8.0 if n > 1 else 0.0, h, w) for i, (n, h, w) in enumerate(facts)]
    expected = []
    for i, (n, h, w) in enumerate(facts):
        if min(h, w) >= 8:
            size = legal_size(h, w, stride=8, max_area=600)
            length = legal_frames(min(n, max_frames), 4)
            expected += [Window(i, start, length, *size) for start in range(0, n - length + 1, length)]
    if not expected:
        return
    clips = ClipSource(listing(*samples), transform)
    assert list(clips.windows) == expected
    cut = (lambda n: n) if crop is None else (lambda n: min(n, crop))
    assert list(clips.shapes) == [(w.frames, cut(w.height), cut(w.width)) for w in expected]
    assert clips.is_image.tolist() == [facts[w.sample][0] == 1 for w in expected]
    asked = []
    clips.per_shape(lambda *shape: asked.append(shape) or 0)
    assert sorted(asked) == sorted(set(clips.shapes))  # not what was left out, and nothing twice
    assert clips.per_shape(lambda f, h, w: f * h * w).tolist() == [f * h * w for f, h, w in clips.shapes]
    assert [clips.caption(i) for i in range(len(clips))] == [f"clip {w.sample}" for w in expected]


def test_several_manifests_are_one_source(folder):
    for name, rows in (("left/a", range(2)), ("b", range(2, 8))):
        place = (folder / name).parent
        place.mkdir(exist_ok=True)
        rows = [{"path": str(folder / f"{i}.{'mp4' if i < 6 else 'png'}"), "caption": f"clip {i}"} for i in rows]
        write_manifest(folder / f"{name}.jsonl", [*rows, {"path": "gone.mp4", "caption": "x"}])
    clips = open_sources([folder / "left" / "a.jsonl", folder / "b.jsonl"], PLAIN)
    assert clips.source_of.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [clips.caption(i) for i in range(8)] == [f"clip {i}" for i in range(8)]
    assert torch.equal(clips.load(3, 0, 0).video, source(folder).read(3))
    assert clips.dropped == [(str(folder / "left" / "gone.mp4"), "missing"), (str(folder / "gone.mp4"), "missing")]
    first, its_dropped, second, *_ = clips.summary().splitlines()
    assert "left/a.jsonl: 2 windows of 2 clips and images" in first and "left/gone.mp4" in its_dropped
    assert "/b.jsonl: 6 windows of 6" in second


@pytest.mark.parametrize("crop", [None, 8])
def test_what_a_loader_process_is_sent_does_not_grow_with_the_rows(crop):
    """Texts, numbers and windows lie in shared tables: what is sent is where."""
    sent = {}
    for rows in (200, 20_000):
        samples = (Sample(f"clips/{i:08d}.mp4", "a caption", 90, 24.0, 32, 32 + 8 * (i % 2)) for i in range(rows))
        gone = [(f"gone/{i}.mp4", "missing") for i in range(rows)]
        clips = ClipSource(listing(*samples, dropped=gone), replace(PLAIN, crop=crop))
        assert len(clips) == 5 * rows
        sent[rows] = pickle.dumps(clips)
    assert len(sent[20_000]) == pytest.approx(len(sent[200]), abs=100) and len(sent[200]) < 3000
    copy = pickle.loads(sent[20_000])
    assert copy.windows[-1] == clips.windows[-1] and copy.path(5) == "clips/00000001.mp4"
    assert list(copy.shapes) == list(clips.shapes) and list(copy.samples) == list(clips.samples)
    assert copy.identity() == clips.identity()


def test_a_task_sends_its_loader_processes_no_more_for_more_rows(vae_config, digits_data, tmp_path):
    from latentvid.training.stages.vae.task import VaeTask

    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    rows = [row | {"path": str(digits_data / row["path"])} for row in rows[:20]]
    sent = []
    for times in (10, 200):
        write_manifest(tmp_path / f"{times}.jsonl", rows * times)
        task = VaeTask(vae_config(tmp_path, f"data.manifest={tmp_path / f'{times}.jsonl'}"), torch.device("cpu"))
        assert len(task.tokens) >= 20 * times
        sent.append(len(pickle.dumps(task.make_pack)))
    assert sent[1] - sent[0] < 200
