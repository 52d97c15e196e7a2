"""Perceptual hashes of pictures, and which segments show the same by them.

A hash is 64 bits: the signs of the low frequencies of a picture (Zauner 2010, "Implementation and benchmarking of
perceptual image hash functions", the DCT hash), as an unsigned whole number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

HASHES_A_SECOND = 2
SIDE, LOW = 32, 8  # a picture is shrunk to SIDE x SIDE; LOW x LOW frequencies of it count, without the mean's
FLAT = 2.0  # levels: pictures whose shrunk luma differs less than that look all the same
FLAT_HASH = 0
BANDS, BAND_BITS = 4, 16
CROWD = 2000  # hashes that agree in a band: what they have in common says nothing
LEAST_SECONDS = 1.0  # that two segments must have in common, or the whole of the shorter one
LEAST_SHARE = 0.75  # of the shorter one
CHANGES = 20.0  # bits of 64: what changes elsewhere differs in 32
TOGETHER = 26.0  # bits of pictures and changes, where that is more: of small changes hashes are less certain


@cache
def _cosines() -> np.ndarray:
    """[LOW,SIDE], rows 1 to LOW of the DCT-II."""
    n, k = np.arange(SIDE) + 0.5, np.arange(1, LOW + 1)[:, None]
    return np.cos(math.pi * k * n / SIDE)


def perceptual_hash(luma: np.ndarray) -> int:
    """Of luma [H,W], or of the difference of two; `FLAT_HASH` of a picture that has nothing in it."""
    small = _means(_means(luma.astype(np.float64)).T).T
    if small.max() - small.min() < FLAT:
        return FLAT_HASH
    low = (_cosines() @ small @ _cosines().T).ravel()
    bits = np.rint(low * 1e6) > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _means(rows: np.ndarray) -> np.ndarray:
    """[N,M] -> [SIDE,M], means over equal parts of the rows, split where a part ends within one."""
    count = len(rows)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(axis=0)])
    edges = np.linspace(0, count, SIDE + 1)
    whole = np.minimum(edges.astype(int), count - 1)
    at = sums[whole] + (edges - whole)[:, None] * rows[whole]
    return np.diff(at, axis=0) * SIDE / count


def mirrored(value: int) -> int:
    """The hash of the mirrored picture: odd frequencies across change their sign."""
    odd = sum(1 << (63 - bit) for bit in range(64) if bit % LOW % 2 == 0)  # frequencies 1, 3, 5, 7 across
    return value ^ odd if value != FLAT_HASH else value


@dataclass(frozen=True)
class Signature:
    """Of a segment. looks: hash of each picture, `HASHES_A_SECOND`. changes: of each, the hash of how it differs from
    the one before; the first has none (`FLAT_HASH`). shot: a number of the shot that it is of."""

    looks: Sequence[int]
    changes: Sequence[int]
    shot: int

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.looks, np.uint64), np.array(self.changes, np.uint64)

    @cached_property
    def mirror_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return _mirrored(self.looks), _mirrored(self.changes)


def same_as(segments: Sequence[Signature], distance: float, mirror: bool = False) -> list[int]:
    """Of each segment the number of the one that shows the same and stays, which is its own where it stays itself.

    segments: those to keep before the others. Segments of one shot are not compared, for they follow each other. Two
    have something in common where they agree when one is moved along the other; it must last `LEAST_SECONDS`, and
    `LEAST_SHARE` of the shorter one. distance: bits of 64 in which the pictures' hashes differ on average there, at
    most. That alone would take two takes of one scene, before the same camera, for copies: where something changes,
    the changes' hashes may differ in `CHANGES` bits at most, or in what pictures leave of `TOGETHER`.
    """
    same = list(range(len(segments)))
    for a, b, shift, flipped in _candidates(segments, mirror):
        if same[a] == a and same[b] == b:
            other = segments[b].mirror_arrays if flipped else segments[b].arrays
            if _agree(segments[a].arrays, other, shift, distance):
                same[b] = a
    return same


def _agree(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], shift: int, distance: float) -> bool:
    """Whether two show the same where picture n of a stands beside picture n - shift of b."""
    count, other = len(a[0]), len(b[0])
    begin, end, shorter = max(0, shift), min(count, other + shift), min(count, other)
    if shorter == 1 and count != other:  # a picture that shows a moment of a clip takes nothing from it
        return False
    if end - begin < min(shorter, max(LEAST_SECONDS * HASHES_A_SECOND, LEAST_SHARE * shorter)):
        return False
    looks, changes = ((x[begin:end], y[begin - shift : end - shift]) for x, y in zip(a, b, strict=True))
    seen = (looks[0] != FLAT_HASH) & (looks[1] != FLAT_HASH)
    if seen.sum() < 0.5 * len(seen):
        return False
    look_apart = np.bitwise_count(looks[0] ^ looks[1])[seen].mean()
    if look_apart > distance:
        return False
    one, two = (part[1:] != FLAT_HASH for part in changes)  # the first may be compared with what is in one of them only
    moves = one | two
    if not moves.any():
        return True
    apart = np.where(one & two, np.bitwise_count(changes[0] ^ changes[1])[1:], 32)
    return bool(apart[moves].mean() <= max(CHANGES, TOGETHER - look_apart))


def _mirrored(hashes: Sequence[int]) -> np.ndarray:
    return np.array([mirrored(int(value)) for value in hashes], np.uint64)


def _candidates(segments: Sequence[Signature], mirror: bool) -> list[tuple[int, int, int, bool]]:
    """(a, b, shift, mirrored), a < b, b ascending: pairs of two shots of which hashes agree in a band but for one bit
    (multi-index hashing, Norouzi, Punjani & Fleet 2012)."""
    lengths = np.array([len(each.looks) for each in segments])
    if not lengths.sum():
        return []
    shots = np.array([each.shot for each in segments])
    value = np.concatenate([each.arrays[0] for each in segments])
    of = np.repeat(np.arange(len(segments)), lengths)
    at = np.concatenate([np.arange(n) for n in lengths])
    some = value != FLAT_HASH
    value, of, at = value[some], of[some], at[some]
    votes: Counter[tuple[int, int, int, bool]] = Counter()
    for flipped in (False, True) if mirror else (False,):
        asked = _mirrored(value) if flipped else value
        for band in range(BANDS):
            keys, questions = ((v >> np.uint64(BAND_BITS * band)) & np.uint64(0xFFFF) for v in (value, asked))
            order = np.argsort(keys, kind="stable")
            ranked = keys[order]
            for flip in (0, *(1 << bit for bit in range(BAND_BITS))):
                wanted = questions ^ np.uint64(flip)
                low, high = (np.searchsorted(ranked, wanted, side) for side in ("left", "right"))
                counts = np.where(high - low > CROWD, 0, high - low)
                mine = np.repeat(np.arange(len(wanted)), counts)
                places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                theirs = order[np.repeat(low, counts) + places]
                pairs = (of[theirs] < of[mine]) & (shots[of[theirs]] != shots[of[mine]])  # a is asked for by b
                a, b = theirs[pairs], mine[pairs]
                shift = at[a] - at[b]
                found, times = np.unique(np.stack([of[a], of[b], shift]), axis=1, return_counts=True)
                for column, count in zip(found.T.tolist(), times.tolist(), strict=True):
                    votes[(*column, flipped)] += count
    return sorted(votes, key=lambda pair: (pair[1], pair[0], -votes[pair], pair[2], pair[3]))
