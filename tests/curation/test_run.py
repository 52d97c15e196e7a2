"""Whole curations of small footage: what they write, that nothing but footage and settings decides it, and that a kill
costs no more than the unit that was being made."""

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from curated_footage import FPS, in_a_loop, shot, write

from latentvid.__main__ import main
from latentvid.config.parsing import to_dict
from latentvid.curation import probing
from latentvid.curation.columns import COLUMNS
from latentvid.curation.footage import find_files
from latentvid.curation.journal import Journal, key_of
from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Duplicates, Measures, Segments, Shots, Split
from latentvid.curation.writing import validation_sources
from latentvid.data.clips import ClipSource
from latentvid.data.manifest.manifest import Sample, read_manifest, write_manifest
from latentvid.data.transforms import from_uint8
from latentvid.data.video.reading import probe, read_frames
from latentvid.data.windows import Transform
from latentvid.errors import StorageError, UserError

OUTPUTS = ("train.parquet", "validation.parquet", "segments.parquet", "bad.jsonl", "curation.yaml", "summary.json")
FILM = "film.mp4"


def settings(**more) -> Curation:
    """Each file of one shot, as PySceneDetect is not part of every installation."""
    usual = {
        "shots": Shots(detector="none"),
        "segments": Segments(min_frames=5, max_frames=13),
        "measures": Measures(area=5000),
        "captions": Captions(template="a clip of {stem}"),
        "split": Split(validation=0.3),
    }
    return Curation(**{**usual, **more})


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


def rows(out: Path, name: str = "segments.parquet") -> list[dict]:
    return pyarrow.parquet.read_table(out / name).to_pylist()


@pytest.fixture(scope="module")
def curated(footage, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curated") / "out"
    curate(settings(), footage, out, in_a_loop())
    return out


def test_manifests_are_read_by_training_as_they_are(curated, footage):
    train, validation = read_manifest(curated / "train.parquet"), read_manifest(curated / "validation.parquet")
    samples = [*train.samples, *validation.samples]
    assert not train.dropped and not validation.dropped
    assert {Path(sample.path).resolve() for sample in samples} <= {path.resolve() for path in footage.rglob("*.*")}
    for sample in samples:
        found = probe(sample.path)
        assert (found.frames, found.fps) == (sample.frames, sample.fps)
        assert (found.height, found.width) == (sample.height, sample.width)
    by_name = {Path(sample.path).name: sample.caption for sample in samples}
    assert by_name[FILM] == "a clip of film" and by_name["letterbox.mp4"] == "blobs that move"  # the file beside it
    motion = read_manifest(curated / "train.parquet", extra=["motion"]).extra["motion"]
    assert all(value is None or value > 0 for value in motion) and any(motion)


def test_each_segment_has_its_measures_and_the_larger_of_two_copies_stays(curated):
    found = rows(curated)
    film = [row for row in found if row["source"] == FILM]
    assert [(row["start"], row["end"]) for row in film] == [(0.0, 1.625), (1.625, 3.25), (3.25, 4.875), (4.875, 6.0)]
    copies = [row for row in found if row["source"] == "sub/copy.mp4"]
    assert [row["dropped"] for row in copies] == ["duplicate"] * len(copies) and copies
    assert {row["duplicate_of"] for row in copies} == {FILM}
    (bars, *_) = (row for row in found if row["source"] == "letterbox.mp4")
    assert (bars["border_top"], bars["border_bottom"]) == (13, 13)
    (picture,) = (row for row in found if row["source"] == "picture.png")
    assert (picture["frames"], picture["start"], picture["motion"], picture["codec"]) == (1, None, None, "png")
    assert all(row["codec"] == "h264" and row["container"] for row in film) and film[0]["seconds"] == 1.625


def test_what_is_bad_is_listed_by_reason(curated):
    bad = [json.loads(line) for line in (curated / "bad.jsonl").read_text().splitlines()]
    assert bad == [
        {"source": ".hidden.mp4", "reason": "hidden"},
        {"source": "broken.mp4", "reason": "unreadable"},
        {"source": "empty.mp4", "reason": "empty-file"},
    ]
    summary = json.loads((curated / "summary.json").read_text())
    assert summary["bad"] == {"empty-file": 1, "hidden": 1, "unreadable": 1} and summary["files"] == 6
    assert (
        summary["segments"]
        == len(rows(curated))
        == summary["train"]["segments"]
        + summary["validation"]["segments"]
        + sum(count for count, _ in summary["dropped"].values())
    )


def test_neither_order_nor_kills_nor_place_change_a_byte(curated, footage, tmp_path):
    """Ended after every single unit, and begun again; then with the units in the other order, in another folder."""
    want = outputs(curated)
    ends, running = 0, in_a_loop(stop=0)
    while True:
        try:
            curate(settings(), footage, tmp_path / "ended", running)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "ended" / "train.parquet").exists()
            with open(tmp_path / "ended/journals/files.jsonl", "ab") as journal:
                journal.write(b'{"key": "cut off here')  # as a kill may leave it
            ends, running = ends + 1, in_a_loop(stop=1)
    assert ends > 6 and outputs(tmp_path / "ended").keys() == want.keys()
    moved = tmp_path / "moved"
    shutil.copytree(footage, moved / "footage")
    for _ in range(2):  # again: nothing is made anew
        turned = in_a_loop(turned=True)
        curate(settings(), moved / "footage", moved / "out", turned)
    assert turned.loop.done == 0
    here, there = outputs(tmp_path / "ended"), outputs(moved / "out")
    for name in ("segments.parquet", "train.parquet", "validation.parquet"):
        for path in (tmp_path / "ended" / name, moved / "out" / name):
            assert _without_paths(path) == _without_paths(curated / name)
    for name in ("bad.jsonl", "curation.yaml", "summary.json"):
        assert here[name] == there[name] == want[name]
    again = tmp_path / "ended"
    shutil.rmtree(again)
    curate(settings(), footage, again, in_a_loop(turned=True))
    assert outputs(again) == here  # at the same place: every byte


