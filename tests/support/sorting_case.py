"""Blocks of samples, and their sorting into a table."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.combine.sorting import sort_block
from zemosaic_phase3.runtime.lanes import LANES


def block_of(n, seed=0, *, ties=True):
    """A block of n frames, of numbers on either side of 0, whose row in memory is longer than it."""
    cube = 30.0 * np.random.default_rng([n, seed]).standard_normal((n, 3 * LANES)).astype(np.float32)
    return np.round(cube) if ties else cube


def sorted_into(table, cube, p0=0, *, by_middle=False):
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    full, found = sort_block(cube, p0, table, by_middle, low, high)
    return (full, low, high) if found else (full, found)
