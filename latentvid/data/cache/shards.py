"""Shards of a latent cache: tensors by window, each with what it was made of and a hash of its bytes.

`shard-00000.safetensors` holds `mean.I`, `std.I` [C,f,h,w] and `text.I` [S,Dt] of window I as float16; its metadata
the cache's key, of each window the keys of its latent and its text, and of each tensor a hash. `shard-00000.json`
beside it says which files its windows are of, as they were when they were read, and which could not be encoded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import ClipError, StorageError, UserError
from ...files import written_whole
from ...limits import shown
from ..storage import PATIENCE_S, is_storage_fault, number_of, patiently
from .opened import PlacesOf

T = TypeVar("T")

AGAIN = "run vae/encode_latents.py again"
TOGETHER = 32  # tensors that are read at once where all are
_TYPES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


class FileState(NamedTuple):
    """A file as it was read: bytes, when its content and when anything of it changed (ns), sha256 of the content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


class EntryKey(NamedTuple):
    """What a window's latent and its text were made of: hashes, equal where making them again would give the same."""

    latent: str
    text: str


@dataclass(frozen=True)
class Encoded:
    """One window's entry: mean and std [C,f,h,w] of the normalised latent, text states [S,Dt]."""

    mean: Tensor
    std: Tensor
    text: Tensor


@dataclass
class Origins:
    """Of a shard. files: by path as the manifest has it. dropped: {latent key: (path, reason)}."""

    files: dict[str, FileState] = field(default_factory=dict)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def tensor_hash(tensor: Tensor) -> str:
    """Of type, shape and bytes."""
    return _hash(tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy())


def _hash(kind: torch.dtype, shape: Sequence[int], content: Any) -> str:
    digest = hashlib.blake2b(f"{kind} {tuple(shape)}".encode(), digest_size=8)
    digest.update(content)
    return digest.hexdigest()


def write_shard(
    folder: Path,
    shard: int,
    key: Mapping[str, Any],
    entries: Mapping[int, Encoded],
    keys: Mapping[int, EntryKey] | None = None,
    **more: Tensor,
) -> None:
    """Writes a shard beside its name and renames it, so that a shard that is there is whole."""
    tensors = {name: value.half().contiguous() for name, value in more.items()}
    for index, entry in sorted(entries.items()):
        for part in ("mean", "std", "text"):
            # a copy each, for safetensors refuses texts that several windows share
            tensors[f"{part}.{index}"] = getattr(entry, part).to(torch.float16, copy=True).contiguous()
    about = {
        "key": key,
        "entries": {str(i): list(k) for i, k in sorted((keys or {}).items()) if i in entries},
        "hashes": {name: tensor_hash(tensor) for name, tensor in tensors.items()},
    }
    metadata = {"about": json.dumps(about, sort_keys=True)}  # one text: several would come in any order
    with written_whole(shard_path(folder, shard)) as beside:
        save_file(tensors, beside, metadata=metadata)


