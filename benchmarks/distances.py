"""How far FVD, KVD, FID and KID put clips from the same clips made worse, at four rising levels each.

    python benchmarks/distances.py --clips DIR --weights DIR [--count 24] [--frames 9] --cache DIR --out FILE.json

Rows are kept in --cache, so that a run that was stopped goes on. Prints a Markdown table; `rises` says whether each
level lies above the one before. Inception sees every frame, so FID and KID cannot see their order.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from latentvid.evaluation.clip_folder import Item, list_clips
from latentvid.evaluation.footage import Cut
from latentvid.evaluation.metrics import open_metrics
from latentvid.evaluation.row_cache import RowCache
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.summary import summarise
from latentvid.rng import generator

NAMES = ("fvd", "kvd", "fid", "kid")


def noise(pixels: Tensor, level: float, random: torch.Generator) -> Tensor:
    """Gaussian, of that standard deviation in grey levels of 255."""
    return (pixels + level * torch.randn(pixels.shape, generator=random)).round().clamp(0, 255).byte()


def blur(pixels: Tensor, level: float, random: torch.Generator) -> Tensor:
    """Gaussian, of that standard deviation in pixels."""
    side = 2 * math.ceil(3 * level) + 1
    return gaussian_blur(pixels.movedim(-1, 1), [side, side], [level, level]).movedim(1, -1).contiguous()


def shuffle(pixels: Tensor, level: float, random: torch.Generator) -> Tensor:
    """That many frames, drawn at random, change places in a circle."""
    places = torch.randperm(len(pixels), generator=random)[: int(level)]
    shuffled = pixels.clone()
    shuffled[places] = pixels[places.roll(1)]
    return shuffled


def freeze(pixels: Tensor, level: float, random: torch.Generator) -> Tensor:
    """Every so many-th frame stands for as many frames."""
    return pixels[torch.arange(len(pixels)) // int(level) * int(level)]


CHANGES: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "noise": (noise, (5, 10, 20, 40)),
    "blur": (blur, (0.7, 1.4, 2.8, 5.6)),
    "shuffle": (shuffle, (2, 4, 6, 9)),
    "freeze": (freeze, (2, 3, 5, 9)),
}


@dataclass(frozen=True)
class Changed(Item):
    """A clip made worse when it is read."""

    number: int = 0
    change: str = ""
    level: float = 0.0

    def read(self, with_pair: bool) -> Clip:
        clip = super().read(with_pair)
        worse = CHANGES[self.change][0](clip.pixels, self.level, generator(0, self.number, self.change))
        return replace(clip, pixels=worse)

    def key(self, needs: frozenset[str]) -> list:
        return [*super().key(needs), self.number, self.change, self.level]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of real clips")
    parser.add_argument("--weights", type=Path, required=True, help="folder of inception/ and i3d/")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    metrics = open_metrics(NAMES, args.weights, torch.device("cpu"), pictures=0)
    cut = Cut(frames=args.frames, size=None, temporal_stride=1, spatial_stride=1)
    clips = list_clips(args.clips, cut, args.count).items

    def rows_of(items: list[Item], label: str) -> dict[str, list[Tensor]]:
        cache = RowCache(args.cache, items, metrics.extractors)
        cache.fill(cache.missing(), label=label)
        return {name: cache.read(name).rows for name in metrics.extractors}

    started, real, rows = time.time(), rows_of(clips, "real"), []
    plan = [("none", 0.0)] + [(change, level) for change, (_, levels) in CHANGES.items() for level in levels]
    for change, level in plan:
        items = [Changed(item.name, item.excerpt, number=k, change=change, level=level) for k, item in enumerate(clips)]
        worse = real if change == "none" else rows_of(items, f"{change} {level:g}")
        found = summarise(metrics.scores, worse, real, resamples=0)
        rows.append({"change": change, "level": level} | {name: found[name]["value"] for name in NAMES})
        print(f"| {change} | {level:g} | " + " | ".join(f"{rows[-1][name]:.5g}" for name in NAMES) + " |", flush=True)
    rises = {
        change: {name: rising([rows[0][name]] + [r[name] for r in rows if r["change"] == change]) for name in NAMES}
        for change in CHANGES
    }
    facts = {"clips": len(clips), "frames": args.frames, "size": [clips[0].excerpt.height, clips[0].excerpt.width]}
    facts |= {"extractors": {name: extractor.fingerprint for name, extractor in metrics.extractors.items()}}
    result = facts | {"seconds": round(time.time() - started), "rows": rows, "rises": rises}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rises))


def rising(values: list[float]) -> bool:
    return all(low < high for low, high in zip(values, values[1:], strict=False))


if __name__ == "__main__":
    main()
