"""What of a training sample is given: latent frames, or a part of each; and which frames share a noise level.

What is given has no loss; so one network learns every task of conditioning. A given frame has noise level 0, or the
model is told what is given by further input channels (`model.condition_channels`), and all frames share a noise level.
torch is imported where it is used: a configuration, and its help, do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..limits import check_fields, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IN_SPACE = ("inpaint", "outpaint")  # parts of frames: for models that are told by channels


@dataclass(frozen=True, kw_only=True)
class GivenFrames:
    """Shares of the training clips, in any unit, that have

    plain: no frame given (text to video). first: the first latent frame (image to video). prefix: the first k, k
    uniform (extension). ends: the first and the last (interpolation). random: k frames anywhere, k uniform.
    independent: none given, and for each frame a noise level of its own (diffusion forcing, Chen et al. 2024).
    inpaint: all but a rectangle of each frame; outpaint: the rectangle alone (`box`).
    noise: of given frames, as of references (Ho et al. 2021, section 4.1): the same level for all of a clip's.
    At least one frame is never given: images are plain but for rectangles, and two frames cannot be `ends` (they become
    `first`).
    """

    plain: float = setting("share of clips without a given frame (text to video)", default=1.0)
    first: float = setting("share with the first latent frame given (image to video)", default=0.0)
    prefix: float = setting("share with the first k given (extension)", default=0.0)
    ends: float = setting("share with the first and the last given (interpolation)", default=0.0)
    random: float = setting("share with k frames anywhere given", default=0.0)
    independent: float = setting("share with a noise level for each frame (diffusion forcing)", default=0.0)
    inpaint: float = setting(
        "share with all given but a rectangle of each frame; needs model.condition_channels, and so does the next",
        default=0.0,
    )
    outpaint: float = setting("share with a rectangle of each frame given alone", default=0.0)
    noise: tuple[float, float] | None = setting(
        "given frames have noise of a level that is drawn between these two, which the model is told; null: they are "
        "clean",
        default=None,
    )

    def __post_init__(self) -> None:
        check_fields(self, "given")
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ValueError(f"noise={list(self.noise)}: give the lower level first")
        if self.noise is not None and not {"first", "prefix", "ends", "random"} & set(self.names):
            raise ValueError("noise is of frames that are given, and none are: give shares of first, prefix, ends or "
                             "random, or leave noise out")  # fmt: skip
        if not sum(self.shares.values()):
            raise ValueError(f"shares {self.shares} must be at least 0, and one of them above")

    @property
    def shares(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "noise"}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that some clips have."""
        return tuple(name for name, share in self.shares.items() if share)

    def draw(self, generator: torch.Generator, frames: int) -> tuple[Tensor, bool]:
        """(which frames are given, bool [frames]; whether each of the others has its own noise level)."""
        name, given = self._draw(generator, frames)
        return given, name == "independent"

    @property
    def in_space(self) -> bool:
        """Whether some clips have parts of frames given."""
        return bool(set(IN_SPACE) & set(self.names))

    def known(self, generator: torch.Generator, grid: Sequence[int]) -> Tensor:
        """Which positions of a latent (f,h,w) are given, bool [f,h,w]; the frames of it are those of `draw`."""
        name, given = self._draw(generator, grid[0])
        known = given[:, None, None].repeat(1, *grid[1:])
        if name in IN_SPACE:
            inside = box(generator, grid)
            known = inside if name == "outpaint" else ~inside
        return known & ~known.all()  # a rectangle that leaves nothing to make is none

    def _draw(self, generator: torch.Generator, frames: int) -> tuple[str, Tensor]:
        import torch

        given = torch.zeros(frames, dtype=torch.bool)
        if (frames == 1 and not self.in_space) or self.names == ("plain",):
            return "plain", given
        mass = torch.tensor(list(self.shares.values()), dtype=torch.float64).cumsum(0)
        place = float(torch.rand((), generator=generator, dtype=torch.float64) * mass[-1])
        name = list(self.shares)[int((mass <= place).sum())]
        if frames == 1:
            return (name if name in IN_SPACE else "plain"), given
        count = int(torch.randint(1, frames, (), generator=generator))  # 1 .. frames - 1
        if name in ("first", "ends"):
            given[0] = True
        if name == "ends" and frames > 2:
            given[-1] = True
        if name == "prefix":
            given[:count] = True
        if name == "random":
            given[torch.randperm(frames, generator=generator)[:count]] = True
        return name, given


def box(generator: torch.Generator, grid: Sequence[int]) -> Tensor:
    """A rectangle of random size in each frame of a latent (f,h,w), bool [f,h,w]: sides from a quarter of the frame's
    to all of it, uniform; it rests in half of the clips, and in the others moves from one random place to another."""
    import torch

    frames, *sides = grid
    draws = torch.rand(3, 2, generator=generator, dtype=torch.float64)  # sizes, first and last place
    moves = bool(torch.rand((), generator=generator) < 0.5)
    time = torch.linspace(0, 1, frames, dtype=torch.float64) if moves else torch.zeros(frames, dtype=torch.float64)
    inside = torch.ones(grid, dtype=torch.bool)
    for axis, side in enumerate(sides):
        least = -(-side // 4)
        size = least + int(draws[0, axis] * (side - least + 1))
        first, last = draws[1:, axis] * (side - size)
        start = (first + (last - first) * time).round()[:, None]  # [f,1]
        at = torch.arange(side)
        within = (at >= start) & (at < start + size)  # [f,side]
        inside &= within[:, :, None] if axis == 0 else within[:, None, :]
    return inside
