"""``mad_clip``, clipping about the median by the median absolute deviation until nothing changes.

Reject ``x < m - k_low s`` or ``x > m + k_high s``, m = median of what is kept and s = median of ``abs(x - m)``; repeat
until nothing falls, s is zero or fewer than 3 samples are left. Source: Siril's ``rej a``, whose s is not scaled
either: of Gaussian noise one sigma is 1.4826 s.

NOTE: Siril 1.0.6 agrees to rounding with limits of 12; with limits of 3 it keeps other samples in a quarter of the
pixels, which its documentation does not explain.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import median_of, skip_above, skip_below
from zemosaic_phase3.runtime.jit import inlined, inner_kernel


@inlined
def _distance(t: np.ndarray, j: int, first: int, last: int, m: float) -> float:
    """Return how far from m the farther end of ranks first .. last - 1 lies."""
    return max(m - np.float64(t[first, j]), np.float64(t[last - 1, j]) - m)


@inner_kernel
def _median_distance(t: np.ndarray, j: int, first: int, last: int, m: float) -> float:
    """Return the median of ``abs(x - m)`` of ranks first .. last - 1, m their median.

    The nearest samples, one more than half of all, lie side by side; the search halves where they can start.
    """
    n = last - first
    nearest = n // 2 + 1
    a, b = first, last - nearest
    while a < b:
        middle = (a + b) // 2
        if m - np.float64(t[middle, j]) > np.float64(t[middle + nearest, j]) - m:
            a = middle + 1
        else:
            b = middle
    end = a + nearest
    far = _distance(t, j, a, end, m)
    if n % 2 == 1:
        return far
    if m - np.float64(t[a, j]) == far:
        a += 1
    else:
        end -= 1
    return 0.5 * (_distance(t, j, a, end, m) + far)


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t = samples.table
    first = 0
    last = samples.n_valid[j]
    while last - first >= 3:
        m = median_of(t, j, first, last)
        s = _median_distance(t, j, first, last, m)
        f = skip_below(t, j, first, last, m - limits.low * s)
        g = skip_above(t, j, f, last, m + limits.high * s)
        if s == 0.0 or (f == first and g == last):
            break
        first = f
        last = g
    return first, last
