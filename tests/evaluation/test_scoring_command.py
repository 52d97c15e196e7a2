"""The command that scores folders: what it finds, keeps, skips and says, on tiny networks and digit clips."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import launch

from latentvid.data.manifest.manifest import write_manifest
from latentvid.data.video.writing import write_video
from latentvid.errors import ClipError, UserError, user_errors
from latentvid.evaluation import __main__ as command
from latentvid.evaluation.clip_folder import list_clips, list_files, paired, unrelated
from latentvid.evaluation.footage import Cut
from latentvid.evaluation.row_cache import CHUNK, RowCache
from latentvid.evaluation.scoring import ScoringConfig, score_clips
from latentvid.lock import FolderLock


class Colours(torch.nn.Module):
    """Stands for Inception: means and spreads of the colours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([x.mean(dim=(2, 3)), x.square().mean(dim=(2, 3))], dim=1)
        return torch.nn.functional.pad(found, (0, 2048 - 6))


def write_clips(folder: Path, count: int, frames: int = 6, seed: int = 0, brighter: float = 0.0) -> Path:
    """Small clips of moving colours, losslessly, alike for one seed but for their brightness."""
    random = torch.Generator().manual_seed(seed)
    for i in range(count):
        start = torch.rand(12, 16, 3, generator=random) * 200
        clip = torch.stack([start.roll(k, dims=1) for k in range(frames)])
        write_video(folder / f"{i:03d}.gif", (clip + brighter).byte(), 8)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_clips(root / "real", 20)
    write_clips(root / "made", 18, brighter=40)
    (root / "weights" / "inception").mkdir(parents=True)
    torch.jit.save(torch.jit.script(Colours()), root / "weights" / "inception" / "fid_inception.pt")
    return root


CUT = Cut(frames=4, size=None, temporal_stride=1, spatial_stride=1)


class Brightness:
    """An extractor that counts what it is asked."""

    name, needs = "brightness", frozenset()

    def __init__(self, fingerprint: str = "of frames") -> None:
        self.fingerprint, self.seen = fingerprint, []

    def __call__(self, clip):
        self.seen.append(clip.name)
        if "bad" in clip.name:
            raise ClipError(clip.name, "too-dark", "nothing to see")
        return clip.pixels.float().mean(dim=(1, 2, 3))[:, None]


# ------------------------------------------------------------------------------------------------------------- clips


def test_captions_come_from_a_table_a_manifest_the_samplers_index_or_texts_beside(tmp_path):
    folder = write_clips(tmp_path / "clips", 2)
    assert list_files(folder).captions == {}
    (folder / "001.txt").write_text("\n a text beside \n")
    assert list_files(folder).captions == {"001.gif": "a text beside"}
    rows = [{"file": "000.gif", "prompt": "from the index", "seed": 1}]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list_files(folder).captions == {"000.gif": "from the index"}
    (tmp_path / "table.csv").write_text("name,caption\n001.gif,from the table\n")
    assert list_files(folder, tmp_path / "table.csv").captions == {"001.gif": "from the table"}
    write_manifest(tmp_path / "clips.jsonl", [{"path": "clips/001.gif", "caption": "from the manifest"}])
    clips = list_clips(tmp_path / "clips.jsonl", CUT)
    assert [(item.name, item.caption) for item in clips.items] == [("clips/001.gif", "from the manifest")]
    (tmp_path / "other.csv").write_text("name,caption\nelsewhere.gif,x\n")
    with pytest.raises(UserError, match="names none of the clips, such as 000.gif"):
        list_files(folder, tmp_path / "other.csv")
    (tmp_path / "wrong.csv").write_text("name,words\n000.gif,x\n")
    with pytest.raises(UserError, match="line 2: give a name .* and a text"):
        list_files(folder, tmp_path / "wrong.csv")


