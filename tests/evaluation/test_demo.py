"""The demo's scoring on a tiny pipeline, and its control against shuffled labels."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from latentvid.data.video.reading import probe
from latentvid.demo import scoring as demo
from latentvid.demo.digits import SIZES, Label, prompts, render, write_dataset
from latentvid.demo.judge import Judge
from latentvid.demo.scores import ORDER, USUAL, judged, shuffled_both, table
from latentvid.demo.scoring import DemoConfig, read_labelled, run_demo
from latentvid.errors import UserError


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_pipeline) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_dataset(folder / "data", train=1, val=6)
    (folder / "pipeline").symlink_to(tiny_pipeline)
    return folder


@pytest.fixture(scope="module")
def scored(run_folder) -> dict:
    (run_folder / "started").write_text(f"{time.time() - 100:.0f}\n")
    return run_demo(DemoConfig(run=run_folder, prompts=5, heldout=2, chunk=2, steps=2))


def copy_of(run_folder: Path, to: Path) -> Path:
    for name in ("data", "pipeline"):
        (to / name).symlink_to(run_folder / name)
    return to


def test_everything_is_written(run_folder, scored):
    assert json.loads((run_folder / "scores.json").read_text()) == scored
    assert set(ORDER) < set(scored) and set(ORDER) - {"vae_psnr", "vae_ssim"} == set(scored["real"])
    assert all(0 <= scored[name] <= 1 for name in ORDER if not name.startswith("vae"))
    assert scored["counts"] == {"seen": 5, "heldout": 2, "vae": 6, "real_seen": 6, "real_heldout": 3}
    assert scored["settings"] == {"seed": 0, "frames": 17, "steps": 2, "guidance": 3.0}
    assert 100 <= scored["seconds"] < 200
    assert scored["real"]["both"] >= 0.8  # real clips with their own labels
    index = json.loads((run_folder / "samples" / "clips.json").read_text())
    assert [clip["file"] for clip in index] == [f"{i:02d}.mp4" for i in range(5)] + ["heldout-00.mp4", "heldout-01.mp4"]
    assert [clip["prompt"] for clip in index[:5]] == [text for _, text in prompts(5, heldout=False, seed=0)]
    for i, clip in enumerate(index[:5]):
        info = probe(run_folder / "samples" / clip["file"])
        assert (info.frames, info.height, info.width) == (17, *SIZES[i % 3]) == (17, clip["height"], clip["width"])
    assert {"contact_sheet.png", "reconstructions.png"} < {path.name for path in run_folder.iterdir()}
    assert not list(run_folder.glob(".*"))  # nothing half-written stays


def test_the_table_names_every_score(scored):
    lines = table(scored).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ORDER)
    assert lines[1].split()[1:] == [f"{scored['vae_psnr']:.3f}", str(USUAL["vae_psnr"])]
    assert lines[-1].split()[2:4] == ["chance", f"{scored['chance_both']:.3f}"]


def test_what_is_usual_is_the_reference_run_less_its_tolerances():
    reference = Path(__file__).parents[2] / "docs" / "reference" / "demo" / "reference.json"
    figures = json.loads(reference.read_text(encoding="utf-8"))["figures"]
    assert set(USUAL) == set(ORDER) - {"shuffled_both"}
    for name, value in USUAL.items():
        least = figures[name]["value"] - figures[name]["tolerance"]
        assert value <= least < value + (0.1 if name == "vae_psnr" else 0.01)


class Rank:
    """A process of two, without processes: `at_first_wait` stands for what the other does meanwhile."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, index: int, at_first_wait=lambda: None) -> None:
        self.process_index, self.is_main_process, self.at_first_wait = index, index == 0, at_first_wait

    def wait_for_everyone(self) -> None:
        self.at_first_wait()
        self.at_first_wait = lambda: None


def test_two_processes_find_what_one_does(run_folder, scored, tmp_path, monkeypatch):
    config = DemoConfig(run=copy_of(run_folder, tmp_path), prompts=5, heldout=2, chunk=2, steps=2)
    done = []
    do = demo.Demo.do
    monkeypatch.setattr(demo.Demo, "do", lambda self, job: (done.append((self, job)), do(self, job)))

    def second() -> None:
        monkeypatch.setattr(demo, "process_state", lambda: Rank(1))
        assert run_demo(config) is None

    monkeypatch.setattr(demo, "process_state", lambda: Rank(0, second))
    found = run_demo(config)
    shares = [[job for owner, job in done if owner is one] for one in dict.fromkeys(owner for owner, _ in done)]
    assert len(shares) == 2 and abs(len(shares[0]) - len(shares[1])) <= 1 and not set(shares[0]) & set(shares[1])
    assert found["seconds"] is None  # no `started` here
    assert found | {"seconds": scored["seconds"]} == scored
    for name in ("samples/04.mp4", "samples/heldout-01.mp4", "contact_sheet.png", "reconstructions.png"):
        assert (tmp_path / name).read_bytes() == (run_folder / name).read_bytes()


def test_another_seed_makes_other_clips(run_folder, scored, tmp_path):
    run_demo(DemoConfig(run=copy_of(run_folder, tmp_path), prompts=2, heldout=1, chunk=2, steps=1, seed=1))
    assert (tmp_path / "samples" / "00.mp4").read_bytes() != (run_folder / "samples" / "00.mp4").read_bytes()


def test_clips_as_asked_score_high_and_shuffled_ones_at_chance():
    rng = np.random.default_rng(0)
    found = [prompts(n, heldout=heldout, seed=0) for n, heldout in ((60, False), (10, True))]
    pairs = [([render(x, 17, (32, 32), rng, heldout=True) for x, _ in some], [x for x, _ in some]) for some in found]
    scores = judged(*pairs, Judge.load())
    assert min(scores[name] for name in ("digit", "direction", "strict", "colour", "verb", "heldout_both")) > 0.9
    chance = shuffled_both([(x.digit, x.direction) for x in pairs[0][1]], pairs[0][1])
    assert scores["shuffled_both"] == pytest.approx(chance, abs=0.01) and chance < 0.05


def test_the_control_is_the_mean_over_all_other_labels():
    labels = [Label(d, "red", "moves", w) for d, w in ((1, "up"), (1, "up"), (2, "up"), (1, "down"), (1, "up"))]
    read = [(1, "up"), (2, "up"), (9, "none"), (1, "up"), (1, "down")]
    hits = [read[i] == (labels[j].digit, labels[j].direction) for i in range(5) for j in range(5) if i != j]
    assert shuffled_both(read, labels) == pytest.approx(sum(hits) / len(hits))


def test_bad_input_is_named_with_the_fix(run_folder, tmp_path):
    with pytest.raises(UserError, match="no folder.*make demo"):
        DemoConfig(run=tmp_path / "none")
    with pytest.raises(UserError, match="--prompts"):
        DemoConfig(run=tmp_path, prompts=1)
    with pytest.raises(UserError, match="val.jsonl"):
        run_demo(DemoConfig(run=tmp_path))
    shutil.copytree(run_folder / "data", tmp_path / "data")
    with pytest.raises(UserError, match="pipeline"):
        run_demo(DemoConfig(run=tmp_path))
    manifest = tmp_path / "data" / "val.jsonl"
    row = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text(json.dumps({name: row[name] for name in ("path", "caption")}) + "\n")
    with pytest.raises(UserError, match="does not say what its clips show.*latentvid.demo.digits"):
        read_labelled(manifest)
    (tmp_path / "started").write_text("yesterday")
    with pytest.raises(UserError, match="unix time"):
        demo._seconds(tmp_path / "started")
