"""The extractors and scores of single clips, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..demo.prompt_following import FOLLOWING_SCORES, JudgeRows
from .mean_score import MeanScore
from .motion.scores import MOTION_SCORES, FlickerRows, MotionRows
from .pairs.scores import PAIR_SCORES, FidelityRows, LpipsRows
from .prompts.clip_similarity import CLIP_SCORES, ClipFrameRows, ClipTextRows
from .rows import Extractor

# Each is made of the folder of weights (lpips/, clip/, raft/; None: what this machine has by itself) and a device;
# UserError, with the way to get it, where something that it needs is not there.
EXTRACTORS: dict[str, Callable[[Path | None, torch.device], Extractor]] = {
    kind.name: kind
    for kind in (FidelityRows, LpipsRows, ClipTextRows, ClipFrameRows, FlickerRows, MotionRows, JudgeRows)
}
SCORES: dict[str, MeanScore] = {
    score.name: score for score in (*PAIR_SCORES, *CLIP_SCORES, *MOTION_SCORES, *FOLLOWING_SCORES)
}
ON_REQUEST = frozenset(score.name for score in FOLLOWING_SCORES)  # of the demo's captions only: never by default
