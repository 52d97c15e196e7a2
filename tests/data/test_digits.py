"""The demo data: labels, captions, hold-outs and files."""

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from latentvid.data.video.reading import read_frames
from latentvid.demo import digits as dg
from latentvid.errors import UserError

TRAIN, VAL = 60, 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    dg.write_dataset(root, train=TRAIN, val=VAL, seed=3)
    return root


def rows(root: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()]


def label_of(row: dict) -> dg.Label:
    return dg.Label(row["digit"], row["colour"], row["verb"], row["direction"])


def facts_in(label: dg.Label, text: str) -> bool:
    words = text.replace(",", "").split()
    named = label.colour in words and len({str(label.digit), dg.WORDS[label.digit]} & set(words)) == 1
    others = set(dg.COLOURS) - {label.colour} | {str(d) for d in range(10) if d != label.digit}
    stems = {"up": "up", "upwards": "up", "down": "down", "downwards": "down", "left": "left", "right": "right"}
    told = {stems[word] for word in words if word in stems}
    verbs = {"moves": {"moves", "moving"}, "bounces": {"bounces", "bouncing"}}
    shown = {verb for verb, forms in verbs.items() if forms & set(words)}
    wanted = ({label.verb}, set(label.direction.split())) if label.verb else (set(), set())
    return named and not others & set(words) and (shown, told) == wanted and text == text.lower()


def test_captions_always_contain_the_facts_and_vary():
    rng = np.random.default_rng(0)
    for digit, colour, verb, direction in itertools.product(range(10), dg.COLOURS, dg.VERBS, dg.DIRECTIONS):
        label = dg.Label(digit, colour, verb, direction)
        assert facts_in(label, text := dg.caption(label, rng)), text
        assert facts_in(still := dg.Label(digit, colour), text := dg.caption(still, rng)), text
    for label in (dg.Label(7, "red", "bounces", "up left"), dg.Label(7, "red")):
        assert len({dg.caption(label, rng) for _ in range(300)}) >= 12


class Picks:
    """In place of a random generator: takes these, one after another."""

    def __init__(self, picks: tuple[int, ...]) -> None:
        self.picks = iter(picks)

    def integers(self, count: int) -> int:
        return next(self.picks) % count


def test_reading_a_caption_is_the_inverse_of_writing_it_over_all_captions():
    moves = itertools.product(range(10), dg.COLOURS, dg.VERBS, dg.DIRECTIONS)
    labels = [dg.Label(*each) for each in (*moves, *itertools.product(range(10), dg.COLOURS))]
    ways = list(itertools.product(range(2), range(len(dg.CLIP_CAPTIONS)), range(len(dg.DIAGONAL_WORDS))))
    written = {dg.caption(label, Picks(picks)): label for label in labels for picks in ways}
    assert len(written) == 10 * 7 * 2 * (2 * 10 * (4 * 2 + 4 * 4) + 8)
    assert all(dg.read_caption(text) == label for text, label in written.items())


@pytest.mark.parametrize("text", ["", "a dog", "a red 3 moves", "a red 13", "A red 3", "a red 3 moves up ", "a pink 3"])
def test_other_texts_are_no_captions(text: str):
    with pytest.raises(UserError, match="no caption of the demo"):
        dg.read_caption(text)


def test_every_caption_in_the_manifests_fits_its_row(root: Path):
    for split in ("train", "val", "val_pairs"):
        for row in rows(root, split):
            assert facts_in(label_of(row), row["caption"]), row


def test_held_out_pairs_are_one_a_digit_and_never_train(root: Path):
    assert sorted(digit for digit, _ in dg.HELD_OUT_PAIRS) == list(range(10))
    withheld = Counter(direction for _, direction in dg.HELD_OUT_PAIRS)
    assert max(withheld.values()) <= 2  # every direction is seen with most digits
    assert len(dg.SEEN_PAIRS) == 70
    for split, held in (("train", False), ("val", False), ("val_pairs", True)):
        pairs = [(row["digit"], row["direction"]) for row in rows(root, split) if row["direction"]]
        assert pairs and all((pair in dg.HELD_OUT_PAIRS) == held for pair in pairs)


