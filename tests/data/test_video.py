"""Reading exact windows, refusing bad files, writing so that the same colours come back."""

import os
import pickle
import resource
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentvid.data.transforms import fit
from latentvid.data.video import packets
from latentvid.data.video.reading import probe, read_frames, read_windows
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, UserError

LENGTH = 60


def smooth_clip(frames: int, height: int, width: int) -> torch.Tensor:
    t = torch.arange(frames)[:, None, None] / frames
    y, x = torch.arange(height)[None, :, None] / height, torch.arange(width)[None, None] / width
    red, green, blue = torch.sin(3 * x + 2 * t + 0 * y), torch.cos(2 * y + t + 0 * x), torch.sin(2 * x + 3 * y - t)
    return (127 + 120 * torch.stack([red, green, blue], -1)).round().to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()))


def code(index: int) -> np.ndarray:
    """A frame that says its number in six black or white columns."""
    bits = [255 * (index >> bit & 1) for bit in range(6)]
    return np.repeat(np.repeat(np.array(bits, np.uint8), 8)[None], 32, 0)[..., None].repeat(3, -1)


def decode(frames: torch.Tensor) -> list[int]:
    columns = frames[:, 16, 4::8, 1] > 128
    return (columns.long() << torch.arange(6)).sum(1).tolist()


