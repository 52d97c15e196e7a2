"""Compact sequences hold what lists would."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.manifest.columns import Lookup, Strings, distinct_rows

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)
texts = st.lists(st.text(st.characters(), max_size=5), max_size=12)  # lone surrogates too: undecodable file names


@quick
@given(texts, texts, st.data())
def test_strings_are_the_texts(left, right, data):
    both = Strings.joined([Strings(left), Strings(right)])
    for column in (both, pickle.loads(pickle.dumps(both))):
        assert list(column) == left + right and len(column) == len(left + right)
    assert [both[i] for i in range(-len(both), len(both))] == (left + right) * 2
    assert both[1:7:2] == (left + right)[1:7:2]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(both), max_size=len(both))), bool)
    kept = both.where(mask)
    kept.append("more")
    assert list(kept) == [text for text, keep in zip(both, mask, strict=True) if keep] + ["more"]
    with pytest.raises(IndexError):
        both[len(both)]


@quick
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2**31 - 1).map(lambda n: n // 2**29)), max_size=30))
def test_rows_are_looked_up_and_mapped_once(rows):
    for lookup in (distinct_rows(*np.array(rows, np.int32).reshape(-1, 2).T), Lookup.among(rows)):
        assert list(lookup) == rows and len(lookup.table) == len(set(rows))
        assert lookup.counts() == {row: rows.count(row) for row in rows}
        calls = []
        sums = lookup.map(lambda row, calls=calls: calls.append(row) or sum(row))
        assert sorted(calls) == sorted(set(rows))
        assert list(sums) == [sum(row) for row in rows] and len(sums.table) == len({sum(row) for row in rows})
        if rows:
            assert np.array_equal(lookup.array(), rows) and sums.array().tolist() == list(sums)
