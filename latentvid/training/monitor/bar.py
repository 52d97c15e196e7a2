"""What a run shows while it trains: a bar or lines with loss, speed and the time that is left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import mean, median
from typing import TextIO

from tqdm import tqdm

from ...config.curriculum import CurriculumStage
from ...config.schema import TrainingConfig
from ...progress import EVERY_S, Heartbeat, clock

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
RECENT = 400  # steps that the estimate looks back on
OUTLIER = 10.0  # times the median: a step is not taken for longer


class TimeLeft:
    """Seconds that a run still takes, by its latest steps and by what the work beside them took so far.

    total: steps. every: by kind of work beside them, how many steps lie between two; the last step always has one.
    The first steps, which warm up and compile, fade: half of the steps seen count, three at least.
    """

    def __init__(self, total: int, initial: int, every: Mapping[str, int]) -> None:
        self.total, self.initial = total, initial
        self._every = {kind: each for kind, each in every.items() if each}
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._beside = dict.fromkeys(self._every, 0.0)

    def step(self, seconds: float) -> None:
        self._steps.append(seconds)

    def beside(self, kind: str, seconds: float) -> None:
        if kind in self._beside:
            self._beside[kind] += seconds

    def left(self, step: int) -> float:
        """After `step` steps, one or more of which it was told of."""
        recent = list(self._steps)[-max(3, (len(self._steps) + 1) // 2) :]
        middle = median(recent)
        seconds = mean(min(each, OUTLIER * middle) for each in recent) * max(0, self.total - step)
        for kind, spent in self._beside.items():
            seen = self._due(kind, self.initial, step)
            if seen:
                seconds += spent / seen * self._due(kind, step, self.total)
        return seconds

    def _due(self, kind: str, after: int, until: int) -> int:
        """How often work of a kind is due at the steps after the one, up to and with the other."""
        each = self._every[kind]
        last = after < self.total <= until and self.total % each > 0
        return until // each - after // each + last


class Progress:
    """A bar with loss, tokens/s and time left; lines where stderr is no terminal, one every ``every`` steps and every
    ``seconds`` at least, also while a step or the work beside it takes longer.

    ``initial``: the step resumed from. ``beside_every``: see `TimeLeft`. ``main=False`` (every process but the first)
    shows nothing.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        desc: str = "train",
        main: bool = True,
        every: int = 50,
        seconds: float = EVERY_S,
        beside_every: Mapping[str, int] | None = None,
        file: TextIO | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total, self.initial, self.step = total, initial, initial
        self._file = file or sys.stderr
        self._desc, self._every, self._seconds, self._main, self._clock = desc, every, seconds, main, timer
        self._left = TimeLeft(total, initial, beside_every or {})
        self._doing = ""  # beside the steps
        self._mark = self._said = timer()
        self._aside = 0.0  # seconds since the last step that were none of a step
        terminal = main and self._file.isatty()
        self._heartbeat = Heartbeat(self._sign, seconds, self._file) if main and not terminal else None
        self._bar = (
            tqdm(total=total, initial=initial, desc=desc, file=self._file, dynamic_ncols=True, bar_format=FORMAT)
            if terminal
            else None
        )

    def update(self, *, loss: float, tokens_per_s: float) -> None:
        """At the end of a step."""
        self.step += 1
        now = self._clock()
        self._left.step(now - self._mark - self._aside)
        self._mark, self._aside = now, 0.0
        left = f"{clock(self._left.left(self.step))} left"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {tokens_per_s:,.0f} tokens/s, {left}", refresh=False)
            self._bar.update()
        elif self._main and (self._due() or now - self._said >= self._seconds):
            self.say(
                f"{self._desc}: step {self.step}/{self.total}, loss {loss:.4f}, {tokens_per_s:,.0f} tokens/s, {left}"
            )

    def _due(self) -> bool:
        return self.step % self._every == 0 or self.step in (self.initial + 1, self.initial + 5, self.total)

    @contextmanager
    def beside(self, kind: str) -> Iterator[None]:
        """Around work between two steps, such as "validation"."""
        begun, self._doing = self._clock(), kind
        try:
            yield
        finally:
            self._doing, took = "", self._clock() - begun
            self._aside += took
            self._left.beside(kind, took)

    def say(self, line: str) -> None:
        """A line that does not break the bar."""
        if self._main:
            tqdm.write(line, file=self._file)
            self._file.flush()
            self._said = self._clock()
            if self._heartbeat is not None:
                self._heartbeat.heard()

    def _sign(self) -> str:
        what = self._doing or f"step {self.step + 1}/{self.total}"
        return f"{self._desc}: {what}, {clock(self._clock() - self._mark)} since step {self.step}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        self._mark = self._said = self._clock()
        if self._heartbeat is not None:
            self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._heartbeat is not None:
            self._heartbeat.__exit__()
        self.close()


def run_progress(stage: CurriculumStage[TrainingConfig], step: int, main: bool) -> Progress:
    """Of a run, or the stage of one, that goes on from a step."""
    config = stage.config
    every = {
        "validation": config.validation.every,
        "samples": config.samples.every,
        "checkpoint": config.checkpoint.every or stage.end,
    }
    name = f"{config.run.dir.name} {stage.name}".strip()
    return Progress(stage.end, step, desc=name, main=main, beside_every=every)
