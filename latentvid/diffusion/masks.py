"""Which latent frames of a training sample are given, and which share a noise level.

A given frame has noise level 0 and no loss; so one network learns every task that is conditioned on frames.
torch is imported where it is used: a configuration, and its help, do without.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..limits import check_fields, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GivenFrames:
    """Shares of the training clips, in any unit, that have

    plain: no frame given (text to video). first: the first latent frame (image to video). prefix: the first k, k
    uniform (extension). ends: the first and the last (interpolation). random: k frames anywhere, k uniform.
    independent: none given, and for each frame a noise level of its own (diffusion forcing, Chen et al. 2024).
    At least one frame is never given: images are always plain, and two frames cannot be `ends` (they become `first`).
    """

    plain: float = setting("share of clips without a given frame (text to video)", default=1.0)
    first: float = setting("share with the first latent frame given (image to video)", default=0.0)
    prefix: float = setting("share with the first k given (extension)", default=0.0)
    ends: float = setting("share with the first and the last given (interpolation)", default=0.0)
    random: float = setting("share with k frames anywhere given", default=0.0)
    independent: float = setting("share with a noise level for each frame (diffusion forcing)", default=0.0)

    def __post_init__(self) -> None:
        check_fields(self, "given")
        if not sum(self.shares.values()):
            raise ValueError(f"shares {self.shares} must be at least 0, and one of them above")

    @property
    def shares(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that some clips have."""
        return tuple(name for name, share in self.shares.items() if share)

    def draw(self, generator: torch.Generator, frames: int) -> tuple[Tensor, bool]:
        """(which frames are given, bool [frames]; whether each of the others has its own noise level)."""
        import torch

        given = torch.zeros(frames, dtype=torch.bool)
        if frames == 1 or self.names == ("plain",):
            return given, False
        mass = torch.tensor(list(self.shares.values()), dtype=torch.float64).cumsum(0)
        place = float(torch.rand((), generator=generator, dtype=torch.float64) * mass[-1])
        name = list(self.shares)[int((mass <= place).sum())]
        count = int(torch.randint(1, frames, (), generator=generator))  # 1 .. frames - 1
        if name in ("first", "ends"):
            given[0] = True
        if name == "ends" and frames > 2:
            given[-1] = True
        if name == "prefix":
            given[:count] = True
        if name == "random":
            given[torch.randperm(frames, generator=generator)[:count]] = True
        return given, name == "independent"
