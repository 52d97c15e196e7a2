"""Cache of latents and text states: safetensors shards under a key that tells when they are stale.

Layout of a cache folder: `cache.json` (key, grids, what was left out) written last, and the shards (`shards.py`);
`null_text` [S,Dt], in the first shard, is the empty caption. Every tensor that is read is held against its hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import StorageError, UserError
from ...files import written_whole
from ...limits import shown
from ..manifest.identity import identify
from ..manifest.samples import dropped_by_reason
from ..storage import PATIENCE_S
from .shards import AGAIN, Encoded, FileState, Shard, read_again, read_json, read_origins, shard_path

INDEX = "cache.json"
FORMAT = 2  # 1, which did not say so, knew neither its clips nor hashes
SMALL = 2**30  # bytes: caches up to it are checked shard by shard, larger ones tensor by tensor, as they are read
HASHED = 2**30  # bytes of clips that are read again to find out whether they are still the same


def module_fingerprint(module: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 (hex) over a module's weights and config: one changed weight is another fingerprint.

    Keys that begin with an underscore (the folder it came from, the library's version) do not count.
    """
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_key(vae: str, text: str, transform: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache depends on: the two fingerprints and the transform's settings."""
    return {"vae": vae, "text": text, "transform": dict(transform)}


def write_index(folder: Path, key: Mapping[str, Any], shard_size: int, grids: Mapping[int, Sequence[int]], **more: Any):
    """Seals the cache: from now on `LatentCache` opens it."""
    grids = {str(i): list(g) for i, g in sorted(grids.items())}
    index = {"format": FORMAT, "key": key, "shard_size": shard_size, "grids": grids, **more}
    with written_whole(folder / INDEX) as beside:
        beside.write_text(json.dumps(index), encoding="utf-8")


class LatentCache:
    """Reads a cache; entries are numbered without gaps, in the order of the windows that could be encoded.

    content: a hash of all that the entries were made of, wherever the cache lies; None in caches that did not note it.
    unknown: share of captions that mean nothing to the text encoder. patience_s: for how long a fault of the storage
    is tried again.
    """

    def __init__(self, folder: str | Path, patience_s: float = PATIENCE_S) -> None:
        self.folder, self.patience_s = Path(folder), patience_s
        index = self.folder / INDEX
        if not read_again(index.is_file, index, patience_s):
            raise UserError(f"{folder} holds no finished latent cache ({INDEX}): make one with vae/encode_latents.py")
        self._index = read_json(index, patience_s)
        if not isinstance(self._index, dict):
            raise UserError(f"{self.folder / INDEX} is no table: {AGAIN}")
        if self._field("format", lambda v: v in (1, FORMAT), f"1 or {FORMAT}", 1) == 1:
            self._index = {"dropped": [], **self._index}
        self.key: dict[str, Any] = self._field("key", _is_key, "the fingerprints and sizes it was made with")
        self.shard_size: int = self._field("shard_size", _whole(1, 10**6), "a whole number from 1 to 1,000,000")
        self.channels: int = self._field("channels", _whole(1, 65_536), "a number of channels")
        self.text_width: int = self._field("text_width", _whole(1, 65_536), "a width")
        grids = self._field("grids", _is_grids, "a latent's f, h, w by window")
        self.windows = [int(i) for i in grids]
        self.grids = [tuple(g) for g in grids.values()]  # latent (f,h,w)
        self.fps: float = self._field("fps", lambda v: 0 <= v < math.inf, "frames a second")
        self.rates: list[float] = self._field("rates", _is_rates(len(grids)), "the frames a second of each window", [])
        self.dropped = [tuple(row) for row in self._field("dropped", _is_pairs, "paths and reasons")]
        self.notes: list[str] = self._field("notes", _is_texts, "texts", [])
        self.unknown: float = self._field("unknown", lambda v: 0 <= v <= 1, "a share", 0)
        self.content: str | None = self._field("content", lambda v: v is None or isinstance(v, str), "a hash", None)
        self._files: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # loader processes open the shards themselves

    def _field(self, name: str, fits: Callable[[Any], bool], what: str, default: Any = ...) -> Any:
        value = self._index.get(name, default)
        try:
            if value is not ... and not isinstance(value, bool) and fits(value):
                return value
        except (TypeError, ValueError, AttributeError, OverflowError):
            pass
        found = "missing" if value is ... else shown(value)
        raise UserError(f"{self.folder / INDEX}: `{name}` is {found}, not {what}: {AGAIN}")

    def check(self, expected: Mapping[str, Any]) -> None:
        """Raises UserError, naming what differs, unless the cache's key holds these values (of some or all keys)."""
        names = {"vae": "the VAE's weights", "text": "the text encoder's weights", "transform": "the sizes in data.*"}
        changed = [names[k] for k, value in json.loads(json.dumps(expected)).items() if self.key.get(k) != value]
        if changed:
            raise UserError(
                f"the latent cache {self.folder} is stale: {' and '.join(changed)} are not those it was made with; "
                "run vae/encode_latents.py again"
            )

    def check_clips(self) -> list[str]:
        """Looks at the clips that it was made of; what is to be said of them, a line each.

        Raises UserError where one has changed since: its size, or its content where only its time is another (at most
        `HASHED` bytes are read for that).
        """
        if "clips" not in self._index:
            return [f"{self.folder} is of an older latentvid, which did not note its clips: whether they changed since "
                    "cannot be told"]  # fmt: skip
        files = dict(self._origins())
        folder = _clips_folder(self.folder, self._field("clips", _is_texts, "folders"))
        changed, gone, unread, room = [], 0, 0, HASHED
        with ThreadPoolExecutor(8) as pool:
            for (name, was), now in zip(files.items(), pool.map(partial(self._state, folder), files), strict=True):
                if now is None:
                    gone += 1
                elif now.st_size != was.size:
                    changed.append(name)
                elif now.st_mtime_ns != was.mtime_ns:
                    room -= now.st_size
                    if room < 0:
                        unread += 1
                    elif self._hash(Path(folder, name)) != was.sha256:
                        changed.append(name)
        if changed:
            raise UserError(
                f"the latent cache {self.folder} is stale: {len(changed)} clips changed since it was made "
                f"({', '.join(map(shown, changed[:3]))}{', ...' if len(changed) > 3 else ''}); {AGAIN}"
            )
        notes = [f"{gone} of the clips of {self.folder} are not in {folder}: not looked at"] if gone else []
        if unread:
            notes.append(f"{unread} clips of {self.folder} have other dates than when it was made: not read again")
        return notes

    def _state(self, folder: str, name: str) -> os.stat_result | None:
        path = Path(folder, name)
        try:
            return read_again(lambda: os.stat(path), path, self.patience_s)
        except (OSError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            return None

    def _hash(self, path: Path) -> str:
        return read_again(lambda: file_hash(path), path, self.patience_s)

    def _origins(self) -> Iterator[tuple[str, FileState]]:
        for shard in sorted({window // self.shard_size for window in self.windows}):
            yield from read_origins(shard_path(self.folder, shard)).files.items()

    def summary(self) -> str:
        """How many windows it holds, and by reason what was dropped when it was made."""
        lines = [f"{self.folder}: {len(self)} encoded windows", *dropped_by_reason(self.dropped)]
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def entries(self) -> list[str]:
        """Of each entry what tells it from others: what the cache was made of, its window and its shape."""
        made_of = json.dumps([self.key, self.content], sort_keys=True)
        key = hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()
        return [f"{key} {window} {grid}" for window, grid in zip(self.windows, self.grids, strict=True)]

    def rate(self, i: int) -> float:
        """Frames a second of entry i; 0 of a single frame, and where no rate is known. Older caches know the median."""
        if self.grids[i][0] == 1:
            return 0.0
        return self.rates[i] if self.rates else self.fps

    def load(self, i: int) -> Encoded:
        """Entry i as float32. Raises UserError where it is not as it was written."""
        window = self.windows[i]
        shard = self._open(window // self.shard_size)
        entry = shard.entry(window)
        grid = (self.channels, *self.grids[i])
        if not tuple(entry.mean.shape) == tuple(entry.std.shape) == grid or not self._is_text(entry.text):
            raise UserError(f"{shard.path}: window {window} has not the shape that {INDEX} says: {AGAIN}")
        return Encoded(entry.mean.float(), entry.std.float(), entry.text.float())

    def null_text(self) -> Tensor:
        """Text states [S,Dt] of the empty caption."""
        shard = self._open(0)
        text = shard.tensor("null_text")
        if not self._is_text(text):
            raise UserError(f"{shard.path}: null_text has not the shape that {INDEX} says: {AGAIN}")
        return text.float()

    def _is_text(self, text: Tensor) -> bool:
        return text.ndim == 2 and len(text) > 0 and text.shape[1] == self.text_width

    def _open(self, number: int) -> Shard:
        if number not in self._files:
            path = shard_path(self.folder, number)
            shard = Shard(path, self.folder, self.patience_s)
            if shard.key != self.key:
                raise UserError(f"{path} belongs to another cache than {INDEX}: {AGAIN}")
            shards = 1 + (self.windows[-1] // self.shard_size if self.windows else 0)
            if shards * shard.size <= SMALL:
                shard.check()
            self._files[number] = shard
        return self._files[number]


class LatentCaches:
    """Several caches as one, entry after entry; made with the same weights.

    grids: latent (f,h,w) of each entry. sources: the folders. source_of: uint16 [entries], the cache each is from.
    """

    def __init__(self, folders: Sequence[Path], patience_s: float = PATIENCE_S) -> None:
        self.caches = [LatentCache(folder, patience_s) for folder in folders]
        self.grids = [grid for cache in self.caches for grid in cache.grids]
        self.sources = tuple(str(folder) for folder in folders)
        self.source_of = np.repeat(np.arange(len(self.caches), dtype=np.uint16), [len(cache) for cache in self.caches])
        self._first = np.cumsum([0, *(len(cache) for cache in self.caches)])

    def __len__(self) -> int:
        return len(self.grids)

    def check(self, expected: Mapping[str, Any]) -> None:
        """As `LatentCache.check`, of each."""
        for cache in self.caches:
            cache.check(expected)

    def check_clips(self) -> list[str]:
        """As `LatentCache.check_clips`, of all."""
        return [note for cache in self.caches for note in cache.check_clips()]

    @property
    def unknown(self) -> float:
        """Share of captions that mean nothing to the text encoder, in the cache that has most."""
        return max(cache.unknown for cache in self.caches)

    def summary(self) -> str:
        return "\n".join(cache.summary() for cache in self.caches)

    def identity(self) -> dict[str, Any]:
        """Which entries these are, made from what, wherever the caches lie."""
        return identify({"entries": [text for cache in self.caches for text in cache.entries()]})

    def rate(self, i: int) -> float:
        """As `LatentCache.rate`, of entry i of all."""
        source = int(self.source_of[i])
        return self.caches[source].rate(i - int(self._first[source]))

    def load(self, i: int) -> Encoded:
        """Entry i of all as float32."""
        source = int(self.source_of[i])
        return self.caches[source].load(i - int(self._first[source]))

    def null_text(self) -> Tensor:
        return self.caches[0].null_text()


def file_hash(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clips_folder(cache: Path, known: Sequence[str]) -> str:
    """The folder of the manifest it was made of: where it was, or where it is beside a cache that moved with it."""
    absolute, relative = known
    moved = os.path.normpath(os.path.join(os.path.abspath(cache), relative))
    return absolute if os.path.isdir(absolute) else moved


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and low <= value <= high


def _is_key(value: Any) -> bool:
    made = isinstance(value, dict) and isinstance(value.get("vae"), str) and isinstance(value.get("text"), str)
    return made and isinstance(value.get("transform", {}), dict)


def _is_grids(value: Any) -> bool:
    numbers = [int(i) for i in value]
    sides = _whole(1, 10**6)
    return (
        len(numbers) > 0
        and numbers == sorted(set(numbers))
        and 0 <= numbers[0] <= numbers[-1] < 2**31
        and all(isinstance(g, list) and len(g) == 3 and all(sides(n) for n in g) for g in value.values())
    )


def _is_rates(count: int) -> Callable[[Any], bool]:
    return lambda rates: (
        isinstance(rates, list) and len(rates) in (0, count) and all(0 <= rate < math.inf for rate in rates)
    )


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_is_texts(row) and len(row) == 2 for row in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
