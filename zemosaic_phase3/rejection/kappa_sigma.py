"""``kappa_sigma``, ZeMosaic's single pass.

Keep ``m - k_low s <= x <= m + k_high s``, m = median and s = population deviation of all valid samples; zero deviation
keeps all. The limits are rounded to float32, the type of the samples, before they are compared. Source: the recorded
behaviour of ZeMosaic's ``stack_kappa_sigma_clip``.

NOTE: one pass at 3 sigma cannot reject a single outlier for n <= 7: the outlier inflates the deviation itself.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import median_of, skip_above, skip_below, window_deviation
from zemosaic_phase3.runtime.jit import inlined


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, n = samples.table, samples.n_valid[j]
    s = window_deviation(samples.sum1, samples.sum2, j, 0, n, 0)
    if s == 0.0:
        return 0, n
    m = median_of(t, j, 0, n)
    first = skip_below(t, j, 0, n, np.float64(np.float32(m - limits.low * s)))
    return first, skip_above(t, j, first, n, np.float64(np.float32(m + limits.high * s)))
