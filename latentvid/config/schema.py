"""The configuration of a training run, by stage: each default once, under what YAML and the command line say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..diffusion.masks import GivenFrames
from ..diffusion.objective import Weighting
from ..diffusion.timesteps import TimestepSampling
from ..limits import check_fields
from ..limits import setting as _help
from ..references import ReferenceColumn
from .beginning import KIND, PUBLISHED, check_model
from .controlnet import ControlNet, check_controlnet
from .curriculum import curriculum
from .entries import NAME
from .preference import PreferenceTuning, check_preference
from .prior import Prior, check_prior
from .sections import (
    Adapter,
    Checkpointing,
    Data,
    Inference,
    Logging,
    Optim,
    Run,
    Samples,
    TextEncoders,
    Train,
    Validation,
    Weights,
    several,
)


def arguments_of(cls: str, more: str = "", also: Mapping[str, tuple[str, str]] | None = None) -> Any:
    """A free-form section: the arguments of a class's constructor, which `--help` reads where the class is written.

    also: further keys, with type and meaning."""
    text = f"arguments of {cls.rpartition('.')[2]}{f', {more}' if more else ''}"
    return field(default_factory=dict, metadata={"help": text, "arguments_of": cls, "also": also or {}})


@dataclass(kw_only=True)
class TrainingConfig:
    """What both stages share. stage: which one it is, as the program says that reads the configuration."""

    stage: str
    run: Run
    data: Data
    model: dict[str, Any] = _help("arguments of the model's constructor", default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    log: Logging = field(default_factory=Logging)
    samples: Samples = field(default_factory=Samples)
    validation: Validation = field(default_factory=Validation)
    stages: tuple[dict[str, Any], ...] = _help(
        "a curriculum: what differs from the rest of the file in each of several stages, trained one after another; "
        "`name` calls one, and --stages.NAME.section.key sets its keys",
        default=(),
    )

    def __post_init__(self) -> None:
        curriculum(self)


@dataclass(kw_only=True)
class VaeData(Data):
    crop: int | None = _help("side of the random square cut from each window; null is whole frames", default=None)


@dataclass(kw_only=True)
class VaeLoss:
    """Weights; what has weight 0 is not computed."""

    l1: float = _help("weight of |x - y|", default=1.0)
    charbonnier: float = _help("weight of sqrt((x - y)^2 + 1e-6), a smooth |x - y|", default=0.0)
    mse: float = _help("weight of (x - y)^2", default=0.0)
    temporal: float = _help("weight of the difference in change between neighbouring frames", default=0.0)
    kl: float = _help("weight of the KL divergence to N(0, I), a latent element", default=1e-6)
    equivariance: float = _help("share of clips that must come out moved as their latents were", default=0.0)
    lpips: float = _help("weight of the perceptual distance of frames", default=0.0)
    lpips_net: Literal["alex", "vgg"] = _help("backbone of the perceptual distance", default="vgg")
    lpips_path: Path | None = _help(
        "its weights (.safetensors, or a folder with NET.safetensors); null: torchvision's, if they are here",
        default=None,
    )
    lpips_optional: bool = _help("train without lpips, with a warning, where its weights are not here", default=False)
    lpips_frames: int = _help("frames of a clip that it looks at, drawn anew each time", default=4)
    adversarial: float = _help("weight of the critic's verdict; 0 trains no critic", default=0.0)
    adversarial_start: int = _help("step from which the critic learns; it is heard optim.warmup later", default=0)
    adversarial_lr: float = _help("peak learning rate of the critic (AdamW)", default=2e-4)
    adaptive: bool = _help(
        "scale the verdict's gradient to that of the other losses, at the decoder's last layer", default=True
    )
    adaptive_max: float = _help("largest such scale", default=1e4)
    r1: float = _help("weight of the critic's squared change when real clips are shifted by noise", default=0.1)
    r1_sigma: float = _help("deviation of that noise, of pixels in [-1, 1]", default=0.1)
    critic: dict[str, Any] = arguments_of("latentvid.models.discriminator.PatchCritic")

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        if not (self.l1 or self.charbonnier or self.mse):
            raise ValueError("l1, charbonnier and mse are all 0: one of them must ask for the pixels")


@dataclass(kw_only=True)
class VaeConfig(TrainingConfig):
    """`vae/train_vae.py`."""

    stage: Literal["vae"] = _help("what is trained", default="vae")
    data: VaeData
    model: dict[str, Any] = arguments_of(
        "latentvid.models.autoencoder.CausalVideoAutoencoder", "or, with _class_name, of one of diffusers' autoencoders"
    )
    init: Path | None = _help("folder of a VAE whose architecture and weights to begin with", default=None)
    freeze_encoder: bool = _help(
        "train the decoder of `init` alone, so that its latents stay what they are", default=False
    )
    loss: VaeLoss = field(default_factory=VaeLoss)
    statistics_samples: int = _help("windows over which the latents' mean and deviation are measured", default=512)

    def __post_init__(self) -> None:
        check_fields(self, "")
        super().__post_init__()
        if len({stage.config.loss.adversarial > 0 for stage in curriculum(self)}) > 1:
            raise ValueError(
                "loss.adversarial is 0 in some of the stages, and the critic must be there in all or none: give them a "
                "small weight, with loss.adversarial_start behind their train.steps"
            )
        if self.freeze_encoder and self.init is None:
            raise ValueError("freeze_encoder needs init: the folder of the VAE whose decoder to train")


@dataclass(kw_only=True)
class DitData(Data):
    latents: Path | tuple[Path, ...] | None = _help(
        "cache made by vae/encode_latents.py, or several; null encodes the manifest's clips as it trains", default=None
    )
    fps_dropout: float = _help(
        "share of samples trained without their frame rate, where model.fps_condition tells it", default=0.1
    )
    motion_column: str | None = _help(
        "the manifests' column of motion strength, for model.motion_condition; null: it is measured of each window",
        default=None,
    )
    motion_dropout: float = _help(
        "share of samples trained without their motion strength, where model.motion_condition tells it; 1: all",
        default=0.1,
    )
    references: dict[str, ReferenceColumn] = _help(
        "pictures and clips that samples are shown beside their own, by the names of their roles: {NAME: {column, "
        "signal or degrade, place, dropout, max_area, max_frames, noise}} (docs/conditions.md)",
        default_factory=dict,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [name for name in self.references if not NAME.fullmatch(name)]:
            raise ValueError(f"references.{wrong[0]}: name a role by letters, digits and _, beginning with a letter")
        if len(masks := [name for name, role in self.references.items() if role.place == "channels"]) > 1:
            raise ValueError(f"references.{masks[1]}: {masks[0]} has place=channels already: leave one of them out")
        if self.references and self.latents is not None:
            raise ValueError(
                "references are read from files as it trains, which a cache does not hold: set data.manifest, and "
                "--data.latents=null"
            )
        cache = ", ".join(map(str, several(self.latents)))
        for name, value in (("manifest", self.manifest), ("flip", self.flip or None)):
            if self.latents is not None and value is not None:
                raise ValueError(
                    f"{name} is set, but so is latents ({cache}), which would be trained on instead: "
                    f"set --data.latents=null to train on the manifest's clips, or leave {name} out"
                )


@dataclass(kw_only=True)
class CaptionRules:
    """Which captions are trained on, and what becomes of those that the text encoder cannot take as they are."""

    dropout: float = _help("share of samples trained without their caption, for guidance", default=0.1)
    too_long: Literal["drop", "truncate"] = _help(
        "captions of more tokens than the text encoder takes: leave the clip out, or the caption's end", default="drop"
    )
    unknown_share: float = _help(
        "largest share of captions of which the text encoder does not know most characters; 1 allows all", default=0.1
    )

    def __post_init__(self) -> None:
        check_fields(self, "caption")


@dataclass(kw_only=True)
class DitSamples(Samples):
    """What the looks show."""

    prompts: tuple[str, ...] = _help("a clip each", default=())
    references: tuple[dict[str, Path | tuple[Path, ...]], ...] = _help(
        "what each prompt is shown, {ROLE: FILE} by the roles of data.references, {} of nothing; empty: none is",
        default=(),
    )
    images: tuple[Path, ...] = _help(
        "picture that the clip of each prompt begins with; models that make videos of pictures alone need them",
        default=(),
    )
    frames: int = _help("frames", default=17)
    height: int = _help("pixels", default=256)
    width: int = _help("pixels", default=256)
    steps: int = _help("sampling steps", default=50)
    guidance: float = _help("classifier-free guidance scale; 1 turns it off", default=3.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every and not self.prompts:
            raise ValueError("every is set but prompts is empty: say what to show")
        if self.references and len(self.references) != len(self.prompts):
            raise ValueError(f"{len(self.references)} references for {len(self.prompts)} prompts: give a mapping each")
        if self.images and len(self.images) != len(self.prompts):
            raise ValueError(f"{len(self.images)} images for {len(self.prompts)} prompts: give one each")


@dataclass(kw_only=True)
class DitValidation(Validation):
    """`manifest` is needed for `scores`; for the loss `latents` will do."""

    latents: Path | tuple[Path, ...] | None = _help("cache of the held-out clips, where there is one", default=None)
    bins: int = _help("equal parts of the noise levels, each with a loss of its own", default=10)
    scores: tuple[str, ...] = _help(
        "scores of clips made from held-out captions: names as in python -m latentvid.evaluation", default=()
    )
    clips: int = _help("how many clips are made for the scores", default=32)
    networks: Path | None = _help("folder of the scores' networks", default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latents is not None and self.manifest is not None and not self.scores:
            raise ValueError("manifest and latents are both set, and one would not be looked at: leave one out")
        if self.scores and self.manifest is None:
            raise ValueError(f"scores={list(self.scores)} need held-out clips with captions: give their manifest")

    _named = "its manifest or latents"

    @property
    def _data(self) -> bool:
        return self.manifest is not None or self.latents not in (None, ())


@dataclass(kw_only=True)
class DitConfig(TrainingConfig):
    """`train/train_dit.py`."""

    stage: Literal["dit"] = _help("what is trained", default="dit")
    data: DitData
    caption: CaptionRules = field(default_factory=CaptionRules)
    model: dict[str, Any] = arguments_of("latentvid.models.transformer.VideoDiT", also=KIND | PUBLISHED)
    adapter: Adapter = field(default_factory=Adapter)
    controlnet: ControlNet = field(default_factory=ControlNet)
    trainable: tuple[str, ...] = _help(
        "regular expressions: only parameters in whose names one is found are trained; empty trains all; [^temporal]: "
        "the temporal blocks of model.attention=inflated",
        default=(),
    )
    vae: Path | None = _help(
        "folder of the VAE; pixels: none, the clips' own are what is noised; null: that of the published model",
        default=None,
    )
    text_encoder: str | None = _help(
        "folder or hub name of a T5 encoder with its tokenizer; null: that of the published model", default=None
    )
    text: TextEncoders = field(default_factory=TextEncoders)
    init: str | None = _help(
        "weights to begin with: a pipeline's folder, a run, a checkpoint, or a hub name; what `model` leaves out is as "
        "there",
        default=None,
    )
    init_weights: Weights = _help("of a run or checkpoint: the moving average, or the optimiser's", default="ema")
    init_partial: bool = _help(
        "take what fits of `init` and say what was left, instead of refusing; the map of new condition channels is 0",
        default=False,
    )
    init_motion: Path | None = _help(
        "folder of a motion module whose temporal blocks to begin with, in the image model of `init`", default=None
    )
    scheduler: dict[str, Any] = arguments_of("latentvid.diffusion.scheduler.LatentVideoScheduler")
    timesteps: TimestepSampling = field(default_factory=TimestepSampling)
    weighting: Weighting = field(default_factory=Weighting)
    given: GivenFrames = field(default_factory=GivenFrames)
    prior: Prior = field(default_factory=Prior)
    preference: PreferenceTuning = field(default_factory=PreferenceTuning)
    samples: DitSamples = field(default_factory=DitSamples)
    inference: Inference = field(default_factory=Inference)
    validation: DitValidation = field(default_factory=DitValidation)
    attention: str = _help("backend: auto, torch, fa3, fa4, flash, efficient, flex, grouped or sdpa", default="auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self)
        check_controlnet(self)
        check_prior(self)
        check_preference(self, [stage.config for stage in curriculum(self)])
        if self.init is None and (self.init_partial or self.init_weights != "ema"):
            raise ValueError(
                "init_partial and init_weights are of the weights to begin with: give init, or leave them out"
            )

    @property
    def keeps_base(self) -> bool:
        """Whether weights that the run begins with are needed as they are to its end."""
        if self.preference.on or self.prior.by_model:
            return True
        return bool(self.adapter.kind != "none" or self.controlnet.on or self.trainable or self.moves)

    @property
    def moves(self) -> bool:
        """Whether motion modules beside an image model of diffusers are what is trained, and all that is saved."""
        return self.model.get("motion") is not None and self.adapter.kind == "none" and not self.trainable

    @property
    def student(self) -> dict[str, Any] | None:
        """`steps` and `guidance` of a distilled model (`pipelines.student.Student`); None of others."""
        return None

    def sampled(self, steps: int, guidance: float) -> dict[str, Any]:
        """`steps`, `guidance` and `guidance_interval` of sampling where these steps and this guidance are asked for."""
        return {"steps": steps, "guidance": guidance, "guidance_interval": self.inference.guidance_interval}


def stage_of(settings: Mapping[str, Any]) -> str | None:
    """The stage of a saved configuration; None if it has none.

    Those of older versions lack the key `stage`, and are told apart by keys that only one of the two has.
    """
    if "stage" in settings:
        return settings["stage"] if settings["stage"] in ("dit", "vae", "distill") else None
    return "dit" if "text_encoder" in settings else "vae" if "statistics_samples" in settings else None
