"""Encodes a manifest's clips and captions into a latent cache, on every process, resumably.

What is there already is taken from there, clip by clip: an entry is known by the content of its file, its window, the
VAE and what it was computed in; its text by the caption and the text encoder.

Axes: C channels, f h w of a latent; S text tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ....config.schema import CaptionRules
from ....config.sections import Data
from ....data.cache.earlier import Earlier, computed_in, finite, forget, put_aside
from ....data.cache.latents import INDEX, cache_key, file_hash, module_fingerprint, write_index
from ....data.cache.shards import (
    Encoded,
    EntryKey,
    FileState,
    Origins,
    Shard,
    read_origins,
    shard_path,
    write_origins,
    write_shard,
)
from ....data.clips import ClipSource, Transform, open_sources
from ....data.manifest.manifest import Columns, dropped_by_reason
from ....data.storage import patiently
from ....errors import ClipError, UserError
from ....files import check_outputs
from ....lock import FolderLock
from ....models.interchange import channels_last, load_vae
from ....precision import Computed, MixedPrecision, autocast, choose, describe
from ....text import TextEncoder
from ....world import from_main, process_state
from ...feed.manifests import main_first
from ...machine import take_threads
from ...parallel.sharing import SharedWork
from .captions import check_captions

SHARD = 256  # windows in a shard; the unit of work and of resuming
PIXELS = 2  # of what decoding and resizing make of a file: raise it when that changes


@dataclass
class EncodeConfig:
    """Arguments of vae/encode_latents.py."""

    manifest: Path
    vae: Path
    text_encoder: str
    out: Path
    max_frames: int
    max_area: int | None
    patch: int
    batch: int
    mixed_precision: MixedPrecision = "auto"
    caption_too_long: Literal["drop", "truncate"] = "drop"
    unknown_share: float = CaptionRules.unknown_share
    path_column: str | None = None
    caption_column: str | None = None
    fps: float | tuple[float, float] | None = None
    fps_slack: float = Data.fps_slack


class Encoder:
    """Frozen VAE and text encoder over the windows of a manifest."""

    def __init__(self, config: EncodeConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.computed: Computed = "no"  # until `compute_in`
        self.vae = channels_last(load_vae(config.vae)).to(device)
        self.text = TextEncoder.from_pretrained(config.text_encoder).to(device)
        self.transform = Transform(
            spatial_stride=self.vae.spatial_stride * config.patch,
            temporal_stride=self.vae.temporal_stride,
            max_area=config.max_area,
            max_frames=config.max_frames,
            fps=config.fps,
            fps_slack=config.fps_slack,
        )
        rules = CaptionRules(too_long=config.caption_too_long, unknown_share=config.unknown_share)
        check = partial(check_captions, text=self.text, rules=rules, option="--unknown-share ")
        columns = Columns(config.path_column, config.caption_column)
        self.source = main_first(lambda: open_sources([config.manifest], self.transform, columns=columns, check=check))
        several = [i for i in range(len(self.source.samples)) if len(self.source.samples.captions(i)) > 1]
        if several:
            raise UserError(
                f"{self.source.samples.name(several[0])} has several captions, as {len(several)} clips have; a cache "
                "has one of each: train with data.manifest, or give one caption a clip"
            )
        fingerprints = module_fingerprint(self.vae, self.vae.config), self.text.fingerprint()
        self._key = cache_key(*fingerprints, self.transform.key())

    @property
    def key(self) -> dict[str, Any]:
        """Of the cache; what its latents were computed in is a part of it."""
        return self._key | {"computed": self.computed, "pixels": PIXELS}

    def compute_in(self, computed: Computed) -> Encoder:
        self.computed = computed
        return self

    def keys(self, index: int, sha256: str) -> EntryKey:
        """What the entry of a window depends on, given the content of its file."""
        w = self.source.windows[index]
        size = [w.start, w.frames, w.height, w.width]
        if (view := self.source.view(index)) is not None:
            size += [str(view.rate), view.start, view.end]
        return EntryKey(
            _hash(sha256, size, self.key["vae"], self.computed, PIXELS),
            _hash(self.source.caption(index), self.key["text"]),
        )

    def latents(self, indices: Sequence[int]) -> Iterator[tuple[int, tuple[Tensor, Tensor] | ClipError]]:
        """Mean and std of these windows, in any order, or why one could not be read."""
        by_shape: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for index, video in zip(indices, self.source.read_each(indices), strict=True):
            if isinstance(video, ClipError):
                yield index, video
                continue
            group = by_shape.setdefault(tuple(video.shape), [])
            group.append((index, video))
            if len(group) == self.config.batch:
                yield from self._encode(by_shape.pop(tuple(video.shape)))
        for group in by_shape.values():
            yield from self._encode(group)

    @torch.no_grad()
    def _encode(self, group: list[tuple[int, Tensor]]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Clips of one shape."""
        indices, videos = zip(*group, strict=True)
        batch = torch.stack(videos).to(self.device).contiguous(memory_format=torch.channels_last_3d)
        with autocast(self.device, self.computed):
            posterior = self.vae.encode(batch).latent_dist
        mean = self.vae.normalise(posterior.mean.float()).cpu()
        std = (
            self.vae.normalise(posterior.std.float()) - self.vae.normalise(torch.zeros_like(posterior.std).float())
        ).cpu()
        yield from zip(indices, zip(mean, std, strict=True), strict=True)

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """States [S,Dt] of each distinct caption."""
        distinct = list(dict.fromkeys(captions))
        states = self.text.encode(distinct).split() if distinct else ()
        return dict(zip(distinct, (s.float().cpu() for s in states), strict=True))


