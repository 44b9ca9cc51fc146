"""What the rejection methods share: the kept window of the ranks, its median and deviation, and the loop over pixels."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.lockstep import count_outside
from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.vector import nearest_inside


@inner_kernel
def median_of(t, j, first, last) -> float:
    """Median of the sorted samples of ranks first .. last - 1; the mean of the two middle ones when even."""
    k = last - first
    return 0.5 * (np.float64(t[first + (k - 1) // 2, j]) + np.float64(t[first + k // 2, j]))


@inner_kernel
def deviation_of(s1, s2, k, free) -> float:
    """Return the deviation of k samples from their sums of d and d*d, divisor k - free; 0 where rounding went below."""
    ss = s2 - s1 * (s1 / k)
    return np.sqrt(ss / (k - free)) if ss > 0.0 else 0.0


@inner_kernel
def skip_below(t, j, first, last, limit) -> int:
    """First rank in first .. last whose sample is not below ``limit``."""
    while first < last and np.float64(t[first, j]) < limit:
        first += 1
    return first


@inner_kernel
def skip_above(t, j, first, last, limit) -> int:
    """One past the last rank in first .. last whose sample is not above ``limit``."""
    while last > first and np.float64(t[last - 1, j]) > limit:
        last -= 1
    return last


@inner_kernel
def with_equals(t, j, n, first, last):
    """Widen a range of ranks to all samples that equal one inside: equal samples share one fate."""
    if last > first:
        while first > 0 and t[first - 1, j] == t[first, j]:
            first -= 1
        while last < n and t[last, j] == t[last - 1, j]:
            last += 1
    return first, last


#
# The first round is that of all lanes: plain loops over neighbouring numbers and vector instructions. The lanes that go
# on stand in a list, ``lane (LANES,) int64``. Where all samples are valid the running sums are first filled near the
# ends only, ``edge`` rows of them, and to the middle when a window of the block reaches deeper.


@inner_kernel
def first_statistics(n_frames, centre, sum1, sum2, first, last, s) -> None:
    """Fill the deviation ``s (LANES,) float64`` of all samples, divisor n - 1; inf where there is nothing to judge.

    That is where a lane has fewer than 3 samples, or no deviation.
    """
    low1, high1, low2, high2 = sum1[0], sum1[n_frames], sum2[0], sum2[n_frames]
    for j in range(96):
        n = last[j] - first[j]
        k = np.float64(max(n, 3))
        s1 = high1[j] - low1[j]
        ss = (high2[j] - low2[j]) - s1 * (s1 / k)
        deviation = np.sqrt(max(ss, 0.0) / (k - 1.0))
        s[j] = deviation if n >= 3 and deviation > 0.0 else np.inf


@inner_kernel
def judge_all(t, stop, first, last, m, s, k_low, k_high, work, limits, ranks, state) -> int:
    """Narrow the windows of all lanes to ``m - k_low s .. m + k_high s``, m and s by lane; s = inf rejects nothing.

    ``stop``: the largest last. Fills the list, ``state[0:LANES]``, with the lanes that lost samples and have 3 left;
    returns how many they are. ``work (2 LANES,) float64``, ``limits (2 LANES,) float32``, ``ranks (2 LANES,) int32``
    and the rest of ``state (2 LANES,) int64`` are scratch.
    """
    low, high, lane, goes_on = work[0:96], work[96:192], state[0:96], state[96:192]
    for j in range(96):
        low[j] = m[j] - k_low * s[j]
        high[j] = m[j] + k_high * s[j]
    nearest_inside(low, high, limits)
    count_outside(t, 0, stop, limits, ranks)
    for j in range(96):
        f = min(max(first[j], np.int64(ranks[j])), last[j])
        g = max(min(last[j], np.int64(ranks[96 + j])), f)
        goes_on[j] = 1 if g - f >= 3 and g - f < last[j] - first[j] else 0
        first[j] = f
        last[j] = g
    n_lanes = np.int64(0)
    for j in range(96):
        lane[n_lanes] = j
        n_lanes += goes_on[j]
    return n_lanes
