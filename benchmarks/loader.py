"""How much of bare decoding's speed the data path keeps, and whether its memory stays flat.

.venv/bin/python benchmarks/loader.py [--files DIR] [--max-area 65536] [--loads 5000]

Both sides decode the same windows of the same files in the same order, one process and one decoder thread each, by
turns; the median of the ratios is shown, by the clock and (for busy machines) by the decoding process's processor time:
  bare  PyAV alone: open, seek to the key frame before the window, decode, convert to RGB (as accurately) into an array
  ours  ClipSource -> VaeTask's packs -> iterate_steps, with 0 and with 1 loader process; no model
Clips are made for it (320x240, 100 frames, moving noise and shapes, H.264, key frames every 12, 48 and 250 frames);
--files takes footage of yours instead.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, VideoReformatter

from latentvid.data.manifest import Sample, write_manifest
from latentvid.data.plan import Draw, Plan
from latentvid.data.video import ACCURATE, VIDEO_ENDINGS, probe
from latentvid.training.config import VaeConfig
from latentvid.training.load import load_config
from latentvid.training.loader import iterate_steps
from latentvid.training.vae_task import VaeTask

GOPS = (12, 48, 250)
UNTAGGED_IS = (Colorspace.ITU601, Colorspace.ITU709)


def make_clips(folder: Path, count: int) -> list[Path]:
    """Textured ground that pans, a disc that crosses it, a little noise: about as hard to decode as footage."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(40, 216, (60, 80, 3)), np.ones((8, 8, 1))).astype(np.float32)  # [480,640,3]
    y, x = np.mgrid[:240, :320]
    paths = []
    for n in range(count):
        path = folder / f"{n:03d}-gop{GOPS[n % 3]}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={"g": str(GOPS[n % 3]), "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for t in range(100):
                frame = ground[t : t + 240, 2 * t : 2 * t + 320] + rng.normal(0, 4, (240, 320, 1))
                disc = (y - 120 - 60 * np.sin(t / 9 + n)) ** 2 + (x - 3 * t) ** 2 < 1600
                frame[disc] = 255 - frame[disc]
                picture = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def bare(path: str, start: int, frames: int) -> list[np.ndarray]:
    """uint8 [H,W,3] a frame, as a short program of PyAV would read them, trusting constant frame times."""
    reformatter = VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = (stream.start_time or 0) + round(start / stream.average_rate / stream.time_base)
        if start:
            container.seek(wanted, stream=stream)
        pictures = []
        for frame in container.decode(stream):
            if frame.pts >= wanted:
                matrix = UNTAGGED_IS[frame.height >= 720] if frame.colorspace == 2 else None
                rgb = reformatter.reformat(
                    frame, format="rgb24", src_colorspace=matrix, interpolation=ACCURATE, threads=1
                )
                pictures.append(rgb.to_ndarray())
            if len(pictures) == frames:
                return pictures
    raise ValueError(f"{path} has no {frames} frames from {start} on")


class Side:
    """The data path of a VAE's training over these files, in packs of four windows of 320x240."""

    def __init__(self, manifest: Path, max_area: int | None) -> None:
        lines = [
            f"run.dir={manifest.parent}",
            f"data.manifest={manifest}",
            f"data.max_area={'null' if max_area is None else max_area}",
            "data.tokens_per_pack=24000",
            "model={patch: 4, widths: [8, 8, 8]}",
        ]
        self.task = VaeTask(load_config(VaeConfig, None, lines), torch.device("cpu"))

    def ours(self, packs: int, workers: int) -> tuple[np.ndarray, list[Draw]]:
        """(seconds, processor seconds of the process that decodes) of this many packs, and the windows in them."""
        plan = Plan(self.task.tokens, budget=24000, packs=1, seed=0)
        feed = iterate_steps(plan, self.task.make_pack, rank=0, world=1, workers=workers, pin_memory=False)
        next(feed)  # a loader process begins with the second pack when it has sent the first
        decoder = multiprocessing.active_children()[0].pid if workers else os.getpid()
        start = clocks(decoder)
        draws = [draw for _ in range(packs) for draw in next(feed)[0].packs[0]]
        return clocks(decoder) - start, draws

    def bare(self, draws: list[Draw]) -> np.ndarray:
        source = self.task.source
        windows = [(source.path(d.index), source.start(d.index, 0, d.number), source.shapes[d.index][0]) for d in draws]
        start = clocks(os.getpid())
        for window in windows:
            bare(*window)
        return clocks(os.getpid()) - start


def clocks(process: int) -> np.ndarray:
    """Seconds on the wall, and of a processor's time that the process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return np.array([time.perf_counter(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")])


def resident() -> float:
    """MB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare(side: Side, packs: int, repeats: int, label: str) -> None:
    side.ours(2, 0)
    for workers in (0, 1):
        runs = []
        for _ in range(repeats):
            seconds, draws = side.ours(packs, workers)
            runs.append([*(side.bare(draws) / seconds), len(draws) / seconds[0]])
        (wall, cpu, speed), lowest, highest = np.median(runs, 0), np.min(runs, 0), np.max(runs, 0)
        print(
            f"{label}, {workers} loader processes: {wall:.3f} of bare PyAV by the clock "
            f"({lowest[0]:.3f} to {highest[0]:.3f}), {cpu:.3f} by processor time ({lowest[1]:.3f} to "
            f"{highest[1]:.3f}); "
            f"{speed:.1f} windows/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=Path, help="folder of footage instead of made clips")
    parser.add_argument("--max-area", type=int, default=160 * 120, help="of the figure with resizing")
    parser.add_argument("--packs", type=int, default=15, help="packs of a timed run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loads", type=int, default=0, help="watch memory over this many loads, such as 5000")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.files:
            paths = sorted(p for p in arguments.files.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
        else:
            paths = make_clips(Path(folder), 60)
        write_manifest(Path(folder) / "m.jsonl", [Sample(str(p), "clip", **asdict(probe(p))) for p in paths])
        compare(Side(Path(folder) / "m.jsonl", None), arguments.packs, arguments.repeats, "native size")
        resized = Side(Path(folder) / "m.jsonl", arguments.max_area)
        compare(resized, arguments.packs, arguments.repeats, f"resized to {arguments.max_area} pixels")
        for n in range(arguments.loads):
            resized.task.source.load(n % len(resized.task.source), 0, n)
            if n + 1 in (500, arguments.loads):
                print(f"after {n + 1} loads: {resident():.0f} MB resident", flush=True)


if __name__ == "__main__":
    main()
