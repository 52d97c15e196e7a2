"""Clips that are damaged, hang or lie elsewhere: replaced in place, listed, or waited for."""

import json
import logging
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_sources import PLAIN, cut_short, listing, make_clip, source

from latentvid.data.clips import ClipSource
from latentvid.data.manifest.manifest import Sample, read_manifest
from latentvid.data.quarantine import Quarantine
from latentvid.data.video.reading import read_windows
from latentvid.errors import ClipError, UserError


def test_a_truncated_clip_is_replaced_by_the_next_of_its_shape(folder, caplog):
    good = source(folder)
    expected = good.load(3, 0, 7).video
    cut_short(folder / "2.mp4")
    (folder / "6.png").write_bytes(b"")
    clips = source(folder)
    with caplog.at_level(logging.WARNING):
        replaced = clips.load(2, 0, 7)
        image = clips.load(6, 0, 8)
        clips.load(2, 0, 9)
        clips.load(1, 0, 10)
    assert (replaced.index, replaced.caption) == (3, "clip 3") and torch.equal(replaced.video, expected)
    assert image.index == 7 and image.video.shape == (3, 1, 32, 32)
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2 and "2.mp4" in messages[0] and "6.png" in messages[1]  # each once, by name
    shuffled = source(folder)  # who met which bad file first does not matter
    shuffled.load(6, 0, 8)
    assert shuffled.load(2, 0, 7).index == 3


@pytest.mark.parametrize("index", [1, 6])
def test_a_size_that_contradicts_the_file_is_said(folder, index):
    """It would be scaled and cropped into a shape that is not its own."""
    clips = source(folder)
    width = clips.samples.width.copy()
    width[[index, 7] if index == 6 else index] = 64
    clips.samples = replace(clips.samples, width=width)  # after the windows were cut: the shapes are the table's
    window = int((clips.windows.sample == index).argmax())
    with pytest.raises(ClipError, match="is 32 x 32 pixels, not 32 x 64 as its table says") as error:
        clips._read(window, 0)
    assert error.value.reason == "other-size" and clips.quarantine.reasons == {error.value.path: "other-size"}


def test_the_replacement_wraps_around(folder):
    cut_short(folder / "5.mp4")
    assert source(folder).load(5, 0, 0).index == 0


def test_no_good_clip_of_a_shape_is_an_error(folder):
    for name in ("6.png", "7.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no readable clip of shape \(1, 32, 32\) is left"):
        source(folder).load(6, 0, 0)


def test_packs_keep_their_shape_with_bad_clips(digits_data, tmp_path, caplog):
    """A pack of the VAE's task with a cut file among good ones has the plan's tokens."""
    from latentvid.config.parsing import load_config
    from latentvid.config.schema import VaeConfig
    from latentvid.data.plan.plan import Plan
    from latentvid.training.stages.vae.task import VaeTask

    shutil.copytree(digits_data, tmp_path / "data")
    data = tmp_path / "data"
    names = [s.path for s in read_manifest(data / "train.jsonl").samples if s.frames == 17]
    cut_short(Path(names[0]))
    config = load_config(
        VaeConfig, None, [f"run.dir={tmp_path}", f"data.manifest={data / 'train.jsonl'}", "model={widths: [8, 8, 8]}"]
    )
    task = VaeTask(config, torch.device("cpu"))
    step = Plan(task.tokens, budget=sum(task.tokens), packs=1, seed=0).next()  # an epoch in one pack
    pack = task.make_pack(step.packs[0])
    assert len([r for r in caplog.records if names[0] in r.getMessage()]) == 1
    assert sorted(pack.tokens) == sorted(task.tokens[draw.index] for draw in step.packs[0])
    assert sum(pack.tokens) == step.tokens and all(g.video.isfinite().all() for g in pack.groups)


@pytest.fixture
def hanging(monkeypatch):
    """Names of files that hang when read, until the test ends."""
    release, names = threading.Event(), set()

    def read(path, *arguments, **named):
        if Path(path).name in names:
            release.wait()
        return read_windows(path, *arguments, **named)

    monkeypatch.setattr("latentvid.data.clips.read_windows", read)
    yield names
    release.set()


def test_a_clip_that_hangs_is_quarantined_for_all(folder, hanging, caplog):
    """One process waits, once; another, and the resumed run, replace the clip at once by the same one."""
    hanging.add("2.mp4")
    clips, other = source(folder, timeout_s=0.3), source(folder, timeout_s=60.0)
    for one in (clips, other):
        one.quarantine = Quarantine(folder / "quarantine.jsonl")
    with caplog.at_level(logging.WARNING):
        found = clips.load(2, 0, 7)
    assert (found.index, found.replaced) == (3, True) and not clips.load(1, 0, 0).replaced
    assert len(caplog.records) == 1 and "2.mp4" in caplog.text and "0.3 s" in caplog.text
    begun = time.monotonic()
    again = pickle.loads(pickle.dumps(other)).load(2, 0, 7)
    assert torch.equal(again.pixels, found.pixels) and (again.index, again.replaced) == (3, True)
    with pytest.raises(ClipError, match="quarantine") as error:
        other.read(2)
    assert error.value.reason == "hangs" and time.monotonic() - begun < 10
    (line,) = (folder / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("2.mp4") and json.loads(line)["reason"] == "hangs"


def test_the_good_windows_of_a_damaged_file_stay_whoever_comes_first(tmp_path, monkeypatch):
    """Which clip a sample becomes must not depend on which window of its file was met before."""
    for name in "abc":
        make_clip(tmp_path / f"{name}.mp4", 34)

    def read(path, starts, *arguments, **named):
        if Path(path).name == "b.mp4" and max(starts) > 0:
            raise ClipError(path, "unreadable", "has damaged frames")
        return read_windows(path, starts, *arguments, **named)

    monkeypatch.setattr("latentvid.data.clips.read_windows", read)
    samples = [Sample(str(tmp_path / f"{name}.mp4"), name, 34, 8.0, 32, 32) for name in "abc"]
    sources = [ClipSource(listing(*samples), PLAIN) for _ in range(2)]
    for order, clips in zip(([2, 3], [3, 2]), sources, strict=True):
        found = {index: clips.load(index, 0, index).index for index in order}
        assert found == {2: 2, 3: 4}
        assert clips.quarantine.reasons == {str(tmp_path / "b.mp4"): "unreadable"}
    for name in "ac":
        cut_short(tmp_path / f"{name}.mp4")
    assert ClipSource(listing(*samples), PLAIN).load(3, 0, 0).index == 2  # another window of its file, for want of more


def test_storage_that_is_gone_stops_the_run():
    samples = (Sample(f"gone/{i}.mp4", "c", 9, 8.0, 32, 32) for i in range(300))
    with pytest.raises(UserError, match="100 files in a row cannot be read: is their storage there"):
        ClipSource(listing(*samples), PLAIN, patience_s=0.0).load(5, 0, 0)
