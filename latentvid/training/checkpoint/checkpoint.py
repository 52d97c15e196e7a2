"""Checkpoints on disk: whole or not there, whatever moment the process is killed at.

A checkpoint is a directory ``step-00000100``. It is written as ``.step-00000100.partial`` and renamed into place after
its files, and ``manifest.json`` with their sizes and sha256, are on the disk. Plain files only: no torch in here.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path

from ...errors import UserError
from ...files import file_fault, follow_umask, leads_out, written_whole
from .records import Manifest, read_record

MANIFEST = "manifest.json"
_PART = ".part-{:05d}.json"
_STEP = re.compile(r"^step-(\d{8,})$")
_LEFTOVER = re.compile(r"^\.step-\d{8,}\.(partial|trash)(\.[0-9a-f]+)?$")
_NAMED = 5  # damaged checkpoints that an error names
_REPLACED = re.compile(r"^\.(step-(\d{8,}))\.old$")

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, under ``root``.

    ``keep_last``: how many of the newest stay; ``keep_every``: steps that are multiples of it stay for ever (0: none);
    ``keep``: these steps stay too; ``best``: a step that stays as long as it is that.
    In a run of several processes the main one alone calls :meth:`begin` and :meth:`commit`; the others write between
    them and call :meth:`seal`.
    """

    def __init__(self, root: Path, keep_last: int = 2, keep_every: int = 0, keep: Collection[int] = ()) -> None:
        if keep_last < 1 or keep_every < 0:
            raise ValueError(f"keep_last={keep_last} must be at least 1 and keep_every={keep_every} at least 0")
        self.root = Path(root)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.keep = frozenset(keep)
        self.best: int | None = None
        self._warned: set[int | None] = set()  # kinds of failure

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.root / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is being written, between :meth:`begin` and :meth:`commit`."""
        return self.root / f".step-{step:08d}.partial"

    def begin(self, step: int) -> Path:
        """An empty directory to write the checkpoint of ``step`` into; what a killed process left is cleared."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in list(self.root.iterdir()):
            replaced = _REPLACED.match(entry.name)
            if replaced and not (self.root / replaced[1]).exists():
                entry.rename(self.root / replaced[1])  # killed between the two renames of commit()
            elif replaced or _LEFTOVER.match(entry.name):
                self._remove(entry)
        partial = self.partial(step)
        if partial.exists():
            partial.rename(self._trash(step))
        partial.mkdir()
        return partial

    def abandon(self, step: int) -> None:
        """Makes room again where a checkpoint could not be written."""
        if self.partial(step).exists():
            self._remove(self.partial(step))

    def seal(self, step: int, part: int, files: Iterable[Path]) -> None:
        """A process other than the main one has written these files; :meth:`commit` waits for its word."""
        partial = self.partial(step)
        with written_whole(partial / _PART.format(part)) as beside:
            beside.write_text(json.dumps(_entries(partial, files)), encoding="utf-8")

    def missing_parts(self, step: int, parts: Iterable[int]) -> list[int]:
        """Which of the parts are not sealed yet."""
        return [part for part in parts if not (self.partial(step) / _PART.format(part)).exists()]

    def commit(self, step: int) -> Path:
        """Seals what was written since ``begin(step)``, puts it in its place, drops the checkpoints not to be kept.

        All parts must be sealed; files of no part are taken as the main process's own.
        """
        partial, final = self.partial(step), self.path(step)
        parts = sorted(partial.glob(_PART.format(0).replace("00000", "*")))
        entries = {}
        for part in parts:
            entries |= json.loads(part.read_text(encoding="utf-8"))
            part.unlink()
        files = (p for p in partial.rglob("*") if p.is_file() and p.relative_to(partial).as_posix() not in entries)
        entries |= _entries(partial, sorted(p for p in files if p != partial / MANIFEST))
        if not entries:
            raise RuntimeError(
                f"{partial} holds no files: write the checkpoint between begin({step}) and commit({step})"
            )
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": entries}, indent=1), encoding="utf-8")
        follow_umask(partial)
        folders = [p for p in partial.rglob("*") if p.is_dir()]
        for path in [partial / MANIFEST, *folders, partial]:
            _fsync(path)
        if final.exists():  # a directory cannot replace another in one step: newest() also looks at the .old one
            old = self.root / f".{final.name}.old"
            if old.exists():
                old.rename(self._trash(step))
            final.rename(old)
            partial.rename(final)
            self._remove(old)
        else:
            partial.rename(final)
        _fsync(self.root)
        self._prune(step)
        return final

    def steps(self) -> list[int]:
        """The steps that have a checkpoint directory, in rising order (whole or damaged; see :meth:`newest`)."""
        if not self.root.is_dir():
            return []
        return sorted(int(m[1]) for p in self.root.iterdir() if (m := _STEP.match(p.name)) and p.is_dir())

    def newest(self) -> Path | None:
        """The newest whole checkpoint, every file checked against its sha256; None where there are none.

        A damaged one is passed over with a warning that names the file. Raises UserError where all are damaged: to
        begin anew there would destroy what may yet be saved.
        """
        entries = sorted(self.root.iterdir()) if self.root.is_dir() else []
        found = {int(match[1]): entry for entry in entries if (match := _STEP.match(entry.name))}
        for entry in entries:
            if replaced := _REPLACED.match(entry.name):
                found.setdefault(int(replaced[2]), entry)
        damaged = {}
        for step in sorted(found, reverse=True):
            damage = find_damage(found[step], step)
            if damage is None:
                return found[step]
            damaged[found[step].name] = damage
            logger.warning("checkpoint %s is skipped: %s", found[step], damage)
        if damaged:
            named = "; ".join(f"{name}: {damage}" for name, damage in list(damaged.items())[:_NAMED])
            more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
            raise UserError(
                f"no checkpoint in {self.root} is whole ({named}{more}); nothing was changed: mend one, or to begin "
                "anew remove that folder by hand or give another run.dir"
            )
        return None

    def _prune(self, step: int) -> None:
        """Drops checkpoints up to ``step``. Later ones (left by a run that resumed further back) are not counted."""
        earlier = [s for s in self.steps() if s <= step]
        for old in earlier[: -self.keep_last]:
            if old == self.best or old in self.keep or (self.keep_every and old % self.keep_every == 0):
                continue
            trash = self._trash(old)
            try:
                self.path(old).rename(trash)  # so that a kill during the removal leaves no half checkpoint
            except OSError as error:
                self._warn(self.path(old), error)
            else:
                self._remove(trash)

    def _trash(self, step: int) -> Path:
        return self.root / f".{self.path(step).name}.trash.{uuid.uuid4().hex}"

    def _remove(self, folder: Path) -> None:
        """As far as the file system lets it (a file that is open elsewhere stays, on NFS); tried again at the next
        checkpoint. The run goes on: what it needs is written."""
        try:
            shutil.rmtree(folder)
        except OSError as error:
            self._warn(folder, error)

    def _warn(self, folder: Path, error: OSError) -> None:
        if error.errno not in self._warned:
            self._warned.add(error.errno)
            logger.warning(
                "%s cannot be removed (%s); it is tried again at later checkpoints, without another word",
                folder,
                error.strerror or error,
            )


