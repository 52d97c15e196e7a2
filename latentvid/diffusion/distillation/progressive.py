"""Progressive distillation (Salimans & Ho 2022, algorithm 2): one step of the student does what two of its teacher do.

Halving again and again, each student being the next one's teacher, leads from many steps to one. Of a guided teacher
both steps are guided (Meng et al. 2023, section 3.2).

Axes: T tokens of a pack, P token features.
"""

from __future__ import annotations

from torch import Tensor

from ..solvers import Predict
from .point import Point


def progressive_target(point: Point, teacher: Predict) -> tuple[Tensor, Tensor]:
    """What the student is to predict [T,P], so that its step from t reaches where two steps of the teacher do; and
    what the teacher predicts at t. t are every second of the teacher's levels."""
    first = teacher(point.z, point.t)
    middle, end = point.after(point.place + 1), point.after(point.place + 2)
    between = point.step(first, point.t, middle, point.z)
    landed = point.step(teacher(between, middle), middle, end, between)
    return point.implied(landed, end), first
