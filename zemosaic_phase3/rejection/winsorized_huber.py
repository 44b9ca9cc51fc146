"""Winsorized sigma clipping by Huber's rounds, as PixInsight and Siril have it."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.lockstep import count_outside, huber_round
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.rejection.window import deviation_of, first_statistics, median_of, skip_above, skip_below
from zemosaic_phase3.rejection.winsorized_quantile import clipped_deviation
from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.vector import nearest_inside


@inner_kernel
def _window_pixinsight(t, sum1, sum2, centre, j, first, last, k_low, k_high):
    """Winsorized sigma clipping with Huber's winsorisation, as PixInsight and Siril have it.

    Outer round: m = median and s = std(n - 1) of the kept samples; inner rounds: clip cumulatively to ``m -+ 1.5
    s``, then
    ``s = 1.134 std(n - 1)`` of the clipped, at least twice, until s changes by at most 0.0005 of itself; reject
    ``x < m - k_low s`` or ``x > m + k_high s``; repeat on the survivors until none falls or fewer than 3 are left.
    1.134 undoes what clipping a Gaussian at 1.5 sigma takes from its deviation.
    Source: P. J. Huber, E. M. Ronchetti, "Robust Statistics", 2nd ed. 2009; PixInsight reference documentation,
    ImageIntegration. NOTE: Siril keeps at least 4 samples in file order; here 3 are enough to go on.
    """
    while last - first >= 3:
        k = last - first
        m = median_of(t, j, first, last)
        s = deviation_of(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        low = -np.inf
        high = np.inf
        a = first
        b = last
        for r in range(200):
            low = max(low, m - 1.5 * s)
            high = min(high, m + 1.5 * s)
            a = skip_below(t, j, a, b, low)
            b = skip_above(t, j, a, b, high)
            before = s
            s = 1.134 * clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, 1)
            if r > 0 and abs(s - before) <= 0.0005 * before:
                break
        f = skip_below(t, j, first, last, m - k_low * s)
        g = skip_above(t, j, f, last, m + k_high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


@inner_kernel
def _ranks_inside(t, n_frames, stop, first, last, lane, n_lanes, work, limits, ranks) -> int:
    """Fill the ranks inside the limits of the listed lanes, ``ranks (4 LANES,) int32`` by lane; returns the depth.

    In the first 2 LANES stand the first rank not below the low and that behind the last not above the high limit, both
    within the window; the rest is scratch. The depth: no rank is farther from an end of the table.
    ``work[2 LANES:], float64``: low and high by place in the list; ``limits (4 LANES,) float32``: scratch that only
    this function writes. In its second half lanes that are done keep their limits, which does no harm.
    """
    low, high = work[192:288], work[288:384]
    if n_lanes < 24:
        depth = np.int64(0)
        for q in range(n_lanes):
            j = lane[q]
            a = skip_below(t, j, np.int64(ranks[j]), np.int64(ranks[96 + j]), low[q])
            b = skip_above(t, j, a, np.int64(ranks[96 + j]), high[q])
            ranks[j] = a
            ranks[96 + j] = b
            depth = max(depth, max(a, n_frames - b))
        return depth
    nearest_inside(low, high, limits)
    for q in range(n_lanes):
        j = lane[q]
        limits[192 + j] = limits[q]
        limits[288 + j] = limits[96 + q]
    below, above = count_outside(t, 0, stop, limits[192:384], ranks[192:384])
    for j in range(96):
        f = np.int32(first[j])
        g = np.int32(last[j])
        a = min(max(f, ranks[192 + j]), g)
        ranks[j] = a
        ranks[96 + j] = max(min(g, ranks[288 + j]), a)
    return max(below, n_frames - above)


@inner_kernel
def _enter(q, j, first, last, m, s, centre, lane, work, ranks) -> None:
    """Put lane j, its median and its deviation into place q of the list of :func:`_windows_pixinsight`."""
    lane[q] = j
    work[q] = m
    work[96 + q] = s
    work[192 + q] = m - 1.5 * s
    work[288 + q] = m + 1.5 * s
    work[384 + q] = centre[j]
    work[480 + q] = 0.0
    ranks[j] = first[j]
    ranks[96 + j] = last[j]


@inner_kernel
def _split_settled(lane, n_lanes, work, deviation, settled):
    """Move the lanes that are done with their inner rounds from the list to another, ``settled (LANES,) int64``.

    Fills their ``deviation (LANES,) float64``, and returns the lengths of both lists.
    """
    m, s, low, high = work[0:96], work[96:192], work[192:288], work[288:384]
    c, rounds, goes_on = work[384:480], work[480:576], work[576:672]
    n_left = np.int64(0)
    n_settled = np.int64(0)
    for q in range(n_lanes):
        j = lane[q]
        settled[n_settled] = j
        deviation[j] = s[q]
        lane[n_left] = j
        m[n_left] = m[q]
        s[n_left] = s[q]
        low[n_left] = low[q]
        high[n_left] = high[q]
        c[n_left] = c[q]
        rounds[n_left] = rounds[q]
        left = 1 if goes_on[q] > 0.0 else 0
        n_left += left
        n_settled += 1 - left
    return n_left, n_settled


@inner_kernel
def windows_pixinsight(
    t, n_frames, sum1, sum2, edge, centre, first, last, k_low, k_high, work, state, limits, ranks
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_pixinsight`.

    The list holds lanes in any of their rounds: a lane that is done with the inner rounds is judged at once and begins
    its next outer round beside the others.
    """
    deviation, median, lane, settled = work[672:768], work[768:864], state[0:96], state[96:192]
    first_statistics(n_frames, centre, sum1, sum2, first, last, deviation)
    n_lanes = np.int64(0)
    stop = np.int64(0)
    for j in range(96):
        stop = max(stop, last[j])
        median[j] = centre[j]
        if deviation[j] < np.inf:
            _enter(n_lanes, j, first, last, centre[j], deviation[j], centre, lane, work, ranks)
            n_lanes += 1
    while n_lanes > 0:
        if _ranks_inside(t, n_frames, stop, first, last, lane, n_lanes, work, limits, ranks) > edge:
            prefix_sums(t, n_frames, centre, sum1, sum2, n_frames)
            edge = n_frames
        if not huber_round(lane, n_lanes, ranks, first, last, sum1, sum2, work):
            continue
        n_lanes, n_settled = _split_settled(lane, n_lanes, work, deviation, settled)
        for q in range(n_settled):
            j = settled[q]
            f = skip_below(t, j, first[j], last[j], median[j] - k_low * deviation[j])
            g = skip_above(t, j, f, last[j], median[j] + k_high * deviation[j])
            if f == first[j] and g == last[j]:
                continue
            first[j] = f
            last[j] = g
            if g - f < 3:
                continue
            if max(f, n_frames - g) > edge:
                prefix_sums(t, n_frames, centre, sum1, sum2, n_frames)
                edge = n_frames
            s = deviation_of(sum1[g, j] - sum1[f, j], sum2[g, j] - sum2[f, j], g - f, 1)
            if s > 0.0:
                median[j] = median_of(t, j, f, g)
                _enter(n_lanes, j, first, last, median[j], s, centre, lane, work, ranks)
                n_lanes += 1


def compile_huber_rounds() -> None:
    """Compile :func:`_windows_pixinsight` by itself, for a block in which nothing is to be judged.

    It takes longest of what the kernel of winsorized clipping is made of, and is needed last: in a first run another
    process finds it in the cache, see :mod:`engine.warmup`.
    """
    table, sums, centre, work = np.zeros((1, 96), np.float32), np.zeros((2, 96)), np.zeros(96), np.zeros(12 * 96)
    first, last, state = np.zeros(96, np.int64), np.full(96, 3), np.zeros(4 * 96, np.int64)
    limits, ranks = np.zeros(4 * 96, np.float32), np.zeros(4 * 96, np.int32)
    one = np.int64(1)
    windows_pixinsight(table, one, sums, sums, one, centre, first, last, 3.0, 3.0, work, state, limits, ranks)
