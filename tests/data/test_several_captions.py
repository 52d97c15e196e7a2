"""Several captions of a clip: a list in its manifest's row, of which each draw is shown one, by its number."""

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import torch

from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Columns, read_manifest, write_manifest
from latentvid.data.manifest.tables import ManifestError
from latentvid.data.plan.step import Draw
from latentvid.data.video.writing import write_video
from latentvid.rng import generator

PLAIN = Transform(spatial_stride=8, temporal_stride=4)
SEVERAL = ["a dog\n runs", "ein Hund", "a dog runs on a beach"]


@pytest.fixture
def folder(tmp_path):
    for name in "abcde":
        write_video(tmp_path / f"{name}.mp4", torch.full((5, 16, 24, 3), 90, dtype=torch.uint8), 8.0, crf=0)
    return tmp_path


ROWS = [
    {"path": "a.mp4", "caption": "one"},
    {"path": "b.mp4", "caption": SEVERAL},
    {"path": "c.mp4", "caption": [" ", None, "the only one"]},
    {"path": "d.mp4", "caption": []},
    {"path": "e.mp4", "caption": ["fine", "caf\x85\x92s"]},
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_row_may_have_a_list_of_captions(folder, ending):
    rows = [row | {"caption": [row["caption"]] if row["caption"] == "one" else row["caption"]} for row in ROWS]
    path = folder / f"t.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    manifest = read_manifest(path)
    assert [sample.caption for sample in manifest.samples] == ["one", ("a dog runs", *SEVERAL[1:]), "the only one"]
    assert [why for _, why in manifest.dropped] == ["empty-caption", "caption-encoding"]
    write_manifest(folder / f"again.{ending}", manifest.samples)
    assert list(read_manifest(folder / f"again.{ending}").samples) == list(manifest.samples)
    with pytest.raises(ManifestError, match="several captions of a clip do not fit a cell"):
        write_manifest(folder / "again.csv", manifest.samples)
    mixed = folder / "other.jsonl"
    mixed.write_text(json.dumps({"path": "a.mp4", "caption": "x", "long": SEVERAL}) + "\n")
    assert read_manifest(mixed, columns=Columns(caption="long")).samples.captions(0) == ["a dog runs", *SEVERAL[1:]]
    mixed.write_text(json.dumps({"path": "a.mp4", "caption": ["x", 3]}) + "\n" + json.dumps(ROWS[0]))
    assert [why for _, why in read_manifest(mixed).dropped] == ["bad-row"]


def test_each_draw_is_shown_one_by_its_number_alone(folder):
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    source = ClipSource(read_manifest(folder / "t.jsonl"), PLAIN)
    captions = source.captions(1)
    assert len(captions) == 3 and source.caption(1) == captions[0]
    for number in range(20):
        drawn = int(torch.randint(3, (), generator=generator(7, number, "caption")))
        assert source.load(1, 7, number).caption == captions[drawn]
    together = [Draw(number, 1) for number in range(20)]
    assert [clip.caption for clip in source.load_each(together, 7)] == [
        source.drawn_caption(1, 7, n) for n in range(20)
    ]
    counts = Counter(source.drawn_caption(1, 0, number) for number in range(600))
    assert set(counts) == set(captions) and min(counts.values()) > 150
    assert {source.drawn_caption(0, 0, number) for number in range(9)} == {"one"}
    changed = [ROWS[0], ROWS[1] | {"caption": SEVERAL[:2]}, ROWS[2]]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    other = ClipSource(read_manifest(folder / "t.jsonl"), PLAIN)
    assert other.identity()["prints"]["captions"] != source.identity()["prints"]["captions"]
