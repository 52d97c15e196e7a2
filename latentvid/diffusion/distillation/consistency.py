"""Multistep consistency distillation (Heek, Hoogeboom & Salimans 2024, algorithm 1): K students' steps at once.

The teacher's levels are cut into K parts. From any level of a part the student's step leads to the part's end, to where
it leads from the teacher's next level too. K = 1 is a consistency model (Song et al. 2023); where the teacher makes K
steps it is plain distillation of its prediction. No second network is trained and no derivative is taken.

Axes: T tokens of a pack, P token features, N steps of the teacher, K of the student.
"""

from __future__ import annotations

from torch import Tensor

from ..solvers import Predict
from .point import Point


def consistency_target(point: Point, teacher: Predict, student: Predict, steps: int) -> tuple[Tensor, Tensor]:
    """What the student is to predict [T,P], and what the teacher predicts at t.

    student: as it is now, without gradients. steps: K, which divides N.
    """
    part = (point.levels.shape[1] - 1) // steps
    first = teacher(point.z, point.t)
    place = point.place
    after, end = point.after(place + 1), point.after((place // part + 1) * part)
    between = point.step(first, point.t, after, point.z)
    landed = point.step(student(between, after), after, end, between)  # where a part ends nothing moves
    return point.implied(landed, end), first
