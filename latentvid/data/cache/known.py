"""What a folder of a cache has of use for an encoding: which latents and texts are there, sound, and in which shard.

While it is encoded, CACHE/work notes what was found and what was made; a stop loses nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import StorageError, UserError
from ...files import write_whole
from .origins import Origins, origins_in, read_origins
from .reading import read_json
from .shards import Shard
from .writing import INDEX

WORK = "work"
STOCK = "stock.json"
EARLIER = "earlier"  # where older versions put shards aside
KEY = 32  # letters of a key; numbers of windows, by which shards of before name their tensors, have at most ten
# faults of a file's content, which are there again each time; others may be gone
LASTING = frozenset({"truncated", "unreadable", "no-video", "too-short", "empty-file"})


def shards_in(cache: Path) -> list[str]:
    """The shards of a folder that is going to be encoded into. For one process, before others look."""
    for path in sorted((cache / EARLIER).glob("*.safetensors")):  # a stop of an older version left them there
        new = cache / f"shard-{uuid.uuid4().hex}.safetensors"
        if path.with_suffix(".json").exists():
            os.replace(path.with_suffix(".json"), new.with_suffix(".json"))
        os.replace(path, new)
    shutil.rmtree(cache / EARLIER, ignore_errors=True)
    current = _files_of(cache)
    for path in cache.glob("files-*.json"):  # of indexes before the one that is there
        if path != current:
            path.unlink()
    for found in (cache / WORK).glob("*.found.json"):  # the shard may be another now
        found.unlink()
    (cache / WORK).mkdir(exist_ok=True)
    names = sorted(path.name for path in cache.glob("*.safetensors"))
    if folders := [name for name in names if (cache / name).is_dir()]:
        raise UserError(f"{cache / folders[0]} is a folder instead of a shard: remove it")
    return names


def computed_in(cache: Path, vae: str) -> set[str]:
    """What latents that are there, of a VAE of this fingerprint, were computed in."""
    shards = (_open(path) for path in sorted([*cache.glob("*.safetensors"), *(cache / EARLIER).glob("*.safetensors")]))
    return {str(shard.key.get("computed")) for shard in shards if shard and shard.latents and shard.key["vae"] == vae}


def look(cache: Path, name: str, key: Mapping[str, Any]) -> None:
    """Notes which latents and texts of a shard are of this key's weights, and as they were written."""
    shard = _open(cache / name)
    latents, texts = [], []
    if shard is not None and (shard.key["vae"] == key["vae"] or shard.key.get("text") == key["text"]):
        bad = set(shard.unsound())
        latents = [k for k, parts in shard.latents.items() if len(k) == KEY and bad.isdisjoint(parts)]
        texts = [k for k, parts in shard.texts.items() if len(k) == KEY and bad.isdisjoint(parts)]
    note(cache, name, latents, texts)


def note(cache: Path, name: str, latents: Iterable[str], texts: Iterable[str]) -> None:
    """Notes what a shard holds."""
    write_whole(cache / WORK / f"{name}.found.json", json.dumps({"latents": list(latents), "texts": list(texts)}))


def _open(path: Path) -> Shard | None:
    """None where it is damaged, or does not say what it was made of."""
    try:
        shard = Shard(path)
    except StorageError:  # which says nothing of what it holds
        raise
    except UserError:
        return None
    return shard if shard.hashed and isinstance(shard.key, dict) and "vae" in shard.key else None


@dataclass
class Known:
    """latents, texts: the shard of each key."""

    latents: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def noted(cls, cache: Path) -> Known:
        """All that shards hold of which there is a note."""
        known = cls()
        for file in sorted((cache / WORK).glob("*.found.json")):
            found, name = read_json(file), file.name.removesuffix(".found.json")
            for key in found["latents"]:
                known.latents.setdefault(key, name)
            for key in found["texts"]:
                known.texts.setdefault(key, name)
        return known


def write_stock(cache: Path) -> None:
    """What is there before anything is made. For one process: to the others notes might show what is made meanwhile."""
    write_whole(cache / WORK / STOCK, json.dumps(asdict(Known.noted(cache))))


def read_stock(cache: Path) -> Known:
    return Known(**read_json(cache / WORK / STOCK))


def piece_path(cache: Path, number: int) -> Path:
    return cache / WORK / f"piece-{number:05d}.json"


def origins_before(cache: Path) -> Origins:
    """The files that are known, and the faults that are lasting: of the cache, and of an encoding that was stopped."""
    found, files = Origins(), sorted(cache.glob("shard-*.json"))
    files += [file for file in [_files_of(cache)] if file is not None] + sorted((cache / WORK).glob("piece-*.json"))
    for file in files:
        try:
            found |= read_origins(file)
        except StorageError:
            raise
        except UserError:  # they are looked at again
            continue
    found.dropped = {k: v for k, v in found.dropped.items() if v[1] in LASTING}
    return found


def _files_of(cache: Path) -> Path | None:
    """What the cache that is there notes of its files."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return cache / json.loads((cache / INDEX).read_text(encoding="utf-8"))["files"]
    return None


def read_piece(cache: Path, number: int) -> tuple[Origins, dict[int, str]]:
    """What was noted of a piece of the work: its files and faults, and the latent of each window."""
    file = piece_path(cache, number)
    found = read_json(file)
    return origins_in(file, found), {int(window): key for window, key in found["latents"].items()}


def forget(cache: Path) -> None:
    shutil.rmtree(cache / WORK, ignore_errors=True)
