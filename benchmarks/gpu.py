"""What a GPU makes of the models: attention backends, training steps by size and pack, VAEs, and diffusers' peers.

    python3 benchmarks/gpu.py [--minutes 10] [--only WORD ...] [--json FILE] [--tiny] [--list]

The package itself need not be installed, and nothing is fetched. Rows need torch and einops; those of models diffusers,
timm and transformers too: a row whose packages are not there says which, and the others go on. Each row is a process of
its own, so that one that runs out of memory ends alone. The rows that matter most come first, and what the minutes did
not suffice for is listed. Rows that FILE holds already, of the same device and torch, are not run again: start the
command again for the rest. --only takes rows whose names hold one of the words.

A step is forward, backward and AdamW, its loss a mean of squares; ours with fp32 weights under bf16 autocast, peers
with bf16 weights and moments. MFU is of the model's FLOPs alone (recomputing does not count), against the rate of bf16
products of 8192 x 8192 random matrices in the same process. --tiny is the same on any machine with a few tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
BARE = ("torch", "numpy", "einops")
MODELS = (*BARE, "diffusers", "transformers", "timm", "safetensors", "yaml", "psutil")
NEEDS = {
    "attention": BARE,
    "step": MODELS,
    "peer": MODELS,
    "vae": (*MODELS, "torchvision"),
    "sampling": MODELS,
    "held": MODELS,
}  # by kinds of rows
NETWORKS = {  # width, depth, heads
    "0.1B": (512, 18, 4),
    "0.4B": (1024, 18, 8),
    "1B": (1536, 20, 12),
    "3B": (2560, 20, 20),
}
TINY = dict.fromkeys(NETWORKS, (48, 2, 2))
PACKS = {"8k": 1, "16k": 2, "32k": 4, "64k": 8, "128k": 16}  # clips of 8,192 tokens
CLIP, TINY_CLIP = (8, 32, 32), (2, 4, 4)  # tokens of 29 frames of 512 x 512 pixels at 4x8x8 and patches of 2
MIXED = [(16, 32, 32), (8, 32, 32), *[(1, 32, 32)] * 8]  # 32k tokens: two clips and eight images
TINY_MIXED = [(4, 4, 4), (2, 4, 4), (1, 4, 4)]
PEERS = ("Wan", "LTX", "CogVideoX", "Hunyuan", "Mochi", "Latte")
VAES = ("4x8x8", "8x32x32")
PEER_VAES = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLHunyuanVideo")
MISSING = "packages that are not there:"
LEAST = 45  # seconds left under which no row is started
LONGEST = 150  # seconds a row may take


class Row(NamedTuple):
    name: str
    kind: str  # a key of gpu_bench.MODULES
    arguments: dict[str, Any]


def step(size: str, pack: str, recompute: bool, tiny: bool, backend: str = "auto", attention: str = "full") -> Row:
    if pack == "long":  # one clip of 32k tokens
        grids = [TINY_CLIP if tiny else (32, 32, 32)]
    elif pack == "mixed":
        grids = TINY_MIXED if tiny else MIXED
    else:
        grids = [TINY_CLIP if tiny else CLIP] * PACKS[pack]
    more = ["recompute"] * recompute + [attention] * (attention != "full") + [backend] * (backend != "auto")
    ways = {"recompute": recompute, "backend": backend, "attention": attention}
    return Row(" ".join(["step", size, pack, *more]), "step", {"grids": grids, **ways, **network(size, tiny)})


def peer(name: str, pack: str, recompute: bool, tiny: bool) -> Row:
    batch = {"grid": TINY_CLIP if tiny else CLIP, "clips": PACKS[pack], "recompute": recompute}
    title = f"peer {name} 1B {pack}{' recompute' if recompute else ''}"
    return Row(title, "peer", {"name": name, **batch, **network("1B", tiny)})


def network(size: str, tiny: bool) -> dict[str, int]:
    width, depth, heads = (TINY if tiny else NETWORKS)[size]
    text = {"text": 5, "text_width": 24} if tiny else {"text": 256, "text_width": 4096}
    return {"width": width, "depth": depth, "heads": heads, **text}


def vae(name: str, frames: int, tiny: bool) -> Row:
    height = 720 if name == "4x8x8" else 704  # a multiple of the VAE's stride
    shape = {"frames": 9, "height": 64, "width": 64} if tiny else {"frames": frames, "height": height, "width": 1280}
    return Row(f"vae {name} {frames} x {height} x 1280", "vae", {"name": name, **shape})


def attention(tiny: bool, dtype: str = "bf16") -> Row:
    full = {
        "lengths": [1, 7, 64, 300, 1024, 1500, 4097],
        "text": 77,
        "heads": 12,
        "head": 128,
        "clip": 8192,
        "clips": 4,
    }
    small = {"lengths": [1, 7, 33], "text": 3, "heads": 2, "head": 16, "clip": 16, "clips": 2}
    name = "attention" if dtype == "bf16" else f"attention {dtype}"
    return Row(name, "attention", (small if tiny else full) | {"dtype": dtype})


def sampling(size: str, tiny: bool) -> Row:
    return Row(f"sampling {size} 32k", "sampling", {"grid": TINY_CLIP if tiny else (32, 32, 32), **network(size, tiny)})


def held(size: str, pack: str, tiny: bool) -> Row:
    grids = [TINY_CLIP if tiny else CLIP] * PACKS[pack]
    return Row(f"held {size} {pack}", "held", {"grids": grids, **network(size, tiny)})


def rows(tiny: bool) -> list[Row]:
    """All of them, what matters most first."""
    found = [attention(tiny), step("1B", "32k", False, tiny), step("1B", "32k", True, tiny), attention(tiny, "fp32")]
    found += [peer(name, "32k", True, tiny) for name in PEERS]
    found += [step("1B", "32k", False, tiny, "sdpa")]  # a call a segment, by the kernel that the peers have
    found += [sampling("1B", tiny), held("1B", "32k", tiny)]  # a frozen base: whole, in codes, in main memory
    # causal: keys copied for each latent frame, and FlexAttention's blocks, which copy none
    found += [step("1B", "long", True, tiny, backend, "causal") for backend in ("auto", "flex")]
    found += [step(size, "32k", recompute, tiny) for size in ("3B", "0.4B", "0.1B") for recompute in (True, False)]
    found += [vae(name, frames, tiny) for frames in (17, 129) for name in VAES]
    found += [step("1B", pack, False, tiny) for pack in ("16k", "long", "mixed")]
    found += [peer(name, "16k", False, tiny) for name in PEERS]
    found += [step("1B", pack, pack in ("64k", "128k"), tiny) for pack in ("8k", "64k", "128k")]
    for size in ("3B", "0.4B", "0.1B"):
        found += [step(size, pack, pack in ("64k", "128k"), tiny) for pack in ("128k", "8k", "64k", "16k")]
    found += [peer(name, "32k", False, tiny) for name in PEERS]
    return found + [vae(name, 17, tiny) for name in PEER_VAES]


# --- running ---------------------------------------------------------------------------------------------------------


def command(row: Row, tiny: bool) -> list[str]:
    asked = json.dumps({"kind": row.kind, "arguments": row.arguments, "tiny": tiny})
    return [sys.executable, str(Path(__file__).resolve()), "--row", asked]


def run(row: Row, tiny: bool, seconds: float) -> dict[str, Any]:
    """The row's figures, or {"failed": why}; "late" and what it had until then where the time did not suffice."""
    missing = [name for name in NEEDS[row.kind] if importlib.util.find_spec(name) is None]
    if missing:
        return {"failed": f"{MISSING} {', '.join(missing)}"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command(row, tiny), env=os.environ | settings, stdout=output, stderr=errors)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        found = [json.loads(line) for line in _lines(output) if line.startswith("{")]
        said = _lines(errors)
    late = {"late": f"not done within {seconds:.0f} s"} if status is None else {}
    if status == 0 or (found and late):
        return found[-1] | late
    reason = "killed, as for want of host memory" if status == -9 else said[-1][:300] if said else f"status {status}"
    return {"failed": late.get("late", reason)} | late


