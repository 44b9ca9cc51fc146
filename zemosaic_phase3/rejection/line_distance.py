"""Distances from a line through a pixel's sorted samples: what both kinds of ``linear_fit_clip`` share.

A line is ``level + slope i`` with i the rank among all valid samples, and heights relative to the median. sigma = 2
mean(abs(residual)); reject ``residual >= k_high sigma`` or ``residual <= -k_low sigma``; fit again to the survivors,
until nothing falls or fewer than 5 are left. What lies beyond a rejected sample, seen from the middle, is rejected with
it; samples equal to one that is kept are kept. Source: PixInsight's linear fit clipping.

NOTE: Siril's sigma has no factor 2, and its line keeps the ranks of removed samples.

In lockstep ``scratch.numbers`` holds by lane: centre, level, slope, sum of the distances, smallest and largest residual
(rows 0 to 5). ``scratch.counters``: a list of the lanes at work, then how many samples of each lane are valid.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples, Scratch
from zemosaic_phase3.rejection.window import with_equals
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES

FEWEST: Final = 5  # samples through which a line is fitted; also in the table of methods
FEW: Final = 24  # lanes, below which the distances are added lane by lane


@inlined
def distance_from_line(
    t: np.ndarray, centre: float, j: int, first: int, last: int, level: float, slope: float
) -> float:
    """Sum of the distances of ranks first .. last - 1 from a line, in their order."""
    total = 0.0
    for i in range(first, last):
        total += abs((np.float64(t[i, j]) - centre) - (level + slope * i))
    return total


@inlined
def clip_by_line(
    t: np.ndarray, centre: float, j: int, first: int, last: int, level: float, slope: float, total: float,
    k_low: float, k_high: float, inner: int, inner_end: int, smallest: float, largest: float,
) -> tuple[int, int]:  # fmt: skip
    """Return the window left when the samples too far from a line fall, and what lies beyond them with them.

    ``total``: the sum of the distances of ranks first .. last - 1. The residuals of ranks ``inner .. inner_end - 1``
    are known to lie within ``smallest .. largest``; none are where ``inner >= inner_end``. The window stays as it is
    where nothing falls or all lies on the line.
    """
    sigma = 2.0 * total / (last - first)
    height = max(abs(np.float64(t[first, j])), abs(np.float64(t[last - 1, j])))
    if not sigma > 1e-12 * height:  # less is the rounding of a perfect fit
        return first, last
    above = k_high * sigma
    below = -k_low * sigma
    half = first + (last - first) // 2
    start = half
    stop = half
    if inner <= half and half <= inner_end and largest < above and smallest > below:
        start = max(inner, first)
        stop = min(inner_end, last)
    f = first
    for i in range(start - 1, first - 1, -1):
        r = (np.float64(t[i, j]) - centre) - (level + slope * i)
        if r >= above or r <= below:
            f = i + 1
            break
    g = last
    for i in range(stop, last):
        r = (np.float64(t[i, j]) - centre) - (level + slope * i)
        if r >= above or r <= below:
            g = i
            break
    return f, g


@inner_kernel
def _add_distances(flat: np.ndarray, start: int, stop: int, numbers: np.ndarray) -> None:
    """Add to every lane's total the distances of rows start .. stop - 1 from its line; note the extreme residuals."""
    centre, level, slope = numbers[0:LANES], numbers[LANES : 2 * LANES], numbers[2 * LANES : 3 * LANES]
    total, smallest, largest = (
        numbers[3 * LANES : 4 * LANES], numbers[4 * LANES : 5 * LANES], numbers[5 * LANES : 6 * LANES],
    )  # fmt: skip
    for j in range(LANES):
        smallest[j] = np.inf
        largest[j] = -np.inf
    for i in range(start, stop):
        x = flat[i * LANES : (i + 1) * LANES]
        rank = np.float64(i)
        for j in range(LANES):
            r = (np.float64(x[j]) - centre[j]) - (level[j] + slope[j] * rank)
            total[j] += abs(r)
            smallest[j] = r if r < smallest[j] else smallest[j]
            largest[j] = r if r > largest[j] else largest[j]