class ShardMaker:
    """Makes the shards of a cache, of which `earlier` has what was encoded before."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.source, self.out = encoder, encoder.source, encoder.config.out
        self.earlier = Earlier(self.out)
        count = len(self.source)
        self.shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
        self._known: tuple[str, FileState] | None = None  # the last file: its windows follow each other

    def make(self, number: int) -> None:
        """Writes the shard, or puts back the one that is what it would be."""
        origins, keys, dropped = Origins(), {}, {}
        for index in self.shards[number]:
            path = self.source.path(index)
            try:
                state = self._state(index)
            except ClipError as error:
                dropped[_hash(path, "?")] = path, error.reason
                continue
            origins.files[self._name(index)] = state
            keys[index] = self.encoder.keys(index, state.sha256)
        before = {i: self.earlier.dropped[k.latent] for i, k in keys.items() if k.latent in self.earlier.dropped}
        dropped |= {keys[i].latent: (self.source.path(i), reason) for i, (_, reason) in before.items()}
        wanted = {i: k for i, k in keys.items() if i not in before}
        origins.dropped = dropped
        if self.earlier.adopt(self.out, number, self.encoder.key, wanted, origins):
            return
        entries = {}
        latents = {i: self.earlier.latent(k.latent) for i, k in wanted.items()}
        for index, found in self.encoder.latents([i for i, latent in latents.items() if latent is None]):
            latents[index] = found
        texts = self._texts(wanted)
        for index, found in latents.items():
            fault = found.reason if isinstance(found, ClipError) else None
            if fault is None:
                entries[index] = Encoded(*found, texts[index])
                fault = None if finite(entries[index]) else "latent-not-finite"
            if fault is not None:
                entries.pop(index, None)
                dropped[wanted[index].latent] = self.source.path(index), fault
        more = {"null_text": self.encoder.texts([""])[""]} if number == 0 else {}
        write_origins(shard_path(self.out, number), origins)
        write_shard(self.out, number, self.encoder.key, entries, wanted, **more)

    def _texts(self, wanted: dict[int, EntryKey]) -> dict[int, Tensor]:
        found = {i: self.earlier.text(k.text) for i, k in wanted.items()}
        made = self.encoder.texts([self.source.caption(i) for i, text in found.items() if text is None])
        return {i: made[self.source.caption(i)] if text is None else text for i, text in found.items()}

    def _name(self, index: int) -> str:
        """The file as the manifest has it."""
        return self.source.samples.paths[int(self.source.windows.sample[index])]

    def _state(self, index: int) -> FileState:
        """Of the file of a window; its content is hashed only where size or times are not those that are remembered.
        Raises ClipError."""
        path, name = self.source.path(index), self._name(index)
        if self._known is not None and self._known[0] == path:
            return self._known[1]

        def look() -> FileState:
            try:
                s = os.stat(path)
                now, known = (s.st_size, s.st_mtime_ns, s.st_ctime_ns), self.earlier.files.get(name)
                found = known if known is not None and now == known[:3] else FileState(*now, file_hash(path))
            except FileNotFoundError as error:
                raise ClipError(path, "missing", f"cannot be found ({error.strerror}); correct the path") from error
            except PermissionError as error:
                raise ClipError(path, "no-permission", "cannot be opened; allow this user to read it") from error
            return found

        self._known = path, patiently(look, path, self.source.patience_s)
        return self._known[1]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def encode_manifest(config: EncodeConfig) -> str:
    """Writes the cache at `config.out`; returns what was kept and dropped, in words.

    Entries that are there already and are still right are kept, so a killed run goes on, and what changed in a clip,
    a caption or the manifest is all that is made again.
    """
    state = process_state()
    if (said := take_threads(state.device)) is not None and state.is_main_process:
        print(said, file=sys.stderr, flush=True)
    from_main(lambda: check_outputs(config.out, (INDEX,)))
    encoder = Encoder(config, state.device)
    with ExitStack() as held:
        encoder.compute_in(from_main(lambda: _begin(encoder, held)))
        maker = ShardMaker(encoder)
        with SharedWork("encode", len(maker.shards)) as work:
            bar = tqdm(work, "encoding", len(maker.shards), unit="shard", disable=not state.is_main_process)
            for number in bar:
                maker.make(number)
            return _seal(config.out, encoder, len(maker.shards)) if state.is_main_process else ""


def _begin(encoder: Encoder, held: ExitStack) -> Computed:
    """On the main process: the folder is its own now, and what lies there is put aside. What to compute in: with
    `auto`, what latents that are there were computed in, on any machine."""
    config = encoder.config
    held.enter_context(FolderLock(config.out))
    asked: MixedPrecision = config.mixed_precision
    there = computed_in(config.out, encoder.key["vae"]) & {"no", "bf16"} if asked == "auto" else set()
    computed = min(there) if len(there) == 1 else choose(asked, encoder.device)
    print(describe(computed, encoder.device), file=sys.stderr, flush=True)
    (config.out / INDEX).unlink(missing_ok=True)  # until it is sealed again no training may open the cache
    put_aside(config.out, encoder.compute_in(computed).key)
    return computed


def _seal(out: Path, encoder: Encoder, shards: int) -> str:
    source: ClipSource = encoder.source
    grids: dict[int, list[int]] = {}
    dropped, content = list(source.dropped), hashlib.sha256()
    for number in range(shards):
        shard = Shard(shard_path(out, number))
        for window in shard.windows():
            grids[window] = shard.shape(f"mean.{window}")[1:]
            content.update(json.dumps([window, *shard.keys[window]]).encode())
        dropped += read_origins(shard.path).dropped.values()
    if not grids:
        raise UserError(f"no clip of the manifest could be encoded: {dropped[:5]}")
    rates = source.rates[list(grids)]
    fps = sorted(rates[rates > 0].tolist())
    folder = os.path.dirname(os.path.abspath(encoder.config.manifest))
    write_index(
        out,
        encoder.key,
        SHARD,
        grids,
        channels=encoder.vae.latent_channels,
        text_width=encoder.text.dim,
        fps=fps[len(fps) // 2] if fps else 0.0,
        rates=[round(float(rate), 3) for rate in rates],
        dropped=dropped,
        notes=source.notes,
        unknown=source.unknown_captions / max(1, len(source.samples)),
        clips=[folder, os.path.relpath(folder, os.path.abspath(out))],
        content=content.hexdigest(),
    )
    forget(out)
    about = [f"{out}: {len(grids)} of {len(source)} windows encoded", *dropped_by_reason(dropped)]
    return "\n".join(about + [f"  {note}" for note in source.notes])
