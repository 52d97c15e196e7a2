"""Whether clips of the demo's kind show what their captions say, by the judge of digit clips.

python -m latentvid.evaluation CLIPS --metrics latentvid.demo.prompt_following:digit ...
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data.cache.latents import module_fingerprint
from ..errors import ClipError, UserError
from ..evaluation.mean_score import MeanScore
from ..evaluation.metrics import Known
from ..evaluation.rows import Clip
from .digits import read_caption
from .judge import Judge, score

ASPECTS = ("digit", "direction", "both", "strict", "colour", "verb")  # as `judge.score` names and defines them
CERTAINTY = "certainty"  # the judge's probability of the digit, mean over the frames: two clips are seldom equal


class JudgeRows:
    """One row a clip: 1 where the clip shows what its caption says, else 0, as `ASPECTS`; then `CERTAINTY`.

    Captions are of the demo's grammar (`latentvid.demo.digits`); ClipError for others. The judge runs on the CPU.
    """

    name = "judge"
    needs = frozenset({"caption"})

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.judge = Judge.load()  # it comes with the package and is the same for all
        self.fingerprint = f"judge: of digit clips, with its certainty {module_fingerprint(self.judge.net, {})[:16]}"

    def __call__(self, clip: Clip) -> Tensor:
        if clip.caption is None:
            raise ValueError(f"{clip.name} has no caption")
        try:
            label = read_caption(clip.caption)
        except UserError as error:
            raise ClipError(
                clip.name, "caption", f"the digits judge cannot score it, leave its scores out: {error}"
            ) from error
        verdict = self.judge(clip.pixels)
        found = score([clip.pixels], [label], lambda _: verdict)
        return torch.tensor([[*(found[aspect] for aspect in ASPECTS), float(verdict.chances[label.digit])]])


KNOWN = Known(
    [
        MeanScore(name=name, extractor="judge", compares="none", better="higher", column=k)
        for k, name in enumerate((*ASPECTS, CERTAINTY))
    ],
    [JudgeRows],
)
