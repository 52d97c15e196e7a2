"""How well an autoencoder gives clips back: PSNR and SSIM, and reconstructions of whole files side by side.

Axes: F frames, H W height and width in pixels. Frames are uint8 [F,H,W,3]; a video is float [3,F,H,W] in [-1,1].
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..data.transforms import legal_frames, legal_size, resize_and_crop, to_uint8
from ..data.video import probe, read_frames
from ..data.writing import write_video
from ..errors import UserError
from ..models.autoencoder import CausalVideoAutoencoder

MAX_PSNR = 100.0  # dB, of clips that are equal: finite, so that means and JSON can hold it
SSIM_WINDOW = 11  # pixels, Gaussian with sigma 1.5
WINDOW = 65  # frames of a long file that are in memory together, at most
WINDOW_PIXELS = 2**25  # frames x height x width in memory together
CHUNK_PIXELS = 2**22  # the same within the autoencoder, and within SSIM
SHEET_FRAMES = 300  # frames that a gif or a png may hold
IMAGE_FPS = 8.0  # of a video made from an image, which has no rate


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of frames [F,H,W,3] uint8, from the mean square over the whole clip.

    Equal clips have `MAX_PSNR`. Raises ValueError for other types or unequal shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # here: it may import matplotlib, which writes

    _check_pair(a, b)
    return min(MAX_PSNR, float(peak_signal_noise_ratio(a.float(), b.float(), data_range=255.0)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean over frames of the structural similarity of RGB frames [F,H,W,3] uint8 (11x11 Gaussian window, sigma 1.5).

    Raises ValueError for other types or unequal shapes, UserError for frames smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # here, as above

    _check_pair(a, b)
    frames, height, width, _ = a.shape
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"{height} x {width} pixels: SSIM's window is {SSIM_WINDOW} x {SSIM_WINDOW}, give clips at least that large"
        )
    step = max(1, CHUNK_PIXELS // (height * width))
    total = 0.0
    for pair in zip(a.split(step), b.split(step), strict=True):
        first, second = (rearrange(frames, "F H W C -> F C H W").float() for frames in pair)
        values = structural_similarity_index_measure(
            first, second, sigma=1.5, kernel_size=SSIM_WINDOW, reduction="none", data_range=255.0
        )
        total += float(values.double().sum())
    return total / frames


def _check_pair(a: Tensor, b: Tensor) -> None:
    for frames in (a, b):
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
            raise ValueError(f"PSNR and SSIM want uint8 [F,H,W,3], got {frames.dtype} {list(frames.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"clips of {list(a.shape)} and {list(b.shape)} cannot be compared: give equal shapes")


@torch.no_grad()
def reconstruct(vae: CausalVideoAutoencoder, video: Tensor, frames_per_chunk: int | None = None) -> Tensor:
    """Encodes (the posterior's mode) and decodes [3,F,H,W] in [-1,1]: float32 on the CPU, clamped to [-1,1].

    `frames_per_chunk` (a multiple of the temporal stride) bounds memory and changes nothing else.
    Raises UserError for shapes that the VAE cannot represent.
    """
    x = video[None].to(vae.device, vae.dtype)
    z = vae.encode(x, frames_per_chunk).latent_dist.mode()
    return vae.decode(z, frames_per_chunk).sample[0].float().clamp(-1, 1).cpu()


def evaluate(vae: CausalVideoAutoencoder, videos: Iterable[Tensor]) -> dict:
    """Reconstructs videos [3,F,H,W] in [-1,1] and compares them in 8 bits.

    Returns `per_clip` (a list of (PSNR in dB, SSIM)), their means `psnr` and `ssim`, and `count`.
    Raises UserError where there is no video.
    """
    per_clip = []
    for video in videos:
        original, copy = to_uint8(video), to_uint8(reconstruct(vae, video))
        per_clip.append((psnr(original, copy), ssim(original, copy)))
    if not per_clip:
        raise UserError("there is no clip to reconstruct: give at least one")
    count = len(per_clip)
    means = [sum(values) / count for values in zip(*per_clip, strict=True)]
    return {"psnr": means[0], "ssim": means[1], "count": count, "per_clip": per_clip}


@dataclass(frozen=True)
class FileResult:
    """What `reconstruct_file` did: `psnr` (dB) and `ssim` over all `frames`; `changes` says what was scaled or cut."""

    psnr: float
    ssim: float
    frames: int
    changes: tuple[str, ...]


def reconstruct_file(
    vae: CausalVideoAutoencoder, path: str | os.PathLike, output: str | os.PathLike, max_frames: int | None = None
) -> FileResult:
    """Writes original | reconstruction of a video or image, by the output's ending (.mp4, .gif, .png).

    Sizes and lengths that the VAE cannot represent are scaled and cut to the nearest legal ones. A long file goes
    through in windows of at most `WINDOW` frames, each a clip of its own, so that memory stays bounded.
    Raises UserError (ClipError for the file itself).
    """
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames {max_frames}: ask for at least 1 frame")
    info, output = probe(path), Path(output)
    try:
        height, width = legal_size(info.height, info.width, stride=vae.spatial_stride, max_area=None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    asked = min(info.frames, max_frames or info.frames)
    windows = _windows(asked, height * width, vae.temporal_stride)
    frames = sum(count for _, count in windows)
    if output.suffix.lower() not in (".mp4", ".gif", ".png"):
        raise UserError(f"cannot write {output.name}: give the output the ending .mp4, .gif or .png")
    if frames > SHEET_FRAMES and output.suffix.lower() != ".mp4":
        raise UserError(f"{output}: {frames} frames are too many for it; write an .mp4, or ask for fewer (max_frames)")
    chunk = max(1, CHUNK_PIXELS // (height * width) // vae.temporal_stride) * vae.temporal_stride
    error, similarity = 0.0, 0.0

    def side_by_side() -> Iterator[Tensor]:  # uint8 [F,H,2W,3] of each window
        nonlocal error, similarity
        for start, count in tqdm(windows, desc=Path(path).name, unit="window", disable=None):
            video = resize_and_crop(read_frames(path, start, count), height, width)
            original, copy = to_uint8(video), to_uint8(reconstruct(vae, video, chunk))
            error += count * 10 ** (-psnr(original, copy) / 10)
            similarity += count * ssim(original, copy)
            yield torch.cat([original, copy], dim=2)

    _write_windows(output, side_by_side(), info.fps or IMAGE_FPS)
    changes = []
    if (height, width) != (info.height, info.width):
        changes.append(f"{info.height} x {info.width} pixels scaled and cropped to {height} x {width}")
    if frames != asked:
        changes.append(f"the last {asked - frames} of {asked} frames left out (lengths are 1 + {vae.temporal_stride}k)")
    return FileResult(-10 * math.log10(error / frames), similarity / frames, frames, tuple(changes))


def _windows(frames: int, area: int, temporal_stride: int) -> list[tuple[int, int]]:
    """(start, count) of windows that follow each other, each of a legal length; fewer than a stride are left over."""
    longest = legal_frames(min(WINDOW, max(1 + temporal_stride, WINDOW_PIXELS // area)), temporal_stride)
    starts = range(0, frames, longest)
    return [(start, legal_frames(min(longest, frames - start), temporal_stride)) for start in starts]


def _write_windows(path: Path, clips: Iterator[Tensor], fps: float) -> None:
    """Writes clips [F,H,W,3] one after the other as one file; as .mp4 it holds one of them at a time."""
    if path.suffix.lower() != ".mp4":
        write_video(path, torch.cat(list(clips)), fps)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts, starts, frames = [], [], 0
        for clip in clips:
            parts.append(Path(folder, f"{len(parts)}.mp4"))
            starts.append(frames)
            write_video(parts[-1], clip, fps)
            frames += len(clip)
        whole = Path(folder, "whole.mp4")
        _join(parts, starts, whole)
        os.replace(whole, path)


def _join(parts: list[Path], starts: list[int], path: Path) -> None:
    """Joins mp4 files of the same coding without coding again; `starts` counts frames."""
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        stream = None
        for part, start in zip(parts, starts, strict=True):
            with av.open(os.fspath(part)) as container:
                source = container.streams.video[0]
                stream = stream or output.add_stream_from_template(source)
                shift = round(start / (source.average_rate * source.time_base))
                for packet in container.demux(source):
                    if packet.size:  # the last, empty one only ends the stream
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)
