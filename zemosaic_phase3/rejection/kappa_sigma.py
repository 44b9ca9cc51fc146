"""Rejection by kappa sigma: one pass about the mean, and about sigma-clipped statistics."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.window import deviation_of, median_of, skip_above, skip_below
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def window_kappa_sigma(t, sum1, sum2, j, n, k_low, k_high):
    """ZeMosaic's single pass: keep ``m - k_low s <= x <= m + k_high s``, m median, s population deviation of all valid.

    Source: the recorded behaviour of ZeMosaic's ``stack_kappa_sigma_clip``. At least 3 samples. Zero deviation keeps
    all.
    The limits are rounded to float32, the type of the samples, before they are compared, as in the recorded numbers.
    NOTE: one pass at 3 sigma cannot reject a single outlier for n <= 7: the outlier inflates the deviation itself.
    """
    s = deviation_of(sum1[n, j] - sum1[0, j], sum2[n, j] - sum2[0, j], n, 0)
    if s == 0.0:
        return 0, n
    m = median_of(t, j, 0, n)
    first = skip_below(t, j, 0, n, np.float64(np.float32(m - k_low * s)))
    return first, skip_above(t, j, first, n, np.float64(np.float32(m + k_high * s)))


@inner_kernel
def window_kappa_sigma_clipped(t, sum1, sum2, j, n, k_low, k_high):
    """Set the same limits about sigma-clipped statistics: median and population deviation after at most 5 rounds.

    What ZeMosaic's ``stack_aligned_images`` calls kappa_sigma.
    """
    first = 0
    last = n
    for _ in range(5):
        k = last - first
        s = deviation_of(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 0)
        m = median_of(t, j, first, last)
        a = skip_below(t, j, first, last, m - k_low * s)
        b = skip_above(t, j, a, last, m + k_high * s)
        if a == first and b == last:
            break
        first = a
        last = b
    k = last - first
    s = deviation_of(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 0)
    if s == 0.0:
        return 0, n
    m = median_of(t, j, first, last)
    first = skip_below(t, j, 0, n, m - k_low * s)
    return first, skip_above(t, j, first, n, m + k_high * s)
