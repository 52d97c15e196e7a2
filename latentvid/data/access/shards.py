"""Names that stand for several files, here and behind URLs: `s-{0000..0063}.tar`, `{a,b}.jsonl`, `*.parquet`."""

from __future__ import annotations

import glob
import os
import re

from ...errors import UserError
from ...places import is_url, join, name_of, parent, place, shown
from .files import exists
from .remote import asked, filesystem

MOST = 1 << 17  # files
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def is_several(path: str | os.PathLike) -> bool:
    """Whether a name is a pattern, in its last part, and no file's own."""
    text = place(path)
    if not re.search(r"[{*?\[]", name_of(text)) or (is_url(text) and "?" in text and text.startswith("http")):
        return False
    return is_url(text) or not os.path.exists(text)


def expanded(path: str | os.PathLike) -> list[str]:
    """The files of a pattern: braces in their order, as WebDataset has them, what * and ? fit sorted by name. Raises
    UserError where there is none, or one that braces name is not there."""
    text = place(path)
    folder, names = parent(text), [name_of(text)]
    while _BRACES.search(names[0]):
        names = [each for name in names for each in _once(text, name)]
        if len(names) > MOST:
            raise UserError(f"{shown(text)} stands for more than {MOST:,} files: give fewer")
    found: list[str] = []
    for name in names:
        files = _matching(folder, name) if re.search(r"[*?\[]", name) else [join(folder, name)]
        if not files or (len(files) == 1 and len(names) < 64 and not exists(files[0])):
            raise UserError(f"{shown(join(folder, name))}: there is no such file, which {shown(text)} stands for")
        found += files
    return found


def _once(text: str, name: str) -> list[str]:
    """With the first braces replaced by each thing that they stand for."""
    braces = _BRACES.search(name)
    if numbers := _RANGE.fullmatch(braces[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MOST:
            raise UserError(f"{shown(text)}: {{{braces[1]}}} is no range of at most {MOST:,} numbers that ascend")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        options = [f"{n:0{width}d}" for n in range(first, last + 1)]
    else:
        options = braces[1].split(",")
    return [name[: braces.start()] + option + name[braces.end() :] for option in options]


def _matching(folder: str, name: str) -> list[str]:
    if not is_url(folder):
        return sorted(glob.glob(os.path.join(glob.escape(folder), name)))
    fs, path = filesystem(join(folder, name))
    scheme = folder.partition("://")[0]
    names = (each.rstrip("/").rpartition("/")[2] for each in asked(folder, fs.glob, path))
    return sorted(join(f"{scheme}://{folder.partition('://')[2]}", each) for each in names)
