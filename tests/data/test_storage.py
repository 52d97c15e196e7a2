"""Faults of the storage pass or stop a run and count against no clip; faults of a file count once they are certain."""

import errno
import os
import pickle
from pathlib import Path

import av
import pytest
import torch
from caches import write_index_of_before, write_shard_of_before
from safetensors import SafetensorError

from latentvid.data import storage
from latentvid.data.cache import shards
from latentvid.data.cache.known import computed_in, look
from latentvid.data.cache.latents import LatentCache, LatentCaches
from latentvid.data.cache.shards import Encoded
from latentvid.data.cache.writing import cache_key
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.quarantine import Hangs, Quarantine
from latentvid.data.storage import patiently, read_plainly
from latentvid.data.video import reading as video
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, StorageError, UserError

TRANSIENT = ("ESTALE", "EIO", "ETIMEDOUT", "ENETDOWN", "EHOSTDOWN", "ECONNRESET", "EMFILE")


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", made.append)
    return made


@pytest.fixture
def clips(tmp_path) -> ClipSource:
    """Three clips of one size, with a quarantine in a file."""
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", torch.full((5, 32, 32, 3), 99, dtype=torch.uint8), 8.0)
    samples = [Sample(str(tmp_path / f"{name}.mp4"), name, 5, 8.0, 32, 32) for name in "abc"]
    clips = ClipSource(Manifest.of("test", samples), Transform(spatial_stride=8, temporal_stride=4))
    clips.quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    return clips


def failing(monkeypatch, owner: object, name: str, error: Exception, times: int, only: str = "") -> None:
    """`owner.name` raises, as often, where its first argument ends in `only`."""
    whole, left = getattr(owner, name), [times]

    def call(path: object, *arguments: object, **named: object) -> object:
        if left[0] and str(path).endswith(only):
            left[0] -= 1
            raise error
        return whole(path, *arguments, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("name", TRANSIENT)
@pytest.mark.parametrize("where", ["opening", "looking"])
def test_a_fault_of_the_storage_is_waited_for_and_no_clip_is_replaced(where, name, clips, pauses, monkeypatch):
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number))
    failing(monkeypatch, *{"opening": (av, "open"), "looking": (video.os, "stat")}[where], error, 3, only="b.mp4")
    found = clips.load(1, 0, 0)
    assert (found.index, found.replaced) == (1, False)
    assert pauses == [0.25, 0.5, 1.0]
    assert not clips.quarantine.reasons and not clips.quarantine.file.exists()


def test_pyavs_own_errors_carry_the_number(clips, pauses, monkeypatch):
    number = errno.ETIMEDOUT
    failing(monkeypatch, av, "open", av.error.TimeoutError(number, os.strerror(number), "b.mp4"), 1, only="b.mp4")
    assert not clips.load(1, 0, 0).replaced and not clips.quarantine.reasons


def test_a_read_that_hangs_once_is_read_again(clips, pauses, monkeypatch):
    failing(monkeypatch, video.os, "stat", Hangs("no answer within 120 s"), 1, only="b.mp4")
    assert not clips.load(1, 0, 0).replaced and not clips.quarantine.reasons


def test_storage_that_stays_away_stops_the_run_and_sets_nothing_aside(clips, pauses, monkeypatch):
    error = OSError(errno.ESTALE, "Stale file handle")
    failing(monkeypatch, video.os, "stat", error, 10**6, only="b.mp4")
    with pytest.raises(
        StorageError, match=r"b\.mp4: its storage does not answer \(Stale file handle\), for \d+ s: bring"
    ):
        clips.load(1, 0, 0)
    assert 100 < sum(pauses) <= storage.PATIENCE_S and not clips.quarantine.file.exists()


def test_all_files_gone_at_once_is_the_storage_and_they_come_back(tmp_path, pauses, monkeypatch):
    """An unmounted file system has no files: a hundred of them in a row are waited for."""
    samples = [Sample(str(tmp_path / f"{i}.mp4"), "c", 5, 8.0, 32, 32) for i in range(120)]
    clips = ClipSource(Manifest.of("test", samples), Transform(spatial_stride=8, temporal_stride=4))

    def mount(seconds: float) -> None:
        pauses.append(seconds)
        if sum(pauses) > 20:
            write_video(tmp_path / "7.mp4", torch.full((5, 32, 32, 3), 99, dtype=torch.uint8), 8.0)

    monkeypatch.setattr(storage.time, "sleep", mount)
    found = clips.load(7, 0, 0)
    assert (found.index, found.replaced) == (7, False) and not clips.quarantine.reasons


def test_a_file_that_shows_up_again_is_not_set_aside(clips, tmp_path, pauses, monkeypatch):
    """It came back after its absence seemed certain, before another took its place."""
    (tmp_path / "b.mp4").rename(tmp_path / "away")
    opened = av.open

    def bring_back(path: str, **named: object) -> object:
        if (tmp_path / "away").exists():
            (tmp_path / "away").rename(tmp_path / "b.mp4")
        return opened(path, **named)

    monkeypatch.setattr(av, "open", bring_back)
    assert not clips.load(1, 0, 0).replaced and not clips.quarantine.reasons


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.unlink, "missing"),
        (lambda file: file.write_bytes(b""), "empty-file"),
        (lambda file: file.write_bytes(b"no video at all" * 99), "unreadable"),
    ],
)
def test_a_fault_of_the_file_is_certain_at_the_second_look(spoil, reason, clips, tmp_path, pauses):
    spoil(tmp_path / "b.mp4")
    found = clips.load(1, 0, 0)
    assert (found.index, found.replaced) == (2, True)
    assert clips.quarantine.reasons == {str(tmp_path / "b.mp4"): reason}
    assert 0 < sum(pauses) <= storage.ABSENT_S
    clips.load(1, 0, 0)
    assert sum(pauses) <= storage.ABSENT_S + 0.25  # a file that is known to be gone is not waited for again


