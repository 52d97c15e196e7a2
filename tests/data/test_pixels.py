"""Pixels of decoded frames: the values of swscale's accurate rgb24, and several windows of one decoding."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.video.pixels import Frames, Windows
from latentvid.data.video.showing import ACCURATE, Converter
from latentvid.errors import ClipError

FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuva420p", "nv12", "p010le", "yuv420p10le", "yuv422p10le"]
FORMATS += ["yuv444p12le", "gray", "gray10le", "gbrp", "gbrp10le", "gbrap", "rgb24", "bgra", "rgba", "pal8", "ya8"]
ALPHA = ("yuva", "gbrap", "bgra", "rgba", "pal8", "ya8")


def noise(name: str, height: int, width: int, seed: int = 0) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, name)
    generator = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(generator.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    return frame


def as_rgb24(frame: av.VideoFrame, matrix: Colorspace | None) -> np.ndarray:
    rgb = VideoReformatter().reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=ACCURATE, threads=1)
    if not frame.format.name.startswith(ALPHA):
        return rgb.to_ndarray()
    *_, alpha = VideoReformatter().reformat(frame, format="gbrap", interpolation=ACCURATE, threads=1).planes
    alpha = np.frombuffer(alpha, np.uint8).reshape(-1, alpha.line_size)[: frame.height, : frame.width, None]
    return np.rint(rgb.to_ndarray() * (alpha / 255.0)).astype(np.uint8)  # over black


@pytest.mark.parametrize("size", [(64, 96), (31, 45), (720, 64)])
@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_those_of_the_accurate_conversion(name, size):
    frame = noise(name, *size)
    for tag, matrix in ((2, Colorspace.ITU709 if size[0] >= 720 else Colorspace.ITU601), (1, None)):
        for colour_range in (ColorRange.MPEG, ColorRange.JPEG):
            frame.colorspace, frame.color_range = tag, colour_range
            expected = torch.from_numpy(as_rgb24(frame, matrix))
            frames, windows = (
                Frames(Converter("x.mp4"), 1),
                Windows(Converter("x.mp4"), [0], 1, lambda _, pixels: pixels),
            )
            assert frames.add(frame) and windows.add(frame)
            assert frames.pixels().shape == windows.results[0].shape == (1, *size, 3)
            assert torch.equal(frames.pixels()[0], expected) and torch.equal(windows.results[0][0], expected)
            assert frames.pixels().is_contiguous()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 7))
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
def test_each_window_is_handed_on_when_it_is_whole(starts, length):
    first = min(starts)
    pictures = [noise("gray", 2, 4, seed) for seed in range(first, max(starts) + length)]
    handed: list[tuple[int, int]] = []
    windows = Windows(
        Converter("x.mp4"), [s - first for s in starts], length, lambda n, p: handed.append((added, n)) or (n, p)
    )
    for added, picture in enumerate(pictures, first):
        assert windows.add(picture) == (added == len(pictures) + first - 1)
        assert len(windows._open) <= sum(s <= added < s + length for s in starts)  # the others are not in memory
    assert sorted(handed) == sorted((start + length - 1, n) for n, start in enumerate(starts))
    for n, (start, (place, pixels)) in enumerate(zip(starts, windows.results, strict=True)):
        assert place == n and pixels.shape == (length, 2, 4, 3)
        for t in range(length):
            assert torch.equal(pixels[t], torch.from_numpy(as_rgb24(pictures[start - first + t], Colorspace.ITU601)))


def test_a_change_of_size_is_refused():
    for sink in (
        Frames(Converter("x.mp4"), 2),
        Frames(Converter("x.mp4"), None),
        Windows(Converter("x.mp4"), [0], 2, lambda _, pixels: pixels),
    ):
        sink.add(noise("yuv420p", 16, 16))
        with pytest.raises(ClipError, match="changes its size half-way"):
            sink.add(noise("yuv420p", 16, 32))
