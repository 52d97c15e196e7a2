"""What reading clips costs: useful frames a processor's second beside bare decoding; start-up; cached latents.

.venv/bin/python benchmarks/loader.py [--files CLIP_OR_FOLDER ...] [--part decode path start latents] [--json OUT]

decode   windows of 17 frames drawn at random: each by itself by bare PyAV (open, seek to the key frame before, decode;
         without colours, converted to RGB as swscale does by default, or as accurately as latentvid), by torchcodec
         where it can be imported, and by ClipSource; and by ClipSource in the reads that training's plan makes of them,
         at native size as all the others, or resized
path     the whole way to packs of resized uint8: manifest -> plan -> ClipSource -> VaeTask -> iterate_steps, in the
         training process and in a loader process, beside bare accurate PyAV, which neither resizes nor packs
start    from nothing to the first pack, with and without the facts of the files in the manifest
latents  packs for the transformer from a cache of latents, beside encoding the clips as they come (untrained parts)

All sides of a row take the same windows in the same order by turns, in one process with one decoder thread; shown are
medians of `--repeats` rounds with the lowest and the highest. Clips are made for it (1280x720, 500 frames, a textured
ground that pans, a disc, a little noise, H.264, key frames every 250, 48 and 16 frames); --files takes yours, a row
each. Figures are added to those that the file of --json has, so that rows can be measured one at a time.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from loader_decode import FRAMES, bare, decode_row, show_decode

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.data.manifest.manifest import Sample, read_manifest, write_manifest
from latentvid.data.plan.plan import Draw, Plan
from latentvid.data.video.kinds import VIDEO_ENDINGS
from latentvid.data.video.reading import probe
from latentvid.training.feed.loader import iterate_steps
from latentvid.training.launch import make_plan
from latentvid.training.stages.vae.task import VaeTask

GOPS = (250, 48, 16)


def make_clips(folder: Path, frames: int) -> list[Path]:
    """About as hard to decode as footage; a file for each distance of key frames."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(40, 216, (170, 290, 3)), np.ones((8, 8, 1))).astype(np.float32)  # [1360,2320,3]
    noise = rng.normal(0, 4, (800, 1360, 1)).astype(np.float32)
    y, x = np.mgrid[:720, :1280]
    paths = [folder / f"gop{gop}.mp4" for gop in GOPS]
    outputs = [av.open(str(path), "w") for path in paths]
    streams = []
    for gop, output in zip(GOPS, outputs, strict=True):
        options = {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0", "preset": "veryfast"}
        streams.append(output.add_stream("libx264", rate=24, options=options))
        streams[-1].height, streams[-1].width, streams[-1].pix_fmt = 720, 1280, "yuv420p"
    for t in range(frames):
        dy, dx = rng.integers(0, 80, 2)
        frame = ground[t : t + 720, 2 * t : 2 * t + 1280] + noise[dy : dy + 720, dx : dx + 1280]
        disc = (y - 360 - 180 * np.sin(t / 9)) ** 2 + (x - 3 * t) ** 2 < 14400
        frame[disc] = 255 - frame[disc]
        rgb = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
        picture = rgb.reformat(format="yuv420p")
        picture.pts = t
        for output, stream in zip(outputs, streams, strict=True):
            output.mux(stream.encode(picture))
    for output, stream in zip(outputs, streams, strict=True):
        output.mux(stream.encode(None))
        output.close()
    return paths


# ------------------------------------------------------------------------------------------------------------- path


def vae_task(manifest: Path, max_area: int, windows: int) -> VaeTask:
    """A small autoencoder's, in packs of so many windows."""
    lines = [f"run.dir={manifest.parent}", f"data.manifest={manifest}", "model={patch: 4, widths: [8, 8, 8]}"]
    lines += [f"data.max_area={max_area}", f"data.max_frames={FRAMES}"]
    task = VaeTask(load_config(VaeConfig, None, lines), torch.device("cpu"))
    task.config.data.tokens_per_pack = windows * int(task.tokens.max())
    return task


def clocks(process: int) -> np.ndarray:
    """Seconds on the wall, and of a processor's time that the process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return np.array([time.perf_counter(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")])


def packs_of(task: VaeTask, plan: Plan, packs: int, workers: int) -> tuple[np.ndarray, list[Draw]]:
    """(seconds, processor seconds of the process that decodes) of this many packs, and the windows in them."""
    feed = iterate_steps(plan, task.make_pack, rank=0, world=1, workers=workers, pin_memory=False)
    next(feed)  # a loader process begins with the second pack when it has sent the first
    decoder = multiprocessing.active_children()[0].pid if workers else os.getpid()
    start = clocks(decoder)
    draws = [draw for _ in range(packs) for draw in next(feed)[0].packs[0]]
    return clocks(decoder) - start, draws


def path(manifest: Path, packs: int, repeats: int, max_area: int) -> dict[str, list[float]]:
    """Useful frames a processor's second in each round."""
    rows: dict[str, list[float]] = {}
    task = vae_task(manifest, max_area, windows=60)  # a quarter of that has the frames that a read may have
    for turn in range(repeats):
        task.config.run.seed = turn
        for workers in (0, 1):
            seconds, draws = packs_of(task, make_plan(task.config, task), packs, workers)
            begun, some = time.process_time(), draws[:14]
            for number, index in some:
                bare(task.source.path(index), task.source.start(index, turn, number))
            speeds = {
                f"to packs, by {'a loader' if workers else 'the training'} process": len(draws) / seconds[1],
                f"PyAV, accurate colours, {workers} loader processes": len(some) / (time.process_time() - begun),
            }
            for name, speed in speeds.items():
                rows.setdefault(name, []).append(speed * FRAMES)
    for name, speeds in rows.items():
        print(f"  {name}: {np.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})", flush=True)
    return rows


def memory(manifest: Path, loads: int, max_area: int) -> None:
    task = vae_task(manifest, max_area, windows=8)
    for n in range(loads):
        task.source.load(n % len(task.source), 0, n)
        if n + 1 in (500, loads):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"  after {n + 1} loads: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MB resident", flush=True)


