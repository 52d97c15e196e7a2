"""What a run would be, found out without training: `--dry-run`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ...config.schema import TrainingConfig
from ...data.plan.plan import Plan
from ...errors import UserError
from ...models.flops import TRAINING, GridFlops, peak_flops
from ...packing import Shape
from ...words import counted
from ..monitor.efficiency import rank_balance
from ..parallel.block_swap import host_bytes
from ..task import Pack, Task
from .cards import Pack as CardPack
from .cards import cards_table, sparing
from .estimate import H200, Step, peak_bytes, step_seconds
from .memory import UNCUT, PassBytes, StateBytes, activation_bytes, largest, pass_bytes, size, state_bytes
from .words import duration, in_bytes, indented, si

SIMULATED_STEPS = 50
MFU = 0.4  # what large runs reach; the time is estimated for it
SHAPES_SHOWN = 12


@dataclass(frozen=True)
class Simulation:
    """Means over simulated steps.

    steps: how many were simulated. samples, tokens: a step. fill: tokens over what the packs hold. balance: mean cost
    of a rank over the largest, and its lowest value. epochs: passes over each source of the data, a step. flops: of
    forward and backward; encode: of the frozen VAE. packs: token shapes of the packs with the most tokens and with the
    most FLOPs.
    """

    steps: int
    samples: float
    tokens: float
    fill: float
    balance: float
    lowest_balance: float
    epochs: list[float]
    flops: float
    encode: float
    packs: list[list[Shape]]


@dataclass(frozen=True)
class Outlook:
    """What a run, or a stage of one, would be: in words, and figures that compare stages.

    seconds: of all its steps, at `MFU` of the devices' peak. activations: bytes that the largest pack keeps on a
    device until its backward pass; most: the most that a step holds there at a time, with weights and state.
    strategy: which that is of, the first that this number of processes can have.
    """

    text: str
    simulation: Simulation
    seconds: float
    activations: float
    strategy: str
    most: float


def preflight(config: TrainingConfig, task: Task, plan: Plan, *, world: int, device: torch.device) -> Outlook:
    """The run in about a screen and a half: data and what was dropped, shapes, packs, length, arithmetic, memory.

    Args:
        plan: stays as it is; its coming steps are simulated.
        world: processes, of which `train.sequence_parallel` share each pack.
        device: where the model would train.
    """
    ranks = world // config.train.sequence_parallel
    simulation = simulate(task, plan, ranks)
    memory = _memory_of(config, task, plan, simulation, world, device)
    parts = [
        task.summary(),
        _shapes(task),
        _packs(config, task, plan, simulation, ranks),
        _arithmetic(config, task, simulation, world, device),
        _memory(config, task, memory, device),
        _cards(config, task, plan, simulation, memory),
        _times(config, task, plan, simulation, world, device),
        _warnings(config, task, plan, simulation),
    ]
    strategy, _, _, most = memory.rows[0]
    return Outlook(
        text="\n\n".join(part for part in parts if part),
        simulation=simulation,
        seconds=_step_seconds(config, simulation, world, device) * config.train.steps,
        activations=memory.kept,
        strategy=strategy,
        most=most[config.train.gradient_checkpointing and task.recomputes],
    )


def simulate(task: Task, plan: Plan, ranks: int, steps: int = SIMULATED_STEPS) -> Simulation:
    """The plan's coming steps, at most `steps` and an epoch; nothing is loaded. `ranks`: data-parallel ones.

    Raises UserError where they cannot share a step's packs.
    """
    if plan.packs % ranks:
        raise UserError(
            f"data.packs_per_step is {plan.packs}, which {ranks} data-parallel ranks cannot share equally: "
            f"make it a multiple of {ranks}"
        )
    plan, before = copy.deepcopy(plan), plan.epochs
    taken, flops, encode, balances = [], 0, 0, []
    most: dict[str, tuple[float, list[Shape]]] = {"tokens": (0, []), "flops": (0, [])}
    work: dict[Shape, GridFlops] = {}
    seen = 0
    while not taken or (len(taken) < steps and seen < len(task.grids)):
        step = plan.next()
        taken.append(step)
        seen += step.samples
        balances.append(rank_balance(step.costs, ranks))
        for pack in step.packs:
            shapes = [task.shapes[draw.index] for draw in pack]
            for shape in shapes:
                if shape not in work:
                    work[shape] = task.grid_flops(*shape) if shape.references else task.grid_flops(shape.grid)
            pack_flops = sum(work[shape].model for shape in shapes)
            flops, encode = flops + pack_flops, encode + sum(work[shape].encode for shape in shapes)
            for key, much in (("tokens", sum(shape.tokens for shape in shapes)), ("flops", pack_flops)):
                most[key] = max(most[key], (much, shapes), key=lambda pair: pair[0])
    n = len(taken)
    tokens = sum(step.tokens for step in taken) / n
    return Simulation(
        steps=n,
        samples=seen / n,
        tokens=tokens,
        fill=tokens / (plan.packs * plan.budget),
        balance=sum(balances) / n,
        lowest_balance=min(balances),
        epochs=[(late - early) / n for late, early in zip(plan.epochs, before, strict=True)],
        flops=TRAINING * flops / n,
        encode=encode / n,
        packs=[list(shapes) for shapes in {tuple(shapes) for _, shapes in most.values()}],
    )


# --- what is printed -------------------------------------------------------------------------------------------------


def _shapes(task: Task) -> str:
    """Table of the samples' shapes, by their share of the tokens."""
    counts = task.shapes.counts()
    total = sum(shape.tokens * n for shape, n in counts.items())
    ordered = sorted(counts.items(), key=lambda item: -item[0].tokens * item[1])
    rows = [("frames x height x width", "samples", "tokens each", "share of tokens")]
    for shape, n in ordered[:SHAPES_SHOWN]:
        sizes = [" x ".join(map(str, task.pixels(grid))) for grid in shape.grids]
        rows.append((" + ".join(sizes), f"{n:,}", f"{shape.tokens:,}", f"{shape.tokens * n / total:.1%}"))
    rest = ordered[SHAPES_SHOWN:]
    if rest:
        tokens = sum(shape.tokens * n for shape, n in rest)
        rows.append((f"{len(rest):,} other shapes", f"{sum(n for _, n in rest):,}", "", f"{tokens / total:.1%}"))
    return indented(rows)