def _without_paths(path: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(path).drop_columns(["path"])


def test_what_is_new_or_has_changed_is_made_alone(footage, tmp_path):
    here = tmp_path / "footage"
    shutil.copytree(footage, here)
    curate(settings(), here, tmp_path / "out", in_a_loop())
    write(here / "new.mp4", shot(9, 13))
    write(here / FILM, shot(1, 24), shot(8, 24))
    running = in_a_loop()
    curate(settings(), here, tmp_path / "out", running)
    assert running.loop.done == 4  # to look at two files, and to measure them
    curate(settings(), here, tmp_path / "anew", in_a_loop())
    assert _without_paths(tmp_path / "out/segments.parquet") == _without_paths(tmp_path / "anew/segments.parquet")
    running = in_a_loop()
    filtered = settings(filters=("motion > 0.1",), segments=Segments(min_frames=5, max_frames=13), split=Split())
    curate(filtered, here, tmp_path / "out", running)
    assert running.loop.done == 0  # filters, captions and split decode nothing


def test_filters_drop_by_name_and_an_unknown_measure_is_not_enough(footage, tmp_path):
    chosen = settings(filters=("width > 90", "motion > 0 and words <= 4"), duplicates=Duplicates(remove=False))
    summary = curate(chosen, footage, tmp_path / "out", in_a_loop())
    found = {row["source"]: row["dropped"] for row in rows(tmp_path / "out")}
    assert found[FILM] == "" and found["sub/copy.mp4"] == "width > 90"
    assert found["picture.png"] == "motion > 0 and words <= 4"  # an image has no motion
    assert summary.dropped["width > 90"][0] == 2


def test_segments_can_become_files_without_borders(footage, tmp_path):
    out = tmp_path / "out"
    curate(settings(encode="borders"), footage, out, in_a_loop())
    samples = {
        sample.path: sample
        for name in ("train.parquet", "validation.parquet")
        for sample in read_manifest(out / name).samples
    }
    cut = [path for path in samples if "letterbox" in path]
    names = [f"clips/letterbox.mp4/{first:08}.mp4" for first in (0, 13)]
    assert sorted(Path(path).relative_to(out).as_posix() for path in cut) == names
    cut = [str(out / name) for name in names]
    sample, found = samples[cut[0]], probe(cut[0])
    assert (found.frames, found.height, found.width) == (13, 70, 96) == (sample.frames, sample.height, sample.width)
    assert sample.is_whole and sample.fps == FPS
    pixels = read_frames(footage / "letterbox.mp4", 0, 13)[:, 13:-13]
    assert (read_frames(cut[0]).float() - pixels.float()).abs().mean() < 2
    Path(cut[0]).unlink()
    running = in_a_loop()
    curate(settings(encode="borders"), footage, out, running)
    assert running.loop.done == 1 and Path(cut[0]).is_file()  # what is gone is made again


def test_measures_of_ones_own_and_captions_of_a_table(footage, tmp_path, monkeypatch):
    (tmp_path / "my_measures.py").write_text("def redness(pixels):\n    return pixels[..., 0].mean() / 255\n")
    monkeypatch.chdir(tmp_path)
    samples = [Sample(str(footage / FILM), ("one", "another"), 48, FPS, 72, 96)]
    write_manifest(tmp_path / "table.parquet", samples)
    chosen = settings(measures=Measures(area=5000, own={"redness": "my_measures:redness"}), filters=("redness > 0",))
    curate(chosen, tmp_path / "table.parquet", tmp_path / "out", in_a_loop())
    found = rows(tmp_path / "out")
    middle = read_frames(footage / FILM, 0, 13)[[1, 4, 8, 11]].numpy()
    assert found[0]["redness"] == pytest.approx(middle[..., 0].mean() / 255, rel=1e-4)
    assert {tuple(row["caption"]) for row in found} == {("one", "another")}
    with pytest.raises(UserError, match="my_measures:blueness is not there"):
        chosen = settings(measures=Measures(area=5000, own={"redness": "my_measures:blueness"}))
        curate(chosen, footage, tmp_path / "other", in_a_loop())


def test_files_that_share_footage_are_held_out_together():
    def row(source: str, of: str | None = None) -> dict:
        return {"source": source, "duplicate_of": of}

    names = [f"{n}.mp4" for n in range(400)]
    alone = validation_sources([row(name) for name in names], Curation(split=Split(validation=0.25)))
    assert 60 < len(alone) < 140
    more = validation_sources([row(name) for name in [*names, "z.mp4"]], Curation(split=Split(validation=0.25)))
    assert more - {"z.mp4"} == alone  # nobody changes sides
    pairs = [row(name, f"{int(name[:-4]) ^ 1}.mp4") for name in names]
    together = validation_sources(pairs, Curation(split=Split(validation=0.25)))
    assert together and all((f"{n}.mp4" in together) == (f"{n ^ 1}.mp4" in together) for n in range(400))


def test_a_storage_that_is_gone_ends_the_run_and_counts_against_no_file(footage, tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise StorageError("film.mp4", "stale handle", 116, ", for 180 s: bring it back")

    monkeypatch.setattr("latentvid.curation.run.probed", gone)
    with pytest.raises(StorageError, match="bring it back"):
        curate(settings(), footage, tmp_path / "out", in_a_loop())
    monkeypatch.undo()
    curate(settings(), footage, tmp_path / "out", in_a_loop())
    assert {row["source"] for row in rows(tmp_path / "out")} >= {FILM, "letterbox.mp4"}


def test_a_file_that_is_damaged_further_on_is_bad_there(tmp_path):
    data = bytearray(write(tmp_path / "in" / "x.mp4", shot(1, 60, height=144, width=192)).read_bytes())
    data[len(data) * 6 // 10 : len(data) * 8 // 10] = bytes(len(data) * 8 // 10 - len(data) * 6 // 10)
    (tmp_path / "in" / "x.mp4").write_bytes(data)
    write(tmp_path / "in" / "y.mp4", shot(2, 13))
    curate(settings(), tmp_path / "in", tmp_path / "out", in_a_loop())
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert {(each["source"], each["reason"]) for each in bad} == {("x.mp4", "unreadable")} and bad[0]["start"] == 0.0
    assert {row["source"] for row in rows(tmp_path / "out") if not row["dropped"]} >= {"y.mp4"}


def test_outputs_among_the_footage_are_no_footage(footage, tmp_path):
    write(tmp_path / "a.mp4", shot(1, 13))
    write(tmp_path / "out" / "clips" / "b.mp4", shot(1, 13))
    assert [file.source for file in find_files(tmp_path, tmp_path / "out")[0]] == ["a.mp4"]
    with pytest.raises(UserError, match="there is no"):
        find_files(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        find_files(tmp_path / "none", tmp_path / "out")


def test_a_journal_keeps_all_but_what_was_cut_off(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add("a", [1, None])
        journal.add("b", {"x": 0.1})
    with open(tmp_path / "j.jsonl", "ab") as file:
        file.write(b'{"key":"c","ma')
    with Journal(tmp_path / "j.jsonl") as journal:
        assert "c" not in journal and journal["a"] == [1, None] and journal["b"] == {"x": 0.1}
        journal.add("c", 3)
        journal.add("a", 4)
    with Journal(tmp_path / "j.jsonl") as journal:
        assert [journal[key] for key in "abc"] == [4, {"x": 0.1}, 3]
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1}) != key_of("a", {"y": 2, "x": 1.5})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"captions": Captions(template="of {stemm}")}, "is no column"),
        ({"filters": ("moton > 1",)}, "did you mean motion"),
    ],
)
def test_settings_are_checked_before_any_footage_is_read(wrong, said, tmp_path):
    with pytest.raises(UserError, match=said):
        curate(settings(**wrong), tmp_path / "nothing", tmp_path / "out", in_a_loop())
    with pytest.raises(ValueError, match="above max_frames"):
        Segments(min_frames=9, max_frames=5)
    with pytest.raises(ValueError, match="go together"):
        Shots(detector="transnet")
    with pytest.raises(ValueError, match="the name is taken"):
        Measures(own={"motion": "a:b"})


