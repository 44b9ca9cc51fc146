"""``winsorized_sigma_clip`` with ``wsc_impl = pixinsight``: Huber's winsorising, as PixInsight and Siril have it.

Outer pass: m = median and s = std(n - 1) of the kept samples; inner passes: clip cumulatively to ``m -+ 1.5 s``, then
``s = 1.134 std(n - 1)`` of the clipped, at least twice, until s changes by at most 0.0005 of itself; reject ``x < m -
k_low s`` or ``x > m + k_high s``; repeat on the survivors until none falls or fewer than 3 are left. 1.134 undoes what
clipping a Gaussian at 1.5 sigma takes from its deviation. Source: P. J. Huber, E. M. Ronchetti, "Robust Statistics",
2nd ed. 2009; PixInsight reference documentation, ImageIntegration.

NOTE: Siril keeps at least 4 samples, in the order of the files; here 3 are enough to go on.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples, Scratch
from zemosaic_phase3.rejection.lockstep import count_outside, huber_round
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.rejection.window import (
    clipped_deviation,
    first_deviations,
    median_of,
    skip_above,
    skip_below,
    window_deviation,
)
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.runtime.vector import nearest_inside

PASSES: Final = 200  # inner ones at most; also a number of rejection.lockstep.huber_round
FEW: Final = 24  # lanes, below which each looks for its own ranks


@inlined
def judge(samples: Samples, limits: Limits, j: int) -> tuple[int, int]:
    """Return the ranks that pixel j keeps."""
    t, sum1, sum2 = samples.table, samples.sum1, samples.sum2
    first = 0
    last = samples.n_valid[j]
    while last - first >= 3:
        m = median_of(t, j, first, last)
        s = window_deviation(sum1, sum2, j, first, last, 1)
        if s == 0.0:
            break
        low = -np.inf
        high = np.inf
        a = first
        b = last
        for r in range(PASSES):
            low = max(low, m - 1.5 * s)
            high = min(high, m + 1.5 * s)
            a = skip_below(t, j, a, b, low)
            b = skip_above(t, j, a, b, high)
            before = s
            s = 1.134 * clipped_deviation(sum1, sum2, samples.centre, j, first, last, a, b, low, high, 1)
            if r > 0 and abs(s - before) <= 0.0005 * before:
                break
        f = skip_below(t, j, first, last, m - limits.low * s)
        g = skip_above(t, j, f, last, m + limits.high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


# In lockstep a list holds lanes in any of their passes: one that is done with the inner passes is judged at once and
# begins its next outer pass beside the others. ``scratch.counters``: the lanes of the list, then those that are done.
# ``scratch.numbers`` by place in the list: median, deviation, low and high limit, centre, passes done, and above 0 if
# there is a next one; by lane: the deviation found (row 7), the median (row 8).


@inlined
def _ranks_inside(samples: Samples, scratch: Scratch, n_lanes: int, stop: int) -> int:
    """Fill the ranks inside the limits of the listed lanes, ``scratch.ranks`` by lane; returns the depth.

    In the first 2 LANES stand the first rank not below the low and that behind the last not above the high limit, both
    within the window. The depth: no rank is farther from an end of the table. ``stop``: the largest last of a window at
    first. Lanes that are done keep their limits in the upper half of ``scratch.bounds``, which does no harm.
    """
    t, n_frames, first, last, lane = samples.table, samples.n_frames, samples.first, samples.last, scratch.counters
    ranks, bounds = scratch.ranks, scratch.bounds
    low, high = scratch.numbers[2 * LANES : 3 * LANES], scratch.numbers[3 * LANES : 4 * LANES]
    if n_lanes < FEW:
        depth = 0
        for q in range(n_lanes):
            j = lane[q]
            a = skip_below(t, j, np.int64(ranks[j]), np.int64(ranks[LANES + j]), low[q])
            b = skip_above(t, j, a, np.int64(ranks[LANES + j]), high[q])
            ranks[j] = a
            ranks[LANES + j] = b
            depth = max(depth, max(a, n_frames - b))
        return depth
    nearest_inside(low, high, bounds)
    for q in range(n_lanes):
        j = lane[q]
        bounds[2 * LANES + j] = bounds[q]
        bounds[3 * LANES + j] = bounds[LANES + q]
    below, above = count_outside(t, 0, stop, bounds[2 * LANES : 4 * LANES], ranks[2 * LANES : 4 * LANES])
    for j in range(LANES):
        f = np.int32(first[j])
        g = np.int32(last[j])
        a = min(max(f, ranks[2 * LANES + j]), g)
        ranks[j] = a
        ranks[LANES + j] = max(min(g, ranks[3 * LANES + j]), a)
    return max(below, n_frames - above)


@inlined
def _enter(q: int, j: int, m: float, s: float, samples: Samples, scratch: Scratch) -> None:
    """Put lane j, its median and its deviation into place q of the list."""
    numbers, ranks = scratch.numbers, scratch.ranks
    scratch.counters[q] = j
    numbers[q] = m
    numbers[LANES + q] = s
    numbers[2 * LANES + q] = m - 1.5 * s
    numbers[3 * LANES + q] = m + 1.5 * s
    numbers[4 * LANES + q] = samples.centre[j]
    numbers[5 * LANES + q] = 0.0
    ranks[j] = samples.first[j]
    ranks[LANES + j] = samples.last[j]


@inlined
def _split_settled(
    lane: np.ndarray, n_lanes: int, numbers: np.ndarray, deviation: np.ndarray, settled: np.ndarray
) -> tuple[int, int]:
    """Move the lanes that are done with their inner passes from the list to another, ``settled (LANES,) int64``.

    Fills their ``deviation (LANES,) float64``, and returns the lengths of both lists.
    """
    m, s, low = numbers[0:LANES], numbers[LANES : 2 * LANES], numbers[2 * LANES : 3 * LANES]
    high, c, passes = numbers[3 * LANES : 4 * LANES], numbers[4 * LANES : 5 * LANES], numbers[5 * LANES : 6 * LANES]
    goes_on = numbers[6 * LANES : 7 * LANES]
    n_left = 0
    n_settled = 0
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
        passes[n_left] = passes[q]
        left = 1 if goes_on[q] > 0.0 else 0
        n_left += left
        n_settled += 1 - left
    return n_left, n_settled


@inner_kernel
def judge_block(samples: Samples, limits: Limits, scratch: Scratch, filled: int) -> None:
    """Do the same for all lanes."""
    t, n_frames, sum1, sum2, centre = samples.table, samples.n_frames, samples.sum1, samples.sum2, samples.centre
    first, last, numbers = samples.first, samples.last, scratch.numbers
    deviation, median = numbers[7 * LANES : 8 * LANES], numbers[8 * LANES : 9 * LANES]
    lane, settled = scratch.counters[0:LANES], scratch.counters[LANES : 2 * LANES]
    first_deviations(samples, deviation)
    n_lanes = 0
    stop = 0
    for j in range(LANES):
        stop = max(stop, last[j])
        median[j] = centre[j]
        if deviation[j] < np.inf:
            _enter(n_lanes, j, centre[j], deviation[j], samples, scratch)
            n_lanes += 1
    while n_lanes > 0:
        if _ranks_inside(samples, scratch, n_lanes, stop) > filled:
            prefix_sums(t, n_frames, centre, sum1, sum2, n_frames)
            filled = n_frames
        if not huber_round(lane, n_lanes, scratch.ranks, first, last, sum1, sum2, numbers):
            continue
        n_lanes, n_settled = _split_settled(lane, n_lanes, numbers, deviation, settled)
        for q in range(n_settled):
            j = settled[q]
            f = skip_below(t, j, first[j], last[j], median[j] - limits.low * deviation[j])
            g = skip_above(t, j, f, last[j], median[j] + limits.high * deviation[j])
            if f == first[j] and g == last[j]:
                continue
            first[j] = f
            last[j] = g
            if g - f < 3:
                continue
            if max(f, n_frames - g) > filled:
                prefix_sums(t, n_frames, centre, sum1, sum2, n_frames)
                filled = n_frames
            s = window_deviation(sum1, sum2, j, f, g, 1)
            if s > 0.0:
                median[j] = median_of(t, j, f, g)
                _enter(n_lanes, j, median[j], s, samples, scratch)
                n_lanes += 1
