"""What two runs must share, and by how much they differ."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentvid.training.monitor.metrics import read_metrics

WEIGHTS = "pipeline/transformer/diffusion_pytorch_model.safetensors"
TIMES = (
    *("seconds", "tokens_per_s", "samples_per_s", "mfu", "cpu_s"),
    *("data_wait", "encode", "compute", "optimizer", "checkpoint", "validation"),
)
LOSS, WEIGHT = 1e-5, 1e-4  # largest relative difference of a step's loss, largest difference of an exported weight


@dataclass
class Difference:
    """Of one run from another: relative for each step's loss, absolute for the exported weights."""

    loss: float
    weight: float

    def check(self) -> None:
        assert self.loss <= LOSS and self.weight <= WEIGHT, self


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run)]


def draws(run: Path) -> list[list[tuple[int, int]]]:
    """Of each step, the (global number, index) of the samples that the loaders made."""
    lines = (run / "draws.jsonl").read_text(encoding="utf-8").splitlines()
    return [[tuple(draw) for draw in json.loads(line)["draws"]] for line in lines]


def difference(run: Path, other: Path) -> Difference:
    """Fails unless both runs made the same steps of the same samples, with about the same gradients."""
    first, second = read_metrics(run), read_metrics(other)
    keys = ("step", "tokens", "samples", "lr", "skipped_steps")
    assert [[a[k] for k in keys] for a in first] == [[b[k] for k in keys] for b in second]
    assert [a["grad_norm"] for a in first] == pytest.approx([b["grad_norm"] for b in second], rel=1e-4)
    assert draws(run) == draws(other)
    loss = max(abs(a - b) / abs(b) for a, b in zip(losses(run), losses(other), strict=True))
    ours, theirs = load_file(run / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys()
    return Difference(loss, max(float((ours[k] - theirs[k]).abs().max()) for k in ours))


def assert_measured_alike(run: Path, other: Path) -> None:
    """Every measurement on held-out data: of the same steps and weights, losses of all bins to 1e-5."""
    ours, theirs = (read_metrics(r, "validation.jsonl") for r in (run, other))
    assert [(r["step"], r["weights"]) for r in ours] == [(r["step"], r["weights"]) for r in theirs] and ours
    for a, b in zip(ours, theirs, strict=True):
        assert [part["loss"] for part in a["bins"]] == pytest.approx([part["loss"] for part in b["bins"]], rel=LOSS)


def assert_identical(run: Path, other: Path) -> None:
    """Every loss and every exported weight to the last bit."""
    assert losses(run) == losses(other) and draws(run) == draws(other)
    ours, theirs = load_file(run / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def assert_each_once(run: Path, samples: int) -> None:
    """From the log of global numbers: no number twice or left out, and every epoch holds every sample once.

    A sample that a step had no room for waits, so what the last steps drew may have holes: only numbers below the first
    hole are looked at.
    """
    index_of = {number: index for step in draws(run) for number, index in step}
    assert len(index_of) == sum(map(len, draws(run))), "a global number was used twice"
    complete = next(n for n in range(len(index_of) + 1) if n not in index_of)
    assert complete >= samples, f"only {complete} numbers follow each other: too few to see an epoch of {samples}"
    for first in range(0, complete - samples + 1, samples):
        epoch = {index_of[number] for number in range(first, first + samples)}
        assert epoch == set(range(samples)), f"the epoch of numbers {first} to {first + samples - 1}"


def lines(run: Path) -> list[dict]:
    """The log without what only a clock says."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(run)]


def state(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:08d}" / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """The log and the checkpoint of a step to the last bit."""
    assert lines(a) == lines(b)
    for name in ("model", "ema", "optimizer"):
        assert same(state(a, step, name), state(b, step, name)), name


def apart(one: Path, other: Path) -> float:
    """The largest difference of two files' tensors, over the largest number in each."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-3)) for k in a)
