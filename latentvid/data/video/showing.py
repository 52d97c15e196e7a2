"""A decoded frame as it is meant to be seen: RGB, BT.709 or sRGB, upright, of square pixels, over black.

Axes: H height, W width.
"""

import os
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from ...errors import ClipError
from .hdr import HLG, PQ, WIDE, as_sdr
from .images import over_black

# swscale's quick paths are a grey level off on average, and more at edges; these cost about 2 ms a 1280x720 frame
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNTAGGED = 2  # in H.273's tables of matrices and curves
_MATRICES = frozenset({0, 1, _UNTAGGED, 3, 4, 5, 6, 7, 9})  # what swscale knows; 3 is reserved
_NO_CURVES = frozenset({8, 9, 10, 17})  # linear, logarithmic, cinema's
_WITH_ALPHA = ("yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ya", "pal8")
_RGB_IN_GBR = (2, 0, 1)


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transposed, then mirrored up and down, then left and right), by the display matrix; the nearest right angle."""
    side = frame.side_data.get(Type.DISPLAYMATRIX)
    if side is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(side, np.int32, 5).tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


class Converter:
    """Decoded frames to pictures of one size. sar: width of a pixel by its height."""

    def __init__(self, path: str | os.PathLike, sar: Fraction | None = None) -> None:
        self.path, self._sar = path, sar or Fraction(1)
        if not Fraction(1, 20) <= self._sar <= 20:
            raise ClipError(path, "unreadable", f"has pixels of {self._sar} to 1; export it with square ones")
        self._shape: tuple[int, ...] | None = None
        self._told: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self._last: tuple[Any, Picture] | None = None

    def __call__(self, frame: Any) -> "Picture":
        if self._last is not None and self._last[0] is frame:  # shown again
            return self._last[1]
        picture = Picture(frame) if isinstance(frame, np.ndarray) else self._convert(frame)
        if picture.shape != (self._shape or picture.shape):
            raise ClipError(self.path, "unreadable", "changes its size half-way; cut it there or export it again")
        if self._shape is None and self._told not in (None, picture.shape[:2]):
            (height, width), told = picture.shape[:2], " x ".join(map(str, self._told))
            fault = f"is {height} x {width} pixels, not {told} as its table says; correct that, or leave it out there"
            raise ClipError(self.path, "other-size", fault)
        self._shape, self._last = picture.shape, (frame, picture)
        return picture

    def expect(self, size: tuple[int, int]) -> None:
        """(height, width) that a table says of the file: another one is a ClipError ("other-size")."""
        self._told = size

    def size(self, frame: Any) -> tuple[int, int]:
        """(height, width) as it is shown. Raises ClipError for colours that cannot be read."""
        self._check(frame)
        height, width = self._square(frame)
        return (width, height) if orientation(frame)[0] else (height, width)

    def _square(self, frame: Any) -> tuple[int, int]:
        """(height, width) of square pixels, before it is turned: FFmpeg's scale=iw*sar:ih, after it is turned."""
        height, width = frame.height, frame.width
        if orientation(frame)[0]:
            return _stretched(height, 1 / self._sar), width
        return height, _stretched(width, self._sar)

    def _check(self, frame: Any) -> None:
        if frame.colorspace not in _MATRICES or frame.color_trc in _NO_CURVES:
            numbers = f"matrix {int(frame.colorspace)}, curve {int(frame.color_trc)} of H.273"
            raise ClipError(self.path, "colours", f"has colours that cannot be read ({numbers}); export it as BT.709")
        if frame.color_trc == _UNTAGGED and Type.DOVI_METADATA in frame.side_data:
            raise ClipError(self.path, "hdr", "is Dolby Vision alone (profile 5); export it as SDR, HLG or HDR10")

    def _convert(self, frame: Any) -> "Picture":
        if frame.colorspace == _UNTAGGED:  # what players assume of an untagged file
            large = frame.width >= 1280 or frame.height > 576
            matrix = Colorspace.ITU709 if large else Colorspace.ITU601
        else:
            matrix = None
        self._check(frame)
        height, width = self._square(frame)

        def planar(name: str) -> Any:
            # swscale's accurate code for packed RGB gives the same values, but takes four times as long
            return self._reformatter.reformat(
                frame, width, height, format=name, src_colorspace=matrix, interpolation=ACCURATE, threads=1
            )

        if frame.color_trc in (PQ, HLG) or frame.color_primaries in WIDE:
            deep = planar("gbrp16le")
            coded = np.stack([_plane(deep, n, np.uint16) for n in _RGB_IN_GBR], -1)
            planes = np.moveaxis(as_sdr(coded, frame.color_trc, frame.color_primaries), -1, 0)
        elif frame.format.name.startswith(_WITH_ALPHA):
            rgba = planar("gbrap")
            planes = [over_black(_plane(rgba, n), _plane(rgba, 3)) for n in _RGB_IN_GBR]
        else:
            gbr = planar("gbrp")
            planes = [_plane(gbr, n) for n in _RGB_IN_GBR]
        return Picture(*(_turned(plane, *orientation(frame)) for plane in planes))


class Picture:
    """Upright colours, in the memory they came in: three planes [H,W], or one array [H,W,3]."""

    def __init__(self, *planes: np.ndarray) -> None:
        self._planes = planes
        self.shape = (*planes[0].shape[:2], 3)

    def write(self, pixels: np.ndarray) -> None:
        """Into uint8 [H,W,3]. (swscale could mix them too, but in memory of its own that is new for every frame.)"""
        if len(self._planes) == 1:
            pixels[:] = self._planes[0]
            return
        for colour, plane in enumerate(self._planes):
            pixels[..., colour] = plane


def _stretched(side: int, by: Fraction) -> int:
    """Pixels that are off from square by less than one in the whole side are square."""
    side_then = int(side * by)
    return side if abs(side * by - side) < 1 else max(1, side_then)


def _turned(plane: np.ndarray, transposed: bool, up_down: bool, left_right: bool) -> np.ndarray:
    plane = plane.T if transposed else plane
    return plane[:: -1 if up_down else 1, :: -1 if left_right else 1]


def _plane(frame: Any, n: int, kind: type = np.uint8) -> np.ndarray:
    """[H,W], in the frame's own memory."""
    plane = frame.planes[n]  # its rows may be longer than the picture is wide
    row = plane.line_size // np.dtype(kind).itemsize
    return np.frombuffer(plane, kind).reshape(-1, row)[: frame.height, : frame.width]


class Deinterlacer:
    """Interlaced frames to whole ones, one for one, by FFmpeg's bwdif; each comes out when the next has gone in."""

    def __init__(self, first: Any) -> None:
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=first.time_base or Fraction(1, 1000)
        )
        filters = [self._graph.add("bwdif", "mode=send_frame:deint=interlaced"), self._graph.add("buffersink")]
        source.link_to(filters[0])
        filters[0].link_to(filters[1])
        self._graph.configure()

    def push(self, frame: Any | None) -> list[Any]:
        """The frames that become whole; None: those that are left."""
        self._graph.push(frame)
        whole = []
        while True:
            try:
                whole.append(self._graph.pull())
            except (BlockingIOError, EOFError):
                return whole