def _packs(config: TrainingConfig, task: Task, plan: Plan, simulation: Simulation, ranks: int) -> str:
    s, steps = simulation, config.train.steps
    per_epoch = steps_per_epoch(task, s)
    passes = [f"    {steps * epochs:,.2f} {name}" for name, epochs in zip(plan.names, s.epochs, strict=True)]
    sources = ["  passes over each source:", *passes] if len(s.epochs) > 1 else []
    sharing = config.train.sequence_parallel
    shared = f", each shared by {counted(sharing, 'process')}" if sharing > 1 else ""
    return "\n".join(
        [
            f"packs ({s.steps} steps simulated): {plan.packs} a step of at most {plan.budget:,} tokens{shared}; "
            f"{s.samples:,.1f} samples and {s.tokens:,.0f} tokens a step",
            f"  fill {s.fill:.3f}; cost balance over {counted(ranks, 'rank')} {s.balance:.3f} "
            f"(lowest {s.lowest_balance:.3f})",
            f"  {per_epoch:,.1f} steps an epoch; the run's {steps:,} steps are {steps / per_epoch:,.2f} epochs, "
            f"{steps * s.samples:,.0f} samples, {si(steps * s.tokens)}tokens",
            *sources,
        ]
    )


def steps_per_epoch(task: Task, simulation: Simulation) -> float:
    """By tokens: packs are about equally full, but hold few samples or many."""
    return int(np.sum(task.tokens)) / simulation.tokens


