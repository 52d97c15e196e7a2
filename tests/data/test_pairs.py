"""Tables of pairs: which pairs are used, why others are not, and that both clips of a pair stay together."""

import pickle

import pytest
import torch
from clip_sources import PLAIN, cut_short
from pair_tables import make_clip, write_pairs, write_rows

from latentvid.data.manifest.manifest import ManifestError
from latentvid.data.pairs import open_pairs
from latentvid.data.plan.plan import Draw
from latentvid.data.quarantine import Quarantine
from latentvid.errors import UserError


def doubled(*draws: Draw) -> list[Draw]:
    return [draw for draw in draws for _ in range(2)]


def test_pairs_that_cannot_be_used_are_left_out_by_reason(tmp_path):
    good, other = make_clip(tmp_path / "good", (9, 32, 32), 0), make_clip(tmp_path / "other", (9, 32, 32), 1)
    longer, wide = make_clip(tmp_path / "longer", (13, 32, 32), 2), make_clip(tmp_path / "wide", (9, 32, 40), 3)
    quick, small = make_clip(tmp_path / "quick", (9, 32, 32), 4, fps=12), make_clip(tmp_path / "small", (9, 4, 4), 5)
    told = {"frames": 9, "fps": 8.0, "height": 32, "width": 32}
    pairs = [(good, other), (good, good), (good, longer), (good, wide), (good, quick), (good, small), (small, good),
             (good, "gone.mp4"), ("gone.mp4", good), (good, "")]  # fmt: skip
    rows = [{"path": str(a), "rejected": str(b), "caption": "x", **told} for a, b in pairs]
    rows[6] |= {"height": 4, "width": 4}  # what the table tells is of the preferred clip
    rows.append({"path": str(good), "rejected": str(other), "caption": ""})
    source = open_pairs([write_rows(tmp_path / "pairs.jsonl", rows)], PLAIN, rejected="rejected")
    assert len(source) == len(source.rejected) == 1
    found = sorted(reason for _, reason in source.dropped)
    assert found == sorted(
        ["pair-of-one-clip", "pair-differs-in-length", "pair-differs-in-size", "pair-differs-in-rate",
         "rejected-smaller-than-one-stride", "smaller-than-one-stride", "rejected-missing", "missing",
         "rejected-bad-row", "empty-caption"]
    )  # fmt: skip
    assert source.path(0) == str(good) and source.rejected.path(0) == str(other)
    assert "dropped 1 (pair-differs-in-rate)" in source.summary() and "pair" in source.summary().splitlines()[-1]


def test_a_table_of_which_no_pair_is_left_says_why(tmp_path):
    clip = make_clip(tmp_path / "clip", (9, 32, 32), 0)
    table = write_rows(tmp_path / "pairs.jsonl", [{"path": clip.name, "rejected": clip.name, "caption": "x"}])
    with pytest.raises(UserError, match=r"no pair that can be used(.|\n)*pair-of-one-clip"):
        open_pairs([table], PLAIN, rejected="rejected")
    with pytest.raises(ManifestError, match="has no column `worse`"):
        open_pairs([table], PLAIN, rejected="worse")


def test_windows_of_a_pair_go_together(tmp_path):
    """Long clips are cut alike, of several tables, and a loader's copy gives the same."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    tables = [write_pairs(tmp_path / "a", [(41, 32, 32), (9, 32, 32)]), write_pairs(tmp_path / "b", [(17, 24, 32)])]
    source = open_pairs(tables, PLAIN, rejected="rejected")
    assert len(source) == 2 + 1 + 1 and source.source_of.tolist() == [0, 0, 0, 1]
    draws = [Draw(10 + i, i) for i in range(len(source))]
    clips = list(source.load_each(doubled(*draws), seed=4))
    copy = pickle.loads(pickle.dumps(source))
    for i, draw in enumerate(draws):
        one, other = clips[2 * i : 2 * i + 2]
        assert torch.equal(one.pixels, source.load(draw.index, 4, draw.number).pixels)
        assert torch.equal(other.pixels, source.rejected.load(draw.index, 4, draw.number).pixels)
        assert one.caption == other.caption and one.index == other.index == i and not one.replaced
        for a, b in zip(copy.load_pair(draw.index, 4, draw.number), (one, other), strict=True):
            assert torch.equal(a.pixels, b.pixels)
    with pytest.raises(ValueError, match="must stand there twice"):
        list(source.load_each(draws, seed=4))


@pytest.mark.parametrize("broken", ["preferred-1", "rejected-1"])
def test_a_clip_that_cannot_be_read_takes_its_whole_pair_with_it(broken, tmp_path):
    source = open_pairs([write_pairs(tmp_path, [(9, 32, 32)] * 4)], PLAIN, rejected="rejected")
    source.quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    cut_short(tmp_path / f"{broken}.mp4")
    one, other = source.load_each(doubled(Draw(0, 1)), seed=0)
    assert one.index == other.index == 2 and one.replaced and other.replaced
    assert torch.equal(one.pixels, source.load(2, 0, 0).pixels)
    assert torch.equal(other.pixels, source.rejected.load(2, 0, 0).pixels)
    assert one.caption == other.caption == source.caption(2)
    assert broken in (tmp_path / "quarantine.jsonl").read_text()


def test_pairs_of_which_none_can_be_read_whole_are_refused(tmp_path):
    source = open_pairs([write_pairs(tmp_path, [(9, 32, 32)] * 2)], PLAIN, rejected="rejected")
    for name in ("preferred-0", "rejected-1"):
        cut_short(tmp_path / f"{name}.mp4")
    with pytest.raises(UserError, match="no pair of shape"):
        source.load_pair(0, 0, 0)


def test_which_data_they_are_says_the_other_clips_too(tmp_path):
    table = write_pairs(tmp_path, [(9, 32, 32)] * 2)
    before = open_pairs([table], PLAIN, rejected="rejected").identity()
    table.write_text(table.read_text().replace("rejected-1", "rejected-x"))
    (tmp_path / "rejected-1.mp4").rename(tmp_path / "rejected-x.mp4")
    after = open_pairs([table], PLAIN, rejected="rejected").identity()
    assert before["prints"]["names"] == after["prints"]["names"] and before["samples"] == after["samples"] == 2
    assert before["prints"]["rejected"] != after["prints"]["rejected"]