def test_held_out_images_are_a_fifth_of_each_class_and_never_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (seen, seen_digits), (held, held_digits) = dg.glyphs(False), dg.glyphs(True)
    assert len(seen) + len(held) == 1797
    for digit in range(10):
        assert 0.18 < int((held_digits == digit).sum()) / int((seen_digits == digit).sum() * 1.25) < 0.21
    apart = torch.cdist(held.flatten(1), seen.flatten(1)).min()
    assert apart > 0.1  # no image twice
    asked = []
    monkeypatch.setattr(dg, "glyphs", lambda heldout, scale, real=dg.glyphs: asked.append(heldout) or real(heldout))
    dg.write_dataset(tmp_path, train=6, val=4, seed=0)
    assert asked == [True] * 6 + [False] * 6


def test_larger_digits_are_the_same_with_edges_as_steep():
    small, large = dg.glyphs(True)[0][:20], dg.glyphs(True, 2)[0][:20]
    assert large.shape[1:] == (32, 32)
    assert (nnf.avg_pool2d(large, 2) - small).abs().mean() < 0.12
    steps = [each.diff(dim=-1).abs().amax() for each in (small, large)]
    assert 0.8 < float(steps[1] / steps[0]) < 1.8  # of the same image enlarged it would be a half
    label = dg.Label(3, "red", "moves", "up")
    words = {"heldout": True, "scale": 2}
    clip = dg.render(label, 5, (48, 64), np.random.default_rng(1), **words)
    assert clip.shape == (5, 48, 64, 3) and clip.max() > 200
    with pytest.raises(ValueError, match="digits need 48x48 pixels"):
        dg.render(label, 5, (24, 64), np.random.default_rng(1), **words)


def test_same_seed_same_bytes_other_seed_other_data(root: Path, tmp_path: Path):
    dg.write_dataset(tmp_path / "again", train=TRAIN, val=VAL, seed=3)
    for row in rows(root, "train")[:12] + rows(root, "val")[:4]:
        assert torch.equal(read_frames(root / row["path"]), read_frames(tmp_path / "again" / row["path"])), row

    def digest(folder: Path) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jsonl"))]

    assert digest(root) == digest(tmp_path / "again")
    dg.write_dataset(tmp_path / "other", train=6, val=VAL, seed=4)
    assert rows(root, "val") != rows(tmp_path / "other", "val")


def test_a_larger_set_begins_with_the_smaller_one(root: Path, tmp_path: Path):
    dg.write_dataset(tmp_path, train=6, val=VAL, seed=3)
    assert rows(root, "train")[:6] == rows(tmp_path, "train")
    assert rows(root, "val") == rows(tmp_path, "val")


def test_shapes_are_mixed(root: Path):
    train = rows(root, "train")
    assert Counter(row["frames"] for row in train) == {1: 15, 9: 18, 17: 27}
    assert Counter((row["height"], row["width"]) for row in train) == dict.fromkeys(dg.SIZES, 20)
    assert len({row["height"] / row["width"] for row in train}) >= 3
    assert Counter(row["frames"] for row in rows(root, "val")) == {9: 6, 17: 14}
    assert len(rows(root, "val_pairs")) == VAL // 2


def test_files_are_h264_and_png_of_the_stated_shape(root: Path):
    for row in rows(root, "train")[:20] + rows(root, "val_pairs")[:3]:
        path = root / row["path"]
        assert read_frames(path).shape == (row["frames"], row["height"], row["width"], 3)
        assert path.suffix == (".png" if row["frames"] == 1 else ".mp4")
        assert (row["verb"] is None) == (row["frames"] == 1)
        if row["frames"] > 1:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
                assert float(stream.average_rate) == row["fps"] == 8


