"""Sealing a latent cache: the index, which says what its entries are and in which shards they lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_whole

INDEX = "cache.json"
# 1, which did not say so, knew neither its clips nor hashes; 2 had a shard for so many windows; 3 no states beside text
FORMAT = 4


@dataclass(frozen=True)
class Row:
    """An entry: the number of its window in the manifest, the keys of its latent and of its captions' texts, the
    latent's (f,h,w) and the frames a second."""

    window: int
    latent: str
    texts: tuple[str, ...]
    grid: tuple[int, int, int]
    rate: float = 0.0


def cache_key(vae: str, text: str, transform: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache depends on: the two fingerprints and the transform's settings."""
    return {"vae": vae, "text": text, "transform": dict(transform)}


def key_of(*parts: Any) -> str:
    """Of a latent or a text: a hash of what it is made of."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def content_of(rows: Sequence[tuple[int, Sequence[str]]]) -> str:
    """A hash of all that entries were made of: window and keys of each."""
    digest = hashlib.sha256()
    for window, keys in rows:
        digest.update(json.dumps([window, *keys]).encode())
    return digest.hexdigest()


def write_index(
    folder: Path,
    key: Mapping[str, Any],
    rows: Sequence[Row],
    latents: Mapping[str, str],
    texts: Mapping[str, str],
    null_text: str,
    **more: Any,
) -> None:
    """From now on `LatentCache` opens these entries; a reader that is at work goes on with those it began with.

    latents, texts: the shard of each key. null_text: the key of the empty caption.
    """
    used = dict.fromkeys([null_text, *(text for row in rows for text in row.texts)])
    number_of = {text: number for number, text in enumerate(used)}
    shards = sorted({latents[row.latent] for row in rows} | {texts[text] for text in used})
    place = {name: number for number, name in enumerate(shards)}
    index = {
        "format": FORMAT,
        "key": key,
        "shards": shards,
        "bytes": sum(os.path.getsize(folder / name) for name in shards),
        "windows": [row.window for row in rows],
        "grids": [row.grid for row in rows],
        "rates": [round(float(row.rate), 3) for row in rows],
        "latents": [row.latent for row in rows],
        "latents_in": [place[latents[row.latent]] for row in rows],
        "captions": [[number_of[text] for text in row.texts] for row in rows],
        "texts": list(used),
        "texts_in": [place[texts[text]] for text in used],
        **more,
    }
    write_whole(folder / INDEX, json.dumps(index))
