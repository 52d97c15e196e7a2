"""Reading training clips from a storage with latency, beside local files: clips a second, and their ratio.

    python benchmarks/storage.py [--latency-ms 20] [--workers 4] [--clips 96]

Clips are served by range over HTTP from this machine's loopback, by a process of its own that waits for so long before
each answer. Each worker loads its share as training does, in random order. `far` has an empty cache on disk; `again` is
the same once more, from the cache. Medians of `--rounds`, interleaved; memory is the workers' own, after the first and
after the last clip. Needs aiohttp (`pip install latentvid[storage]`).
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import torch

from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.plan.plan import Draw
from latentvid.data.video.writing import write_video

MB = 1 << 20
DISTINCT = 6  # clips that are encoded


def make_clips(folder: Path, count: int, frames: int, side: int) -> None:
    """Moving smooth shapes with some noise, so that files are as large as footage of their size; a few, many times."""
    rand, rows = torch.Generator().manual_seed(0), []
    for n in range(count):
        rows.append({"path": f"{n:04d}.mp4", "caption": "shapes", "frames": frames, "fps": 24.0})
        rows[-1] |= {"height": side, "width": side}
        if n >= DISTINCT:
            shutil.copyfile(folder / f"{n % DISTINCT:04d}.mp4", folder / f"{n:04d}.mp4")
            continue
        coarse = torch.rand(1, 3, 6, 8, 8, generator=rand)
        clip = torch.nn.functional.interpolate(coarse, (frames, side, side), mode="trilinear")[0]
        clip = (clip + 0.04 * torch.randn(clip.shape, generator=rand)).clamp(0, 1) * 255
        write_video(folder / f"{n:04d}.mp4", clip.permute(1, 2, 3, 0).to(torch.uint8), 24.0)
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Ranges(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder, latency_s = Path(), 0.0

    def _answer(self) -> None:
        time.sleep(self.latency_s)
        file = self.folder / self.path.strip("/")
        if not file.is_file():
            self.send_error(404)
            return
        begin, end, size = 0, file.stat().st_size, file.stat().st_size
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1 if last else size)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            with open(file, "rb") as source:
                source.seek(begin)
                self.wfile.write(source.read(end - begin))

    do_GET = do_HEAD = _answer

    def log_message(self, *words: object) -> None:
        pass


def serve(folder: Path, latency_s: float, port: "multiprocessing.Queue[int]") -> None:
    Ranges.folder, Ranges.latency_s = folder, latency_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    port.put(server.server_port)
    server.serve_forever()


def work(manifest: str, cache: str, order: list[int], start: object, results: object) -> None:
    torch.set_num_threads(1)
    os.environ["LATENTVID_CACHE"] = cache
    source = ClipSource(read_manifest(manifest, check_files=False), Transform(spatial_stride=8, temporal_stride=4))
    start.wait(timeout=300)
    memory = []
    for clip in source.load_each([Draw(n, index) for n, index in enumerate(order)], seed=0):
        del clip
        memory.append(psutil.Process().memory_info().rss)
    results.put((memory[0] / MB, memory[len(memory) // 2] / MB, memory[-1] / MB))


def clips_per_s(manifest: str, cache: Path, count: int, workers: int) -> tuple[float, list[tuple[float, ...]]]:
    """(clips a second of all workers together; MB of each after its first clip, half of them and the last)"""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers + 1), context.Queue()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    shares = [order[n::workers] for n in range(workers)]
    processes = [
        context.Process(target=work, args=(manifest, str(cache), share, start, results)) for share in shares if share
    ]
    for process in processes:
        process.start()
    start.wait(timeout=300)
    begun = time.perf_counter()
    memory = [results.get() for _ in processes]
    seconds = time.perf_counter() - begun
    for process in processes:
        process.join()
    return count / seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place, "clips"), Path(place, "cache")
        make_clips(folder, args.clips, args.frames, args.side)
        size = sum(file.stat().st_size for file in folder.glob("*.mp4")) / args.clips
        print(f"{args.clips} clips of {args.frames} frames at {args.side} px, {size / 1024:.0f} KB each")
        port = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(folder, args.latency_ms / 1000, port), daemon=True)
        server.start()
        far = f"http://127.0.0.1:{port.get()}/clips.jsonl"
        speeds: dict[str, list[float]] = {"local": [], "far": [], "again": []}
        grown = []
        for _ in range(args.rounds):
            shutil.rmtree(cache, ignore_errors=True)
            for name, manifest in (("local", str(folder / "clips.jsonl")), ("far", far), ("again", far)):
                speed, memory = clips_per_s(manifest, cache, args.clips, args.workers)
                speeds[name].append(speed)
                grown += [last - half for _, half, last in memory] if name == "far" else []
        server.terminate()
    local = statistics.median(speeds["local"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        each = ", ".join(f"{speed:.1f}" for speed in found)
        print(f"{name:6s} {middle:6.1f} clips/s  {middle / local:.2f} of local  ({each})")
    print(f"memory of a worker, second half of its clips: {max(grown):+.1f} MB at most")


if __name__ == "__main__":
    main()
