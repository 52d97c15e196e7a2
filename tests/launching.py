"""Real launches of the real programs on CPUs: one process, DDP, FSDP2, ZeRO, on one machine or one node of several.

As a program it is what the launched processes run: it makes the launch work without GPUs and then runs the programs.
"""

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "accelerate"


@dataclass(frozen=True)
class Recipe:
    """A file of configs/accelerate; whether accelerate's own CPU switch may be on (FSDP and ZeRO become DDP by it)."""

    config: str
    cpu_switch: bool = False
    options: tuple[str, ...] = ()


RECIPES = {
    "single": Recipe("single.yaml", cpu_switch=True),
    "ddp": Recipe("ddp.yaml", cpu_switch=True),
    "fsdp2": Recipe("fsdp2.yaml"),
    "hsdp": Recipe("hsdp.yaml", options=("--parallelism_config_dp_shard_size", "2")),
    "zero1": Recipe("zero1.yaml"),
    "zero2": Recipe("zero2.yaml"),
    "zero3": Recipe("zero3.yaml"),
    "zero3_offload": Recipe("zero3.yaml", options=("--deepspeed_config_file", "configs/deepspeed/zero3_offload.json")),
}


def environment(recipe: str, **more: str) -> dict[str, str]:
    """This process's environment without what an outer launch left in it, set for CPUs."""
    outer = ("ACCELERATE_", "TORCHELASTIC_", "PET_", "FSDP_")
    mine = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(outer) and k not in mine}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    if RECIPES[recipe].cpu_switch:
        settings["ACCELERATE_USE_CPU"] = "true"
    return {**kept, **settings, **more}


def driver(recipe: str, *programs: Sequence[object]) -> list[str]:
    """What each launched process runs: this file, with the programs (each a script with its arguments) to run."""
    return [__file__, recipe, *(json.dumps([str(word) for word in program]) for program in programs)]


def command(recipe: str, processes: int, *programs: Sequence[object], options: Sequence[str] = ()) -> list[str]:
    """The command line that runs `programs` one after another under `recipe`.

    `options` are more of `accelerate launch`'s. One process of "single" without options needs no launcher.
    """
    run = driver(recipe, *programs)
    if recipe == "single" and processes == 1 and not options:
        return [sys.executable, *run]
    if "--main_process_port" not in options:
        options = ("--main_process_port", "0", *options)  # any free one
    config = str(CONFIGS / RECIPES[recipe].config)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    return [*launcher, "--num_processes", str(processes), *RECIPES[recipe].options, *options, *run]


def start(
    recipe: str,
    processes: int,
    *programs: Sequence[object],
    options: Sequence[str] = (),
    log: Path,
    **more: str,
) -> subprocess.Popen:
    """Starts a launch and returns at once; output goes to `log`, `more` is added to the environment."""
    return spawn(command(recipe, processes, *programs, options=options), environment(recipe, **more), log)


def spawn(words: Sequence[str], settings: dict[str, str], log: Path) -> subprocess.Popen:
    """Starts a command in a session of its own, without input, from the repository's root."""
    with log.open("ab") as output:
        return subprocess.Popen(
            words,
            cwd=ROOT,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def launch(
    recipe: str,
    processes: int,
    *programs: Sequence[object],
    options: Sequence[str] = (),
    timeout: float = 300,
    check: bool = True,
    **more: str,
) -> subprocess.CompletedProcess:
    """Runs a launch to its end; `check` asserts that it ended well, showing what it wrote."""
    done = subprocess.run(
        command(recipe, processes, *programs, options=options),
        cwd=ROOT,
        env=environment(recipe, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr}"
    return done


def train_alike(recipe: str, cases: Mapping[str, Callable[[str], Path]], options: Sequence[str] = ()) -> None:
    """The transformer's program on each case, under two processes of the recipe and by one. cases: of each name what
    writes its configuration for "two" or "one" of them, and returns the file."""
    train = ROOT / "train/train_dit.py"
    launch(recipe, 2, *([train, write("two")] for write in cases.values()), options=options, timeout=1800)
    launch("single", 1, *([train, write("one")] for write in cases.values()), timeout=1800)


def family(pid: int) -> list[int]:
    """`pid` and all processes under it: a launcher's workers lead sessions of their own, so no group holds them all."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it has ended meanwhile
            parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def kill(pids: Sequence[int], sig: int = signal.SIGKILL) -> None:
    """Sends `sig` to each that still is."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def workers(launcher: int) -> list[int]:
    """The training processes (not their loaders) under a launcher, by rising rank; [] while they are starting."""
    ranks = {}
    for pid in family(launcher)[1:]:
        try:
            words = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
            line = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
        if rank is not None and __file__.encode() in line:
            ranks.setdefault(rank, pid)
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for(condition: Callable[[], object], timeout: float, what: str, every: float = 0.05) -> None:
    """Polls `condition` until it is true; fails, naming `what`, after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(every)


def finish(process: subprocess.Popen, timeout: float) -> int:
    """Exit status of a started launch; after `timeout` seconds it and all under it are killed, and the test fails."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(family(process.pid))
        process.wait()
        raise AssertionError(f"{process.args} did not end within {timeout} s") from None


def run_programs(recipe: str, programs: Sequence[str]) -> None:
    if recipe in ("fsdp2", "hsdp"):
        _let_fsdp2_run_on_cpus()
    if recipe.startswith("zero"):  # compiling the shared-memory operator takes minutes; gloo does without it
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    if len(programs) > 1:  # a second group under one launcher's store would wait for ever: all use the first
        importlib.import_module("torch.distributed").destroy_process_group = lambda group=None: None
    if backend := os.environ.get("COMPILE_BACKEND"):  # of every torch.compile that names none
        torch = importlib.import_module("torch")
        torch.compile = functools.partial(torch.compile, backend=backend)
    for program in map(json.loads, programs):
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")
        _forget_the_program()


def _forget_the_program() -> None:
    """accelerate keeps the first Accelerator's state for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _let_fsdp2_run_on_cpus() -> None:
    """accelerate 1.15 makes FSDP of any launch but a CPU's: we let it take this one for a GPU's with gloo."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    run_programs(sys.argv[1], sys.argv[2:])
