"""Files are there whole or not at all, with the user's modes; what must not be opened is not."""

import os

import pytest
import torch
from safetensors.torch import save_file

from latentvid.errors import UserError
from latentvid.files import check_outputs, check_writable, file_fault, follow_umask, leads_out, written_whole


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "a.safetensors") as beside:
            save_file({"a": torch.zeros(1)}, beside)
        (tmp_path / "model").mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / "model" / "b.safetensors")
        follow_umask(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.safetensors", "model/b.safetensors")}
    assert modes == {0o666 & ~mask}


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "run")
    assert not list((tmp_path / "new" / "run").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(UserError, match="cannot be written .*: give another run.dir"):
            check_writable(folder, "give another run.dir")


def test_names_are_checked_and_no_folder_is_left(tmp_path):
    check_outputs(tmp_path / "new" / "deep", ("a.json",))
    (tmp_path / "there").mkdir()
    check_outputs(tmp_path / "there", ("a.json",))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    (tmp_path / "there" / "a.json").mkdir()
    with pytest.raises(UserError, match=r"--out .*a\.json is a folder"):
        check_outputs(tmp_path / "there", ("b.json", "a.json"))


def test_what_is_no_file_of_the_folder_is_told(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "pipe")
    (run / "file").touch()
    (run / "within").symlink_to(run / "file")
    (run / "out").symlink_to("/etc/passwd")
    (run / "lost").symlink_to(tmp_path / "nothing")
    (run / "circle").symlink_to(run / "circle")
    said = {name: file_fault(run / name, run) for name in ("file", "within", "pipe", "out", "lost", "no", "circle")}
    assert said.pop("file") is None and said.pop("within") is None
    assert said.pop("circle") is not None
    assert said == {
        "pipe": "is no regular file",
        "out": "is a link that leads out of its folder",
        "lost": "is a link that leads out of its folder",
        "no": "is missing",
    }
    assert leads_out(run / "out", run) and not leads_out(run / "within", run)
