"""Giving back the room of what a cache no longer needs, where it is asked for: a training may still read it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...limits import shown
from .known import Known
from .reading import read_json
from .shards import Shard, write_shard
from .writing import INDEX

FULL = 256  # latents, or texts, of a shard that is made of others


def compact(
    cache: Path, key: Mapping[str, Any], latents: Collection[str], texts: Collection[str], known: Known
) -> None:
    """Moves these, where they lie in shards that hold other things too or little, into new ones; tells `known`."""
    parts: dict[str, tuple[list[str], list[str]]] = {}
    for kind, keys, places in ((0, latents, known.latents), (1, texts, known.texts)):
        for one in dict.fromkeys(keys):
            parts.setdefault(places[one], ([], []))[kind].append(one)
    loose, wasteful = {}, False
    for name, (of_latents, of_texts) in sorted(parts.items()):
        shard = Shard(cache / name)
        needed = sum(len(shard.latents[k]) for k in of_latents) + sum(len(shard.texts[k]) for k in of_texts)
        wasteful |= needed < len(shard.names)
        if needed < len(shard.names) or len(of_latents) + len(of_texts) < FULL // 2:
            loose[name] = shard
    if len(loose) < 2 and not wasteful:
        return
    moved = [k for name in loose for k in parts[name][0]]
    for some in _by(FULL, moved):
        name = write_shard(cache, key, latents={k: loose[known.latents[k]].latent(k) for k in some})
        known.latents.update(dict.fromkeys(some, name))
    moved = [k for name in loose for k in parts[name][1]]
    for some in _by(FULL, moved):
        name = write_shard(cache, key, texts={k: loose[known.texts[k]].text(k) for k in some})
        known.texts.update(dict.fromkeys(some, name))


def _by(count: int, keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + count] for start in range(0, len(keys), count))


def unused(cache: Path) -> list[Path]:
    """The files that a sealed cache has no use for: shards, and notes on files, of entries that it had."""
    index = read_json(cache / INDEX)
    try:
        used = {*index["shards"], index["files"]}
    except (TypeError, KeyError):
        raise UserError(f"{cache / INDEX} is no index of now: {shown(index)}") from None
    found = [*cache.glob("*.safetensors"), *cache.glob("files-*.json"), *cache.glob("shard-*.json")]
    # what shards of before note of their files is in the new notes too
    return sorted(path for path in found if path.name not in used)


def remove_unused(cache: Path) -> int:
    """Gives the bytes that are free now."""
    free = 0
    for path in unused(cache):
        free += path.stat().st_size
        path.unlink()
    return free
