"""``gesd``, the generalised extreme Studentised deviate test for up to ``floor(fraction n)`` outliers.

Each step removes the sample farthest from the mean of the rest, R = its distance in units of std(n - 1); rejected is
what was removed up to the last step with R above its critical value. Source: B. Rosner, "Percentage points for a
generalized ESD many-outlier procedure", Technometrics 25 (1983) 165. The critical values are those of
:func:`combine.kernel_arguments.gesd_table`.

NOTE: samples equal to one that is kept are kept.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import deviation_of, with_equals
from zemosaic_phase3.runtime.jit import inlined


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, sum1, sum2, n = samples.table, samples.sum1, samples.sum2, samples.n_valid[j]
    first = 0
    last = n
    best_first = 0
    best_last = n
    for _ in range(int(np.floor(limits.gesd_fraction * n + 1e-9))):
        k = last - first
        s1 = sum1[last, j] - sum1[first, j]
        s = deviation_of(s1, sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        mean = samples.centre[j] + s1 / k
        low = mean - np.float64(t[first, j])
        high = np.float64(t[last - 1, j]) - mean
        if low >= high:
            first += 1
        else:
            last -= 1
        if max(low, high) / s > limits.critical[k - 1]:
            best_first = first
            best_last = last
    return with_equals(t, j, n, best_first, best_last)
