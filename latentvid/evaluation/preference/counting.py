"""What people prefer, counted from their choices in pairs: win rates with intervals, and how far to trust them.

Several raters of one pair are not independent, pairs are: a pair counts once, with the mean of its raters, and
intervals and tests are over pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt
from typing import Any

import numpy as np

from ...errors import UserError
from ...words import counted
from .key import Choice, Choices, Key

WORTH = {"A": 1.0, "tie": 0.5, "B": 0.0}  # of a choice, for A
RESAMPLES = 10_000
_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def count(key: Key, raters: Sequence[Choices]) -> dict[str, Any]:
    """All results, as JSON holds them: `questions`, each as `count_question` has it; `attention`, by rater, with how
    many checks were answered as they should be; what was compared, and who rated. Raises UserError without choices.
    """
    if not any(pairs for rater in raters for pairs in rater.made.values()):
        raise UserError("the files hold no choices: ask the raters to save after choosing")
    return {
        "page": key.page,
        "a": key.a,
        "b": key.b,
        "pairs": sum(not pair.is_check for pair in key.pairs),
        "raters": [rater.rater for rater in raters],
        "questions": [count_question(key, raters, question) for question in key.questions],
        "attention": {rater.rater: _attention(key, rater) for rater in raters if any(p.is_check for p in key.pairs)},
    }


def count_question(key: Key, raters: Sequence[Choices], question: str, seed: int = 0) -> dict[str, Any]:
    """The choices of one question, checks of attention left out.

    win_rate: of A over B, ties half, the mean over `pairs` (those with a vote) of the mean of a pair's raters.
    wilson, bootstrap: its 95 % intervals, by the formula with as many trials as pairs, and by resampling pairs.
    effect: Cohen's (1988, chapter 5) g, the share of A among the pairs of `sign_test` less a half; None where all are
    even. sign_test: two-sided p, of the pairs that more raters gave to `a` or to `b`; `even` ones are left out.
    chosen: votes for A, B and tie. ties: their share. left: the share of the left side in votes that are no ties.
    agreement: `agreement` of the raters. by_rater: votes, win rate, ties and left of each.
    Where nobody answered, `votes` is 0 and there is nothing else.
    """
    votes: dict[str, dict[int, Choice]] = {}  # by rater, and by number of the pair
    for rater in raters:
        made = {n: choice for n, choice in rater.made[question].items() if not key.pairs[n - 1].is_check}
        if made:
            votes[rater.rater] = made
    cast = [(n, choice) for made in votes.values() for n, choice in made.items()]
    if not cast:
        return {"question": question, "votes": 0}
    worth: dict[int, list[float]] = {}
    for n, choice in cast:
        worth.setdefault(n, []).append(WORTH[key.pairs[n - 1].chosen(choice)])
    means = [sum(values) / len(values) for _, values in sorted(worth.items())]
    rate = sum(means) / len(means)
    a, b = sum(mean > 0.5 for mean in means), sum(mean < 0.5 for mean in means)
    chosen = Counter(key.pairs[n - 1].chosen(choice) for n, choice in cast)
    return {
        "question": question,
        "pairs": len(means),
        "votes": len(cast),
        "win_rate": rate,
        "wilson": wilson(rate, len(means)),
        "bootstrap": bootstrap(means, seed),
        "sign_test": {"a": a, "b": b, "even": len(means) - a - b, "p": sign_test(a, b)},
        "effect": a / (a + b) - 0.5 if a + b else None,
        "chosen": {name: chosen[name] for name in WORTH},
        **_sides([choice for _, choice in cast]),
        "agreement": agreement([{n: key.pairs[n - 1].chosen(c) for n, c in made.items()} for made in votes.values()]),
        "by_rater": {
            name: {
                "votes": len(made),
                "win_rate": sum(WORTH[key.pairs[n - 1].chosen(choice)] for n, choice in made.items()) / len(made),
                **_sides(list(made.values())),
            }
            for name, made in votes.items()
        },
    }


def _sides(choices: Sequence[Choice]) -> dict[str, float | None]:
    decided = [choice for choice in choices if choice != "tie"]
    left = decided.count("left") / len(decided) if decided else None
    return {"ties": 1 - len(decided) / len(choices), "left": left}


def _attention(key: Key, rater: Choices) -> dict[str, dict[str, int]]:
    """Of the checks that the rater answered, by kind: how many, and how many as they should be."""
    kinds = {"same": {"answered": 0, "passed": 0}, "noise": {"answered": 0, "passed": 0}}
    for made in rater.made.values():
        for n, choice in made.items():
            pair = key.pairs[n - 1]
            if pair.is_check:
                kind = kinds["same" if pair.left == pair.right else "noise"]
                kind["answered"] += 1
                kind["passed"] += choice == pair.expected
    return kinds


# -------------------------------------------------------------------------------------------------------- statistics


def wilson(rate: float, trials: int) -> list[float]:
    """The 95 % score interval of a share (Wilson 1927), 0..1. With ties as halves it is wider than need be."""
    if trials < 1 or not 0 <= rate <= 1:
        raise ValueError(f"wilson wants a rate 0..1 of 1 or more trials, got {rate} of {trials}")
    scale = 1 + _Z**2 / trials
    centre = (rate + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * sqrt(rate * (1 - rate) / trials + _Z**2 / (4 * trials**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def bootstrap(means: Sequence[float], seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the mean (Efron 1979), from `RESAMPLES` resamples of the pairs."""
    rng, values = np.random.default_rng(seed), np.asarray(means)
    resampled = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    return np.quantile(resampled, [0.025, 0.975]).tolist()