def _lines(file: TextIO) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def machine() -> dict[str, str]:
    """Asked of another process, so that this one takes no memory of the GPU."""
    ask = (
        "import torch; c = torch.cuda.is_available(); "
        "print(torch.cuda.get_device_name() if c else 'cpu'); print(torch.__version__)"
    )
    device, torch = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:2]
    return {"device": device, "torch": torch, "python": platform.python_version()}


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """The row in the table: one line, or one for each of its parts."""
    if "failed" in found:
        return [f"| {name} | {found['failed']} | | | | |"]
    if "ways" in found:
        head = f"{found['parameters'] / 1e9:.3g}B"
        return [
            f"| {name} | {head}, {way}: {part['failed']} | | | | |"
            if "failed" in part
            else figures(name, f"{head}, {way}", part, f"{part['tokens_per_s']:,.0f} tokens/s", part["mfu"])
            for way, part in found["ways"].items()
        ]
    if "backends" in found:
        return [
            figures(
                name,
                f"{backend}{verdict(part)}",
                part,
                "",
                part.get("of_matmul"),
            )
            for backend, part in found["backends"].items()
        ] + [f"| {name} | {backend}: {why} | | | | |" for backend, why in found["absent"].items()]
    sides = [(side, found[side]) for side in ("encode", "decode") if side in found]
    return [figures(name, side, p, f"{p['frames_per_s']:,.1f} frames/s", p["of_matmul"]) for side, p in sides]


