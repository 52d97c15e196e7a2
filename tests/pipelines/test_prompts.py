"""Many prompts from a file: rows read as meant, the same clips however they are packed, and runs that go on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import ROOT, launch

from latentvid import precision
from latentvid.data.manifest.tables import WRITERS
from latentvid.data.video.reading import probe, read_frames
from latentvid.errors import UserError
from latentvid.lock import FolderLock
from latentvid.pipelines import prompts
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.prompts import INDEX, Row, plan, read_prompts, request_of, sample_prompts
from latentvid.pipelines.sampling import Sampling

FAST = Sampling(steps=2, progress=False)
TABLE = """prompt,seed,frames,height,name
a red 7,,,,
"a blue three, moves up",40,1,,second
a red 7,,9,16,sheet.png
a red 7,3,,,
a blue three,,,,
a red 7,,1,,
"""


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline) -> LatentVideoPipeline:
    return load_pipeline(tiny_pipeline, "cpu")


@pytest.fixture
def table(tmp_path) -> Path:
    (tmp_path / "prompts.csv").write_text(TABLE)
    return tmp_path / "prompts.csv"


class Rank:
    """A process of several, without processes: `at_first_wait` stands for what the others do meanwhile."""

    def __init__(self, index: int = 0, of: int = 1, at_first_wait=lambda: None) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, of, index == 0
        self.at_first_wait = at_first_wait

    def wait_for_everyone(self) -> None:
        self.at_first_wait()
        self.at_first_wait = lambda: None


def test_cells_and_defaults(pipeline, table):
    rows = read_prompts(table, pipeline, seed=100, negative_prompt="blue", width=40)
    common = {"negative_prompt": "blue", "width": 40, "fps": 8.0}
    assert rows[0] == Row(file="00000.mp4", prompt="a red 7", seed=100, frames=5, height=32, **common)
    blue = "a blue three, moves up"
    assert rows[1] == Row(file="second.mp4", prompt=blue, seed=40, frames=1, height=32, **common)
    assert rows[2] == Row(file="sheet.png", prompt="a red 7", seed=102, frames=9, height=16, **common)
    assert [row.seed for row in rows] == [100, 40, 102, 3, 104, 105]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_kind_of_table_is_read(ending, pipeline, tmp_path):
    file = tmp_path / f"p.{ending}"
    WRITERS[f".{ending}"](
        file, [{"prompt": "é", "seed": 2**62 + 1, "frames": 5.0}, {"prompt": "b", "negative_prompt": "c"}]
    )
    first, second = read_prompts(file, pipeline)
    assert (first.prompt, first.frames, first.negative_prompt) == ("é", 5, "")
    assert (second.prompt, second.negative_prompt, second.seed) == ("b", "c", 1)
    if ending != "parquet":  # which keeps a column with a missing number as floats
        assert first.seed == 2**62 + 1


def test_latents_do_not_depend_on_the_packs(pipeline, table):
    rows = read_prompts(table, pipeline)

    def latents(tokens_per_pack: int, processes: int) -> dict[str, torch.Tensor]:
        packs = plan(pipeline, rows, tokens_per_pack, processes)
        assert sorted(row.file for pack in packs for row in pack) == sorted(row.file for row in rows)
        counts.append(len(packs))
        made = [pipeline.sample([request_of(pipeline, row) for row in pack], FAST) for pack in packs]
        return {row.file: z for pack, some in zip(packs, made, strict=True) for row, z in zip(pack, some, strict=True)}

    counts: list[int] = []
    one, each, shared = latents(10**6, 1), latents(1, 1), latents(10**6, 3)
    assert counts[:2] == [1, 6] and 3 <= counts[2] <= 4
    for file, z in one.items():
        for other in (each[file], shared[file]):
            torch.testing.assert_close(other, z, rtol=0, atol=1e-5 * max(1.0, z.abs().max().item()))
    assert (one["00000.mp4"] - one["00003.mp4"]).abs().max() > 0.1  # the same prompt and shape, another seed


def test_packs_hold_like_shapes_within_the_budget(pipeline, table):
    rows = read_prompts(table, pipeline)
    packs = plan(pipeline, rows, 64, 1)  # tokens: 32, 16, 24, 32, 32, 16
    assert [[row.file for row in pack] for pack in packs] == [
        ["00000.mp4", "00003.mp4"],
        ["00004.mp4", "second.mp4", "00005.mp4"],
        ["sheet.png"],
    ]
    with pytest.raises(UserError, match="tokens_per_pack=0"):
        plan(pipeline, rows, 0, 1)


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(pipeline, table, tmp_path, monkeypatch, capsys):
    rows = read_prompts(table, pipeline)
    write, written = prompts.write, []

    def stopping(path, clip, fps, said):
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, clip, fps, said)

    monkeypatch.setattr(prompts, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        sample_prompts(pipeline, rows, tmp_path / "a", FAST, Rank(), tokens_per_pack=64)
    (tmp_path / "a" / f".{written[2]}.0123.part").write_bytes(b"half")  # as a kill would leave it
    assert {path.name for path in (tmp_path / "a").glob("[!.]*")} == {INDEX, *written[:2]}
    sample_prompts(pipeline, rows, tmp_path / "a", FAST, Rank(), tokens_per_pack=64)
    assert sorted(written[3:]) == sorted({row.file for row in rows} - set(written[:2]))
    assert "6 clips asked for, 2 there" in capsys.readouterr().out
    sample_prompts(pipeline, rows, tmp_path / "b", FAST, Rank())
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("first", [0.03, 2.0])
def test_a_stopped_run_goes_on_in_what_it_computed_in(first, pipeline, table, tmp_path, monkeypatch):
    """Also on a machine that would choose the other type."""
    rows = read_prompts(table, pipeline)
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(first, first))
    sample_prompts(pipeline, rows, tmp_path / "a", FAST, Rank(), tokens_per_pack=64)
    for file in ("00000.mp4", "00003.mp4"):  # a pack
        (tmp_path / "a" / file).rename(tmp_path / file)
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(1 / first, 1 / first))
    sample_prompts(pipeline, rows, tmp_path / "a", FAST, Rank(), tokens_per_pack=64)
    assert (tmp_path / "a" / "00003.mp4").read_bytes() == (tmp_path / "00003.mp4").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same index and clips, up to rounding."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name == INDEX:
            assert (one / name).read_bytes() == (other / name).read_bytes()
        elif (one / name).read_bytes() != (other / name).read_bytes():
            assert (read_frames(one / name).float() - read_frames(other / name).float()).abs().mean() < 0.05
    return True


def test_the_index_says_what_each_clip_is(pipeline, table, tmp_path, capsys):
    rows = read_prompts(table, pipeline, fps=12)
    words = (pipeline, rows, tmp_path / "out", FAST)
    sample_prompts(*words, Rank(0, 2, lambda: sample_prompts(*words, Rank(1, 2))))
    index = [json.loads(line) for line in (tmp_path / "out" / INDEX).read_text().splitlines()]
    assert [record["file"] for record in index] == [row.file for row in rows]
    assert index[1]["prompt"] == rows[1].prompt and index[1]["seed"] == 40 and index[1]["steps"] == 2
    for record in index:
        info = probe(tmp_path / "out" / record["file"])
        if record["file"].endswith(".mp4"):
            assert (info.frames, info.height, info.fps) == (record["frames"], record["height"], 12)
    assert capsys.readouterr().out.count(": a ") == len(rows)


def test_steady_packs_do_not_depend_on_processes_and_what_is_there(pipeline, table, tmp_path):
    """Byte for byte: rounding depends on packs."""
    rows, options = read_prompts(table, pipeline), {"tokens_per_pack": 96, "steady": True}
    sample_prompts(pipeline, rows, tmp_path / "one", FAST, Rank(), **options)
    words = (pipeline, rows, tmp_path / "two", FAST)
    sample_prompts(*words, Rank(0, 2, lambda: sample_prompts(*words, Rank(1, 2), **options)), **options)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    (tmp_path / "two" / rows[2].file).unlink()
    (tmp_path / "two" / rows[3].file).unlink()
    sample_prompts(*words, Rank(), **options)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("change", ["steps", "seed", "prompt", "model", "index"])
def test_clips_of_something_else_are_not_taken_for_finished(change, pipeline, tmp_path, monkeypatch):
    row = Row(file="x.png", prompt="a", negative_prompt="", seed=1, frames=1, height=32, width=32, fps=8.0)
    sample_prompts(pipeline, [row], tmp_path, FAST, Rank())
    before = (tmp_path / "x.png").read_bytes()
    sampling = replace(FAST, steps=3) if change == "steps" else FAST
    if change in ("seed", "prompt"):
        row = replace(row, **{change: 2 if change == "seed" else "b"})
    if change == "model":
        monkeypatch.setattr(prompts, "_mark", lambda pipeline: "another")
    if change == "index":
        (tmp_path / INDEX).unlink()
    said = "and results.jsonl there does not say of what" if change == "index" else "but made with another"
    with pytest.raises(UserError, match=f"x.png is there already, {said}"):
        sample_prompts(pipeline, [row], tmp_path, sampling, Rank())
    assert (tmp_path / "x.png").read_bytes() == before
    more = replace(row, file="y.png")
    sample_prompts(pipeline, [more], tmp_path, sampling, Rank())  # other names in the same folder
    kept = [json.loads(line)["file"] for line in (tmp_path / INDEX).read_text().splitlines()]
    assert kept == (["y.png"] if change == "index" else ["y.png", "x.png"])


def test_the_mark_of_a_model_is_the_same_in_every_process(tiny_pipeline):
    """diffusers notes in a list which settings were not given, in the order of a set, which each process has anew."""
    one, other = (load_pipeline(tiny_pipeline, "cpu") for _ in range(2))
    one.scheduler.register_to_config(_use_default_values=["path", "shift", "target"])
    other.scheduler.register_to_config(_use_default_values=["target", "path", "shift"])
    assert prompts._mark(one) == prompts._mark(other)


def test_a_folder_in_which_others_write_is_left_alone(pipeline, table, tmp_path):
    rows = read_prompts(table, pipeline)
    with FolderLock(tmp_path / "out"), pytest.raises(UserError, match="is in use by process"):
        sample_prompts(pipeline, rows, tmp_path / "out", FAST, Rank())
    assert not list((tmp_path / "out").iterdir())


def test_two_processes_make_what_one_does(pipeline, table, tiny_pipeline, tmp_path):
    rows = read_prompts(table, pipeline)
    sample_prompts(pipeline, rows, tmp_path / "one", FAST, Rank())
    program = [ROOT / "inference/t2v.py", "--model", tiny_pipeline, "--prompts", table, "--output", tmp_path / "two"]
    done = launch("ddp", 2, [*program, "--steps", 2, "--tokens-per-pack", 64, "--mixed-precision", "no"])
    assert done.stdout.count(": a ") == len(rows)
    assert same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,frames\na,5\nb,6\n", r"p.csv, line 3: 6 frames: .* such as 5 or 9"),
        ("prompt,width\na,30\n", r"line 2: 32 x 30 pixels: .* multiples of 8"),
        ("prompt,seed\na,1.5\n", "line 2: seed 1.5: give a whole number"),
        ("prompt,seed\na,x\n", "line 2: seed 'x'"),
        ("prompt,seed\na,1\n,2\n", "line 3: has no prompt"),
        ("prompt\n" + "blue " * 60 + "\n", "line 2: prompt of .* longer than the text encoder's 24"),
        ("prompt,name\na,../x\n", "line 2: name '../x'"),
        ("prompt,name\na,.x\n", "line 2: name '.x'"),
        ("prompt,name\na,x\nb,x.mp4\n", "line 3: line 2 has the name x.mp4 too"),
        ("prompt,sed\na,1\n", "line 2: unknown column `sed`"),
        ("text,seed\na,1\n", "no column `prompt`"),
        ("prompt,seed\na,1,2\n", "line 2: 3 cells under 2 columns"),
        ("prompt\n", "has no rows"),
        (b"prompt\ncaf\xe9\n", "UTF-8"),
    ],
)
def test_bad_rows_are_named(text, message, pipeline, tmp_path):
    (tmp_path / "p.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "p.csv", pipeline)


def test_other_files_are_refused(pipeline, tmp_path):
    for name in ("none.csv", "p.txt"):
        with pytest.raises(UserError, match=rf"--prompts .*{name}: give a file that ends in .jsonl, .csv, .tsv"):
            read_prompts(tmp_path / name, pipeline)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n["a"]\n')
    with pytest.raises(UserError, match=r'line 2: not an object; write {"prompt": ...}'):
        read_prompts(tmp_path / "p.jsonl", pipeline)
    (tmp_path / "q.jsonl").write_text('{"prompt": 5}\n')
    with pytest.raises(UserError, match="line 1: has no prompt"):
        read_prompts(tmp_path / "q.jsonl", pipeline)
    for text in ("{", '{"file": true}\n', '{"file": "../x.mp4"}\n', '{"file": [1]}\n'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            sample_prompts(pipeline, [], tmp_path, FAST, Rank())
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(UserError, match=f"{INDEX} is no regular file"):
        sample_prompts(pipeline, [], tmp_path, FAST, Rank())
