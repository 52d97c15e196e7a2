"""VBench's dimensions as scores: `--metrics latentvid.evaluation.vbench.scores:subject_consistency`, and the command
of this package, by `DIMENSIONS`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..mean_score import MeanScore
from ..metrics import Known
from ..motion.scores import FlickerRows, MotionRows
from .consistency import BackgroundRows, SubjectRows
from .quality import AestheticRows, ImagingRows, SmoothnessRows
from .viclip import OverallRows


@dataclass(frozen=True, kw_only=True)
class Flickering(MeanScore):
    """1 less the mean absolute difference of neighbouring frames in parts of 255."""

    def of_clip(self, rows: Tensor) -> float:
        return 1 - super().of_clip(rows) / 255


def _score(name: str) -> MeanScore:
    return MeanScore(name=name, extractor=name, compares="none", better="higher")


DIMENSIONS = {
    score.name: score
    for score in (
        _score("subject_consistency"),
        _score("background_consistency"),
        Flickering(name="temporal_flickering", extractor="flicker", compares="none", better="higher"),
        _score("motion_smoothness"),
        MeanScore(name="dynamic_degree", extractor="motion", compares="none", better="neither", column=2),
        _score("aesthetic_quality"),
        _score("imaging_quality"),
        _score("overall_consistency"),
    )
}
BY_FRAME = ("subject_consistency", "background_consistency")  # whose total is the mean over all frames, not over clips
KNOWN = Known(
    tuple(DIMENSIONS.values()),
    (SubjectRows, BackgroundRows, FlickerRows, SmoothnessRows, MotionRows, AestheticRows, ImagingRows, OverallRows),
)
