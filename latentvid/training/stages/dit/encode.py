"""Encodes a manifest's clips and captions into a latent cache, on every process, resumably.

What is there already is taken from there, clip by clip: an entry is known by the content of its file, its window, the
VAE and what it was computed in; its text by the caption and the text encoder.

Axes: C channels, f h w of a latent; S text tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ....config.schema import CaptionRules
from ....config.sections import Data, TextEncoders
from ....data.cache.known import computed_in, shards_in, write_stock
from ....data.cache.latents import module_fingerprint
from ....data.cache.shards import EncodedText
from ....data.cache.writing import INDEX, cache_key, key_of
from ....data.clips import Transform, open_sources
from ....data.manifest.manifest import Columns
from ....errors import ClipError
from ....files import check_outputs
from ....lock import FolderLock
from ....models.interchange import channels_last
from ....models.open.conditioning import encode_condition, pixels_to_encode
from ....models.open.folder import read_published
from ....precision import Computed, MixedPrecision, autocast, choose, describe
from ....world import from_main, process_state
from ...feed.manifests import main_first
from ...machine import take_threads
from ...parallel.sharing import SharedWork
from .cache_maker import CacheMaker
from .captions import check_captions
from .conditions import encoded_texts
from .parts import load_text, load_vae_of
from .published import of_model

PIXELS = 2  # of what decoding and resizing make of a file: raise it when that changes


@dataclass
class EncodeConfig:
    """Arguments of vae/encode_latents.py."""

    manifest: Path
    vae: Path | None
    text_encoder: str | None
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
    clean: bool = False
    text_dtype: Literal["fp32", "bf16"] = "fp32"
    model: str | None = None  # a published model, whose VAE, text encoders and patch these are unless they are given


class Encoder:
    """Frozen VAE and text encoder over the windows of a manifest."""

    def __init__(self, config: EncodeConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.computed: Computed = "no"  # until `compute_in`
        published = None if config.model is None else main_first(lambda: read_published(config.model))
        self.vae = channels_last(load_vae_of(config.vae, published)).to(device)
        self.text = load_text(config.text_encoder, published, TextEncoders(dtype=config.text_dtype)).to(device)
        patch, self.image = (config.patch, None) if published is None else of_model(published)
        self.transform = Transform(
            spatial_stride=self.vae.spatial_stride * patch,
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
        fingerprints = module_fingerprint(self.vae, self.vae.config), self.text.fingerprint()
        self._key = cache_key(*fingerprints, self.transform.key())

    @property
    def key(self) -> dict[str, Any]:
        """Of the cache; what its latents were computed in is a part of it."""
        return self._key | {"computed": self.computed, "pixels": PIXELS}

    def compute_in(self, computed: Computed) -> Encoder:
        self.computed = computed
        return self

    def latent_key(self, index: int, sha256: str) -> str:
        """What the latent of a window depends on, given the content of its file."""
        w = self.source.windows[index]
        size = [w.start, w.frames, w.height, w.width]
        if (view := self.source.view(index)) is not None:
            size += [str(view.rate), view.start, view.end]
        if self.image is not None:
            size.append(self.image)
        return key_of(sha256, size, self.key["vae"], self.computed, PIXELS)

    def text_key(self, caption: str) -> str:
        return key_of(caption, self.key["text"])

    def latents(self, indices: Sequence[int]) -> Iterator[tuple[int, tuple[Tensor, ...] | ClipError]]:
        """Mean and std of these windows, in any order, with the image's latent where the model is given one; or why one
        could not be read."""
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
    def _encode(self, group: list[tuple[int, Tensor]]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Clips of one shape."""
        indices, videos = zip(*group, strict=True)
        batch = torch.stack(videos).to(self.device).contiguous(memory_format=torch.channels_last_3d)
        images: list[tuple[Tensor, ...]] = [()] * len(videos)
        with autocast(self.device, self.computed):
            posterior = self.vae.encode(batch).latent_dist
            if self.image is not None:
                stills = (pixels_to_encode(self.image, clip[:, 0], clip.shape[1]) for clip in batch)
                images = [(encode_condition(self.image, self.vae, still).float().cpu(),) for still in stills]
        mean = self.vae.normalise(posterior.mean.float()).cpu()
        std = (
            self.vae.normalise(posterior.std.float()) - self.vae.normalise(torch.zeros_like(posterior.std).float())
        ).cpu()
        for index, m, s, image in zip(indices, mean, std, images, strict=True):
            yield index, (m, s, *image)

    def texts(self, captions: Sequence[str]) -> dict[str, EncodedText]:
        """Of each distinct caption."""
        distinct = list(dict.fromkeys(captions))
        return dict(zip(distinct, encoded_texts(self.text, distinct) if distinct else (), strict=True))


def encode_manifest(config: EncodeConfig) -> str:
    """Writes the cache at `config.out`; returns what was kept and dropped, in words.

    Entries that are there already and are still right are kept, so a killed run goes on, and what changed in a clip,
    a caption or the manifest is all that is made again. Until it is done the cache that was there is there.
    """
    state = process_state()
    if (said := take_threads(state.device)) is not None and state.is_main_process:
        print(said, file=sys.stderr, flush=True)
    from_main(lambda: check_outputs(config.out, (INDEX,)))
    encoder = Encoder(config, state.device)
    with ExitStack() as held:
        computed, shards = from_main(lambda: _begin(encoder, held))
        maker = CacheMaker(encoder.compute_in(computed), shards)

        def share(name: str, pieces: int, do: Callable[[int], None]) -> None:
            with SharedWork(name, pieces) as work:
                for number in tqdm(work, name, pieces, unit="shard", disable=not state.is_main_process or not pieces):
                    do(number)

        share("checking", len(shards), maker.look)
        from_main(lambda: write_stock(config.out))
        maker.take_stock()
        share("encoding", len(maker.pieces), maker.encode)
        share("captions", len(maker.captions), maker.write_texts)
        said = from_main(maker.seal)
        return said if state.is_main_process else ""


def _begin(encoder: Encoder, held: ExitStack) -> tuple[Computed, list[str]]:
    """On the main process: the folder is its own now. What to compute in (with `auto`, what latents that are there were
    computed in, on any machine), and the shards that are there."""
    config = encoder.config
    held.enter_context(FolderLock(config.out))
    asked: MixedPrecision = config.mixed_precision
    there = computed_in(config.out, encoder.key["vae"]) & {"no", "bf16"} if asked == "auto" else set()
    computed = min(there) if len(there) == 1 else choose(asked, encoder.device)
    print(describe(computed, encoder.device), file=sys.stderr, flush=True)
    return computed, shards_in(config.out)
