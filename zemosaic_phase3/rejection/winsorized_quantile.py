"""``winsorized_sigma_clip`` with ``wsc_impl = legacy_quantile``, ZeMosaic's: limits by quantiles.

Clip the samples to their quantiles l and 1 - h (linear interpolation); m, s = median and population deviation of the
clipped samples after sigma-clipping them, 3 sigma about the median, at most 5 passes; reject originals outside ``m -
k_low s .. m + k_high s``. Zero deviation keeps all. A rejected sample is replaced by its clipped value
(``apply_rewinsor``), or left out. Source: the recorded behaviour of ZeMosaic's ``stack_winsorized_sigma_clip``.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples
from zemosaic_phase3.rejection.window import clipped, clipped_deviation, skip_above, skip_below
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES

PASSES: Final = 5


@inner_kernel
def _quantile(t: np.ndarray, j: int, n: int, fraction: float) -> float:
    """Linear-interpolated quantile of n sorted samples (Hyndman and Fan's type 7, NumPy's default)."""
    at = fraction * (n - 1)
    k = int(np.floor(at))
    if k >= n - 1:
        return np.float64(t[n - 1, j])
    low = np.float64(t[k, j])
    return low + (at - k) * (np.float64(t[k + 1, j]) - low)


@inner_kernel
def _clipped_sample(t: np.ndarray, j: int, i: int, low: float, high: float) -> float:
    return clipped(np.float64(t[i, j]), low, high)


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps; the values its samples are clipped to go into ``samples.clip``."""
    t, n = samples.table, samples.n_valid[j]
    low = _quantile(t, j, n, limits.winsor_low)
    high = _quantile(t, j, n, 1.0 - limits.winsor_high)
    samples.clip[j] = low
    samples.clip[LANES + j] = high
    a = skip_below(t, j, 0, n, low)
    b = skip_above(t, j, a, n, high)
    first = 0
    last = n
    m = 0.0
    s = 0.0
    for r in range(PASSES + 1):
        k = last - first
        s = clipped_deviation(samples.sum1, samples.sum2, samples.centre, j, first, last, a, b, low, high, 0)
        m = 0.5 * (
            _clipped_sample(t, j, first + (k - 1) // 2, low, high) + _clipped_sample(t, j, first + k // 2, low, high)
        )
        if r == PASSES:
            break
        f = first
        g = last
        while f < g and _clipped_sample(t, j, f, low, high) < m - 3.0 * s:
            f += 1
        while g > f and _clipped_sample(t, j, g - 1, low, high) > m + 3.0 * s:
            g -= 1
        if f == first and g == last:
            break
        first = f
        last = g
    if s == 0.0:
        return 0, n
    first = skip_below(t, j, 0, n, m - limits.low * s)
    return first, skip_above(t, j, first, n, m + limits.high * s)
