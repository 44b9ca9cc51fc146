"""Tests of ``engine.gpu_copy``."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.engine.gpu_copy import copy_pieces


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 1000])
@pytest.mark.parametrize("shift", [0, 1, 63])
def test_copies_touch_nothing_else(size, shift):
    source = np.random.default_rng(size).integers(1, 255, size + 3, dtype=np.uint8)
    target = np.zeros(size + 256, np.uint8)
    place = np.array([target.ctypes.data + 64 + shift], np.uint64)
    counters = np.array([0, 1, 0])
    one = np.zeros(1, np.int64)
    left = copy_pieces(
        np.array([source.ctypes.data + 3], np.uint64), place, np.array([size], np.uint64), one, counters, -1, 10
    )
    assert left == -1
    assert counters.tolist()[2] == 1
    np.testing.assert_array_equal(target[64 + shift : 64 + shift + size], source[3:])
    assert target.sum() == source[3:].sum(dtype=np.int64)


def test_a_taken_buffer_is_waited_for_and_given_back():
    source, target = np.ones(10, np.uint8), np.zeros(10, np.uint8)
    places = [np.array([a.ctypes.data], np.uint64) for a in (source, target)]
    counters = np.array([0, 0, 0])
    pieces = (*places, np.array([10], np.uint64), np.zeros(1, np.int64), counters)
    assert copy_pieces(*pieces, -1, 50) == 0, "the piece it had taken"
    assert not target.any()
    counters[1] = 1
    assert copy_pieces(*pieces, 0, 50) == -1
    assert target.all()