def verdict(part: dict[str, Any]) -> str:
    """Whether a backend agrees with the reference, which has nothing to agree with."""
    sides = [part[side]["agrees"] for side in ("self", "cross") if side in part]
    return "" if not sides else ": agrees" if all(sides) else ": DIFFERS"


def figures(name: str, what: str, part: dict[str, Any], speed: str, share: float | None) -> str:
    taken = f"{part['seconds'] * 1000:,.1f}" if "seconds" in part else ""
    memory = f"{part['peak_bytes'] / 2**30:.1f}" if part.get("peak_bytes") else ""
    return f"| {name} | {what} | {taken} | {speed} | {'' if share is None else f'{share:.1%}'} | {memory} |"


def known(path: Path | None, here: dict[str, str], tiny: bool) -> dict[str, dict]:
    """Rows that the file holds of this machine, without those that failed for another reason than memory."""
    if path is None or not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["machine"] != here or saved["tiny"] != tiny:
        raise SystemExit(f"error: {path} is of {saved['machine']}, tiny={saved['tiny']}: name another file")
    return {k: v for k, v in saved["rows"].items() if v.get("failed") in (None, "out of memory")}


def measure_all(asked: list[Row], arguments: argparse.Namespace) -> None:
    here, start = machine(), time.monotonic()
    done, left = known(arguments.json, here, arguments.tiny), []
    print(f"{here['device']}, torch {here['torch']}, {time.strftime('%Y-%m-%d')}", end="\n\n")
    print("| row | what | ms | speed | of matmul | GiB |\n|---|---|---|---|---|---|", flush=True)
    for row in asked:
        remaining = 60 * arguments.minutes - (time.monotonic() - start)
        if row.name not in done:
            if remaining < LEAST:
                left.append(row.name)
                continue
            done[row.name] = run(row, arguments.tiny, min(LONGEST, remaining))
            if "late" in done[row.name]:
                left.append(f"{row.name} ({done[row.name]['late']})")
        print("\n".join(lines(row.name, done[row.name])), flush=True)
        if arguments.json:
            whole = {"machine": here, "tiny": arguments.tiny, "date": time.strftime("%Y-%m-%d"), "rows": done}
            arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if left:
        print(f"\nleft out, for want of time: {', '.join(left)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all rows together")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="a few tokens, on any machine")
    parser.add_argument("--list", action="store_true", help="the rows' names, in their order")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        from gpu_bench import measure

        show = lambda found: print(json.dumps(found), flush=True)  # noqa: E731
        show(measure(**json.loads(arguments.row), report=show))
        return
    asked = [r for r in rows(arguments.tiny) if not arguments.only or any(word in r.name for word in arguments.only)]
    if not asked:
        parser.error(f"no row's name holds {' or '.join(arguments.only)}: --list shows them")
    if arguments.list:
        print("\n".join(row.name for row in asked))
        return
    measure_all(asked, arguments)


if __name__ == "__main__":
    main()
