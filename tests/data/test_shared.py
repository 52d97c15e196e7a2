"""Tables that the processes of a machine share: written once, whole or not at all, removed when no one uses them."""

import errno
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data import shared
from latentvid.data.manifest import samples as columns
from latentvid.data.manifest.manifest import read_manifest
from latentvid.data.manifest.samples import Row, Samples
from latentvid.data.shared import share, share_arrays
from latentvid.errors import UserError

SCHEMA = pyarrow.schema({"n": pyarrow.int64(), "t": pyarrow.binary()})


def batch(n: int) -> pyarrow.RecordBatch:
    return pyarrow.record_batch([[n] * 1000, [b"text %d" % n] * 1000], schema=SCHEMA)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the tables lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"latentvid-{os.getuid()}"


def start(code: str, folder, *words: str) -> subprocess.Popen:
    """A process that has the same tables, and says each line at once."""
    code = f"import os, pickle, sys\nfrom latentvid.data.shared import *\n{code}"
    place = {**os.environ, "TMPDIR": str(folder.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, env=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


rows_of = st.lists(st.tuples(st.text(st.characters(), max_size=5), st.text(max_size=5), st.integers(0, 9)), max_size=12)


@given(rows_of, rows_of, st.integers(1, 4), st.data())
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
def test_samples_are_the_rows(left, right, many, data):
    """Lone surrogates too: undecodable file names. Sent to another process, chosen from, joined, with new captions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BATCH_ROWS", many)
        parts = []
        for folder, rows in (("/a", left), ("/b", right)):
            rows = [Row(path, caption, n, 8.0, n, n, i, "bad" * (n == 0)) for i, (path, caption, n) in enumerate(rows)]
            samples, dropped = Samples.of(folder, lambda rows=rows: rows)
            assert list(dropped) == [(row.path, "bad") for row in rows if row.fault]
            parts.append((samples, [row for row in rows if not row.fault]))
    (first, kept), (second, others) = parts
    changed = {i: row.caption + "!" for i, row in enumerate(kept) if row.row % 2}
    kept = [row._replace(caption=changed.get(i, row.caption)) for i, row in enumerate(kept)]
    both = Samples.joined([first.with_captions(changed), second]).shared()
    expected = [(os.path.join("/a", row.path), row) for row in kept] + [(os.path.join("/b", r.path), r) for r in others]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(both), max_size=len(both))), bool)
    for found in (
        both,
        pickle.loads(pickle.dumps(both)),
        both.where(mask),
        pickle.loads(pickle.dumps(both.where(mask))),
    ):
        wanted = [e for e, m in zip(expected, mask, strict=True) if m or len(found) == len(both)]
        assert [(s.path, s.caption, s.frames) for s in found] == [
            (path, row.caption, row.frames) for path, row in wanted
        ]
        assert list(found.paths) == [row.path for _, row in wanted] and found.row.tolist() == [r.row for _, r in wanted]
        assert list(found.texts[1:7:2]) == [row.caption for _, row in wanted[1:7:2]]
    with pytest.raises(IndexError):
        both.paths[len(both)]


def test_arrays_are_sent_as_their_place_and_what_is_made_of_them_as_it_is(folder):
    made = {"a": np.arange(50_000), "b": np.linspace(0, 1, 50_000)}
    mapped = share_arrays(made)
    assert all(np.array_equal(mapped[name], made[name]) and not mapped[name].flags.writeable for name in made)
    assert share_arrays(mapped) == mapped and len(list(folder.iterdir())) == 1
    sent = pickle.dumps([mapped, mapped["a"][7:9], mapped["a"] + 1])
    again, part, more = pickle.loads(sent)
    assert len(sent) < 50_000 * 8 + 2000 and len(pickle.dumps(mapped)) < 1000
    assert part.tolist() == [7, 8] and more[-1] == 50_000 and np.array_equal(again["b"], made["b"])
    part[0] = 1  # a copy as any other
    del mapped, again, part, more
    gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux tells what a process has mapped")
def test_what_was_read_counts_as_memory_until_the_table_rests(folder):
    table = share("key", SCHEMA, lambda: map(batch, range(300)))

    def resident() -> int:
        words = iter(open("/proc/self/smaps").read().split())  # noqa: SIM115
        return sum(next(int(next(words)) for w in words if w == "Rss:") for w in words if w == table.path)

    assert sum(map(len, table["t"])) > 2_000_000 and resident() > 2000  # KB
    table.rest()
    assert resident() < 500
    assert table["t"][-1] == "text 299"


def test_processes_that_ask_at_once_make_a_table_once_and_the_last_removes_it(folder):
    code = """
schema = pyarrow.schema({"n": pyarrow.int64()})
def make():
    print("made", flush=True)
    import time; time.sleep(0.5)
    yield pyarrow.record_batch([[1, 2, 3]], schema=schema)
input()
table = share("key", schema, make)
print(table["n"].tolist())
input()
"""
    processes = [start(code, folder) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes]
    assert sorted(said) == ["[1, 2, 3]\n", "[1, 2, 3]\n", "made\n"]
    maker = processes.pop(said.index("made\n"))
    assert maker.stdout.readline() == "[1, 2, 3]\n"
    assert [path.name for path in folder.iterdir()] == ["key.arrow"]
    maker.kill()
    maker.wait()
    for process in processes:
        assert [path.name for path in folder.iterdir()] == ["key.arrow"]  # the others have it still
        process.communicate("end\n")
    assert not list(folder.iterdir())


def test_another_process_reads_what_it_is_sent(folder):
    samples = Samples.of("/c", lambda: [Row(f"{i}.mp4", "x", 9, 8.0, i, i) for i in range(9)])[0].shared()
    (folder.parent / "sent").write_bytes(pickle.dumps(samples))
    code = "samples = pickle.load(open(sys.argv[1], 'rb'))\nprint([(s.path, s.height) for s in samples])"
    said, _ = start(code, folder, str(folder.parent / "sent")).communicate()
    assert said.strip() == str([(f"/c/{i}.mp4", i) for i in range(9)])
    del samples
    with pytest.raises(UserError, match="is gone, which this run still needs"):
        pickle.loads((folder.parent / "sent").read_bytes())


def test_what_killed_processes_left_is_removed_by_the_next(folder):
    process = start("table = share_arrays({'a': np.arange(5)})\nprint('there')\ninput()", folder)
    assert process.stdout.readline() == "there\n"
    (left,) = folder.iterdir()
    mine = share("mine", SCHEMA, lambda: [batch(0)])
    assert {path.name for path in folder.iterdir()} == {left.name, "mine.arrow"}
    process.kill()
    process.wait()
    (folder / "other.part").write_bytes(b"half a table")
    again = share("more", SCHEMA, lambda: [batch(1)])
    assert {path.name for path in folder.iterdir()} == {"mine.arrow", "more.arrow"}
    assert list(mine["t"][:2]) == ["text 0"] * 2 and list(again["t"][:1]) == ["text 1"]


def test_a_table_that_cannot_be_made_leaves_nothing(folder):
    def fails():
        yield batch(0)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        share("key", SCHEMA, fails)
    assert not list(folder.iterdir())
    assert share("key", SCHEMA, lambda: [batch(0), batch(1)])["n"].tolist() == [0] * 1000 + [1] * 1000


def test_a_fault_of_what_a_table_is_made_of_is_not_the_folders(folder):
    def fails():
        yield batch(0)
        raise OSError(errno.EIO, "the clips' disk")

    with pytest.raises(OSError, match="the clips' disk"):
        share("key", SCHEMA, fails)
    assert not list(folder.iterdir())


def test_a_full_disk_is_said_with_the_folder(folder):
    """As a limit of a file's size, which fails as a full disk does."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    share_arrays({"a": np.arange(100_000)})
except UserError as error:
    print(error)
"""
    said, _ = start(code, folder).communicate()
    assert f"{folder}: the table of clips cannot be kept there (" in said and "set TMPDIR to a folder" in said
    assert not list(folder.iterdir())


def test_a_folder_that_others_may_write_to_is_not_believed(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder} is not a folder of this user's alone"):
        share_arrays({"a": np.arange(5)})
    folder.rmdir()
    folder.symlink_to(folder.parent)
    with pytest.raises(UserError, match="is not a folder of this user's alone"):
        share_arrays({"a": np.arange(5)})


def test_a_table_is_read_without_its_rows_in_memory(folder, tmp_path, monkeypatch):
    """Of a row some 60 bytes stay while it is read; and processes that read the same table have one file."""
    monkeypatch.setattr(columns, "BATCH_ROWS", 250)
    peaks = {}
    for rows in (500, 5_500):
        table = tmp_path / f"{rows}.jsonl"
        row = {"caption": "word " * 50, "frames": 9, "fps": 8.0, "height": 32, "width": 32}
        table.write_text("".join(json.dumps({"path": f"{i}.mp4", **row}) + "\n" for i in range(rows)))
        tracemalloc.start()
        manifest = read_manifest(table, check_files=False)
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[5500] - peaks[500] < 5000 * 100
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(shared.pyarrow.ipc, "new_file", lambda *_: pytest.fail("wrote it again"))
    again = read_manifest(table, check_files=False)
    assert list(again.samples[5:7]) == list(manifest.samples[5:7]) and {p.name for p in folder.iterdir()} == before
