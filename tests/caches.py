"""Small latent caches, of now and of before, without encoding anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentvid.data.cache.shards import Encoded, EncodedText, Shard, tensor_hash, write_shard
from latentvid.data.cache.writing import INDEX, Row, cache_key, write_index

KEY = cache_key("vae-1", "t5-1", {"max_frames": 17, "sides": (8, 8)})
GRIDS = {0: (1, 4, 4), 1: (3, 4, 6), 3: (5, 6, 4), 4: (1, 4, 4), 6: (3, 4, 6)}  # 2 and 5 could not be read
NULL_TEXT = torch.ones(1, 8)
NULL = EncodedText(NULL_TEXT)


def write_cache(
    folder: Path,
    key: Mapping[str, Any],
    entries: Mapping[int, Encoded],
    per_shard: int,
    null: EncodedText = NULL,
    **more: Any,
) -> None:
    """Entries by window, some in a shard of latents each, all texts in one."""
    latents, rows = {}, []
    for first in sorted({window // per_shard for window in entries}):
        group = {
            f"latent{w}": (e.mean, e.std, *([] if e.image is None else [e.image]))
            for w, e in entries.items()
            if w // per_shard == first
        }
        latents |= dict.fromkeys(group, write_shard(folder, key, latents=group))
    texts = {tensor_hash(e.text.half()): EncodedText(e.text, e.pooled, e.second) for e in entries.values()}
    texts["null"] = null
    where = dict.fromkeys(texts, write_shard(folder, key, texts=texts))
    for window, entry in sorted(entries.items()):
        text = tensor_hash(entry.text.half())
        rows.append(Row(window, f"latent{window}", (text,), tuple(entry.mean.shape[1:])))
    more = {"channels": 4, "text_width": 8, "fps": 8.0, "dropped": []} | more
    write_index(folder, key, rows, latents, where, "null", **more)


def write_shard_of_before(
    folder: Path,
    number: int,
    key: Mapping[str, Any],
    entries: Mapping[int, Encoded],
    keys: Mapping[int, tuple[str, str]] | None = None,
    hashed: bool = True,
    **more: torch.Tensor,
) -> Path:
    """As formats 1 (not hashed) and 2 had it: each window's tensors under its number."""
    tensors = {name: value.half() for name, value in more.items()}
    for window, entry in entries.items():
        for part in ("mean", "std", "text"):
            tensors[f"{part}.{window}"] = getattr(entry, part).to(torch.float16, copy=True).contiguous()
    path = folder / f"shard-{number:05d}.safetensors"
    if hashed:
        hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
        about = {"key": key, "entries": {str(i): k for i, k in (keys or {}).items()}, "hashes": hashes}
        save_file(tensors, path, metadata={"about": json.dumps(about)})
    else:
        save_file(tensors, path, metadata={"key": json.dumps(key)})
    return path


def write_index_of_before(
    folder: Path, key: Mapping[str, Any], shard_size: int, grids: Mapping[int, Any], **more: Any
) -> None:
    more = {"channels": 4, "text_width": 8, "fps": 8.0, "dropped": []} | more
    index = {"key": key, "shard_size": shard_size, "grids": {str(i): list(g) for i, g in grids.items()}} | more
    (folder / INDEX).write_text(json.dumps(index))


def entry(i: int) -> Encoded:
    """Of window i of `GRIDS`."""
    source = torch.Generator().manual_seed(i)
    return Encoded(
        torch.randn(4, *GRIDS[i], generator=source),
        torch.rand(4, *GRIDS[i], generator=source),
        torch.randn(3 + i, 8, generator=source),
    )


def write_five(folder: Path) -> Path:
    """Those of seven windows that could be read, three to a shard of latents."""
    write_cache(folder, KEY, {i: entry(i) for i in GRIDS}, 3)
    return folder


def shard_of(folder: Path, window: int) -> Path:
    """That of its latent; -1: that of the texts."""
    if window < 0:
        return next(folder.glob("texts-*.safetensors"))
    return next(p for p in folder.glob("latents-*.safetensors") if f"latent{window}" in Shard(p).latents)
