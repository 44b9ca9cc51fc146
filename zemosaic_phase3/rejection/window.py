"""What the rejection methods share: the window of ranks that is kept, its median and its deviation.

``t``: the sorted table, ``(rows, LANES) float32``; ``j``: a pixel of the block, a column of it.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Samples
from zemosaic_phase3.runtime.jit import inlined
from zemosaic_phase3.runtime.lanes import LANES


@inlined
def median_of(t: np.ndarray, j: int, first: int, last: int) -> float:
    """Median of the sorted samples of ranks first .. last - 1; the mean of the two middle ones when even."""
    k = last - first
    return 0.5 * (np.float64(t[first + (k - 1) // 2, j]) + np.float64(t[first + k // 2, j]))


@inlined
def deviation_of(s1: float, s2: float, k: int, free: int) -> float:
    """Return the deviation of k samples from their sums of d and d*d, divisor k - free; 0 where rounding went below."""
    ss = s2 - s1 * (s1 / k)
    return np.sqrt(ss / (k - free)) if ss > 0.0 else 0.0


@inlined
def window_deviation(sum1: np.ndarray, sum2: np.ndarray, j: int, first: int, last: int, free: int) -> float:
    """Return the deviation of ranks first .. last - 1 from prefix sums of d and d*d, divisor n - free."""
    return deviation_of(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], last - first, free)


@inlined
def skip_below(t: np.ndarray, j: int, first: int, last: int, limit: float) -> int:
    """First rank in first .. last whose sample is not below ``limit``."""
    while first < last and np.float64(t[first, j]) < limit:
        first += 1
    return first


@inlined
def skip_above(t: np.ndarray, j: int, first: int, last: int, limit: float) -> int:
    """One past the last rank in first .. last whose sample is not above ``limit``."""
    while last > first and np.float64(t[last - 1, j]) > limit:
        last -= 1
    return last


@inlined
def clipped(x: float, low: float, high: float) -> float:
    """Return ``x``, or the limit that it lies beyond."""
    return low if x < low else (high if x > high else x)


@inlined
def clipped_deviation(
    sum1: np.ndarray, sum2: np.ndarray, centre: np.ndarray, j: int, first: int, last: int, a: int, b: int, low: float,
    high: float, free: int,
) -> float:  # fmt: skip
    """Return the deviation of ranks first .. last - 1: those below a counting as ``low``, from b on as ``high``."""
    i0 = min(max(a, first), last)
    i1 = max(min(b, last), i0)
    n_low = i0 - first
    n_high = last - i1
    d_low = low - centre[j]
    d_high = high - centre[j]
    s1 = (sum1[i1, j] - sum1[i0, j]) + (n_low * d_low + n_high * d_high)
    s2 = (sum2[i1, j] - sum2[i0, j]) + (n_low * (d_low * d_low) + n_high * (d_high * d_high))
    return deviation_of(s1, s2, last - first, free)


@inlined
def with_equals(t: np.ndarray, j: int, n: int, first: int, last: int) -> tuple[int, int]:
    """Widen a range of ranks to all samples that equal one inside: equal samples share one fate."""
    if last > first:
        while first > 0 and t[first - 1, j] == t[first, j]:
            first -= 1
        while last < n and t[last, j] == t[last - 1, j]:
            last += 1
    return first, last


@inlined
def first_deviations(samples: Samples, s: np.ndarray) -> None:
    """Fill the deviation ``s (LANES,) float64`` of all samples, divisor n - 1; inf where there is nothing to judge.

    That is where a lane has fewer than 3 samples, or no deviation. The first step of judges that work in lockstep.
    """
    n_frames, first, last = samples.n_frames, samples.first, samples.last
    low1, high1, low2, high2 = samples.sum1[0], samples.sum1[n_frames], samples.sum2[0], samples.sum2[n_frames]
    for j in range(LANES):
        n = last[j] - first[j]
        k = np.float64(max(n, 3))
        s1 = high1[j] - low1[j]
        ss = (high2[j] - low2[j]) - s1 * (s1 / k)
        deviation = np.sqrt(max(ss, 0.0) / (k - 1.0))
        s[j] = deviation if n >= 3 and deviation > 0.0 else np.inf