def encode(path, codec="libx264", options=None, times=None, container=None, start=0):
    times = range(LENGTH) if times is None else times
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(code(index), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = start + time, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


KINDS = {
    "long-gop.mp4": dict(options={"g": "250", "bf": "8", "b-pyramid": "normal"}),
    "open-gop.mp4": dict(options={"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "late-start.mkv": dict(options={"g": "12", "bf": "3", "x264-params": "open-gop=1"}, start=1000),
    "uneven.mp4": dict(options={"g": "16", "bf": "3"}, times=[4 * i + i % 3 for i in range(LENGTH)]),
    "fragmented.mp4": dict(options={"g": "12"}, container={"movflags": "frag_keyframe+empty_moov"}),
    "stream.ts": dict(options={"g": "12", "bf": "3"}),
    "no-times.avi": dict(options={"g": "12", "bf": "2"}),
    "hidden-frames.webm": dict(codec="libvpx", options={"g": "15", "auto-alt-ref": "1", "lag-in-frames": "16"}),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    for name, how in KINDS.items():
        encode(folder / name, **how)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_every_window_holds_the_frames_asked_for(kinds, name):
    info = probe(kinds / name)
    assert (info.frames, info.height, info.width) == (LENGTH, 32, 48)
    whole = read_frames(kinds / name)
    assert decode(whole) == list(range(LENGTH))

    @settings(max_examples=16, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, LENGTH - 1), st.integers(1, 9))
    def check(start, length):
        length = min(length, LENGTH - start)
        assert torch.equal(read_frames(kinds / name, start, length), whole[start : start + length])

    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.integers(0, LENGTH - 9), min_size=1, max_size=4), st.integers(1, 9))
    def check_several(starts, length):
        found = read_windows(kinds / name, starts, length, lambda n, pixels: (starts[n], pixels))
        assert [start for start, _ in found] == starts
        assert all(torch.equal(pixels, whole[start : start + length]) for start, pixels in found)
        for size in ((16, 24), (24, 16), (32, 40), (32, 48)):  # fitted as they come: the values of whole windows
            fitted = read_windows(kinds / name, starts, length, lambda _, pixels: pixels, size)
            expected = [fit(whole[start : start + length], *size) for start in starts]
            assert all(torch.equal(*pair) for pair in zip(fitted, expected, strict=True))

    check()
    check_several()
    assert torch.equal(read_frames(kinds / name, LENGTH - 7), whole[-7:])
    assert torch.equal(read_frames(kinds / name, 30, 4, threads=2), whole[30:34])
    for start, length in ((LENGTH - 2, 5), (LENGTH, 1), (0, LENGTH + 1)):
        with pytest.raises(ClipError) as error:
            read_frames(kinds / name, start, length)
        assert error.value.reason == "too-short"
        with pytest.raises(ClipError) as error:
            read_windows(kinds / name, [0, start], length, lambda _, pixels: pixels)
        assert error.value.reason == "too-short"


def test_a_clip_cut_out_of_an_open_gop_counts_the_frames_it_can_show(kinds, tmp_path):
    cut, keys = tmp_path / "cut.mp4", 0
    with av.open(str(kinds / "open-gop.mp4")) as source, av.open(str(cut), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            keys += packet.is_keyframe
            if packet.size and keys >= 3:
                packet.stream = stream
                output.mux(packet)
    whole = decode(read_frames(cut))
    assert whole == list(range(whole[0], LENGTH)) and whole[0] > 0
    assert probe(cut).frames == len(whole)
    assert decode(read_frames(cut, 5, 9)) == whole[5:14]


@pytest.mark.parametrize("name", ["long-gop.mp4", "late-start.mkv", "fragmented.mp4", "no-times.avi"])
def test_a_file_cut_short_is_named_so(kinds, tmp_path, name):
    data = (kinds / name).read_bytes()
    cut = tmp_path / name
    for kept in (len(data) - 1, len(data) * 6 // 10):
        cut.write_bytes(data[:kept])
        for read in (lambda: read_frames(cut), lambda: read_frames(cut, 2, 3), lambda: probe(cut)):
            with pytest.raises(ClipError) as error:
                read()
            assert error.value.reason == "truncated" and name in str(error.value)


def test_a_truncated_faststart_mp4(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8), 8)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(ClipError, match="cut short"):
        read_frames(path)


def test_bad_files_have_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video, whatever its name says" * 20)
    (tmp_path / "text.png").write_text("nor is this an image")
    (tmp_path / "folder.mp4").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux([*stream.encode(frame), *stream.encode(None)])
    reasons = {
        "absent.mp4": "missing",
        "empty.mp4": "empty-file",
        "text.mp4": "unreadable",
        "text.png": "unreadable",
        "folder.mp4": "unreadable",
        "cut.png": "truncated",
        "sound.mp4": "no-video",
    }
    for name, reason in reasons.items():
        with pytest.raises(ClipError) as error:
            read_frames(tmp_path / name)
        assert (error.value.reason, error.value.path) == (reason, str(tmp_path / name)), name
        again = pickle.loads(pickle.dumps(error.value))  # a worker process hands it over like this
        assert (again.reason, again.path, str(again)) == (reason, error.value.path, str(error.value))
    for read in (read_frames, lambda path, start, frames: read_windows(path, [start], frames, lambda _, p: p)):
        with pytest.raises(ClipError) as error:
            read(tmp_path / "whole.png", 0, 2)
        assert error.value.reason == "too-short"


def test_images_are_clips_of_one_frame(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "plain.png")
    assert torch.equal(read_frames(tmp_path / "plain.png"), torch.from_numpy(picture)[None])
    assert torch.equal(read_windows(tmp_path / "plain.png", [0], 1, lambda _, p: p)[0], torch.from_numpy(picture)[None])
    info = probe(tmp_path / "plain.png")
    assert (info.frames, info.fps, info.height, info.width) == (1, 0.0, 20, 30)

    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(picture).save(tmp_path / "turned.webp", lossless=True, exif=exif)
    assert (probe(tmp_path / "turned.webp").height, probe(tmp_path / "turned.webp").width) == (30, 20)
    assert torch.equal(read_frames(tmp_path / "turned.webp")[0], torch.from_numpy(np.rot90(picture, -1).copy()))

    alpha = np.full((20, 30, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / "alpha.png")
    shown = read_frames(tmp_path / "alpha.png")[0].numpy().astype(int)
    assert abs(shown - picture * (128 / 255)).max() <= 1
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert read_frames(tmp_path / "deep.png").unique().tolist() == [128]


def test_rotation_is_honoured(tmp_path):
    path = tmp_path / "phone.mp4"
    frames = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    frames[:, :16, :32] = 255  # top left
    write_video(path, frames, 25)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes from the version to the display matrix
    assert struct.unpack_from(">5i", data, matrix) == (65536, 0, 0, 0, 65536)
    data[matrix : matrix + 20] = struct.pack(">5i", 0, 65536, 0, -65536, 0)  # a quarter turn clockwise, as phones do
    path.write_bytes(data)
    shown = read_frames(path)
    assert shown.shape == (2, 64, 32, 3)
    assert (probe(path).height, probe(path).width) == (64, 32)
    assert shown[0, 8, 24].min() > 240 and shown[0, 8, 8].max() < 16 and shown[0, 56, 24].max() < 16  # top right


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (31, 45)])
def test_mp4_gives_back_the_colours_written(tmp_path, size):
    clip = smooth_clip(9, *size)
    write_video(tmp_path / "new" / "clip.mp4", clip, 12.5)
    back = read_frames(tmp_path / "new" / "clip.mp4")
    assert psnr(clip, back) > 42
    assert (back.double() - clip.double()).mean((0, 1, 2)).abs().max() < 0.5  # no tint
    assert probe(tmp_path / "new" / "clip.mp4").fps == 12.5


def test_untagged_and_full_range_colours(tmp_path):
    """An untagged small file is BT.601; a full-range one is not stretched."""
    colour = np.zeros((32, 48, 3), np.uint8) + np.array([220, 40, 90], np.uint8)
    for name, pixel_format, target in (
        ("limited.mkv", "yuv420p", ColorRange.MPEG),
        ("full.mkv", "yuvj420p", ColorRange.JPEG),
    ):
        with av.open(str(tmp_path / name), "w") as output:
            stream = output.add_stream("libx264", rate=25, options={"crf": "4"})
            stream.height, stream.width, stream.pix_fmt = 32, 48, pixel_format
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=Colorspace.ITU601, dst_color_range=target
            )
            output.mux([*stream.encode(frame), *stream.encode(None)])
        assert (read_frames(tmp_path / name)[0].int() - torch.from_numpy(colour).int()).abs().max() <= 4, name


