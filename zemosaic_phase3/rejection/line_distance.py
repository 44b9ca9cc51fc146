"""Linear fit clipping, first half: how far samples are from a line through the sorted samples."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.window import with_equals
from zemosaic_phase3.runtime.jit import inner_kernel


@inner_kernel
def _fall_from_line(t, centre, j, first, last, level, slope, total, k_low, k_high, calm, calm_end, smallest, largest):
    """Return the window left when the samples too far from a line fall, and what lies beyond them with them.

    ``total``: the sum of the distances of ranks first .. last - 1. The residuals of ranks ``calm .. calm_end - 1`` are
    known to lie within ``smallest .. largest``; none are where ``calm >= calm_end``. The window stays as it is where
    nothing falls or all lies on the line.
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
    if calm <= half and half <= calm_end and largest < above and smallest > below:
        start = max(calm, first)
        stop = min(calm_end, last)
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
def _distance_from_line(t, centre, j, first, last, level, slope) -> float:
    """Sum of the distances of ranks first .. last - 1 from a line, in their order."""
    total = 0.0
    for i in range(first, last):
        total += abs((np.float64(t[i, j]) - centre) - (level + slope * i))
    return total


@inner_kernel
def _distances_from_lines(flat, start, stop, work) -> None:
    """Add to every lane's total the distances of rows start .. stop - 1 from its line, and note the extreme residuals.

    In ``work``: centre, level, slope, total, smallest and largest residual.
    """
    centre, level, slope = work[0:96], work[96:192], work[192:288]
    total, smallest, largest = work[288:384], work[384:480], work[480:576]
    for j in range(96):
        smallest[j] = np.inf
        largest[j] = -np.inf
    for i in range(start, stop):
        x = flat[i * 96 : (i + 1) * 96]
        rank = np.float64(i)
        for j in range(96):
            r = (np.float64(x[j]) - centre[j]) - (level[j] + slope[j] * rank)
            total[j] += abs(r)
            smallest[j] = r if r < smallest[j] else smallest[j]
            largest[j] = r if r > largest[j] else largest[j]


@inner_kernel
def _distances_inside(flat, start, stop, first, last, work) -> None:
    """Add the distances of rows that are inside the windows ``first, last (LANES,) int64`` of some lanes only."""
    centre, level, slope, total = work[0:96], work[96:192], work[192:288], work[288:384]
    for i in range(start, stop):
        x = flat[i * 96 : (i + 1) * 96]
        rank = np.float64(i)
        for j in range(96):
            r = (np.float64(x[j]) - centre[j]) - (level[j] + slope[j] * rank)
            total[j] += abs(r) if i >= first[j] and i < last[j] else 0.0


@inner_kernel
def fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work) -> int:
    """Narrow the windows of the listed lanes by the distances from their lines; in ``work``: centre, level, slope.

    On the list, whose new length is returned, stay the lanes that lost samples and have 5 left. The distances of many
    lanes are added in lockstep, those of few lane by lane.
    """
    centre, level, slope = work[0:96], work[96:192], work[192:288]
    total, smallest, largest = work[288:384], work[384:480], work[480:576]
    calm = np.int64(n_frames // 8)  # rows from here on are inside all windows: their residuals need no second look
    calm_end = np.int64(n_frames - n_frames // 8)
    if n_lanes >= 24:
        flat = t.reshape(-1)
        for q in range(n_lanes):
            calm = max(calm, first[lane[q]])
            calm_end = min(calm_end, last[lane[q]])
        calm_end = max(calm, calm_end)
        for j in range(96):
            total[j] = 0.0
        _distances_inside(flat, 0, calm, first, last, work)
        _distances_from_lines(flat, calm, calm_end, work)
        _distances_inside(flat, calm_end, n_frames, first, last, work)
    else:
        calm = np.int64(n_frames)
        for q in range(n_lanes):
            j = lane[q]
            total[j] = _distance_from_line(t, centre[j], j, first[j], last[j], level[j], slope[j])
    n_left = np.int64(0)
    for q in range(n_lanes):
        j = lane[q]
        f, g = _fall_from_line(
            t, centre[j], j, first[j], last[j], level[j], slope[j], total[j], k_low, k_high,
            calm, calm_end, smallest[j], largest[j],
        )  # fmt: skip
        if f != first[j] or g != last[j]:
            first[j] = f
            last[j] = g
            lane[n_left] = j
            n_left += 1 if g - f >= 5 else 0
    return n_left


@inner_kernel
def list_of_five(centre, first, last, lane, n_valid, work) -> int:
    """Fill ``lane`` with the lanes that have at least 5 samples, all of which are valid; returns how many they are."""
    n_lanes = np.int64(0)
    for j in range(96):
        n_valid[j] = last[j]
        work[j] = centre[j]
        work[96 + j] = 0.0
        work[192 + j] = 0.0
        if last[j] - first[j] >= 5:
            lane[n_lanes] = j
            n_lanes += 1
    return n_lanes


@inner_kernel
def keep_equals(t, n_valid, first, last) -> None:
    """Widen the windows of all lanes that were judged to samples that equal one inside."""
    for j in range(96):
        if n_valid[j] >= 5:
            first[j], last[j] = with_equals(t, j, n_valid[j], first[j], last[j])


#
# A line of least absolute deviations passes through two samples at least. About one of them, z, it can be turned: each
# other sample i pulls by its weight abs(i - z) towards its own slope from z, so the best slope is a weighted median.
# A line is best of all if it cannot be turned to advantage about any sample on it, which is arithmetic of integers:
# with S0 the sum of the signs of all residuals and S1 that of rank times sign, the pull about z is S1 - z S0, and
# the samples on the line hold it with their weights, the sum of abs(c - z).
#
# A column holds the sorted samples of one pixel, ``x (64 k,) float32``. What is known of a lane's line lies in ``line
# (5 LANES,) int64``: the ranks p < q of two samples on it, S0, S1, and how many samples lie on it; p is -1 where
# nothing is known.
# Source: P. Bloomfield, W. Steiger, "Least absolute deviations: theory, applications, and algorithms", 1983.


@inner_kernel
def slope_between(x, i, k) -> float:
    """Slope from sample k to sample i of a column; sorted, so that none is negative."""
    return (np.float64(x[i]) - np.float64(x[k])) / np.float64(i - k)
