"""What the index of a latent cache says, held against what it may say; of caches of before too."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...limits import shown
from ..storage import PATIENCE_S
from .reading import AGAIN, read_again, read_json
from .writing import FORMAT, INDEX, content_of

BEFORE = (1, 2)  # formats that are read too, where the index names neither shards nor keys
READ = (*BEFORE, 3, FORMAT)


class Index:
    """Entries are numbered without gaps, in the order of the windows that could be encoded.

    windows: the number of each entry's in the manifest. grids: latent (f,h,w) of each. rates: frames a second of each;
    [] in caches that know the median `fps` alone. unknown: share of captions that mean nothing to the text encoder.
    pooled_width, second_width: of what further text encoders gave; None: there are none.
    """

    def __init__(self, folder: str | Path, patience_s: float = PATIENCE_S) -> None:
        self.folder, self.patience_s = Path(folder), patience_s
        index = self.folder / INDEX
        if not read_again(index.is_file, index, patience_s):
            raise UserError(
                f"{self.folder} holds no finished latent cache ({INDEX}): make one with vae/encode_latents.py"
            )
        self._index = read_json(index, patience_s)
        if not isinstance(self._index, dict):
            raise UserError(f"{self.folder / INDEX} is no table: {AGAIN}")
        self.format: int = self._field("format", lambda v: v in READ, f"1 to {FORMAT}", 1)
        if self.format == 1:
            self._index = {"dropped": [], **self._index}
        self.key: dict[str, Any] = self._field("key", _is_key, "the fingerprints and sizes it was made with")
        self.channels: int = self._field("channels", _whole(1, 65_536), "a number of channels")
        self.text_width: int = self._field("text_width", _whole(1, 65_536), "a width")
        self.pooled_width: int | None = self._field("pooled_width", _width, "a width", None)
        self.second_width: int | None = self._field("second_width", _width, "a width", None)
        self.fps: float = self._field("fps", lambda v: 0 <= v < math.inf, "frames a second")
        self.dropped = [tuple(row) for row in self._field("dropped", _is_pairs, "paths and reasons")]
        self.notes: list[str] = self._field("notes", is_texts, "texts", [])
        self.unknown: float = self._field("unknown", lambda v: 0 <= v <= 1, "a share", 0)
        (self._of_before if self.format in BEFORE else self._of_now)()
        count = len(self.windows)
        self.rates: list[float] = self._field("rates", _is_rates(count), "the frames a second of each window", [])
        self._index = {name: self._index[name] for name in ("clips", "files") if name in self._index}

    def _of_now(self) -> None:
        """Where each entry's parts are."""
        self.windows: list[int] = self._field("windows", _is_windows, "ascending numbers of windows")
        count = len(self.windows)
        grids = self._field("grids", lambda v: len(v) == count and all(map(_is_grid, v)), "a latent's f, h, w by entry")
        self.grids = _distinct(grids)  # latent (f,h,w)
        self._shards: list[str] = self._field("shards", is_names, "names of files")
        self._bytes: int = self._field("bytes", _whole(1, 2**63), "bytes")
        self._latents = self._keys("latents", count)
        self._latents_in = self._numbers("latents_in", count, len(self._shards))
        self._texts = self._keys("texts", None)
        self._texts_in = self._numbers("texts_in", len(self._texts), len(self._shards))
        most = len(self._texts)
        captions = self._field(
            "captions", lambda v: len(v) == count and all(map(_is_numbers(most), v)), "texts by entry"
        )
        self._captions = np.concatenate([np.array(c, np.int32) for c in captions])
        self._first_caption = np.cumsum([0, *map(len, captions)])

    def _of_before(self) -> None:
        """The same of a cache that has a shard for so many windows, and in it each window's tensors by its number."""
        size: int = self._field("shard_size", _whole(1, 10**6), "a whole number from 1 to 1,000,000")
        grids = self._field("grids", _is_grids, "a latent's f, h, w by window")
        self.windows, self.grids = [int(i) for i in grids], _distinct(grids.values())
        self._content = self._field("content", lambda v: v is None or isinstance(v, str), "a hash", None)
        self._shards = [f"shard-{number:05d}.safetensors" for number in range(1 + self.windows[-1] // size)]
        self._bytes = 0  # is not said
        self._latents = np.array([str(window) for window in self.windows], "S")
        self._latents_in = np.array(self.windows, np.int32) // size
        self._texts = np.concatenate([np.array([""], "S"), self._latents])  # the empty caption's has no number
        self._texts_in = np.concatenate([[0], self._latents_in])
        self._captions = 1 + np.arange(len(self.windows), dtype=np.int32)
        self._first_caption = np.arange(len(self.windows) + 1)

    def _keys(self, name: str, count: int | None) -> np.ndarray:
        fits = lambda v: is_texts(v) and len(v) == (count or len(v)) > 0 and all(k.isascii() and k for k in v)  # noqa: E731
        return np.array(self._field(name, fits, "keys"), "S")

    def _numbers(self, name: str, count: int, below: int) -> np.ndarray:
        fits = lambda v: len(v) == count and _is_numbers(below)(v)  # noqa: E731
        return np.array(self._field(name, fits, f"numbers below {below}"), np.int32)

    def _made_of(self, i: int) -> list[str]:
        """The keys of an entry's latent and texts."""
        return [self._latents[i].decode(), *(self._texts[n].decode() for n in self._numbers_of_texts(i))]

    def _numbers_of_texts(self, i: int) -> np.ndarray:
        return self._captions[self._first_caption[i] : self._first_caption[i + 1]]

    @property
    def content(self) -> str | None:
        """A hash of all that the entries were made of, wherever the cache lies; None in caches that did not note it."""
        if self.format in BEFORE:
            return self._content
        return content_of([(window, self._made_of(i)) for i, window in enumerate(self.windows)])

    def _field(self, name: str, fits: Callable[[Any], bool], what: str, default: Any = ...) -> Any:
        value = self._index.get(name, default)
        try:
            if value is not ... and not isinstance(value, bool) and fits(value):
                return value
        except (TypeError, ValueError, AttributeError, OverflowError):
            pass
        found = "missing" if value is ... else shown(value)
        raise UserError(f"{self.folder / INDEX}: `{name}` is {found}, not {what}: {AGAIN}")


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _width(value: Any) -> bool:
    return value is None or _whole(1, 65_536)(value)


def _is_key(value: Any) -> bool:
    made = isinstance(value, dict) and isinstance(value.get("vae"), str) and isinstance(value.get("text"), str)
    return made and isinstance(value.get("transform", {}), dict)


def _is_grids(value: Any) -> bool:
    numbers = [int(i) for i in value]
    return (
        len(numbers) > 0
        and numbers == sorted(set(numbers))
        and 0 <= numbers[0] <= numbers[-1] < 2**31
        and all(map(_is_grid, value.values()))
    )


def _is_windows(value: Any) -> bool:
    return len(value) > 0 and _is_numbers(2**31)(value) and all(a < b for a, b in pairwise(value))


def _is_numbers(below: int) -> Callable[[Any], bool]:
    """A list of one number or more."""
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(_whole(0, below - 1), value))


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_whole(1, 10**6), value))


def _distinct(grids: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Equal ones are one object, so that a million take little memory."""
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    return [known.setdefault(grid, grid) for grid in map(tuple, grids)]


def is_names(value: Any) -> bool:
    """Of files in the cache's own folder."""
    return is_texts(value) and all(name not in ("", ".", "..") and name == os.path.basename(name) for name in value)


def _is_rates(count: int) -> Callable[[Any], bool]:
    return lambda rates: (
        isinstance(rates, list) and len(rates) in (0, count) and all(0 <= rate < math.inf for rate in rates)
    )


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(is_texts(row) and len(row) == 2 for row in value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
