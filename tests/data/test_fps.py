"""Windows at a rate that is asked for: the frames nearest to its times, as FFmpeg's fps filter shows them, of constant
and varying rates, of whole files and of segments."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from latentvid.data.clips import ClipSource, Transform, open_sources
from latentvid.data.manifest import facts
from latentvid.data.manifest.manifest import Manifest, Sample, read_manifest, write_manifest
from latentvid.data.transforms import to_uint8
from latentvid.data.video import reading
from latentvid.data.video.reading import probe, read_frames, read_windows
from latentvid.data.video.view import View, exact, taken
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError
from latentvid.training.stages.dit.seen import defaults_of, seen_in

COUNT = 61
PLAIN = Transform(spatial_stride=8, temporal_stride=4, max_frames=9)
NTSC = Fraction(24000, 1001)
VARYING = [*range(0, 12), *range(15, 40, 5), *range(41, 52), 53, 55, *range(58, 91)]  # at 30 a second, 6, 30, 15, 30


def pictures(count: int) -> np.ndarray:
    """uint8 [count,32,48,3]: each frame's number in base 8, as the grey levels of its left and right halves."""
    numbers = np.arange(count)
    frames = np.empty((count, 32, 48, 3), np.uint8)
    frames[:, :, :24] = (20 + 30 * (numbers // 8))[:, None, None, None]
    frames[:, :, 24:] = (20 + 30 * (numbers % 8))[:, None, None, None]
    return frames


def numbers(pixels) -> list[int]:
    digits = (np.asarray(pixels)[:, 16, [8, 40], 1].astype(float) - 20) / 30
    return (digits.round().astype(int) @ [8, 1]).tolist()


def encode(path, times, tick: Fraction, codec="libx264", options=None, form=None) -> None:
    """A file whose frame n is shown at times[n] ticks."""
    with av.open(str(path), "w", format=form) as output:
        stream = output.add_stream(codec, rate=1 / tick, options={"g": "16", "qp": "4", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = tick
        for time, pixels in zip(times, pictures(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def row(count: int, rate: Fraction, tick: Fraction, first: int = 0) -> list[int]:
    """Times of a constant rate, rounded to ticks."""
    return [first + math.floor(Fraction(n) / rate / tick + Fraction(1, 2)) for n in range(count)]


MS = Fraction(1, 1000)
FILES = {
    "varying.mp4": (VARYING, Fraction(1, 30), {"options": {"bf": "3"}}),
    "varying.mkv": (VARYING, Fraction(1, 30), {}),
    "varying.webm": (VARYING, Fraction(1, 30), {"codec": "libvpx", "options": {"lag-in-frames": "8", "b": "4M"}}),
    "ntsc.mp4": (range(COUNT), 1 / NTSC, {"options": {"bf": "3"}}),
    "29.97.mp4": (range(COUNT), Fraction(1001, 30000), {"options": {"bf": "2"}}),
    "29.97.ts": (range(COUNT), Fraction(1001, 30000), {"options": {"bf": "2"}}),
    "60.mp4": (range(COUNT), Fraction(1, 60), {}),
    "60_in_ms.mkv": (row(COUNT, Fraction(60), MS), MS, {"options": {"bf": "3"}}),
    "late.mp4": (row(COUNT, Fraction(25), Fraction(1, 25), 40), Fraction(1, 25), {}),
    "mpeg4.avi": (range(COUNT), Fraction(1, 30), {"codec": "mpeg4", "options": {"b": "20M", "qmin": "1", "qmax": "1"}}),
}
RATES = (Fraction(24), NTSC, Fraction(12), Fraction(9), Fraction(50))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    for name, (times, tick, how) in FILES.items():
        encode(folder / name, times, tick, **how)
    return folder


def nearest(times, tick: Fraction, rate: Fraction) -> list[int]:
    """The slow, exact reference: of each time n / rate since the first frame, the last frame whose time, rounded to
    that row (halves up), is not after it."""
    places = [math.floor((time - times[0]) * tick * rate + Fraction(1, 2)) for time in times]
    return [max(k for k, place in enumerate(places) if place <= n) for n in range(places[-1] + 1)]


def stored_times(path) -> tuple[list[int], Fraction]:
    """As the container has them, which may round."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts for frame in container.decode(stream)], stream.time_base


@pytest.mark.parametrize("name", FILES)
def test_the_frames_at_the_asked_times_are_the_nearest(files, name):
    times, tick = stored_times(files / name)
    for rate in RATES:
        expected = nearest(times, tick, rate)
        whole = read_frames(files / name, view=View(rate))
        assert numbers(whole)[: len(expected)] == expected and len(whole) - len(expected) in (0, 1, 2), rate
        starts = [len(whole) - 5, 1, len(whole) // 3]
        found = read_windows(files / name, starts, 5, lambda _, pixels: pixels, view=View(rate))
        for part, start in zip(found, starts, strict=True):
            assert torch.equal(part, whole[start : start + 5]), (rate, start)
        info = probe(files / name)
        assert abs(taken(info.frames, exact(info.fps), rate) - len(whole)) <= 1


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("name", FILES)
def test_the_frames_are_those_of_the_ffmpeg_program(files, name, tmp_path):
    for rate in RATES[:3]:
        how = ["-vf", f"setpts=PTS-STARTPTS,fps=fps={rate}:round=near", "-fps_mode", "passthrough"]
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        command = ["ffmpeg", "-v", "error", "-i", str(files / name), *how, *raw]
        made = subprocess.run(command, capture_output=True, check=True).stdout
        expected = numbers(np.frombuffer(made, np.uint8).reshape(-1, 32, 48, 3))
        found = numbers(read_frames(files / name, view=View(rate)))
        count = min(len(found), len(expected))
        assert found[:count] == expected[:count] and abs(len(found) - len(expected)) <= 1, rate


# --- windows of manifests ---------------------------------------------------------------------------------------------


def listed(folder, *rows: dict) -> Manifest:
    """Rows of a manifest, whose facts are found by opening the files."""
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps({"caption": f"clip {n}"} | row) + "\n" for n, row in enumerate(rows)))
    return read_manifest(table)


@pytest.fixture
def mixed(tmp_path):
    """Clips of two seconds of 12, 23.976, 24, 30 and 60 frames, one of varying rate, and an image."""
    rates = {"12": Fraction(12), "23": NTSC, "24": Fraction(24), "30": Fraction(30), "60": Fraction(60)}
    for name, rate in rates.items():
        encode(tmp_path / f"{name}.mp4", range(math.ceil(2 * rate)), 1 / rate)
    encode(tmp_path / "varying.mp4", VARYING, Fraction(1, 30))
    write_video(tmp_path / "still.png", torch.zeros(1, 32, 48, 3, dtype=torch.uint8), 1.0)
    names = (*(f"{name}.mp4" for name in rates), "varying.mp4", "still.png")
    return listed(tmp_path, *({"path": name} for name in names))


def test_without_a_rate_windows_are_what_they_were(mixed):
    source = ClipSource(mixed, PLAIN)
    assert source._frames is source.samples.frames and source.view(0) is None and "fps" not in PLAIN.key()
    assert not source.dropped and set(source.rates.tolist()) == {0, 12, float(NTSC), 24, 30, 60}


def test_windows_have_the_rate_that_is_asked_for_and_slower_clips_are_left_out(mixed):
    source = ClipSource(mixed, replace(PLAIN, fps=24.0, fps_slack=0.02))
    assert [(path.rpartition("/")[2], why) for path, why in source.dropped] == [("12.mp4", "slower-than-fps")]
    assert "dropped 1 (slower-than-fps)" in source.summary() and "0.375 s, at 24 frames a second" in source.summary()
    for index, (frames, *_) in enumerate(source.shapes):
        assert (source.rate(index), source.seconds(index)) == ((24, frames / 24) if frames > 1 else (0, 0))
        assert source.rates[index] == source.rate(index)
    by_name = {Path(source.path(i)).name: i for i in reversed(range(len(source)))}  # the first window of each
    for name in ("23.mp4", "24.mp4", "30.mp4", "60.mp4"):
        index = by_name[name]
        times, tick = stored_times(source.path(index))
        expected = nearest(times, tick, Fraction(24))
        assert numbers(to_uint8(source.read(index))) == expected[:9]
        clip = source.load(index + 1, seed=1, number=5)
        start = source.start(index + 1, 1, 5)
        assert numbers(clip.pixels) == expected[start : start + 9] and not clip.replaced
    strict = ClipSource(mixed, replace(PLAIN, fps=24.0, fps_slack=0.0))
    assert [why for _, why in strict.dropped] == ["slower-than-fps"] * 2  # 23.976 too


def test_a_window_of_a_varying_clip_that_would_invent_frames_is_replaced_or_left_out(mixed):
    """Of VARYING, frames 12 to 19 are shown for 5/30 s each; what is before and long after has 30 a second."""
    source = ClipSource(mixed, replace(PLAIN, fps=24.0, fps_slack=0.02))
    mine = [i for i in range(len(source)) if source.path(i).endswith("varying.mp4")]
    found = {i: found for i, found in zip(mine, source.read_each(mine), strict=True)}
    fine = [i for i in mine if not isinstance(found[i], ClipError)]
    assert {found[i].reason for i in mine if i not in fine} == {"slower-than-fps"} and 0 < len(fine) < len(mine)
    times, tick = stored_times(source.path(mine[0]))
    expected = nearest(times, tick, Fraction(24))
    for i in mine:
        shown = expected[source.windows[i].start :][:9]
        assert (len(set(shown)) >= 8) == (i in fine)  # one repeated frame is within the slack of 0.02 x 9, rounded up
    bad = next(i for i in mine if i not in fine)
    clip = source.load(bad, 0, bad)
    assert clip.replaced and source.rate(clip.index) == 24
    assert len(ClipSource(mixed, replace(PLAIN, fps=24.0, fps_slack=1.0)).dropped) == 0


def test_what_a_model_was_trained_on_has_the_rate_that_is_asked_for(mixed):
    vae = SimpleNamespace(latent_grid=lambda f, h, w: ((f + 3) // 4, h // 8, w // 8))
    seen = seen_in(ClipSource(mixed, replace(PLAIN, fps=24.0, fps_slack=0.02)), vae)
    assert {kind.get("fps") for kind in seen} == {24.0, None} and defaults_of(seen)["fps"] == 24
    assert {kind.get("fps") for kind in seen_in(ClipSource(mixed, PLAIN), vae)} == {12, 23.976, 24, 30, 60, None}


def test_a_range_of_rates_keeps_what_lies_within_it(mixed):
    source = ClipSource(mixed, replace(PLAIN, fps=(20.0, 40.0), fps_slack=0.02))
    rates = {Path(source.path(i)).name: source.rate(i) for i in range(len(source))}
    assert rates == {"23.mp4": float(NTSC), "24.mp4": 24, "30.mp4": 30, "60.mp4": 40, "varying.mp4": 30, "still.png": 0}
    assert [source.view(i) is None for i in range(len(source))] == [
        rates[Path(source.path(i)).name] != 40 for i in range(len(source))
    ]


# --- segments ---------------------------------------------------------------------------------------------------------


def test_segments_of_a_long_file_are_clips_of_their_own(tmp_path, monkeypatch):
    """Their frames equal those of the whole file decoded from its start, and no read decodes from there."""
    encode(tmp_path / "long.mp4", row(63, NTSC, 1 / NTSC), 1 / NTSC, options={"bf": "2", "g": "8"})
    cuts = [(0.0, 0.834), (20 / float(NTSC), 40 / float(NTSC)), (1.668, None)]  # rounded as tables round
    rows = [{"path": "long.mp4", "start": start, "end": end} for start, end in cuts]
    outside = {"path": "long.mp4", "start": 7}
    opened = []
    monkeypatch.setattr(facts, "probe", lambda path: opened.append(path) or probe(path))
    manifest = listed(tmp_path, *rows, outside, {"path": "long.mp4", "start": 2, "end": 1})
    assert len(opened) == 1 and [why for _, why in manifest.dropped] == ["bad-row"]
    whole = read_frames(tmp_path / "long.mp4")
    monkeypatch.setattr(reading, "decode_from_start", lambda *more: pytest.fail("decoded from the start"))
    source = ClipSource(manifest, PLAIN)
    assert [(path.rpartition("/")[2], why) for path, why in source.dropped][1:] == [
        ("long.mp4, 7 to inf s", "segment-outside-the-file")
    ]
    assert [w.start for w in source.windows] == [0, 9, 20, 29, 40, 49] and source._frames.tolist()[:3] == [20, 20, 23]
    for i, window in enumerate(source.windows):
        if window.start:
            assert numbers(to_uint8(source.read(i))) == list(range(window.start, window.start + 9))
    assert {source.start(5, 0, n) for n in range(99)} == set(range(49, 55))  # moves within its segment alone
    assert whole.shape[0] == 63


def test_a_segment_at_a_rate_is_what_cutting_it_out_first_gives(files):
    for name in ("varying.mp4", "60_in_ms.mkv", "29.97.ts"):
        times, tick = stored_times(files / name)
        for start, end in ((0.3, 0.8), (0.0, 0.5), (0.6, math.inf)):
            view = View(Fraction(15), start, end)
            since = [(time - times[0]) * tick for time in times]
            inside = [k for k, second in enumerate(since) if start - 0.003 <= second < end - 0.003]
            expected = [inside[k] for k in nearest([times[k] for k in inside], tick, Fraction(15))]
            found = numbers(read_frames(files / name, 0, len(expected), view=view))
            assert found == expected, (name, start, end)
        with pytest.raises(ClipError, match="has no frame from 50 to 60 s"):
            read_frames(files / name, view=View(Fraction(15), 50, 60))


def test_segments_are_written_and_read_back_in_every_table(tmp_path):
    encode(tmp_path / "a.mp4", range(40), Fraction(1, 20))
    about = {"frames": 40, "fps": 20.0, "height": 32, "width": 48}
    samples = [
        Sample(str(tmp_path / "a.mp4"), "whole", **about),
        Sample(str(tmp_path / "a.mp4"), "part", **about, start=0.25, end=1.5),
    ]
    for ending in ("jsonl", "csv", "tsv", "parquet"):
        write_manifest(tmp_path / f"t.{ending}", samples)
        manifest = read_manifest(tmp_path / f"t.{ending}")
        assert list(manifest.samples) == samples
        source = open_sources([tmp_path / f"t.{ending}"] * 2, PLAIN)
        assert source.samples.start.tolist() == [0, 0.25, 0, 0.25] and [w.start for w in source.windows[4:6]] == [5, 14]
    names = source.identity()
    other = open_sources([tmp_path / "t.csv"], PLAIN).identity()
    assert names["prints"]["names"] != other["prints"]["names"]
    write_manifest(tmp_path / "w.jsonl", samples[:1])
    assert (
        "start" not in (tmp_path / "w.jsonl").read_text() and read_manifest(tmp_path / "w.jsonl").samples.start is None
    )
