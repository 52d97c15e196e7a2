"""Lists of runs, and what a run that has ended is good for."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentvid.config.parsing import save_config
from latentvid.config.sections import Logging
from latentvid.errors import UserError
from latentvid.lock import FolderLock, held_by
from latentvid.report.listing import listed, runs_below, text_of
from latentvid.training.afterwards import next_command
from latentvid.training.launch import start_trackers


@pytest.fixture
def folder(dit_config, tmp_path) -> Path:
    """A run of 6 steps that was stopped at the third."""
    run = tmp_path / "runs/mine/dit_run"
    (run / "checkpoints/step-00000003").mkdir(parents=True)
    save_config(dit_config(run, "train.steps=6"), run / "config.yaml")
    write(run, 3)
    kinds = [{"frames": 17, "height": 8, "width": 8, "count": 3}, {"frames": 1, "height": 8, "width": 8, "count": 1}]
    (run / "run.json").write_text(json.dumps({"trained": kinds}))
    return run


def write(run: Path, steps: int) -> None:
    rows = [{"step": i, "loss": 4.0 - i, "samples_per_s": 10.0} for i in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_stopped_run_is_listed_with_what_goes_on_with_it(folder):
    (found,) = map(listed, runs_below([folder.parents[1]]))
    assert found.row == (str(folder), "dit", "stopped", "3/6", "2", "130")  # 10 samples of 13 frames
    assert found.then == f"latentvid train-dit {folder}/config.yaml"
    assert found.then in text_of([found]) and text_of([found]).splitlines()[0].split()[0] == "run"


def test_a_run_that_trains_names_its_process_and_a_dead_one_does_not(folder):
    with FolderLock(folder):
        found = listed(folder)
        assert found.state.startswith("training (process ") and found.then == ""
    assert held_by(folder) is None and listed(folder).state == "stopped"


def test_a_finished_run_says_how_to_use_what_it_made(folder):
    write(folder, 6)
    (folder / "pipeline").mkdir()
    found = listed(folder)
    assert (found.state, found.step) == ("finished", "6/6")
    assert found.then.startswith(f"latentvid t2v --model {folder}/pipeline --prompt TEXT")


def test_each_product_has_its_command(tmp_path):
    run, config = tmp_path / "a run", {"data": {"manifest": ["m.jsonl", "n.jsonl"]}, "model": {"from": "Wan/1.3B"}}
    run.mkdir()
    assert next_command(run, "dit", config, True) == f"latentvid report '{run}'"
    for name, part in {
        "vae": f"encode --manifest m.jsonl --vae '{run}/vae'",
        "lora": f"t2v --model Wan/1.3B --lora '{run}/lora'",
        "motion": f"t2v --model Wan/1.3B --motion '{run}/motion'",
        "controlnet": f"t2v --model Wan/1.3B --control '{run}/controlnet'",
    }.items():
        (run / name).mkdir()
        assert part in next_command(run, "dit", config, True), name
        (run / name).rmdir()
    assert next_command(run, "vae", {}, False) == f"latentvid train-vae '{run}/config.yaml'"


def test_folders_without_runs_are_said(tmp_path):
    assert list(runs_below([tmp_path])) == []
    with pytest.raises(UserError, match="there is no folder .*none"):
        list(runs_below([tmp_path / "none"]))


def test_wandb_gets_the_configuration_and_goes_on_in_the_same_run(dit_config, tmp_path):
    config = replace(dit_config(tmp_path / "run"), log=Logging(trackers=("wandb",), project="mine"))
    started = []
    accelerator = SimpleNamespace(
        is_main_process=True, init_trackers=lambda project, init_kwargs: started.append((project, init_kwargs["wandb"]))
    )
    for _ in range(2):
        start_trackers(accelerator, config)
    (project, first), (_, second) = started
    assert project == "mine" and first == second and first["resume"] == "allow" and first["name"] == "run"
    assert first["config"]["optim"]["lr"] == config.optim.lr and len(first["id"]) == 16
    start_trackers(accelerator, replace(config, run=replace(config.run, dir=tmp_path / "other")))
    assert started[2][1]["id"] != first["id"]
    (tmp_path / "run/logs/wandb_id").write_text("no id/")
    with pytest.raises(UserError, match="wandb_id holds no id"):
        start_trackers(accelerator, config)
