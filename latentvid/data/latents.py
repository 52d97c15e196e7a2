"""Cache of latents and text states: safetensors shards under a key that tells when they are stale.

Layout of a cache folder: `cache.json` (key, shapes, captions, shards) written last, and `shard-00000.safetensors` ...
with `mean.I`, `std.I` [C,f,h,w] (the normalised posterior of window I) and `text.I` [S,Dt], all float16.
`null_text` [S,Dt], in the first shard, is the empty caption.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import written_whole
from .manifest import dropped_by_reason

INDEX = "cache.json"


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


@dataclass(frozen=True)
class Encoded:
    """One window's entry: mean and std [C,f,h,w] of the normalised latent, text states [S,Dt]."""

    mean: Tensor
    std: Tensor
    text: Tensor


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(folder: Path, shard: int, key: Mapping[str, Any], entries: Mapping[int, Encoded], **more: Tensor):
    """Writes a shard beside its name and renames it, so that a shard that is there is whole."""
    tensors = {name: value.half().contiguous() for name, value in more.items()}
    for index, entry in entries.items():
        for part in ("mean", "std", "text"):
            tensors[f"{part}.{index}"] = getattr(entry, part).half().contiguous()
    beside = shard_path(folder, shard).with_suffix(".partial")
    save_file(tensors, beside, metadata={"key": json.dumps(key, sort_keys=True)})
    os.replace(beside, shard_path(folder, shard))


def read_shard(folder: Path, shard: int, key: Mapping[str, Any]) -> dict[int, list[int]] | None:
    """{index: latent grid [f,h,w]} of a whole shard under this key, or None where it must be written."""
    try:
        with safe_open(shard_path(folder, shard), "pt") as file:
            if (file.metadata() or {}).get("key") != json.dumps(key, sort_keys=True):
                return None
            names = [name for name in file.keys() if name.startswith("mean.")]  # noqa: SIM118 - not a dict
            return {int(name[5:]): file.get_slice(name).get_shape()[1:] for name in names}
    except (FileNotFoundError, SafetensorError):
        return None


def write_index(folder: Path, key: Mapping[str, Any], shard_size: int, grids: Mapping[int, Sequence[int]], **more: Any):
    """Seals the cache: from now on `LatentCache` opens it."""
    index = {"key": key, "shard_size": shard_size, "grids": {str(i): list(g) for i, g in sorted(grids.items())}, **more}
    with written_whole(folder / INDEX) as beside:
        beside.write_text(json.dumps(index), encoding="utf-8")


class LatentCache:
    """Reads a cache; entries are numbered without gaps, in the order of the windows that could be encoded."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{folder} holds no finished latent cache ({INDEX}): make one with vae/encode_latents.py")
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.folder / INDEX} is damaged ({error}): run vae/encode_latents.py again") from None
        self.key: dict[str, Any] = index["key"]
        self.shard_size: int = index["shard_size"]
        self.channels: int = index["channels"]
        self.text_width: int = index["text_width"]
        self.windows = [int(i) for i in index["grids"]]
        self.grids = [tuple(g) for g in index["grids"].values()]  # latent (f,h,w)
        self.fps: float = index["fps"]
        self.dropped: list[tuple[str, str]] = [(path, reason) for path, reason in index["dropped"]]
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # loader processes open the shards themselves

    def check(self, expected: Mapping[str, Any]) -> None:
        """Raises UserError, naming what differs, unless the cache's key holds these values (of some or all keys)."""
        names = {"vae": "the VAE's weights", "text": "the text encoder's weights", "transform": "the sizes in data.*"}
        changed = [names[k] for k, value in json.loads(json.dumps(expected)).items() if self.key.get(k) != value]
        if changed:
            raise UserError(
                f"the latent cache {self.folder} is stale: {' and '.join(changed)} are not those it was made with; "
                "run vae/encode_latents.py again"
            )

    def summary(self) -> str:
        """How many windows it holds, and by reason what was dropped when it was made."""
        return "\n".join([f"{self.folder}: {len(self)} encoded windows", *dropped_by_reason(self.dropped)])

    def load(self, i: int) -> Encoded:
        """Entry i as float32."""
        window = self.windows[i]
        file = self._open(window // self.shard_size)
        return Encoded(*(file.get_tensor(f"{part}.{window}").float() for part in ("mean", "std", "text")))

    def null_text(self) -> Tensor:
        """Text states [S,Dt] of the empty caption."""
        return self._open(0).get_tensor("null_text").float()

    def _open(self, shard: int):
        if shard not in self._files:
            path = shard_path(self.folder, shard)
            try:
                file = safe_open(path, "pt")
            except (FileNotFoundError, SafetensorError) as error:
                raise UserError(f"{path} is missing or damaged ({error}): run vae/encode_latents.py again") from None
            if (file.metadata() or {}).get("key") != json.dumps(self.key, sort_keys=True):
                raise UserError(f"{path} belongs to another cache than {INDEX}: run vae/encode_latents.py again")
            self._files[shard] = file
        return self._files[shard]


class LatentCaches:
    """Several caches as one, entry after entry; made with the same weights.

    grids: latent (f,h,w) of each entry. sources: the folders. source_of: uint16 [entries], the cache each is from.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.caches = [LatentCache(folder) for folder in folders]
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

    def summary(self) -> str:
        return "\n".join(cache.summary() for cache in self.caches)

    def load(self, i: int) -> Encoded:
        """Entry i of all as float32."""
        source = int(self.source_of[i])
        return self.caches[source].load(i - int(self._first[source]))

    def null_text(self) -> Tensor:
        return self.caches[0].null_text()
