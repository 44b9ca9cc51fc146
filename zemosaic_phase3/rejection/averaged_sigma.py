"""``averaged_sigma``, clipping at a deviation that grows with the square root of the level, as photon noise does.

``g = sqrt(sum((x - m)^2 / m) / (n - 1))`` once, from all valid samples and their median m; then with the median m of
what is kept reject ``x < m - k_low g sqrt(m)`` or ``x > m + k_high g sqrt(m)``; repeat until nothing falls. All samples
must be above 0, otherwise all are kept. Source: IRAF imcombine, ``reject = avsigclip``.

NOTE: imcombine averages g over the pixels of a line; here every pixel has its own.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import median_of, skip_above, skip_below
from zemosaic_phase3.runtime.jit import inlined


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, sum2, n = samples.table, samples.sum2, samples.n_valid[j]
    if not t[0, j] > 0.0:
        return 0, n
    m = median_of(t, j, 0, n)
    square = (sum2[n, j] - sum2[0, j]) / m / (n - 1)
    if not square > 0.0:
        return 0, n
    gain = np.sqrt(square)
    first = 0
    last = n
    while last - first >= 3:
        m = median_of(t, j, first, last)
        s = gain * np.sqrt(m)
        f = skip_below(t, j, first, last, m - limits.low * s)
        g = skip_above(t, j, f, last, m + limits.high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last
