"""Where a student is taught: a noised pack, between the noise levels of its teacher's steps.

Axes: T tokens of a pack, P token features, R latent frames, N steps of the teacher, K of the student.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...packing import Packed
from ..scheduler import LatentVideoScheduler


@dataclass(frozen=True)
class Point:
    """z: [T,P] at levels t [R], 0 of frames that are given. levels: [R,N+1] of the teacher's steps from noise to data,
    of which t are some; of methods that need them."""

    scheduler: LatentVideoScheduler
    layout: Packed
    z: Tensor
    t: Tensor
    levels: Tensor | None = None

    def tokens(self, of_frames: Tensor) -> Tensor:  # [R] -> [T,1]
        return of_frames.index_select(0, self.layout.frame)[:, None]

    @property
    def place(self) -> Tensor:
        """The number [R] of t among the teacher's levels; N where a frame is given."""
        return (self.levels - self.t[:, None]).abs().argmin(1)

    def after(self, place: Tensor) -> Tensor:
        """The levels [R] of these numbers, the last one behind it too."""
        return self.levels.gather(1, place.clamp_max(self.levels.shape[1] - 1)[:, None])[:, 0]

    def step(self, prediction: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """z [T,P] at levels t [R] -> at levels s [R], by the deterministic step of first order."""
        return self.scheduler.step(prediction, self.tokens(t), self.tokens(s), z)

    def implied(self, landed: Tensor, s: Tensor) -> Tensor:
        """The target [T,P] of which one step from z at t leads to `landed` [T,P] at s [R].

        landed = alpha_s x + sigma_s eps and z = alpha_t x + sigma_t eps give, with r = sigma_s / sigma_t,
        x = (landed - r z) / (alpha_s - r alpha_t) (Salimans & Ho 2022, appendix G) and eps = (z - alpha_t x) / sigma_t.
        Given frames, which no step moves, have what z is as x.
        """
        t, s = self.tokens(self.t), self.tokens(s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (self.scheduler.path.coefficients(level) for level in (t, s))
        moves = s < t
        r = torch.where(moves, sigma_s / sigma_t.clamp_min(1e-12), 0.0)
        gap = torch.where(moves, alpha_s - r * alpha_t, 1.0)
        x = torch.where(moves, (landed - r * self.z) / gap, self.z)
        eps = torch.where(moves, (self.z - alpha_t * x) / sigma_t.clamp_min(1e-12), 0.0)
        return self.scheduler.target(x, eps, t)


def up_to(levels: Tensor, t: Tensor) -> Tensor:
    """Levels t of any shape moved up to the next of `levels` [K+1], which fall to 0; 0, of what is given, stays.

    Evenly drawn levels become evenly drawn steps where the steps are even, as Salimans & Ho (2022) draw them.
    """
    rising = levels.flip(0).contiguous()
    return rising[torch.searchsorted(rising, t.contiguous()).clamp_max(len(rising) - 1)]
