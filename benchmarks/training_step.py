"""A training step of our diffusion transformer beside diffusers' at one shape: speed, share of the peak, what is kept.

    python benchmarks/training_step.py                                    # 1k and 4k tokens, eager: the table
    python benchmarks/training_step.py --compile --out training_step.json  # blocks compiled too, the better one counts
    python benchmarks/training_step.py --grids 16x32x32 --rounds 2        # 16k tokens

A step is forward, backward and fused AdamW on one clip. In bf16 every model runs under autocast with fp32 weights, as
one trains, and with bf16 weights and moments, which costs quality but is often faster; its best counts. All ways of all
models run in turns: the way with the best median is a model's, each ratio is of one turn, and the median of turns is
shown. FLOPs are the model's (three times those of the forward pass, nothing for recomputation), counted by torch;
the peak is what large matrix products reach in the same turns. "kept" is what a token makes autograd save in a block,
in multiples of the width, without checkpointing; "memory" the peak of one eager step in a process of its own, over
what it held before the model was made (Linux only). With --out, rows join those of the file.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from dit_peers import FACTORISED, NETS, Shape, make
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models import compiling
from latentvid.models.flops import TRAINING, peak_flops
from latentvid.models.transformer import VideoDiT

OURS = ("latentvid", "latentvid, factorised")
CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
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
        compiling.compile_blocks(model)
    elif model._repeated_blocks:
        model.compile_repeated_blocks(dynamic=False)
    else:
        model.compile(dynamic=False)


def seconds(call: Callable[[], None], clock: str) -> float:
    now = CLOCKS[clock]
    start = now()
    call()
    return now() - start


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


def candidates(name: str, shape: Shape, ways: list[str], compiled: Sequence[bool]) -> list[Step]:
    """The model in each way, each of which has run once: the first step is slower, and compiles."""
    found = [Step(name, shape, way, how) for way in ways for how in compiled]
    for step in found:
        step()
    return found


def measure_speed(shape: Shape, precision: str, args: argparse.Namespace) -> dict[str, dict]:
    """Rows by model, from rounds in which each model does a step."""
    names, ways = args.models, [way for way in WAYS[precision] if precision == "fp32" or way in args.ways]
    counted = {name: flops(name, shape) for name in names}
    steps = {name: candidates(name, shape, ways, (False, True)[: 1 + args.compile]) for name in names}
    rounds = []
    for i in range(args.rounds):
        peak = peak_flops(CPU, "no" if precision == "fp32" else "bf16")[0]
        turn = names if i % 2 == 0 else names[::-1]
        took = {(name, step.label): seconds(step, args.clock) for name in turn for step in steps[name]}
        rounds.append({"peak": peak, **took})
    typical = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    best = {name: min((step.label for step in steps[name]), key=lambda label: typical[name, label]) for name in names}
    rounds = [{"peak": r["peak"], **{name: r[name, best[name]] for name in names}} for r in rounds]
    rows = {}
    for name in names:
        against = OURS[1] if name in FACTORISED else OURS[0]
        rows[name] = {
            "way": best[name],
            "each_way": {step.label: shape.tokens / typical[name, step.label] for step in steps[name]},
            "tokens_per_s": shape.tokens / statistics.median(r[name] for r in rounds),
            "ours_over_it": statistics.median(r[name] / r[against] for r in rounds) if against in names else None,
            "gflop_per_token": counted[name] / shape.tokens / 1e9,
            "of_peak": statistics.median(counted[name] / r[name] / r["peak"] for r in rounds),
            "peak_gflops": statistics.median(r["peak"] for r in rounds) / 1e9,
            "seconds": [r[name] for r in rounds],
        }
    return rows


def measure_saving(shape: Shape, precision: str, args: argparse.Namespace) -> dict[str, dict]:
    """Rows by model, of eager steps with fp32 weights."""
    way = WAYS[precision][0]
    return {
        name: {"kept": kept(name, shape, way), "memory_mb": measure_memory(name, shape, way) / 1e6}
        for name in args.models
    }


PARTS = {"speed": measure_speed, "memory": measure_saving}
COLUMNS = {
    "way": "{}",
    "tokens_per_s": "{:.0f}",
    "ours_over_it": "{:.2f}",
    "gflop_per_token": "{:.3f}",
    "of_peak": "{:.2f}",
    "kept": "{:.1f}",
    "memory_mb": "{:.0f}",
}


def table(rows: dict[str, dict]) -> str:
    lines = ["| model | its best way | tokens/s | ours over it | GFLOP/token | of peak | kept, widths | memory, MB |"]
    lines.append("|---" * 8 + "|")
    for name in filter(rows.get, NETS):
        values = ((rows[name].get(key), form) for key, form in COLUMNS.items())
        cells = ["" if value is None else form.format(value) for value, form in values]
        lines.append(f"| {' | '.join([name, *cells])} |")
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
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS["bf16"]), choices=WAYS["bf16"], help="to try in bf16")
    parser.add_argument("--compile", action="store_true", help="try compiled blocks too")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, of all threads")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of(args.memory_of))
        return
    torch._dynamo.config.recompile_limit = 256  # models and ways share the code of a block
    tables = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.exists() else {}
    for precision in args.precisions:
        only = f" ({args.ways[0]})" if precision == "bf16" and len(args.ways) == 1 else ""
        for text in args.grids:
            shape = Shape(args.width, args.heads, args.depth, tuple(map(int, text.split("x"))), args.text)
            title = f"{precision}{only}, {shape.tokens} tokens, depth {shape.depth}, {args.threads} thread(s)"
            rows = tables.setdefault(title, {})
            for part in args.parts:
                for name, row in PARTS[part](shape, precision, args).items():
                    rows[name] = rows.get(name, {}) | row
            print(f"\n{title}\n\n{table(rows)}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