@inner_kernel
def _add_distances_inside(
    flat: np.ndarray, start: int, stop: int, first: np.ndarray, last: np.ndarray, numbers: np.ndarray
) -> None:
    """Add the distances of rows that are inside the windows ``first, last (LANES,) int64`` of some lanes only."""
    centre, level, slope, total = (
        numbers[0:LANES], numbers[LANES : 2 * LANES], numbers[2 * LANES : 3 * LANES], numbers[3 * LANES : 4 * LANES],
    )  # fmt: skip
    for i in range(start, stop):
        x = flat[i * LANES : (i + 1) * LANES]
        rank = np.float64(i)
        for j in range(LANES):
            r = (np.float64(x[j]) - centre[j]) - (level[j] + slope[j] * rank)
            total[j] += abs(r) if i >= first[j] and i < last[j] else 0.0


@inlined
def begin_lines(samples: Samples, scratch: Scratch) -> int:
    """Fill the list with the lanes that have enough samples; returns how many they are."""
    lane, n_valid, numbers = scratch.counters[0:LANES], scratch.counters[LANES : 2 * LANES], scratch.numbers
    n_lanes = 0
    for j in range(LANES):
        n_valid[j] = samples.last[j]
        numbers[j] = samples.centre[j]
        numbers[LANES + j] = 0.0
        numbers[2 * LANES + j] = 0.0
        if samples.last[j] - samples.first[j] >= FEWEST:
            lane[n_lanes] = j
            n_lanes += 1
    return n_lanes


@inner_kernel
def clip_by_lines(samples: Samples, limits: Limits, scratch: Scratch, n_lanes: int) -> int:
    """Narrow the windows of the listed lanes by the distances from their lines, whose level and slope are known.

    On the list, whose new length is returned, stay the lanes that lost samples and have enough left. The distances of
    many lanes are added in lockstep, those of few lane by lane.
    """
    t, n_frames, first, last = samples.table, samples.n_frames, samples.first, samples.last
    lane, numbers = scratch.counters[0:LANES], scratch.numbers
    centre, level, slope = numbers[0:LANES], numbers[LANES : 2 * LANES], numbers[2 * LANES : 3 * LANES]
    total, smallest, largest = (
        numbers[3 * LANES : 4 * LANES], numbers[4 * LANES : 5 * LANES], numbers[5 * LANES : 6 * LANES],
    )  # fmt: skip
    inner = n_frames // 8  # rows from here on are inside all windows: their residuals need no second look
    inner_end = n_frames - n_frames // 8
    if n_lanes >= FEW:
        flat = t.reshape(-1)
        for q in range(n_lanes):
            inner = max(inner, first[lane[q]])
            inner_end = min(inner_end, last[lane[q]])
        inner_end = max(inner, inner_end)
        for j in range(LANES):
            total[j] = 0.0
        _add_distances_inside(flat, 0, inner, first, last, numbers)
        _add_distances(flat, inner, inner_end, numbers)
        _add_distances_inside(flat, inner_end, n_frames, first, last, numbers)
    else:
        inner = n_frames
        for q in range(n_lanes):
            j = lane[q]
            total[j] = distance_from_line(t, centre[j], j, first[j], last[j], level[j], slope[j])
    n_left = 0
    for q in range(n_lanes):
        j = lane[q]
        f, g = clip_by_line(
            t, centre[j], j, first[j], last[j], level[j], slope[j], total[j], limits.low, limits.high,
            inner, inner_end, smallest[j], largest[j],
        )  # fmt: skip
        if f != first[j] or g != last[j]:
            first[j] = f
            last[j] = g
            lane[n_left] = j
            n_left += 1 if g - f >= FEWEST else 0
    return n_left


@inlined
def keep_equals(samples: Samples, scratch: Scratch) -> None:
    """Widen the windows of all lanes that were judged to samples that equal one inside."""
    n_valid, first, last = scratch.counters[LANES : 2 * LANES], samples.first, samples.last
    for j in range(LANES):
        if n_valid[j] >= FEWEST:
            first[j], last[j] = with_equals(samples.table, j, n_valid[j], first[j], last[j])
