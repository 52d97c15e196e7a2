"""The metrics log over kills and resumes, throughput, and progress without a terminal."""

import io
import json
import math

import numpy as np
import pytest
import torch
from launching import wait_for

from latentvid.progress import phase
from latentvid.training.monitor.bar import Progress, TimeLeft
from latentvid.training.monitor.metrics import MetricsLog, ThroughputMeter, read_metrics


def run(folder, steps, resume_step=None):
    with MetricsLog(folder, resume_step) as log:
        for step in steps:
            log.write({"step": step, "loss": 1 / step})


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
    run(tmp_path / "a", range(1, 21))
    run(tmp_path / "b", range(1, 15))
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')  # killed in the middle of a line
    assert [r["step"] for r in read_metrics(tmp_path / "b")] == list(range(1, 15))
    run(tmp_path / "b", range(11, 21), resume_step=10)
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes() == (tmp_path / "a" / "metrics.jsonl").read_bytes()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["metrics.jsonl"]


def test_a_run_from_the_start_begins_an_empty_log(tmp_path):
    run(tmp_path, range(1, 5))
    run(tmp_path, range(1, 3))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path / "none") == []


def test_a_bad_line_in_the_middle_is_dropped_with_a_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\x00\x00\n{"step": 2}\n')
    MetricsLog(tmp_path, 2).close()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2] and "line 2 is not a record" in caplog.text


def test_lines_are_on_disk_at_once_and_are_strict_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.write({"step": 1, "loss": math.nan, "lr": torch.tensor(0.5), "n": np.int64(3), "by": {"a": [math.inf, 1.0]}})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "lr": 0.5, "n": 3, "by": {"a": [None, 1.0]}}
    with pytest.raises(ValueError, match="needs its step"):
        log.write({"loss": 1.0})


def test_throughput_is_over_the_last_steps():
    now = [0.0]
    meter = ThroughputMeter(window=2, clock=lambda: now[0])
    assert meter.tokens_per_s == 0.0
    for seconds, tokens in ((10, 1000), (1, 300), (2, 300)):
        now[0] += seconds
        assert meter.update(tokens, samples=3, flops=6.0) == seconds
    assert meter.tokens_per_s == pytest.approx(200) and meter.samples_per_s == pytest.approx(2)
    assert meter.flops_per_s == pytest.approx(4)
    assert meter.seconds == 13


def test_progress_prints_plain_lines_without_a_terminal():
    out = io.StringIO()
    with Progress(7, 2, main=True, every=3, file=out) as progress:
        for _ in range(5):
            progress.update(loss=0.5, tokens_per_s=12345)
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["train: step 3/7", "train: step 6/7", "train: step 7/7"]
    assert "loss 0.5000, 12,345 tokens/s, 00:00 left" in lines[-1]


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_comes_every_30_seconds_however_few_the_steps():
    out, time = io.StringIO(), Clock()
    with Progress(1000, 100, every=50, file=out, timer=time) as progress:
        for _ in range(12):
            time.now += 11
            progress.update(loss=0.5, tokens_per_s=1)
    steps = [int(line.split("step ")[1].split("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == [101, 104, 105, 108, 111]  # the first and the fifth, and every 33 seconds


def test_a_long_step_and_long_work_beside_it_give_signs_of_life():
    out = io.StringIO()
    with Progress(9, 2, desc="run", seconds=0.05, file=out) as progress:
        wait_for(lambda: "run: step 3/9, 00:00 since step 2" in out.getvalue(), 10, "a sign of the step")
        with progress.beside("validation"):
            wait_for(lambda: "run: validation, 00:0" in out.getvalue(), 10, "a sign of the validation")


def test_a_phase_says_how_far_it_is(monkeypatch):
    out = io.StringIO()
    with phase("statistics", 8, every=0.05, file=out) as advance:
        advance()
        advance()
        wait_for(lambda: "statistics: 2 of 8, 00:0" in out.getvalue(), 10, "a line")
        assert "left" in out.getvalue()
    monkeypatch.setenv("RANK", "1")
    with phase("statistics", every=0.0, file=out) as advance:
        advance()


def simulated(total: int, after: int, *, step=1.0, first=0.0, every=None, cost=0.0) -> tuple[float, float]:
    """(time left as said after some steps, as it then was): the first steps take longer, `cost` is beside the steps."""
    time, out, said, when = Clock(), io.StringIO(), None, 0.0
    with Progress(total, file=out, timer=time, beside_every={"validation": every or 0}) as progress:
        for number in range(1, total + 1):
            time.now += step + (first if number <= 2 else 0.0)
            progress.update(loss=0.0, tokens_per_s=0.0)
            if every and (number % every == 0 or number == total):
                with progress.beside("validation"):
                    time.now += cost
            if number == after:
                said, when = progress._left.left(number), time.now
    return said, time.now - when


@pytest.mark.parametrize(
    "run",
    [
        {"total": 200, "after": 5},
        {"total": 200, "after": 5, "first": 60.0},  # compiles
        {"total": 200, "after": 5, "every": 4, "cost": 20.0},
        {"total": 203, "after": 50, "every": 20, "cost": 100.0, "first": 30.0},
    ],
)
def test_the_time_left_is_right_after_five_steps(run):
    said, was = simulated(**run)
    assert said == pytest.approx(was, rel=0.05)


def test_a_stall_is_not_taken_for_the_rule():
    left = TimeLeft(1000, 0, {})
    for seconds in (5.0, 1.0, 1.0, 300.0, 1.0, 1.0):
        left.step(seconds)
    assert left.left(6) < 5 * 994


def test_progress_draws_a_bar_on_a_terminal_and_nothing_on_other_ranks():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress(4, 1, file=out) as progress:
        progress.update(loss=0.25, tokens_per_s=7)
        progress.say("sampled")
    assert "loss 0.2500, 7 tokens/s" in out.getvalue() and "2/4" in out.getvalue() and "sampled" in out.getvalue()
    quiet = Terminal()
    with Progress(4, main=False, every=1, file=quiet) as progress:
        progress.update(loss=0.25, tokens_per_s=7)
        progress.say("sampled")
    assert quiet.getvalue() == ""