class Shard:
    """A shard that is read. Raises UserError, naming file and fix, where it is no whole shard.

    Its file stays open, and is opened anew after a fault of its storage (`read_again`). Each tensor is held against its
    hash whenever it is read, or once, after `check`.
    keys: of each window, {} in caches that did not note them. size: of the file. patience_s: as in `patiently`.
    """

    def __init__(self, path: Path, folder: Path | None = None, patience_s: float = PATIENCE_S) -> None:
        self.path, self.patience_s = path, patience_s
        self._file = PlacesOf(path)
        self._sound: set[str] = set()  # tensors that were checked, and need not be again
        try:
            metadata = read_again(partial(self._look, folder), path, patience_s)
            about = json.loads(metadata["about"] if "about" in metadata else f'{{"key": {metadata.get("key")}}}')
            self.names = frozenset(self._tensors)
            self.key: Any = about["key"]
            self.keys = {int(i): EntryKey(*map(str, k)) for i, k in about.get("entries", {}).items()}
            self._hashes: dict[str, str] | None = about.get("hashes")
        except UserError:
            raise
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"is missing or damaged ({error})") from None

    def _look(self, folder: Path | None) -> dict[str, str]:
        """Notes where which tensor is; gives the metadata."""
        about = os.stat(self.path)
        if not stat.S_ISREG(about.st_mode):
            raise self._damaged("is no file")
        if folder is not None and not self.path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{self.path} is a link that leads out of its cache: put the file there, or {AGAIN}")
        self.size = about.st_size
        with safe_open(self.path, "np") as whole:  # checks the header, and that the file is as long as that says
            metadata = whole.metadata() or {}
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._tensors: dict[str, dict[str, Any]] = json.loads(file.read(length))
        self._tensors.pop("__metadata__", None)
        self._begin = 8 + length
        return metadata

    def check(self) -> None:
        """Raises UserError unless every tensor is as it was written; from now on that is known."""
        names = sorted(self._tensors, key=lambda name: self._tensors[name]["data_offsets"])
        for first in range(0, len(names), TOGETHER):
            self._read(names[first : first + TOGETHER])
        if missing := (self._hashes or {}).keys() - self.names:
            raise self._damaged(f"is missing or damaged (it holds no {min(missing)})")
        self._sound = set(names)

    def shape(self, name: str) -> list[int]:
        return self._tensors[name]["shape"]

    def tensor(self, name: str) -> Tensor:
        """As it was written; raises UserError where it is not, and for NaN and infinity."""
        return self._read([name])[0]

    def entry(self, window: int) -> Encoded:
        return Encoded(*self._read([f"mean.{window}", f"std.{window}", f"text.{window}"]))

    def _read(self, names: Sequence[str]) -> list[Tensor]:
        try:
            places = [self._tensors[name]["data_offsets"] for name in names]
        except KeyError as missing:
            raise self._damaged(f"is missing or damaged (it holds no {missing.args[0]})") from None
        try:
            read = read_again(partial(self._bytes, places), self.path, self.patience_s)
        except OSError as error:
            raise self._damaged(f"is missing or damaged ({error})") from None
        return [self._checked(name, content) for name, content in zip(names, read, strict=True)]

    def _bytes(self, places: Sequence[tuple[int, int]]) -> list[bytearray]:
        try:
            return self._file.read([(self._begin + start, self._begin + end) for start, end in places])
        except OSError:
            self._file.again()
            self._sound.clear()  # another file may lie there now
            raise

    def _checked(self, name: str, content: bytearray) -> Tensor:
        about = self._tensors[name]
        kind, shape = _TYPES.get(about["dtype"]), about["shape"]
        start, end = about["data_offsets"]
        if len(content) != end - start or not content or kind is None:
            raise self._damaged(f"is damaged: {name} is cut off, or of a type that is not written")
        sound = name in self._sound
        if not sound and self._hashes is not None and self._hashes.get(name) != _hash(kind, shape, content):
            raise self._damaged(f"is damaged: {name} is not what was written")
        found = torch.frombuffer(content, dtype=kind).view(shape)
        if not sound and not math.isfinite(found.sum(dtype=torch.float64)):
            raise self._damaged(f"is damaged: {name} has values that are no numbers")
        return found

    def windows(self) -> list[int]:
        return sorted(int(name[5:]) for name in self.names if name.startswith("mean.") and name[5:].isdecimal())

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}: {AGAIN}")


def read_again(read: Callable[[], T], path: Path, patience_s: float = PATIENCE_S) -> T:
    """As `patiently`, of a file of a cache: what may pass is waited for, and only that."""

    def once() -> T:
        try:
            return read()
        except SafetensorError as error:
            if not is_storage_fault(error):
                raise
            raise StorageError(path, str(error), number_of(error)) from error

    try:
        return patiently(once, path, patience_s)
    except ClipError as error:  # "input/output error", and yet the file can be read
        raise UserError(f"{error.path} is damaged ({error.reason}): {AGAIN}") from error


def write_origins(path: Path, origins: Origins) -> None:
    table = {"files": origins.files, "dropped": origins.dropped}
    with written_whole(path.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(table), encoding="utf-8")


def read_origins(path: Path) -> Origins:
    """Of the shard of that path. Raises UserError, naming the file and the key, where it is not as it was written."""
    file = path.with_suffix(".json")
    found = read_json(file)
    files, dropped = (_table(file, found, name) for name in ("files", "dropped"))
    for name, value in files.items():
        fits = isinstance(value, list) and [type(v) for v in value] == [int, int, int, str]
        if not fits:
            raise UserError(f"{file}: `files.{name}` is {shown(value)}, not size, times and hash: {AGAIN}")
    for name, value in dropped.items():
        if not (isinstance(value, list) and [type(v) for v in value] == [str, str]):
            raise UserError(f"{file}: `dropped.{name}` is {shown(value)}, not a path and a reason: {AGAIN}")
    return Origins({p: FileState(*v) for p, v in files.items()}, {k: (v[0], v[1]) for k, v in dropped.items()})


def read_json(file: Path, patience_s: float = PATIENCE_S) -> Any:
    """Raises UserError where there is no such regular file, or it is no JSON."""

    def read() -> str:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise UserError(f"{file} is no file: {AGAIN}")
        return file.read_text(encoding="utf-8")

    try:
        return json.loads(read_again(read, file, patience_s))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is missing or damaged ({error}): {AGAIN}") from None


def _table(file: Path, found: Any, name: str) -> dict[str, Any]:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, dict):
        raise UserError(f"{file}: `{name}` is {shown(value)}, not a table: {AGAIN}")
    return value
