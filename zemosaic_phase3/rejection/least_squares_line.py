"""``linear_fit_clip`` with ``line_fit = ols``: a line of least squares.

How samples are rejected by their distances from it is said in :mod:`rejection.line_distance`.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples, Scratch
from zemosaic_phase3.rejection.line_distance import (
    FEWEST,
    begin_lines,
    clip_by_line,
    clip_by_lines,
    distance_from_line,
    keep_equals,
)
from zemosaic_phase3.rejection.window import with_equals
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES


@inlined
def _line(sum1: np.ndarray, sum3: np.ndarray, j: int, first: int, last: int) -> tuple[float, float]:
    """Return level and slope of the least-squares line of ranks first .. last - 1.

    ``sum3``: prefix sums of ``i d``, i the rank, as ``sum1`` of d.
    """
    k = np.float64(last - first)
    middle = first + 0.5 * (k - 1.0)
    s1 = sum1[last, j] - sum1[first, j]
    s3 = sum3[last, j] - sum3[first, j]
    slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0)
    return s1 / k - slope * middle, slope


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, centre, n = samples.table, samples.centre[j], samples.n_valid[j]
    first = 0
    last = n
    while last - first >= FEWEST:
        level, slope = _line(samples.sum1, samples.sum2, j, first, last)
        total = distance_from_line(t, centre, j, first, last, level, slope)
        f, g = clip_by_line(
            t, centre, j, first, last, level, slope, total, limits.low, limits.high, n, 0, 0.0, 0.0
        )  # fmt: skip
        if f == first and g == last:
            break
        first = f
        last = g
    return with_equals(t, j, n, first, last)


@inner_kernel
def judge_block(samples: Samples, limits: Limits, scratch: Scratch, filled: int) -> None:
    """Do the same for all lanes."""
    level, slope = scratch.numbers[LANES : 2 * LANES], scratch.numbers[2 * LANES : 3 * LANES]
    lane = scratch.counters[0:LANES]
    n_lanes = begin_lines(samples, scratch)
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            level[j], slope[j] = _line(samples.sum1, samples.sum2, j, samples.first[j], samples.last[j])
        n_lanes = clip_by_lines(samples, limits, scratch, n_lanes)
    keep_equals(samples, scratch)
