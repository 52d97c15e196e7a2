"""A training step of our diffusion transformer beside diffusers' at one shape: speed, share of the peak, what is kept.

    python benchmarks/training_step.py                                    # 1k and 4k tokens, eager: the table
    python benchmarks/training_step.py --compile --out training_step.json  # blocks compiled too, the better one counts
    python benchmarks/training_step.py --grids 16x32x32 --rounds 2        # 16k tokens

A step is forward, backward and fused AdamW on one clip. In bf16 every model runs under autocast with fp32 weights, as
one trains, and with bf16 weights and moments, which costs quality but is often faster; its best counts. All ways of all
models run first to choose each one's best, which then run in turns: each ratio is of one turn, and the median of turns
is shown. FLOPs are the model's (three times those of the forward pass, nothing for recomputation), counted by torch;
the peak is what large matrix products reach in the same turns. "kept" is what a token makes autograd save in a block,
in multiples of the width, without checkpointing; "memory" the peak of one eager step in a process of its own, over
what it held before the model was made (Linux only). With --out, tables join those in the file.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dit_peers import FACTORISED, NETS, Shape, make
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.transformer import VideoDiT
from latentvid.training.flops import TRAINING, peak_flops

OURS = ("latentvid", "latentvid, factorised")
CPU = torch.device("cpu")
WAYS = {"fp32": ("fp32",), "bf16": ("autocast", "weights")}  # by precision


class Step:
    """One model, one way to run it: calling it does a training step."""

    def __init__(self, name: str, shape: Shape, way: str, compiled: bool) -> None:
        self.name, self.way, self.compiled = name, way, compiled
        self.dtype = torch.bfloat16 if way == "weights" else torch.float32
        model, self.forward = make(name, shape)
        self.model = model.to(self.dtype)
        if compiled:
            compile_blocks(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def loss(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.way == "autocast"):
            return self.forward(self.model, self.dtype).float().square().mean()

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def label(self) -> str:
        how = {"fp32": "", "autocast": "autocast", "weights": "bf16 weights"}[self.way]
        return ", ".join(filter(None, (how, "compiled" if self.compiled else "eager")))


def compile_blocks(model: nn.Module) -> None:
    """Ours as the trainer does; the others as diffusers advises, block by block, whole where it names no blocks."""
    if isinstance(model, VideoDiT):
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=True)
    elif model._repeated_blocks:
        model.compile_repeated_blocks(dynamic=False)
    else:
        model.compile(dynamic=False)


def seconds(call: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def flops(name: str, shape: Shape) -> int:
    """FLOPs of a training step without recomputation: counted in an eager forward pass."""
    model, forward = make(name, shape)
    if name in OURS:
        model.attention_backend = "sdpa"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, torch.float32)
    return TRAINING * counter.get_total_flops()


def kept(name: str, shape: Shape, way: str) -> float:
    """Activations saved per token per block, in widths: by how much more a longer clip and a deeper model save."""
    frames, h, w = 2, 8, 8
    found = {}
    for depth in (6, 12):
        for n in (frames, 2 * frames):
            step = Step(name, Shape(shape.width, shape.heads, depth, (n, h, w), shape.text), way, compiled=False)
            found[depth, n] = saved_bytes(step)
    more = found[12, 2 * frames] - found[12, frames] - found[6, 2 * frames] + found[6, frames]
    size = 4 if way == "fp32" else 2
    return more / (6 * frames * h * w * shape.width * size)


def saved_bytes(step: Step) -> int:
    own = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        loss = step.loss()
    total = sum(storage.nbytes() for storage in held.values())
    loss.backward()  # the graph is alive until here
    return total


def measure_memory(name: str, shape: Shape, way: str) -> int:
    """Bytes of an eager step at the peak, in a process of its own."""
    request = json.dumps([name, [shape.width, shape.heads, shape.depth, shape.grid, shape.text], way])
    run = subprocess.run([sys.executable, __file__, "--memory-of", request], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return int(run.stdout.split()[-1])


def memory_of(request: str) -> int:
    name, (width, heads, depth, grid, text), way = json.loads(request)
    small = Step(name, Shape(width, heads, 6, (1, 2, 2), 4), way, compiled=False)
    small()  # libraries and their buffers are loaded
    del small
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before = resident("VmRSS")
    step = Step(name, Shape(width, heads, depth, tuple(grid), text), way, compiled=False)
    step()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at its highest since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def compare(names: list[str], shape: Shape, precision: str, args: argparse.Namespace) -> dict[str, dict]:
    """One table: every model at one shape and precision."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    counted = {name: flops(name, shape) for name in names}
    best: dict[str, Step] = {}
    for name in names:
        found = []
        for way in WAYS[precision]:
            for compiled in (False, True)[: 1 + args.compile]:
                torch._dynamo.reset()
                step = Step(name, shape, way, compiled)
                step()  # the first is slower, and compiles
                found.append((min(seconds(step, clock) for _ in range(2)), len(found), step))
                print(f"  {name}, {step.label}: {shape.tokens / found[-1][0]:.0f} tokens/s", file=sys.stderr)
        best[name] = min(found)[2]
    rounds = []
    for i in range(args.rounds):
        peak = peak_flops(CPU, "no" if precision == "fp32" else "bf16")[0]
        turn = names if i % 2 == 0 else names[::-1]
        rounds.append({"peak": peak} | {name: seconds(best[name], clock) for name in turn})
    peak = statistics.median(r["peak"] for r in rounds)
    rows = {}
    for name in names:
        against = OURS[1] if name in FACTORISED else OURS[0]
        time_of = statistics.median(r[name] for r in rounds)
        way = best[name].way
        rows[name] = {
            "way": best[name].label,
            "tokens_per_s": shape.tokens / time_of,
            "ours_over_it": statistics.median(r[name] / r[against] for r in rounds) if against in names else None,
            "gflop_per_token": counted[name] / shape.tokens / 1e9,
            "of_peak": statistics.median(counted[name] / r[name] / r["peak"] for r in rounds),
            "peak_gflops": peak / 1e9,
            "kept": kept(name, shape, way),
            "memory_mb": measure_memory(name, shape, way) / 1e6,
            "seconds": [r[name] for r in rounds],
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    lines = ["| model | its best way | tokens/s | ours over it | GFLOP/token | of peak | kept, widths | memory, MB |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = "" if row["ours_over_it"] is None else f"{row['ours_over_it']:.2f}"
        figures = f"{row['tokens_per_s']:.0f} | {ratio} | {row['gflop_per_token']:.3f} | {row['of_peak']:.2f}"
        lines.append(f"| {name} | {row['way']} | {figures} | {row['kept']:.1f} | {row['memory_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(NETS), choices=list(NETS), metavar="NAME")
    parser.add_argument("--grids", nargs="+", default=["4x16x16", "16x16x16"], help="tokens, frames x rows x columns")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"], choices=list(WAYS))
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--text", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="try compiled blocks too")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, of all threads")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of(args.memory_of))
        return
    results = {}
    for precision in args.precisions:
        for text in args.grids:
            grid = tuple(map(int, text.split("x")))
            shape = Shape(args.width, args.heads, args.depth, grid, args.text)
            rows = results[f"{precision} {shape.tokens}"] = compare(args.models, shape, precision, args)
            peak = next(iter(rows.values()))["peak_gflops"]
            print(f"\n{precision}, {shape.tokens} tokens, {args.threads} thread(s), peak {peak:.0f} GFLOP/s\n")
            print(table(rows), flush=True)
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "memory_of")}
        tables = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        tables |= {name: {"settings": settings, "rows": rows} for name, rows in results.items()}
        args.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
