"""Footage and outputs behind URLs: the same bytes as from folders, faults cost no file, another machine goes on."""

import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from curated_footage import in_a_loop, shot, write
from far_storage import Far, as_tar, far_storage

from latentvid.curation.footage import find_files
from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Measures, Segments, Shots, Split
from latentvid.curation.writing import OUTPUTS
from latentvid.data.access import remote
from latentvid.data.manifest.manifest import ManifestError, read_manifest
from latentvid.errors import StorageError, UserError
from latentvid.places import join, relative

SETTINGS = {
    "shots": Shots(detector="none"),
    "segments": Segments(min_frames=5, max_frames=13),
    "measures": Measures(area=5000),
    "captions": Captions(template="a clip of {stem}"),
    "split": Split(validation=0.3),
}


@pytest.fixture
def far(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield from far_storage(monkeypatch, tmp_path / "cache")


def put(far: Far, folder: Path, name: str) -> str:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        far.put(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return f"memory://bucket/{name}"


def outputs(far: Far) -> dict[str, bytes]:
    return {name: far.fs.store[f"/bucket/out/{name}"].getvalue() for name in OUTPUTS}


def test_from_a_bucket_and_to_it_the_bytes_are_those_of_folders_with_faults_too(far, footage, tmp_path):
    shutil.copytree(footage, tmp_path / "in")
    curate(Curation(**SETTINGS), tmp_path / "in", tmp_path / "out", in_a_loop())
    source, asked = put(far, footage, "in"), 0

    def every_ninth(path: str) -> Exception | None:
        nonlocal asked
        asked += 1
        return None if asked % 9 else ConnectionResetError(104, "Connection reset by peer")

    far.fault = every_ninth
    summary = curate(Curation(**SETTINGS), source, "memory://bucket/out", in_a_loop())
    assert asked > 20 and summary.bad == {"empty-file": 1, "hidden": 1, "unreadable": 1}
    far.fault = lambda path: None
    assert outputs(far) == {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS}
    rows = read_manifest("memory://bucket/out/train.parquet").samples
    assert {Path(row.path).name for row in rows} == {
        Path(row.path).name for row in read_manifest(tmp_path / "out" / "train.parquet").samples
    }
    assert any(
        row.caption == "blobs that move"
        for row in [*rows, *read_manifest("memory://bucket/out/validation.parquet").samples]
    )


def test_another_machine_goes_on_from_what_a_bucket_has_and_clips_are_written_there(
    far, footage, tmp_path, monkeypatch
):
    source, settings = put(far, footage, "in"), Curation(**SETTINGS, encode="borders")
    first = in_a_loop()
    curate(settings, source, "memory://bucket/out", first)
    made, clips = outputs(far), far.fs.find("/bucket/out/clips")
    assert len(clips) == 2 and read_manifest("memory://bucket/out/segments.parquet", check_files=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = in_a_loop()
    curate(settings, source, "memory://bucket/out", again)
    assert first.loop.done > 5 and again.loop.done == 0 and outputs(far) == made
    far.fs.rm_file(clips[0])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    monkeypatch.setenv("LATENTVID_CACHE", str(tmp_path / "third"))
    remote._statuses.clear()
    curate(settings, source, "memory://bucket/out", again)
    assert again.loop.done == 1 and far.fs.find("/bucket/out/clips") == clips and outputs(far) == made


def test_outputs_that_cannot_be_written_are_refused_before_the_work(far, footage):
    loop = in_a_loop()
    with pytest.raises(UserError, match="can only be read"):
        curate(Curation(**SETTINGS), footage, "https://host/out", loop)
    with pytest.raises(UserError, match="set them in the environment"):
        curate(Curation(**SETTINGS), footage, "s3://me:secret@bucket/out", loop)
    far.fs.put_file = None  # whatever it raises
    try:
        with pytest.raises(StorageError):
            curate(Curation(**SETTINGS), footage, "memory://bucket/out", loop)
    finally:
        del far.fs.put_file
    assert loop.loop.done == 0


def test_folders_behind_urls_are_searched_as_folders_are(far, footage):
    url = put(far, footage, "in")
    put(far, footage, "in/made")
    near, left = find_files(footage, footage / "made")
    found, left_far = find_files(url + "/", f"{url}/made")
    assert [file.source for file in found] == [file.source for file in near] and left_far == left
    assert [file.path for file in found] == [f"{url}/{file.source}" for file in near]
    assert [file.texts for file in found] == [file.texts for file in near]
    with pytest.raises(ManifestError, match="nothing at memory://bucket/nowhere"):
        find_files("memory://bucket/nowhere", "memory://bucket/out")
    with pytest.raises(ManifestError, match="no video and no image"):
        far.fs.pipe_file("/bucket/texts/a.txt", b"a")
        find_files("memory://bucket/texts", "memory://bucket/out")


def test_shards_are_footage_too(far, tmp_path):
    for n in range(2):
        write(tmp_path / f"{n}.mp4", shot(n, 8))
    (tmp_path / "train.jsonl").write_text("".join(f'{{"path": "{n}.mp4", "caption": "film {n}"}}\n' for n in range(2)))
    shard = as_tar(tmp_path / "train.jsonl", tmp_path / "films.tar")
    for place in (shard, far.put(shard, "films.tar")):
        out = tmp_path / f"out-{len(str(place))}"
        curate(Curation(**SETTINGS), place, out, in_a_loop())
        rows = pyarrow.parquet.read_table(out / "segments.parquet").to_pylist()
        assert [(row["caption"], row["frames"]) for row in rows] == [("film 0", 8), ("film 1", 8)]


def test_relative_names_within_a_machine_or_a_bucket():
    assert relative("s3://bucket/in/a.mp4", "s3://bucket/out") == "../in/a.mp4"
    assert join("s3://bucket/out", "../in/a.mp4") == "s3://bucket/in/a.mp4"
    assert relative("s3://other/in/a.mp4", "s3://bucket/out") == "s3://other/in/a.mp4"
    assert relative("s3://bucket/in/a.mp4", "/out") == "s3://bucket/in/a.mp4"
    assert relative("/data/in/a.mp4", "s3://bucket/out") == "/data/in/a.mp4"
    assert relative("/data/in/a.mp4", "/data/out") == "../in/a.mp4"
