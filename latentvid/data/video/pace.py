"""At which constant rate a clip is shown, and which of its frames is shown when.

Most clips have one rate, and their frames are taken one by one. In the others the time between frames varies: these
are read at a constant rate by time, as players and FFmpeg's `fps` filter show them, so that motion has its speed and
sound keeps step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .view import EARLY, STANDARD, View

LONGEST_GAP_S = 3600  # longer ones are damage
_LEAP_S = 10  # in a broadcast stream the clock is set anew, and no time passes
_FASTEST = 1000


@dataclass(frozen=True)
class Pace:
    """rate: frames shown a second (0: not known). frames: how many are shown (None: each of the file's, uncounted).

    slots: int64 [coded frames], ascending: place in what is shown that a coded frame is the first to have; None: each
    has its own. Of those with the same place the last is shown, and it stays until the next. first: coded frames
    before those that `slots` are of.
    """

    rate: Fraction
    frames: int | None = None
    slots: np.ndarray | None = None
    first: int = 0

    def coded(self, start: int, frames: int) -> tuple[int, list[int]]:
        """For frames [start, start + frames) of what is shown: the first coded frame, and how often that and each
        after it is shown."""
        shown = np.searchsorted(self.slots, np.arange(start, start + frames), "right") - 1
        return self.first + int(shown[0]), np.bincount(shown - shown[0]).tolist()

    def repeats(self, start: int, frames: int) -> int:
        """How many of the frames [start, start + frames) show what the one before them shows; after the end, all."""
        shown = np.searchsorted(self.slots, np.arange(start, start + frames), "right")
        return int(np.count_nonzero(np.diff(shown) == 0))


def pace(times: np.ndarray, tick: Fraction, last: int, declared: Fraction | None, *, leaps: bool = False) -> Pace:
    """times: int64 [N], when each frame is shown, ascending, in `tick` seconds. last: how long the last one is shown.

    A clip whose frames all lie less than half an interval from an even row is taken frame by frame: at the `declared`
    rate where that keeps step to half a frame, else at the row's own. Any other is shown at the rate of its median
    interval (or the standard rate within 1.5% of it). leaps: the clock may be set anew on the way (broadcast streams).
    Raises ValueError for times that no clip has.
    """
    count = len(times)
    if count < 2:
        return Pace(declared or Fraction(0), count)
    since, usual = _since(times, tick, leaps)
    length, mean = int(since[-1]), Fraction(int(since[-1]), count - 1)
    if np.ptp(since - float(mean) * np.arange(count)) < mean:
        slack = max(mean / 2, Fraction(2))
        for rate in (declared, min(STANDARD, key=lambda rate: abs(rate - 1 / (mean * tick)))):
            if rate and abs((count - 1) / (rate * tick) - length) <= slack:
                return Pace(rate, count)
        return Pace((1 / (mean * tick)).limit_denominator(100_000), count)
    rate = _nearest_standard(1 / (Fraction(usual).limit_denominator(100_000) * tick))
    if rate > _FASTEST:  # frames in bursts
        rate = _nearest_standard(1 / (mean * tick))
    return _at_rate(since, tick, length + _lasts(last, tick, usual), rate)


def view_pace(times: np.ndarray, tick: Fraction, last: int, view: View, *, leaps: bool = False) -> Pace:
    """As `pace`, of what a view takes of a file. Raises ValueError also where it has no frame."""
    if len(times) < 2:
        return Pace(view.rate, 1, np.zeros(1, np.int64))
    since, usual = _since(times, tick, leaps)
    bounds = [(seconds - EARLY * usual * float(tick)) / float(tick) for seconds in (view.start, view.end)]
    first, stop = np.searchsorted(since, bounds).tolist()
    if first == stop:
        raise ValueError(f"has no frame from {view.start:g} to {view.end:g} s")
    over = since[stop] if stop < len(since) else since[-1] + _lasts(last, tick, usual)
    return replace(_at_rate(since[first:stop] - since[first], tick, int(over - since[first]), view.rate), first=first)


def _at_rate(since: np.ndarray, tick: Fraction, over: int, rate: Fraction) -> Pace:
    """Frames shown so many ticks after the first, the last until `over`, at a constant rate."""
    up, down = tick.numerator * rate.numerator, tick.denominator * rate.denominator
    slots = (2 * since * up + down) // (2 * down)  # rounded, halves up
    end = (2 * over * up + down) // (2 * down)
    return Pace(rate, int(max(slots[-1] + 1, end)), slots)


def _since(times: np.ndarray, tick: Fraction, leaps: bool) -> tuple[np.ndarray, float]:
    """int64 [N], ticks from the first frame to each; and the usual step."""
    steps = np.diff(times)
    usual = _usual(steps)
    if leaps:
        steps = np.where(steps * float(tick) > _LEAP_S, round(usual), steps)
    if steps.max() * float(tick) > LONGEST_GAP_S:
        raise ValueError(f"has a gap of {steps.max() * float(tick) / 3600:.3g} hours in its times")
    return np.concatenate([[0], np.cumsum(steps)]), usual


def _lasts(last: int, tick: Fraction, usual: float) -> int:
    return last if 0 < last * tick <= _LEAP_S else round(usual)


def _usual(steps: np.ndarray) -> float:
    """The median step, freed of its rounding to ticks by the ones that are nearly as long."""
    median = float(np.sort(steps)[(len(steps) - 1) // 2])
    return float(steps[np.abs(steps - median) <= 0.15 * median].mean())


def _nearest_standard(rate: Fraction) -> Fraction:
    near = min(STANDARD, key=lambda other: abs(other - rate))
    return near if abs(near - rate) <= rate * Fraction(15, 1000) else rate.limit_denominator(100_000)
