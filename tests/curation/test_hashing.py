"""Perceptual hashes, and which segments show the same: against looking at all pairs; what must not be taken away."""

import numpy as np
import pytest
from curated_footage import shot

from latentvid.curation.hashing import (
    FLAT_HASH,
    SIDE,
    WINDOWS,
    Signature,
    _means,
    mirrored,
    perceptual_hashes,
    same_as,
)

DRAW = np.random.default_rng(0)


def picture(seed: int) -> np.ndarray:
    return shot(seed, 1)[0].mean(-1).astype(np.uint8)


def perceptual_hash(luma: np.ndarray) -> int:
    return perceptual_hashes(luma)[0]


def bits(a: int, b: int) -> int:
    return bin(a ^ b).count("1")


def hashes(count: int) -> list[int]:
    return [int(value) for value in DRAW.integers(1, 2**64, count, dtype=np.uint64)]


def near(values: list[int], flips: int) -> list[int]:
    """With so many bits of each changed."""
    return [value ^ sum(1 << int(b) for b in DRAW.choice(64, flips, replace=False)) for value in values]


def same(looks: list[list[int]], shots, distance: float, mirror: bool = False) -> list[int]:
    """`same_as` of segments in which nothing changes that could be compared."""
    signatures = [signature(each, [FLAT_HASH] * len(each), shot) for each, shot in zip(looks, shots, strict=True)]
    return same_as(signatures, distance, mirror)


def signature(looks: list[int], changes: list[int], shot: int) -> Signature:
    """Of whole pictures alone."""
    return Signature([[each] for each in looks], [[each] for each in changes], shot)


def test_a_hash_is_the_signs_of_the_low_frequencies():
    luma = picture(1).astype(float)
    small = np.array([[luma_block(luma, y, x) for x in range(SIDE)] for y in range(SIDE)])
    n, want = np.arange(SIDE) + 0.5, 0
    for v in range(1, 9):
        for h in range(1, 9):
            wave = np.outer(np.cos(np.pi * v * n / SIDE), np.cos(np.pi * h * n / SIDE))
            want = want << 1 | int((small * wave).sum() > 5e-7)
    assert perceptual_hash(picture(1)) == want


def luma_block(luma: np.ndarray, y: int, x: int) -> float:
    """The mean of a part of the picture, whose edges may lie within pixels."""
    weights = []
    for part, count in ((y, luma.shape[0]), (x, luma.shape[1])):
        low, high = part * count / SIDE, (part + 1) * count / SIDE
        weights.append(np.array([max(0.0, min(high, k + 1) - max(low, k)) for k in range(count)]))
    return float(weights[0] @ luma @ weights[1] / (weights[0].sum() * weights[1].sum()))


def test_hashes_bear_what_copies_go_through_and_tell_pictures_apart():
    found = [perceptual_hash(picture(seed)) for seed in range(8)]
    for seed, value in enumerate(found):
        large = picture(seed)
        assert bits(value, perceptual_hash(large[::2, ::2])) <= 6
        noisy = np.clip(large * 0.9 + DRAW.normal(0, 4, large.shape) + 10, 0, 255).astype(np.uint8)
        assert bits(value, perceptual_hash(noisy)) <= 4
        assert bits(mirrored(value), perceptual_hash(large[:, ::-1])) <= 1 and mirrored(mirrored(value)) == value
    assert min(bits(a, b) for n, a in enumerate(found) for b in found[:n]) > 16
    assert perceptual_hash(np.full((40, 60), 17, np.uint8)) == FLAT_HASH == mirrored(FLAT_HASH)


def test_means_of_parts_add_up():
    rows = DRAW.uniform(0, 9, (45, 3))
    assert _means(rows, SIDE).mean(0) == pytest.approx(rows.mean(0))
    assert _means(np.repeat(rows[:SIDE], 2, axis=0), SIDE) == pytest.approx(rows[:SIDE])
    assert _means(rows, 4, 0.2, 0.6) == pytest.approx(_means(rows[9:27], 4))


def test_a_window_has_the_hash_of_the_picture_cut_to_it():
    for seed in range(4):
        luma = shot(seed, 1, height=160, width=240)[0].mean(-1)
        found = perceptual_hashes(luma)
        for value, (top, left, bottom, right) in zip(found, WINDOWS, strict=True):
            part = luma[round(160 * top) : round(160 * bottom), round(240 * left) : round(240 * right)]
            assert bits(value, perceptual_hash(part)) <= 2


