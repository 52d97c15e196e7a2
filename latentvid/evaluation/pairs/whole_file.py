"""Reconstructions of whole files, beside the originals, in memory that does not grow with their length.

A file is one stream: frames are decoded, encoded to latents, decoded again and written a chunk at a time, and the
reading, the network and the writing work at once.
Axes: F frames, H W height and width in pixels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ...data.transforms import first_frames, fit, from_uint8, legal_frames, legal_size, to_uint8
from ...data.video.reading import probe, read_chunks
from ...data.video.writing import clip_writer, copies_audio, write_video
from ...errors import UserError
from ...files import check_target
from ...limits import check
from ...models.interchange import DiffusersVae, Vae
from ...models.streaming import decode_stream, encode_stream
from ...pipelines.defaults import ENDINGS, STREAMED
from ...words import counted
from .fidelity import Fidelity

T = TypeVar("T")

CHUNK_PIXELS = 2**20  # frames x height x width that are read, scored and written together
WINDOW = 65  # frames of a window, at most, for autoencoders that have no stream
WINDOW_PIXELS = 2**25  # the same as frames x height x width
SHEET_FRAMES = 300  # frames that a gif or a png may hold
IMAGE_FPS = 8.0  # of a video made from an image, which has no rate
AHEAD = 2  # chunks that each stage may be ahead of the next


@dataclass(frozen=True)
class FileResult:
    """What `reconstruct_file` did: `psnr` (dB) and `ssim` over all `frames`; `changes` says what is not as it was."""

    psnr: float
    ssim: float
    frames: int
    changes: tuple[str, ...]


def reconstruct_file(
    vae: Vae, path: str | os.PathLike, output: str | os.PathLike, max_frames: int | None = None
) -> FileResult:
    """Writes original | reconstruction of a video or image, by the output's ending (`ENDINGS`).

    Sizes that the VAE cannot represent are scaled and cropped to the nearest legal ones; a length that it cannot
    represent has its last frame repeated, and the repetitions are cut off again. An autoencoder that has no stream
    (diffusers') gets windows of at most `WINDOW` frames, each a clip of its own.
    Raises UserError (ClipError for the file itself).
    """
    if max_frames is not None:
        check("max_frames", max_frames)
    info, output = probe(path), Path(output)
    try:
        height, width = legal_size(info.height, info.width, stride=vae.spatial_stride, max_area=None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    frames, ending = min(info.frames, max_frames or info.frames), output.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"cannot write {output.name}: give the output the ending {', '.join(ENDINGS)}")
    check_target(output)
    if frames > SHEET_FRAMES and ending not in STREAMED:
        raise UserError(
            f"{output}: {counted(frames, 'frame')} are too many for it; write an .mp4, or ask for fewer (max_frames)"
        )
    changes = []
    if (height, width) != (info.height, info.width):
        changes.append(f"{info.height} x {info.width} pixels scaled and cropped to {height} x {width}")
    first, later = _lengths(vae, height * width)
    if not has_stream(vae) and frames > first:
        changes.append(f"windows of {counted(first, 'frame')}, each a clip of its own: this autoencoder has no stream")
    copied, codec = copies_audio(path, output)
    if codec is not None:
        changes.append(f"audio ({codec}) " + ("copied" if copied else f"left out: {ending} does not hold it"))
    fidelity = Fidelity()
    pairs = _pairs(vae, first_frames(read_chunks(path, first, later, threads=0), frames), (height, width))
    with closing(ahead(_side_by_side(pairs, fidelity))) as pieces:
        shown = _counted(pieces, frames, Path(path).name)
        if ending in STREAMED:
            audio = path if copied else None
            with clip_writer(output, height, 2 * width, info.fps or IMAGE_FPS, audio=audio) as write:
                for piece in shown:
                    write(piece)
        else:
            write_video(output, torch.cat(list(shown)), info.fps or IMAGE_FPS)
    return FileResult(fidelity.psnr, fidelity.ssim, fidelity.frames, tuple(changes))


def ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """The items, made in a thread of their own, at most `depth` of them before they are asked for."""
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def has_stream(vae: Vae) -> bool:
    """Whether the autoencoder carries a cache from chunk to chunk, as ours does; diffusers' show no such thing."""
    return not isinstance(vae, DiffusersVae)


def _lengths(vae: Vae, area: int) -> tuple[int, int]:
    """Frames of the first chunk, and of the later ones."""
    stride = vae.temporal_stride
    if has_stream(vae):
        later = max(1, CHUNK_PIXELS // area // stride) * stride
        return 1 + later, later
    longest = legal_frames(min(WINDOW, max(1 + stride, WINDOW_PIXELS // area)), stride)
    return longest, longest


@torch.no_grad()
def _pairs(vae: Vae, chunks: Iterator[Tensor], size: tuple[int, int]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Originals (a list of [H,W,3]) and their reconstructions [F,H,W,3], uint8 on the VAE's device."""
    waiting: deque[Tensor] = deque()

    def videos() -> Iterator[Tensor]:  # [1,3,F,H,W] in [-1,1], of lengths that make a legal whole
        begun = False
        for chunk in ahead(chunks):
            pixels = fit(chunk, *size).to(vae.device)
            waiting.extend(pixels)
            alone = not begun or not has_stream(vae)
            missing = (int(alone) - len(pixels)) % vae.temporal_stride
            if missing:  # only the last chunk can be
                pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
            begun = True
            yield from_uint8(pixels)[None].to(vae.dtype)

    for video in _reconstructed(vae, videos()):
        pieces = to_uint8(video[0])
        originals = [waiting.popleft() for _ in range(min(len(pieces), len(waiting)))]
        if originals:
            yield originals, pieces[: len(originals)]


def _reconstructed(vae: Vae, videos: Iterator[Tensor]) -> Iterator[Tensor]:
    if has_stream(vae):
        return decode_stream(vae, encode_stream(vae, videos))
    return (vae.decode(vae.encode(video).latent_dist.mode()).sample for video in videos)


def _side_by_side(pairs: Iterable[tuple[list[Tensor], Tensor]], fidelity: Fidelity) -> Iterator[Tensor]:
    """uint8 [F,H,2W,3] on the CPU; the scores are added up on the way."""
    for originals, copies in pairs:
        width = copies.shape[2]
        both = copies.new_empty(*copies.shape[:2], 2 * width, 3)
        for i, original in enumerate(originals):
            fidelity.add(original[None], copies[i : i + 1])
            both[i, :, :width] = original
        both[:, :, width:] = copies
        yield both.cpu()


def _counted(pieces: Iterator[Tensor], frames: int, name: str) -> Iterator[Tensor]:
    with tqdm(total=frames, desc=name, unit="frame", disable=None) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))
