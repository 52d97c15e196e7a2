"""The frozen teacher of a student, and what must be equal of both.

Axes: T tokens of a pack, P token features, R latent frames, N samples, S text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .....config.conversion import under
from .....config.distillation import DistillConfig
from .....data.cache.latents import module_fingerprint
from .....diffusion.distillation.guided import with_guidance
from .....diffusion.scheduler import LatentVideoScheduler
from .....diffusion.solvers import Predict
from .....errors import UserError
from .....models.conditions import Conditions
from .....models.interchange import load_vae
from .....models.key_value_cache import KeyValueCache
from .....models.saved import read_arguments
from .....packing import Packed
from .....pipelines.folder import SCHEDULE, check_index
from .....pipelines.latent_video import LatentVideoPipeline
from .....pipelines.student import Student
from .....text import TextEncoder
from ....compute import compute_type
from ....feed.manifests import main_first
from ..pack import DitPack
from ..parts import Parts


@dataclass(frozen=True)
class TeacherFacts:
    """What a teacher's folder tells. steps, interval (noise levels that are guided): by default. student: of a teacher
    that is distilled itself."""

    scheduler: dict
    given_shares: dict
    steps: int
    student: Student | None
    interval: tuple[float, float] | None = None

    @classmethod
    def read(cls, folder: Path) -> TeacherFacts:
        """Raises UserError for what is no pipeline."""
        try:
            found = main_first(lambda: check_index(folder, LatentVideoPipeline))
            scheduler = read_arguments(LatentVideoScheduler.__init__, folder / "scheduler" / SCHEDULE)
            student = found.get("student")
            student = None if student is None else Student.of(student)
        except UserError as error:
            raise UserError(f"teacher: {error}") from None
        interval = found.get("guidance_interval")
        interval = None if interval is None else tuple(interval)
        return cls(scheduler, found.get("given_shares") or {}, found.get("steps", 50), student, interval)


def settled_by_teacher(config: DistillConfig) -> DistillConfig:
    """The configuration with what the teacher tells wherever neither file nor command line does."""
    facts = TeacherFacts.read(config.teacher)
    shares = {f.name: facts.given_shares[f.name] for f in fields(config.given) if f.name in facts.given_shares}
    return replace(
        config,
        scheduler={**facts.scheduler, **config.scheduler},
        given=under(config.given, shares),
    )


def check_teacher(config: DistillConfig, parts: Parts, facts: TeacherFacts) -> None:
    """Raises UserError where the student would not see what the teacher saw, or cannot be taught what is asked."""
    folder = config.teacher
    if config.vae != folder / "vae":
        theirs = load_vae(folder, "vae")
        if theirs.latent_channels != parts.vae.latent_channels:
            raise UserError(
                f"teacher {folder} is for latents of {theirs.latent_channels} channels, and those of vae {config.vae} "
                f"have {parts.vae.latent_channels}: leave vae out, or give another teacher"
            )
        if module_fingerprint(theirs, theirs.config) != module_fingerprint(parts.vae, parts.vae.config):
            raise UserError(
                f"teacher {folder} has another VAE than {config.vae}, whose latents mean something else to it: leave "
                "vae out, or give the one it was trained with"
            )
    if config.text_encoder != str(folder):
        theirs = TextEncoder.from_folders(folder / "text_encoder", folder / "tokenizer")
        if theirs.fingerprint() != parts.text.fingerprint():
            raise UserError(
                f"teacher {folder} has another text encoder than {config.text_encoder}: leave text_encoder out, or "
                "give the one it was trained with"
            )
    _check_guidance(config, facts)


def _check_guidance(config: DistillConfig, facts: TeacherFacts) -> None:
    asked, student = config.distill.guidance, facts.student
    if student is None:
        return
    if student.told != config.distill.told:
        word = "is told scales of" if student.told else "has in its weights"
        raise UserError(
            f"distill.guidance is {asked}, and teacher {config.teacher} {word} guidance {student.guidance}: give that"
        )
    if student.told and not (student.guidance[0] <= asked[0] and asked[1] <= student.guidance[1]):
        raise UserError(
            f"distill.guidance is {list(asked)}, and teacher {config.teacher} knows scales in "
            f"{list(student.guidance)}: ask for no others"
        )
    if not student.told and asked != student.guidance:
        raise UserError(
            f"distill.guidance is {asked:g}, and teacher {config.teacher} has {student.guidance:g} in its weights: "
            "give that"
        )


class Teacher:
    """A `network` that is never trained, whole on every process whatever the strategy.

    two_passes: guidance is by a second pass; else the network is told the scale, or has it in its weights. interval:
    noise levels that it is guided at (None: all).
    """

    def __init__(
        self,
        network: nn.Module,
        two_passes: bool,
        config: DistillConfig,
        device: torch.device,
        interval: tuple[float, float] | None = None,
    ) -> None:
        self.network, self.two_passes, self.config, self.device = network, two_passes, config, device
        self.interval = interval

    def instead_of(self, student: Callable) -> Callable:
        """What to call. A dry run counts the memory of what stands nowhere: there the student costs what it does."""
        return student if self.config.run.dry_run else self._call

    def _call(self, *args, **kwargs) -> Tensor:
        with compute_type(self.config, self.device):
            return self.network(*args, **kwargs)

    @property
    def passes(self) -> int:
        """Of the network, for a prediction."""
        return 2 if self.two_passes else 1


def predict_with(
    network: Callable,
    pack: DitPack,
    scale: Tensor | None,
    scheduler: LatentVideoScheduler,
    null: Tensor | None = None,
    cache: KeyValueCache | None = None,
) -> Predict:
    """A network's prediction for a pack, of any tokens and levels. scale: [N] that it is told; None: it takes none.
    null: text states [S,Dt] of the empty prompt, for all samples, instead of theirs. cache: of a causal network,
    with the frames before the pack's."""
    text, words = pack.text, pack.text_layout
    if null is not None:
        count = pack.layout.segments
        text, words = null.to(text).repeat(count, 1), Packed.of_lengths([len(null)] * count).to(text.device)
    given = pack.conditions
    if scale is not None:
        given = replace(given or Conditions(), guidance=scale)
    more = {} if given is None else {"conditions": given}
    if cache is not None:
        more["cache"] = cache

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return network(*scheduler.inputs(z, t), text, pack.layout, words, fps=pack.rates, **more).float()

    return predict


def guided_predict(
    teacher: Teacher,
    student: Callable,
    pack: DitPack,
    scale: Tensor,
    null: Tensor,
    scheduler: LatentVideoScheduler,
    told: bool,
) -> Predict:
    """The teacher's prediction with guidance of these scales [N], without gradients. told: its network takes a scale,
    of which one that was never taught it knows nothing."""
    network = teacher.instead_of(student)
    one = predict_with(network, pack, scale if told else None, scheduler)
    if not teacher.two_passes:
        return torch.no_grad()(one)
    other = predict_with(network, pack, scale if told else None, scheduler, null)
    return torch.no_grad()(with_guidance(one, other, scale, pack.layout, teacher.interval))
