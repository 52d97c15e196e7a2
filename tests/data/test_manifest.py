"""Manifests in three formats; bad rows are dropped and listed; bad manifests say how to mend them."""

import csv
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
import torch

from latentvid.commands import manifest as main
from latentvid.data.manifest.manifest import Columns, Sample, read_manifest, scan_folder, write_manifest
from latentvid.data.manifest.tables import ManifestError
from latentvid.data.video.reading import probe
from latentvid.data.video.writing import write_video


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
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
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
    of_text = int(ending in ("csv", "tsv"))  # where the names of the columns are a line
    assert reasons == [
        (f"b.mp4, row {10 + of_text}", "bad-row"),
        (f"b.mp4, row {5 + of_text}", "empty-caption"),
        (f"b.mp4, row {6 + of_text}", "empty-caption"),
        ("cut.mp4", "truncated"),
        ("gone.mp4", "missing"),
        (f"line {11 + of_text}", "bad-row"),
        ("text.mp4", "unreadable"),
        ("zero.mp4", "empty-file"),
    ]
    summary = manifest.summary()
    assert "2 clips and 1 image" in summary and "dropped 2 (empty-caption)" in summary and "gone.mp4" in summary


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
        ("table.txt", "x", r"\.jsonl, \.csv, \.tsv, \.parquet or \.tar"),
        ("empty.jsonl", "\n", "no rows"),
        ("empty.csv", "path,caption\n", "no rows"),
        ("broken.jsonl", '{"path": "a", "caption": "b"}\n{"path": \n', "line 2: not valid JSON"),
        ("list.jsonl", "[1]\n", "line 1: not an object"),
        (
            "columns.jsonl",
            '{"path": "a", "words": "b"}\n',
            r"no column `caption` \(nor `text`\) \(it has: path, words\)",
        ),
        ("columns.csv", "file,caption\na,b\n", r"no column `path` \(nor `file_name`\) \(it has: file, caption\)"),
        ("twice.csv", "path,caption,caption\na,b,c\n", "has 2 columns `caption`"),
        ("twice.jsonl", '{"path": "a", "path": "b", "caption": "c"}\n', "line 1: .*`path` stands there twice"),
        ("deep.jsonl", '{"path": ' + "[" * 100_000, "line 1: not valid JSON"),
        ("digits.jsonl", '{"path": "a", "caption": "b", "frames": 1' + "0" * 5000 + "}\n", "line 1: not valid JSON"),
        ("rubbish.jsonl", bytes(range(256)) * 9, "rubbish.jsonl, line 1: not"),
        ("rubbish.csv", bytes(range(256)) * 9, r"rubbish.csv has no column `path` .*it has: '.x00"),
        ("rubbish.parquet", bytes(range(256)) * 9, "cannot be read"),
        ("long.jsonl", "[" + " " * (1 << 24), "line 1: is longer than any row"),
        ("half.jsonl", b'\xff\xfe{\0"', "UTF-16"),
        ("ragged.csv", "path,caption\na.mp4,a dog, running\n", "line 2: 3 cells under 2 columns.*double quotes"),
        ("broken.parquet", "PAR1 this is none", "cannot be read"),
        ("latin.jsonl", b'\n{"path": "a", "caption": "caf\xe9"}\n', "line 2: not UTF-8"),
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


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
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
    with pytest.raises(ManifestError, match=r"\.jsonl, \.csv, \.tsv or \.parquet"):
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
        "sub/a.mp4": "the first line another",
    }
    for text in ("1 clip and 1 image", "(no-caption): ", "b.mp4", "(empty-caption)", "(truncated)", "(empty-file)"):
        assert text in printed
    monkeypatch.setattr("sys.argv", ["manifest", str(tmp_path / "absent"), str(output)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "is not a folder" in capsys.readouterr().err
    with pytest.raises(ManifestError, match="NAME.txt"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_encodings_that_are_certain_are_read(clips, ending, encoding):
    path = save(clips / f"encoded.{ending}", [{"path": "b.mp4", "caption": "caf\u00e9 \u4e00"}])
    path.write_bytes(path.read_text().encode(encoding))
    assert [s.caption for s in read_manifest(path).samples] == ["caf\u00e9 \u4e00"]


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (Columns(), [{"file_name": "b.mp4", "text": "one"}]),  # as Hugging Face's metadata.csv has it
        (Columns(), [{"path": "b.mp4", "caption": "one", "text": "two"}]),
        (Columns("video", "words"), [{"video": "b.mp4", "words": "one", "caption": "two", "path": "x.mp4"}]),
        (Columns(caption="words"), [{"file_name": "b.mp4", "words": "one"}]),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_columns_are_found_by_their_usual_names_or_by_those_that_are_given(clips, ending, columns, rows):
    manifest = read_manifest(save(clips / f"columns.{ending}", rows), columns=columns)
    assert [(s.path, s.caption) for s in manifest.samples] == [(str(clips / "b.mp4"), "one")]


def test_captions_are_one_line_and_what_comes_of_wrong_encodings_is_dropped_by_its_row(clips):
    captions = [
        "two\n\nlines\there ",
        "caf\ufffd",
        "a dog\x92s",
        "x\0y",
        "half \ud83d of one",
        "z" * (1 << 20) + "z",
        "\ufeff",
    ]
    manifest = read_manifest(save(clips / "odd.jsonl", [{"path": "b.mp4", "caption": text} for text in captions]))
    assert [s.caption for s in manifest.samples] == ["two lines here"]
    place = f"{clips}/b.mp4, row"
    assert list(manifest.dropped) == [
        *((f"{place} {row}", "caption-encoding") for row in (2, 3, 4, 5)),
        (f"{place} 6", "caption-too-long"),
        (f"{place} 7", "empty-caption"),
    ]


def test_facts_that_no_file_can_have_are_dropped(clips):
    sizes = {"frames": 5, "fps": 12.0, "height": 16, "width": 24}
    odd = [{"frames": 2**31}, {"frames": 9_999_999}, {"height": 10**9}, {"width": -1}, {"fps": float("inf")}, {}]
    rows = [{"path": "b.mp4", "caption": "x", **sizes, **each} for each in odd]
    rows += [{"path": "line\nbreak\0.mp4", "caption": "x", **sizes}, {"path": "\udcff.mp4", "caption": "x", **sizes}]
    manifest = read_manifest(save(clips / "facts.jsonl", rows))
    assert len(manifest.samples) == 1
    reasons = sorted(reason for _, reason in manifest.dropped)
    assert reasons == ["bad-row"] * 4 + ["missing"] * 2 + ["more-frames-than-bytes"]
    assert "line\\nbreak" in manifest.summary() and "\n" not in manifest.summary().splitlines()[3]


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.parquet"])
def test_what_is_no_file_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ManifestError, match=f"{name} is a pipe, not a file"):
        read_manifest(tmp_path / name)


def test_what_probing_found_is_remembered_until_the_file_changes(clips, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "b.mp4").write_bytes((clips / "b.mp4").read_bytes())
    table = save(folder / "m.jsonl", [{"path": "b.mp4", "caption": "x"}])
    opened = []
    monkeypatch.setattr("latentvid.data.manifest.facts.probe", lambda path: opened.append(path) or probe(path))
    first = list(read_manifest(table).samples)
    assert list(read_manifest(table).samples) == first and len(opened) == 1
    folder.rename(tmp_path / "moved")  # what is known goes with its folder
    folder, table = tmp_path / "moved", tmp_path / "moved" / "m.jsonl"
    read_manifest(table)
    assert len(opened) == 1
    (folder / "b.mp4").write_bytes((clips / "sub/a.mp4").read_bytes())
    assert [s.frames for s in read_manifest(table).samples] == [9] and len(opened) == 2
    memory = folder / ".m.jsonl.facts.jsonl"
    memory.write_bytes(memory.read_bytes()[:-40] + b"\n[1]\n\xff\n{}\n")
    assert [s.frames for s in read_manifest(table).samples] == [9] and len(opened) == 3
    assert sorted(path.name for path in folder.iterdir()) == [memory.name, "b.mp4", "m.jsonl"]


@pytest.mark.parametrize(("output", "message"), [("m.xlsx", "ends in"), ("", "ends in"), ("dir.csv", "is a folder")])
def test_a_manifest_that_cannot_be_written_is_found_before_the_work(
    clips, tmp_path, monkeypatch, capsys, output, message
):
    (tmp_path / "dir.csv").mkdir()
    monkeypatch.setattr("latentvid.data.manifest.manifest.scan_folder", lambda *_: pytest.fail("looked at the clips"))
    monkeypatch.setattr("sys.argv", ["manifest", str(clips), str(tmp_path / output)])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["manifest", str(clips), str(tmp_path / "file" / "m.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert "cannot be written (" in capsys.readouterr().err
