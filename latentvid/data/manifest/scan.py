"""Finding the videos and images of a folder, each with its caption beside it; what is not used is counted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from ...errors import ClipError
from ..video.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from .captions import joined, read_caption
from .samples import Dropped, Row

MEDIA = IMAGE_ENDINGS | VIDEO_ENDINGS


def find_captioned(folder: str, dropped: Dropped, captions: Sequence[str] = ()) -> Iterator[Row]:
    """The files with captions under `folder`, in the order of their paths; what is left out is added to `dropped`.

    The caption of NAME.mp4 is the whole text of NAME.txt beside it, in one line; files without one have `captions`,
    where there are any. Folders behind links are followed.
    Reasons: those of `read_caption`, "name-encoding", "hidden" (a media file of which name or folder begin with a dot),
    "unknown-ending" (a file with a caption, but not known as a video or image), "no-clip" (a caption without a file),
    "folder-twice" (a link to a folder that is here already) and "unreadable-folder".
    """
    for place, names in sorted(folders(folder, dropped)):
        hidden = any(part.startswith(".") for part in os.path.relpath(place, folder).split(os.sep) if part != ".")
        beside = {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(".txt")}
        used = set()
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            path = os.path.join(place, name)
            if name in beside.values():
                continue
            if ending.lower() not in MEDIA:
                if stem in beside and not hidden:
                    used.add(stem)
                    dropped.add(path, "unknown-ending")
            elif hidden or name.startswith("."):
                dropped.add(path, "hidden")
            else:
                used.add(stem)
                try:
                    yield Row(os.path.relpath(path, folder), _caption(path, beside.get(stem), captions))
                except ClipError as error:
                    dropped.add(path, error.reason)
        for stem in sorted(beside.keys() - used if not hidden else ()):
            if not stem.startswith("."):
                dropped.add(os.path.join(place, beside[stem]), "no-clip")


def _caption(path: str, name: str | None, otherwise: Sequence[str]) -> str:
    """Of a file, from the file `name` beside it, or else the other captions; raises ClipError."""
    if name is None and not otherwise:
        raise ClipError(path, "no-caption", "has no caption: write one beside it")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ClipError(path, "name-encoding", "has a name that is not UTF-8: rename it") from None
    return joined(otherwise) if name is None else read_caption(os.path.join(os.path.dirname(path), name))


def folders(folder: str, dropped: Dropped) -> Iterator[tuple[str, list[str]]]:
    """Each folder once, with the names of its files. Those that are here by themselves go before links to them."""
    seen: set[tuple[int, int]] = set()
    links: list[str] = []
    turn = [folder]
    while turn or links:
        place = turn.pop() if turn else links.pop(0)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                dropped.add(place, "folder-twice")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            dropped.add(place, "unreadable-folder")
            continue
        inside = [entry for entry in entries if _is_folder(entry)]
        names = {entry.name for entry in inside}
        turn += [entry.path for entry in inside if not entry.is_symlink()]
        links += [entry.path for entry in inside if entry.is_symlink()]
        yield place, [entry.name for entry in entries if entry.name not in names]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False
