"""Makes what a latent cache lacks, in pieces that processes share, and seals it.

Nothing that is there is changed: new shards are added, and the index that says which entries there are is replaced at
the end, as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....data.access.files import status
from ....data.cache.cleaning import compact, remove_unused, unused
from ....data.cache.known import (
    Known,
    forget,
    look,
    note,
    origins_before,
    piece_path,
    read_piece,
    read_stock,
)
from ....data.cache.latents import file_hash
from ....data.cache.origins import FileState, Origins, write_origins
from ....data.cache.shards import Shard, stored, write_shard
from ....data.cache.writing import Row, key_of, write_index
from ....data.clips import ClipSource
from ....data.manifest.manifest import dropped_by_reason
from ....data.storage import patiently
from ....errors import ClipError, UserError
from ....places import absolute, is_url, parent
from ....places import shown as url_shown
from ....words import counted

if TYPE_CHECKING:
    from .encode import Encoder

SHARD = 256  # windows of a piece, and captions: the unit of work and of resuming


class CacheMaker:
    """In this order, each on all processes: `look` at the shards that are there, `take_stock`, `encode` the pieces,
    `write_texts`; then `seal` on one."""

    def __init__(self, encoder: Encoder, shards: Sequence[str]) -> None:
        self.encoder, self.out, self.shards = encoder, encoder.config.out, shards
        self.source: ClipSource = encoder.source
        self.before = origins_before(self.out)
        count = len(self.source)
        self.pieces = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
        self._file: tuple[str, FileState] | None = None  # the last one: its windows follow each other

    def look(self, number: int) -> None:
        look(self.out, self.shards[number], self.encoder.key)

    def take_stock(self) -> None:
        """Which latents are there, and which captions are to be encoded: each once, wherever it stands."""
        self.known = read_stock(self.out)
        wanted = {self.encoder.text_key(caption): caption for caption in self._all_captions()}
        missing = [(key, caption) for key, caption in wanted.items() if key not in self.known.texts]
        self.captions = [missing[start : start + SHARD] for start in range(0, len(missing), SHARD)]

    def _all_captions(self) -> Iterator[str]:
        yield ""
        last = None
        for index, sample in enumerate(self.source.windows.sample.tolist()):
            if sample != last:
                yield from self.source.captions(index)
            last = sample

    def encode(self, number: int) -> None:
        """The latents of a piece that are not there, in a shard; and of all its windows what they are made of."""
        origins, keys = Origins(), {}
        for index in self.pieces[number]:
            path = self.source.path(index)
            try:
                state = self._state(index)
            except ClipError as error:
                origins.dropped[key_of(url_shown(path), "?")] = url_shown(path), error.reason
                continue
            origins.files[self._name(index)] = state
            keys[index] = key = self.encoder.latent_key(index, state.sha256)
            if key in self.before.dropped:
                origins.dropped[key] = url_shown(path), self.before.dropped[key][1]
        missing = {k: i for i, k in keys.items() if k not in self.known.latents and k not in origins.dropped}
        made: dict[str, tuple[Tensor, ...]] = {}
        for index, found in self.encoder.latents(list(missing.values())):
            if isinstance(found, ClipError):
                origins.dropped[keys[index]] = url_shown(self.source.path(index)), found.reason
            elif not all(map(_finite, found)):
                origins.dropped[keys[index]] = url_shown(self.source.path(index)), "latent-not-finite"
            else:
                made[keys[index]] = found
        if made:
            note(self.out, write_shard(self.out, self.encoder.key, latents=made), made, ())
        write_origins(piece_path(self.out, number), origins, latents=keys)

    def write_texts(self, number: int) -> None:
        states = self.encoder.texts([caption for _, caption in self.captions[number]])
        texts = {key: states[caption] for key, caption in self.captions[number]}
        made = {key: text for key, text in texts.items() if all(map(_finite, text.parts().values()))}
        if made:
            note(self.out, write_shard(self.out, self.encoder.key, texts=made), (), made)

    def seal(self) -> str:
        """The index, from which on training has these entries; what was kept and dropped, in words."""
        known, origins, source = Known.noted(self.out), Origins(), self.source
        rows, shards, dropped = [], {}, list(source.dropped)
        rates = source.rates
        for number in range(len(self.pieces)):
            found, keys = read_piece(self.out, number)
            origins |= found
            dropped += found.dropped.values()
            for window, latent in sorted(keys.items()):
                if latent in found.dropped:
                    continue
                texts = tuple(map(self.encoder.text_key, self.source.captions(window)))
                if not all(text in known.texts for text in texts):
                    dropped.append((source.path(window), "text-not-finite"))
                    continue
                name = known.latents[latent]
                shard = shards[name] = shards.get(name) or Shard(self.out / name)
                rows.append(Row(window, latent, texts, shard.latent_grid(latent)[1:], rates[window]))
        if not rows:
            raise UserError(f"no clip of the manifest could be encoded: {dropped[:5]}")
        if self.encoder.config.clean:
            latents = [row.latent for row in rows]
            texts = [self.encoder.text_key(""), *(text for row in rows for text in row.texts)]
            compact(self.out, self.encoder.key, latents, texts, known)
        self._write(rows, known, origins, dropped)
        forget(self.out)
        about = [f"{self.out}: {len(rows)} of {counted(len(source), 'window')} encoded", *dropped_by_reason(dropped)]
        return "\n".join(about + [f"  {note}" for note in [*source.notes, *self._room()]])

    def _room(self) -> list[str]:
        """What is to be said of the room that nothing needs any more."""
        if self.encoder.config.clean:
            return [f"{remove_unused(self.out):,} bytes that nothing needed are removed"]
        free = sum(path.stat().st_size for path in unused(self.out) if path.suffix == ".safetensors")
        return [f"{free:,} bytes are of entries that nothing needs any more: --clean removes them"] if free else []

    def _write(self, rows: Sequence[Row], known: Known, origins: Origins, dropped: Sequence[tuple[str, str]]) -> None:
        table = json.dumps([origins.files, origins.dropped]).encode()
        files = f"files-{hashlib.blake2b(table, digest_size=12).hexdigest()}.json"
        write_origins(self.out / files, origins)
        fps = sorted(row.rate for row in rows if row.rate > 0)
        folder = parent(absolute(self.encoder.config.manifest))
        write_index(
            self.out,
            self.encoder.key,
            rows,
            known.latents,
            known.texts,
            self.encoder.text_key(""),
            channels=self.encoder.vae.latent_channels,
            text_width=self.encoder.text.dim,
            pooled_width=self.encoder.text.pooled_dim,
            second_width=self.encoder.text.second_dim,
            fps=float(fps[len(fps) // 2]) if fps else 0.0,
            dropped=dropped,
            notes=self.source.notes,
            unknown=self.source.unknown_captions / max(1, len(self.source.samples)),
            clips=[folder, folder if is_url(folder) else os.path.relpath(folder, os.path.abspath(self.out))],
            files=files,
        )

    def _name(self, index: int) -> str:
        """The file as the manifest has it, without credentials."""
        return url_shown(self.source.samples.paths[int(self.source.windows.sample[index])])

    def _state(self, index: int) -> FileState:
        """Of the file of a window; its content is hashed only where size or times are not those that are remembered.
        Raises ClipError."""
        path, name = self.source.path(index), self._name(index)
        if self._file is not None and self._file[0] == path:
            return self._file[1]

        def look() -> FileState:
            try:
                s = status(path)
                now, known = (s.st_size, s.st_mtime_ns, s.st_ctime_ns), self.before.files.get(name)
                found = known if known is not None and now == known[:3] else FileState(*now, file_hash(path))
            except FileNotFoundError as error:
                raise ClipError(path, "missing", f"cannot be found ({error.strerror}); correct the path") from error
            except PermissionError as error:
                raise ClipError(path, "no-permission", "cannot be opened; allow this user to read it") from error
            return found

        self._file = path, patiently(look, path, self.source.patience_s)
        return self._file[1]


def _finite(part: Tensor) -> bool:
    """Whether all its values are numbers in the type that the cache holds."""
    return bool(torch.isfinite(stored(part)).all())
