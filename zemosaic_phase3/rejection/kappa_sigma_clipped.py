"""``kappa_sigma`` about sigma-clipped statistics, which is what ZeMosaic's ``stack_aligned_images`` means by it.

Median and population deviation of what is left after at most 5 passes of clipping at the same limits; then keep
``m - k_low s <= x <= m + k_high s`` of all valid samples. Zero deviation keeps all. Source: the recorded behaviour of
``stack_aligned_images``.
"""

from __future__ import annotations

from typing import Final

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import median_of, skip_above, skip_below, window_deviation
from zemosaic_phase3.runtime.jit import inlined

PASSES: Final = 5


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, sum1, sum2, n = samples.table, samples.sum1, samples.sum2, samples.n_valid[j]
    first = 0
    last = n
    for _ in range(PASSES):
        s = window_deviation(sum1, sum2, j, first, last, 0)
        m = median_of(t, j, first, last)
        f = skip_below(t, j, first, last, m - limits.low * s)
        g = skip_above(t, j, f, last, m + limits.high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    s = window_deviation(sum1, sum2, j, first, last, 0)
    if s == 0.0:
        return 0, n
    m = median_of(t, j, first, last)
    first = skip_below(t, j, 0, n, m - limits.low * s)
    return first, skip_above(t, j, first, n, m + limits.high * s)
