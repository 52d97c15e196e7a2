"""Shares of a step's time, by a clock that the test moves."""

import threading
import time

import pytest
import torch

from latentvid.training.monitor.efficiency import SPANS, EfficiencyMeter

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spend(meter: EfficiencyMeter, clock: Clock, **seconds: float) -> None:
    for name, took in seconds.items():
        with meter.span(name):
            clock.now += took


def test_rates_shares_and_means_are_over_the_window():
    clock = Clock()
    meter = EfficiencyMeter(CPU, peak=50.0, world=2, window=2, clock=clock, cpu_clock=lambda: 2 * clock() + 7)
    assert set(meter.record().values()) == {0.0}
    spend(meter, clock, data=1000.0)  # falls out of the window
    meter.step(tokens=1, samples=1, flops=1.0)
    spend(meter, clock, data=1.0, compute=2.0)
    clock.now += 1.0  # no span's
    meter.step(tokens=300, samples=6, flops=300.0)
    spend(meter, clock, checkpoint=3.0, data=0.5, compute=2.0, optimizer=0.5)
    meter.step(tokens=500, samples=4, flops=100.0)
    record = meter.record()
    want = {"tokens_per_s": 80, "samples_per_s": 1, "mfu": 400 / 10 / 100, "seconds": 1010, "cpu_s": 12}
    shares = {"data_wait": 0.15, "encode": 0.0, "compute": 0.4, "optimizer": 0.05, "checkpoint": 0.3, "validation": 0.0}
    assert record == pytest.approx(want | shares)


def test_cpu_seconds_are_of_the_last_step_and_of_all_threads():
    meter = EfficiencyMeter(CPU, peak=1.0, world=1)
    threads = [threading.Thread(target=lambda: sum(range(10**6))) for _ in range(2)]
    start = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meter.step(tokens=1, samples=1, flops=1.0)
    assert 0.005 < meter.record()["cpu_s"] <= time.process_time() - start + 0.05
    meter.step(tokens=1, samples=1, flops=1.0)
    assert meter.record()["cpu_s"] < 0.005


def test_an_inner_span_is_taken_out_of_the_outer():
    clock = Clock()
    meter = EfficiencyMeter(CPU, peak=1.0, world=1, clock=clock)
    with meter.span("compute"):
        clock.now += 2.0
        spend(meter, clock, encode=5.0)
        spend(meter, clock, encode=1.0)
        clock.now += 2.0
    meter.step(tokens=1, samples=1, flops=1.0)
    record = meter.record()
    assert (record["compute"], record["encode"]) == pytest.approx((0.4, 0.6))


def test_the_summary_holds_what_came_after_the_last_step():
    clock = Clock()
    meter = EfficiencyMeter(CPU, peak=1.0, world=1, window=1, clock=clock)
    for _ in range(3):
        spend(meter, clock, data=1.0, compute=1.0)
        meter.step(tokens=1, samples=1, flops=1.0)
    spend(meter, clock, checkpoint=4.0)
    want = "10 s: data_wait 30.0%, encode 0.0%, compute 30.0%, optimizer 0.0%, checkpoint 40.0%, validation 0.0%"
    assert meter.summary() == want == meter.summary()


def test_an_error_inside_a_span_leaves_the_meter_whole():
    clock = Clock()
    meter = EfficiencyMeter(CPU, peak=1.0, world=1, clock=clock)
    with pytest.raises(KeyError), meter.span("compute"):
        clock.now += 1.0
        raise KeyError
    spend(meter, clock, data=1.0)
    meter.step(tokens=1, samples=1, flops=1.0)
    assert meter.record()["data_wait"] == meter.record()["compute"] == 0.5
    with pytest.raises(ValueError, match="span 'dta': one of data, encode"), meter.span("dta"):
        pass


@pytest.mark.gpu
def test_on_cuda_the_device_is_timed_not_the_launch():
    device = torch.device("cuda")
    meter = EfficiencyMeter(device, peak=1e12, world=1)
    x = torch.randn(4096, 4096, device=device)
    for _ in range(4):
        with meter.span("data"):
            time.sleep(0.05)
        with meter.span("compute"):
            for _ in range(40):
                x = torch.nn.functional.normalize(x @ x)
        torch.cuda.synchronize()
        meter.step(tokens=1, samples=1, flops=1.0)
    record = meter.record()
    assert record["data_wait"] > 0.2 and record["compute"] > 0.05
    assert sum(record[key] for key in SPANS.values()) == pytest.approx(1.0, abs=0.25)
