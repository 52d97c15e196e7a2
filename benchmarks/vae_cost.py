"""Arithmetic and speed of causal video autoencoders, ours beside the published ones (random weights).

    python benchmarks/vae_cost.py [--frames 17] [--side 256] [--time NAME ...] [--out FILE.json]

FLOPs a pixel are counted on models without storage, a multiply-add is 2. --time also runs the named models (ours by the
name of their file in configs/vae/, the others as in the table) in bf16 on this machine, with weights in the layout that
is faster for each (channels last or not). They go in turns with each other and with large matrix products, so that the
ratios mean something: seconds over those of the first named in the same turn, and the share of what the machine can do
that becomes convolutions. Medians of turns are shown.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import diffusers
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.interchange import build_vae, channels_last

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vae"
BLOCKS = 4
COGVIDEOX = {  # as published: the class's defaults have other blocks
    "latent_channels": 16,
    "down_block_types": ["CogVideoXDownBlock3D"] * BLOCKS,
    "up_block_types": ["CogVideoXUpBlock3D"] * BLOCKS,
    "block_out_channels": [128, 256, 256, 512],
}
PEERS = {
    "Wan 2.1": ("AutoencoderKLWan", {}),
    "CogVideoX": ("AutoencoderKLCogVideoX", COGVIDEOX),
    "HunyuanVideo": ("AutoencoderKLHunyuanVideo", {}),
    "LTX": ("AutoencoderKLLTXVideo", {}),
}


def models() -> dict[str, Callable[[], nn.Module]]:
    """Builders by name: ours from configs/vae/, and the peers at their published configurations."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        arguments = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        if "_class_name" not in arguments:
            found[path.stem] = lambda arguments=arguments: build_vae(dict(arguments), "model")
    for name, (cls, arguments) in PEERS.items():
        found[name] = lambda cls=cls, arguments=arguments: getattr(diffusers, cls)(**arguments)
    return found


def moments_and_latent(model: nn.Module, video: Tensor) -> Tensor:
    return model.encode(video).latent_dist.mode()


@torch.no_grad()
def count(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> dict:
    """Parameters, and FLOPs a pixel of encoding and of decoding a clip of `shape` (F,H,W)."""
    with torch.device("meta"):
        model = make().eval()
    video = torch.empty(1, 3, *shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        latent = moments_and_latent(model, video)
        encode = counter.get_total_flops()
        model.decode(latent)
        decode = counter.get_total_flops() - encode
    pixels = shape[0] * shape[1] * shape[2]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "latent": list(latent.shape[1:]),
        "encode": encode / pixels,
        "decode": decode / pixels,
    }


class Timed:
    """A model in bf16 with a clip of `shape` (F,H,W); each call encodes and decodes it."""

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        self.model = make().eval().to(torch.bfloat16)
        self.video = torch.rand(1, 3, *shape).mul(2).sub(1).bfloat16()
        plain = min(sum(self().values()) for _ in range(2))  # the first is slower
        parameters = {name: p.data for name, p in self.model.named_parameters()}
        channels_last(self.model)
        self.channels_last = min(sum(self().values()) for _ in range(2)) < plain
        if not self.channels_last:
            for name, p in self.model.named_parameters():
                p.data = parameters[name]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Seconds."""
        start = time.perf_counter()
        latent = moments_and_latent(self.model, self.video)
        middle = time.perf_counter()
        self.model.decode(latent)
        return {"encode": middle - start, "decode": time.perf_counter() - middle}


def clock(models: dict[str, Callable[[], nn.Module]], shape: tuple[int, int, int], repeats: int) -> dict[str, dict]:
    """By model, the medians over turns: seconds, over those of the first, and the share of the products' rate."""
    timed = {name: Timed(make, shape) for name, make in models.items()}
    turns = []
    for i in range(repeats):
        order = list(timed) if i % 2 == 0 else list(timed)[::-1]
        turns.append({"peak": product_rate()} | {name: timed[name]() for name in order})
    first, pixels, rows = next(iter(timed)), shape[0] * shape[1] * shape[2], {}
    for name, make in models.items():
        row = rows[name] = {"channels_last": timed[name].channels_last, "turns": [turn[name] for turn in turns]}
        flops = count(make, shape)
        for side in ("encode", "decode"):
            row[f"{side}_s"] = median(turn[name][side] for turn in turns)
            row[f"{side}_over_first"] = median(turn[name][side] / turn[first][side] for turn in turns)
            row[f"{side}_of_peak"] = median(flops[side] * pixels / turn[name][side] / turn["peak"] for turn in turns)
        row["peak_gflops"] = median(turn["peak"] for turn in turns) / 1e9
    return rows


def product_rate(side: int = 2048, times: int = 8) -> float:
    """FLOP/s of products of square bf16 matrices, now, over so many of them."""
    a, b = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    a @ b
    start = time.perf_counter()
    for _ in range(times):
        a @ b
    return 2 * side**3 * times / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--time", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape, known = (args.frames, args.side, args.side), models()
    unknown = set(args.time) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    rows = {}
    print("| VAE | parameters | latent | encode MFLOP/pixel | decode MFLOP/pixel | of Wan 2.1 |")
    print("|---|---|---|---|---|---|")
    wan = count(known["Wan 2.1"], shape)
    for name, make in known.items():
        row = rows[name] = count(make, shape)
        share = (row["encode"] + row["decode"]) / (wan["encode"] + wan["decode"])
        latent = " x ".join(map(str, row["latent"]))
        figures = f"{row['encode'] / 1e6:.3f} | {row['decode'] / 1e6:.3f} | {share:.3f}"
        print(f"| {name} | {row['parameters'] / 1e6:.1f}M | {latent} | {figures} |", flush=True)
    for name, row in (
        clock({name: known[name] for name in args.time}, shape, args.repeats) if args.time else {}
    ).items():
        rows[name] |= row
        figures = ", ".join(
            f"{side} {row[f'{side}_s']:.2f} s ({row[f'{side}_over_first']:.2f} of {args.time[0]}'s, "
            f"{row[f'{side}_of_peak']:.0%} of {row['peak_gflops']:.0f} GFLOP/s)"
            for side in ("encode", "decode")
        )
        print(f"{name}{', channels last' if row['channels_last'] else ''}: {figures}", flush=True)
    if args.out:
        settings = {"shape": shape, "threads": torch.get_num_threads(), "timed": args.time}
        args.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
