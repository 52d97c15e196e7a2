"""How much work is lost to padding and to waiting for the slowest rank, in four ways to batch and in latentvid's plan.

.venv/bin/python benchmarks/packing.py --json benchmarks/packing.json     # the table of docs/packing.md, a minute

Nothing is trained: samples are drawn from mixes like Open-Sora 2.0's two stages of training (its bucket tables, in
configs/diffusion/train/stage1.py and stage2.py), and a sample of n tokens costs n + n^2 / 6d, d = 3072. A token is
16x16 pixels of a latent frame; a clip of F frames has 1 + (F - 1) // 4 latent frames.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latentvid.data.plan.plan import Plan

WIDTH, FPS, MAX_FRAMES = 3072, 24, 129
SHAPES = {(1, 1): 0.2, (16, 9): 0.35, (9, 16): 0.15, (4, 3): 0.15, (2, 3): 0.15}  # aspect ratio: share
PACKS = 8192  # simulated in each cell
BATCHES = {  # Open-Sora 2.0's batch sizes: resolution: (frames up to, batch size) of the first row that holds
    1: {256: [(1, 45), (33, 12), (65, 6), (97, 4), (129, 3)], 768: [(1, 13)], 1024: [(1, 7)]},
    2: {
        256: [(1, 130), (33, 14), (65, 10), (97, 7), (129, 6)],
        768: [(1, 38), (33, 6), (65, 4), (97, 3), (129, 2)],
    },
}


@dataclass(frozen=True)
class Mix:
    """A data set. Clips last a lognormal time (sigma 0.6), cut to 129 frames at 24 a second."""

    stage: int
    images: float  # share of samples
    seconds: float  # median of clips
    large: float = 0.15  # stage 2: share of samples large enough for 768px, of images and clips alike

    @property
    def budget(self) -> int:
        return {1: 32_768, 2: 131_072}[self.stage]

    @property
    def ranks_per_pack(self) -> int:
        return {1: 1, 2: 4}[self.stage]


class Samples(NamedTuple):
    tokens: np.ndarray
    resolution: np.ndarray  # square root of the pixels of a frame
    latent_frames: np.ndarray
    shape: np.ndarray  # place in SHAPES


def draw(mix: Mix, count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    image = rng.random(count) < mix.images
    frames = np.clip(FPS * rng.lognormal(np.log(mix.seconds), 0.6, count), 5, MAX_FRAMES).astype(int)
    latent_frames = 1 + (np.where(image, 1, frames) - 1) // 4
    if mix.stage == 1:  # every image is large enough for 1024px: taken there or at 768px by chance 0.5, as in the table
        resolution = np.where(image, rng.choice([1024, 768, 256], p=[0.5, 0.25, 0.25], size=count), 256)
    else:
        resolution = np.where(rng.random(count) < mix.large, 768, 256)
    shape = rng.choice(len(SHAPES), p=list(SHAPES.values()), size=count)
    ratio = np.array([width / height for width, height in SHAPES])[shape]
    width, height = (np.round(resolution / 16 * np.sqrt(side)).astype(int) for side in (ratio, 1 / ratio))
    return Samples(latent_frames * height * width, resolution, latent_frames, shape)


def cost(tokens: np.ndarray) -> np.ndarray:
    return tokens + tokens**2 / (6 * WIDTH)


# Each way yields steps; a step is the sample numbers of each of its packs, and the work done for each pack.
Steps = Iterator[tuple[list[np.ndarray], np.ndarray]]


def padded(mix: Mix, samples: Samples, packs: int) -> Steps:
    """Batches of as many samples as fit, each padded to the largest of the data set."""
    largest = samples.tokens.max()
    size = mix.budget // int(largest)
    for start in range(0, len(samples.tokens) - size * packs, size * packs):
        yield list(np.arange(start, start + size * packs).reshape(packs, size)), np.full(packs, size * cost(largest))


def buckets(mix: Mix, samples: Samples, packs: int, *, published: bool) -> Steps:
    """Batches of equal samples (resolution, frames, aspect ratio), whatever bucket comes next on each rank.

    Of the published size, or else of as many samples as the budget holds.
    """
    waiting: dict[tuple[int, int, int], list[int]] = {}
    ready: list[np.ndarray] = []
    for number, key in enumerate(zip(*(part.tolist() for part in samples[1:]), strict=True)):
        resolution, latent_frames, _ = key
        if published:
            table = BATCHES[mix.stage][resolution]
            size = next(size for frames, size in table if 4 * (latent_frames - 1) + 1 <= frames)
        else:
            size = mix.budget // int(samples.tokens[number])
        waiting.setdefault(key, []).append(number)
        if len(waiting[key]) == size:
            ready.append(np.array(waiting.pop(key)))
    np.random.default_rng(0).shuffle(ready)
    for start in range(0, len(ready) - packs + 1, packs):
        step = ready[start : start + packs]
        yield step, np.array([cost(samples.tokens[pack]).sum() for pack in step])


def first_fit(mix: Mix, samples: Samples, packs: int) -> Steps:
    """Samples in random order, each into the first pack with room; up to 32 wait for the next step."""
    queue, waiting = iter(range(len(samples.tokens))), []
    while True:
        step, room = [[] for _ in range(packs)], [mix.budget] * packs
        again, waiting = itertools.chain(waiting, queue), []
        while len(waiting) < 32:
            number = next(again, None)
            if number is None:
                return
            need = samples.tokens[number]
            chosen = next((p for p in range(packs) if room[p] >= need), None)
            if chosen is None:
                waiting.append(number)
            else:
                step[chosen].append(number)
                room[chosen] -= need
        chosen = [np.array(pack) for pack in step]
        yield chosen, np.array([cost(samples.tokens[pack]).sum() for pack in chosen])


def planned(mix: Mix, samples: Samples, packs: int) -> Steps:
    """latentvid's plan."""
    plan = Plan(samples.tokens, budget=mix.budget, packs=packs, seed=0, cost=cost(samples.tokens))
    while True:
        step = plan.next()
        yield [np.array([draw.index for draw in pack]) for pack in step.packs], np.array(step.costs)


