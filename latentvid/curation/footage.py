"""The files of a SOURCE: a folder of footage, or a table of files and captions."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from functools import partial

from ..data.access.remote import below
from ..data.access.shards import is_several
from ..data.manifest.manifest import READERS, read_manifest
from ..data.manifest.samples import Dropped
from ..data.manifest.scan import MEDIA, folders
from ..data.manifest.tables import ManifestError
from ..data.storage import patiently
from ..places import absolute, has_credentials, is_url, join, name_of, shown


@dataclass(frozen=True)
class File:
    """source: its name in the footage, with slashes. path: where it is. captions: that a table has of it. texts: names
    of the files beside it, where the folder has been listed."""

    source: str
    path: str
    captions: tuple[str, ...] = ()
    texts: frozenset[str] | None = None


def find_files(place: str | os.PathLike, besides: str | os.PathLike) -> tuple[list[File], list[tuple[str, str]]]:
    """(the videos and images of a folder, or of a table, in the order of their names; what is left out, by reason).

    besides: a folder that does not count, where what is made goes. Raises ManifestError where there is none, and
    StorageError.
    """
    place = absolute(place)
    if not is_url(place) and os.path.isdir(place):
        files, dropped = _in_folder(place, os.path.realpath(besides))
    elif is_url(place) and not is_several(place) and not _is_file(place):
        if has_credentials(place):
            raise ManifestError(f"{shown(place)}: leave user, password and query out: set them in the environment")
        files, dropped = patiently(partial(_in_far_folder, place.rstrip("/"), absolute(besides)), place)
    elif is_url(place) or is_several(place) or os.path.exists(place):
        files, dropped = _in_table(place)
    else:
        raise ManifestError(f"there is no {place}: give a folder of footage, or a table of files and captions")
    if not files:
        raise ManifestError(f"{place} holds no video and no image: files end in {', '.join(sorted(MEDIA)[:6])}, ...")
    return sorted(files, key=lambda file: file.source), dropped


def _in_folder(place: str, besides: str) -> tuple[list[File], list[tuple[str, str]]]:
    dropped, files = Dropped(), []
    left_out: list[tuple[str, str]] = []
    for folder, names in folders(place, dropped):
        texts = frozenset(names)
        if os.path.realpath(folder) == besides or os.path.realpath(folder).startswith(besides + os.sep):
            continue
        inside = os.path.relpath(folder, place)
        for name in names:
            source = name if inside == "." else f"{inside}/{name}".replace(os.sep, "/")
            _take(source, os.path.join(folder, name), texts, files, left_out)
    left_out += [(os.path.relpath(path, place), reason) for path, reason in dropped]
    return files, sorted(left_out)


def _in_far_folder(place: str, besides: str) -> tuple[list[File], list[tuple[str, str]]]:
    files: list[File] = []
    left_out: list[tuple[str, str]] = []
    inside: dict[str, set[str]] = {}
    names = [name for name in below(place) if not join(place, name).startswith(besides + "/")]
    if not names:
        raise ManifestError(f"there is nothing at {shown(place)}: give a folder of footage, or a table of files")
    for name in names:
        inside.setdefault(posixpath.dirname(name), set()).add(posixpath.basename(name))
    texts = {folder: frozenset(found) for folder, found in inside.items()}
    for name in names:
        _take(name, join(place, name), texts[posixpath.dirname(name)], files, left_out)
    return files, sorted(left_out)


def _take(source: str, path: str, texts: frozenset[str], files: list[File], left_out: list[tuple[str, str]]) -> None:
    """Adds a file to those of footage, or to those left out; what is neither counts nowhere."""
    if os.path.splitext(source)[1].lower() not in MEDIA:
        return
    if any(part.startswith(".") for part in source.split("/")):
        left_out.append((source, "hidden"))
    elif not _is_text(source):
        left_out.append((ascii(source), "name-encoding"))
    else:
        files.append(File(source, path, texts=texts))


def _is_file(url: str) -> bool:
    """By its ending: a storage may not know folders."""
    ending = os.path.splitext(name_of(url))[1].lower()
    return ending in READERS or ending in MEDIA


def _in_table(place: str) -> tuple[list[File], list[tuple[str, str]]]:
    manifest = read_manifest(place, check_files=False)
    samples = manifest.samples
    if samples.start is not None:
        raise ManifestError(f"{place} has segments (start, end): give whole files, they are cut here")
    files = {
        name: File(shown(name).replace(os.sep, "/"), samples.path(i), tuple(samples.captions(i)))
        for i, name in enumerate(samples.paths)
    }
    return list(files.values()), sorted(manifest.dropped)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
