"""Pictures as they are meant to be seen: orientation, pixel shape, fields, alpha, streams, animations."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from encoding import encode, flat
from PIL import Image, ImageCms

from latentvid.data.video.hdr import SRGB, as_sdr
from latentvid.data.video.kinds import MOST_PIXELS
from latentvid.data.video.reading import probe, read_frames, read_windows
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError


def quarters(height: int = 32, width: int = 48) -> np.ndarray:
    """Four corners of four grey levels."""
    picture = flat(0, height, width)
    picture[: height // 2, width // 2 :] = 80
    picture[height // 2 :, : width // 2] = 160
    picture[height // 2 :, width // 2 :] = 240
    return picture


def corners(pixels) -> list[int]:
    p = np.asarray(pixels)[..., 1].astype(int)
    return [round(int(p[y, x]) / 80) for y in (4, -5) for x in (4, -5)]


ORIENTATIONS = {  # EXIF's number: (a, b, c, d of the display matrix, corners as they are shown)
    1: ((1, 0, 0, 1), [0, 1, 2, 3]),
    2: ((-1, 0, 0, 1), [1, 0, 3, 2]),
    3: ((-1, 0, 0, -1), [3, 2, 1, 0]),
    4: ((1, 0, 0, -1), [2, 3, 0, 1]),
    5: ((0, 1, 1, 0), [0, 2, 1, 3]),
    6: ((0, 1, -1, 0), [2, 0, 3, 1]),
    7: ((0, -1, -1, 0), [3, 1, 2, 0]),
    8: ((0, -1, 1, 0), [1, 3, 0, 2]),
}


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_all_orientations_of_clips_and_images(tmp_path, number):
    (a, b, c, d), shown = ORIENTATIONS[number]
    encode(tmp_path / "clip.mp4", [quarters()] * 3)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 20] = struct.pack(">5i", *(65536 * n for n in (a, b, 0, c, d)))
    (tmp_path / "clip.mp4").write_bytes(data)
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(quarters()).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(quarters()).save(tmp_path / "image.jpg", exif=exif, quality=95)
    for name in ("clip.mp4", "image.png", "image.jpg"):
        pixels, info = read_frames(tmp_path / name), probe(tmp_path / name)
        assert corners(pixels[0]) == shown, name
        assert tuple(pixels.shape[1:3]) == (info.height, info.width) == ((48, 32) if number >= 5 else (32, 48))


def test_the_main_stream_is_the_default_then_the_largest_and_never_a_cover(tmp_path):
    for name, sizes, default, shown in (
        ("default.mkv", [(32, 48), (16, 32)], 1, (16, 32)),
        ("largest.mkv", [(16, 32), (32, 48)], None, (32, 48)),
        ("cover.mp4", [(64, 64), (16, 32)], "cover", (16, 32)),
    ):
        with av.open(str(tmp_path / name), "w") as output:
            streams = []
            for n, (height, width) in enumerate(sizes):
                cover = default == "cover" and n == 0
                stream = output.add_stream("mjpeg" if cover else "libx264", rate=25)
                stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p" if cover else "yuv420p"
                if cover:
                    stream.disposition = av.stream.Disposition.attached_pic
                else:
                    stream.disposition = av.stream.Disposition(int(n == default))
                streams.append(stream)
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(flat(90, stream.height, stream.width), format="rgb24")
                output.mux([*stream.encode(frame.reformat(format=stream.pix_fmt)), *stream.encode(None)])
        info = probe(tmp_path / name)
        assert (info.height, info.width) == shown == tuple(read_frames(tmp_path / name).shape[1:3]), name


def test_pixels_become_square(tmp_path):
    for sar, width in ((Fraction(16, 11), 69), (Fraction(1, 2), 24), (Fraction(4319, 4320), 48)):
        encode(tmp_path / "clip.mp4", [quarters()] * 3, sar=sar)
        info = probe(tmp_path / "clip.mp4")
        assert (info.height, info.width) == (32, width)  # FFmpeg's scale=iw*sar:ih; off by less than a pixel: square
        pixels = read_frames(tmp_path / "clip.mp4", 1, 1)
        assert pixels.shape == (1, 32, width, 3) and corners(pixels[0]) == [0, 1, 2, 3]


def moving(rows: slice, left: int, into: np.ndarray) -> None:
    into[rows, left : left + 8] = 255


def test_interlaced_frames_are_whole_and_windows_of_them_exact(tmp_path):
    fields = []
    for n in range(14):
        frame = flat(16)
        moving(slice(0, None, 2), 2 * n, frame)  # the first field, and the second a little later
        moving(slice(1, None, 2), 2 * n + 4, frame)
        fields.append(frame)
    options = {"qp": "0", "x264-params": "tff=1", "g": "5", "bf": "2"}
    encode(tmp_path / "clip.mp4", fields, options=options)
    pixels = read_frames(tmp_path / "clip.mp4")
    assert len(pixels) == probe(tmp_path / "clip.mp4").frames == 14
    comb = lambda p: np.abs(np.diff(np.asarray(p, float)[..., 1], axis=-2)).mean()  # noqa: E731
    assert comb(pixels) < 0.6 * comb(np.stack(fields))
    with av.open(str(tmp_path / "clip.mp4")) as container:  # FFmpeg's filter over the whole stream
        graph = av.filter.Graph()
        stream = container.streams.video[0]
        parts = [graph.add_buffer(template=stream), graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")]
        graph.link_nodes(*parts).configure()
        expected = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            try:
                while True:
                    expected.append(graph.pull().to_ndarray(format="gray"))
            except (BlockingIOError, EOFError):
                pass
    luma = pixels.numpy().astype(float) @ [0.299, 0.587, 0.114]
    wanted = np.stack(expected).astype(float)[:, :32]
    assert np.median(np.abs(luma - wanted)) < 2
    for start in range(14):
        for length in (1, 3):
            if start + length <= 14:
                assert torch.equal(read_frames(tmp_path / "clip.mp4", start, length), pixels[start : start + length])
    found = read_windows(tmp_path / "clip.mp4", [3, 6], 4, lambda n, p: p)
    assert torch.equal(found[0], pixels[3:7]) and torch.equal(found[1], pixels[6:10])


# ------------------------------------------------------------------------------------------------- alpha and images


def test_alpha_lies_on_black_everywhere(tmp_path):
    """A white of half alpha is mid grey in images, animations and clips alike."""
    rgba = np.full((32, 48, 4), 255, np.uint8)
    rgba[:, 24:, 3] = 128
    image = Image.fromarray(rgba)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.webp", lossless=True)
    image.save(tmp_path / "b.webp", save_all=True, append_images=[image.rotate(180)], duration=100, lossless=True)
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    encode(tmp_path / "prores.mov", [frame] * 2, "prores_ks", "yuva444p10le", options={"alpha_bits": "16"})
    encode(tmp_path / "clip.mkv", [frame] * 2, "ffv1", "bgra")
    binary = Image.fromarray(np.where(np.arange(48) < 24, 1, 0).astype(np.uint8)[None].repeat(32, 0), mode="P")
    binary.putpalette([255, 255, 255] * 2)
    binary.save(tmp_path / "a.gif", transparency=0)
    for name, grey in (
        ("a.png", 128),
        ("a.webp", 128),
        ("b.webp", 128),
        ("prores.mov", 128),
        ("clip.mkv", 128),
        ("a.gif", 0),
    ):
        shown = read_frames(tmp_path / name)[0].int()
        assert (shown[:, :20] - 255).abs().max() <= 3 and (shown[:, 28:] - grey).abs().max() <= 3, name


def test_images_of_many_modes(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    assert torch.equal(read_frames(tmp_path / "deep.png")[0, ..., 0].int(), torch.from_numpy(grey.astype(np.int32)))
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert (read_frames(tmp_path / "cmyk.jpg")[0, 4, 4].int() - torch.tensor([254, 0, 0])).abs().max() <= 4
    Image.new("RGB", (8, 8), "red").quantize(4).save(tmp_path / "palette.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    assert read_frames(tmp_path / "palette.png")[0, 0, 0].tolist() == [255, 0, 0]
    assert read_frames(tmp_path / "bits.png").unique().tolist() == [255]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert read_frames(tmp_path / "srgb.png")[0, 0, 0].tolist() == [10, 200, 30]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_wide_and_hdr_images(tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    end = data.index(b"IHDR") + 4 + 13 + 4
    (tmp_path / "p3.png").write_bytes(data[:end] + chunk(b"cICP", bytes([12, 13, 0, 1])) + data[end:])
    (tmp_path / "pq.png").write_bytes(data[:end] + chunk(b"cICP", bytes([9, 16, 0, 1])) + data[end:])
    wide = read_frames(tmp_path / "p3.png")[0, 0, 0].tolist()
    expected = as_sdr(np.array([[[200, 100, 50]]], np.uint16) * 257, SRGB, 12)[0, 0].tolist()
    assert wide == expected and wide[0] > 205 and wide[2] < 45  # purer in the smaller space
    with pytest.raises(ClipError) as error:
        read_frames(tmp_path / "pq.png")
    assert error.value.reason == "hdr"


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animations_are_clips(tmp_path, name):
    levels = [0, 40, 80, 120, 160]
    images = [Image.fromarray(flat(level)) for level in levels]
    options = dict(lossless=True) if name == "a.webp" else {}
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100, loop=3, **options)
    info = probe(tmp_path / name)
    assert (info.frames, info.fps, info.height, info.width) == (5, 10.0, 32, 48)
    assert read_frames(tmp_path / name)[:, 0, 0, 0].tolist() == levels
    assert read_frames(tmp_path / name, 2, 2)[:, 0, 0, 0].tolist() == levels[2:4]
    uneven = [100, 100, 300, 100, 200]  # ms: at 10 a second, some are shown longer
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=uneven, loop=0, **options)
    shown = [0, 40, 80, 80, 80, 120, 160, 160]
    info = probe(tmp_path / name)
    assert (info.fps, info.frames) == (10.0, 8)
    assert read_frames(tmp_path / name)[:, 0, 0, 0].tolist() == shown
    found = read_windows(tmp_path / name, [1, 4], 3, lambda _, pixels: pixels[:, 0, 0, 0].tolist())
    assert found == [shown[1:4], shown[4:7]]
    images[0].save(tmp_path / name)
    assert (probe(tmp_path / name).frames, probe(tmp_path / name).fps) == (1, 0.0)


# ---------------------------------------------------------------------------------------------------------- hostile


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    for side, name in ((13_000, "bomb.png"), (2**30, "huge.png")):
        data = (tmp_path / "bomb.png").read_bytes()
        at = data.index(b"IHDR")
        header = chunk(b"IHDR", struct.pack(">II", side, side) + data[at + 12 : at + 17])
        (tmp_path / name).write_bytes(data[: at - 4] + header + data[at + 21 :])
    assert MOST_PIXELS < 13_000**2
    for name in ("bomb.png", "huge.png"):
        for look in (probe, read_frames):
            with pytest.raises(ClipError) as error:
                look(tmp_path / name)
            assert error.value.reason == "too-large"


def test_a_file_cannot_open_another(tmp_path):
    """Playlists and lists under a video's name would open files and connections."""
    write_video(tmp_path / "real.mp4", torch.zeros(3, 32, 48, 3, dtype=torch.uint8), 8)
    real = tmp_path / "real.mp4"
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{real}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {real.name}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        for ending in (".mp4", ".ts", ".png"):
            (tmp_path / (name + ending)).write_text(text)
            for look in (probe, read_frames):
                with pytest.raises(ClipError) as error:
                    look(tmp_path / (name + ending))
                assert error.value.reason == "unreadable"
