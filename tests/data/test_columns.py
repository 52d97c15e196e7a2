"""Compact sequences hold what lists would."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.data.manifest.columns import Lookup, distinct_rows

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


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
