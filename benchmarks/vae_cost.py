"""Arithmetic and speed of causal video autoencoders, ours beside the published ones (random weights).

    python benchmarks/vae_cost.py [--frames 17] [--side 256] [--time NAME ...] [--out FILE.json]

FLOPs a pixel are counted on models without storage, a multiply-add is 2. --time also runs the named models (ours by the
name of their file in configs/vae/, the others as in the table) in bf16 on this machine, each run beside a run of large
matrix products, and gives the ratio of the two rates: how much of what the machine can do becomes convolutions.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.interchange import build_vae

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


@torch.no_grad()
def clock(make: Callable[[], nn.Module], shape: tuple[int, int, int], repeats: int) -> dict:
    """Seconds in bf16 and the share of the rate of matrix products that it reaches; medians over repeats."""
    torch.manual_seed(0)
    model = make().eval().to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
    video = torch.rand(1, 3, *shape).mul(2).sub(1).bfloat16()
    pixels = video[0, 0].numel()
    flops = count(make, shape)
    latent = moments_and_latent(model, video)  # the first run is slower
    rows = []
    for _ in range(repeats):
        peak = product_rate()
        start = time.perf_counter()
        latent = moments_and_latent(model, video)
        middle = time.perf_counter()
        model.decode(latent)
        end = time.perf_counter()
        peak = (peak + product_rate()) / 2
        rows.append([middle - start, end - middle, peak])
    encode, decode, peak = torch.tensor(rows).median(dim=0).values.tolist()
    return {
        "encode_s": encode,
        "decode_s": decode,
        "encode_of_peak": flops["encode"] * pixels / encode / peak,
        "decode_of_peak": flops["decode"] * pixels / decode / peak,
        "of_peak": (flops["encode"] + flops["decode"]) * pixels / (encode + decode) / peak,
        "peak_gflops": peak / 1e9,
    }


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
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
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
    for name in args.time:
        timed = clock(known[name], shape, args.repeats)
        rows[name] |= timed
        print(
            f"{name}: encode {timed['encode_s']:.2f} s, decode {timed['decode_s']:.2f} s, "
            f"{timed['of_peak']:.0%} of {timed['peak_gflops']:.0f} GFLOP/s "
            f"(encode {timed['encode_of_peak']:.0%}, decode {timed['decode_of_peak']:.0%})",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