@pytest.mark.parametrize("size", dg.SIZES)
@pytest.mark.parametrize("frames", [9, 17])
def test_motion_keeps_its_promises(size: tuple[int, int], frames: int):
    images, found = dg.glyphs(False)
    for seed, (label, _) in enumerate(dg.prompts(140, heldout=False, seed=1)):
        glyph = images[found == label.digit][seed % 30]
        low, high = free = dg.free_range(glyph, size)
        path = dg.trajectory(label, frames, free, np.random.default_rng(seed))
        sense = torch.tensor(dg.DIRECTIONS[label.direction])
        assert (path >= low - 1e-3).all() and (path <= high + 1e-3).all()  # the ink stays whole
        steps = path.diff(dim=0)
        first = steps[: (frames - 1) // 2]
        assert torch.equal(first.sign() * (first.abs() > 1e-4), sense.float().expand_as(first)), label
        assert torch.allclose(first, first[:1].expand_as(first), atol=1e-3)  # constant speed
        turned = ((steps * sense) < -1e-4).any(dim=1)
        if label.verb == "moves":
            assert not turned.any() and (path > low + 0.4).all() and (path < high - 0.4).all(), label
        else:
            start = int(turned.nonzero()[0]) / (frames - 1)  # of the first step that goes back
            assert 0.55 - 1 / (frames - 1) <= start <= 0.75 + 1e-6, label


def test_paint_shifts_by_fractions_of_a_pixel():
    glyph = dg.glyphs(False)[0][0]
    whole, next_, between = dg.paint(glyph, torch.tensor([[3.0, 5.0], [3.0, 6.0], [3.0, 5.25]]), (32, 48))
    assert torch.equal(whole[3:19, 5:21], glyph) and torch.equal(next_[3:19, 6:22], glyph)
    assert torch.allclose(between, 0.75 * whole + 0.25 * next_, atol=1e-6)


def test_prompts_are_balanced():
    seen = [label for label, _ in dg.prompts(280, heldout=False, seed=0)]
    held = [label for label, _ in dg.prompts(140, heldout=True, seed=0)]
    assert {(label.digit, label.direction) for label in held} == dg.HELD_OUT_PAIRS
    assert Counter((label.digit, label.direction) for label in seen) == dict.fromkeys(dg.SEEN_PAIRS, 4)
    for labels in (seen, held):
        share = len(labels) // 14
        assert Counter((x.colour, x.verb) for x in labels) == dict.fromkeys(
            itertools.product(dg.COLOURS, dg.VERBS), share
        )
    assert all(facts_in(label, text) for label, text in dg.prompts(50, heldout=True, seed=5))
    assert dg.prompts(5, heldout=False, seed=0) == dg.prompts(5, heldout=False, seed=0)
    assert dg.prompts(5, heldout=False, seed=0) != dg.prompts(5, heldout=False, seed=1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [((10, "red"), "digit 10"), ((1, "pink"), "colour 'pink'"), ((1, "red", "moves"), "give both"),
     ((1, "red", "hops", "up"), "verb 'hops'"), ((1, "red", "moves", "north"), "direction 'north'")],
)  # fmt: skip
def test_wrong_labels_are_named(fields: tuple, named: str):
    with pytest.raises(ValueError, match=named):
        dg.Label(*fields)


@pytest.mark.parametrize(("frames", "size"), [(17, (16, 32)), (3, (32, 32))])
def test_clips_that_could_not_show_a_motion_are_refused(frames: int, size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"{frames} frames of {size[0]}x{size[1]}"):
        dg.render(dg.Label(1, "red", "moves", "up"), frames, size, np.random.default_rng(0), heldout=False)


def test_too_small_a_set_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1 training"):
        dg.write_dataset(tmp_path, train=0)
    assert not list(tmp_path.iterdir())
