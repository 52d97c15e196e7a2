"""Training on images and clips of mixed sizes and lengths: packing beside padding and beside buckets, by the clock.

    python benchmarks/mixed_shapes.py --json benchmarks/mixed_shapes.json      # the table of docs/performance.md

One data set (like Open-Sora 2.0's first stage, see `draw`), one network, real steps: forward, backward, AdamW. By
turns, in one process, each way makes a step of a batch; what counts is useful tokens a second, all steps together:

packing         latentvid: whole samples at their own size, as training's plan fills and balances the packs
padding, fixed  batches of random samples, as many as fit if all were as large as the largest of the data set, padded to
                that: one shape for all
padding         the same batches, padded to the longest of the batch
padding, sorted the same among samples of like length: windows of the data are sorted and cut into as many as fit
buckets         batches of equal samples, as many as fit: each is cropped to the nearest of Open-Sora's aspect ratios
                (those of its tables for 240p to 1080p); what is cropped is no token, and what is left over of a bucket
                at the end of an epoch is a smaller batch

Every way runs the same code of the network on the same kernels. What is padding takes part in all linear layers, as
keys nobody attends to it, nor is it computed as such (as with kernels of variable length; a dense mask costs more).

A way's batches are a sample of its epoch: ordered by cost, every so-manyth is taken (of packing, of the plan's steps).
With --ranks, a step lasts as long as the slowest of so many ranks: of packing the packs of each step are those that the
plan made for it; of the others, whose ranks draw for themselves, steps are put together from the batches measured, at
random, 2,000 times. Text and memory are alike for all: 32 tokens a sample, at most --budget tokens in a batch.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from latentvid.attention import BACKENDS
from latentvid.data.plan.plan import Plan
from latentvid.data.transforms import legal_size
from latentvid.diffusion.objective import loss_per_sample
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Grid, Packed, Segments

T = TypeVar("T")
STRIDE, FPS, MAX_FRAMES, TEXT, FEATURES = 32, 24, 129, 32, 64  # a token: 32x32 pixels of a latent frame
RATIOS = (0.39, 0.42, 0.48, 0.5, 0.52, 0.56, 0.66, 0.75, 1.0, 1.33, 1.52, 1.78, 1.92, 2.0, 2.1)  # height / width
NATURAL = {1.0: 0.2, 9 / 16: 0.35, 16 / 9: 0.15, 3 / 4: 0.15, 3 / 2: 0.15}  # height / width: share of samples


@dataclass(frozen=True)
class Data:
    """grids: (frames, rows, columns) of each sample at its own size, and cropped to its bucket."""

    own: list[Grid]
    cropped: list[Grid]

    @property
    def tokens(self) -> np.ndarray:
        return np.prod(self.own, axis=1)


def draw(count: int, seed: int) -> Data:
    """30% images at 1024 (half of them), 768 or 256 pixels' area; clips of 256, whose lengths are lognormal (median
    3 s, sigma 0.6; 5 to 129 frames at 24 a second); aspect ratios are those of `NATURAL`, give or take 5%.

    Packing.py's stage 1 with a quarter of the tokens: positions are twice as far apart.
    """
    rng = np.random.default_rng(seed)
    own, cropped = [], []
    for _ in range(count):
        image = rng.random() < 0.3
        side = int(rng.choice([1024, 768, 256], p=[0.5, 0.25, 0.25])) if image else 256
        frames = 1 if image else int(np.clip(FPS * rng.lognormal(np.log(3), 0.6), 5, MAX_FRAMES))
        ratio = rng.choice(list(NATURAL), p=list(NATURAL.values())) * np.exp(rng.normal(0, 0.05))
        near = min(RATIOS, key=lambda r: abs(r - ratio))
        latent = 1 + (frames - 1) // 4
        for grids, shape in ((own, ratio), (cropped, near)):
            native = round(2048 * shape**0.5), round(2048 / shape**0.5)
            height, width = legal_size(*native, stride=STRIDE, max_area=side * side)
            grids.append((latent, height // STRIDE, width // STRIDE))
    return Data(own, cropped)


# Each way yields the batches of an epoch, the grids of their samples; packing the packs of each step.


def packing(data: Data, budget: int, ranks: int, width: int) -> Iterator[list[list[Grid]]]:
    tokens = data.tokens
    plan = Plan(tokens, budget=budget, packs=ranks, seed=0, cost=tokens + tokens**2 / (6 * width))
    while plan.epoch < 1:
        yield [sorted(data.own[draw.index] for draw in pack) for pack in plan.next().packs]


def padding(data: Data, budget: int, seed: int = 0) -> Iterator[list[Grid]]:
    size = budget // int(data.tokens.max())
    order = np.random.default_rng(seed).permutation(len(data.own))
    for start in range(0, len(order), size):
        yield [data.own[i] for i in order[start : start + size]]


def padding_sorted(data: Data, budget: int, seed: int = 0, window: int = 2048) -> Iterator[list[Grid]]:
    rng, tokens = np.random.default_rng(seed), data.tokens
    order, batches = rng.permutation(len(tokens)), []
    for start in range(0, len(order), window):
        batch: list[int] = []
        for i in sorted(order[start : start + window], key=lambda i: -tokens[i]):  # the longest comes first
            if batch and (len(batch) + 1) * tokens[batch[0]] > budget:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    for b in rng.permutation(len(batches)):
        yield [data.own[i] for i in batches[b]]


def buckets(data: Data, budget: int, seed: int = 0) -> Iterator[list[Grid]]:
    rng = np.random.default_rng(seed)
    members: dict[Grid, int] = {}
    for grid in data.cropped:
        members[grid] = members.get(grid, 0) + 1
    batches = []
    for grid, count in members.items():
        size = max(1, budget // int(np.prod(grid)))
        batches += [[grid] * min(size, count - start) for start in range(0, count, size)]
    for b in rng.permutation(len(batches)):
        yield batches[b]


def cost(batch: Sequence[Grid], width: int) -> float:
    """In linear layers' work for a token: attention is n / 6d more for each of n (see `Plan`)."""
    tokens = np.prod(batch, axis=1)
    return float((tokens + tokens**2 / (6 * width)).sum())


