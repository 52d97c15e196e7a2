"""Where a curation's outputs go: a folder, or a URL, for which a folder of this machine stands while it works."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from ..data.access.copies import copy
from ..data.access.files import exists
from ..data.access.remote import write_object
from ..data.access.store import key_of
from ..data.storage import patiently
from ..errors import UserError
from ..files import write_whole
from ..places import absolute, has_credentials, is_url, join, shown
from .writing import OUTPUTS

JOURNALS = "journals"  # their folder
STAGES = ("files", "measures", "networks", "embeddings", "captions", "clip", "encoded")


class Output:
    """place: a whole path, or a URL. folder: of this machine; of a URL one in XDG_CACHE_HOME (~/.cache) by its name.

    Raises UserError for a URL with credentials.
    """

    def __init__(self, place: str | os.PathLike) -> None:
        self.place = absolute(place).rstrip("/")
        self.far = is_url(self.place)
        if has_credentials(self.place):
            raise UserError(f"{shown(self.place)}: leave user, password and query out: set them in the environment")
        if self.place.startswith(("http://", "https://")):
            raise UserError(f"{self.place} can only be read: give a folder, or a URL of a storage that is written to")
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        here = os.path.join(home, "latentvid", "curations", key_of(self.place)) if self.far else self.place
        self.folder = Path(here)

    def journal(self, stage: str) -> Path:
        return self.folder / JOURNALS / f"{stage}.jsonl"

    def open(self) -> None:
        """Of a URL: makes sure that it can be written to, and fetches the journals where this machine has none of it:
        another one began. Raises StorageError."""
        if not self.far:
            return
        begun = self.folder / JOURNALS / "begun"
        write_whole(begun, "a curation goes on here\n")
        self._send(begun, join(self.place, f"{JOURNALS}/begun"))
        if any(self.journal(stage).exists() for stage in STAGES):
            return
        for stage in STAGES:
            there = self._journal_there(stage)
            if patiently(partial(exists, there), there):
                copy(there, self.journal(stage))

    def send_journal(self, stage: str) -> None:
        if self.far:
            self._send(self.journal(stage), self._journal_there(stage))

    def send_outputs(self) -> None:
        """The summary last: where it is, all is there."""
        for name in OUTPUTS if self.far else ():
            self._send(self.folder / name, join(self.place, name))

    def holds(self, name: str) -> bool:
        there = join(self.place, name)
        return patiently(partial(exists, there), there) if self.far else os.path.isfile(there)

    @staticmethod
    def _send(path: Path, url: str) -> None:
        patiently(partial(write_object, url, path), url)

    def _journal_there(self, stage: str) -> str:
        return join(self.place, f"{JOURNALS}/{stage}.jsonl")
