"""The configuration of `train/distill.py`: a student that needs fewer passes than its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..limits import check_fields
from ..limits import setting as _help
from .curriculum import curriculum
from .schema import CaptionRules, DitConfig, arguments_of

OF_DMD = {"critic_updates": 5, "critic_lr": None, "rollout": None}  # keys of that method alone, with their defaults


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How, and to what."""

    method: Literal["guidance", "progressive", "consistency", "dmd"] = _help(
        "guidance: one pass instead of the two of guidance, at any noise level (Meng et al. 2023); progressive: "
        "one step instead of two (Salimans & Ho 2022); consistency: from each of the teacher's levels a step that "
        "leads as far (Heek et al. 2024); dmd: clips such as the teacher's, by a critic of them (Yin et al. 2024)",
        default="guidance",
    )
    steps: int | None = _help("progressive, consistency, dmd: steps of the student", default=None)
    teacher_steps: int | None = _help(
        "consistency: steps of the teacher, a multiple of `steps`; progressive: twice `steps`, which null is",
        default=None,
    )
    guidance: float | tuple[float, float] = _help(
        "[low, high]: the student is told a scale of guidance between these; one number: that one is in its weights",
        default=(1.0, 8.0),
    )
    endpoints: int = _help(
        "held-out windows of which each measurement compares the student's end point with the teacher's; 0: none",
        default=16,
    )
    critic_updates: int = _help("dmd: steps of the critic for each of the student, at the last of them", default=5)
    critic_lr: float | None = _help("dmd: peak learning rate of the critic (AdamW); null is optim.lr", default=None)
    rollout: int | None = _help(
        "dmd, of models of causal attention: self-forcing (Huang et al. 2025), the student makes its clip so many "
        "latent frames at a time, each after its own ones before; null: all at once",
        default=None,
    )

    def __post_init__(self) -> None:
        check_fields(self, "distill")
        if self.method != "dmd" and (wrong := [key for key, usual in OF_DMD.items() if getattr(self, key) != usual]):
            raise ValueError(f"{wrong[0]} is of method dmd, and method is {self.method}: leave it out")
        if self.told and not self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance is {list(self.guidance)}: give the lower scale first, or one number")
        if self.method == "guidance":
            if self.steps is not None or self.teacher_steps is not None:
                raise ValueError("steps and teacher_steps are of methods progressive, consistency and dmd: leave out")
            return
        if self.steps is None:
            raise ValueError(f"method {self.method} needs steps: how many the student is to make")
        if self.method == "progressive" and self.teacher_steps not in (None, 2 * self.steps):
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}: method progressive halves {2 * self.steps} to {self.steps}: "
                "leave it out, or halve in several stages"
            )
        if self.method == "dmd" and self.teacher_steps is not None:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}: method dmd follows no steps of the teacher: leave it out"
            )
        if self.method == "consistency" and (self.teacher_steps is None or self.teacher_steps % self.steps):
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}: method consistency needs a multiple of steps={self.steps}"
            )

    @property
    def told(self) -> bool:
        """Whether the scale of guidance is an input of the student."""
        return isinstance(self.guidance, tuple)

    @property
    def fine(self) -> int | None:
        """Steps of the teacher, where the method follows them."""
        return 2 * self.steps if self.method == "progressive" else self.teacher_steps

    @property
    def trained(self) -> int | None:
        """The number of steps at whose levels the student is taught."""
        return self.steps if self.method == "progressive" else self.teacher_steps

    @property
    def student(self) -> dict[str, Any]:
        """As `pipelines.student.Student` has them."""
        found = {"steps": self.steps, "guidance": list(self.guidance) if self.told else self.guidance}
        return found if self.rollout is None else {**found, "rollout": self.rollout}


@dataclass(kw_only=True)
class DistillCaptions(CaptionRules):
    dropout: float = _help("share of samples trained without their caption; a student needs none", default=0.0)


