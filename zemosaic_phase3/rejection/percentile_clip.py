"""``percentile_clip``, limits that are fractions of the median.

Reject in one pass ``(m - x) / m > p_low`` and ``(x - m) / m > p_high``, m the median; skipped when m = 0. Source:
Siril's and PixInsight's percentile clipping.

NOTE: with a negative median the fraction ``p_high`` bounds the samples below it, as the formula says.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import median_of
from zemosaic_phase3.runtime.jit import inlined


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, n = samples.table, samples.n_valid[j]
    m = median_of(t, j, 0, n)
    if m == 0.0:
        return 0, n
    below = limits.low if m > 0.0 else limits.high
    above = limits.high if m > 0.0 else limits.low
    size = abs(m)
    first = 0
    last = n
    while first < last and (m - np.float64(t[first, j])) / size > below:
        first += 1
    while last > first and (np.float64(t[last - 1, j]) - m) / size > above:
        last -= 1
    return first, last
