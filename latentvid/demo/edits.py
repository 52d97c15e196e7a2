"""What the demo's judge says of edits of its clips.

python -m latentvid.evaluation edit CLIPS EDITED --measures latentvid.demo.edits:JUDGED
"""

from __future__ import annotations

from functools import lru_cache

from ..evaluation.edits.measures import Edited, Measure, Values
from .digits import read_caption
from .judge import Judge

NEAR = 1.5  # pixels between centres of mass: the path is kept

_judge = lru_cache(maxsize=1)(Judge.load)


def judged(each: Edited) -> Values:
    """Whether the digit is that of the target text, whether it goes its source's way (on average within `NEAR` pixels),
    and both. Raises UserError for a text that is none of the demo's."""
    if each.target_text is None:
        return {}
    wanted = read_caption(each.target_text)
    seen, before = _judge()(each.made), _judge()(each.source)
    apart = (seen.path - before.path).norm(dim=1)
    apart = apart[apart.isfinite()]
    digit, path = seen.digit == wanted.digit, bool(len(apart)) and float(apart.mean()) < NEAR
    return {"digit": float(digit), "path": float(path), "digit_and_path": float(digit and path)}


JUDGED = Measure(dict.fromkeys(("digit", "path", "digit_and_path"), "higher"), judged)
