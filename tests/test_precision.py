"""What networks compute in: by a measurement, by name, and the same way in every program."""

import argparse
import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentvid import precision
from latentvid.errors import UserError
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

ROOT = Path(__file__).parents[1]
FAST, SLOW = precision.Speed(2.8, 1.4), precision.Speed(0.02, 0.08)


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture
def speed(monkeypatch):
    """`speed(found)`: what is measured from here on."""
    precision._check_bf16.cache_clear()
    return lambda found: monkeypatch.setattr(precision, "_speed", lambda device: found)


@pytest.mark.parametrize(("found", "chosen"), [(FAST, "bf16"), (SLOW, "no"), (precision.Speed(0.5, 1.9), "no")])
def test_auto_is_what_was_measured_to_be_faster(speed, found, chosen, caplog):
    speed(found)
    assert precision.choose("auto", "cpu") == chosen
    assert precision.choose("no", "cpu") == "no" and precision.choose("bf16", torch.device("cpu")) == "bf16"
    assert f"{found.both:.2g} times as fast as fp32" in precision.describe(chosen, "cpu")


def test_what_is_slow_and_asked_for_by_name_gets_one_warning_with_the_ratio(speed, caplog):
    speed(precision.Speed(0.021, 0.08))
    for _ in range(3):
        assert precision.choose("bf16", "cpu") == "bf16"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "0.041 times as fast as fp32 (matrix products 0.021, convolutions 0.08" in record.getMessage()


def test_what_cannot_be_computed_in_is_refused(speed):
    speed(precision.Speed(0.0, 0.0))
    assert precision.choose("auto", "cpu") == "no"
    with pytest.raises(UserError, match="cannot compute in bf16; choose auto or no"):
        precision.choose("bf16", "cpu")
    with pytest.raises(UserError, match="mixed_precision='fp16': choose auto, no, bf16"):
        precision.choose("fp16", "cpu")


def test_the_measurement_is_short_quiet_and_made_once(monkeypatch, fp32_is_faster):
    """Of products and convolutions in both types; how long they take is this machine's business."""
    measure, calls, seconds = fp32_is_faster, [], precision._seconds
    monkeypatch.setattr(precision, "_seconds", lambda work, tensors, enough=1e9: calls.append(tensors) or 0.001)
    before = torch.get_rng_state()
    measure.cache_clear()
    assert measure("cpu") is measure("cpu") == precision.Speed(1.0, 1.0)
    assert [(len(x), x[0].dtype) for x in calls] == [(n, t) for n in (1, 2) for t in (torch.float32, torch.bfloat16)]
    measure.cache_clear()
    assert torch.equal(torch.get_rng_state(), before)
    runs = []
    assert seconds(lambda x: runs.append(1) or x, [torch.zeros(2)], enough=0.0) > 0
    assert len(runs) == 3  # the first, and two that are beyond what is enough


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no AVX2")
def test_a_processor_with_avx2_alone_computes_in_fp32():
    """Where bf16 takes some 30 times as long, whatever this processor has beside AVX2."""
    code = "import torch; from latentvid.precision import choose; print(torch.backends.cpu.get_cpu_capability(), "
    run = subprocess.run(
        [sys.executable, "-c", code + "choose('auto', 'cpu'))"],
        env={**os.environ, **AVX2, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["AVX2", "no"]


def test_a_device_without_bf16_has_speed_0():
    def work(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not implemented")
        return x

    assert precision._ratio(work, torch.zeros(2)) == 0


@pytest.mark.parametrize(
    "program",
    ["encode_latents", "reconstruct", "evaluate_vae"]
    + [path.stem for path in sorted((ROOT / "inference").glob("*.py"))],
)
def test_every_program_has_the_one_option(program):
    text = (ROOT / f"latentvid/programs/{program}.py").read_text()
    assert "precision.add_argument(" in text or "arguments.parser_of(" in text
    assert not re.search(r"--(fp32|bf16|fp16|precision)\b", text)


def test_the_option_takes_three_values(capsys):
    parser = argparse.ArgumentParser()
    precision.add_argument(parser)
    assert parser.parse_args([]).mixed_precision == "auto"
    assert parser.parse_args(["--mixed-precision", "no"]).mixed_precision == "no"
    with pytest.raises(SystemExit):
        parser.parse_args(["--mixed-precision", "fp16"])
    assert "'auto', 'no', 'bf16'" in capsys.readouterr().err.replace(
        "choose from auto, no, bf16", "'auto', 'no', 'bf16'"
    )


def test_shipped_configurations_leave_the_choice_to_the_machine():
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        if path.parent.name in ("vae", "dit"):
            assert not re.search("mixed_precision: *(no|bf16)", path.read_text()), path


def test_a_pipeline_computes_in_what_is_faster_unless_it_is_told(tiny_pipeline, speed):
    pipeline = load_pipeline(tiny_pipeline, "cpu")

    def clip(**options) -> torch.Tensor:
        return pipeline("a red 7", sampling=Sampling(steps=2, progress=False, **options), output_type="uint8").frames[0]

    speed(SLOW)
    exact = clip()
    assert torch.equal(exact, clip(precision=torch.float32)) and not torch.equal(exact, clip(precision=torch.bfloat16))
    speed(FAST)
    assert torch.equal(clip(), clip(precision=torch.bfloat16))
