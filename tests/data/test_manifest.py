"""Manifests in three formats; bad rows are dropped and listed; bad manifests say how to mend them."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch

from latentvid.data.manifest import Sample, main, read_manifest, scan_folder, write_manifest
from latentvid.data.tables import ManifestError
from latentvid.data.writing import write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with two good clips, an image, and one of each kind of bad file."""
    folder = tmp_path_factory.mktemp("clips")
    noise = torch.randint(0, 256, (9, 16, 24, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    write_video(folder / "sub" / "a.mp4", noise, 8)
    write_video(folder / "b.mp4", noise[:5], 12)
    write_video(folder / "c.png", noise[:1], 1)
    (folder / "cut.mp4").write_bytes((folder / "b.mp4").read_bytes()[:-100])
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("not a video" * 100)
    return folder


def save(path, rows):
    """As a user's own tools would write it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_are_read_probed_and_bad_ones_dropped(clips, ending):
    rows = [
        {"path": "sub/a.mp4", "caption": "one, with a comma", "frames": 9, "fps": 8.0, "height": 16, "width": 24},
        {"path": "gone.mp4", "caption": "not there", "frames": 9, "fps": 8.0, "height": 16, "width": 24},
        {"path": "b.mp4", "caption": " two "},
        {"path": "zero.mp4", "caption": "zero bytes", "frames": 9, "fps": 8.0, "height": 16, "width": 24},
        {"path": "b.mp4", "caption": "  "},
        {"path": "b.mp4", "caption": None},
        {"path": "cut.mp4", "caption": "cut"},
        {"path": "text.mp4", "caption": "unreadable"},
        {"path": str(clips / "c.png"), "caption": "three", "fps": 0.0},
        {"path": "b.mp4", "caption": "no frames", "frames": 0},
        {"path": None, "caption": "no path"},
    ]
    for number, row in enumerate(rows):
        row["label"] = f"n{number}"
    manifest = read_manifest(save(clips / f"table.{ending}", rows), extra=["label", "colour"])
    assert list(manifest.samples) == [
        Sample(str(clips / "sub/a.mp4"), "one, with a comma", 9, 8.0, 16, 24),
        Sample(str(clips / "b.mp4"), "two", 5, 12.0, 16, 24),
        Sample(str(clips / "c.png"), "three", 1, 0.0, 16, 24),
    ]
    assert manifest.extra == {"label": ["n0", "n2", "n8"]}
    reasons = sorted((path.rpartition("/")[2], reason) for path, reason in manifest.dropped)
    lines = {"jsonl": "line 11", "csv": "line 12", "parquet": "line 11"}
    assert reasons == [
        ("b.mp4", "bad-row"),
        ("b.mp4", "empty-caption"),
        ("b.mp4", "empty-caption"),
        ("cut.mp4", "truncated"),
        ("gone.mp4", "missing"),
        (lines[ending], "bad-row"),
        ("text.mp4", "unreadable"),
        ("zero.mp4", "empty-file"),
    ]
    summary = manifest.summary()
    assert "2 clips and 1 images" in summary and "dropped 2 (empty-caption)" in summary and "gone.mp4" in summary


def test_files_are_not_looked_at_when_not_asked(tmp_path):
    row = {"path": "far/away.mp4", "caption": "x", "frames": 9.0, "fps": "8", "height": 16, "width": 24}
    rows = [row, row | {"tags": ["a"]}, row | {"frames": "nine"}, row | {"height": 16.5}, row | {"width": True}]
    manifest = read_manifest(save(tmp_path / "m.jsonl", rows), check_files=False, extra=["tags"])
    assert list(manifest.samples) == [Sample(str(tmp_path / "far/away.mp4"), "x", 9, 8.0, 16, 24)] * 2
    assert manifest.extra == {"tags": [None, ["a"]]}
    assert [reason for _, reason in manifest.dropped] == ["bad-row"] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.jsonl", None, "no such manifest"),
        ("table.txt", "x", r"\.jsonl, \.csv or \.parquet"),
        ("empty.jsonl", "\n", "no rows"),
        ("empty.csv", "path,caption\n", "no rows"),
        ("broken.jsonl", '{"path": "a", "caption": "b"}\n{"path": \n', "line 2: not valid JSON"),
        ("list.jsonl", "[1]\n", "line 1: not an object"),
        ("columns.jsonl", '{"path": "a", "text": "b"}\n', "no column `caption`"),
        ("columns.csv", "file,caption\na,b\n", r"no column `path` \(it has: file, caption\)"),
        ("ragged.csv", "path,caption\na.mp4,a dog, running\n", "line 2: 3 cells under 2 columns.*double quotes"),
        ("broken.parquet", "PAR1 this is none", "cannot be read"),
        ("latin.jsonl", b'{"path": "a", "caption": "caf\xe9"}\n', "UTF-8"),
        ("bad.jsonl", '{"path": "a.mp4", "caption": "b"}\n', r"(?s)no usable row.*dropped 1 \(missing\): .*a\.mp4"),
    ],
)
def test_bad_manifests_say_what_to_do(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(tmp_path / name)
    assert name in str(error.value)


def test_a_folder_is_not_a_manifest(tmp_path):
    with pytest.raises(ManifestError, match="python -m latentvid.data.manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_what_is_written_is_read_and_moves_with_its_folder(clips, tmp_path, ending):
    rows = [
        {"path": str(clips / "b.mp4"), "caption": 'say "é", then', "frames": 5, "fps": 12.0, "height": 16, "width": 24},
        Sample(str(tmp_path / "old" / "x.mp4"), "inside", 9, 8.0, 32, 32),
    ]
    write_manifest(tmp_path / "old" / f"m.{ending}", rows)
    (tmp_path / "old").rename(tmp_path / "new")
    manifest = read_manifest(tmp_path / "new" / f"m.{ending}", check_files=False)
    assert list(manifest.samples) == [Sample(**rows[0]), Sample(str(tmp_path / "new/x.mp4"), "inside", 9, 8.0, 32, 32)]
    assert len(list((tmp_path / "new").iterdir())) == 1
    with pytest.raises(ManifestError, match=r"\.jsonl, \.csv or \.parquet"):
        write_manifest(tmp_path / "m.xlsx", rows)


def test_scanning_a_folder_from_the_command_line(clips, tmp_path, monkeypatch, capsys):
    captions = {"sub/a": "\n the first line \n another", "c": "a picture", "cut": "cut", "zero": "zero", "text": " "}
    for name, text in captions.items():
        (clips / f"{name}.txt").write_text(text)
    output = tmp_path / "m.jsonl"
    monkeypatch.setattr("sys.argv", ["manifest", str(clips), str(output)])
    main()
    printed = capsys.readouterr().out
    manifest = read_manifest(output)
    assert list(manifest.samples) == list(scan_folder(clips).samples)
    assert {sample.path.removeprefix(f"{clips}/"): sample.caption for sample in manifest.samples} == {
        "c.png": "a picture",
        "sub/a.mp4": "the first line",
    }
    for text in ("1 clips and 1 images", "(no-caption): ", "b.mp4", "(empty-caption)", "(truncated)", "(empty-file)"):
        assert text in printed
    monkeypatch.setattr("sys.argv", ["manifest", str(tmp_path / "absent"), str(output)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "is not a folder" in capsys.readouterr().err
    with pytest.raises(ManifestError, match="NAME.txt"):
        scan_folder(tmp_path)
