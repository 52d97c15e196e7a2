"""Captions as text: read where their encoding is certain, in one line, or refused by reason."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Sequence
from typing import Any

from ...errors import ClipError
from ..access.files import opened, status

LARGEST = 1 << 20  # bytes of a NAME.txt: a book is no caption
BETWEEN = "\x1e"  # several captions of a clip, kept as one text: `one_line` leaves no such character in any

# marks at the beginning of a file; UTF-32's little-endian one begins as UTF-16's does
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# no caption holds these, text that was read in a wrong encoding does: control characters, halves of surrogate pairs,
# what stands for the undecodable, and a mark read in the wrong order of bytes
_GARBAGE = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd-\uffff]")


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes (a multiple of 4, or all): what its mark says, UTF-16 or UTF-32 where
    zero bytes give them away, else UTF-8, which either decodes or is none."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if 0 not in head or len(head) % 2:
        return "utf-8"
    quarters = [head[n::4] for n in range(4)]
    if not len(head) % 4 and not any(map(any, quarters[2:])):
        return "utf-32-le"
    if not len(head) % 4 and not any(map(any, quarters[:2])):
        return "utf-32-be"
    even, odd = head[0::2], head[1::2]
    if even.count(0) <= 0.1 * len(even) and odd.count(0) >= 0.7 * len(odd):
        return "utf-16-le"
    if odd.count(0) <= 0.1 * len(odd) and even.count(0) >= 0.7 * len(even):
        return "utf-16-be"
    return "utf-8"


def one_line(text: str) -> str:
    """The whole text, its lines joined by single spaces."""
    return " ".join(text.replace("\ufeff", " ").split())


def joined(captions: str | Sequence[str]) -> str:
    """The captions of a clip, each one line, as one text."""
    return captions if isinstance(captions, str) else BETWEEN.join(captions)


def separate(text: str) -> list[str]:
    """The captions that `joined` made a text of."""
    return text.split(BETWEEN)


def is_garbage(text: str) -> bool:
    """Does it hold characters that only come of a wrong encoding?"""
    return _GARBAGE.search(text) is not None


def each_of(caption: Any) -> list[Any]:
    """The captions of a row, which may be a list; those that are empty do not count."""
    captions = list(caption) if isinstance(caption, list | tuple) else [caption]
    return [text for text in captions if text is not None and not (isinstance(text, str) and not one_line(text))]


def fault_of(captions: Sequence[Any]) -> str | None:
    """Why a row's captions cannot be used, if so."""
    if not captions:
        return "empty-caption"
    if not all(isinstance(text, str) for text in captions):
        return "bad-row"
    if sum(map(len, captions)) > LARGEST:
        return "caption-too-long"
    return "caption-encoding" if any(is_garbage(one_line(text)) for text in captions) else None


def read_caption(path: str | os.PathLike) -> str:
    """The whole text of a file in one line.

    UTF-8, with or without a mark, and UTF-16 and UTF-32 where they are certain. Raises ClipError: "no-caption" where
    there is no such file, "empty-caption", "caption-encoding" and "caption-too-long" (a file above 1 MiB).
    """
    try:
        found = status(path)
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
            raise ClipError(path, "no-caption", "is no file: put the caption's text there")
        if found.st_size > LARGEST:
            raise ClipError(path, "caption-too-long", f"has {found.st_size:,} bytes: shorten the caption")
        with opened(path) as file:
            data = file.read(LARGEST)
    except (OSError, ValueError) as error:
        if isinstance(error, ClipError):
            raise
        raise ClipError(path, "no-caption", f"cannot be read ({error}): write the caption there") from error
    try:
        text = one_line(data.decode(encoding_of(data)))
    except UnicodeDecodeError as error:
        raise _encoding(path) from error
    if is_garbage(text):
        raise _encoding(path)
    if not text:
        raise ClipError(path, "empty-caption", "holds no text: write the caption there")
    return text


def _encoding(path: str | os.PathLike) -> ClipError:
    return ClipError(
        path, "caption-encoding", "is not UTF-8 text, and what else it is cannot be told: save it as UTF-8"
    )