@dataclass(kw_only=True)
class DistillConfig(DitConfig):
    """`train/distill.py`."""

    stage: Literal["distill"] = _help("what is trained", default="distill")
    teacher: Path = _help(
        "folder of the pipeline that is taught from, and that the student begins as; stages after the first are taught "
        "by what the one before left"
    )
    distill: Distillation = field(default_factory=Distillation)
    caption: DistillCaptions = field(default_factory=DistillCaptions)
    model: dict[str, Any] = arguments_of("latentvid.models.transformer.VideoDiT", "which are the teacher's")

    def __post_init__(self) -> None:
        if self.init not in (None, str(self.teacher)):
            raise ValueError("init is set, and a student begins as its teacher: leave init out")
        check_alone(self)
        self.init = str(self.teacher)
        if "from" in self.model:
            raise ValueError("model.from is of a published model, and a student is of the teacher's kind: leave it out")
        self.vae = self.vae or self.teacher / "vae"
        self.text_encoder = self.text_encoder or str(self.teacher)
        if self.distill.told:
            self.model = {**self.model, "guidance_condition": True}
        super().__post_init__()
        check_distillation(self, [stage.config for stage in curriculum(self)])

    @property
    def keeps_base(self) -> bool:
        return True

    @property
    def student(self) -> dict[str, Any]:
        return self.distill.student

    def sampled(self, steps: int, guidance: float) -> dict[str, Any]:
        found = self.distill
        return {
            "steps": steps if found.steps is None else found.steps,
            "guidance": guidance if found.told else found.guidance,
            "guidance_interval": None,  # that of the teacher is in the weights
        }


def check_alone(config: DistillConfig) -> None:
    """Raises ValueError for what cannot go with distillation."""
    others = {
        "adapter.kind": config.adapter.kind != "none",
        "trainable": bool(config.trainable),
        "preference.beta": config.preference.on,
        "controlnet": config.controlnet.on,
        "prior": config.prior.wanted,
        "init_weights": config.init_weights != "ema",
        "init_motion": config.init_motion is not None,
        "init_partial": config.init_partial,
    }
    if wrong := [key for key, there in others.items() if there]:
        raise ValueError(f"{wrong[0]} is not of distillation, which trains all of a student's weights: leave it out")


def check_distillation(config: DistillConfig, stages: Sequence[DistillConfig]) -> None:
    """Raises ValueError for stages that do not follow each other. stages: those of a curriculum, or the one."""
    if any(stage.train.sequence_parallel > 1 for stage in stages):
        raise ValueError("train.sequence_parallel: a teacher sees whole packs: set train.sequence_parallel=1")
    for stage in stages:
        if noisy := [name for name, role in stage.data.references.items() if role.noise is not None]:
            raise ValueError(
                f"data.references.{noisy[0]}.noise: references with noise are not distilled: leave noise out, or train "
                "by train/train_dit.py"
            )
        if stage.given.noise is not None:
            raise ValueError("given.noise: given frames with noise are not distilled: leave noise out")
    if len(stages) > 1 and any(stage.distill.method == "dmd" for stage in stages):
        raise ValueError(
            "distill.method=dmd trains a second network, the critic, which all of a run must have: give it a run of "
            "its own, whose teacher is the pipeline that the other stages leave"
        )
    has: int | None = None
    for number, stage in enumerate(stages, 1):
        found = stage.distill
        if has is not None and found.fine != has:
            raise ValueError(
                f"distill: stage {number} needs a teacher of {found.fine or 'any number of'} steps, and the stage "
                f"before it leaves {has}: halve one after another, such as 8, 4, 2, 1"
            )
        has = found.steps
    for key in ("samples", "inference"):
        scale, known = getattr(config, key).guidance, config.distill
        low, high = known.guidance if known.told else (scale, scale)
        if not low <= scale <= high:
            raise ValueError(
                f"{key}.guidance is {scale:g}, and the student is told scales from {low:g} to {high:g} "
                "(distill.guidance): give one of these"
            )