def sign_test(a: int, b: int) -> float:
    """Two-sided p of a against b under an even chance, exact; 1 where both are 0."""
    tail = sum(comb(a + b, i) for i in range(min(a, b) + 1))
    return min(1.0, 2 * tail / 2 ** (a + b))


def agreement(raters: Sequence[dict[int, str]]) -> dict[str, Any] | None:
    """How far raters agree on A, B or tie beyond chance, over the pairs that all of them rated (None: no such pair, or
    one rater): `kappa` by Cohen (1960) of two raters, by Fleiss (1971) of more; `observed`, the share of equal choices
    between two raters. kappa is 0 at chance, 1 at most, and None where all choices are the same.
    """
    common = sorted(set.intersection(*map(set, raters))) if len(raters) > 1 else []
    if not common:
        return None
    shares = np.array([[[made[n] == name for name in WORTH] for n in common] for made in raters], dtype=float)
    m = len(raters)
    sums = shares.sum(0)  # [pairs, choices]
    observed = float(((sums**2).sum(1) - m).mean() / (m * (m - 1)))
    each = shares.mean(1)  # [raters, choices]
    chance = float((each[0] * each[1]).sum() if m == 2 else (each.mean(0) ** 2).sum())
    kappa = (observed - chance) / (1 - chance) if chance < 1 else None
    method = "Cohen" if m == 2 else "Fleiss"
    return {"method": method, "kappa": kappa, "observed": observed, "pairs": len(common), "raters": m}


# -------------------------------------------------------------------------------------------------------------- text


def table(result: dict[str, Any]) -> str:
    """The results of `count` as lines of text."""
    lines = [f"A: {result['a']}", f"B: {result['b']}", f"{len(result['raters'])} raters: {', '.join(result['raters'])}"]
    for question in result["questions"]:
        lines += ["", question["question"], *_question_lines(question)]
    if result["attention"]:
        lines += ["", "Checks of attention, answered as they should be"]
    for rater, kinds in result["attention"].items():
        said = [f"{name} {kind['passed']} of {kind['answered']}" for name, kind in kinds.items()]
        lines.append(f"  {rater}: {', '.join(said)}")
    return "\n".join(lines)


def _question_lines(q: dict[str, Any]) -> list[str]:
    if not q["votes"]:
        return ["  nobody answered"]
    chosen, sign, agreed = q["chosen"], q["sign_test"], q["agreement"]
    lines = [
        f"  A over B: {_percent(q['win_rate'])} of {counted(q['pairs'], 'pair')} (95 %: "
        f"{_range(q['wilson'])} by Wilson, "
        f"{_range(q['bootstrap'])} by resampling pairs)",
        f"  votes: {chosen['A']} A, {chosen['tie']} ties ({_percent(q['ties'])}), {chosen['B']} B; "
        f"left in {_percent(q['left'])} of those that are no ties",
        f"  sign test: {counted(sign['a'], 'pair')} A, {sign['b']} B, {sign['even']} even, p = {sign['p']:.3g}"
        + ("" if q["effect"] is None else f", effect (Cohen's g) {q['effect']:+.2f}"),
    ]
    if agreed is not None:
        kappa = "not defined, all choices are the same" if agreed["kappa"] is None else f"{agreed['kappa']:.2f}"
        lines.append(
            f"  agreement of {counted(agreed['raters'], 'rater')} on "
            f"{counted(agreed['pairs'], 'pair')}: {agreed['method']}'s kappa {kappa}, "
            f"{_percent(agreed['observed'])} equal"
        )
    if len(q["by_rater"]) > 1:
        lines += [
            f"  {name}: {_percent(one['win_rate'])} of {one['votes']}, ties {_percent(one['ties'])}, "
            f"left {_percent(one['left'])}"
            for name, one in q["by_rater"].items()
        ]
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _range(interval: list[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
