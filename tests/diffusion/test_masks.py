"""Which frames are given: the shares that were asked for, and what each kind gives."""

import pytest
import torch

from latentvid.diffusion.masks import GivenFrames, box

KINDS = ("plain", "first", "prefix", "ends", "random", "independent", "inpaint", "outpaint")


def only(kind: str) -> GivenFrames:
    return GivenFrames(**{name: float(name == kind) for name in KINDS})


def draws(given: GivenFrames, frames: int, count: int = 300) -> list[tuple[list[bool], bool]]:
    rand = torch.Generator().manual_seed(0)
    found = [given.draw(rand, frames) for _ in range(count)]
    return [(mask.tolist(), own) for mask, own in found]


def test_kinds_give_what_their_names_say():
    frames = 5
    assert all(not any(mask) and not own for mask, own in draws(only("plain"), frames))
    assert all(mask == [True, False, False, False, False] and not own for mask, own in draws(only("first"), frames))
    assert all(mask == [True, False, False, False, True] and not own for mask, own in draws(only("ends"), frames))
    assert all(not any(mask) and own for mask, own in draws(only("independent"), frames))
    prefixes = {sum(mask) for mask, _ in draws(only("prefix"), frames) if mask == sorted(mask, reverse=True)}
    assert prefixes == {1, 2, 3, 4} and all(
        mask == sorted(mask, reverse=True) and not own for mask, own in draws(only("prefix"), frames)
    )
    random = draws(only("random"), frames)
    assert {sum(mask) for mask, _ in random} == {1, 2, 3, 4} and not any(own for _, own in random)
    assert len({tuple(mask) for mask, _ in random}) == 2**frames - 2


@pytest.mark.parametrize("kind", ["prefix", "random"])
def test_the_number_of_given_frames_is_uniform(kind):
    counts = torch.tensor([sum(mask) for mask, _ in draws(only(kind), 5, 1500)]).bincount()[1:] / 1500
    assert (counts - 0.25).abs().max() < 0.04


def test_shares_in_any_unit():
    given = GivenFrames(plain=4, first=2, ends=1, independent=1)
    assert given.names == ("plain", "first", "ends", "independent")
    found = draws(given, 4, 1500)
    masks = [mask for mask, own in found if not own]
    shares = [masks.count([False] * 4), masks.count([True] + [False] * 3), masks.count([True, False, False, True])]
    shares.append(sum(own for _, own in found))
    assert (torch.tensor(shares) / 1500 - torch.tensor([0.5, 0.25, 0.125, 0.125])).abs().max() < 0.04


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2])
def test_short_clips_always_have_something_to_learn(kind, frames):
    for mask, own in draws(only(kind), frames, 30):
        assert not all(mask) and len(mask) == frames
        if frames == 1:
            assert not own
        elif kind in ("first", "prefix", "ends"):
            assert mask == [True, False]


def test_impossible_shares_are_named():
    with pytest.raises(ValueError, match="must be at least 0, and one of them above"):
        GivenFrames(plain=0.0)
    with pytest.raises(ValueError, match="given.first=-0.5: must be a finite number from 0"):
        GivenFrames(first=-0.5)


def test_parts_of_frames():
    """Rectangles of a quarter of the sides and more, at rest or moving; pictures have them too."""
    rand = torch.Generator().manual_seed(0)
    sizes, moves = set(), []
    for _ in range(200):
        inside = box(rand, (3, 8, 5))
        rows, columns = inside.any(2), inside.any(1)  # [f,h] and [f,w]
        assert torch.equal(inside, rows[:, :, None] & columns[:, None])
        for line in (*rows, *columns):
            (at,) = line.nonzero(as_tuple=True)
            assert torch.equal(at, torch.arange(int(at[0]), int(at[-1]) + 1))
        assert len(rows.sum(1).unique()) == len(columns.sum(1).unique()) == 1
        sizes.add((int(rows[0].sum()), int(columns[0].sum())))
        moves.append(not torch.equal(inside[0], inside[-1]))
    assert sizes == {(h, w) for h in range(2, 9) for w in range(2, 6)} and 0.2 < sum(moves) / 200 < 0.5
    for grid in ((3, 4, 4), (1, 4, 4)):
        shares = []
        for kind in ("inpaint", "outpaint"):
            found = [only(kind).known(torch.Generator().manual_seed(i), grid) for i in range(40)]
            assert all(each.shape == grid and not each.all() for each in found) and any(each.any() for each in found)
            shares.append(found)
        assert sum(torch.equal(a, ~b) for a, b in zip(*shares, strict=True)) > 20  # of the same rectangles


def test_what_is_known_of_a_latent_is_what_is_drawn_of_its_frames():
    given = GivenFrames(plain=1, first=1, prefix=1, ends=1, random=1, independent=1)
    for i in range(60):
        frames, _ = given.draw(torch.Generator().manual_seed(i), 5)
        known = given.known(torch.Generator().manual_seed(i), (5, 2, 3))
        assert torch.equal(known, frames[:, None, None].expand(5, 2, 3))
