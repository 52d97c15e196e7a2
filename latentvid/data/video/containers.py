"""Is a video file cut short? Read from what its container says of its own length; nothing is decoded."""

import os
from collections.abc import Iterator
from typing import BinaryIO

from ..access.files import opened, status

_ISO_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide"})


def is_cut(path: str | os.PathLike) -> bool:
    """Does the container (mp4, mov, mkv, webm, avi) declare more bytes than the file has?"""
    size = status(path).st_size
    with opened(path) as file:
        head = file.read(64)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return 8 + int.from_bytes(head[4:8], "little") > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _segment_end(head) > size
        return head[4:8] in _ISO_BOXES and _iso_is_cut(file, size)


def _segment_end(head: bytes) -> int:
    """Where a Matroska file ends by its header; 0 where it does not say."""
    length, start = _ebml_length(head, 4)
    segment = start + length
    if head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start = _ebml_length(head, segment + 4)
    return start + length if length else 0


def _ebml_length(head: bytes, at: int) -> tuple[int, int]:
    """(length, where the content starts); length 0 when unknown (all ones, as live streams write)."""
    octets = 9 - head[at].bit_length() if at < len(head) and head[at] else 8
    ones = (1 << 7 * octets) - 1
    length = int.from_bytes(head[at : at + octets], "big") & ones
    return (0 if length == ones else length), at + octets


def _iso_is_cut(file: BinaryIO, size: int) -> bool:
    """Does a top-level box of an mp4 reach beyond the end?"""
    for name, offset, length in _iso_boxes(file, size):
        if offset + length > size:
            return name in _ISO_BOXES  # else junk after the last box
    return False


def _iso_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, bytes) of each top-level box; the last may be open to the end, and is left out then."""
    offset = 0
    while offset + 8 <= size:
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: open to the end
            return
        yield head[4:8], offset, length
        offset += length


def pictures_of(path: str | os.PathLike) -> list[tuple[int, int]]:
    """The bytes [begin, end) of an mp4 that hold coded pictures and sound, without the heads of their boxes."""
    size = status(path).st_size
    with opened(path) as file:
        boxes = list(_iso_boxes(file, size)) if file.read(8)[4:] in _ISO_BOXES else []
    return [(begin + 16, begin + length) for name, begin, length in boxes if name == b"mdat" and length > 16]


def dolby_profile(path: str | os.PathLike) -> int | None:
    """The Dolby Vision profile that an mp4 states (its dvcC or dvvC box, sought in the file's ends)."""
    with opened(path) as file:
        ends = file.read(1 << 20)
        file.seek(max(0, status(path).st_size - (1 << 22)))
        ends += file.read()
    for name in (b"dvcC", b"dvvC"):
        at = ends.find(name)
        if 0 <= at < len(ends) - 8:
            return ends[at + 6] >> 1
    return None
