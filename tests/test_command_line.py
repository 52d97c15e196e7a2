"""One grammar for all programs, and one line where something is wrong."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import launch
from safetensors import SafetensorError

from latentvid.command_line import Parser
from latentvid.errors import ClipError, UserError, user_errors


def parser() -> Parser:
    made = Parser(prog="x.py", description="Makes.")
    made.add_argument("--steps", type=int)
    made.add_argument("--guidance-rescale", type=float)
    made.add_argument("--fps", type=float)
    made.add_argument("--many", type=int)
    made.add_argument("--interval", type=float, nargs=2)
    made.add_argument("--prompt", action="append")
    made.add_argument("clips", nargs="*")
    return made


@pytest.mark.parametrize(
    "line",
    [
        ["--guidance-rescale", "0.5", "a"],
        ["--guidance_rescale", "0.5", "a"],
        ["--guidance-rescale=0.5", "a"],
        ["--guidance_rescale=0.5", "--", "a"],
        ["a", "--guidance_rescale=0.5"],
    ],
)
def test_dashes_and_underscores_spaces_and_equals_are_the_same(line):
    found = parser().parse_args(line)
    assert (found.guidance_rescale, found.clips) == (0.5, ["a"])


def test_values_are_left_as_they_are():
    found = parser().parse_args(["--prompt=--a_b", "--prompt", "c_d=--e_f", "--many", "-7", "--", "--g_h"])
    assert (found.prompt, found.many, found.clips) == (["--a_b", "c_d=--e_f"], -7, ["--g_h"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--stpes", "3"], "unknown option --stpes: did you mean --steps?"),
        (["--guidance_rescal=1"], "unknown option --guidance_rescal: did you mean --guidance-rescale?"),
        (["--ste", "3"], "unknown option --ste: did you mean --steps?"),
        (["--zzzzzz"], "unknown option --zzzzzz: there are --fps, "),
        (["--steps", "0"], "--steps 0: must be a whole number from 1 to 10,000"),
        (["--steps", "2.5"], "--steps 2.5: must be a whole number"),
        (["--steps", "9" * 5000], "--steps 9999999999"),
        (["--fps", "nan"], "--fps nan: must be a finite number from 0.001 to 1,000"),
        (["--fps=-inf"], "--fps -inf: must be a finite number"),
        (["--guidance-rescale", "x"], "--guidance-rescale x: must be a finite number from 0 to 1"),
        (["--many", "99999999999999999999"], "--many 99999999999999999999: must be a whole number from"),
        (["--interval", "0", "nan"], "--interval nan: must be a finite number"),
        (["--steps"], "--steps expected one argument"),
        (["--steps=--"], "--steps: `--` is no value"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(line, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(line)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.startswith(f"error: {said}") and text.count("\n") == 1 and len(text) < 300


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no such\nclip"), 2, "error: no such clip"),
        (ClipError("a.mp4", "truncated", "is cut off"), 2, "error: a.mp4: is cut off"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 2, "error: out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "error: out of memory (CUDA out of"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.mp4"),
            2,
            "error: out/a.mp4: No space left on device: ",
        ),
        (OSError(errno.EROFS, "Read-only file system", "out"), 2, "error: out: Read-only file system: choose a folder"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "error: Too many open files: raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", b"out"), 2, "error: out: Permission denied: "),
        (OSError(errno.EIO, "Input/output error", 3), 2, "error: Input/output error"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            2,
            "error: a file of tensors cannot be written (No space left on device (os error 28)): make room",
        ),
    ],
)
def test_every_program_ends_with_one_line(error, status, said, capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    text = capsys.readouterr().err
    assert stop.value.code == status and text.startswith(said) and text.count("\n") == 1


def test_what_ctrl_c_left_is_said(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise KeyboardInterrupt("the first 9 frames are in a.mp4")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: interrupted: the first 9 frames are in a.mp4\n"


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    """By whatever name, of one file or of several; a name that is new, or nobody reads, may be written."""
    made = Parser(prog="x.py")
    made.add_argument("--clip", type=Path, action="append", default=[])
    made.add_argument("--output", type=Path)
    clip, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
    clip.write_bytes(b"0")
    other.write_bytes(b"1")
    (tmp_path / "link.mp4").symlink_to(clip)
    for name in ("clip.mp4", "link.mp4", "../" + tmp_path.name + "/clip.mp4"):
        with pytest.raises(SystemExit) as stop:
            made.parse_args(["--clip", str(other), "--clip", str(clip), "--output", str(tmp_path / name)])
        assert stop.value.code == 2 and "is a file that is read (clip): give another name" in capsys.readouterr().err
    for name in ("new.mp4", "other.mp4"):
        assert made.parse_args(["--clip", str(clip), "--output", str(tmp_path / name)]).clip == [clip]


def test_the_message_is_written_at_once(monkeypatch):
    """A launcher's processes write unbuffered: the line and its end as two writes would mix with another process's."""
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    with pytest.raises(SystemExit), user_errors():
        raise UserError("no such clip")
    assert [text for text in written if text] == ["error: no such clip\n"]


@pytest.mark.distributed
def test_a_launcher_of_several_processes_ends_with_the_message(tmp_path):
    """Below its own traceback, in its summary, which torch frames; nothing of torch's own words is there instead."""
    program = tmp_path / "program.py"
    program.write_text(
        "from latentvid.errors import UserError, user_errors\n"
        "with user_errors():\n    raise UserError('no such clip: correct the path')\n"
    )
    done = launch("ddp", 2, [program], check=False)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip("= ")]
    assert done.returncode == 1 and lines[-1] == "traceback : error: no such clip: correct the path", done.stderr
    assert lines.count("error: no such clip: correct the path") >= 1 and "To enable traceback" not in done.stderr


def test_a_closed_pipe_ends_quietly(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert stop.value.code == 141 and capsys.readouterr().err == ""


@pytest.mark.parametrize("bug", [KeyError("a"), RuntimeError("shapes differ"), OSError("no number")])
def test_bugs_keep_their_traceback(bug):
    with pytest.raises(type(bug)), user_errors():
        raise bug