def test_pairs_are_found_by_name_and_must_have_the_clips_size(tmp_path):
    made, real = write_clips(tmp_path / "made", 3), write_clips(tmp_path / "real", 2, seed=1)
    write_video(real / "001.gif", torch.randint(256, (6, 24, 32, 3)).byte(), 8)
    clips = paired(list_clips(made, CUT), real, CUT)
    assert [item.pair and item.pair.path.name for item in clips.items] == ["000.gif", None, None]
    assert "24 x 32 pixels, but its clip has 12 x 16: give a size" in clips.skipped[0].reason
    sized = replace(CUT, size=(12, 16))
    both = paired(list_clips(made, sized), real, sized)
    assert [item.pair is not None for item in both.items] == [True, True, False]
    assert both.items[1].read(with_pair=True).pair.shape == (4, 12, 16, 3)
    others = unrelated(both.items)
    assert [(item.excerpt.path.name, item.pair.path.name) for item in others] == [
        ("000.gif", "001.gif"),
        ("001.gif", "000.gif"),
    ]
    write_video(real / "000.png", torch.zeros(1, 12, 16, 3, dtype=torch.uint8), 8)
    with pytest.raises(UserError, match="have one name but for the ending"):
        paired(list_clips(made, CUT), real, CUT)


def test_fewer_clips_than_files_are_taken_from_all_over(tmp_path):
    folder = write_clips(tmp_path / "clips", 9)
    (folder / "004.gif").write_bytes(b"no gif")
    clips = list_clips(folder, CUT, most=3)
    assert [item.name for item in clips.items] == ["000.gif", "001.gif", "007.gif"]  # 000 for 004
    assert [fault.file for fault in clips.skipped] == [str(folder / "004.gif")]


# ------------------------------------------------------------------------------------------------------------- cache


def test_rows_are_computed_once_and_again_where_anything_changed(tmp_path):
    folder = write_clips(tmp_path / "clips", CHUNK + 3)
    (folder / "002.gif").rename(folder / "002bad.gif")

    def rows_of(extractor: Brightness):
        cache = RowCache(tmp_path / "cache", list_clips(folder, CUT).items, {"brightness": extractor})
        cache.fill(cache.missing(), quiet=True)
        return cache.read("brightness")

    first = Brightness()
    found = rows_of(first)
    assert len(first.seen) == CHUNK + 3 and len(found.rows) == len(found.items) == CHUNK + 2
    assert [(Path(f.file).name, f.extractor, f.reason) for f in found.skipped] == [
        ("002bad.gif", "brightness", "too-dark: nothing to see")
    ]
    second = Brightness()
    again = rows_of(second)
    assert second.seen == [] and again.skipped == found.skipped
    assert all(torch.equal(a, b) for a, b in zip(found.rows, again.rows, strict=True))
    os.utime(folder / f"{CHUNK:03d}.gif", ns=(1, 1))  # in the second chunk
    changed = Brightness()
    rows_of(changed)
    assert len(changed.seen) == 3
    other = Brightness("another method")
    rows_of(other)
    assert len(other.seen) == CHUNK + 3


def test_a_run_that_was_stopped_goes_on(tmp_path):
    class Stopping(Brightness):
        def __call__(self, clip):
            if len(self.seen) == CHUNK + 1:
                raise KeyboardInterrupt
            return super().__call__(clip)

    items = list_clips(write_clips(tmp_path / "clips", CHUNK + 3), CUT).items
    stopped = RowCache(tmp_path / "cache", items, {"brightness": Stopping()})
    with pytest.raises(KeyboardInterrupt):
        stopped.fill(stopped.missing(), quiet=True)
    with pytest.raises(UserError, match="run again"):
        stopped.read("brightness")
    rest = Brightness()
    cache = RowCache(tmp_path / "cache", items, {"brightness": rest})
    assert cache.missing() == [CHUNK]
    cache.fill(cache.missing(), quiet=True)
    assert len(rest.seen) == 3


