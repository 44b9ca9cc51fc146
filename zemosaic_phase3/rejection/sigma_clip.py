"""``sigma_clip``, clipping about the median until nothing changes.

Reject ``x < m - k_low s`` or ``x > m + k_high s``, m = median and s = std(n - 1) of what is kept; repeat until nothing
falls, the deviation is zero or fewer than 3 samples are left. Source: the textbook method, as Siril's ``rej s``.

NOTE: Siril keeps at least 4 samples, in the order of the files.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples, Scratch
from zemosaic_phase3.rejection.lockstep import count_outside
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.rejection.window import (
    first_deviations,
    median_of,
    skip_above,
    skip_below,
    window_deviation,
)
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.runtime.vector import nearest_inside


@inner_kernel
def _clip_once(
    t: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, j: int, first: int, last: int, k_low: float, k_high: float
) -> tuple[int, int]:
    """Return what one pass leaves of a window."""
    if last - first < 3:
        return first, last
    s = window_deviation(sum1, sum2, j, first, last, 1)
    if s == 0.0:
        return first, last
    m = median_of(t, j, first, last)
    f = skip_below(t, j, first, last, m - k_low * s)
    return f, skip_above(t, j, f, last, m + k_high * s)


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    first = 0
    last = samples.n_valid[j]
    while True:
        f, g = _clip_once(samples.table, samples.sum1, samples.sum2, j, first, last, limits.low, limits.high)
        if f == first and g == last:
            return first, last
        first = f
        last = g


@inlined
def _clip_all(samples: Samples, m: np.ndarray, s: np.ndarray, k_low: float, k_high: float, scratch: Scratch) -> int:
    """Narrow the windows of all lanes to ``m - k_low s .. m + k_high s``, m and s by lane; s = inf rejects nothing.

    Fills the list, ``scratch.counters[0:LANES]``, with the lanes that lost samples and have 3 left; returns how many
    they are. ``m`` and ``s`` may not lie in the first two rows of ``scratch.numbers``.
    """
    low, high = scratch.numbers[0:LANES], scratch.numbers[LANES : 2 * LANES]
    lane, goes_on = scratch.counters[0:LANES], scratch.counters[LANES : 2 * LANES]
    first, last, ranks = samples.first, samples.last, scratch.ranks
    for j in range(LANES):
        low[j] = m[j] - k_low * s[j]
        high[j] = m[j] + k_high * s[j]
    nearest_inside(low, high, scratch.bounds)
    count_outside(samples.table, 0, samples.n_frames, scratch.bounds, ranks)
    for j in range(LANES):
        f = min(max(first[j], np.int64(ranks[j])), last[j])
        g = max(min(last[j], np.int64(ranks[LANES + j])), f)
        goes_on[j] = 1 if g - f >= 3 and g - f < last[j] - first[j] else 0
        first[j] = f
        last[j] = g
    n_lanes = 0
    for j in range(LANES):
        lane[n_lanes] = j
        n_lanes += goes_on[j]
    return n_lanes


@inner_kernel
def judge_block(samples: Samples, limits: Limits, scratch: Scratch, filled: int) -> None:
    """Do the same for all lanes: the first pass together, the others by lane."""
    t, n_frames, sum1, sum2 = samples.table, samples.n_frames, samples.sum1, samples.sum2
    first, last, k_low, k_high = samples.first, samples.last, limits.low, limits.high
    s, lane = scratch.numbers[2 * LANES : 3 * LANES], scratch.counters[0:LANES]
    first_deviations(samples, s)
    n_lanes = _clip_all(samples, samples.centre, s, k_low, k_high, scratch)
    for q in range(n_lanes):
        j = lane[q]
        f = first[j]
        g = last[j]
        while True:
            if max(f, n_frames - g) > filled:
                prefix_sums(t, n_frames, samples.centre, sum1, sum2, n_frames)
                filled = n_frames
            a, b = _clip_once(t, sum1, sum2, j, f, g, k_low, k_high)
            if a == f and b == g:
                break
            f = a
            g = b
        first[j] = f
        last[j] = g
