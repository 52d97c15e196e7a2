"""What a cache that is made again still has of use: entries by what they were made of, wherever they lay in it.

Old shards are put aside, into CACHE/earlier, and are removed when the cache is whole again; so a stop loses nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import StorageError, UserError
from .shards import Encoded, EntryKey, FileState, Origins, Shard, read_origins, shard_path, write_origins

FOLDER = "earlier"
# faults of a file's content, which are there again each time; others may be gone
LASTING = frozenset({"truncated", "unreadable", "no-video", "too-short", "empty-file"})


def put_aside(cache: Path, key: Mapping[str, Any]) -> None:
    """Moves the shards away, and removes those that nothing can be taken from. For one process, before others look."""
    aside = cache / FOLDER
    aside.mkdir(exist_ok=True)
    for path in sorted(cache.glob("shard-*")):
        if path.is_dir():
            raise UserError(f"{path} is a folder in the place of a shard: remove it")
        if path.suffix == ".safetensors":
            new = aside / f"{uuid.uuid4().hex}.safetensors"
            if path.with_suffix(".json").exists():
                os.replace(path.with_suffix(".json"), new.with_suffix(".json"))
            os.replace(path, new)
    for path in sorted(aside.glob("*.safetensors")):
        found = _open(path)
        if found is None or all(found[0].key.get(part) != key[part] for part in ("vae", "text")):
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)


def computed_in(cache: Path, vae: str) -> set[str]:
    """What latents that are there, of a VAE of this fingerprint, were computed in."""
    found = set()
    for path in sorted([*cache.glob("shard-*.safetensors"), *(cache / FOLDER).glob("*.safetensors")]):
        opened = _open(path)
        if opened is not None and opened[0].key.get("vae") == vae:
            found.add(str(opened[0].key.get("computed")))
    return found


def forget(cache: Path) -> None:
    shutil.rmtree(cache / FOLDER, ignore_errors=True)


def _open(path: Path) -> tuple[Shard, Origins] | None:
    """None where it is damaged, or does not say what it was made of."""
    try:
        shard = Shard(path)
        if not shard.keys or not isinstance(shard.key, dict):
            return None
        return shard, read_origins(path)
    except StorageError:  # which says nothing of what it holds
        raise
    except UserError:
        return None


class Earlier:
    """The shards that were put aside."""

    def __init__(self, cache: Path) -> None:
        self.files: dict[str, FileState] = {}
        self.dropped: dict[str, tuple[str, str]] = {}
        self._latents: dict[str, tuple[Shard, int]] = {}
        self._texts: dict[str, tuple[Shard, int]] = {}
        for path in sorted((cache / FOLDER).glob("*.safetensors")):
            found = _open(path)
            if found is None:
                continue
            shard, origins = found
            self.files |= origins.files
            self.dropped |= {k: v for k, v in origins.dropped.items() if v[1] in LASTING}
            for window, (latent, text) in shard.keys.items():
                self._latents[latent] = self._texts[text] = shard, window

    def latent(self, key: str) -> tuple[Tensor, Tensor] | None:
        """mean and std, where they are there and sound."""
        if key not in self._latents:
            return None
        shard, window = self._latents[key]
        try:
            return shard.tensor(f"mean.{window}"), shard.tensor(f"std.{window}")
        except StorageError:
            raise
        except UserError:
            return None

    def text(self, key: str) -> Tensor | None:
        if key not in self._texts:
            return None
        shard, window = self._texts[key]
        try:
            return shard.tensor(f"text.{window}")
        except StorageError:
            raise
        except UserError:
            return None

    def adopt(
        self, cache: Path, number: int, key: Mapping[str, Any], keys: Mapping[int, EntryKey], origins: Origins
    ) -> bool:
        """Puts a shard back that holds just these entries under this key, if there is one, and it is sound."""
        first = next(iter(keys.values()), None)
        shard, _ = self._latents.get(first.latent, (None, 0)) if first else (None, 0)
        if (
            shard is None
            or shard.key != key
            or shard.keys != dict(keys)
            or ("null_text" in shard.names) != (not number)
        ):
            return False
        try:
            shard.check()
        except StorageError:
            raise
        except UserError:
            return False
        path = shard_path(cache, number)
        write_origins(path, origins)
        try:
            os.link(shard.path, path)
        except OSError:  # no links on this file system, or they are not for this one
            shutil.copy2(shard.path, path)
        return True


def finite(entry: Encoded) -> bool:
    """Whether all its values are numbers in float16, which the cache holds."""
    return all(bool(part.half().isfinite().all()) for part in (entry.mean, entry.std, entry.text))
