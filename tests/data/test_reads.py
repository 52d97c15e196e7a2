"""Windows read together: the same clips as one by one, each decoded once, and a plan that keeps a read in one pack."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.config.parsing import load_config
from latentvid.config.schema import VaeConfig
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.data.plan.plan import Draw, Plan, Step, Stream
from latentvid.data.plan.reads import group, runs
from latentvid.data.video.reading import read_windows
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, UserError
from latentvid.training.launch import make_plan
from latentvid.training.stages.vae.task import VaeTask

PLAIN = Transform(spatial_stride=8, temporal_stride=4, max_frames=5)
FRAMES = {"a": 23, "b": 5, "c": 31}  # 4, 1 and 6 windows of 5
FILES = {n: name for n, name in enumerate("aaaabcccccc")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in FRAMES.items():
        noise = torch.randint(0, 256, (frames, 24, 40, 3), dtype=torch.uint8, generator=torch.manual_seed(frames))
        write_video(folder / f"{name}.mp4", noise, 8.0)
    return folder


def source(folder: Path, transform: Transform = PLAIN) -> ClipSource:
    samples = (Sample(str(folder / f"{name}.mp4"), name, n, 8.0, 24, 40) for name, n in FRAMES.items())
    return ClipSource(Manifest.of("test", samples), transform)


@pytest.fixture
def decodings(monkeypatch) -> list[tuple[str, int]]:
    """(file, windows) of each decoding; a start of 10 or more in c.mp4 is damaged."""
    seen = []

    def read(path, starts, *arguments, **named):
        seen.append((Path(path).stem, len(starts)))
        if seen[-1][0] == "c" and max(starts) >= 10:
            raise ClipError(path, "unreadable", "has damaged frames")
        return read_windows(path, starts, *arguments, **named)

    monkeypatch.setattr("latentvid.data.clips.read_windows", read)
    return seen


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), max_size=8))
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_a_file_has_few_reads_of_like_sizes(files):
    file = np.repeat(np.arange(len(files)), [windows for windows, _ in files])
    most = np.array([files[i][1] for i in file], int)
    found = group(file, most)
    assert found.shape == file.shape and (np.diff(found, prepend=0) >= 0).all()
    for i, (windows, limit) in enumerate(files):
        sizes = list(Counter(found[file == i].tolist()).values())
        assert sum(sizes) == windows and len(sizes) == -(-windows // max(limit, 1))
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= max(limit, 1)
    assert len(set(found.tolist())) == len({(f, r) for f, r in zip(file.tolist(), found.tolist(), strict=True)})


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40), st.sampled_from([5, 5, 9])), min_size=1, max_size=12),
    st.sampled_from([None, 12, 30]),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_runs_are_what_one_decoding_can_give(windows, most):
    file, starts, frames = (list(column) for column in zip(*windows, strict=True))
    found = list(runs(file, starts, frames, most))
    assert [i for run in found for i in run] == list(range(len(windows)))
    for run in found:
        assert len({(file[i], frames[i]) for i in run}) == 1
        assert all(0 <= starts[i + 1] - starts[i] < 2 * frames[i] for i in run[:-1])  # less than a window between
        assert most is None or len(run) == 1 or starts[run[-1]] + frames[run[-1]] - starts[run[0]] <= most


@pytest.mark.parametrize(
    "transform", [PLAIN, replace(PLAIN, max_area=24 * 24, crop=16, flip=True)], ids=["plain", "all"]
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [6, 5, 4, 0, 2, 3, 3, 1], [9], []])
def test_read_together_or_alone_the_clips_are_the_same(folder, decodings, transform, order):
    draws = [Draw(100 + 7 * n, index) for n, index in enumerate(order)]
    alone, together = source(folder, transform), source(folder, transform)
    expected = [alone.load(draw.index, 3, draw.number) for draw in draws]
    decodings.clear()
    found = list(together.load_each(draws, 3))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.pixels, b.pixels) and a.pixels.is_contiguous()
        assert (a.caption, a.index, a.replaced) == (b.caption, b.index, b.replaced)
    assert together.quarantine.reasons == alone.quarantine.reasons
    if order == [0, 1, 2, 3, 4, 5, 6, 7]:  # c's last window is at fault, so its three are read one by one
        assert decodings[:3] == [("a", 4), ("b", 1), ("c", 3)] and decodings[3:6] == [("c", 1)] * 3
        assert [clip.replaced for clip in found] == [False] * 7 + [True]


def test_a_cache_is_encoded_of_the_same_videos(folder, decodings):
    alone, together = source(folder), source(folder)
    found = list(together.read_each(range(11)))
    assert decodings[0] == ("a", 4) and ("b", 1) in decodings and decodings.count(("a", 1)) == 0
    for index, video in enumerate(found):
        if index >= 7:
            assert isinstance(video, ClipError) and video.path.endswith("c.mp4")
        else:
            assert torch.equal(video, alone.read(index))


def test_reads_are_as_long_as_frames_and_pack_allow(folder):
    clips = source(folder)
    tokens = np.full(len(clips), 10)

    def sizes(**limits: int) -> list[int]:
        reads = clips.reads(tokens, **limits)
        assert [FILES[i] for i in range(11)] == [clips.caption(i) for i in range(11)]
        assert all(len({FILES[i] for i in np.flatnonzero(reads == r)}) == 1 for r in reads)
        return np.bincount(reads).tolist()

    assert sizes(frames=128, most_tokens=1000) == [4, 1, 6]
    assert sizes(frames=24, most_tokens=1000) == [4, 1, 3, 3]
    assert sizes(frames=128, most_tokens=39) == [2, 2, 1, 3, 3]
    assert sizes(frames=4, most_tokens=1000) == sizes(frames=128, most_tokens=5) == [1] * 11


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=25),
    budget=st.integers(40, 100), packs=st.integers(1, 4), seed=st.integers(0, 9), split=st.booleans(),
)  # fmt: skip
def test_a_read_is_drawn_whole_into_one_pack_and_nothing_else_changes(sizes, budget, packs, seed, split):
    tokens = [t for windows, t in sizes for _ in range(windows)]
    reads = np.repeat(np.arange(len(sizes)), [windows for windows, _ in sizes])
    border = int(np.searchsorted(reads, len(sizes) // 2))
    streams = (
        [Stream(np.arange(border), 2.0), Stream(np.arange(border, len(tokens)), 1.0)] if split and border else None
    )
    plan = Plan(tokens, budget=budget, packs=packs, seed=seed, streams=streams, reads=reads)
    steps: list[Step] = []
    while min(plan.epochs) < 2 and plan.epoch < 8:
        steps.append(plan.next())
        step = steps[-1]
        assert step.samples == sum(map(len, step.packs)) and len(step.packs) == packs
        assert step.tokens == sum(tokens[draw.index] for pack in step.packs for draw in pack)
        assert step.costs == pytest.approx([sum(tokens[draw.index] for draw in pack) for pack in step.packs])
        assert 0 < max(step.costs) <= budget
        for pack in step.packs:
            place = 0
            while place < len(pack):
                begin = pack[place]
                whole = np.flatnonzero(reads == reads[begin.index]).tolist()
                assert pack[place : place + len(whole)] == tuple(Draw(begin.number + n, i) for n, i in enumerate(whole))
                place += len(whole)
    steps += [plan.next() for _ in range(plan.lookahead - plan.state_dict()["place"])]
    taken = [draw for step in steps for pack in step.packs for draw in pack]
    waiting = [
        Draw(number + n, index + n)
        for number, index, _ in plan.carried
        for n in range(int((reads == reads[index]).sum()))
    ]
    assert plan.epoch == pytest.approx(len(taken) / len(tokens))
    taken = sorted(taken + waiting)
    assert [number for number, _ in taken] == list(range(len(taken)))  # none lost, none twice
    for stream in streams or [Stream(np.arange(len(tokens)), 1.0)]:
        mine = [index for _, index in taken if index in stream.index]
        for start in range(0, len(mine) - len(stream.index) + 1, len(stream.index)):
            assert sorted(mine[start : start + len(stream.index)]) == stream.index.tolist()


def grouped(count: int = 97) -> tuple[list[int], np.ndarray]:
    """Tokens, and reads, of files of one to five windows."""
    windows = np.random.default_rng(0).integers(1, 6, count)
    return np.repeat(np.random.default_rng(1).choice([4, 16, 40], count), windows).tolist(), np.repeat(
        np.arange(count), windows
    )


def test_goes_on_from_saved_state_as_if_never_stopped():
    tokens, reads = grouped()
    arguments = {"budget": 256, "packs": 3, "seed": 5, "reads": reads, "cost": np.array(tokens) ** 1.5}
    whole = Plan(tokens, **arguments)
    states, steps = [whole.state_dict()], []
    for _ in range(4 * whole.lookahead):
        steps.append(whole.next())
        states.append(json.loads(json.dumps(whole.state_dict())))
    for stop in {0, 1, whole.lookahead - 1, whole.lookahead, whole.lookahead + 1, 3 * whole.lookahead + 2}:
        resumed = Plan(tokens, **arguments)
        resumed.load_state_dict(states[stop])
        assert resumed.state_dict() == states[stop]
        for n in range(stop, len(steps)):
            assert resumed.next() == steps[n]
            assert resumed.state_dict() == states[n + 1]
        assert (resumed.epoch, resumed.epochs) == (whole.epoch, whole.epochs)


def test_files_of_one_window_are_planned_as_before():
    """A run of such files that began without reads goes on with them."""
    tokens = grouped()[0]
    plain, alone = (Plan(tokens, budget=256, packs=3, seed=5, reads=r) for r in (None, np.arange(len(tokens))))
    for _ in range(3 * plain.lookahead):
        assert plain.next() == alone.next() and plain.state_dict() == alone.state_dict()


def test_a_run_with_other_reads_is_refused():
    tokens, reads = grouped()
    other = reads.copy()
    other[np.argmax(np.diff(reads) == 0) + 1 :] += 1  # the first read of several is parted
    plans = [Plan(tokens, budget=256, packs=3, seed=5, reads=r) for r in (None, reads, other)]
    for plan in plans:
        plan.next()
        for one in plans:
            if one is not plan:
                with pytest.raises(UserError, match=r"read together changed .* data\.frames_per_read"):
                    one.load_state_dict(plan.state_dict())
    with pytest.raises(UserError, match=r"read together changed .* data\.tokens_per_pack, which bounds it"):
        Plan(tokens, budget=300, packs=3, seed=5, reads=other).load_state_dict(plans[1].state_dict())


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ([0, 1, 1], "must number 4 samples"),
        ([1, 1, 2, 3], "ascending from 0"),
        ([0, 2, 2, 3], "without gaps"),
        ([0, 1, 0, 1], "ascending"),
        ([0, 0, 1, 1], "holds 5 tokens but the largest read has 6"),
        ([0, 1, 1, 2], "one stream as a whole"),
    ],
)
def test_reads_that_are_none_are_refused(reads, message):
    streams = [Stream(np.array([0, 1]), 1.0), Stream(np.array([2, 3]), 1.0)]
    with pytest.raises(ValueError, match=message):
        Plan([3] * 4, budget=5, packs=1, seed=0, streams=streams, reads=np.array(reads))


def test_streams_that_trade_halves_of_reads_are_refused():
    streams = [Stream(np.array([0, 3]), 1.0), Stream(np.array([1, 2]), 1.0)]
    with pytest.raises(ValueError, match="one stream as a whole"):
        Plan([3] * 4, budget=9, packs=1, seed=0, streams=streams, reads=np.array([0, 0, 1, 1]))


def test_the_task_draws_windows_of_a_read_together(folder, decodings):
    rows = [{"path": str(folder / f"{name}.mp4"), "caption": name} for name in FRAMES]
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(*lines: str) -> tuple[VaeConfig, VaeTask]:
        lines = ("model={widths: [8, 8, 8]}", "data.max_frames=5", "data.tokens_per_pack=4096", *lines)
        config = load_config(VaeConfig, None, [f"run.dir={folder}", f"data.manifest={manifest}", *lines])
        return config, VaeTask(config, torch.device("cpu"))

    together = ([0, 1, 2, 3, 4], [4, 0, 1, 2, 3])
    for lines, grouped in (((), True), (("data.frames_per_read=null",), False)):
        config, vae = task(*lines)
        (drawn, *_) = make_plan(config, vae).next().packs  # several epochs
        mine = [draw for draw in drawn if draw.index < 5][:5]
        assert ([draw.index for draw in mine] in together) == grouped
        decodings.clear()
        pack = vae.make_pack(mine)
        assert sum(len(group.video) for group in pack.groups) == 5
        assert (sorted(decodings) == [("a", 4), ("b", 1)]) == grouped
