"""The section `prior` of a configuration: clips of a subject's class, which the model makes before it is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..limits import check_fields
from ..limits import setting as _help

if TYPE_CHECKING:
    from .schema import DitConfig


@dataclass(kw_only=True)
class Prior:
    """Prior preservation (DreamBooth, Ruiz et al. 2022): clips of the subject's class, which the model that a run
    begins with makes before it is trained, and which it is trained on beside the subject's."""

    prompts: tuple[str, ...] = _help(
        "what clips of the subject's class show, without its word; empty: there are none", default=()
    )
    prompts_file: Path | None = _help("the same from a text file, a prompt a line", default=None)
    clips: int = _help("how many are made: the n-th of the n-th prompt, around the end", default=100)
    share: float = _help("share of the tokens that is theirs; that of the data is the rest", default=0.5)
    dir: Path | None = _help("folder of the clips; null: RUN/prior; runs that begin alike may share one", default=None)
    frames: int | None = _help("frames of a clip; 1: pictures; null: what the model was trained on", default=None)
    height: int | None = _help("pixels; null: what the model was trained on", default=None)
    width: int | None = _help("pixels; null: what the model was trained on", default=None)
    fps: float | None = _help("frames a second; null: what the model was trained on", default=None)
    steps: int | None = _help("sampling steps; null: the model's", default=None)
    guidance: float | None = _help("classifier-free guidance scale; null: the model's", default=None)
    target: Literal["clips", "model"] = _help(
        "what is learned of them. clips: themselves, as in the paper; model: what the model that the run begins with "
        "predicts of them with noise",
        default="clips",
    )
    seed: int = _help("the n-th clip has the noise of seed + n", default=0)

    def __post_init__(self) -> None:
        check_fields(self, "prior")
        if self.prompts and self.prompts_file is not None:
            raise ValueError("prompts and prompts_file both say what the clips show: leave one out")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts has an empty one: say what the clip shows")
        if not self.wanted and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise ValueError("its keys are of clips that are made: give prompts, or leave prior out")

    @property
    def wanted(self) -> bool:
        return bool(self.prompts) or self.prompts_file is not None

    @property
    def by_model(self) -> bool:
        """Whether the class clips' target is what the model before training predicts."""
        return self.wanted and self.target == "model"


def check_prior(config: DitConfig) -> None:
    """Raises ValueError for what cannot go with a prior."""
    if not config.prior.wanted:
        return
    if config.init is None and "from" not in config.model:
        raise ValueError("prior: its clips are made by the model that the run begins with: give init or model.from")
    if config.data.image_share is not None:
        raise ValueError("data.image_share and prior.share both say what has which tokens: leave one out")
    if config.data.references:
        raise ValueError("prior: its clips are made of prompts alone, without data.references: leave one out")
