"""Memory that autoencoders take to encode and decode, by the number of frames.

    python benchmarks/vae_memory.py configs/vae/*.yaml [--frames 17 257] [--size 256] [--out memory.json]
    python benchmarks/vae_memory.py configs/vae/4x8x8.yaml "Wan 2.1" CogVideoX HunyuanVideo --dtypes bfloat16

Each line is one process: a model with random weights, a warm-up on a small clip, then one pass. `MB` is the peak of the
resident memory during the pass, less what was resident before it (weights and the whole input) and less the output;
`growth` is that of the longest clip over that of the shortest. `estimate` is what the budget's choice reckoned with. A
configuration of a diffusers class (`_class_name`), or one by its name in vae_cost.py, is measured by that class's own
ways: caches and batches of frames as they are by default, and no tiles.

`--allocator system` (the default) takes blocks of 0.1 MB and more straight from the system, so that what is freed is
gone: the figures are the network's own. `heap` is glibc's usual way, whose heap keeps holes, by chance more or fewer.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from vae_cost import PEERS

from latentvid.models import budget
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.interchange import build_vae
from latentvid.models.streaming import decode_side, encode_side

ALLOCATORS = {"system": {"MALLOC_MMAP_THRESHOLD_": "100000"}, "heap": {}}
HEAD = ("model", "dtype", "pass", "frames", "MB", "estimate", "seconds", "growth")


def resident(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at its highest since it was last reset."""
    return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def arguments_of(config: str) -> dict:
    """Of a file of configs/vae/, or of a published model by its name."""
    if config in PEERS:
        cls, arguments = PEERS[config]
        return {"_class_name": cls, **arguments}
    return yaml.safe_load(Path(config).read_text(encoding="utf-8"))["model"]


@torch.no_grad()
def measure(config: str, dtype: str, side: str, frames: int, size: int) -> dict:
    """One pass, in this process."""
    torch.manual_seed(0)
    vae = build_vae(arguments_of(config), config).eval().to(getattr(torch, dtype))

    def make(frames: int, size: int) -> torch.Tensor:
        f, h, w = vae.latent_grid(frames, size, size)
        shape = (1, 3, frames, size, size) if side == "encode" else (1, vae.latent_channels, f, h, w)
        return torch.rand(shape, dtype=vae.dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        return vae.encode(x).latent_dist.parameters if side == "encode" else vae.decode(x).sample

    run(make(1 + 3 * vae.temporal_stride, max(64, 2 * vae.spatial_stride)))
    x = make(frames, size)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    budget.give_back()
    before, start = resident("VmRSS"), time.process_time()
    y = run(x)
    taken = resident("VmHWM") - before - y.nbytes
    row = {
        "model": Path(config).stem if config not in PEERS else config,
        "dtype": dtype,
        "pass": side,
        "frames": frames,
        "MB": taken / 1e6,
    }
    row |= {"seconds": time.process_time() - start, "estimate": None}
    if isinstance(vae, CausalVideoAutoencoder):
        part = (encode_side if side == "encode" else decode_side)(vae)
        cut = budget.choose_cut(part, 1, *vae.latent_grid(frames, size, size), None)
        row["estimate"] = budget.live_bytes(part, cut).peak / 1e6
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 257])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--passes", nargs="+", default=["encode", "decode"])
    parser.add_argument("--allocator", choices=ALLOCATORS, default="system")
    parser.add_argument("--out", type=Path, help="a JSON file with the rows")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a process of its own for one row
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.configs[0], args.dtypes[0], args.passes[0], args.frames[0], args.size)))
        return
    rows = []
    print("".join(f"{name:>14}" for name in HEAD))
    for config, dtype, side in ((c, d, p) for c in args.configs for d in args.dtypes for p in args.passes):
        shortest = None
        for frames in sorted(args.frames):
            one = [config, "--frames", str(frames), "--size", str(args.size), "--dtypes", dtype, "--passes", side]
            environment = os.environ | ALLOCATORS[args.allocator]
            command = [sys.executable, __file__, *one, "--one"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
            row = json.loads(done.stdout.splitlines()[-1])
            shortest = shortest or row
            rows.append(row | {"growth": row["MB"] / shortest["MB"], "allocator": args.allocator})
            cells = [f"{cell:.2f}" if isinstance(cell, float) else cell for cell in (rows[-1][name] for name in HEAD)]
            print("".join(f"{cell!s:>14}" for cell in cells), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
