"""Clips that are in two files though these have other bytes: copies that were encoded or scaled again.

Axes: K clips, n looks of a clip, F frames, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..curation.hashing import FLAT_HASH, HASHES_A_SECOND, Signature, perceptual_hashes, same_as
from .clip_folder import Item
from .guards import LUMA, SHOWN, LevelRows, unlike_levels
from .row_cache import Found
from .rows import Clip

DISTANCE = 8.0  # bits of 64 in which hashes of two copies differ on average, at most; curations allow 16
SIDE = 8  # a look is kept as SIDE x SIDE means too
APART = 16.0  # levels of 255 in which any of these means differs between copies, at most
_WORD = 2**32  # hashes of 64 bits are kept as two numbers, which float64 holds exactly


class LookRows:
    """A row a look, float64 [n, 4 + SIDE * SIDE]: perceptual hashes of the picture and of how it differs from the look
    before (`curation.hashing`), in two halves each, and brightness 0..255 of SIDE x SIDE parts of it."""

    name = "looks"
    fingerprint = f"looks: perceptual hashes and {SIDE} x {SIDE} means, {HASHES_A_SECOND} a second or 4 a clip"
    needs: frozenset = frozenset()
    alike: frozenset = frozenset()

    def __call__(self, clip: Clip) -> Tensor:
        count = len(clip.pixels)
        step = max(1, min(round(clip.fps / HASHES_A_SECOND), (count - 1) // 3))
        luma = clip.pixels[::step].cpu().float() @ torch.tensor(LUMA)  # [n,H,W]
        small = adaptive_avg_pool2d(luma[:, None], SIDE)[:, 0].double().flatten(1)
        wide = luma.double().numpy()
        looks = [perceptual_hashes(look)[0] for look in wide]
        changes = [FLAT_HASH, *(perceptual_hashes(b - a)[0] for a, b in zip(wide, wide[1:], strict=False))]
        words = [
            [look // _WORD, look % _WORD, *divmod(change, _WORD)] for look, change in zip(looks, changes, strict=True)
        ]
        return torch.cat([torch.tensor(words, dtype=torch.float64), small], dim=1)


def _signature(rows: Tensor, file: int) -> Signature:
    words = rows[:, :4].numpy().astype(np.uint64)
    looks, changes = (words[:, k, None] * np.uint64(_WORD) + words[:, k + 1, None] for k in (0, 2))
    return Signature(looks.tolist(), changes.tolist(), file)  # of whole pictures alone


def copies(clips: Found, real: Found) -> list[tuple[Item, Item]]:
    """Pairs of clips of different files, in one set or in both, that show the same but for how they were written.

    clips, real: with `LookRows`. A real clip that is the pair of a clip is no copy of it: such a set was made from the
    other one. A clip in which all looks the same (a black one) is like no other.
    """
    items, rows = [*real.items, *clips.items], [*real.rows, *clips.rows]
    numbers: dict[Path, int] = {}
    files = [numbers.setdefault(item.excerpt.path, len(numbers)) for item in items]

    def possible(a: int, b: int) -> bool:
        if items[b].pair is not None and items[b].pair.path == items[a].excerpt.path:
            return False
        return rows[a].shape == rows[b].shape and bool((rows[a] - rows[b])[:, 4:].abs().max() <= APART)

    signatures = [_signature(*each) for each in zip(rows, files, strict=True)]
    return [(items[a], items[b]) for b, a in enumerate(same_as(signatures, DISTANCE, possible=possible)) if a != b]


def repeats(clips: Found, real: Found) -> str | None:
    """What is wrong where there are `copies`, and what to do."""
    found = copies(clips, real)
    if not found:
        return None
    owned = {id(item) for item in clips.items}
    within = all((id(one) in owned) == (id(other) in owned) for one, other in found)
    said: Sequence[str] = [f"{other.excerpt.path.name} as {one.excerpt.path.name}" for one, other in found[:SHOWN]]
    count = f"{len(found)} {'clip looks' if len(found) == 1 else 'clips look'} the same as another file's"
    return (
        f"{count} {'within a set' if within else 'in both sets'} ({', '.join(said)}), as copies do that were encoded "
        "again: remove them, or take them so with --allow repeats"
    )


WATCH = (LevelRows, LookRows)  # rows of both sets that say whether they compare


def unlike_pixels(clips: Mapping[str, Found], real: Mapping[str, Found], allowed: Collection[str]) -> dict[str, str]:
    """How two sets differ as only pixels show, as `guards.unlike` has it. clips, real: rows of `WATCH`, by name."""
    levels, looks = ([each[kind.name] for each in (clips, real)] for kind in WATCH)
    found = {}
    if "levels" not in allowed and (why := unlike_levels(*(each.rows for each in levels))):
        found["levels"] = why
    if "repeats" not in allowed and (why := repeats(*looks)):
        found["repeats"] = why
    return found
