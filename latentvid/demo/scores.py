"""The demo's scores: what they usually are, how clips come by them, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from ..tables import text_table
from .digits import Label
from .judge import Judge, score

USUAL = {  # a run of `make demo` gets more than this: the figures of docs/reference/demo.md less their tolerances
    "vae_psnr": 29.6,
    "vae_ssim": 0.93,
    "digit": 0.96,
    "direction": 0.95,
    "both": 0.93,
    "strict": 0.84,
    "colour": 0.98,
    "verb": 0.83,
    "heldout_both": 0.83,
    "heldout_strict": 0.66,
}
ORDER = ("vae_psnr", "vae_ssim", "digit", "direction", "both", "strict", "colour", "verb", "heldout_both",
         "heldout_strict", "shuffled_both")  # fmt: skip


def judged(seen: tuple[Sequence[Tensor], Sequence[Label]], heldout: tuple, judge: Judge) -> dict[str, float]:
    """The judge's scores of (clips, labels) of seen and of held-out pairs, and of the seen with shuffled labels."""
    scores, held = score(*seen, judge), score(*heldout, judge)
    scores.pop("count")
    verdicts = [judge(clip) for clip in seen[0]]
    return scores | {
        "heldout_both": held["both"],
        "heldout_strict": held["strict"],
        "shuffled_both": shuffled_both([(v.digit, v.direction) for v in verdicts], seen[1]),
    }


def shuffled_both(read: Sequence[tuple], labels: Sequence[Label]) -> float:
    """How often the (digit, direction) read in a clip are those of another clip's label, over all shuffles.

    With what the labels themselves say in place of `read` this is chance: what perfect clips would get.
    """
    named = [(label.digit, label.direction) for label in labels]
    times = Counter(named)
    own = sum(r == n for r, n in zip(read, named, strict=True))
    return (sum(times[r] for r in read) - own) / (len(read) * (len(read) - 1))


def table(scores: dict) -> str:
    """The scores beside the usual ones and those of real clips, as lines of text."""
    rows = [("score", "measured", "usually above", "real clips")]
    for name in ORDER:
        real = f"{scores['real'][name]:.3f}" if name in scores["real"] else ""
        rows.append((name, f"{scores[name]:.3f}", usual(name, scores), real))
    return text_table(rows, right=True)


def usual(name: str, scores: dict) -> str:
    """By what to read a score: the usual one, or chance for the control."""
    if name == "shuffled_both":
        return f"chance {scores['chance_both']:.3f}" if "chance_both" in scores else ""
    return f"{USUAL[name]:g}"
