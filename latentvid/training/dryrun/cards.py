"""Which settings of a run fit on GPUs of common sizes: what a dry run says of cards that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent
from typing import NamedTuple

from ...config.schema import TrainingConfig
from ...models.quantised import bytes_saved
from ...tables import text_table
from .. import adamw8bit
from ..parallel.block_swap import SLOTS
from ..task import Task
from .memory import StateBytes
from .words import in_bytes

CARDS = (12, 16, 24, 48, 80, 141)  # GB as they are sold, which is GiB but for a percent
SHARE, CONTEXT = 0.94, 2**30  # of a card's memory that tensors can have: the rest is torch's gaps; bytes of CUDA itself
SAFE = 0.9  # of the tokens that a line through what larger packs take would allow: some of that does not shrink
MULTIPLE = 256  # tokens
LAUNCHES = {"DDP": "ddp", "FSDP2": "fsdp2", "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3"}

Row = tuple[str, int, StateBytes, Sequence[float]]  # of `preflight.Memory`
Rows = Sequence[Row]
Sparing = Sequence[tuple[str, float, bool]]  # of `sparing`


class Pack(NamedTuple):
    """tokens: of the largest pack. sample: of the largest sample, below which no pack goes. packs: of a step."""

    tokens: int
    sample: int
    packs: int


class Fit(NamedTuple):
    """A way to train that fits: where, with which settings beside the run's own, and the most bytes that it holds."""

    strategy: str
    processes: int
    settings: tuple[str, ...]
    most: float


def cards_table(rows: Rows, frozen: float, pack: Pack, recomputing: bool, spare: Sparing = ()) -> str:
    """frozen: bytes of networks beside. recomputing: the run does so already. spare: what `sparing` says."""
    lines, launches = [("GPU", "most", "on", "beside what is set")], {}
    for card in CARDS:
        found = fit(rows, frozen, pack, recomputing, SHARE * card * 2**30 - CONTEXT, spare)
        if found is None:
            lines.append((f"{card} GB", "", "no way of these", "--adapter.kind=lora, or a smaller model"))
            continue
        on = "one" if found.processes == 1 else f"{found.processes}, {found.strategy}"
        lines.append((f"{card} GB", in_bytes(found.most), on, " ".join(found.settings) or "nothing"))
        if found.processes > 1:
            file = f"configs/accelerate/{LAUNCHES[found.strategy]}.yaml"
            launches[on] = f"accelerate launch --config_file {file} --num_processes {found.processes}"
    head = "what fits on one GPU of a size, or on several, as this device computes:"
    return "\n".join([head, indent(text_table(lines), "  "), *(f"  {on}: {how}" for on, how in launches.items())])


def sparing(config: TrainingConfig, task: Task) -> Sparing:
    """Settings under which a process that holds all weights holds fewer bytes, how many fewer, and whether only with
    recomputing; the one that changes least first."""
    adapter = getattr(config, "adapter", None)
    if adapter is None or adapter.kind == "none":
        trained = [p for p in task.model.parameters() if p.requires_grad]
        less = sum(8 * p.numel() - adamw8bit.moment_bytes(p) for p in trained)
        return [(f"--optim.name={adamw8bit.NAME}", less, False)] * (config.optim.name == "adamw")
    found, setting, saved = [], "", 0
    if adapter.kind == "lora" and adapter.base == "whole":
        for kind in ("int8", "nf4"):
            setting, saved = f"--adapter.base={kind} ", bytes_saved(task.blocks or [task.model], kind)
            found.append((setting.strip(), saved, False))
    count = len(task.blocks)
    if count > SLOTS and task.recomputes and not config.train.swap_blocks and not config.train.compile:
        held = sum(p.numel() * p.element_size() for b in task.blocks for p in b.parameters() if not p.requires_grad)
        swapped = (held - saved) * (1 - SLOTS / count)
        found.append((f"{setting}--train.swap_blocks={count}", saved + swapped, True))
    return found


def fit(rows: Rows, frozen: float, pack: Pack, recomputing: bool, room: float, spare: Sparing = ()) -> Fit | None:
    """The first way that fits in so many bytes: fewest processes first, then the least that is changed."""
    for row in sorted(rows, key=lambda row: (row[1], row[3][-1])):
        found = _fit_on(row, frozen, pack, recomputing, room)
        for setting, spared, recompute in spare if row[0] in ("single", "DDP") else ():
            if found is None:
                strategy, processes, held, most = row
                held = held._replace(weights=held.weights - spared)  # or of the moments: their sum counts
                less = (strategy, processes, held, [each - spared for each in most])
                found = _fit_on(less, frozen, pack, recomputing or recompute, room)
                more = _recompute(recompute and not recomputing)
                found = found and found._replace(settings=(setting, *more, *found.settings))
        if found is not None:
            return found
    return None


def _fit_on(row: Row, frozen: float, pack: Pack, recomputing: bool, room: float) -> Fit | None:
    """A row as it is, recomputing, and with smaller packs."""
    strategy, processes, held, most = row
    ways = [(most[-1], ())] if recomputing else [(each, _recompute(i)) for i, each in enumerate(most)]
    for each, settings in ways:
        if each + frozen <= room:
            return Fit(strategy, processes, settings, each + frozen)
    largest, settings = ways[-1]
    fixed = min(sum(held), largest)
    tokens = int(SAFE * pack.tokens * (room - frozen - fixed) / max(largest - fixed, 1)) // MULTIPLE * MULTIPLE
    if tokens < pack.sample:
        return None
    packs = -(-pack.packs * pack.tokens // tokens)
    packs = -(-packs // processes) * processes
    smaller = (f"--data.tokens_per_pack={tokens}", f"--data.packs_per_step={packs}")
    taken = fixed + (largest - fixed) * tokens / pack.tokens
    return Fit(strategy, processes, (*settings, *smaller), taken + frozen)


def _recompute(way: int | bool) -> tuple[str, ...]:
    return ("--train.gradient_checkpointing=true",) * way
