"""The part decode of loader.py: windows by bare PyAV, by torchcodec, and by ClipSource."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from latentvid.config.sections import Data
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.plan.plan import Draw
from latentvid.data.video.reading import probe
from latentvid.data.video.showing import ACCURATE

try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, RuntimeError, OSError):  # not installed, or without a FFmpeg that it can use
    VideoDecoder = None

FRAMES = 17
UNTAGGED_IS = (Colorspace.ITU601, Colorspace.ITU709)


def bare(path: str, start: int, interpolation: Interpolation | None = ACCURATE) -> list[np.ndarray]:
    """uint8 [H,W,3] a frame, as a short program of PyAV would read them, trusting constant frame times."""
    reformatter, pictures = VideoReformatter(), []
    for frame in decoded(path, start):
        matrix = UNTAGGED_IS[frame.height >= 720] if frame.colorspace == 2 else None
        rgb = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=interpolation, threads=1)
        pictures.append(rgb.to_ndarray())
    return pictures


def decoded(path: str, start: int) -> Iterator[av.VideoFrame]:
    """The window's frames as the decoder gives them."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = (stream.start_time or 0) + round(start / stream.average_rate / stream.time_base)
        if start:
            container.seek(wanted, stream=stream)
        found = 0
        for frame in container.decode(stream):
            if frame.pts >= wanted:
                yield frame
                found += 1
            if found == FRAMES:
                return
    raise ValueError(f"{path} has no {FRAMES} frames from {start} on")


def torchcodec(path: str, start: int) -> torch.Tensor:
    """uint8 [F,H,W,3]; trusts constant frame times too."""
    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    return decoder.get_frames_in_range(start, start + FRAMES).data


def random_reads(source: ClipSource, windows: int, rng: np.random.Generator) -> list[Draw]:
    """Draws of about so many windows, in training's reads, these in random order."""
    data = Data()
    reads = source.reads(np.ones(len(source)), frames=data.frames_per_read, most_tokens=10**9)
    draws: list[Draw] = []
    while len(draws) < windows:
        members = np.flatnonzero(reads == rng.integers(reads.max() + 1))
        draws += [Draw(int(rng.integers(2**31)), int(i)) for i in members]
    return draws


def decode_row(paths: Sequence[Path], windows: int, repeats: int, max_area: int) -> dict[str, list[float]]:
    """Of each side, useful frames a processor's second in each round."""
    manifest = Manifest.of("files", [Sample(str(p), "clip", **asdict(probe(p))) for p in paths])
    source, small = (
        ClipSource(manifest, Transform(spatial_stride=16, temporal_stride=4, max_frames=FRAMES, max_area=area))
        for area in (None, max_area)
    )
    rng = np.random.default_rng(0)

    def each(read: Callable[[Draw], object]) -> Callable[[list[Draw]], None]:
        def side(draws: list[Draw]) -> None:
            for draw in draws:
                read(draw)

        return side

    def place(draw: Draw) -> tuple[str, int]:
        return source.path(draw.index), source.start(draw.index, 0, draw.number)

    def together(source: ClipSource) -> Callable[[list[Draw]], None]:
        return lambda draws: deque(source.load_each(draws, 0), maxlen=0)

    sides = {
        "PyAV, no colours": each(lambda draw: deque(decoded(*place(draw)), maxlen=0)),
        "PyAV, default colours": each(lambda draw: bare(*place(draw), None)),
        "PyAV, accurate colours": each(lambda draw: bare(*place(draw))),
        "torchcodec": None if VideoDecoder is None else each(lambda draw: torchcodec(*place(draw))),
        "latentvid, one by one": each(lambda draw: source.load(draw.index, 0, draw.number)),
        "latentvid, in reads": together(source),
        f"latentvid, in reads, resized to {max_area} pixels": together(small),
    }
    speeds: dict[str, list[float]] = {name: [] for name, side in sides.items() if side is not None}
    for turn in range(repeats + 1):
        draws = random_reads(source, windows, rng)
        for name in speeds:
            begun = time.process_time()
            sides[name](draws)
            if turn:  # the first round warms up
                speeds[name].append(len(draws) * FRAMES / (time.process_time() - begun))
    return speeds


def show_decode(rows: dict[str, dict[str, list[float]]]) -> None:
    print(f"useful frames a processor's second, windows of {FRAMES} frames; (over accurate PyAV's of the same round)")
    for row, speeds in rows.items():
        base = speeds["PyAV, accurate colours"]
        for name, values in speeds.items():
            ratios = np.array(values) / base
            print(
                f"  {row}: {name}: {np.median(values):.0f} ({min(values):.0f} to {max(values):.0f}); "
                f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                flush=True,
            )
