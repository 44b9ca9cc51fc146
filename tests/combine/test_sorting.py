"""Tests of ``combine.sorting``."""

from __future__ import annotations

import numpy as np
import pytest
from sorting_case import block_of, sorted_into

from zemosaic_phase3.combine.sorting import BIG, new_table
from zemosaic_phase3.runtime.lanes import LANES


@pytest.mark.parametrize("n", [*range(1, 68), 127, 128, 129, 200, 257, 513, 1000, 2049])
@pytest.mark.parametrize("ties", [False, True])
def test_network_sorts(n, ties):
    cube = block_of(n, ties=ties)
    table = new_table(n)
    assert sorted_into(table, cube, LANES) == (True, False)
    expected = np.sort(cube[:, LANES : 2 * LANES] + np.float32(0), axis=0)
    assert table[:n].tobytes() == expected.tobytes()  # -0 has become 0
    assert (table[n:] == np.float32(BIG)).all()


@pytest.mark.parametrize("n", [33, 50, 63, 64, 65, 127, 128, 199, 200, 256, 257, 1000])
def test_middle_samples_are_found_without_sorting_to_the_end(n):
    cube = block_of(n)
    for p0 in (0, LANES):
        full, low, high = sorted_into(new_table(n), cube, p0, by_middle=True)
        assert full
        ordered = np.sort(cube[:, p0 : p0 + LANES], axis=0) + np.float32(0)
        assert low.tobytes() == ordered[(n - 1) // 2].tobytes()
        assert high.tobytes() == ordered[n // 2].tobytes()


@pytest.mark.parametrize("invalid", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, 20, 50, 200])
def test_what_is_not_valid_is_sorted_behind_the_rest(n, invalid):
    cube = block_of(n)
    cube[n // 2, 17] = cube[0, 95] = cube[n - 1, 40] = invalid
    expected = np.sort(np.where(np.isfinite(cube), cube + np.float32(0), np.float32(BIG))[:, :LANES], axis=0)
    for by_middle in (False, True):
        table = new_table(n)
        assert sorted_into(table, cube, by_middle=by_middle) == (False, False)
        assert table[:n].tobytes() == expected.tobytes()
