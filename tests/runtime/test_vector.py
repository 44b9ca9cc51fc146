"""Tests of ``runtime.vector``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.rejection import least_absolute_line
from zemosaic_phase3.runtime.vector import first_to_reach, lowest_one, ones, slopes_within, without_lowest


@pytest.mark.parametrize("start", [0, 64])
def test_words_mark_slopes_within_limits(start):
    x = np.sort(np.random.default_rng(1).normal(0.0, 30.0, 128).astype(np.float32))
    for own in (0, 17, 64, 100, 127):
        word = slopes_within(x, start, own, np.float32(0.7), np.float32(0.9))
        ranks = np.arange(start, start + 64)
        with np.errstate(invalid="ignore"):
            slope = (x[ranks] - x[own]).astype(float) / (ranks - own)
        expected = ((slope > 0.7) & (slope < 0.9)) | (ranks == own)
        marked = [bool(word >> k & 1) for k in range(64)]
        assert marked == expected.tolist()
        assert ones(word) == expected.sum()
        if word:
            assert lowest_one(word) == np.flatnonzero(expected)[0]
    assert slopes_within(x, start, 17, np.float32(-1.0), np.float32(np.inf)) & (2**64 - 1) in (
        2**64 - 1, 2**64 - 1 - (1 << 17),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=8), st.integers(1, 900))
def test_the_first_value_to_reach_a_weight(entries, need):
    own = 50
    entries = [(v, i) for v, i in sorted(entries, key=lambda e: e[1]) if i != own]
    value, place = np.full(8, np.inf), np.full(8, own, np.int64)
    for k, (v, i) in enumerate(entries):
        value[k], place[k] = v, i
    at, met, c0, c1 = first_to_reach(value, place, own, need)
    levels = sorted({v for v, _ in entries})
    reaching = [v for v in levels if 2 * sum(abs(i - own) for w, i in entries if w <= v) >= need]
    if not reaching:
        return
    terms = [(2 if v < reaching[0] else 1, 1 if i > own else -1, i) for v, i in entries if v <= reaching[0]]
    assert value[at] == reaching[0] and at == next(k for k, (v, _) in enumerate(entries) if v == reaching[0])
    assert met == sum(v == reaching[0] for v, _ in entries)
    assert (c0, c1) == (sum(m * s for m, s, _ in terms), sum(m * s * i for m, s, i in terms))


@pytest.mark.parametrize("word", [0, 1, 5, 0x123456789ABCDEF, -1, -(2**63), 2**63 - 1])
def test_bits_are_found_one_by_one_and_their_places_added_up(word):
    places = [k for k in range(64) if word >> k & 1]
    assert least_absolute_line.sum_of_places(word) == sum(places)
    assert ones(word) == len(places)
    found = []
    while word:
        found.append(lowest_one(word))
        word = without_lowest(word)
    assert found == places


@pytest.mark.parametrize("word", [1, 5, 0x123456789ABCDEF, -1, -2, -(2**63), 2**63 - 1])
def test_bits_are_found_in_numbers_of_python_too(word):
    places = [k for k in range(64) if word >> k & 1]
    assert ones.py_func(word) == len(places)
    for place in places:  # a search that takes no bit away would not end
        assert lowest_one.py_func(word) == place
        word = without_lowest.py_func(word)
    assert word == 0