def spread(things: Sequence[T], count: int, worth: Callable[[T], float]) -> list[T]:
    """So many of them, of every worth alike, in random order."""
    ordered = sorted(things, key=worth)
    chosen = [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]
    return [chosen[i] for i in np.random.default_rng(0).permutation(count)]


# ------------------------------------------------------------------------------------------------------------ a batch


@dataclass(frozen=True)
class Batch:
    """layout: what the network sees. real: the rows of `true`'s tokens in it; None where it sees nothing else."""

    true: Packed
    layout: Packed
    text_layout: Packed
    clean: Tensor  # [T,P] of the real tokens
    noise: Tensor
    text: Tensor
    timestep: Tensor
    real: Tensor | None

    @classmethod
    def of(cls, grids: Sequence[Grid], padded_to: int | None = None, seed: int = 0) -> "Batch":
        """padded_to: tokens that each sample gets (0: the longest's)."""
        source = torch.Generator().manual_seed(seed)
        true, text_layout = Packed.of(grids), Packed.of_lengths([TEXT] * len(grids))
        clean, noise = (torch.randn(true.tokens, FEATURES, generator=source) for _ in range(2))
        text = torch.randn(text_layout.tokens, 512, generator=source)
        timestep = torch.rand(len(grids), generator=source)[true.frame_segment]
        layout, real = (true, None) if padded_to is None else pad(true, padded_to or true.max_len)
        return cls(true, layout, text_layout, clean, noise, text, timestep, real)


def pad(true: Packed, to: int) -> tuple[Packed, Tensor]:
    """Every sample with so many tokens, its last one standing for the padding; and where the real tokens are."""
    n = true.segments
    place = torch.arange(to).expand(n, -1)
    length = torch.tensor(true.lengths)[:, None]
    of = (
        true.cu_seqlens[:-1, None] + torch.minimum(place, length - 1)
    ).flatten()  # the token that stands at each place
    layout = Packed(
        cu_seqlens=torch.arange(n + 1, dtype=torch.int32) * to,
        max_len=to,
        lengths=[to] * n,
        position=true.position[of],
        segment=true.segment[of],
        frame=true.frame[of],
        frame_segment=true.frame_segment,
        frame_tokens=true.frame_tokens,
        grid=true.grid,
    )
    return layout, torch.nonzero((place < length).flatten()).flatten()


class Masked:
    """The backend `grouped` where a batch is padded: as keys there are only the real tokens.

    real, true: those of the batch that is being computed, and their layout.
    """

    real: Tensor
    true: Packed

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout_q: Segments, layout_kv: Segments) -> Tensor:
        if layout_kv is layout_q:  # attention to text, which is packed, is as it is
            k, v, layout_kv = k.index_select(0, self.real), v.index_select(0, self.real), self.true
        return BACKENDS["grouped"](q, k, v, layout_q, layout_kv)


