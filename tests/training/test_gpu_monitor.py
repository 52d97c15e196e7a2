"""What is kept of a GPU: memory in the log, a trace of some steps; garbage collection and determinism."""

import gc
import gzip
import json
import logging

import pytest
import torch
from comparing import draws

from latentvid.config.parsing import parse_cli
from latentvid.config.schema import DitConfig
from latentvid.training import machine
from latentvid.training.compute import deterministic
from latentvid.training.monitor.device import Profile, gpu_memory
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


def test_memory_is_the_most_since_the_last_line(monkeypatch):
    resets = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**31)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 4})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    device = torch.device("cuda", 1)
    assert gpu_memory(device) == {"gpu_peak_gib": 1.5, "gpu_held_gib": 2.0, "gpu_retries": 4} and resets == [device]
    assert gpu_memory(torch.device("cpu")) == {} and len(resets) == 1


@pytest.mark.parametrize(("left", "first", "last"), [(20, 16, 17), (4, 8, 9), (3, 7, 8), (2, 7, 7)])
def test_a_profile_follows_steps_once_they_are_warm(tmp_path, left, first, last):
    profile = Profile(tmp_path, 2, done=5, left=left)
    with profile:
        for _ in range(left):
            torch.ones(4, 4) @ torch.ones(4, 4)
            profile.step()
    (trace,) = tmp_path.glob("*.json.gz")
    assert trace.name == f"steps-{first}-{last}.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert steps == {f"ProfilerStep#{n - 5 - 1}" for n in range(first, last + 1)}  # its own count, from 0
    assert "aten::mm" in trace.with_suffix("").with_suffix(".txt").read_text()


def test_a_profile_of_more_steps_than_there_are_is_told(tmp_path, caplog):
    with Profile(tmp_path, 2, done=5, left=1) as profile:
        profile.step()
    assert not list(tmp_path.iterdir()) and "1 step left, of which 0 can be followed" in caplog.text


def test_garbage_is_collected_between_steps_on_gpus(monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collected.append(generation))
    monkeypatch.setattr(machine, "COLLECTED", 2)
    with pytest.raises(ZeroDivisionError), machine.Collection(torch.device("cuda")) as collection:
        for _ in range(5):
            assert not gc.isenabled()
            collection.step()
        1 / 0  # noqa: B018
    assert gc.isenabled() and collected == [(), (1,), (1,)]
    with machine.Collection(torch.device("cpu")) as collection:
        assert gc.isenabled()
        collection.step(), collection.step()
    assert len(collected) == 3


def test_determinism_is_asked_of_torch_and_given_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_with_few_lines_a_trace_and_determinism(dit_config, tmp_path, caplog, monkeypatch):
    class Asking(DitTask):
        def loss(self, *args):
            assert torch.are_deterministic_algorithms_enabled()
            return super().loss(*args)

    keys = ["log.every=4", "log.profile=2", "log.draws=true", "train.deterministic=true", "checkpoint.every=0"]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with caplog.at_level(logging.WARNING):
        train(dit_config(tmp_path, "train.steps=6", *keys), Asking)
    assert [record["step"] for record in read_metrics(tmp_path)] == [4, 6]
    assert len(draws(tmp_path)) == 6  # of each step
    assert [path.name for path in sorted((tmp_path / "profile").iterdir())] == ["steps-5-6.json.gz", "steps-5-6.txt"]
    assert "steps-5-6.json.gz" in caplog.text


def test_profile_is_short_for_its_key(dit_config, tmp_path, capsys):
    from latentvid.config.parsing import save_config

    save_config(dit_config(tmp_path), tmp_path / "config.yaml")
    for words in (["--profile", "3"], ["--profile=3"]):
        assert parse_cli(DitConfig, [str(tmp_path / "config.yaml"), *words]).log.profile == 3
