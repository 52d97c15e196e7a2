"""The sections that the configurations of all stages share. Each default lives here once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..limits import PATIENCE_S, check_fields
from ..limits import setting as _help
from ..precision import MixedPrecision

Weights = Literal["ema", "raw"]
UNKNOWN_FPS = 8.0  # of what is shown, where the data have no rate
STEP_TOKENS = 2**31  # most tokens in a step: some hundred times what the largest published runs take


def several(value: Path | Sequence[Path] | None) -> tuple[Path, ...]:
    """One path, several or none, as a tuple."""
    return () if value is None else (value,) if isinstance(value, Path) else tuple(value)


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
        "table of clips and captions (.jsonl, .csv, .tsv or .parquet), or shards of clips (.tar or .parquet), or "
        "several: [a.jsonl, b.jsonl]; each may be a URL",
        default=None,
    )
    path_column: str | None = _help("the manifests' column of files; null: path or file_name", default=None)
    caption_column: str | None = _help("the manifests' column of captions; null: caption or text", default=None)
    weights: tuple[float, ...] = _help(
        "share of the tokens of each manifest (or cache), in any unit; empty draws every sample once an epoch",
        default=(),
    )
    image_share: float | None = _help("share of the tokens that are images'; null leaves it to the data", default=None)
    fps: float | tuple[float, float] | None = _help(
        "frames a second that are taken of each clip, the nearest by their times, whatever its own rate; [low, high]: "
        "as many as it has, but at least and at most these; null takes clips as they are",
        default=None,
    )
    fps_slack: float = _help(
        "share by which a clip's own rate may lie below fps, and share of a window's frames that may repeat the one "
        "before; slower clips are left out",
        default=0.02,
    )
    max_frames: int = _help("frames of a window; longer clips are cut into windows that follow each other", default=17)
    frames_per_read: int | None = _help(
        "windows of a clip that are decoded together, and share a pack, have at most this many frames, and half of a "
        "step's tokens; null reads each by itself",
        default=256,
    )
    max_area: int | None = _help("largest height x width in pixels; null keeps the native size", default=None)
    may_grow: bool = _help(
        "go on although clips were appended to a manifest (or cache): they are drawn from the next epoch on",
        default=False,
    )
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
        if isinstance(self.fps, tuple) and self.fps[0] > self.fps[1]:
            raise ValueError(f"fps is {list(self.fps)}: give the lower rate first")
        if (tokens := self.tokens_per_pack * self.packs_per_step) > STEP_TOKENS:
            raise ValueError(
                f"tokens_per_pack x packs_per_step = {tokens:,} tokens a step: must be at most {STEP_TOKENS:,}"
            )


@dataclass(kw_only=True)
class Optim:
    name: Literal["adamw", "adamw8bit", "muon"] = _help(
        "adamw8bit: AdamW whose moments take a byte each of a parameter (bitsandbytes; one process, or DDP); muon: "
        "orthogonalised momentum for matrices, NAdamW for the rest",
        default="adamw",
    )
    lr: float = _help("peak learning rate", default=1e-4)
    betas: tuple[float, float] = _help("AdamW's decay rates", default=(0.9, 0.99))
    weight_decay: float = _help("decoupled; not on biases, norms and embeddings", default=0.0)
    momentum: float = _help("muon's momentum", default=0.95)
    vector_lr: float | None = _help("muon: learning rate of what is not a matrix; null is lr", default=None)
    warmup: int = _help("steps of linear warm-up", default=100)
    schedule: Literal["cosine", "constant", "wsd", "inverse_sqrt"] = _help(
        "after the warm-up; wsd: constant, then a decay to the end", default="cosine"
    )
    final: float = _help("cosine and wsd: last learning rate over the peak", default=0.01)
    decay_steps: int | None = _help("wsd: steps of the decay at the end; null: a tenth of the run's", default=None)
    decay_from: int | None = _help(
        "inverse_sqrt: step n from which the rate falls as sqrt(n / step); null: the warm-up's end", default=None
    )
    clip: float = _help("largest gradient norm; 0 is no clipping", default=1.0)
    skip_norm: float | None = _help("steps whose gradient norm is above it are skipped; null skips none", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        for key, of in (("decay_steps", "wsd"), ("decay_from", "inverse_sqrt")):
            if getattr(self, key) is not None and self.schedule != of:
                raise ValueError(f"{key}={getattr(self, key)} is of schedule={of}, and schedule is {self.schedule}")


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
    swap_blocks: int = _help(
        "number of blocks whose weights, where they stay as they are, lie in main memory, and on the device while they "
        "compute; needs gradient_checkpointing; one process, or DDP",
        default=0,
    )
    compile: bool = _help("torch.compile the blocks", default=False)
    max_bad_steps: int = _help("number of skipped steps in a row that stop the run", default=10)
    deterministic: bool = _help(
        "on GPUs: the same run gives the same numbers to the last bit; kernels are slower (docs/performance.md)",
        default=False,
    )
    sequence_parallel: int = _help("processes that share each pack (Ulysses); must divide model.heads", default=1)
    collective_timeout_s: float = _help(
        "how long a process waits in an exchange for the others, and the main one for their parts of a checkpoint, "
        "before the run ends, as for one that hangs",
        default=1800.0,
    )

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if self.swap_blocks in (1, 2):
            raise ValueError(f"swap_blocks={self.swap_blocks}: two are on the device anyway: give 3 or more, or 0")
        if self.swap_blocks and not self.gradient_checkpointing:
            raise ValueError(
                f"swap_blocks={self.swap_blocks}: without recomputing the backward pass needs all weights at once: set "
                "gradient_checkpointing=true"
            )
        if self.swap_blocks and self.compile:
            raise ValueError(f"swap_blocks={self.swap_blocks} changes where weights lie, and compile=true not: set one")


@dataclass(kw_only=True)
class Checkpointing:
    every: int = _help("steps between checkpoints; the last step always has one", default=1000)
    keep_last: int = _help("how many of the newest stay", default=2)
    keep_every: int = _help("multiples of this step stay for ever; 0: none does", default=0)
    background: bool = _help("write while training goes on (holds a copy in host memory)", default=False)

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")


@dataclass(kw_only=True)
class Logging:
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = _help(
        "where curves go beside metrics.jsonl", default=("tensorboard",)
    )
    project: str = _help("project name in wandb", default="latentvid")
    every: int = _help("steps between lines of metrics.jsonl, and of trackers; the last step has one", default=1)
    profile: int = _help(
        "steps of each start, from its eleventh on, that torch.profiler follows into RUN/profile; --profile STEPS for "
        "short; 0: none",
        default=0,
    )
    draws: bool = _help(
        "RUN/draws.jsonl: [global sample number, index] of all that each step trained on", default=False
    )

    def __post_init__(self) -> None:
        check_fields(self, "log")


@dataclass(kw_only=True)
class Samples:
    every: int = _help("steps between looks at the model in RUN/samples; 0: no looks", default=0)
    weights: tuple[Weights, ...] = _help("which make them: the moving average, the optimiser's", default=("ema",))
    fps: float | None = _help(
        "frames a second of the clips that are shown; null: that of most of the training's tokens", default=None
    )

    def __post_init__(self) -> None:
        check_fields(self, "samples")


@dataclass(kw_only=True)
class Validation:
    """Measurements on held-out data while training goes on; training itself is the same with and without them."""

    every: int = _help("steps between measurements; the last step always has one; 0: no measurements", default=0)
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
            raise ValueError(f"every={self.every}, but there is no held-out data: give {self._named}, or every=0")

    _named = "its manifest"

    @property
    def _data(self) -> bool:
        return self.manifest is not None


@dataclass(kw_only=True)
class TextEncoders:
    """How the frozen text encoders of a published model are kept while it trains."""

    dtype: Literal["fp32", "bf16"] = _help("type of their weights", default="fp32")
    place: Literal["device", "offload", "cpu"] = _help(
        "device: beside the model; offload: in main memory, and on the device while they read; cpu: read there",
        default="device",
    )
    quantization: Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"] | None = _help(
        "weights that take less room, by the package of that name", default=None
    )

    @property
    def told(self) -> bool:
        return (self.dtype, self.place, self.quantization) != ("fp32", "device", None)


@dataclass(kw_only=True)
class Adapter:
    """What is trained beside a model that stays as it is."""

    kind: Literal["none", "lora", "dora", "loha", "lokr"] = _help(
        "small matrices beside linear layers, and nothing else, are trained: their product (lora), with the size of "
        "each row learned apart (dora), two products multiplied by elements (loha), a Kronecker product (lokr)",
        default="none",
    )
    rank: int = _help(
        "rank of the matrices; lokr: of the second one, which is whole where the rank is half of its sides", default=16
    )
    alpha: float | None = _help("what they make is times alpha / rank; null is the rank, so times 1", default=None)
    targets: tuple[str, ...] = _help(
        "endings of the names of the linear layers; empty: those that are usual for the model", default=()
    )
    init: Path | None = _help(
        "file of an adapter to begin with, of any common format: its layers and ranks are trained", default=None
    )
    base: Literal["whole", "int8", "nf4"] = _help(
        "lora: how the blocks' linear layers, which stay as they are, are held: in the model's type (whole), or in a "
        "byte (int8) or half of one (nf4) a weight",
        default="whole",
    )
    dropout: float = _help(
        "lora, dora: share of a layer's inputs that its matrices do not see; loha, lokr: of its outputs that they "
        "leave alone",
        default=0.0,
    )

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        told = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if self.kind == "none" and told:
            raise ValueError(
                "rank, alpha, targets, init, base and dropout are of an adapter: set kind=lora, or another, or leave "
                "them out"
            )
        if self.base != "whole" and self.kind != "lora":
            raise ValueError(f"base={self.base}: {self.kind} reads whole weights: set kind=lora, or base=whole")
        if self.init is not None and (own := [key for key in told if key in ("rank", "alpha", "targets")]):
            raise ValueError(f"init: {self.init} says {own[0]} itself: leave {own[0]} out")


@dataclass(kw_only=True)
class Inference:
    """Defaults of the exported pipeline; its size, length and rate are those of most of the training's tokens."""

    steps: int = _help("sampling steps", default=50)
    guidance: float = _help("classifier-free guidance scale; 1 turns it off", default=3.0)
    guidance_interval: tuple[float, float] | None = _help(
        "noise levels between which to guide, also in the looks and scores of training; null: at all", default=None
    )

    def __post_init__(self) -> None:
        check_fields(self, "inference")
        low, high = self.guidance_interval or (0.0, 1.0)
        if low >= high:
            raise ValueError(f"guidance_interval is {[low, high]}: give the lower noise level first")
