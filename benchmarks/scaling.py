"""The tables of docs/scaling.md: memory and time of training steps from 0.1B to 30B parameters on 1 to 1,024 GPUs.

    python benchmarks/scaling.py [--matmul TFLOPS] [--efficiency SHARE] [--json FILE]    # a minute on one core
    python benchmarks/scaling.py --plan 100000000                                        # needs about 10 GB of memory

Nothing is trained. Bytes and FLOPs are counted on networks without storage; rates are those of
latentvid/training/dryrun/estimate.py unless given here; its docstring says what is assumed. Each GPU has one pack
of 32,768 tokens (four clips of 8 x 32 x 32) with 256 text tokens a clip. --plan plans steps of 1,024 packs for as many
ranks over so many rows, drawn like stage 1 of benchmarks/packing.py.
"""

import argparse
import dataclasses
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from packing import Mix, cost, draw

from latentvid.data.plan.plan import Plan
from latentvid.models.flops import dit_flops
from latentvid.models.transformer import VideoDiT
from latentvid.training.dryrun.estimate import (
    H200,
    Cluster,
    Seconds,
    Step,
    dit_pass_bytes,
    mfu,
    peak_bytes,
    step_seconds,
)
from latentvid.training.dryrun.memory import PassBytes, size, state_bytes
from latentvid.training.monitor.efficiency import rank_balance

NETWORKS = {  # width, depth, heads of 128
    "0.1B": (512, 18),
    "0.4B": (1024, 18),
    "1B": (1536, 20),
    "3B": (2560, 20),
    "10B": (4096, 27),
    "30B": (6144, 36),
}
CLIP, CLIPS, TEXT, TEXT_WIDTH = (8, 32, 32), 4, 256, 4096
DEVICES = (1, 8, 64, 256, 1024)
STRATEGIES = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2")
LONG = {"128k": (32, 64, 64), "512k": (128, 64, 64)}  # tokens of one clip
USABLE = 0.92  # of a device's memory: the rest is the CUDA context's, the libraries' and the allocator's gaps


