"""The configuration of a training run. Each default lives here once; YAML and the command line override it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.storage import PATIENCE_S
from ..diffusion.masks import GivenFrames
from ..diffusion.objective import Weighting
from ..diffusion.timesteps import TimestepSampling
from ..limits import check_fields
from ..limits import setting as _help
from ..precision import MixedPrecision


def arguments_of(cls: str, more: str = "") -> Any:
    """A free-form section: the arguments of a class's constructor, which `--help` reads where the class is written."""
    text = f"arguments of {cls.rpartition('.')[2]}{f', {more}' if more else ''}"
    return field(default_factory=dict, metadata={"help": text, "arguments_of": cls})


Weights = Literal["ema", "raw"]
STEP_TOKENS = 2**31  # most tokens in a step: some hundred times what the largest published runs take


def several(value: Path | Sequence[Path] | None) -> tuple[Path, ...]:
    """One path, several or none, as a tuple."""
    return () if value is None else (value,) if isinstance(value, Path) else tuple(value)


def _shown(paths: Path | Sequence[Path]) -> str:
    return ", ".join(map(str, several(paths)))


@dataclass(kw_only=True)
class Run:
    dir: Path = _help("folder where everything of the run goes")
    seed: int = _help("seed of the data order, noise, and initial weights", default=0)
    dry_run: bool = _help("say what the run would be, and stop; --dry-run for short", default=False)

    def __post_init__(self) -> None:
        check_fields(self, "run")


@dataclass(kw_only=True)
class Data:
    manifest: Path | tuple[Path, ...] | None = _help(
        "table of clips and captions (.jsonl, .csv, .tsv or .parquet), or several: [a.jsonl, b.jsonl]", default=None
    )
    path_column: str | None = _help("the manifests' column of files; null: path or file_name", default=None)
    caption_column: str | None = _help("the manifests' column of captions; null: caption or text", default=None)
    weights: tuple[float, ...] = _help(
        "share of the tokens of each manifest (or cache), in any unit; empty draws every sample once an epoch",
        default=(),
    )
    image_share: float | None = _help("share of the tokens that are images'; null leaves it to the data", default=None)
    max_frames: int = _help("frames of a window; longer clips are cut into windows that follow each other", default=17)
    frames_per_read: int | None = _help(
        "windows of a clip that are decoded together, and share a pack, have at most so many frames, and half of a "
        "step's tokens; null reads each by itself",
        default=256,
    )
    max_area: int | None = _help("largest height x width in pixels; null keeps the native size", default=None)
    flip: bool = _help("mirror half of the samples; not for captions that say left or right", default=False)
    tokens_per_pack: int = _help("most tokens in a pack (the unit of memory)", default=4096)
    packs_per_step: int = _help("packs of a step over all processes; accumulation is this / processes", default=1)
    workers: int | None = _help(
        "loader processes for each training process; 0 loads in the training process; null: by the cores to spare",
        default=None,
    )
    timeout_s: float = _help("a clip that takes longer to read hangs, and is replaced by another", default=120.0)
    retry_s: float = _help(
        "storage that does not answer (stale handles, time-outs) is tried again for so long; then the run stops",
        default=PATIENCE_S,
    )

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if (tokens := self.tokens_per_pack * self.packs_per_step) > STEP_TOKENS:
            raise ValueError(
                f"tokens_per_pack x packs_per_step = {tokens:,} tokens a step: must be at most {STEP_TOKENS:,}"
            )


@dataclass(kw_only=True)
class Optim:
    name: Literal["adamw", "muon"] = _help(
        "muon: orthogonalised momentum for matrices, NAdamW for the rest", default="adamw"
    )
    lr: float = _help("peak learning rate", default=1e-4)
    betas: tuple[float, float] = _help("AdamW's decay rates", default=(0.9, 0.99))
    weight_decay: float = _help("decoupled; not on biases, norms and embeddings", default=0.0)
    momentum: float = _help("muon's momentum", default=0.95)
    vector_lr: float | None = _help("muon: learning rate of what is not a matrix; null is lr", default=None)
    warmup: int = _help("steps of linear warm-up", default=100)
    schedule: Literal["cosine", "constant"] = _help("after the warm-up", default="cosine")
    final: float = _help("cosine: last learning rate over the peak", default=0.01)
    clip: float = _help("largest gradient norm; 0 is no clipping", default=1.0)
    skip_norm: float | None = _help("steps whose gradient norm is above it are skipped; null skips none", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "optim")


@dataclass(kw_only=True)
class Train:
    steps: int = _help("length of the run", default=100_000)
    extend: bool = _help(
        "go on with another `steps` than a run began with although the learning rate follows it, and so jumps",
        default=False,
    )
    mixed_precision: MixedPrecision = _help(
        "what passes compute in (weights stay fp32); auto: bf16 where the device is measured to be faster in it",
        default="auto",
    )
    ema: float = _help("decay of the weights' moving average", default=0.999)
    loss_by: Literal["token", "sample"] = _help(
        "every token that has a loss, or every sample, weighs the same in a step", default="token"
    )
    gradient_checkpointing: bool = _help("recompute activations in the backward pass", default=False)
    compile: bool = _help("torch.compile the blocks", default=False)
    max_bad_steps: int = _help("so many skipped steps in a row stop the run", default=10)
    sequence_parallel: int = _help("processes that share each pack (Ulysses); must divide model.heads", default=1)

    def __post_init__(self) -> None:
        check_fields(self, "train")


