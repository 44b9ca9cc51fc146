"""Rejection by the generalized extreme Studentized deviate test (Rosner 1983)."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.window import deviation_of, with_equals
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def window_gesd(t, sum1, sum2, centre, j, n, fraction, critical):
    """Generalised extreme Studentised deviate test for up to ``floor(fraction n)`` outliers.

    Each step removes the sample farthest from the mean of the rest, R = its distance in units of std(n - 1); rejected
    is what was removed up to the last step with R above its critical value. At least 10 samples.
    Source: B. Rosner, "Percentage points for a generalized ESD many-outlier procedure", Technometrics 25 (1983) 165.
    NOTE: samples equal to one that is kept are kept.
    """
    first = 0
    last = n
    best_first = 0
    best_last = n
    for _ in range(int(np.floor(fraction * n + 1e-9))):
        k = last - first
        s1 = sum1[last, j] - sum1[first, j]
        s = deviation_of(s1, sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        mean = centre[j] + s1 / k
        low = mean - np.float64(t[first, j])
        high = np.float64(t[last - 1, j]) - mean
        if low >= high:
            first += 1
        else:
            last -= 1
        if max(low, high) / s > critical[k - 1]:
            best_first = first
            best_last = last
    return with_equals(t, j, n, best_first, best_last)
