"""Shards of a latent cache: tensors by what they were made of, each with a hash of its bytes. None is ever changed.

A shard holds `latent.KEY` [2,C,f,h,w] (mean and std of the normalised latent; [3,C,f,h,w] with the latent that an
image-to-video model is given) or `text.KEY` [S,Dt] (of several text encoders also `pooled.KEY` [Dp] and `second.KEY`
[S',D'], S' may be 0) as float16, where KEY is a hash, equal where making it again would give the same; its metadata the
weights and a hash of each tensor. What an encoder gives in bfloat16 stays so.
Shards of before (`shard-00000.safetensors`) hold `mean.I`, `std.I` [C,f,h,w] and `text.I` [S,Dt] by the number I of
a window and say in their metadata which keys these would have; the oldest say no keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...files import written_whole
from ..storage import PATIENCE_S
from .opened import PlacesOf
from .reading import AGAIN, read_again

TOGETHER = 32  # tensors that are read at once where all are
_TYPES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class EncodedText:
    """One caption: states [S,Dt]; of further text encoders pooled [Dp] and second [S',D'], None without such a one."""

    states: Tensor
    pooled: Tensor | None = None
    second: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """By the names that shards have."""
        named = {"text": self.states, "pooled": self.pooled, "second": self.second}
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True)
class Encoded:
    """One window's entry: mean and std [C,f,h,w] of the normalised latent, text states [S,Dt].

    pooled, second: as in `EncodedText`. image: [C,f',h,w], latents that an image-to-video model is given, where they
    are no part of the clip's. references: latents [C,f',h',w'] that the clip is shown, and known: bool [f,h,w], what
    its mask leaves of it; motion: its motion strength; picture: [I,Di], an image encoder's states of what an
    image-to-video model is given. A cache holds none of these.
    """

    mean: Tensor
    std: Tensor
    text: Tensor
    pooled: Tensor | None = None
    second: Tensor | None = None
    image: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    known: Tensor | None = None
    motion: float = math.nan
    picture: Tensor | None = None

    @property
    def words(self) -> EncodedText:
        return EncodedText(self.text, self.pooled, self.second)


def stored(text: Tensor) -> Tensor:
    """In the type in which a shard holds states of text."""
    return text if text.dtype == torch.bfloat16 else text.half()


def tensor_hash(tensor: Tensor) -> str:
    """Of type, shape and bytes."""
    return _hash(tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy())


def _hash(kind: torch.dtype, shape: Sequence[int], content: Any) -> str:
    digest = hashlib.blake2b(f"{kind} {tuple(shape)}".encode(), digest_size=8)
    digest.update(content)
    return digest.hexdigest()


def _print(about: str) -> str:
    return hashlib.blake2b(about.encode(), digest_size=12).hexdigest()


def write_shard(
    folder: Path,
    key: Mapping[str, Any],
    latents: Mapping[str, tuple[Tensor, ...]] | None = None,
    texts: Mapping[str, Tensor | EncodedText] | None = None,
) -> str:
    """Writes a shard of latents (mean and std by key, and an image's) and texts; gives its name, which tells what it
    holds.

    It is written beside its name and renamed, so that a shard that is there is whole.
    """
    tensors = {f"latent.{k}": torch.stack([part.half() for part in parts]) for k, parts in (latents or {}).items()}
    for k, text in (texts or {}).items():
        words = text if isinstance(text, EncodedText) else EncodedText(text)
        # a copy each, for safetensors refuses tensors that share memory
        copies = {kind: stored(part).clone().contiguous() for kind, part in words.parts().items()}
        tensors |= {f"{kind}.{k}": copy for kind, copy in copies.items()}
    about = {"key": key, "hashes": {name: tensor_hash(tensor) for name, tensor in tensors.items()}}
    metadata = {"about": json.dumps(about, sort_keys=True)}  # one text: several would come in any order
    name = f"{'latents' if latents else 'texts'}-{_print(metadata['about'])}.safetensors"
    with written_whole(folder / name) as beside:
        save_file(tensors, beside, metadata=metadata)
    return name


class Shard:
    """A shard that is read. Raises UserError, naming file and fix, where it is no whole shard.

    Its file stays open, and is opened anew after a fault of its storage (`read_again`). Each tensor is held against its
    hash whenever it is read, or once, after `check`.
    latents, texts: the names of the tensors of each, by key, and in shards of before by the window's number too.
    size: of the file. patience_s: as in `patiently`.
    """

    def __init__(self, path: Path, folder: Path | None = None, patience_s: float = PATIENCE_S) -> None:
        self.path, self.patience_s = path, patience_s
        self._file = PlacesOf(path)
        self._sound: set[str] = set()  # tensors that were checked, and need not be again
        try:
            metadata = read_again(partial(self._look, folder), path, patience_s)
            about = json.loads(metadata["about"] if "about" in metadata else f'{{"key": {metadata.get("key")}}}')
            kind, _, told = path.stem.partition("-")
            if kind in ("latents", "texts") and told != _print(metadata.get("about", "")):
                raise self._damaged("is missing or damaged (it does not hold what its name tells)")
            self.names = frozenset(self._tensors)
            self.key: Any = about["key"]
            self._hashes: dict[str, str] | None = about.get("hashes")
            self.latents, self.texts = _named(self.names, about.get("entries", {}))
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

    @property
    def hashed(self) -> bool:
        """Whether it can be told that its tensors are as they were written."""
        return self._hashes is not None

    def check(self, latents: Iterable[str], texts: Iterable[str]) -> None:
        """Raises UserError unless the tensors of these keys are as they were written; from now on that is known."""
        names = [name for key in latents for name in self._names(self.latents, key, "latent")]
        names += [name for key in texts for name in self._names(self.texts, key, "text")]
        names.sort(key=lambda name: self._tensors[name]["data_offsets"])
        for first in range(0, len(names), TOGETHER):
            self._read(names[first : first + TOGETHER])
        self._sound |= set(names)

    def unsound(self) -> list[str]:
        """The tensors that are not as they were written."""
        found = []
        for name in sorted(self.names, key=lambda name: self._tensors[name]["data_offsets"]):
            read = self._bytes_of([name])
            try:
                self._checked(name, read[0])
            except UserError:
                found.append(name)
        return found

    def latent_grid(self, key: str) -> tuple[int, ...]:
        """C, f, h, w."""
        return tuple(self._tensors[self._names(self.latents, key, "latent")[0]]["shape"][-4:])

    def latent(self, key: str) -> tuple[Tensor, ...]:
        """mean and std [C,f,h,w], and an image's latent where there is one, as they were written; raises UserError
        where they are not, and for NaN and infinity."""
        read = self._read(self._names(self.latents, key, "latent"))
        if len(read) == 1:
            if read[0].ndim != 5 or len(read[0]) not in (2, 3):
                raise self._damaged(f"is damaged: latent.{key} is no mean and std")
            return read[0].unbind(0)
        return read[0], read[1]

    def text(self, key: str) -> EncodedText:
        """As `latent`."""
        names = self._names(self.texts, key, "text")
        parts = {name.partition(".")[0]: part for name, part in zip(names, self._read(names), strict=True)}
        return EncodedText(parts.get("text", parts.get("null_text")), parts.get("pooled"), parts.get("second"))

    def _names(self, named: Mapping[str, tuple[str, ...]], key: str, what: str) -> tuple[str, ...]:
        if (names := named.get(key)) is None:
            raise self._damaged(f"is missing or damaged (it holds no {what}.{key})")
        return names

    def _read(self, names: Sequence[str]) -> list[Tensor]:
        return [self._checked(name, content) for name, content in zip(names, self._bytes_of(names), strict=True)]

    def _bytes_of(self, names: Sequence[str]) -> list[bytearray]:
        places = [self._tensors[name]["data_offsets"] for name in names]
        try:
            return read_again(partial(self._bytes, places), self.path, self.patience_s)
        except OSError as error:
            raise self._damaged(f"is missing or damaged ({error})") from None

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
        if len(content) != end - start or (not content and 0 not in shape) or kind is None:
            raise self._damaged(f"is damaged: {name} is cut off, or of a type that is not written")
        sound = name in self._sound
        if not sound and self._hashes is not None and self._hashes.get(name) != _hash(kind, shape, content):
            raise self._damaged(f"is damaged: {name} is not what was written")
        found = torch.frombuffer(content, dtype=kind).view(shape) if content else torch.empty(shape, dtype=kind)
        if not sound and not math.isfinite(found.sum(dtype=torch.float64)):
            raise self._damaged(f"is damaged: {name} has values that are no numbers")
        return found

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}: {AGAIN}")


Names = dict[str, tuple[str, ...]]


def _named(names: Iterable[str], entries: Mapping[str, Sequence[str]]) -> tuple[Names, Names]:
    """The tensors of latents and of texts, by key. entries: in a shard of before, keys of latent and text by window."""
    latents: Names = {}
    texts: Names = {}
    for name in sorted(names):
        kind, _, key = name.partition(".")
        if kind == "latent":
            latents[key] = (name,)
        elif kind == "mean" and f"std.{key}" in names:
            latents[key] = name, f"std.{key}"
        elif kind in ("text", "null_text"):
            further = (f"{other}.{key}" for other in ("pooled", "second"))
            texts[key] = name, *(other for other in further if other in names)
    for window, keys in entries.items():
        latent, text = map(str, keys)
        if window in latents and window in texts:
            latents[latent], texts[text] = latents[window], texts[window]
    return latents, texts
