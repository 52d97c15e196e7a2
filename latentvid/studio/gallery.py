"""What the studio made, in one folder: each clip with a JSON file of the same name that says how it was made.

20261201-101500-123456.mp4   20261201-101500-123456.json   inputs/8c1f....png
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import check_writable, read_json, write_whole, written_whole
from ..limits import LONG
from .limits import Limits, check_upload

ENDINGS = (".mp4", ".png")
NAME = re.compile(r"\d{8}-\d{6}-\d{6}\.(?:mp4|png)")
KEPT = re.compile(r"inputs/[0-9a-f]{16}\.[a-z0-9]{1,5}")
MOST_JSON = 2**20  # bytes
INPUTS = "inputs"


@dataclass(frozen=True)
class Item:
    """A clip. name: of its file. program: that made it. values: what was said of it, as `fields.read_values` has it.
    command: the program's words. made: when, as ISO has it. seconds: how long it took."""

    name: str
    program: str
    values: dict[str, Any]
    command: list[str]
    made: str
    seconds: float

    @property
    def prompt(self) -> str:
        return str(self.values.get("prompt", ""))

    @property
    def seed(self) -> int:
        return int(self.values.get("seed", 0))

    def again(self) -> tuple[str, dict[str, Any]]:
        """(program, values) that make it once more."""
        return self.program, dict(self.values)

    def vary(self) -> tuple[str, dict[str, Any]]:
        """(program, values) of the same with the next seed."""
        return self.program, {**self.values, "seed": self.seed + 1 if self.seed < LONG else 0}


class Gallery:
    """The folder, which is made if need be. Raises UserError where it cannot be written."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder, self._limits = folder.resolve(), limits or Limits()
        check_writable(self.folder, "give --gallery another folder, or mend this one")

    def new(self, ending: str) -> Path:
        """A file for a clip that is to be made."""
        return self.folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}{ending}"

    def add(self, file: Path, program: str, values: Mapping[str, Any], command: list[str], seconds: float) -> Item:
        """Writes how the clip, which lies in the gallery, was made."""
        made = datetime.now().astimezone().isoformat(timespec="seconds")
        item = Item(file.name, program, dict(values), command, made, round(seconds, 1))
        said = {key: value for key, value in asdict(item).items() if key != "name"}
        write_whole(file.with_suffix(".json"), json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        return item

    def items(self) -> list[Item]:
        """All of them, the newest first; files that are not of a gallery are passed over."""
        found = (self._item(path) for path in sorted(self.folder.iterdir(), reverse=True))
        return [item for item in found if item is not None]

    def item(self, name: str) -> Item:
        """Raises UserError for what is not in the gallery."""
        item = self._item(self.folder / name) if NAME.fullmatch(name) else None
        if item is None:
            raise UserError(f"{name[:80]} is not in the gallery any more")
        return item

    def _item(self, path: Path) -> Item | None:
        if not NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            return None
        try:
            said = read_json(path.with_suffix(".json"), root=self.folder, most=MOST_JSON)
            item = Item(name=path.name, **said)
        except (UserError, TypeError):
            return None
        texts = isinstance(item.values, dict) and isinstance(item.program, str) and isinstance(item.made, str)
        whole = texts and isinstance(item.command, list) and isinstance(item.seconds, int | float)
        return replace(item, command=list(map(str, item.command))) if whole and _is_seed(item) else None

    def file(self, item: Item) -> Path:
        return self.folder / item.name

    def keep(self, upload: str) -> str:
        """Copies an uploaded file into the gallery, where it is checked, under a name of its content; gives that name.
        Raises UserError for what is no video or picture, or beyond the limits."""
        path = Path(upload)
        check_upload(path, self._limits)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        name = f"{INPUTS}/{digest}{path.suffix.lower()}"
        if not (self.folder / name).exists():
            with written_whole(self.folder / name) as beside:
                shutil.copyfile(path, beside)
        return name

    def kept(self, name: str) -> Path:
        """The file that was kept under that name. Raises UserError where it is not there."""
        path = self.folder / name
        if not KEPT.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise UserError(f"{name[:80]} is not in the gallery any more: upload it again")
        return path


def _is_seed(item: Item) -> bool:
    seed = item.values.get("seed", 0)
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= LONG
