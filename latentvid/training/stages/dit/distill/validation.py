"""What is measured of a student on held-out clips: losses by noise level, and how far it ends from its teacher.

Axes: T tokens of a pack, P token features, R latent frames, N samples, K steps.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from .....data.plan.plan import Draw
from .....diffusion.objective import loss_per_sample
from .....diffusion.solvers import Predict, solve
from ....compute import compute_type
from ..pack import DitPack
from ..validation import HeldOutLatents
from .packs import FIGURES, DistillPacks


class HeldOutStudent(DistillPacks, HeldOutLatents):
    """Beside the losses: `end_distance`, the mean squared distance, in normalised latents, of the student's end point
    from its teacher's of the same noise, text and scale of guidance. steps: of the student, and of the teacher."""

    figures = FIGURES
    steps: tuple[int, int]

    def measured(self, model: nn.Module, pack: DitPack) -> Tensor:
        found = self.taught(model, pack)
        return torch.stack([getattr(found, name) for name in FIGURES])

    @torch.no_grad()
    def score(self, model: nn.Module, rank: int, world: int) -> dict[str, dict[str, Any]]:
        found = super().score(model, rank, world)
        if self.config.distill.endpoints:
            found["end_distance"] = {"value": self._end_distance(model, rank, world)}
        return found

    def _end_distance(self, model: nn.Module, rank: int, world: int) -> float:
        found = []
        for turn in range(-(-len(self._of_ends) // world)):
            place = turn * world + rank
            pack = self._pack_of_ends(min(place, len(self._of_ends) - 1))
            with compute_type(self.config, self.device):
                ends = self.student_end(model, pack)
            if place < len(self._of_ends):
                if place not in self._ends:
                    self._ends[place] = self._end(self.predictions(model, pack)[1], pack, self.steps[1])
                found.append((place, loss_per_sample(ends, self._ends[place], pack.timestep, pack.layout).tolist()))
        distances = [distance for _, each in sorted(gather_object(found)) for distance in each]
        return sum(distances) / len(distances)

    def student_end(self, model: nn.Module, pack: DitPack) -> Tensor:
        """[T,P] where the student's steps lead."""
        return self._end(self.predictions(model, pack)[0], pack, self.steps[0])

    def _end(self, predict: Predict, pack: DitPack, steps: int) -> Tensor:
        """[T,P] where so many steps lead from the pack's noise; references stay as they are."""
        levels = torch.where(pack.timestep > 0, self.fine_levels(pack, steps).T, 0.0)  # [K+1,R]
        own = pack.timestep.index_select(0, pack.layout.frame)[:, None] > 0
        return solve(
            self.scheduler, predict, torch.where(own, self.scheduler.begin(pack.noise), pack.clean), levels, pack.layout
        )

    def _pack_of_ends(self, place: int) -> DitPack:
        return self.prepare(self.make_pack(self._of_ends[place]).to(self.device))

    @cached_property
    def _of_ends(self) -> list[list[Draw]]:
        """Packs of the windows whose ends are compared."""
        count = min(self.config.distill.endpoints, len(self.windows))
        chosen = torch.linspace(0, len(self.windows) - 1, count).round().long().tolist()
        return list(self._packed([self.windows[i] for i in chosen], bins=1))

    @cached_property
    def _ends(self) -> dict[int, Tensor]:
        """The teacher's, of the packs that this process has looked at."""
        return {}

    def higher_is_better(self, figure: str) -> bool:
        return False if figure == "end_distance" else super().higher_is_better(figure)
