"""Clips of varying rate are read at a constant one by time; windows of them equal a slow reference; every container."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from latentvid.data.video.pace import pace
from latentvid.data.video.reading import probe, read_chunks, read_frames, read_windows
from latentvid.data.video.writing import clip_writer, write_video
from latentvid.errors import ClipError

STILL = [*range(0, 20), *range(25, 60, 5), *range(61, 70), 71, 73]  # at 30 a second, then at 6, at 30, at 15


def levels(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.broadcast_to((np.arange(count, dtype=np.uint8) * 5)[:, None, None, None], (count, height, width, 3))


def encode(path, times, codec="libx264", pixel_format="yuv420p", rate=30, options=None, tick=None, form=None):
    with av.open(str(path), "w", format=form) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixel_format
        for time, pixels in zip(times, levels(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = time, tick or Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def numbers(pixels) -> list[int]:
    return (pixels[:, 16, 24, 1].float() / 5).round().int().tolist()


def by_fps_filter(path, rate: Fraction) -> list[int]:
    """Numbers of the frames that FFmpeg's fps filter shows: the slow reference, which decodes all."""
    shown = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        parts = [graph.add_buffer(template=stream), graph.add("fps", f"fps={rate}"), graph.add("buffersink")]
        graph.link_nodes(*parts).configure()
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    shown.append(round(graph.pull().to_ndarray(format="gray")[16, 24] / 5))
                except (BlockingIOError, EOFError):
                    break
    return shown