def find_damage(checkpoint: Path, step: int | None = None) -> str | None:
    """What is wrong with a checkpoint directory, naming the file, or None when it is whole.

    step: which it must be of. Files that a reader would take must be those of its manifest, and lie within it.
    """
    if checkpoint.is_symlink() and leads_out(checkpoint, checkpoint.parent):
        return "it is a link that leads out of its folder"
    if not checkpoint.is_dir():
        return "it is no folder"
    try:
        manifest = read_record(checkpoint / MANIFEST, Manifest, checkpoint)
    except UserError as error:
        return str(error).removeprefix(f"{checkpoint}{os.sep}")
    if step is not None and manifest["step"] != step:
        return f"{MANIFEST} is of step {manifest['step']}"
    if not manifest["files"]:
        return f"{MANIFEST} names no file"
    for name, entry in manifest["files"].items():
        path = checkpoint / name
        if fault := file_fault(path, checkpoint):
            return f"{name} {fault}"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        try:
            if _sha256(path) != entry["sha256"]:
                return f"{name} does not match its sha256"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    strange = {p.name for p in checkpoint.glob("*.safetensors")} - manifest["files"].keys()
    return f"{sorted(strange)[0]} is not of this checkpoint" if strange else None


def _entries(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, int | str]]:
    """Size and sha256 of each file, once it is on the disk."""
    entries = {}
    for path in files:
        _fsync(path)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    return entries


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
