"""Filters: what they are true of, what they refuse, and what thresholds are in them."""

import math

import pytest

from latentvid.curation.columns import COLUMNS
from latentvid.curation.expressions import Bound, Filter
from latentvid.errors import UserError

ROW = {"motion": 1.5, "blur": 0.25, "codec": "h264", "seconds": 4, "static": None, "flicker": math.nan}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("motion > 0.2 and blur < 0.5", True),
        ("motion > 0.2 and blur > 0.5", False),
        ("1 <= motion < 1.5 or codec == 'h264'", True),
        ("1 <= motion < 1.5", False),
        ("codec in ('vp9', 'av1')", False),
        ("codec not in ['vp9', 'av1']", True),
        ("not blur > 0.5", True),
        ("motion * 2 - 1 == 2 and -blur < 0", True),
        ("seconds / blur >= 16", True),
        ("static < 0.5", False),  # unknown is not true,
        ("not static < 0.5", False),  # nor is its opposite
        ("flicker >= 0 or flicker < 0", False),
        ("static < 0.5 or motion > 1", True),
        ("not (static < 0.5 and motion < 1)", True),  # false whatever the unknown one is
        ("known(static) or motion > 1", True),
        ("known(static)", False),
        ("not known(flicker) or flicker < 1", True),
        ("motion / (seconds - 4) > 1", False),  # nothing is divided by 0
    ],
)
def test_a_filter_is_true_where_it_is_surely_so(text, true):
    assert Filter.of(text, COLUMNS)(ROW) is true


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("motion >", "is no expression"),
        ("moton > 1", "did you mean motion"),
        ("1 > 0", "names no column"),
        ("motion", "neither true nor false"),
        ("motion and blur > 1", "join comparisons"),
        ("codec > 1", "compare numbers with numbers"),
        ("'a' * 999999999 > codec", "no arithmetic of texts"),
        ("motion ** 2 > 1", "is not possible"),
        ("__import__('os').system('true') == motion", "is not possible"),
        ("motion.real > 1", "is not possible"),
        ("(lambda: motion)() > 1", "is not possible"),
        ("[x for x in (1,)] == motion", "is not possible"),
        ("codec in source", "write a list"),
        ("motion > 1 " + "and motion > 1 " * 200, "at most"),
        ("(" * 150 + "motion > 1" + ")" * 150 + " > 1" * 0, "motion"),
    ],
)
def test_what_is_no_filter_is_refused_before_any_row_is_seen(text, said):
    if said == "motion":  # deep brackets: an expression, or one line of error
        try:
            assert Filter.of(text, COLUMNS)(ROW)
        except UserError as error:
            assert "is no expression" in str(error)
        return
    with pytest.raises(UserError, match=said):
        Filter.of(text, COLUMNS)


def test_thresholds_are_the_plain_comparisons():
    found = Filter.of("motion > 0.2 and not 5 < seconds <= 20 and blur < static and -1 <= flicker", COLUMNS).bounds()
    assert sorted(found, key=lambda bound: (bound.column, bound.value)) == [
        Bound("flicker", ">=", -1.0),
        Bound("motion", ">", 0.2),
        Bound("seconds", ">", 5.0),
        Bound("seconds", "<=", 20.0),
    ]