def test_frames_come_in_order_and_once_however_they_are_read(footage, monkeypatch):
    def read(first: int, count: int) -> torch.Tensor:
        found: list[tuple[int, np.ndarray]] = []
        probing.each_frame(str(footage / FILM), first, count, lambda n, frame: found.append((n, frame.copy())), None)
        assert [n for n, _ in found] == list(range(first, first + count))
        return torch.from_numpy(np.stack([frame for _, frame in found]))

    alone = read(3, 31)
    assert torch.equal(alone, read_frames(footage / FILM, 3, 31))
    monkeypatch.setattr(probing, "SHORT", 4)
    monkeypatch.setattr(probing, "WINDOW", 7)
    assert torch.equal(read(3, 31), alone)


def test_trainings_windows_are_the_frames_of_the_segments(curated, footage):
    manifest = read_manifest(curated / "train.parquet")
    source = ClipSource(manifest, Transform(spatial_stride=8, temporal_stride=4, max_frames=13))
    film = [n for n, window in enumerate(source.windows) if Path(manifest.samples.path(window.sample)).name == FILM]
    at = [source.windows[n].start for n in film]
    assert at == [0, 13, 26, 39] or not film  # the film may be held out
    for n, window in enumerate(source.windows):
        path, first = manifest.samples.path(window.sample), window.start
        assert torch.equal(source.read(n), from_uint8(read_frames(path, first, window.frames)))


def test_the_page_of_the_docs_has_the_defaults_and_all_columns():
    text = (Path(__file__).parents[2] / "docs/curation.md").read_text()
    block = text.split("\n    shots:")[1].split("\n\n")[0]
    given = yaml.safe_load(textwrap.dedent("    shots:" + block))
    assert Curation(filters=tuple(given["filters"])).parsed
    usual = to_dict(Curation())
    del given["filters"], usual["filters"], given["captions"]["template"], usual["captions"]["template"]
    assert given == usual
    table = text.split("| column | of | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", table, re.MULTILINE) == [
        (name, column.of, column.meaning) for name, column in COLUMNS.items()
    ]


def test_without_ray_the_command_says_how_to_get_it(footage, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["latentvid", "curate", str(footage), str(tmp_path / "out"), "--workers", "1"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "pip install latentvid[curation]" in capsys.readouterr().err