# ----------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def score(sets, tmp_path, fresh_accelerate, monkeypatch):
    """`score(clips, ...)`: of the small sets, into tmp_path/out."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def score(clips: str = "made", real: str | None = "real", **more):
        config = {"frames": 4, "pictures": 1, "resamples": 20, "out": tmp_path / "out"} | more
        if real is not None:
            config = {"max_real": 18} | config
        weights = sets / "weights"
        return score_clips(
            ScoringConfig(clips=sets / clips, real=sets / real if real else None, weights=weights, **config)
        )

    return score


def test_all_that_can_be_had_is_scored_and_the_rest_explained(score, sets, tmp_path):
    scored = score()
    fid, flicker = scored.results["fid"], scored.results["flicker"]
    assert (fid.count, fid.real_count, fid.floor_count) == (18, 18, 9) and fid.low < fid.value < fid.high
    assert fid.value > fid.floor and flicker.floor_count == 18
    assert scored.results["psnr"].floor_of == "real clips against other real clips"
    assert scored.results["psnr"].value > scored.results["psnr"].floor + 5
    assert "no logits" in scored.left_out["is"] and "put i3d_torchscript.pt" in scored.left_out["fvd"]
    assert "digit" not in scored.left_out and "captions" in scored.left_out["clip_text"]
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert kept == json.loads(json.dumps(scored.as_dict()))
    assert kept["counts"] == {"clips": 18, "files": 18, "real_clips": 18, "real_files": 20}
    table = (tmp_path / "out" / "scores.md").read_text()
    assert "| fid |" in table and "bias it upwards" in table and scored.text().count("left out: ") > 2


def test_a_set_against_itself_is_zero(score):
    with pytest.raises(UserError, match=r"fid: .*\.gif is in both sets"):
        score("real", "real", metrics=["fid"], max_clips=18)
    scored = score("real", "real", metrics=["fid", "psnr"], resamples=0, max_clips=18, allow=["repeats"])
    assert scored.results["fid"].value < 1e-6 and scored.results["psnr"].value == 100
    assert scored.results["fid"].low is None and list(scored.results) == ["fid", "psnr"]


def test_two_models_are_compared_clip_by_clip(score, sets, tmp_path):
    write_clips(tmp_path / "other", 16, brighter=45)
    scored = score(metrics=["fid", "psnr", "flicker"], against=tmp_path / "other")
    assert list(scored.compared) == ["fid", "psnr", "flicker"]
    psnr, fid = scored.compared["psnr"], scored.compared["fid"]
    assert (psnr.pairs, psnr.units, psnr.wins) == (16, 16, 1.0)  # less too bright, always
    assert psnr.low > 0 and psnr.p < 0.001 and psnr.effect > 1
    assert fid.value < fid.other and fid.high < 0 and fid.effect is None and fid.relative < 0
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert kept["compared"]["psnr"]["difference"] == psnr.difference
    assert any("16 pairs; 2 clips and 0 others have no partner" in note for note in scored.notes)
    assert "| psnr |" in (tmp_path / "out" / "scores.md").read_text() and "wins" in scored.text()
    write_clips(tmp_path / "longer", 16, frames=3)
    with pytest.raises(UserError, match="do not compare"):
        score(metrics=["flicker"], against=tmp_path / "longer", real=None, frames=None)


def test_what_was_asked_for_and_cannot_be_had_is_an_error(score, tmp_path):
    for metrics, real, message in (
        (["fvd"], "real", "fvd: there is no I3D network"),
        (["fid"], None, "fid: it compares with real clips: give --real"),
        (["psnr"], None, "psnr: it compares each clip with the real one of the same name"),
        (["latentvid.demo.prompt_following:digit"], "real", "digit: it needs captions"),
        (["latentvid.demo.prompt_following:digits"], "real", "no score 'latentvid.*:digits': did you mean digit"),
        (["digit"], "real", "there is no score 'digit'"),
        (["latentvid.demo:digit"], "real", "latentvid.demo has no scores"),
        (["nowhere:digit"], "real", "nowhere has no scores"),
        (["flickr"], "real", "did you mean flicker"),
    ):
        with pytest.raises(UserError, match=message):
            score(metrics=metrics, real=real)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_used_are_listed(score, sets, tmp_path):
    folder = write_clips(tmp_path / "mixed", 3, seed=5)
    (folder / "broken.gif").write_bytes(b"no gif")
    (folder / "empty.mp4").write_bytes(b"")
    scored = score(folder, metrics=["fid", "flicker"], max_real=3)
    listed = {Path(fault.file).name: fault.reason for fault in scored.skipped if fault.extractor is None}
    assert sorted(listed) == ["broken.gif", "empty.mp4"] and "empty (0 bytes)" in listed["empty.mp4"]
    assert "empty.mp4" in (tmp_path / "out" / "scores.md").read_text()
    assert scored.results["fid"].count == 3 and scored.counts["files"] == 5


def test_wrong_arguments_are_named(sets, tmp_path):
    for wrong, message in (
        ({"frames": 0}, "frames=0: must be a whole number from 1"),
        ({"resamples": 1}, "resamples=1: give 2 or more"),
        ({"weights": tmp_path / "none"}, "give the folder that holds inception/"),
    ):
        with pytest.raises(UserError, match=message):
            ScoringConfig(clips=sets / "made", **wrong)


def test_the_command_reads_its_arguments(monkeypatch):
    words = "clips --real real --metrics fid fvd --size 64 96 --max-clips 5 --weights . --resamples 0"
    monkeypatch.setattr(sys, "argv", ["evaluation", *words.split()])
    config = command.parse()
    assert config.metrics == ["fid", "fvd"] and config.size == (64, 96) and config.frames is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max-real 3", "--max-real is of --real"),
        ("--allow rate", "--allow is of --real"),
        ("--metrics flicker --inception x.pt", "--inception is of fid, kid, is, and --metrics flicker asks for none"),
        ("--metrics fvd --real r --pictures 1", "--pictures is of fid, kid, is, and --metrics fvd asks"),
        ("--metrics fvd --real r --resize clean", "--resize is of fid, kid, is, and --metrics fvd asks"),
        ("--metrics fid psnr --real r --i3d x.pt", "--i3d is of fvd, kvd, is_video, and --metrics fid psnr asks"),
        ("--metrics flicker --captions c.csv", "--captions c.csv: --metrics flicker needs none"),
        ("--metrics fvd --i3d x.pt --weights w", "--weights w: --metrics fvd has its networks from --i3d"),
        ("--metrics flickr --pictures 1", "did you mean flicker"),
    ],
)
def test_options_that_others_make_void_are_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation", "clips", *words.split()])
    with pytest.raises(SystemExit) as stop, user_errors():
        command.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1


def test_options_that_a_named_score_needs_are_taken(monkeypatch):
    words = "clips --real r --metrics fid clip_text --inception x.pt --pictures 1 --captions c.csv --weights ."
    monkeypatch.setattr(sys, "argv", ["evaluation", *words.split()])
    assert command.parse().pictures == 1


def test_a_folder_that_another_evaluation_writes_to_is_left_alone(score, tmp_path):
    with FolderLock(tmp_path / "out"), pytest.raises(UserError, match="is in use by process .* give another --out"):
        score(metrics=["flicker"])
    assert not list((tmp_path / "out").iterdir())
    score(metrics=["flicker"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "clips.html",
        "rows",
        "scores.json",
        "scores.md",
    ]


def test_what_cannot_be_written_is_said_before_the_work(score, tmp_path):
    (tmp_path / "out" / "scores.md").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--out .*scores\.md is a folder"):
        score(metrics=["flicker"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give another --cache"):
        score(metrics=["flicker"], out=tmp_path / "other", cache=tmp_path / "file")
    assert not (tmp_path / "out" / "rows").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_what_one_gives(score, sets, tmp_path):
    """Exactly, from a cache of its own, chunk for chunk."""
    program = tmp_path / "program.py"
    program.write_text(
        "from latentvid.errors import user_errors\nfrom latentvid.evaluation.__main__ import main\n"
        "with user_errors():\n    main()\n"
    )
    metrics, two = ["fid", "kid", "psnr", "flicker"], tmp_path / "two"
    options = ["--frames", 4, "--pictures", 1, "--resamples", 20, "--max-real", 18, "--out", two, "--metrics", *metrics]
    done = launch("ddp", 2, [program, sets / "made", "--real", sets / "real", "--weights", sets / "weights", *options])
    assert done.stdout.count("real against real") == 1  # the table, once
    score(metrics=metrics)
    alone, shared = (json.loads((out / "scores.json").read_text()) for out in (tmp_path / "out", two))
    assert alone["scores"] == shared["scores"] and set(shared["scores"]) == set(metrics)
    shards = [sorted(path.name for path in (out / "rows").rglob("*.safetensors")) for out in (tmp_path / "out", two)]
    assert shards[0] == shards[1] and len(shards[0]) > 6