VARYING = {
    "a.mp4": dict(options={"g": "16", "bf": "3"}),
    "b.mkv": dict(options={"g": "16", "bf": "3"}),
    "c.ts": dict(options={"g": "16"}),
    "d.flv": dict(options={"g": "16", "bf": "0"}),
    "e.webm": dict(codec="libvpx", options={"g": "15", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "f.mp4": dict(codec="mpeg4", options={"bf": "2", "b": "20M", "qmin": "1", "qmax": "1"}),
    "g.wmv": dict(codec="wmv2", options={"b": "20M", "qmin": "1", "qmax": "1"}),
}


@pytest.mark.parametrize("name", VARYING)
def test_varying_rates_are_read_by_time(tmp_path, name):
    encode(tmp_path / name, STILL, **VARYING[name])
    info = probe(tmp_path / name)
    whole = read_frames(tmp_path / name)
    expected = [int(np.searchsorted(STILL, k, "right")) - 1 for k in range(74)]
    assert info.fps == 30 and info.frames == len(whole) in (74, 75)  # the last frame's own time is not in each
    assert numbers(whole)[:74] == expected
    assert by_fps_filter(tmp_path / name, Fraction(30))[:73] == expected[:73]
    for start, length in ((0, 1), (18, 9), (22, 1), (40, 34), (73, 1)):
        assert torch.equal(read_frames(tmp_path / name, start, length), whole[start : start + length])
    found = read_windows(tmp_path / name, [50, 17, 19], 9, lambda _, pixels: pixels)
    assert all(torch.equal(part, whole[start : start + 9]) for part, start in zip(found, (50, 17, 19), strict=True))
    assert torch.equal(torch.cat(list(read_chunks(tmp_path / name, 5, 8))), whole)
    with pytest.raises(ClipError) as error:
        read_frames(tmp_path / name, info.frames - 1, 2)
    assert error.value.reason == "too-short"


def test_what_is_one_rate_and_what_is_not():
    tick = Fraction(1, 1000)
    rng = np.random.default_rng(0)
    row = np.round(np.arange(300) * 1000 / 24).astype(np.int64)  # 24 fps in ms
    for times, declared, rate, frames in (
        (row, Fraction(24), 24, 300),
        (row, None, 24, 300),
        (row, Fraction(50), 24, 300),  # the header is wrong by more than half a frame
        (row + rng.integers(-15, 16, 300), Fraction(24), 24, 300),  # jitter: each its own
        (np.cumsum([0, 33, 34, 33] * 50 + [100] * 40), Fraction(1, 3), 30, None),
    ):
        times = np.sort(times - times[0])
        found = pace(times, tick, 0, declared)
        assert float(found.rate) == pytest.approx(rate, rel=2e-3)
        assert (found.slots is None) == (frames is not None) and found.frames == (frames or found.frames)
    drop = pace(np.delete(np.arange(0, 100), [20, 40, 41, 42]), Fraction(1, 25), 1, None)
    assert (drop.rate, drop.frames) == (25, 100) and drop.coded(19, 3) == (19, [2, 1])
    assert pace(np.array([0, 40, 80, 40_000, 40_040]), tick, 40, None, leaps=True).frames == 5  # a clock set anew
    with pytest.raises(ValueError, match="gap of"):
        pace(np.array([0, 40, 80, 10**9]), tick, 40, None)


def test_a_sparse_avi_has_its_own_speed(tmp_path):
    """15 fps by its header, a picture now and then: it is as long as it plays."""
    times = np.cumsum([0, *([6, 7] * 20)]).tolist()
    encode(tmp_path / "a.avi", times, codec="mjpeg", pixel_format="yuvj420p", rate=15)
    info = probe(tmp_path / "a.avi")
    assert info.frames / info.fps == pytest.approx(times[-1] / 15, rel=0.04)


CONTAINERS = {
    "a.flv": dict(codec="flv"),
    "a.f4v": dict(form="mp4"),
    "a.3gp": dict(codec="mpeg4"),
    "a.mts": dict(form="mpegts"),
    "a.m2ts": dict(form="mpegts", options={"bf": "2", "g": "8"}),
    "a.wmv": dict(codec="wmv2"),
    "a.asf": dict(codec="msmpeg4"),
    "a.vob": dict(codec="mpeg2video", options={"bf": "2"}, form="vob"),
    "a.mpg": dict(codec="mpeg1video"),
    "a.mxf": dict(codec="mpeg2video", rate=25),
    "a.y4m": dict(codec="rawvideo", form="yuv4mpegpipe"),
    "a.mjpeg": dict(codec="mjpeg", pixel_format="yuvj420p"),
    "a.nut": dict(codec="ffv1"),
    "a.ivf": dict(codec="libvpx-vp9"),
    "a.ogv": dict(codec="libvpx", form="ogg"),
    "a.h264": dict(form="h264"),
    "a.mov": dict(codec="prores_ks", pixel_format="yuv422p10le"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_counts_and_seeks_exactly(tmp_path, name):
    how = {"options": {}, **CONTAINERS[name]}
    encode(tmp_path / name, range(30), **how)
    info = probe(tmp_path / name)
    assert (info.frames, info.height, info.width) == (30, 32, 48)
    whole = read_frames(tmp_path / name)
    assert np.abs(np.array(numbers(whole)) - np.arange(30)).max() <= 1
    for start, length in ((0, 2), (11, 5), (29, 1)):
        assert torch.equal(read_frames(tmp_path / name, start, length), whole[start : start + length])


@pytest.mark.parametrize("size", [(32, 32), (31, 45)])
def test_webm_gives_back_the_colours_written(tmp_path, size):
    y, x = torch.meshgrid(torch.linspace(0, 3, size[0]), torch.linspace(0, 3, size[1]), indexing="ij")
    clip = torch.stack([x.sin(), y.cos(), (x + y).sin()], -1).mul(120).add(127).to(torch.uint8).expand(5, -1, -1, -1)
    write_video(tmp_path / "a.webm", clip, 12.5)
    back = read_frames(tmp_path / "a.webm")
    assert 10 * torch.log10(255**2 / (back.double() - clip.double()).square().mean()) > 40
    assert (back.double() - clip.double()).mean((0, 1, 2)).abs().max() < 0.6
    assert probe(tmp_path / "a.webm").fps == 12.5


def onset(path) -> tuple[float, float]:
    """When the picture turns white and when the tone begins, in s."""
    with av.open(str(path)) as container:
        white = next(f.time for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 128)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().astype(float)).max(0) > 0.02)
            if len(loud):
                return white, frame.time + loud[0] / frame.sample_rate
    raise AssertionError("no tone")


@pytest.mark.parametrize(("name", "codec", "output"), [("a.mp4", "aac", "o.mp4"), ("a.webm", "libopus", "o.webm")])
@pytest.mark.parametrize("delay", [0, 9])
def test_sound_keeps_step_with_a_clip_of_varying_rate(tmp_path, name, codec, output, delay):
    """White and a tone 2 s after the start of the sound, the video's first frame `delay` / 30 s after that."""
    times = [t for t in (*range(0, 30), *range(30, 60, 5), *range(60, 75)) if t >= delay]
    with av.open(str(tmp_path / name), "w") as container:
        video = container.add_stream("libx264" if name == "a.mp4" else "libvpx-vp9", rate=30)
        audio = container.add_stream(codec, rate=48_000, layout="mono")
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 255 * (time >= 60), np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts = time
            container.mux(video.encode(frame))
        tone = np.sin(np.arange(120_000) / 9)[None].astype(np.float32) * (np.arange(120_000) >= 96_000) * 0.5
        samples = av.AudioFrame.from_ndarray(tone.astype(np.float32), format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 48_000, 0
        resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=48_000, frame_size=audio.frame_size)
        for part in [*resampler.resample(samples), *resampler.resample(None), None]:
            container.mux(audio.encode(part))
        container.mux(video.encode(None))
    info = probe(tmp_path / name)
    assert info.fps == 30 and info.frames == pytest.approx(75 - delay, abs=1)
    with clip_writer(tmp_path / output, 32, 48, info.fps, audio=tmp_path / name) as write:
        for chunk in read_chunks(tmp_path / name, 16, 16):
            write(chunk)
    white, tone_at = onset(tmp_path / output)
    assert white == pytest.approx((60 - delay) / 30, abs=0.02)
    assert tone_at == pytest.approx(white, abs=0.03)