def test_gif_and_png(tmp_path):
    clip = smooth_clip(5, 24, 40)
    write_video(tmp_path / "clip.gif", clip, 10)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (5, 0, 100)
    assert psnr(read_frames(tmp_path / "clip.gif"), clip) > 22
    write_video(tmp_path / "one.png", clip[:1], 10)
    assert torch.equal(read_frames(tmp_path / "one.png"), clip[:1])
    write_video(tmp_path / "sheet.PNG", clip, 10)
    sheet = read_frames(tmp_path / "sheet.PNG")[0]
    assert sheet.shape == (72, 80, 3)  # 2 columns, 3 rows
    assert torch.equal(sheet[24:48, :40], clip[2]) and sheet[48:, 40:].max() == 0


def test_write_refuses_with_the_fix_and_leaves_nothing(tmp_path, monkeypatch):
    clip = smooth_clip(3, 16, 16)
    for path, frames, fps, message in (
        ("clip.avi", clip, 8, r"\.mp4, \.webm, \.gif or \.png"),
        ("clip", clip, 8, r"\.mp4, \.webm, \.gif or \.png"),
        ("clip.mp4", clip.float(), 8, "to_uint8"),
        ("clip.mp4", clip[:0], 8, "uint8 frames"),
        ("clip.mp4", clip, 0, "fps"),
        ("clip.gif", clip, 60, "50 frames per second"),
    ):
        with pytest.raises(UserError, match=message):
            write_video(tmp_path / path, frames, fps)
    (tmp_path / "kept.mp4").write_bytes(b"as it was")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / "kept.mp4", clip, 8)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.mp4"]
    assert (tmp_path / "kept.mp4").read_bytes() == b"as it was"


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_does_not_grow_over_2000_clips(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, smooth_clip(9, 32, 32), 8)
    for _ in range(200):
        read_frames(path, 2, 5)
    before, files = resident_mb(), len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        read_frames(path, 2, 5)
    assert resident_mb() - before < 8  # one leaked decoder is about 0.3 MB
    assert len(os.listdir("/proc/self/fd")) == files


def test_times_are_remembered_for_the_files_last_seen(kinds, tmp_path, monkeypatch):
    """A second window of a file does not read it all again; a file that has changed is read again."""
    reads = []
    add = packets.Packets.add
    monkeypatch.setattr(packets.Packets, "add", lambda self, packet: reads.append(self.path) or add(self, packet))
    monkeypatch.setattr(packets, "_times", packets._Memory(2 * LENGTH))
    files = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for file in files:
        file.write_bytes((kinds / "long-gop.mp4").read_bytes())

    def read(file) -> bool:
        reads.clear()
        assert decode(read_frames(file, 20, 3)) == [20, 21, 22]
        return bool(reads)

    a, b, c = files
    assert [read(file) for file in (a, b, a, c, a, b)] == [True, True, False, True, False, True]
    a.write_bytes((kinds / "open-gop.mp4").read_bytes())
    assert read(a)
