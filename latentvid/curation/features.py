"""Near-duplicates by features of a network, of what perceptual hashes keep apart (Abbas et al. 2023, "SemDeDup").

Axes: N segments, D features.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..evaluation.prompts.clip_similarity import open_clip
from .networks import computing_device, looked_at
from .settings import Measures

ROWS = 2048  # that are compared with all others at once


class Embedder:
    """CLIP's features of segments (`measures.weights`/clip). Raises UserError where there is none."""

    def __init__(self, settings: Measures) -> None:
        self.frames, self.network = settings.frames, open_clip(settings.weights, computing_device())

    def __call__(self, unit: Mapping[str, Any]) -> list[str]:
        """Of segments of a file: the mean over their frames, of unit length, float16 in base 64."""
        made = []
        for segment in unit["segments"]:
            pixels = torch.from_numpy(looked_at(unit["file"], segment, self.frames))
            mean = torch.nn.functional.normalize(self.network.images(pixels).mean(dim=0), dim=0)
            made.append(base64.b64encode(mean.to(torch.float16).cpu().numpy().tobytes()).decode())
        return made


def read_features(texts: Sequence[str]) -> np.ndarray:
    """What `Embedder` wrote: float32 [N,D], of unit length."""
    found = np.stack([np.frombuffer(base64.b64decode(text), np.float16) for text in texts]).astype(np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def closest(features: np.ndarray, shots: Sequence[int], least: float) -> list[int]:
    """Of each segment the number of the one before it that stays and is nearest, where their cosine is `least` or more;
    its own where there is none. Segments of one shot are not compared.

    features: [N,D], of unit length, those to keep before the others. All are compared with all: N^2 D operations.
    """
    same, of = list(range(len(features))), np.asarray(shots)
    stays = np.ones(len(features), bool)
    for begin in range(0, len(features), ROWS):
        part = features[begin : begin + ROWS]
        cosines = part @ features[: begin + len(part)].T
        for row in np.flatnonzero((cosines >= least).sum(axis=1) > 1).tolist():  # each is near itself
            b = begin + row
            near = np.where(stays[:b] & (of[:b] != of[b]), cosines[row, :b], -np.inf)
            if b and near.max() >= least:
                same[b], stays[b] = int(near.argmax()), False
    return same