class Trainer:
    def __init__(self, width: int, depth: int, heads: int, bf16: bool = True) -> None:
        torch.manual_seed(0)
        self.model = VideoDiT(latent_channels=FEATURES // 4, patch=2, width=width, depth=depth, heads=heads)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.scheduler = LatentVideoScheduler()
        self.masked, self.bf16 = Masked(), bf16
        BACKENDS["masked"] = self.masked

    def losses(self, batch: Batch) -> Tensor:
        """Of each sample [N]."""
        t = batch.timestep.index_select(0, batch.true.frame)[:, None]
        noised, target = (make(batch.clean, batch.noise, t) for make in (self.scheduler.mix, self.scheduler.target))
        self.model.attention_backend = "grouped" if batch.real is None else "masked"
        if batch.real is not None:
            self.masked.real, self.masked.true = batch.real, batch.true
            padded = noised.new_zeros(batch.layout.tokens, FEATURES)
            noised = padded.index_copy_(0, batch.real, noised)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            prediction = self.model(noised, batch.timestep, batch.text, batch.layout, batch.text_layout)
        if batch.real is not None:
            prediction = prediction.index_select(0, batch.real)
        weight = torch.ones_like(batch.timestep)
        return loss_per_sample(prediction, target, batch.timestep, batch.true, weight)

    def step(self, batch: Batch) -> float:
        """Seconds."""
        begun = time.perf_counter()
        self.losses(batch).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun


# ----------------------------------------------------------------------------------------------------------- measured


def measure(args: argparse.Namespace, seed: int) -> dict[str, dict[str, list[float]]]:
    """Of each way, useful tokens, tokens computed and seconds of each batch."""
    data, trainer = draw(args.samples, seed), Trainer(args.width, args.depth, args.heads)
    steps = list(packing(data, args.budget, args.ranks, args.width))
    steps = spread(steps, args.batches // args.ranks, lambda step: cost(sum(step, []), args.width))
    chosen = {"packing": [pack for step in steps for pack in step]}
    for name, way in {"padding": padding, "padding, sorted": padding_sorted, "buckets": buckets}.items():
        chosen[name] = spread(list(way(data, args.budget)), args.batches, lambda batch: cost(batch, args.width))
    chosen["padding, fixed"] = chosen["padding"]
    to = {"padding, fixed": int(data.tokens.max()), "padding": 0, "padding, sorted": 0}
    found: dict[str, dict[str, list[float]]] = {n: {"useful": [], "computed": [], "seconds": []} for n in chosen}
    for name, batches in chosen.items():
        trainer.step(Batch.of(batches[0], to.get(name)))  # warms up
    for turn in range(args.batches):
        for name, batches in chosen.items():
            batch = Batch.of(batches[turn], to.get(name))
            figures = {"useful": batch.true.tokens, "computed": batch.layout.tokens, "seconds": trainer.step(batch)}
            for key, value in figures.items():
                found[name][key].append(value)
    return found


def on_ranks(name: str, rows: dict[str, list[float]], ranks: int) -> float:
    """Useful tokens a second and rank, where a step lasts as long as its slowest batch."""
    useful, seconds = np.array(rows["useful"]), np.array(rows["seconds"])
    if name == "packing":
        steps = np.arange(len(useful) // ranks * ranks).reshape(-1, ranks)
    else:
        steps = np.random.default_rng(0).integers(len(useful), size=(2000, ranks))
    return float(useful[steps].sum() / seconds[steps].max(1).sum() / ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a batch at most")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--batches", type=int, default=16, help="of each way and data set; a multiple of --ranks")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the data sets; each is measured")
    parser.add_argument("--json", type=Path, help="where the figures go, added to those of other seeds there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())
    for seed in args.seeds:
        found[str(seed)] = measure(args, seed)
        if args.json:
            args.json.write_text(json.dumps(found) + "\n")
    together = {
        name: {key: sum((run[name][key] for run in found.values()), []) for key in ("useful", "computed", "seconds")}
        for name in next(iter(found.values()))
    }
    alone = {n: sum(rows["useful"]) / sum(rows["seconds"]) for n, rows in together.items()}
    many = {n: on_ranks(n, rows, args.ranks) for n, rows in together.items()}
    print(f"| way | useful share | tokens/s | packing over it | tokens/s a rank of {args.ranks} | packing over it |")
    print("|---|---|---|---|---|---|")
    for name, rows in together.items():
        share = sum(rows["useful"]) / sum(rows["computed"])
        one, all_ = (f"{r[name]:.0f} | {r['packing'] / r[name]:.2f}" for r in (alone, many))
        print(f"| {name} | {share:.2f} | {one} | {all_} |")


if __name__ == "__main__":
    main()