class Network:
    """One size: its config, a model without storage, and what passes over packs take."""

    def __init__(self, name: str) -> None:
        self.name, (width, depth) = name, NETWORKS[name]
        shape = {"latent_channels": 16, "patch": 2, "width": width, "depth": depth, "heads": width // 128}
        with torch.device("meta"):
            self.model = VideoDiT(**shape, text_width=TEXT_WIDTH)
        self.config = {k: v for k, v in self.model.config.items() if not k.startswith("_")}
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.block = size(self.model.blocks[0])
        self._passes: dict[tuple, PassBytes] = {}

    def passing(self, grids: list, recompute: bool) -> PassBytes:
        key = (*grids, recompute)
        if key not in self._passes:
            self._passes[key] = dit_pass_bytes(self.config, grids, [TEXT] * len(grids), recompute)
        return self._passes[key]

    def step(self, grids: list, packs: int, recompute: bool, sequence: int = 1) -> Step:
        held = 4 * self.parameters
        return Step(
            flops=dit_flops(self.config, grids, [TEXT] * len(grids)),
            tokens=sum(f * h * w for f, h, w in grids),
            packs=packs,
            weights=held,
            trained=held,
            block=self.block,
            width=self.config["width"],
            depth=self.config["depth"],
            sequence=sequence,
            recompute=recompute,
        )

    def memory(self, strategy: str, devices: int, passing: PassBytes) -> float:
        """Bytes a device, one pack each."""
        strategy = "single" if devices == 1 else strategy
        states = {
            name: state
            for name, n, state in state_bytes(self.model, self.model.blocks, "adamw", devices)
            if n == devices
        }
        return peak_bytes(strategy, states[strategy], passing, 4 * self.parameters, self.block, packs=1)


def memory_table(networks: list[Network], rows: dict) -> None:
    print("\n| network | recomputing | devices | " + " | ".join(STRATEGIES) + " |")
    print("|---|---|---|" + "---|" * len(STRATEGIES))
    for net in networks:
        for recompute in (False, True):
            passing = net.passing([CLIP] * CLIPS, recompute)
            for devices in (8, 64, 1024):
                found = {name: net.memory(name, devices, passing) for name in STRATEGIES}
                rows[f"memory {net.name} x{devices}{' recomputing' * recompute}"] = found
                cells = " | ".join(f"{value / 1e9:,.0f}" for value in found.values())
                print(f"| {net.name} | {'yes' if recompute else 'no'} | {devices:,} | {cells} |", flush=True)


def time_table(networks: list[Network], cluster: Cluster, rows: dict) -> None:
    """Seconds under each strategy, the faster way that fits, and what the fastest of them gives."""
    print("\n| network | devices | " + " | ".join(STRATEGIES) + " | best: tokens/s | MFU |")
    print("|---|---|" + "---|" * (len(STRATEGIES) + 2))
    for net in networks:
        for devices in DEVICES:
            ways = {name: fastest(net, name, devices, cluster) for name in STRATEGIES}
            cells = [f"{way[0].all:.3g}{' r' * way[1].recompute}" if way else "-" for way in ways.values()]
            found = {name: way for name, way in ways.items() if way}
            rest = ["", ""]
            if found:
                taken, step, _ = min(found.values(), key=lambda way: way[0].all)
                rest = [f"{step.tokens * devices / taken.all:,.0f}", f"{mfu(step, taken, devices, cluster):.0%}"]
            for name, (taken, step, memory) in found.items():
                figures = {"recompute": step.recompute, "memory": memory, **taken._asdict()}
                rows[f"time {net.name} x{devices} {name}"] = figures | {"mfu": mfu(step, taken, devices, cluster)}
            print(f"| {net.name} | {devices:,} | {' | '.join(cells + rest)} |", flush=True)


def fastest(net: Network, strategy: str, devices: int, cluster: Cluster) -> tuple[Seconds, Step, float] | None:
    """Time, step and memory with recomputing or without, whichever is faster of what fits; None where neither does."""
    found = []
    for recompute in (False, True):
        step = net.step([CLIP] * CLIPS, devices, recompute)
        memory = net.memory(strategy, devices, net.passing([CLIP] * CLIPS, recompute))
        if memory <= USABLE * cluster.memory and (devices > 1 or strategy == "DDP"):
            found.append((step_seconds(step, strategy, devices, cluster), step, memory))
    return min(found, key=lambda way: way[0].all, default=None)


def long_table(networks: list[Network], cluster: Cluster, rows: dict) -> None:
    """One clip a pack, shared by Ulysses' groups, on 64 devices under FSDP2 with recomputing."""
    print("\n| network | clip, tokens | devices a pack | GB | step, s | exchanges | MFU |")
    print("|---|---|---|---|---|---|---|")
    devices = 64
    for net in networks:
        for label, (f, h, w) in LONG.items():
            for sequence in (1, 4, 8):
                if net.config["heads"] % sequence:
                    continue
                step = net.step([(f, h, w)], devices // sequence, True, sequence)
                taken = step_seconds(step, "FSDP2", devices, cluster)
                memory = net.memory("FSDP2", devices, net.passing([(f // sequence, h, w)], True))
                fits = "" if memory <= USABLE * cluster.memory else " (too much)"
                used = mfu(step, taken, devices, cluster)
                rows[f"long {net.name} {label} /{sequence}"] = {"memory": memory, **taken._asdict(), "mfu": used}
                print(
                    f"| {net.name} | {label} | {sequence} | {memory / 1e9:,.0f}{fits} | {taken.all:.3g} | "
                    f"{taken.exchange / taken.all:.0%} | {used:.0%} |",
                    flush=True,
                )


def sizes_table(networks: list[Network], rows: dict) -> None:
    print("| network | width | blocks | parameters | forward TFLOP a pack | GB of passes | recomputing |")
    print("|---|---|---|---|---|---|---|")
    for net in networks:
        flops = dit_flops(net.config, [CLIP] * CLIPS, [TEXT] * CLIPS)
        kept, again = (net.passing([CLIP] * CLIPS, recompute) for recompute in (False, True))
        rows[f"size {net.name}"] = {"parameters": net.parameters, "flops": flops, "kept": kept, "recomputing": again}
        print(
            f"| {net.name} | {net.config['width']} | {net.config['depth']} | {net.parameters / 1e9:.3g}B | "
            f"{flops / 1e12:,.0f} | {max(kept[:2]) / 1e9:,.0f} | {max(again[:2]) / 1e9:,.0f} |",
            flush=True,
        )


def plan_table(count: int, ranks: int, steps: int = 32) -> None:
    """Plans `steps` steps of one pack a rank over `count` rows, and prints what that took and gave."""
    mix, chunk = Mix(stage=1, images=0.3, seconds=8), 1_000_000
    tokens = np.empty(count, dtype=np.int64)
    for start in range(0, count, chunk):
        part = tokens[start : start + chunk]
        part[:] = draw(mix, len(part), seed=start).tokens
    prices = cost(tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks = [time.process_time()]
    plan = Plan(tokens, budget=mix.budget, packs=ranks, seed=0, cost=prices)
    marks.append(time.process_time())
    made = [plan.next()]
    marks.append(time.process_time())
    made += [plan.next() for _ in range(steps - 1)]
    marks.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fill = sum(step.fill for step in made) / steps
    balances = [rank_balance(step.costs, ranks) for step in made]
    opened, first, rest = np.diff(marks)
    print(
        "| rows | ranks | steps | fill | balance | lowest | start, CPU s | first step | each other | GB | of it rows |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {count:,} | {ranks:,} | {steps} | {fill:.3f} | {sum(balances) / steps:.4f} | {min(balances):.4f} | "
        f"{opened:.1f} | {first:.1f} | {rest / max(1, steps - 1):.2f} | {peak * 1024 / 1e9:.1f} | "
        f"{(tokens.nbytes + prices.nbytes) / 1e9:.1f} |"
    )
    print(f"\nresident before the plan was made, at its most: {before * 1024 / 1e9:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matmul", type=float, default=H200.matmul / 1e12, help="TFLOP/s of bf16 products, measured")
    parser.add_argument("--efficiency", type=float, default=H200.efficiency, help="share of it that a pass reaches")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plan", type=int, metavar="ROWS")
    parser.add_argument("--ranks", type=int, default=1024, help="of --plan")
    arguments = parser.parse_args()
    if arguments.plan:
        plan_table(arguments.plan, arguments.ranks)
        return
    cluster = dataclasses.replace(H200, matmul=arguments.matmul * 1e12, efficiency=arguments.efficiency)
    networks, rows = [Network(name) for name in arguments.only], {"cluster": dataclasses.asdict(cluster)}
    sizes_table(networks, rows)
    memory_table(networks, rows)
    time_table(networks, cluster, rows)
    long_table([net for net in networks if net.config["width"] >= 1536], cluster, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
