"""Pictures as they are meant to be seen: orientation, pixel shape, fields, colours, alpha, streams, animations."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageCms

from latentvid.data.video.hdr import HLG, PQ, SRGB, as_sdr
from latentvid.data.video.kinds import MOST_PIXELS
from latentvid.data.video.reading import probe, read_frames, read_windows
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError


def encode(path, frames, codec="libx264", pixel_format="yuv420p", rate=25, options=None, times=None, sar=None, **tags):
    """frames: uint8 [H,W,3] arrays, or VideoFrames."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        for index, pixels in enumerate(frames):
            frame = pixels if isinstance(pixels, av.VideoFrame) else av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if index == 0:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pixel_format
                if sar:
                    stream.codec_context.sample_aspect_ratio = sar
                for name, value in tags.items():
                    setattr(stream.codec_context, name, value)
            frame = frame if frame.format.name == pixel_format else frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = index if times is None else times[index], Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def flat(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


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


# ---------------------------------------------------------------------------------------------------------- colours


def pq(light: float) -> float:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    y = (light / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def test_tones_of_hdr_by_the_standards():
    """Grey of so many cd/m2 is that of BT.1886 with white at 203, as far as BT.2390's knee; white is bent to less."""

    def shown(value: float, transfer: int) -> int:
        grey = np.full((1, 1, 3), round(value * 65535), np.uint16)
        return int(as_sdr(grey, transfer, 9)[0, 0, 1])

    for light in (0.5, 5, 20, 60):
        assert abs(shown(pq(light), PQ) - 255 * (light / 203) ** (1 / 2.4)) <= 1
    assert 215 < shown(pq(203), PQ) < 240 and shown(pq(1000), PQ) == shown(pq(4000), PQ) == 255
    # HLG's 50% is 1/12 of scene light, 1000 * (1/12)^1.2 cd/m2 of a display's; 75% is BT.2408's white
    assert abs(shown(0.5, HLG) - 255 * (1000 / 12**1.2 / 203) ** (1 / 2.4)) <= 2
    assert abs(shown(0.75, HLG) - shown(pq(203), PQ)) <= 2 and shown(1, HLG) == 255
    levels = [shown(pq(x), PQ) for x in np.linspace(1, 1000, 60)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(("transfer", "primaries"), [(PQ, 9), (HLG, 9), (14, 9)])
def test_wide_and_hdr_clips_are_shown_as_sdr(tmp_path, transfer, primaries):
    """A red of BT.709, coded over BT.2020: seen as that red, not as the pale one that its numbers say."""
    wide = np.linalg.inv(to_xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))) @ to_xyz(
        (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)
    )
    light = wide @ (np.array([200, 40, 60]) / 255) ** 2.4 * (60 / 203 if transfer != 14 else 1)  # below the knee
    if transfer == PQ:
        coded = np.array([pq(203 * x) for x in light])
    elif transfer == HLG:
        display = light * 203 / 1000
        display = np.maximum(display, 0)
        luminance = display @ [0.2627, 0.678, 0.0593]
        scene = display * luminance ** (1 / 1.2 - 1)
        coded = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-6)) + 0.55991073,
        )
    else:
        coded = light ** (1 / 2.4)
    deep = av.VideoFrame.from_ndarray(
        np.broadcast_to(np.rint(coded * 65535).astype(np.uint16), (32, 48, 3)).copy(), format="rgb48le"
    ).reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG)
    tags = dict(colorspace=9, color_primaries=primaries, color_trc=transfer, color_range=1)
    encode(tmp_path / "clip.mkv", [deep] * 2, "libx264", "yuv420p10le", options={"qp": "0"}, **tags)
    expected = np.array([200, 40, 60]) * (1 if transfer == 14 else (60 / 203) ** (1 / 2.4))
    shown = read_frames(tmp_path / "clip.mkv")[1].double().mean((0, 1)).numpy()
    assert np.abs(shown - expected).max() < 4


def to_xyz(*colours) -> np.ndarray:
    matrix = np.array([[x / y, 1, (1 - x - y) / y] for x, y in colours]).T
    return matrix * np.linalg.solve(matrix, [0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])


def test_dolby_vision_alone_and_odd_matrices_are_refused_by_name(tmp_path):
    encode(tmp_path / "clip.mp4", [flat(90)] * 2, "libx264")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert b"avc1" in data
    (tmp_path / "dolby.mp4").write_bytes(data.replace(b"avc1", b"dvav"))
    encode(tmp_path / "odd.mkv", [flat(90)] * 2, colorspace=8)
    for name, reason in (("dolby.mp4", "hdr"), ("odd.mkv", "colours")):
        for look in (probe, read_frames):
            with pytest.raises(ClipError) as error:
                look(tmp_path / name)
            assert error.value.reason == reason


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p10le", "yuv420p", "gbrp10le"])
def test_deep_sdr_is_rounded_not_dithered(tmp_path, pixel_format):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, 3)).copy()
    wide = av.VideoFrame.from_ndarray(ramp, format="rgb24").reformat(
        format=pixel_format, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
    )
    encode(tmp_path / "clip.mkv", [wide] * 2, "ffv1", pixel_format)
    assert (read_frames(tmp_path / "clip.mkv")[0].int() - torch.from_numpy(ramp).int()).abs().max() <= 1


def test_the_matrix_of_untagged_files_is_by_size(tmp_path):
    colour = np.zeros((1, 1, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    for height, width, matrix in (
        (576, 32, Colorspace.ITU601),
        (578, 32, Colorspace.ITU709),
        (32, 1280, Colorspace.ITU709),
    ):
        frame = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (height, width, 3)).copy(), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
        )
        frame.colorspace = 2
        encode(tmp_path / "clip.avi", [frame], "ffv1")
        shown = read_frames(tmp_path / "clip.avi")[0, height // 2, width // 2].int()
        assert (shown - torch.tensor([200, 40, 90])).abs().max() <= 3, (height, width)


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
