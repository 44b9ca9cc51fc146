"""Rejection by sigma clipping: rounds about the median until nothing changes."""

from __future__ import annotations

from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.rejection.window import (
    deviation_of,
    first_statistics,
    judge_all,
    median_of,
    skip_above,
    skip_below,
)
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def _sigma_clip_round(t, sum1, sum2, j, first, last, k_low, k_high):
    """Return what one round of :func:`_window_sigma_clip` leaves of a window."""
    if last - first < 3:
        return first, last
    s = deviation_of(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], last - first, 1)
    if s == 0.0:
        return first, last
    m = median_of(t, j, first, last)
    f = skip_below(t, j, first, last, m - k_low * s)
    return f, skip_above(t, j, f, last, m + k_high * s)


@inner_kernel
def _window_sigma_clip(t, sum1, sum2, j, first, last, k_low, k_high):
    """Iterate: reject ``x < m - k_low s`` or ``x > m + k_high s``, m median, s = std(n - 1) of what is kept.

    Ends when nothing falls, the deviation is zero or fewer than 3 samples are left.
    Source: the textbook method, as Siril's ``rej s``. NOTE: Siril keeps at least 4 samples in file order.
    """
    while True:
        f, g = _sigma_clip_round(t, sum1, sum2, j, first, last, k_low, k_high)
        if f == first and g == last:
            return first, last
        first = f
        last = g


@inner_kernel
def windows_sigma_clip(
    t, n_frames, sum1, sum2, edge, centre, first, last, k_low, k_high, work, state, limits, ranks
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_sigma_clip`."""
    s, lane = work[192:288], state[0:96]
    first_statistics(n_frames, centre, sum1, sum2, first, last, s)
    n_lanes = judge_all(t, n_frames, first, last, centre, s, k_low, k_high, work, limits, ranks, state)
    for q in range(n_lanes):
        j = lane[q]
        f = first[j]
        g = last[j]
        while True:
            if max(f, n_frames - g) > edge:
                prefix_sums(t, n_frames, centre, sum1, sum2, n_frames)
                edge = n_frames
            a, b = _sigma_clip_round(t, sum1, sum2, j, f, g, k_low, k_high)
            if a == f and b == g:
                break
            f = a
            g = b
        first[j] = f
        last[j] = g
