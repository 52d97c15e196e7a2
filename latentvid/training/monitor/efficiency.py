"""Where a step's time goes, and how much of the devices' arithmetic becomes training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .metrics import ThroughputMeter

# spans, and what their shares of the wall time are called in a record
SPANS = {
    "data": "data_wait",  # until the loader gives the packs
    "encode": "encode",  # frozen VAE and text encoder
    "compute": "compute",  # forward and backward
    "optimizer": "optimizer",  # clipping, step, average of the weights
    "checkpoint": "checkpoint",
    "validation": "validation",  # samples and measurements on held-out data
}


class HostTimer:
    """Marks are times of the host's clock, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.mark = clock

    def between(self, start: float, end: float) -> float:
        return end - start


class CudaTimer:
    """Marks are events in the device's stream: the time between two is what the stream spent there, idle or busy.

    So waiting for data counts only as far as the device ran dry, and work that was queued earlier does not count as
    the span's. Marking does not synchronise; reading does, so marks are read a step later.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


def rank_balance(costs: Sequence[float], ranks: int) -> float:
    """Mean cost of a data-parallel rank's packs over the dearest rank's, 0..1; rank r has every ranks-th from r on."""
    sums = [sum(costs[rank::ranks]) for rank in range(ranks)]
    return sum(sums) / (ranks * max(sums))


@dataclass
class _Span:
    name: str
    start: object
    end: object = None
    inner: list[_Span] = field(default_factory=list)


@dataclass
class _Step:
    wall: float  # seconds
    seconds: dict[str, float] | None = None  # of each span; None until the marks are read


class EfficiencyMeter:
    """Rates, MFU and shares of the wall time, over the last `window` steps.

    Args:
        device: where the model trains; on CUDA spans are timed in its stream.
        peak: FLOP/s of one device (`flops.peak_flops`).
        world: devices.
        window: steps.
        clock: of the host, seconds.
        cpu_clock: CPU seconds of this process, all its threads together.

    Around each part of a step: `with meter.span("data"): ...`; a span inside another is taken out of the outer one.
    After each step `meter.step(...)`, then `meter.record()`. What is timed between two `step` calls belongs to the
    later one.
    """

    def __init__(
        self,
        device: torch.device,
        peak: float,
        world: int,
        window: int = 20,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.peak = peak * world
        self._cpu_clock, self._cpu_mark, self._cpu_s = cpu_clock, cpu_clock(), 0.0
        self.totals = dict.fromkeys(SPANS, 0.0)  # seconds of each span since the start, as far as read
        self._timer = CudaTimer(device) if device.type == "cuda" else HostTimer(clock)
        self._throughput = ThroughputMeter(window, clock)
        self._steps: deque[_Step] = deque(maxlen=window)
        self._unread: deque[tuple[_Step, list[_Span]]] = deque()
        self._spans: list[_Span] = []  # of the step that is running
        self._open: list[_Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times what is inside as `name`, a key of SPANS."""
        if name not in SPANS:
            raise ValueError(f"span {name!r}: one of {', '.join(SPANS)}")
        span = _Span(name, self._timer.mark())
        (self._open[-1].inner if self._open else self._spans).append(span)
        self._open.append(span)
        try:
            yield
        finally:
            self._open.pop().end = self._timer.mark()

    def step(self, *, tokens: int, samples: int, flops: float) -> None:
        """Ends a step.

        tokens, samples and flops (of forward and backward) are those of the step over all processes.
        """
        wall = self._throughput.update(tokens, samples, flops)
        step = _Step(wall)
        self._steps.append(step)
        self._unread.append((step, self._spans))
        self._spans = []
        now = self._cpu_clock()
        self._cpu_s, self._cpu_mark = now - self._cpu_mark, now
        late = isinstance(self._timer, CudaTimer)
        while len(self._unread) > late:
            self._read(*self._unread.popleft())

    def record(self) -> dict[str, float]:
        """tokens_per_s, samples_per_s, mfu, a share of this process's wall time for each span (0..1; 0
        before the first step whose marks are read), cpu_s (this process's CPU seconds of the last step, loader
        processes left out) and seconds since the start."""
        steps = list(self._steps)
        timed = [step for step in steps if step.seconds is not None]
        wall = max(sum(step.wall for step in timed), 1e-9)
        return {
            "tokens_per_s": self._throughput.tokens_per_s,
            "samples_per_s": self._throughput.samples_per_s,
            "mfu": self._throughput.flops_per_s / self.peak,
            **{key: sum(step.seconds[name] for step in timed) / wall for name, key in SPANS.items()},
            "cpu_s": self._cpu_s,
            "seconds": self._throughput.seconds,
        }

    @property
    def seconds(self) -> float:
        """Since the start."""
        return max(self._throughput.seconds, 1e-9)

    def summary(self) -> str:
        """One line on the whole run so far, what was timed after the last step included."""
        while self._unread:
            self._read(*self._unread.popleft())
        totals = dict(self.totals)
        _add(self._timer.between, self._spans, totals)
        shares = ", ".join(f"{SPANS[name]} {spent / self.seconds:.1%}" for name, spent in totals.items())
        return f"{self.seconds:,.0f} s: {shares}"

    def _read(self, step: _Step, spans: list[_Span]) -> None:
        step.seconds = dict.fromkeys(SPANS, 0.0)
        _add(self._timer.between, spans, step.seconds)
        for name, spent in step.seconds.items():
            self.totals[name] += spent


def _add(between: Callable, spans: list[_Span], seconds: dict[str, float]) -> float:
    """Adds each span's time, less that of the spans inside it, to `seconds`; returns the time of `spans` together."""
    together = 0.0
    for span in spans:
        took = between(span.start, span.end)
        seconds[span.name] += took - _add(between, span.inner, seconds)
        together += took
    return together
