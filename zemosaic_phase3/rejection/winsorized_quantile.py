"""Winsorized sigma clipping as ZeMosaic has it: limits by quantiles."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.window import deviation_of, skip_above, skip_below
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def _quantile(t, j, n, fraction) -> float:
    """Linear-interpolated quantile of n sorted samples (Hyndman and Fan's type 7, NumPy's default)."""
    at = fraction * (n - 1)
    k = int(np.floor(at))
    if k >= n - 1:
        return np.float64(t[n - 1, j])
    low = np.float64(t[k, j])
    return low + (at - k) * (np.float64(t[k + 1, j]) - low)


@inner_kernel
def clipped_sample(t, j, i, low, high) -> float:
    x = np.float64(t[i, j])
    return low if x < low else (high if x > high else x)


@inner_kernel
def clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, free) -> float:
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


@inner_kernel
def window_legacy_quantile(t, sum1, sum2, centre, j, n, k_low, k_high, low_fraction, high_fraction, clip):
    """ZeMosaic's winsorized sigma clip; writes the clip values into ``clip[j]`` and ``clip[LANES + j]``.

    Clip the samples to their quantiles l and 1 - h; m, s = median and population deviation of the clipped samples after
    sigma-clipping them (3 sigma about the median, at most 5 rounds); reject originals outside ``m - k_low s .. m +
    k_high s``. Source: the recorded behaviour of ZeMosaic's ``stack_winsorized_sigma_clip``. At least 3 samples.
    """
    low = _quantile(t, j, n, low_fraction)
    high = _quantile(t, j, n, 1.0 - high_fraction)
    clip[j] = low
    clip[96 + j] = high
    a = skip_below(t, j, 0, n, low)
    b = skip_above(t, j, a, n, high)
    first = 0
    last = n
    m = 0.0
    s = 0.0
    for r in range(6):
        k = last - first
        s = clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, 0)
        m = 0.5 * (
            clipped_sample(t, j, first + (k - 1) // 2, low, high) + clipped_sample(t, j, first + k // 2, low, high)
        )
        if r == 5:
            break
        f = first
        g = last
        while f < g and clipped_sample(t, j, f, low, high) < m - 3.0 * s:
            f += 1
        while g > f and clipped_sample(t, j, g - 1, low, high) > m + 3.0 * s:
            g -= 1
        if f == first and g == last:
            break
        first = f
        last = g
    if s == 0.0:
        return 0, n
    first = skip_below(t, j, 0, n, m - k_low * s)
    return first, skip_above(t, j, first, n, m + k_high * s)