def test_a_copy_that_is_cut_is_found_whichever_of_the_two_stays():
    """By windows: the whole of it is as far from the whole of the original as other pictures are."""
    whole, cut = ([hashes(7) for _ in range(8)] for _ in range(2))
    still = [[FLAT_HASH] * 7] * 8
    for window in range(1, 7):
        copy = [[before[window] ^ 1, *after[1:]] for before, after in zip(whole, cut, strict=True)]
        one, other = Signature(whole, still, 0), Signature(copy, still, 1)
        assert same_as([one, other], 4.0) == same_as([other, one], 4.0) == [0, 0]
        flipped = Signature([[mirrored(value) for value in each] for each in copy], still, 1)
        assert same_as([one, flipped], 4.0) == [0, 1]
        assert same_as([one, flipped], 4.0, mirror=True) == same_as([flipped, one], 4.0, mirror=True) == [0, 0]
    part = [
        [before[1], *after[1:]] for before, after in zip(cut, whole, strict=True)
    ]  # windows of both are not compared
    assert same_as([Signature(part, still, 0), Signature(cut, still, 1)], 4.0) == [0, 0]
    between = [[one[0], *other[1:]] for one, other in zip(cut, whole, strict=True)]
    assert same_as([Signature(between, still, 0), Signature(whole, still, 1)], 4.0) == [0, 1]


def test_copies_are_found_moved_along_and_mirrored():
    one, other, third = hashes(12), hashes(12), hashes(12)
    later = near(one[4:], 3) + hashes(2)  # begins two seconds later, and goes on after it
    flipped = [mirrored(value) for value in near(other, 4)]
    segments = [one, other, third, later, flipped]
    assert same(segments, range(5), 8.0) == [0, 1, 2, 0, 4]
    assert same(segments, range(5), 8.0, mirror=True) == [0, 1, 2, 0, 1]
    assert same(segments, range(5), 2.0) == [0, 1, 2, 3, 4]


def test_what_two_have_in_common_must_last():
    one, other = hashes(12), hashes(12)
    assert same([one, near(one[9:], 2) + hashes(9)], [0, 1], 8.0) == [0, 1]  # three of twelve
    assert same([one, one[9:]], [0, 1], 8.0) == [0, 0]  # a short one, whole
    assert same([one, one[5:6]], [0, 1], 8.0) == [0, 1]  # a picture of a moment
    assert same([one[5:6], one], [0, 1], 8.0) == [0, 1]
    assert same([one[5:6], near(one[5:6], 5)], [0, 1], 8.0) == [0, 0]  # two pictures
    assert same([one, other, near(one[6:] + other[:6], 2)], [0, 0, 1], 8.0) == [0, 1, 0]  # a half of each
    assert same([one, near(one[6:], 2) + hashes(6)], [0, 1], 8.0) == [0, 1]  # a half that nobody else shows
    flat = [FLAT_HASH] * 12
    assert same([flat, flat], [0, 1], 8.0) == [0, 1]  # black frames are no copies
    assert same([[], one, []], [0, 1, 2], 8.0) == [0, 1, 2]


def test_segments_of_a_shot_are_kept_and_copies_of_both_go():
    still = hashes(1) * 12  # a shot in which nothing moves, cut in two
    segments = [still, still, near(still, 2), near(still, 2)]
    assert same(segments, [0, 0, 1, 1], 8.0)[:2] == [0, 1]
    assert all(first in (0, 1) for first in same(segments, [0, 0, 1, 1], 8.0))


def test_only_what_shows_the_same_as_one_that_stays_goes():
    one = hashes(10)
    middle = [value ^ 0b111111 for value in one]
    far = [value ^ 0b111111 << 30 for value in middle]
    assert same([one, middle, far], [0, 1, 2], 7.0) == [0, 0, 2]  # the middle one would have been far's original
    assert same([middle, one, far], [0, 1, 2], 7.0) == [0, 0, 0]


def test_the_index_finds_what_looking_at_all_pairs_finds():
    segments = [hashes(8) for _ in range(60)]
    copies = [near(segments[n], 1 + n % 7) for n in range(0, 60, 3)]
    every = [*segments, *copies]
    want = list(range(len(every)))
    for b in range(len(every)):
        for a in range(b):
            alike = np.mean([bits(x, y) for x, y in zip(every[a], every[b], strict=True)]) <= 7.0
            if alike and want[a] == a and want[b] == b:
                want[b] = a
    assert same(every, range(len(every)), 7.0) == want and len({*want}) == 60


def test_two_takes_of_a_scene_are_no_copies_of_each_other():
    looks, changes = hashes(10), [FLAT_HASH, *hashes(9)]

    def kept(other_looks: list[int], other_changes: list[int], mirror: bool = False) -> list[int]:
        return same_as([signature(looks, changes, 0), signature(other_looks, other_changes, 1)], 8.0, mirror)

    again = near(looks, 3)
    assert kept(again, [FLAT_HASH, *near(changes[1:], 12)]) == [0, 0]
    assert kept(again, [FLAT_HASH, *hashes(9)]) == [0, 1]
    assert kept(again, [FLAT_HASH] * 10) == [0, 1]  # one that stands still
    assert kept(again[2:], [FLAT_HASH, *near(changes[3:], 12)]) == [0, 0]  # from its second picture on
    flipped = [[mirrored(value) for value in part] for part in (again, changes)]
    assert kept(*flipped) == [0, 1] and kept(*flipped, mirror=True) == [0, 0]
    still = [signature(part, [FLAT_HASH] * 10, n) for n, part in enumerate((looks, again))]
    assert same_as(still, 8.0) == [0, 0]
