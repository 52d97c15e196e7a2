"""Encodes a manifest's clips and captions into a latent cache, on every process, resumably.

Axes: C channels, f h w of a latent; S text tokens.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.clips import ClipSource, Transform
from ..data.latents import INDEX, Encoded, cache_key, module_fingerprint, read_shard, write_index, write_shard
from ..data.manifest import dropped_by_reason, read_manifest
from ..errors import ClipError, UserError
from ..models.interchange import channels_last, load_vae
from ..precision import Computed, MixedPrecision, autocast, choose, describe
from ..text import TextEncoder
from ..world import from_main, process_state

SHARD = 256  # windows in a shard; the unit of work and of resuming


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
        )
        self.source = ClipSource(read_manifest(config.manifest), self.transform)
        windows = [(self.source.path(i), self.source.caption(i), asdict(w)) for i, w in enumerate(self.source.windows)]
        content = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
        transform = {**asdict(self.transform), "windows": content}
        self._key = cache_key(module_fingerprint(self.vae, self.vae.config), self.text.fingerprint(), transform)

    @property
    def key(self) -> dict[str, Any]:
        """Of the cache; what its latents were computed in is a part of it."""
        return self._key | {"transform": self._key["transform"] | {"bf16": self.computed == "bf16"}}

    def compute_in(self, computed: Computed) -> Encoder:
        self.computed = computed
        return self

    def shard(self, indices: Sequence[int]) -> tuple[dict[int, Encoded], list[tuple[str, str]]]:
        """The entries of these windows, and (path, reason) of those that could not be read."""
        by_shape: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        bad: list[tuple[str, str]] = []
        entries: dict[int, Encoded] = {}
        for index, video in zip(indices, self.source.read_each(indices), strict=True):
            if isinstance(video, ClipError):
                bad.append((video.path, video.reason))
                continue
            group = by_shape.setdefault(tuple(video.shape), [])
            group.append((index, video))
            if len(group) == self.config.batch:
                entries |= self._encode(by_shape.pop(tuple(video.shape)))
        for group in by_shape.values():
            entries |= self._encode(group)
        return dict(sorted(entries.items())), bad

    @torch.no_grad()
    def _encode(self, group: list[tuple[int, Tensor]]) -> dict[int, Encoded]:
        """Clips of one shape."""
        indices, videos = zip(*group, strict=True)
        batch = torch.stack(videos).to(self.device).contiguous(memory_format=torch.channels_last_3d)
        with autocast(self.device, self.computed):
            posterior = self.vae.encode(batch).latent_dist
        mean = self.vae.normalise(posterior.mean.float()).cpu()
        std = (
            self.vae.normalise(posterior.std.float()) - self.vae.normalise(torch.zeros_like(posterior.std).float())
        ).cpu()
        text = self.text.encode([self.source.caption(i) for i in indices]).split()
        return {i: Encoded(m, s, t.float().cpu()) for i, m, s, t in zip(indices, mean, std, text, strict=True)}

    def null_text(self) -> Tensor:
        return self.text.encode([""]).states.float().cpu()


def encode_manifest(config: EncodeConfig) -> str:
    """Writes the cache at `config.out`; returns what was kept and dropped, in words.

    Shards that are already there under the same key are kept, so a killed run goes on; a cache made with other
    weights, sizes or manifest is replaced shard by shard.
    """
    state = process_state()
    encoder = Encoder(config, state.device)
    encoder.compute_in(from_main(lambda: _settle(encoder)))
    config.out.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        print(describe(encoder.computed, state.device), file=sys.stderr, flush=True)
        (config.out / INDEX).unlink(missing_ok=True)  # until it is sealed again no training may open the cache
    count = len(encoder.source)
    shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    mine = range(state.process_index, len(shards), state.num_processes)
    for number in tqdm(mine, desc="encoding", unit="shard", disable=not state.is_main_process):
        if read_shard(config.out, number, encoder.key) is None:
            entries, bad = encoder.shard(shards[number])
            more = {"null_text": encoder.null_text()} if number == 0 else {}
            (config.out / f"dropped-{number:05d}.json").write_text(json.dumps(bad), encoding="utf-8")
            write_shard(config.out, number, encoder.key, entries, **more)
    state.wait_for_everyone()
    if not state.is_main_process:
        return ""
    return _seal(config.out, encoder, len(shards))


def _settle(encoder: Encoder) -> Computed:
    """What to compute in: with `auto`, what shards of this cache that are there were computed in, on any machine."""
    config, device = encoder.config, encoder.device
    if config.mixed_precision == "auto":
        shards = sorted(config.out.glob("shard-*.safetensors"))
        for computed in get_args(Computed):
            key = encoder.compute_in(computed).key
            if any(read_shard(config.out, int(shard.stem.split("-")[1]), key) is not None for shard in shards):
                return computed
    return choose(config.mixed_precision, device)


def _seal(out: Path, encoder: Encoder, shards: int) -> str:
    grids: dict[int, list[int]] = {}
    dropped = list(encoder.source.dropped)
    for number in range(shards):
        found = read_shard(out, number, encoder.key)
        if found is None:
            raise UserError(f"shard {number} of {out} is not whole; run the same command again")
        grids |= found
        dropped += [tuple(row) for row in json.loads((out / f"dropped-{number:05d}.json").read_text(encoding="utf-8"))]
    if not grids:
        raise UserError(f"no clip of the manifest could be encoded: {dropped[:5]}")
    fps = [s.fps for s in encoder.source.samples if s.fps > 0]
    write_index(
        out,
        encoder.key,
        SHARD,
        grids,
        channels=encoder.vae.latent_channels,
        text_width=encoder.text.dim,
        fps=sorted(fps)[len(fps) // 2] if fps else 0.0,
        dropped=dropped,
    )
    for stale in out.glob("shard-*.safetensors"):
        if int(stale.stem.split("-")[1]) >= shards:
            stale.unlink()
    return "\n".join([f"{out}: {len(grids)} of {len(encoder.source)} windows encoded", *dropped_by_reason(dropped)])
