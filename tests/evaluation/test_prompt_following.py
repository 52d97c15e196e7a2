"""Prompt following by the digits judge: its own rules, clip by clip, with labels read back from captions."""

import numpy as np
import pytest
import torch

from latentvid.demo.digits import caption, prompts, render
from latentvid.demo.judge import Judge, score
from latentvid.demo.prompt_following import ASPECTS, CERTAINTY, KNOWN, JudgeRows
from latentvid.errors import ClipError
from latentvid.evaluation.rows import Clip

CPU = torch.device("cpu")


def test_scores_are_the_judges_own_of_the_labels_that_the_captions_word():
    asked = prompts(24, heldout=False, seed=1)
    rng = np.random.default_rng(0)
    # every other clip shows something else
    shown = [asked[(k + k % 2 * 5) % 24][0] for k in range(24)]
    clips = [render(label, 9, (24, 32), rng, heldout=True) for label in shown]
    extractor = JudgeRows(None, CPU)
    rows = [extractor(Clip(clip, caption=text)) for clip, (_, text) in zip(clips, asked, strict=True)]
    expected = score(clips, [label for label, _ in asked], Judge.load())
    assert all(each.shape == (1, len(ASPECTS) + 1) for each in rows)
    chances = [float(Judge.load()(clip).chances[label.digit]) for clip, (label, _) in zip(clips, asked, strict=True)]
    wanted = {k: expected[k] for k in ASPECTS} | {CERTAINTY: sum(chances) / len(chances)}
    assert min(chances[1::2]) < 0.1 and min(chances[::2]) > 0.4  # a label that is another digit's, and one's own
    assert {s.name: s(rows) for s in KNOWN.scores.values()} == pytest.approx(wanted)
    assert all(0 < expected[name] < 1 for name in ASPECTS)


def test_an_image_has_no_motion_to_follow():
    label = prompts(1, heldout=False, seed=0)[0][0]
    still = type(label)(label.digit, label.colour)
    rng = np.random.default_rng(0)
    rows = JudgeRows(None, CPU)(Clip(render(still, 1, (24, 24), rng, heldout=False), caption=caption(still, rng)))
    assert rows[0, ASPECTS.index("direction")] == rows[0, ASPECTS.index("colour")] == 1


def test_other_captions_are_refused():
    clip = torch.zeros(5, 24, 24, 3, dtype=torch.uint8)
    with pytest.raises(ClipError, match=r"a\.mp4: the digits judge cannot score it.*'a dog runs'"):
        JudgeRows(None, CPU)(Clip(clip, caption="a dog runs", name="a.mp4"))
    with pytest.raises(ValueError, match="no caption"):
        JudgeRows(None, CPU)(Clip(clip))
