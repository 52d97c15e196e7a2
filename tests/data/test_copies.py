"""Copies to a bucket and back: whole, resumable, and what says that a folder is whole comes last."""

import os

import pytest
from far_storage import Far, far_storage

from latentvid.data.access import remote
from latentvid.data.access.copies import copy
from latentvid.errors import StorageError, UserError


@pytest.fixture
def far(monkeypatch, tmp_path):
    yield from far_storage(monkeypatch, tmp_path / "cache")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "step-00000100"
    (folder / "deep").mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors", "deep/z.json", ".hidden"):
        (folder / name).write_bytes(name.encode() * 99_000)
    return folder


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_goes_there_and_comes_back(far: Far, checkpoint, tmp_path, monkeypatch):
    sent, write = [], remote.write_object
    monkeypatch.setattr(
        remote, "write_object", lambda url, path: sent.append(url.rpartition("/")[2]) or write(url, path)
    )
    assert copy(checkpoint, "memory://bucket/run/step").files == 3
    assert sent == ["z.json", "model.safetensors", "manifest.json"]
    assert copy("memory://bucket/run/step", tmp_path / "back").files == 3
    expected = contents(checkpoint)
    expected.pop(".hidden")
    assert contents(tmp_path / "back") == expected
    assert (copy(checkpoint, "memory://bucket/run/step").there, len(sent)) == (3, 3)
    (checkpoint / "model.safetensors").write_bytes(b"other")
    again = copy(checkpoint, "memory://bucket/run/step")
    assert (again.files, again.there) == (1, 2)
    one = copy("memory://bucket/run/step/manifest.json", tmp_path / "one.json")
    assert one.files == 1 and (tmp_path / "one.json").read_bytes() == expected["manifest.json"]


def test_what_goes_while_it_is_copied_is_left_out_with_what_says_that_its_folder_is_whole(
    far: Far, tmp_path, monkeypatch
):
    """A run that goes on removes its older checkpoints."""
    for step in ("1", "2"):
        for name in ("a.json", "model.safetensors", "manifest.json"):
            (tmp_path / "run" / step).mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / step / name).write_bytes(b"x")
    write = remote.write_object

    def removing(url, path):
        (tmp_path / "run" / "1" / "model.safetensors").unlink(missing_ok=True)
        write(url, path)

    monkeypatch.setattr(remote, "write_object", removing)
    assert copy(tmp_path / "run", "memory://bucket/run").files == 4
    assert sorted(far.fs.find("/bucket/run")) == [
        *("/bucket/run/1/a.json", "/bucket/run/2/a.json"),
        *("/bucket/run/2/manifest.json", "/bucket/run/2/model.safetensors"),
    ]


def test_a_copy_that_is_stopped_leaves_no_half_file_and_goes_on(far: Far, checkpoint, tmp_path):
    copy(checkpoint, "memory://bucket/step")
    far.fault = lambda path: ConnectionResetError(104, "reset") if path.endswith("model.safetensors") else None
    with pytest.raises(StorageError, match=r"model\.safetensors: its storage does not answer"):
        copy("memory://bucket/step", tmp_path / "back", patience_s=1.0)
    assert sorted(os.listdir(tmp_path / "back")) == ["deep"]
    far.fault = lambda path: None
    assert copy("memory://bucket/step", tmp_path / "back").there == 1
    assert "manifest.json" in contents(tmp_path / "back")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a", "b", "neither is a URL"),
        ("memory://bucket/a", "s3://b/c", "both are URLs"),
        ("memory://bucket/none", "b", "nothing to copy"),
        ("none", "memory://bucket/a", "nothing to copy"),
        ("s3://key:secret@bucket/a", "b", "leave user and password out"),
    ],
)
def test_what_cannot_be_copied_is_said(far, source, target, message):
    with pytest.raises(UserError, match=message):
        copy(source, target)
