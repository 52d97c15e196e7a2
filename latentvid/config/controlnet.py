"""The section `controlnet` of a configuration: a branch of copied blocks that reads a control signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..limits import check_fields
from ..limits import setting as _help

if TYPE_CHECKING:
    from .schema import DitConfig


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A ControlNet (Zhang et al. 2023) beside a model that stays as it is."""

    every: int | None = _help(
        "a branch of copies of one block in so many is trained on the signal of the one role of data.references, whose "
        "place is control, and nothing else is; null trains none",
        default=None,
    )
    init: Path | None = _help("folder of a ControlNet to begin with", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "controlnet")
        if self.init is not None and not self.on:
            raise ValueError("init is of a ControlNet: set every, as it was trained with, or leave init out")

    @property
    def on(self) -> bool:
        return self.every is not None


def check_controlnet(config: DitConfig) -> None:
    """Raises ValueError for what cannot go with a ControlNet, and for a control signal that none reads."""
    roles = config.data.references
    signals = [name for name, role in roles.items() if role.place == "control"]
    if not config.controlnet.on:
        if signals:
            raise ValueError(
                f"data.references.{signals[0]} has place=control, which a ControlNet reads: set controlnet.every, or "
                "place=aligned to show it as tokens"
            )
        return
    if len(signals) != 1 or len(roles) != 1:
        raise ValueError(
            f"controlnet.every is set, and data.references has {', '.join(roles) or 'no role'}: give it one role, of "
            "place=control"
        )
    for key, other in (("adapter.kind", config.adapter.kind != "none"), ("trainable", bool(config.trainable))):
        if other:
            raise ValueError(f"controlnet.every and {key} both say what is trained: leave one out")
    if config.preference.on:
        raise ValueError("controlnet.every is set, and preference.beta trains on pairs without signals: leave one out")
    if config.init is None and "from" not in config.model:
        raise ValueError("controlnet.every leaves the model as it is: give its weights by init or model.from")
