"""What is counted from the choices of raters, and the statistics, against other implementations."""

import random

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from latentvid.errors import UserError
from latentvid.evaluation.preference.counting import agreement, bootstrap, count, sign_test, table, wilson
from latentvid.evaluation.preference.key import Choices, Key, Pair


def key_of(*pairs: Pair) -> Key:
    return Key("a", "b", 0, ("Better?",), "", pairs)


def voted(key: Key, *raters: str) -> list[Choices]:
    """Raters who choose, pair by pair, "l", "t" or "r" ("-": nothing)."""
    words = {"l": "left", "t": "tie", "r": "right"}
    made = [{n: words[c] for n, c in enumerate(letters, 1) if c != "-"} for letters in raters]
    return [Choices(f"rater {i}", {key.questions[0]: one}) for i, one in enumerate(made)]


def test_sides_ties_checks_and_raters_are_counted_as_they_are():
    noise, same = Pair("w", "noise", "A"), Pair("w", "B", "B")
    key = key_of(Pair("w", "A", "B"), Pair("x", "B", "A"), noise, Pair("y", "A", "B"), same, Pair("z", "B", "A"))
    result = count(key, voted(key, "lrrttl", "lllrtr", "l-----"))
    (q,) = result["questions"]
    # w: A A A; x: A B; y: tie B; z: B A
    assert q["pairs"] == 4 and q["votes"] == 9 and q["chosen"] == {"A": 5, "tie": 1, "B": 3}
    assert q["win_rate"] == pytest.approx((1 + 0.5 + 0.25 + 0.5) / 4)
    assert q["sign_test"] == {"a": 1, "b": 1, "even": 2, "p": 1.0}
    assert q["effect"] == 0.0 and "effect (Cohen's g) +0.00" in table(result)
    assert q["ties"] == pytest.approx(1 / 9) and q["left"] == 5 / 8
    assert q["wilson"] == wilson(q["win_rate"], 4)
    assert q["by_rater"]["rater 1"] == {"votes": 4, "win_rate": 0.5, "ties": 0, "left": 0.5}
    assert result["attention"]["rater 0"] == {
        "same": {"answered": 1, "passed": 1},
        "noise": {"answered": 1, "passed": 1},
    }
    assert result["attention"]["rater 1"]["noise"] == {"answered": 1, "passed": 0}
    assert result["attention"]["rater 2"]["same"] == {"answered": 0, "passed": 0}
    assert q["agreement"]["pairs"] == 1 and q["agreement"]["method"] == "Fleiss" and q["agreement"]["kappa"] is None


def test_a_question_that_nobody_answered_is_told():
    questions = ("Better?", "Sharper?")
    key = Key("a", "b", 0, questions, "", (Pair("w", "A", "B"), Pair("v", "A", "A")))
    result = count(key, [Choices("x", {"Better?": {1: "left"}, "Sharper?": {2: "tie"}})])  # a check is no answer
    assert result["questions"][1] == {"question": "Sharper?", "votes": 0} and result["questions"][0]["win_rate"] == 1.0
    said = table(result)
    assert "Sharper?\n  nobody answered" in said and "  A over B: 100.0 % of 1 pair " in said
    assert "  x: same 1 of 1, noise 0 of 0" in said
    with pytest.raises(UserError, match="the files hold no choices"):
        count(key, [Choices("x", {question: {} for question in questions})])


def test_intervals_and_tests_are_the_published_ones():
    for wins, losses in ((0, 0), (8, 2), (3, 9), (50, 50), (400, 700)):
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    for wins, trials in ((0, 5), (5, 5), (7, 12), (300, 1000)):
        expected = binomtest(wins, trials).proportion_ci(method="wilson")
        assert wilson(wins / trials, trials) == pytest.approx([expected.low, expected.high], abs=1e-12)
    means = [1.0] * 60 + [0.0] * 40
    assert bootstrap(means) == pytest.approx(wilson(0.6, 100), abs=0.01)
    assert bootstrap(means) == bootstrap(means)


def test_raters_who_agree_do_not_make_the_intervals_narrower():
    """Ten raters of one opinion are as good as one: pairs are resampled, not votes."""
    key = key_of(*[Pair(str(i), "A", "B") for i in range(20)])
    one, ten = (count(key, voted(key, *["l" * 13 + "r" * 7] * n))["questions"][0] for n in (1, 10))
    for name in ("win_rate", "wilson", "bootstrap", "sign_test"):
        assert one[name] == ten[name]


def test_agreement_is_cohens_and_fleiss_kappa():
    rng = random.Random(0)
    raters = [[rng.choice(["A", "A", "B", "tie"]) for _ in range(50)] for _ in range(3)]
    raters[1][:25] = raters[0][:25]
    tables = [dict(enumerate(rater)) for rater in raters]
    two = agreement(tables[:2])
    assert two["method"] == "Cohen" and two["kappa"] == pytest.approx(cohen_kappa_score(*raters[:2]))
    assert agreement(tables[:1]) is None and agreement([{1: "A"}, {2: "A"}]) is None
    # Fleiss 1971, by hand: 3 raters, counts of A, tie, B: (3,0,0), (2,1,0), (1,1,1), (0,0,3)
    votes = ["AAA", "AAt", "AtB", "BBB"]
    three = agreement([{n: {"t": "tie"}.get(v[r], v[r]) for n, v in enumerate(votes)} for r in range(3)])
    observed, chance = (1 + 1 / 3 + 0 + 1) / 4, (36 + 4 + 16) / 144
    assert three["observed"] == pytest.approx(observed)
    assert three["method"] == "Fleiss" and three["kappa"] == pytest.approx((observed - chance) / (1 - chance))
