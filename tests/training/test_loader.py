"""Loader processes that cannot work, die or hang end the run with one message; a stop does not wait for data."""

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Sequence

import pytest
import torch

from latentvid.data.plan.plan import Draw, Plan
from latentvid.errors import UserError
from latentvid.training import machine
from latentvid.training.feed import loader
from latentvid.training.feed.loader import iterate_steps
from latentvid.training.machine import loader_processes, take_threads
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.signals import Preempted, StopRequest, StopWaiting
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

MADE: list[Sequence[Draw]] = []  # in a loader process


def make(draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
    """A pack; the second cannot be made, for the third there is no shared memory."""
    MADE.append(draws)
    number = len(MADE) - 1
    if number == 1:
        raise UserError("no readable clip is left")
    torch.Tensor.share_memory_ = no_space if number == 2 else SHARE
    return {"x": torch.full((3,), float(number))}


SHARE = torch.Tensor.share_memory_


def die(draws: Sequence[Draw]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(tensor: torch.Tensor) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")


def test_what_ends_in_a_loader_process_is_one_message(monkeypatch):
    plan = Plan([10] * 20, budget=10, packs=1, seed=0)
    found: list[str] = []
    kept = []
    start = loader._start
    monkeypatch.setattr(loader, "_start", lambda each: kept.append(start(each)) or kept[0])
    step, packs = next(iterate_steps(plan, make, rank=0, world=1, workers=1, pin_memory=False))
    assert step.samples == 1 and packs[0][1]["x"].tolist() == [0.0] * 3 and packs[0][1]["x"].is_shared()
    for _ in range(2):
        with pytest.raises(UserError) as error:
            loader._next(kept[0])
        found.append(str(error.value))
    assert found[0] == "no readable clip is left"
    assert re.match(r"loader.* in /dev/shm, which is too small \(.* are free\): .*--shm-size=8g.*workers=0", found[1])


def test_a_killed_loader_process_is_one_message(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    plan = Plan([10] * 20, budget=10, packs=1, seed=0)
    with pytest.raises(UserError, match="^a loader process was killed by SIGKILL: most likely the machine's memory"):
        next(iterate_steps(plan, die, rank=0, world=1, workers=1, pin_memory=False))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EBADF])
def test_the_machines_limits_have_their_remedies(number):
    """ENOSPC is also what the locks of a queue meet, before there is any process."""
    said = {errno.ENOSPC: "shm-size", errno.EMFILE: "ulimit -n", errno.EBADF: "Bad file"}[number]
    assert said in str(loader._explained(OSError(number, os.strerror(number))))


def test_a_stop_ends_a_wait_for_data_at_once_or_after_a_grace():
    with StopRequest() as stop:
        with stop.waiting(0.0):
            pass
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(StopWaiting), stop.waiting(0.0):
            time.sleep(60)
        with pytest.raises(StopWaiting), stop.waiting(0.0):  # it came before
            time.sleep(60)
        with stop.waiting(60.0):  # the data come within the grace
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        with pytest.raises(StopWaiting), stop.waiting(0.2):
            time.sleep(60)


def test_a_run_that_is_stopped_while_it_waits_saves_what_it_did_and_goes_on_exactly(dit_config, tmp_path, capsys):
    class Waiting(DitTask):
        made = 0

        def make_pack(self, draws):
            self.made += 1
            if self.made == 6:  # of the third step
                threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
                time.sleep(60)
            return super().make_pack(draws)

    options = ("train.steps=4", "checkpoint.every=0")
    with pytest.raises(Preempted):
        train(dit_config(tmp_path / "stopped", *options), Waiting)
    assert "asked to stop while waiting for data after step 2: step-00000002 is the last" in capsys.readouterr().err
    for run in ("stopped", "whole"):
        train(dit_config(tmp_path / run, *options), DitTask)
    stopped, whole = ([r["loss"] for r in read_metrics(tmp_path / run)] for run in ("stopped", "whole"))
    assert stopped == whole


@pytest.fixture
def roomy(monkeypatch) -> None:
    """A machine of four cores with memory to spare."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(2**33, 0, 2**33))
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**36}))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_files_are_loaded_beside_training_where_a_core_is_to_spare(roomy, monkeypatch):
    assert loader_processes(None, "cuda", of_files=True)[0] == 3
    assert loader_processes(None, "cpu", of_files=True)[0] == 2
    assert loader_processes(None, "cpu", of_files=False)[0] == 0
    assert loader_processes(5, "cpu", of_files=False) == (5, "data.workers")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader_processes(None, "cuda", of_files=True)[0] == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_processes(None, "cuda", of_files=True)[0] == 0


def test_a_container_with_little_shared_memory_loads_in_place_and_says_so(roomy, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(2**26, 0, 2**26))
    workers, why = loader_processes(None, "cuda", of_files=True)
    assert workers == 0 and "/dev/shm has 64 MiB only" in why and "--shm-size" in why


@pytest.mark.parametrize(
    ("environ", "cmdline", "taken"),
    [
        (b"HOME=/root\0", b"accelerate\0launch", True),
        (b"OMP_NUM_THREADS=1\0", b"accelerate\0launch", False),  # the user's own
        (b"HOME=/root\0", b"accelerate\0launch\0--num_cpu_threads_per_process\0001", False),
    ],
)
def test_the_one_thread_that_a_launcher_sets_is_replaced(environ, cmdline, taken, roomy, tmp_path, monkeypatch):
    (tmp_path / "environ").write_bytes(environ)
    (tmp_path / "cmdline").write_bytes(cmdline)
    monkeypatch.setattr(machine, "PARENT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        assert take_threads(torch.device("cpu")) is None  # no launcher
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        said = take_threads(torch.device("cpu"))
        assert (said or "").startswith("4 threads a process") == taken
        assert torch.get_num_threads() == (4 if taken else 1)
        assert take_threads(torch.device("cuda")) is None


def test_a_limit_met_in_a_loader_process_is_one_message_with_its_remedy():
    def fails(draws):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    found = loader._Packs(fails, shared=False)[[]]
    assert isinstance(found, UserError) and "ulimit -f" in str(found)