def test_a_refused_permission_is_named(clips, tmp_path, pauses, monkeypatch):
    failing(monkeypatch, av, "open", PermissionError(errno.EACCES, "Permission denied"), 10**6, only="b.mp4")
    assert clips.load(1, 0, 0).index == 2
    assert clips.quarantine.reasons == {str(tmp_path / "b.mp4"): "no-permission"}


def test_what_a_fault_broke_off_is_not_the_files(tmp_path, pauses):
    """A decoder calls what it did not get to read a cut file: the file is read without it before that is believed."""
    (tmp_path / "x").write_bytes(b"x")
    stale = OSError(errno.ESTALE, "Stale file handle")
    answers = [ClipError("x", "truncated", "is cut short"), ClipError("x", "truncated", "is cut short"), "frames"]
    plain = [stale, stale]

    def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, ClipError):
            raise answer
        return answer

    def plainly(path: object) -> None:
        raise plain.pop(0)

    assert patiently(read, "x", plainly=plainly) == "frames"
    read_plainly(tmp_path / "x")


# --- caches of latents ---


@pytest.fixture
def cache(tmp_path) -> Path:
    """Two windows, each in a shard of its own."""
    key = cache_key("vae", "t5", {})
    for shard in range(2):
        entry = Encoded(torch.full((4, 1, 2, 2), shard + 1.0), torch.ones(4, 1, 2, 2), torch.ones(3, 8))
        more = {} if shard else {"null_text": torch.ones(1, 8)}
        write_shard_of_before(tmp_path, shard, key, {shard: entry}, **more)
    write_index_of_before(tmp_path, key, 1, {0: (1, 2, 2), 1: (1, 2, 2)}, format=2)
    return tmp_path


@pytest.mark.parametrize("name", ["ESTALE", "EIO", "ETIMEDOUT"])
@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("cache.json", "looking"),
        ("cache.json", "opening"),
        ("shard-00001.safetensors", "looking"),
        ("shard-00001.safetensors", "opening"),
        ("shard-00001.safetensors", "header"),
    ],
)
def test_a_fault_under_a_cache_is_waited_for(file, where, name, cache, pauses, monkeypatch):
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number))
    if where == "header":  # as safetensors says it
        error = SafetensorError(f"Error while deserializing header: I/O error: x (os error {number})")
    owner, called = {"looking": (os, "stat"), "opening": (Path, "open"), "header": (shards, "safe_open")}[where]
    failing(monkeypatch, owner, called, error, 2, only=file)
    found = LatentCache(cache)
    assert (float(found.load(1).mean.mean()), float(found.load(0).mean.mean())) == (2.0, 1.0)
    assert pauses == [0.25, 0.5]


def test_a_fault_in_the_middle_of_a_shard_is_waited_for(cache, pauses, monkeypatch):
    """Long after it was opened, as in training: its open file is no longer good, and opening it anew fails too."""
    found = LatentCache(cache)
    found.load(1)
    for number in (errno.ESTALE, errno.ETIMEDOUT):
        error = OSError(number, os.strerror(number))
        pauses.clear()
        failing(monkeypatch, os, "preadv", error, 1)
        failing(monkeypatch, Path, "open", error, 2, only="shard-00001.safetensors")
        assert float(found.load(1).mean.mean()) == 2.0 and pauses == [0.25, 0.5, 1.0]


def test_what_came_back_after_a_fault_is_checked_again(cache, pauses, monkeypatch):
    found, path = LatentCache(cache), cache / "shard-00001.safetensors"
    found.load(1)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found.load(1)  # of the file that it has open
    failing(monkeypatch, os, "preadv", OSError(errno.ESTALE, "Stale file handle"), 1)
    with pytest.raises(UserError, match=r"shard-00001.* is not what was written"):
        found.load(1)


def test_storage_that_stays_away_ends_training_with_its_name(cache, pauses, monkeypatch):
    found = LatentCaches([cache], 20.0)
    assert pickle.loads(pickle.dumps(found)).caches[0].patience_s == 20.0
    failing(monkeypatch, os, "stat", OSError(errno.ESTALE, "Stale file handle"), 10**6, only="shard-00001.safetensors")
    with pytest.raises(
        StorageError, match=r"shard-00001\.safetensors: its storage does not answer .*: bring the storage"
    ):
        found.load(1)
    assert 10 < sum(pauses) <= 20


def test_what_was_encoded_is_not_given_up_for_a_fault(cache, pauses, monkeypatch):
    """As a shard that is damaged is: it would be encoded again."""
    failing(monkeypatch, Path, "open", OSError(errno.ESTALE, "Stale file handle"), 10**6, only=".safetensors")
    with pytest.raises(StorageError):
        computed_in(cache, "vae")
    with pytest.raises(StorageError):
        look(cache, "shard-00001.safetensors", cache_key("vae", "t5", {}))
    assert not list(cache.glob("work/*"))


def test_other_errors_are_not_tried_again(pauses):
    for error in (ZeroDivisionError(), OSError(errno.ENOSPC, "full"), UserError("no clip is left")):
        with pytest.raises(type(error)):
            patiently(lambda error=error: (_ for _ in ()).throw(error), "x")
    assert not pauses


def test_a_storage_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(StorageError("a.mp4", "Stale file handle", errno.ESTALE).after(3)))
    assert str(error).startswith("a.mp4: its storage does not answer (Stale file handle), for 3 s")
    assert error.number == errno.ESTALE
