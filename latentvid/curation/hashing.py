"""Perceptual hashes of pictures, and which segments show the same by them.

A hash is 64 bits: the signs of the low frequencies of a picture (Zauner 2010, "Implementation and benchmarking of
perceptual image hash functions", the DCT hash), as an unsigned whole number. A crop moves a picture's parts, and so its
signs. So of each picture several windows are hashed too: the whole of a cropped copy is held against them.

Axes: N pictures of a segment, W windows (the first is the whole picture).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

import numpy as np

HASHES_A_SECOND = 2
CUT = 0.05  # share of a side that a copy may lack; less, or from another side, is near one of the windows
WINDOWS = (  # (top, left, bottom, right) as shares of the sides
    (0.0, 0.0, 1.0, 1.0),
    (CUT, CUT, 1.0, 1.0),
    (CUT, 0.0, 1.0, 1 - CUT),
    (0.0, CUT, 1 - CUT, 1.0),
    (0.0, 0.0, 1 - CUT, 1 - CUT),
    (CUT / 2, CUT / 2, 1 - CUT / 2, 1 - CUT / 2),
    (CUT, CUT, 1 - CUT, 1 - CUT),
)
FINE = 96  # a picture is shrunk to FINE x FINE once; windows are taken of that
SIDE, LOW = 32, 8  # a window is shrunk to SIDE x SIDE; LOW x LOW frequencies of it count, without the mean's
FLAT = 2.0  # levels: pictures whose shrunk luma differs less than that look all the same
FLAT_HASH = 0
ODD = sum(1 << (63 - bit) for bit in range(64) if bit % LOW % 2 == 0)  # frequencies 1, 3, 5, 7 across
BANDS, BAND_BITS = 4, 16
CROWD = 2000  # pictures that agree in a band: what they have in common says nothing
LEAST_SECONDS = 1.0  # that two segments must have in common, or the whole of the shorter one
LEAST_SHARE = 0.75  # of the shorter one, or of one that several others show together
LEAST_PART = 0.25  # of the shorter one, where it is one of several
CHANGES = 20.0  # bits of 64: what changes elsewhere differs in 32
TOGETHER = 26.0  # bits of pictures and changes, where that is more: of small changes hashes are less certain


@cache
def _waves(low: float, high: float) -> np.ndarray:
    """[LOW,FINE]: rows 1 to LOW of the DCT-II of what lies between two shares of a side."""
    n, k = np.arange(SIDE) + 0.5, np.arange(1, LOW + 1)[:, None]
    return np.cos(math.pi * k * n / SIDE) @ _means(np.eye(FINE), SIDE, low, high)


def perceptual_hashes(luma: np.ndarray) -> list[int]:
    """Of each of the `WINDOWS` of luma [H,W], or of the difference of two; all `FLAT_HASH` of a picture that has
    nothing in it."""
    fine = _means(_means(luma.astype(np.float64), FINE).T, FINE).T
    small = _means(_means(fine, SIDE).T, SIDE)
    if small.max() - small.min() < FLAT:
        return [FLAT_HASH] * len(WINDOWS)
    return [_signs(_waves(top, bottom) @ fine @ _waves(left, right).T) for top, left, bottom, right in WINDOWS]


def _signs(low: np.ndarray) -> int:
    bits = np.rint(low.ravel() * 1e6) > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _means(rows: np.ndarray, parts: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """[N,M] -> [parts,M], means over equal parts of what lies between two shares of the rows, split where a part ends
    within one."""
    count = len(rows)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)])
    edges = np.linspace(low * count, high * count, parts + 1)
    whole = np.minimum(edges.astype(int), count - 1)
    at = sums[whole] + (edges - whole)[:, None] * rows[whole]
    return np.diff(at, axis=0) * parts / (count * (high - low))


def mirrored(value: int) -> int:
    """The hash of the mirrored picture: odd frequencies across change their sign."""
    return value ^ ODD if value != FLAT_HASH else value


@dataclass(frozen=True)
class Signature:
    """Of a segment. looks: hashes of each picture's windows, `HASHES_A_SECOND`. changes: of each, the hashes of how it
    differs from the one before; the first has none (`FLAT_HASH`). shot: a number of the shot that it is of."""

    looks: Sequence[Sequence[int]]
    changes: Sequence[Sequence[int]]
    shot: int

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [W,N] of both."""
        looks, changes = (np.array(part, np.uint64).reshape(len(part), -1).T for part in (self.looks, self.changes))
        return np.ascontiguousarray(looks), np.ascontiguousarray(changes)

    @cached_property
    def mirror_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Each window mirrored in its place."""
        looks, changes = self.arrays
        return _mirrored(looks), _mirrored(changes)


def same_as(
    segments: Sequence[Signature],
    distance: float,
    mirror: bool = False,
    possible: Callable[[int, int], bool] = lambda a, b: True,
) -> list[int]:
    """Of each segment the number of the one that shows the same and stays, the closest of several, which is its own
    where it stays itself.

    segments: those to keep before the others. Segments of one shot are not compared, for they follow each other. Two
    have something in common where they agree when one is moved along the other: the whole pictures, or those of one and
    a window of the other's. It must last `LEAST_SECONDS`, and `LEAST_SHARE` of the shorter one, or of one that several
    others show parts of. distance: bits of 64 in which the pictures' hashes differ on average there, at most. That
    alone would take two takes of one scene, before the same camera, for copies: where something changes, the changes'
    hashes may differ in `CHANGES` bits at most, or in what pictures leave of `TOGETHER`. possible: what else must hold
    of two, by their numbers, the one that stays first.
    """
    same = list(range(len(segments)))
    for b, candidates in groupby(_candidates(segments, mirror), key=lambda found: found[1]):
        closest, count = math.inf, len(segments[b].looks)
        parts: dict[int, tuple[float, int, int]] = {}  # of each a: how far apart, and which pictures of b it shows
        for a, _, shift, flipped, window, other_window in candidates:
            if same[a] == a and possible(a, b):
                one, other = segments[a].arrays, segments[b].mirror_arrays if flipped else segments[b].arrays
                ours, theirs = [part[window] for part in one], [part[other_window] for part in other]
                begin, end = max(0, -shift), min(count, len(ours[0]) - shift)
                apart = _apart(ours, theirs, shift, distance)
                if apart < parts.get(a, (math.inf,))[0]:
                    parts[a] = apart, begin, end
                if apart < closest and end - begin >= _least(len(ours[0]), count, LEAST_SHARE):
                    closest, same[b] = apart, a
        if same[b] == b and parts:
            shown = {n for _, begin, end in parts.values() for n in range(begin, end)}
            if len(shown) >= LEAST_SHARE * count:  # by several together: the copy was cut at other places
                same[b] = max(parts, key=lambda a: (parts[a][2] - parts[a][1], -a))
    return same


def _least(one: int, other: int, share: float) -> float:
    """How many pictures two segments of so many must have in common."""
    shorter = min(one, other)
    return min(shorter, max(LEAST_SECONDS * HASHES_A_SECOND, share * shorter))


def _apart(a: Sequence[np.ndarray], b: Sequence[np.ndarray], shift: int, distance: float) -> float:
    """Bits in which looks and changes differ where picture n of a stands beside picture n - shift of b; infinite where
    the two do not show the same. Each: looks, changes [N]."""
    count, other = len(a[0]), len(b[0])
    begin, end, shorter = max(0, shift), min(count, other + shift), min(count, other)
    if shorter == 1 and count != other:  # a picture that shows a moment of a clip takes nothing from it
        return math.inf
    if end - begin < _least(count, other, LEAST_PART):
        return math.inf
    looks, changes = ((x[begin:end], y[begin - shift : end - shift]) for x, y in zip(a, b, strict=True))
    seen = (looks[0] != FLAT_HASH) & (looks[1] != FLAT_HASH)
    if seen.sum() < 0.5 * len(seen):
        return math.inf
    look_apart = np.bitwise_count(looks[0] ^ looks[1])[seen].mean()
    if look_apart > distance:
        return math.inf
    one, two = (part[1:] != FLAT_HASH for part in changes)  # the first may be compared with what is in one of them only
    moves = one | two
    if not moves.any():
        return float(look_apart)
    apart = float(np.where(one & two, np.bitwise_count(changes[0] ^ changes[1])[1:], 32)[moves].mean())
    return float(look_apart) + apart if apart <= max(CHANGES, TOGETHER - look_apart) else math.inf


def _mirrored(hashes: np.ndarray) -> np.ndarray:
    return np.where(hashes == FLAT_HASH, hashes, hashes ^ np.uint64(ODD))


def _candidates(segments: Sequence[Signature], mirror: bool) -> Iterator[tuple[int, int, int, bool, int, int]]:
    """(a, b, shift, mirrored, a's window, b's window), a < b, b ascending: pairs of two shots of which hashes, of the
    whole of one and of any window of the other, agree in a band but for one bit (multi-index hashing, Norouzi, Punjani
    & Fleet 2012)."""
    lengths = np.array([len(each.looks) for each in segments])
    if not lengths.sum():
        return
    shots = np.array([each.shot for each in segments])
    value = np.concatenate([each.arrays[0].T for each in segments if len(each.looks)])  # [pictures,W]
    of = np.repeat(np.arange(len(segments)), lengths)
    at = np.concatenate([np.arange(n) for n in lengths])
    some = value[:, 0] != FLAT_HASH
    value, of, at = value[some], of[some], at[some]
    windows, most = value.shape[1], int(lengths.max())
    sizes = (len(segments), len(segments), 2 * most, 2, windows, windows)
    keys = []
    for flipped in (False, True) if mirror else (False,):
        asked = _mirrored(value[:, 0]) if flipped else value[:, 0]
        for theirs, mine in _alike(value, asked):
            picture, window = np.divmod(theirs, windows)
            first = of[picture] < of[mine]
            pairs = (shots[of[picture]] != shots[of[mine]]) & (first | ((window > 0) & (of[picture] > of[mine])))
            first, picture, mine, window = first[pairs], picture[pairs], mine[pairs], window[pairs]
            a, b = np.where(first, picture, mine), np.where(first, mine, picture)
            where = (of[b], of[a], at[a] - at[b] + most, np.full(len(a), int(flipped)))
            which = (np.where(first, window, 0), np.where(first, 0, window))
            keys.append(np.ravel_multi_index((*where, *which), sizes))
    found, votes = np.unique(np.concatenate(keys), return_counts=True)
    b, a, shift, flipped, window, other = np.unravel_index(found, sizes)
    for n in np.lexsort((other, window, flipped, shift, -votes, a, b)).tolist():
        yield int(a[n]), int(b[n]), int(shift[n]) - most, bool(flipped[n]), int(window[n]), int(other[n])


def _alike(value: np.ndarray, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of values, numbers of what is asked): those that agree in a band but for one bit."""
    value, crowd = value.ravel(), CROWD * value.shape[1]
    for band in range(BANDS):
        keys, questions = ((v >> np.uint64(BAND_BITS * band)) & np.uint64(0xFFFF) for v in (value, asked))
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        for flip in (0, *(1 << bit for bit in range(BAND_BITS))):
            wanted = questions ^ np.uint64(flip)
            low, high = (np.searchsorted(ranked, wanted, side) for side in ("left", "right"))
            counts = np.where(high - low > crowd, 0, high - low)
            mine = np.repeat(np.arange(len(wanted)), counts)
            places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield order[np.repeat(low, counts) + places], mine