def _arithmetic(config: TrainingConfig, task: Task, simulation: Simulation, world: int, device: torch.device) -> str:
    s, steps = simulation, config.train.steps
    peak, source = peak_flops(device, config.train.mixed_precision)
    every = sum(p.numel() for p in task.model.parameters())
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    seconds = _step_seconds(config, s, world, device)
    encode = f", and {si(s.encode)}FLOPs to encode (frozen)" if s.encode else ""
    return "\n".join(
        [
            f"model: {type(task.model).__name__}, {every:,} parameters, {trained:,} of them trained",
            f"  {si(s.flops)}FLOPs a step, forward and backward{encode}",
            f"  peak {si(peak)}FLOP/s ({source}), x {counted(world, 'device')}",
            f"  at {MFU:.0%} of it {duration(seconds)} a step, {duration(seconds * steps)} the run",
        ]
    )


def _step_seconds(config: TrainingConfig, simulation: Simulation, world: int, device: torch.device) -> float:
    """Of a step's arithmetic alone, at `MFU` of the devices' peak."""
    peak, _ = peak_flops(device, config.train.mixed_precision)
    return (simulation.flops + simulation.encode) / (peak * world * MFU)


class Memory(NamedTuple):
    """Bytes on a device. kept: activations of the largest pack. rows: of each strategy its name, processes, state, and
    the most that a step holds at a time, as it is and (where the model can) recomputing."""

    kept: float
    rows: list[tuple[str, int, StateBytes, list[float]]]


