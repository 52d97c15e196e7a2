"""Counts in messages."""

import numpy as np
import pytest

from latentvid.words import counted


@pytest.mark.parametrize(
    ("n", "noun", "said"),
    [
        (0, "frame", "0 frames"),
        (1, "frame", "1 frame"),
        (17, "frame", "17 frames"),
        (1_200, "frame", "1,200 frames"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (1.0, "frame", "1 frame"),
        (12.5, "frame", "12.5 frames"),
        (np.int64(12_345_678), "token", "12,345,678 tokens"),
        (np.int64(1), "token", "1 token"),
    ],
)
def test_one_is_singular(n, noun, said):
    assert counted(n, noun) == said
