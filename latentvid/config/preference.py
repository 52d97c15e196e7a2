"""The section `preference` of a configuration: learning from pairs of clips which is the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..limits import check_fields
from ..limits import setting as _help

if TYPE_CHECKING:
    from .schema import DitConfig


@dataclass(frozen=True, kw_only=True)
class PreferenceTuning:
    """Diffusion-DPO (Wallace et al. 2023) on pairs of clips."""

    beta: float | None = _help(
        "Diffusion-DPO on pairs of clips (Wallace et al. 2023), with so strong a pull to the weights that the run "
        "begins with: 2000 to 5000 in the paper; null trains on clips as ever",
        default=None,
    )
    rejected_column: str = _help(
        "the manifests' column of the clips that were not preferred; the preferred ones are in path_column",
        default="rejected",
    )

    def __post_init__(self) -> None:
        check_fields(self, "preference")
        if not self.rejected_column:
            raise ValueError("rejected_column is empty: name the column of the clips that were not preferred")
        if not self.on and self.rejected_column != "rejected":
            raise ValueError("rejected_column is of pairs, which beta turns on: set beta too, or leave it out")

    @property
    def on(self) -> bool:
        return self.beta is not None


def check_preference(config: DitConfig, stages: Sequence[DitConfig]) -> None:
    """Raises ValueError for what cannot go with preference tuning. stages: those of a curriculum, or the one."""
    if len({stage.preference.on for stage in stages}) > 1:
        raise ValueError(
            "preference.beta is set in some of the stages only, and they all compare with the weights that the run "
            "begins with: set it in all of them, or make two runs, the second with init"
        )
    if not config.preference.on:
        return
    if config.init is None and "from" not in config.model:
        raise ValueError(
            "preference.beta compares with the weights that the run begins with: give them by init or model.from"
        )
    if config.adapter.init is not None:
        raise ValueError(
            "preference.beta compares with the model without its adapter, and adapter.init begins with one: merge it "
            "(python -m latentvid.adapters merge) and give what comes of it as init"
        )
    if config.prior.wanted:
        raise ValueError("preference.beta is set, and prior makes single clips, not pairs: leave one of them out")
    if config.data.references:
        raise ValueError(
            "preference.beta is set, and data.references are of single clips, not of pairs: leave one of them out"
        )
    for key, value in (("data.latents", config.data.latents), ("validation.latents", config.validation.latents)):
        if value is not None:
            raise ValueError(
                f"preference.beta is set, and {key} holds clips, not pairs: give a table of pairs, "
                f"{key.replace('latents', 'manifest')}, whose clips are encoded as it trains"
            )
    if config.train.sequence_parallel > 1:
        raise ValueError(
            f"preference.beta is set, and train.sequence_parallel is {config.train.sequence_parallel}: the loss of a "
            "pair needs both its clips in one process: set train.sequence_parallel=1"
        )
