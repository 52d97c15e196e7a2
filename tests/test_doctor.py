"""What `latentvid doctor` says of a machine, and of the configurations that it can train."""

import math
from types import SimpleNamespace

import psutil
import pytest
import torch

from latentvid import doctor, precision
from latentvid.models.transformer import VideoDiT

CPU = torch.device("cpu")


def test_each_thing_is_said_and_backends_are_tried(monkeypatch):
    monkeypatch.setattr(doctor, "peak_flops", lambda device, computed: (2e12, f"measured on this {device}, 1 thread"))
    said = dict(doctor.machine(CPU))
    assert list(said) == [
        "versions", "processor", "GPU", "computes", "attention", "memory", "disk", "FFmpeg", "launcher", "optional"
    ]  # fmt: skip
    assert f"torch {torch.__version__.partition('+')[0]}" in said["versions"]
    assert "2 TFLOP/s in bf16 (measured on this cpu)" in said["computes"] and "`auto` is fp32" in said["computes"]
    assert "auto is grouped" in said["attention"] and "sdpa: works" in said["attention"]
    assert "writes mp4, webm, gif, png" in said["FFmpeg"]
    assert "latentvid train-dit CONFIG" in said["launcher"]


def test_a_backend_that_fails_is_named_with_the_reason(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(doctor.BACKENDS, "sdpa", broken)
    monkeypatch.setattr("latentvid.attention.BACKENDS", doctor.BACKENDS)
    assert "sdpa: not here (no kernel image)" in doctor.attention(CPU)


def test_a_configuration_needs_what_its_network_has():
    small = doctor.needs("dit/demo")
    config = doctor.load_config(doctor.DitConfig, doctor.FOLDER / "dit/demo.yaml")
    sizes = {"latent_channels": doctor.LATENTS, "text_width": doctor.TEXT_WIDTH}
    model = VideoDiT(**{key: value for key, value in config.model.items() if key != "kind"}, **sizes)
    assert small.parameters == sum(p.numel() for p in model.parameters())
    # weights, gradients, two moments and the average, in fp32, and activations above them
    assert 20 * small.parameters < small.bytes < 2**31
    twice = doctor._of_stage(config, 2 * config.train.steps)
    assert math.isclose(twice.flops, 2 * small.flops) and twice.bytes == small.bytes
    assert doctor.needs("vae/small").parameters > 0  # it has a critic, whose weight looks at the last layer


@pytest.mark.parametrize(("free", "verdict"), [(2**40, "fits"), (2**20, "too large for one device")])
def test_the_table_compares_with_this_machines_memory(monkeypatch, free, verdict):
    monkeypatch.setattr(doctor, "OWN", ("dit/demo",))
    monkeypatch.setattr(doctor, "needs", lambda name: doctor.Need(1.5e6, 2**30, 1e15))
    monkeypatch.setattr(doctor, "peak_flops", lambda *_: (1e12, ""))
    monkeypatch.setattr(precision, "choose", lambda *_: "bf16")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=free))
    lines = []
    doctor.table(CPU, lines.append)
    assert lines[1].split()[0] == "dit/demo" and lines[1].endswith(verdict) or verdict in lines[1]
    assert "1.50 M" in lines[1] or "1.5 M" in lines[1]