def _memory_of(
    config: TrainingConfig, task: Task, plan: Plan, simulation: Simulation, world: int, device: torch.device
) -> Memory:
    share = config.train.sequence_parallel
    packs = [blank_pack(task, shapes) for shapes in simulation.packs]
    ways = (False, True) if task.recomputes else (False,)
    gpu = device.type == "cuda" and config.train.mixed_precision == "bf16"
    kept = max(activation_bytes(task, pack, gpu).kept for pack in packs) / share
    passes = [_largest([pass_bytes(task, pack, way, gpu) for pack in packs], share) for way in ways]
    trained = sum(4 * p.numel() for p in task.model.parameters() if p.requires_grad)
    block = largest(task.model, task.blocks)
    rows = []
    for strategy, n, held in _states(config, task, world):
        turns = max(1, plan.packs * share // n)
        every = size(task.model)
        most = [peak_bytes(strategy, held, passing, trained, block, turns, weights=every) for passing in passes]
        rows.append((strategy, n, held, most))
    return Memory(kept, rows)


def _states(config: TrainingConfig, task: Task, world: int) -> Iterator[tuple[str, int, StateBytes]]:
    swap = config.train.swap_blocks
    return state_bytes(task.model, task.blocks, config.optim.name, world, task.apart, task.ragged, swap)


def blank_pack(task: Task, shapes: Sequence[Shape]) -> Pack:
    """`Task.blank_pack`; stages that know no references are asked for none."""
    grids, references = zip(*shapes, strict=True)
    return task.blank_pack(grids, references) if any(references) else task.blank_pack(grids)


def _memory(config: TrainingConfig, task: Task, memory: Memory, device: torch.device) -> str:
    rows = [("", "weights", "gradients", "optimiser", "average", "activations", "most", "most, recomputing")]
    for strategy, n, held, most in memory.rows:
        rows.append((f"{strategy}, {counted(n, 'process')}", *map(in_bytes, (*held, memory.kept, *most))))
    ways = len(memory.rows[0][3])
    rows = [row[: 6 + ways] for row in rows]
    lines = ["memory a device for the largest pack, and the most that a step holds at a time:", indented(rows)]
    if device.type == "cuda":
        lines.append(f"  this device has {in_bytes(torch.cuda.get_device_properties(device).total_memory)}")
    if swap := config.train.swap_blocks:
        held = in_bytes(host_bytes(getattr(task.model, "in_order", task.blocks), swap))
        lines.append(f"  in main memory the weights of {counted(swap, 'block')}, {held} for each process")
    if task.frozen:
        frozen = in_bytes(sum(map(size, task.frozen)))
        lines.append(f"  beside it frozen networks, {frozen} on every device")
    if config.optim.name in UNCUT:
        without = "ZeRO" if config.optim.name == "muon" else "FSDP2 and ZeRO"
        lines.append(f"  optim.name={config.optim.name} needs whole parameters: {without} cannot have it")
    if task.ragged:
        lines.append("  each shape of a pack is a call of the model: FSDP2 and ZeRO-3 cannot have it")
    if ways > 1:
        lines.append("  recomputing: with train.gradient_checkpointing=true")
    return "\n".join(lines)


def _cards(config: TrainingConfig, task: Task, plan: Plan, simulation: Simulation, memory: Memory) -> str:
    if config.train.sequence_parallel > 1:  # smaller packs are cut among processes, which another number changes
        return ""
    pack = CardPack(
        tokens=max(sum(shape.tokens for shape in shapes) for shapes in simulation.packs),
        sample=int(np.max(task.tokens)),
        packs=plan.packs,
    )
    recomputing = config.train.gradient_checkpointing and task.recomputes
    return cards_table(memory.rows, sum(map(size, task.frozen)), pack, recomputing, sparing(config, task))


def _largest(passes: Sequence[PassBytes], processes: int) -> PassBytes:
    """The largest of each figure over the packs, each shared by `processes`."""
    return PassBytes(*(round(max(values) / processes) for values in zip(*passes, strict=True)))


def _times(
    config: TrainingConfig, task: Task, plan: Plan, simulation: Simulation, world: int, device: torch.device
) -> str:
    """A step's seconds on GPUs, by strategy; of links between CPUs nothing is known."""
    if device.type != "cuda" or not task.blocks:
        return ""
    cluster = replace(H200, matmul=peak_flops(device, config.train.mixed_precision)[0], efficiency=MFU)
    step = Step(
        flops=simulation.flops / TRAINING / plan.packs,
        tokens=simulation.tokens / plan.packs,
        packs=plan.packs,
        weights=size(task.model),
        trained=sum(4 * p.numel() for p in task.model.parameters() if p.requires_grad),
        block=largest(task.model, task.blocks),
        width=task.width,
        depth=len(task.blocks),
        sequence=config.train.sequence_parallel,
        recompute=config.train.gradient_checkpointing,
    )
    rows = [("", "computing", "exchanges", "update", "step", "run")]
    for strategy, n, _ in _states(config, task, world):
        if n == world:
            taken = step_seconds(step, strategy, n, cluster)
            rows.append((strategy, *map(duration, (*taken, taken.all, taken.all * config.train.steps))))
    what = f"computing at {MFU:.0%} of the peak, links and memory as an H200's (docs/scaling.md)"
    return "\n".join([f"a step on {counted(world, 'device')}, {what}:", indented(rows)])


def _warnings(config: TrainingConfig, task: Task, plan: Plan, simulation: Simulation) -> str:
    s = simulation
    epochs = config.train.steps * max(1 / steps_per_epoch(task, s), *(s.epochs if len(s.epochs) > 1 else [0]))
    largest = int(np.max(task.tokens))
    found = {
        f"the largest sample has {counted(largest, 'token')}, more than half a pack: packs fill badly; "
        "raise data.tokens_per_pack": 2 * largest > plan.budget,
        f"{len(task.grids):,} samples are fewer than one step holds: a step sees some of them more than once; "
        "lower data.packs_per_step or data.tokens_per_pack": len(task.grids) < s.samples,
        f"packs are {s.fill:.0%} full: raise data.tokens_per_pack": s.fill < 0.8,
        f"the ranks' work is balanced to {s.balance:.0%}: raise data.packs_per_step or data.tokens_per_pack": (
            s.balance < 0.9
        ),
        f"the run passes {epochs:,.0f} times over the data: lower train.steps, or add data": epochs > 1000,
    }
    return "\n".join(f"warning: {text}" for text, holds in found.items() if holds)