@dataclass(kw_only=True)
class Checkpointing:
    every: int = _help("steps between checkpoints; the last step always has one", default=1000)
    keep_last: int = _help("how many of the newest stay", default=2)
    keep_every: int = _help("steps whose multiples stay for ever; 0 is none", default=0)
    background: bool = _help("write while training goes on (holds a copy in host memory)", default=False)

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")


@dataclass(kw_only=True)
class Logging:
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = _help(
        "where curves go beside metrics.jsonl", default=("tensorboard",)
    )
    project: str = _help("project name in wandb", default="latentvid")
    draws: bool = _help(
        "RUN/draws.jsonl: [global sample number, index] of all that each step trained on", default=False
    )


@dataclass(kw_only=True)
class Samples:
    every: int = _help("steps between looks at the model in RUN/samples; 0 is none", default=0)
    weights: tuple[Weights, ...] = _help("which make them: the moving average, the optimiser's", default=("ema",))

    def __post_init__(self) -> None:
        check_fields(self, "samples")


@dataclass(kw_only=True)
class DitSamples(Samples):
    """What the looks show."""

    prompts: tuple[str, ...] = _help("a clip each", default=())
    frames: int = _help("frames", default=17)
    height: int = _help("pixels", default=256)
    width: int = _help("pixels", default=256)
    steps: int = _help("sampling steps", default=50)
    guidance: float = _help("classifier-free guidance scale; 1 is none", default=3.0)
    fps: float = _help("of the written clips", default=8.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every and not self.prompts:
            raise ValueError("every is set but prompts is empty: say what to show")


@dataclass(kw_only=True)
class Inference:
    """Defaults of the exported pipeline; its size, length and rate are those of most of the training's tokens."""

    steps: int = _help("sampling steps", default=50)
    guidance: float = _help("classifier-free guidance scale; 1 is none", default=3.0)

    def __post_init__(self) -> None:
        check_fields(self, "inference")


@dataclass(kw_only=True)
class Validation:
    """Measurements on held-out data while training goes on; training itself is the same with and without them."""

    every: int = _help("steps between measurements; the last step always has one; 0 is none", default=0)
    manifest: Path | None = _help("table of held-out clips", default=None)
    samples: int = _help("held-out windows that are measured, spread evenly over all", default=64)
    seed: int = _help("of what is random in it: runs with the same one compare", default=0)
    weights: tuple[Weights, ...] = _help(
        "which are measured: the moving average, the optimiser's; the first choose the best", default=("ema", "raw")
    )
    best: str | None = _help(
        "figure whose best checkpoint is kept, and named in RUN/best.json: loss or another of validation.jsonl; null "
        "keeps none",
        default="loss",
    )

    def __post_init__(self) -> None:
        check_fields(self, "validation")
        if not self.weights or len(set(self.weights)) < len(self.weights):
            raise ValueError(f"weights={list(self.weights)}: name ema, raw or both")
        if self.every and not self._data:
            raise ValueError("every is set, but there is no held-out data: give its manifest")

    @property
    def _data(self) -> bool:
        return self.manifest is not None


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

    @property
    def _data(self) -> bool:
        return self.manifest is not None or self.latents is not None


@dataclass(kw_only=True)
class TrainingConfig:
    """What both stages share."""

    run: Run
    data: Data
    model: dict[str, Any] = _help("arguments of the model's constructor", default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    log: Logging = field(default_factory=Logging)
    samples: Samples = field(default_factory=Samples)
    validation: Validation = field(default_factory=Validation)


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
        if self.freeze_encoder and self.init is None:
            raise ValueError("freeze_encoder needs init: the folder of the VAE whose decoder to train")


@dataclass(kw_only=True)
class DitData(Data):
    latents: Path | tuple[Path, ...] | None = _help(
        "cache made by vae/encode_latents.py, or several; null encodes the manifest's clips as it trains", default=None
    )
    caption_dropout: float = _help("share of samples trained without their caption, for guidance", default=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("manifest", self.manifest), ("flip", self.flip or None)):
            if self.latents is not None and value is not None:
                raise ValueError(
                    f"{name} is set, but so is latents ({_shown(self.latents)}), which would be trained on instead: "
                    f"set --data.latents=null to train on the manifest's clips, or leave {name} out"
                )


@dataclass(kw_only=True)
class CaptionRules:
    """What becomes of captions that the text encoder cannot take as they are."""

    too_long: Literal["drop", "truncate"] = _help(
        "captions of more tokens than the text encoder takes: leave the clip out, or the caption's end", default="drop"
    )
    unknown_share: float = _help(
        "largest share of captions of which the text encoder does not know most characters; 1 allows all", default=0.1
    )

    def __post_init__(self) -> None:
        check_fields(self, "caption")


@dataclass(kw_only=True)
class DitConfig(TrainingConfig):
    """`train/train_dit.py`."""

    data: DitData
    caption: CaptionRules = field(default_factory=CaptionRules)
    model: dict[str, Any] = arguments_of("latentvid.models.transformer.VideoDiT")
    vae: Path = _help("folder of the VAE")
    text_encoder: str = _help("folder or hub name of a T5 encoder with its tokenizer")
    scheduler: dict[str, Any] = arguments_of("latentvid.diffusion.scheduler.LatentVideoScheduler")
    timesteps: TimestepSampling = field(default_factory=TimestepSampling)
    weighting: Weighting = field(default_factory=Weighting)
    given: GivenFrames = field(default_factory=GivenFrames)
    samples: DitSamples = field(default_factory=DitSamples)
    inference: Inference = field(default_factory=Inference)
    validation: DitValidation = field(default_factory=DitValidation)
    attention: str = _help("backend: auto, torch, flash, grouped or sdpa", default="auto")
