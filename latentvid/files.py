"""Files that appear under their name only when whole, with the modes that the user's umask asks for."""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .places import is_url, place, shown

LONGEST_NAME = 255  # bytes, of most file systems
MOST_JSON = 2**28  # bytes
SMALL = 2**20  # bytes: configurations and the like


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a hidden path beside `path` to write to, and renames it when the block ends without an error.

    The folder is made if need be. After an error `path` is as it was and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # whole, so that a colon in the name is not taken for a protocol by ffmpeg
    beside = Path(os.path.abspath(path.with_name(f".{part_of(path.name)}.{uuid.uuid4().hex}.part")))
    try:
        yield beside
        follow_umask(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def local(path: str | os.PathLike, what: str) -> str:
    """A path of this machine. Raises UserError for a URL, where only such a path will do; what: it is of, in words."""
    if is_url(path):
        raise not_here(what, path)
    return place(path)


def not_here(what: str, path: str | os.PathLike) -> UserError:
    """What to say of a URL instead of a path."""
    return UserError(
        f"{what}={shown(path)} cannot be a URL: give a path of this machine, and bring files here and there with "
        '`latentvid copy` (docs/data.md, "Buckets and URLs", says what may be a URL)'
    )


def write_whole(path: Path, text: str) -> None:
    """A file that holds the text, or what it held before."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def part_of(name: str) -> str:
    """As much of a file's name as the hidden name beside it has room for."""
    return os.fsencode(name)[: LONGEST_NAME - 40].decode("utf-8", "ignore")


def inside(folder: Path, name: str, usual: str) -> str:
    """What to give instead of a folder, in words: the one of that name in it, where a run has left one."""
    return str(folder / name) if (folder / name).is_dir() else usual


def check_name(path: Path, option: str, more: int = 0) -> None:
    """Raises UserError for a name that is too long, or no text. more: bytes that names beside it are longer."""
    length, most = len(os.fsencode(path.name)), LONGEST_NAME - more
    if length > most:
        raise UserError(f"{option} {path.name[:40]}...: its name has {length} bytes, and at most {most} can be")
    if any(0xD800 <= ord(c) <= 0xDFFF or ord(c) < 32 or ord(c) == 127 for c in str(path)):
        raise UserError(f"{option} {str(path)!a}: give a name in UTF-8, without control characters")


def check_parts(path: Path, key: str) -> None:
    """Raises UserError where a part of the path is longer than a name can be."""
    for part in path.parts:
        if (length := len(os.fsencode(part))) > LONGEST_NAME:
            raise UserError(f"{key}={part[:40]}...: a name of {length} bytes, and at most {LONGEST_NAME} can be")


def check_target(path: Path, option: str = "--output") -> None:
    """Raises UserError unless a file can be written under that name: before the work, not after it."""
    check_name(path, option)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path} is {'a folder' if path.is_dir() else 'no plain file'}: give another name")
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror}): give another name") from None
    check_writable(path.parent, f"give {option} another folder, or mend this one")


def check_outputs(folder: Path, names: Iterable[str], option: str = "--out") -> None:
    """As `check_target`, of files in a folder, which is not there afterwards where it was not before."""
    check_name(folder, option)
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        for name in names:
            check_target(folder / name, option)
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def follow_umask(path: str | os.PathLike) -> None:
    """Gives a file, or every file under a folder, the mode that the umask asks for: safetensors writes 0600."""
    path = Path(path)
    mode = 0o666 & ~_umask()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with contextlib.suppress(OSError):  # a file system that keeps no modes
                os.chmod(file, mode)


def _umask() -> int:
    """As the system tells it; to ask Python for it is to set it, for all threads."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)[1], 8)
    except (OSError, TypeError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def check_writable(folder: str | os.PathLike, fix: str = "give another folder, or mend this one") -> None:
    """Raises UserError unless a file can be written in the folder, which is made if need be: before hours of work."""
    folder = Path(folder)
    probe = folder / f".{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")  # a full disk still makes empty files
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): {fix}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def kept_beside(path: Path, copy: bool = False) -> Path:
    """Moves (or copies) a file to NAME.1, or the first such name that is free, and says where: nothing is lost."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.{number}")):
        number += 1
    if copy:
        shutil.copyfile(path, kept)
    else:
        os.rename(path, kept)
    return kept


def linked_copy(folder: Path, out: Path, wanted: Callable[[Path], bool]) -> None:
    """Copies the files of a folder whose places in it are wanted into `out`.

    Weights come under a second name (a hard link) where that can be, which needs no room; what people change is a copy.
    Raises UserError.
    """
    for found in sorted(folder.rglob("*")):
        place = found.relative_to(folder)
        if found.is_dir() or not wanted(place):
            continue
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        _linked(found.resolve(), out / place)


def _linked(found: Path, place: Path) -> None:
    try:
        if found.stat().st_size >= SMALL:
            with contextlib.suppress(OSError):
                os.link(found, place)
                return
        shutil.copyfile(found, place)
    except OSError as error:
        raise UserError(f"{found} could not be copied to {place} ({error}): make room, and do it again") from error


def leads_out(path: Path, root: Path) -> bool:
    """Whether a link takes `path` out of the folder `root`."""
    return not path.resolve().is_relative_to(root.resolve())


def file_fault(path: Path, root: Path | None = None) -> str | None:
    """Why a path that should be a file, and lie in the folder `root`, must not be opened; None where it may be.

    To open a pipe, a socket or a device can hang for ever.
    """
    try:
        if root is not None and leads_out(path, root):
            return "is a link that leads out of its folder"
        if path.is_file():
            return None
        return "is missing" if not path.exists() else "is a folder" if path.is_dir() else "is no regular file"
    except (OSError, RuntimeError) as error:  # the second: links in a circle
        return f"cannot be looked at ({error})"


def read_json(path: Path, root: Path | None = None, fix: str = "", most: int = MOST_JSON) -> Any:
    """What a JSON file holds.

    root: the folder that it must lie in. fix: what to do where it is of no use. most: bytes that it may have. Raises
    UserError, which names the file, where it is no plain file of that folder, cannot be read, or is damaged.
    """
    fault = file_fault(path, root)
    try:
        if fault is None and (size := path.stat().st_size) > most:
            fault = f"has {size:,} bytes: it is not what its name says"
        if fault is None:
            return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    except UnicodeDecodeError:
        fault = "is damaged (not UTF-8 text)"
    except RecursionError:
        fault = "is damaged (nested too deep)"
    except ValueError as error:
        fault = f"is damaged ({error})"
    raise UserError(f"{path} {fault}{fix and f': {fix}'}")
