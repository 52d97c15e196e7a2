"""What a model was trained on, and what may be asked of it without saying so: at most `TIMES` the cost of its clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..limits import shown
from ..models.budget import free_bytes
from ..models.flops import pairs_a_block
from ..models.open import OpenBackbone
from ..models.transformer import VideoDiT
from ..packing import Grid, Reference, Shape, token_grid
from ..words import counted
from .references import usual_references

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline
    from .sampling import ShownReference

TIMES = 10
BYTES_A_PIXEL = 15  # of a decoded clip: three fp32 values, and three bytes of what is written


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Clips of one size, length and rate that training saw, `count` of them. fps: None of pictures."""

    frames: int
    height: int
    width: int
    fps: float | None = None
    count: int = 1

    @classmethod
    def of(cls, value: Kind | Mapping[str, Any]) -> Kind:
        try:
            kind = value if isinstance(value, Kind) else cls(**value)
            if min(kind.frames, kind.height, kind.width, kind.count) < 1:
                raise TypeError
        except TypeError:
            keys = ", ".join(cls.__dataclass_fields__)
            raise UserError(f"trained={shown(value)}: must be a list, each with whole numbers {keys}") from None
        return kind

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def kinds_of(pipeline: LatentVideoPipeline) -> list[Kind]:
    """What the model was trained on; folders of older versions tell of their defaults alone."""
    config = pipeline.config
    default = Kind(frames=config.frames, height=config.height, width=config.width)
    return [Kind.of(kind) for kind in config.trained or ()] or [default]


def trained_area(pipeline: LatentVideoPipeline) -> int:
    """Pixels of a frame, of the largest that it was trained on."""
    return max(kind.height * kind.width for kind in kinds_of(pipeline))


def trained_frames(pipeline: LatentVideoPipeline) -> int:
    """Of the longest clip that it was trained on."""
    return max(kind.frames for kind in kinds_of(pipeline))


def trained_rates(pipeline: LatentVideoPipeline) -> tuple[float, float] | None:
    """The lowest and the highest frame rate of the clips that it was trained on; None where that was not noted."""
    rates = [kind.fps for kind in kinds_of(pipeline) if kind.fps]
    return (min(rates), max(rates)) if rates else None


def knows_rates(pipeline: LatentVideoPipeline) -> bool:
    """Whether what the model makes depends on the frame rate that is asked for."""
    model = pipeline.transformer
    if isinstance(model, OpenBackbone):
        return model.reads_fps
    return bool(model.config.get("fps_condition") or model.config.get("rope_fps"))


def attention_of(model: VideoDiT | OpenBackbone) -> str:
    """What its self-attention joins: published models' a whole sample."""
    return model.config.attention if isinstance(model, VideoDiT) else "full"


def cost(pipeline: LatentVideoPipeline, grid: Grid, references: Sequence[Reference] = ()) -> float:
    """Of a step over a clip whose latent is (f,h,w), with these references, in tokens: a block's attention costs 4 D a
    pair, its linear layers about 24 D^2 a token."""
    model = pipeline.transformer
    shape = Shape(token_grid(grid, model.patch), tuple(references))
    return shape.tokens + pairs_a_block(model, shape) / (6 * model.width)


def check_room(frames: int, height: int, width: int) -> None:
    """Raises UserError where the memory does not hold such a clip decoded."""
    need, free = BYTES_A_PIXEL * frames * height * width, free_bytes(torch.device("cpu"))
    if need > free:
        raise UserError(
            f"{counted(frames, 'frame')} of {height} x {width} pixels take {need / 2**30:,.1f} GiB decoded, and "
            f"{free / 2**30:,.1f} GiB are free: ask for fewer or smaller ones"
        )


def check_cost(
    pipeline: LatentVideoPipeline,
    grids: Sequence[Grid],
    large: bool,
    shown: Sequence[Sequence[ShownReference]] = (),
) -> None:
    """Raises UserError where a clip costs more than `TIMES` the dearest of training, and `large` is not asked for; one
    that is shown references, than a clip of training with one of each role."""
    if large:
        return
    made = pipeline.codec
    dearest = max((kind for kind in kinds_of(pipeline)), key=lambda k: k.frames * k.height * k.width)
    size = dearest.frames, dearest.height, dearest.width
    plain = cost(pipeline, made.latent_grid(*size))
    for grid, each in zip(grids, shown or [()] * len(grids), strict=True):
        usual = cost(pipeline, made.latent_grid(*size), usual_references(pipeline, *size)) if each else plain
        times = cost(pipeline, grid, [one.reference for one in each]) / usual
        if times > TIMES:
            f, h, w = grid
            side = made.spatial_stride
            raise UserError(
                f"{counted(1 + (f - 1) * made.temporal_stride, 'frame')} of {h * side} x {w * side} "
                f"cost {times:,.0f} times a "
                f"clip that the model was trained on (at most {counted(dearest.frames, 'frame')} of {dearest.height} x "
                f"{dearest.width}): ask for a smaller size or fewer frames, or give --large (in Python: "
                "Sampling(large=True))"
            )
