"""Cache of latents and text states: an index and the shards that hold its tensors, in one folder.

`cache.json` (`writing.py`) says of each entry which latent and which texts it has, by what they were made of, and in
which shard (`shards.py`) each lies. Shards are never changed, and the index is replaced as a whole: what reads a cache
goes on with the entries that it began with while others are added.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import StorageError, UserError
from ...limits import shown
from ...places import is_url, join
from ...words import counted
from ..access.files import ask_together, opened, status
from ..manifest.identity import identify
from ..manifest.samples import dropped_by_reason
from ..storage import PATIENCE_S
from .index import BEFORE, Index, is_names, is_texts
from .origins import FileState, read_origins
from .reading import AGAIN, read_again
from .shards import Encoded, EncodedText, Shard
from .writing import INDEX

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


class LatentCache(Index):
    """Reads a cache. patience_s: for how long a fault of the storage is tried again."""

    def __init__(self, folder: str | Path, patience_s: float = PATIENCE_S) -> None:
        super().__init__(folder, patience_s)
        self._open_shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}  # loader processes open the shards themselves

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
        files = self._origins()
        folder = _clips_folder(self.folder, self._field("clips", is_texts, "folders"))
        changed, gone, unread, room = [], 0, 0, HASHED
        ask_together(join(folder, name) for name in files)
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
                    elif self._hash(join(folder, name)) != was.sha256:
                        changed.append(name)
        if changed:
            raise UserError(
                f"the latent cache {self.folder} is stale: {counted(len(changed), 'clip')} changed since it was made "
                f"({', '.join(map(shown, changed[:3]))}{', ...' if len(changed) > 3 else ''}); {AGAIN}"
            )
        notes = [f"{gone} of the clips of {self.folder} are not in {folder}: not looked at"] if gone else []
        if unread:
            notes.append(
                f"{counted(unread, 'clip')} of {self.folder} have other dates than when it was made: not read again"
            )
        return notes

    def _state(self, folder: str, name: str) -> os.stat_result | None:
        path = join(folder, name)
        try:
            return read_again(lambda: status(path), path, self.patience_s)
        except (OSError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            return None

    def _hash(self, path: str) -> str:
        return read_again(lambda: file_hash(path), path, self.patience_s)

    def _origins(self) -> dict[str, FileState]:
        if self.format in BEFORE:
            names = [str(Path(self._shards[n]).with_suffix(".json")) for n in sorted(set(self._latents_in.tolist()))]
        else:
            names = [self._field("files", lambda v: is_names([v]), "the name of a file")]
        return {path: state for name in names for path, state in read_origins(self.folder / name).files.items()}

    def summary(self) -> str:
        """How many windows it holds, and by reason what was dropped when it was made."""
        lines = [f"{self.folder}: {len(self)} encoded windows", *dropped_by_reason(self.dropped)]
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def entries(self) -> list[str]:
        """Of each entry what told it from others before each had keys of its own: what all the cache was made of, its
        window and its shape."""
        made_of = json.dumps([self.key, self.content], sort_keys=True)
        key = hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()
        return [f"{key} {window} {grid}" for window, grid in zip(self.windows, self.grids, strict=True)]

    def contents(self) -> list[str]:
        """What each entry was made of, whatever else is in the cache."""
        return [" ".join(self._made_of(i)) for i in range(len(self))]

    def rate(self, i: int) -> float:
        """Frames a second of entry i; 0 of a single frame, and where no rate is known. Older caches know the median."""
        if self.grids[i][0] == 1:
            return 0.0
        return self.rates[i] if self.rates else self.fps

    def captions(self, i: int) -> int:
        """How many captions entry i has."""
        return int(self._first_caption[i + 1] - self._first_caption[i])

    def load(self, i: int, caption: int = 0) -> Encoded:
        """Entry i as float32, with one of its captions. Raises UserError where it is not as it was written."""
        shard = self._open(int(self._latents_in[i]))
        mean, std, *image = (part.float() for part in shard.latent(self._latents[i].decode()))
        if not tuple(mean.shape) == tuple(std.shape) == (self.channels, *self.grids[i]):
            raise UserError(f"{shard.path}: window {self.windows[i]} has not the shape that {INDEX} says: {AGAIN}")
        words = self._text(int(self._captions[self._first_caption[i] + caption]))
        return Encoded(mean, std, words.states, words.pooled, words.second, *image)

    def null_text(self) -> Tensor:
        """Text states [S,Dt] of the empty caption."""
        return self.null().states

    def null(self) -> EncodedText:
        """The empty caption."""
        return self._text(0)

    def _text(self, number: int) -> EncodedText:
        shard, key = self._open(int(self._texts_in[number])), self._texts[number].decode()
        parts = shard.text(key).parts()
        widths = {"text": self.text_width, "pooled": self.pooled_width, "second": self.second_width}
        shapes = {
            name: (width,) if name == "pooled" else (len(parts.get(name, ())), width)
            for name, width in widths.items()
            if width is not None
        }
        if {name: tuple(part.shape) for name, part in parts.items()} != shapes:
            raise UserError(
                f"{shard.path}: text {key or 'of the empty caption'} has not the shape that {INDEX} says: {AGAIN}"
            )
        parts = {name: part.float() for name, part in parts.items()}
        return EncodedText(parts["text"], parts.get("pooled"), parts.get("second"))

    def _open(self, number: int) -> Shard:
        if number not in self._open_shards:
            path = self.folder / self._shards[number]
            shard = Shard(path, self.folder, self.patience_s)
            if self.format in BEFORE and shard.key != self.key:
                raise UserError(f"{path} belongs to another cache than {INDEX}: {AGAIN}")
            if (self._bytes or len(self._shards) * shard.size) <= SMALL:
                latents, texts = self._latents[self._latents_in == number], self._texts[self._texts_in == number]
                shard.check([key.decode() for key in latents], [key.decode() for key in texts])
            self._open_shards[number] = shard
        return self._open_shards[number]


class LatentCaches:
    """Several caches as one, entry after entry; made with the same weights.

    grids: latent (f,h,w) of each entry. sources: the folders. source_of: uint16 [entries], the cache each is from.
    """

    def __init__(self, folders: Sequence[Path], patience_s: float = PATIENCE_S) -> None:
        if not folders:
            raise UserError("a list of latent caches is empty: name the folder of one at least, in data.latents")
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

    def identity(self, first: Sequence[int] | None = None) -> dict[str, Any]:
        """Which entries these are, made from what, wherever the caches lie. first: only so many of each cache."""
        columns = {"entries": [text for cache in self.caches for text in cache.entries()]}
        if all(cache.format not in BEFORE for cache in self.caches):
            columns = {"contents": [text for cache in self.caches for text in cache.contents()]} | columns
        return identify(columns, [len(cache) for cache in self.caches], first)

    def source(self, i: int) -> int:
        """The cache that entry i of all is from."""
        return int(self.source_of[i])

    def rate(self, i: int) -> float:
        """As `LatentCache.rate`, of entry i of all."""
        source = int(self.source_of[i])
        return self.caches[source].rate(i - int(self._first[source]))

    def captions(self, i: int) -> int:
        """As `LatentCache.captions`, of entry i of all."""
        source = int(self.source_of[i])
        return self.caches[source].captions(i - int(self._first[source]))

    def load(self, i: int, caption: int = 0) -> Encoded:
        """Entry i of all as float32, with one of its captions."""
        source = int(self.source_of[i])
        return self.caches[source].load(i - int(self._first[source]), caption)

    def null_text(self) -> Tensor:
        return self.caches[0].null_text()

    def null(self) -> EncodedText:
        return self.caches[0].null()


def file_hash(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file's content."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clips_folder(cache: Path, known: Sequence[str]) -> str:
    """The folder of the manifest it was made of: where it was, or where it is beside a cache that moved with it."""
    absolute, relative = known
    if is_url(absolute):
        return absolute
    moved = os.path.normpath(os.path.join(os.path.abspath(cache), relative))
    return absolute if os.path.isdir(absolute) else moved
