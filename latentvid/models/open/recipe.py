"""How published models were trained and are sampled: what a configuration may leave out. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...text.policy import Reading

ImageKind = Literal["first", "wan", "cogvideox", "concat", "svd"]  # see conditioning.py


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Of a family, or of one of its published variants.

    task: "t2v" or "i2v", what the pipeline makes.
    scheduler: arguments of `LatentVideoScheduler`; those of a repository's scheduler_config.json go before them, but
        for `spacing`, which says how the published pipeline spaces its steps. timesteps: of `TimestepSampling`.
    text: how each text encoder of the repository is read; (): the model reads no text.
    image: how a model is given an image (conditioning.py); None: it takes none.
    given: of `GivenFrames`, of a model that was trained with given frames at noise level 0.
    frames, height, width, fps, steps, solver, guidance, guidance_rescale, negative_prompt: defaults of sampling; the
        sizes are those that the model was trained for.
    boundary: the noise level from which the first of two experts predicts, below which the second; None: one network.
    guidance_low: guidance of the second expert where it has another default.
    guidance_embedded, guidance_training: the scale that a model with a guidance embedding is told, and in training.
    guidance_first: guidance of the first frame, from which it grows to that of the last; None: it is the same for all.
    lora: endings of the names of the linear layers in the blocks that LoRA changes by default.
    backbone: attributes of the backbone that the pipeline decides and the transformer's configuration does not tell.
    """

    task: Literal["t2v", "i2v"]
    scheduler: Mapping[str, Any]
    timesteps: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[Reading, ...]
    image: ImageKind | None = None
    given: Mapping[str, float] = field(default_factory=dict)
    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0
    steps: int = 50
    solver: str = "euler"
    guidance: float = 5.0
    guidance_rescale: float = 0.0
    guidance_first: float | None = None
    negative_prompt: str = ""
    boundary: float | None = None
    guidance_low: float | None = None
    guidance_embedded: float | None = None
    guidance_training: float | None = None
    lora: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    backbone: Mapping[str, Any] = field(default_factory=dict)
