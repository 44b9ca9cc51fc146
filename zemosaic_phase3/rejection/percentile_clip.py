"""Percentile clipping: fractions of the median."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.window import median_of
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def window_percentile_clip(t, j, n, p_low, p_high):
    """Reject in one pass ``(m - x) / m > p_low`` and ``(x - m) / m > p_high``, m the median; skipped when m = 0.

    At least 2 samples. Source: Siril's and PixInsight's percentile clipping. NOTE: with a negative median the fraction
    ``p_high`` bounds the samples below it, as the formula says.
    """
    m = median_of(t, j, 0, n)
    if m == 0.0:
        return 0, n
    below = p_low if m > 0.0 else p_high
    above = p_high if m > 0.0 else p_low
    size = abs(m)
    first = 0
    last = n
    while first < last and (m - np.float64(t[first, j])) / size > below:
        first += 1
    while last > first and (np.float64(t[last - 1, j]) - m) / size > above:
        last -= 1
    return first, last
