"""The same clips in a folder, in tar shards and in Parquet are the same clips, here and behind URLs."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from far_storage import Far, as_parquet, as_tar, far_storage

from latentvid.data.access import cells, files, tars
from latentvid.data.access.shards import expanded
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Columns, ManifestError, read_manifest
from latentvid.data.plan.plan import Plan
from latentvid.data.video.reading import read_frames
from latentvid.errors import ClipError, UserError

TRANSFORM = Transform(spatial_stride=8, temporal_stride=4, max_frames=9)


@pytest.fixture
def far(monkeypatch, tmp_path):
    yield from far_storage(monkeypatch, tmp_path / "cache")


@pytest.fixture
def kept(digits_data, tmp_path) -> dict[str, Path]:
    """The digits in each way."""
    manifest = digits_data / "train.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    for n, part in enumerate((lines[:13], lines[13:])):
        (digits_data / f"part{n}.jsonl").write_text("".join(part))
        as_tar(digits_data / f"part{n}.jsonl", tmp_path / f"shard-{n:02d}.tar")
        (digits_data / f"part{n}.jsonl").unlink()
    return {
        "folder": manifest,
        "tar": tmp_path / "shard-{00..01}.tar",
        "parquet": as_parquet(manifest, tmp_path / "train.parquet"),
    }


def packs_of(source: ClipSource) -> list[tuple]:
    """What a plan draws, loaded: pixels, captions and sizes."""
    tokens = source.per_shape(lambda f, h, w: f * h * w // 256)
    plan = Plan(tokens, budget=2000, packs=2, seed=0)
    draws = [draw for pack in plan.next().packs for draw in pack]
    return [(d, c.pixels, c.caption) for d, c in zip(draws, source.load_each(draws, seed=0), strict=True)]


def test_shards_and_parquet_are_the_clips_of_the_folder(kept, far: Far, tmp_path):
    far.put_folder(tmp_path)
    names = {
        **kept,
        "far tar": "memory://bucket/shard-*.tar",
        "far parquet": "memory://bucket/train.parquet",
    }
    found = {}
    for name, place in names.items():
        manifest = read_manifest(place)
        assert not manifest.dropped, name
        found[name] = packs_of(ClipSource(manifest, TRANSFORM))
    expected = found.pop("folder")
    assert len(expected) > 10
    for name, packs in found.items():
        assert [p[0] for p in packs] == [p[0] for p in expected], name
        assert [p[2] for p in packs] == [p[2] for p in expected], name
        assert all(torch.equal(a[1], b[1]) for a, b in zip(packs, expected, strict=True)), name


def test_the_index_of_a_shard_is_made_once_and_clips_are_ranges_of_it(far: Far, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(12):
            for ending, data in ((".mp4", bytes([n]) * 1_500_000), (".txt", b"a caption")):
                info = tarfile.TarInfo(f"folder/{n}{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    url = far.put(tmp_path / "a.tar", "a.tar")
    assert len(files.tar_index(url).members) == 24
    assert far.fetched < 0.7 * (tmp_path / "a.tar").stat().st_size
    tars._held.clear()
    before = far.fetched
    with files.opened(f"{url}/folder/7.mp4") as file:
        file.seek(1_400_000)
        assert file.read() == b"\7" * 100_000
    assert far.fetched - before <= 2 * files.PIECE
    assert files.status(f"{url}/folder/7.mp4").st_size == 1_500_000


def test_cells_of_a_row_group_are_brought_once(far: Far, tmp_path, monkeypatch):
    table = {"image": [{"bytes": bytes([n]) * 300_000, "path": None} for n in range(9)], "text": ["a"] * 9}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=3, compression=None)
    url = far.put(tmp_path / "a.parquet", "a.parquet")
    brought = []
    bring = cells.CellPieces._bring
    monkeypatch.setattr(cells.CellPieces, "_bring", lambda self: brought.append(self.name) or bring(self))
    for row in (4, 3, 5, 0):
        with files.opened(f"{url}/image/{row}.png") as file:
            assert file.read() == bytes([row]) * 300_000
    assert brought == ["image/4.png", "image/0.png"]
    with pytest.raises(FileNotFoundError):
        files.opened(f"{url}/image/9.png")


def test_names_of_files_in_a_column_of_datasets_are_files(digits_data, tmp_path):
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()][:3]
    cells_of = [{"bytes": None, "path": str(digits_data / row["path"])} for row in rows]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"video": pyarrow.array(cells_of, kind), "text": [row["caption"] for row in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    assert [*read_manifest(tmp_path / "m.parquet").samples.paths] == [cell["path"] for cell in cells_of]


def test_images_in_a_column_are_images(tmp_path):
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 30, 30)).save(data, "PNG")
    noted = {"info": {"features": {"picture": {"_type": "Image"}, "text": {"_type": "Value"}}}}
    table = pyarrow.table({"picture": [{"bytes": data.getvalue(), "path": None}], "text": ["red"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.samples.is_image.all() and manifest.samples[0].width == 24
    assert read_frames(manifest.samples.path(0)).tolist() == [[[[200, 30, 30]] * 24] * 16]


def test_what_is_wrong_with_shards_is_said(digits_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTVID_CACHE", str(tmp_path / "cache"))
    whole = as_tar(digits_data / "train.jsonl", tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.tar").write_bytes(b"this is no tar" * 100)
    for name in ("cut.tar", "none.tar"):
        with pytest.raises(ManifestError, match=rf"{name}.* pack it again"):
            read_manifest(tmp_path / name)
    for name in ("{0..2}.tar", "*.jsonl"):
        with pytest.raises(UserError, match="there is no such file"):
            read_manifest(tmp_path / name)
    two = {name: [{"bytes": b"x", "path": "a.png"}] for name in ("one", "other")}
    pyarrow.parquet.write_table(pyarrow.table({**two, "text": ["a"]}), tmp_path / "two.parquet")
    with pytest.raises(ManifestError, match=r"several columns of files \(one, other\): set data.path_column"):
        read_manifest(tmp_path / "two.parquet")
    with pytest.raises(ManifestError, match="no usable row"):  # chosen, and no image
        read_manifest(tmp_path / "two.parquet", columns=Columns("other"))
    with pytest.raises(ClipError, match="is empty"):
        empty = pyarrow.table({"video": [b"", b"x"], "text": ["a", "b"]})
        pyarrow.parquet.write_table(empty, tmp_path / "empty.parquet")
        read_frames(tmp_path / "empty.parquet" / "video" / "0.mp4")


def test_a_folder_may_be_called_like_a_shard(digits_data, tmp_path):
    folder = tmp_path / "clips.tar"
    folder.symlink_to(digits_data)
    row = json.loads((digits_data / "train.jsonl").read_text().splitlines()[0])
    assert torch.equal(read_frames(folder / row["path"]), read_frames(digits_data / row["path"]))


def test_names_that_stand_for_several(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "a[1].tar"):
        (tmp_path / name).touch()
    ordered = [[Path(p).name for p in expanded(tmp_path / name)] for name in ("s-{08..10}.tar", "s-*", "s-{10,08}.tar")]
    all_three = ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert ordered == [all_three, all_three, ["s-10.tar", "s-08.tar"]]
