"""Linear fit clipping by a line of least squares."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.line_distance import fall_from_lines, keep_equals, list_of_five
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def _line_least_squares(sum1, sum3, j, first, last):
    """Return level and slope of the least-squares line of ranks first .. last - 1.

    ``sum3``: running sums of ``i d``, as ``sum1`` of d.
    """
    k = np.float64(last - first)
    middle = first + 0.5 * (k - 1.0)
    s1 = sum1[last, j] - sum1[first, j]
    s3 = sum3[last, j] - sum3[first, j]
    slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0)
    return s1 / k - slope * middle, slope


@inner_kernel
def windows_least_squares(t, n_frames, sum1, sum3, centre, first, last, k_low, k_high, work, state) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by their distances from least-squares lines."""
    level, slope = work[96:192], work[192:288]
    lane, n_valid = state[0:96], state[96:192]
    n_lanes = list_of_five(centre, first, last, lane, n_valid, work)
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            level[j], slope[j] = _line_least_squares(sum1, sum3, j, first[j], last[j])
        n_lanes = fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work)
    keep_equals(t, n_valid, first, last)
