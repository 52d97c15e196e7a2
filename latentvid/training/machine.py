"""What a run takes of its machine by default: loader processes, threads under a launcher, garbage collection."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from pathlib import Path
from typing import Self

import psutil
import torch

from ..words import counted

logger = logging.getLogger(__name__)

MOST_LOADERS = {"cuda": 8, "cpu": 2}  # of a training process: on a CPU they take cores that train
LOADER_BYTES = 2 * 2**30  # of memory that should be free for each
PARENT = "/proc/{}"  # what is known of a process
COLLECTED = 50  # steps
LEAST_SHARED = 2**30  # bytes of /dev/shm: containers have 64 MiB where nothing is said


def usable_cores() -> int:
    """Cores that this process may use: of its affinity and of its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file; "max"
        return cores


def local_processes() -> int:
    """Training processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def loader_processes(asked: int | None, device: str, *, of_files: bool) -> tuple[int, str]:
    """(how many a training process starts, why), where `data.workers` leaves it to the machine.

    One a core that no training process needs, as far as memory goes. of_files: they decode files; of a cache of latents
    there is little to do, on a CPU nothing that would be worth a process.
    """
    if asked is not None:
        return asked, "data.workers"
    if not of_files and device == "cpu":
        return 0, "latents are quick to read"
    if (shared := shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0) < LEAST_SHARED:
        return (
            0,
            f"/dev/shm has {shared / 2**20:.0f} MiB only: give it 1 GiB (docker run --shm-size), or set data.workers",
        )
    cores, processes = usable_cores(), local_processes()
    spare = cores // processes - 1
    fitting = psutil.virtual_memory().available // (LOADER_BYTES * processes)
    most = MOST_LOADERS.get(device, MOST_LOADERS["cuda"]) if of_files else 1
    return max(0, min(spare, most, fitting)), f"by {cores} cores for {counted(processes, 'process')}"


class Collection:
    """Python's garbage collection on GPUs: inside, after every `COLLECTED`-th step and not whenever, since all
    processes wait for the one that stops for it. On CPUs it stays as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._on, self._steps = device.type == "cuda" and gc.isenabled(), 0

    def step(self) -> None:
        self._steps += 1
        if self._on and self._steps % COLLECTED == 0:
            gc.collect(1)

    def __enter__(self) -> Self:
        if self._on:
            gc.collect()
            gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            gc.enable()


def take_threads(device: torch.device) -> str | None:
    """On a CPU under a launcher that set one thread: sets as many as there are cores for each process, and says so.

    accelerate and torchrun set OMP_NUM_THREADS=1 where the user has not set it.
    """
    if device.type != "cpu" or os.environ.get("OMP_NUM_THREADS") != "1" or not _set_by_a_launcher():
        return None
    threads = max(1, usable_cores() // local_processes())
    if threads == torch.get_num_threads():
        return None
    torch.set_num_threads(threads)
    return f"{threads} threads a process: the launcher had set one (OMP_NUM_THREADS=1; set it yourself to keep it)"


def _set_by_a_launcher() -> bool:
    """Whether the process that started this one was started without OMP_NUM_THREADS, and not asked for threads."""
    if not {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return False
    parent = Path(PARENT.format(os.getppid()))
    try:
        given = (parent / "environ").read_bytes().split(b"\0")
        words = (parent / "cmdline").read_bytes()
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in given) and b"num_cpu_threads" not in words
