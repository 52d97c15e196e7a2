"""Two nodes: the same run as one process, also when a worker dies, or a whole node is lost and brought back."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from comparing import difference
from launching import ROOT, finish, kill, wait_for, workers
from nodes import Node, start_elastic_on, start_on, two_nodes, why_not

TRAIN = ROOT / "train/train_dit.py"
Launchers = list[subprocess.Popen]


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    if reason := why_not():
        pytest.skip(reason)
    with two_nodes() as pair:
        yield pair


def log(run: Path, node: Node) -> Path:
    return run.with_name(f"node{node.rank}.log")


def start_all(nodes: tuple[Node, Node], recipe: str, config: Path, run: Path, **more) -> Launchers:
    return [start_on(node, recipe, [TRAIN, config], log=log(run, node), **more) for node in nodes]


def finish_all(launchers: Launchers, nodes: tuple[Node, Node], run: Path, timeout: float = 600) -> None:
    ended = [finish(launcher, timeout) for launcher in launchers]
    written = [log(run, node).read_text(errors="replace")[-3000:] for node in nodes]
    assert ended == [0, 0], "\n----\n".join(written)


def went_on(run: Path, nodes: tuple[Node, Node]) -> bool:
    """Whether some start began at a checkpoint; it is the first rank that says so, on either node."""
    return any("going on from step" in log(run, node).read_text(errors="replace") for node in nodes)


def steps_made(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("recipe", "backend"), [("ddp", "c10d"), ("ddp", "static"), ("zero2", "c10d"), ("fsdp2", "c10d")]
)
def test_two_nodes_are_one_process(recipe, backend, nodes, demo: Callable, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    finish_all(start_all(nodes, recipe, demo(run), run, backend=backend), nodes, run)
    found = difference(run, whole)
    print(f"{recipe} over two nodes ({backend}): {found}")
    found.check()


@pytest.mark.parametrize("recipe", ["ddp", "fsdp2"])
def test_a_killed_worker_is_started_again(recipe, nodes, demo: Callable, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    launchers = start_all(nodes, recipe, demo(run, "checkpoint.every=2"), run)
    wait_for(lambda: steps_made(run) >= 9, 300, "the first 9 steps")
    kill(workers(launchers[1].pid)[:1])
    finish_all(launchers, nodes, run)
    assert went_on(run, nodes)
    difference(run, whole).check()


@pytest.mark.parametrize("recipe", ["ddp", "zero2"])
def test_a_lost_node_comes_back(recipe, nodes, demo: Callable, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = demo(run, "checkpoint.every=2")
    first, second = start_all(nodes, recipe, config, run)
    wait_for(lambda: steps_made(run) >= 9, 300, "the first 9 steps")
    nodes[1].kill()
    assert second.wait(10) == -signal.SIGKILL
    second = start_on(nodes[1], recipe, [TRAIN, config], log=log(run, nodes[1]))
    finish_all([first, second], nodes, run)
    assert went_on(run, nodes)
    difference(run, whole).check()


def test_torchrun_goes_on_with_the_node_that_is_left(nodes, demo: Callable, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = demo(run, "checkpoint.every=2")
    first, second = (start_elastic_on(node, [TRAIN, config], log=log(run, node)) for node in nodes)
    wait_for(lambda: steps_made(run) >= 9, 300, "the first 9 steps")
    nodes[1].kill()
    second.wait(10)
    written = log(run, nodes[0])
    assert finish(first, 600) == 0, written.read_text(errors="replace")[-3000:]
    assert went_on(run, nodes)
    difference(run, whole).check()