WAYS: dict[str, Callable[[Mix, Samples, int], Steps]] = {
    "padding to the maximum": padded,
    "buckets, published sizes": lambda *a: buckets(*a, published=True),
    "buckets, sizes that fill": lambda *a: buckets(*a, published=False),
    "first fit by tokens": first_fit,
    "latentvid": planned,
}


def measure(way: Callable[[Mix, Samples, int], Steps], mix: Mix, samples: Samples, packs: int) -> dict[str, float]:
    useful = slowest = tokens = 0.0
    images, steps = [], PACKS // packs
    done = 0
    for step, work in way(mix, samples, packs):
        together = np.concatenate(step)
        useful += cost(samples.tokens[together]).sum()
        slowest += packs * work.max()
        tokens += samples.tokens[together].sum()
        images.append((samples.latent_frames[together] == 1).mean())
        done += 1
        if done == steps:
            break
    return {
        "work": round(useful / slowest, 4),
        "fill": round(tokens / (done * packs * mix.budget), 4),
        "image_share_sd": round(float(np.std(images)), 4),
        "steps": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--seed", type=int, default=0, help="of the mixes")
    arguments = parser.parse_args()
    mixes = [Mix(stage, images, seconds) for stage in (1, 2) for images in (0.3, 0.1) for seconds in (3, 8)]
    mixes.append(Mix(2, 0.3, 8, large=0.3))  # most tokens in clips that are more than half a pack each
    rows = []
    print(f"| stage | images | median s | ranks | {' | '.join(WAYS)} |\n|{'---|' * (4 + len(WAYS))}")
    for mix in mixes:
        samples = draw(mix, 400_000, arguments.seed)
        for ranks in (8, 64):
            results = {name: measure(way, mix, samples, ranks // mix.ranks_per_pack) for name, way in WAYS.items()}
            rows.append({**vars(mix), "ranks": ranks, "ways": results})
            cells = " | ".join(f"{result['work']:.3f} ({result['fill']:.2f})" for result in results.values())
            stage = f"{mix.stage}" + (f", {mix.large:.0%} at 768px" if mix.stage == 2 else "")
            print(f"| {stage} | {mix.images:.0%} | {mix.seconds} | {ranks} | {cells} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