# ------------------------------------------------------------------------------------------------- start and latents


def start(manifest: Path, repeats: int, max_area: int) -> dict[str, list[float]]:
    """Seconds to the first pack."""
    bare_rows = manifest.with_name("bare.jsonl")
    write_manifest(bare_rows, [{"path": s.path, "caption": s.caption} for s in read_manifest(manifest).samples])
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        for workers in (0, 1):
            for file, name in ((manifest, "with"), (bare_rows, "without")):
                begun = time.perf_counter()
                task = vae_task(file, max_area, windows=8)
                feed = iterate_steps(
                    make_plan(task.config, task), task.make_pack, rank=0, world=1, workers=workers, pin_memory=False
                )
                next(feed)
                key = f"{name} the files' facts, {workers} loader processes"
                rows.setdefault(key, []).append(time.perf_counter() - begun)
                del feed
    for name, seconds in rows.items():
        print(f"  {name}: {np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)
    return rows


def latents(manifest: Path, repeats: int, max_area: int) -> dict[str, list[float]]:
    """Processor's seconds a pack until it is ready for the transformer."""
    from latentvid.demo.text_encoder import build_encoder, build_tokenizer
    from latentvid.models.autoencoder import CausalVideoAutoencoder
    from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
    from latentvid.training.stages.dit.task import DitTask

    folder = manifest.parent
    tokenizer = build_tokenizer(["a clip of something"], vocab_size=400)
    tokenizer.model_max_length = 24
    build_encoder(len(tokenizer), seed=0, width=64, layers=2).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    statistics = {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}
    vae = CausalVideoAutoencoder(latent_channels=8, widths=(16, 32, 32), patch=2, **statistics)
    vae.save_pretrained(folder / "vae")
    sizes = {"max_frames": FRAMES, "max_area": max_area, "patch": 2, "batch": 4, "mixed_precision": "no"}
    begun = time.process_time()
    encode_manifest(EncodeConfig(manifest, folder / "vae", str(folder / "t5"), folder / "latents", **sizes))
    made = time.process_time() - begun
    lines = [f"run.dir={folder}", f"vae={folder / 'vae'}", f"text_encoder={folder / 't5'}", "train.mixed_precision=no"]
    lines += [
        f"data.max_area={max_area}",
        "data.tokens_per_pack=8192",
        "model={patch: 2, width: 32, depth: 1, heads: 2}",
    ]
    tasks = {
        "from a cache": DitTask(
            load_config(DitConfig, None, [*lines, f"data.latents={folder / 'latents'}"]), torch.device("cpu")
        ),
        "encoded as they come": DitTask(
            load_config(DitConfig, None, [*lines, f"data.manifest={manifest}"]), torch.device("cpu")
        ),
    }
    print(f"  the cache of {len(tasks['from a cache'].cache)} windows: {made:.1f} s of a processor")
    rows: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            plan, begun = make_plan(task.config, task), time.process_time()
            for pack in plan.next().packs:
                task.prepare(task.make_pack(pack))
            rows[name].append(time.process_time() - begun)
    for name, seconds in rows.items():
        print(f"  {name}: {np.median(seconds):.3f} s a pack ({min(seconds):.3f} to {max(seconds):.3f})", flush=True)
    return rows


def list_files(manifest: Path, paths: Sequence[Path]) -> Path:
    write_manifest(manifest, [Sample(str(p.resolve()), "clip", **asdict(probe(p))) for p in paths])
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=Path, nargs="+", help="clips or folders of clips instead of made ones")
    parser.add_argument("--part", nargs="+", default=["decode", "path", "start", "latents"], help="what to measure")
    parser.add_argument("--max-area", type=int, default=256 * 256, help="of the figures with resizing")
    parser.add_argument("--windows", type=int, default=28, help="of a round of decode")
    parser.add_argument("--packs", type=int, default=1, help="of a round of path")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loads", type=int, default=0, help="watch memory over this many loads, such as 5000")
    parser.add_argument("--json", type=Path, help="where all figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given = arguments.files or make_clips(Path(folder), 500)
        files = {
            p.stem: sorted(f for f in p.rglob("*") if f.suffix.lower() in VIDEO_ENDINGS) if p.is_dir() else [p]
            for p in given
        }
        manifest, found = Path(folder) / "m.jsonl", {}
        if arguments.json and arguments.json.exists():
            found = json.loads(arguments.json.read_text())
        sizes = {"repeats": arguments.repeats, "max_area": arguments.max_area}
        if "decode" in arguments.part:
            rows = {name: decode_row(paths, arguments.windows, **sizes) for name, paths in files.items()}
            show_decode(rows)
            found.setdefault("decode", {}).update(rows)
        if "path" in arguments.part:
            for name, paths in files.items():
                print(f"path, {name}: useful frames a processor's second", flush=True)
                found.setdefault("path", {})[name] = path(list_files(manifest, paths), arguments.packs, **sizes)
        list_files(manifest, [p for paths in files.values() for p in paths])
        for name, part in {"start": start, "latents": latents}.items():
            if name in arguments.part:
                print(name, flush=True)
                found[name] = part(manifest, **sizes)
        if arguments.loads:
            memory(manifest, arguments.loads, arguments.max_area)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
