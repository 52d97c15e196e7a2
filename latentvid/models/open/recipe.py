"""How published models were trained and are sampled: what a configuration may leave out. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...text.policy import Reading

ImageKind = Literal["first", "wan", "cogvideox", "concat"]  # see conditioning.py


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Of a family, or of one of its published variants.

    task: "t2v" or "i2v", what the pipeline makes.
    scheduler: arguments of `LatentVideoScheduler`. timesteps: of `TimestepSampling`.
    text: how each text encoder of the repository is read.
    steps, guidance: defaults of sampling. guidance_embedded: the scale that a model with a guidance embedding is told.
    image: how a model is given an image (conditioning.py); None: it takes none.
    given: of `GivenFrames`, of a model that was trained with given frames at noise level 0.
    lora: endings of the names of the linear layers in the blocks that LoRA changes by default.
    """

    task: str
    scheduler: Mapping[str, Any]
    timesteps: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[Reading, ...]
    steps: int = 50
    guidance: float = 5.0
    guidance_embedded: float | None = None
    image: ImageKind | None = None
    given: Mapping[str, float] = field(default_factory=dict)
    lora: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
