"""Rejection by distance from a line fitted to a pixel's sorted samples: ``linear_fit_clip``, both kinds of line.

What all rejections share, and in which order numbers are added, says :mod:`zemosaic_rejection`. Lines are ``level +
slope i`` with i the rank among all valid samples, and heights relative to the median.
"""

from __future__ import annotations

import numpy as np

from zemosaic_kernels import kernel
from zemosaic_rejection import _with_equals
from zemosaic_simd import census


@kernel
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


@kernel
def _distance_from_line(t, centre, j, first, last, level, slope) -> float:
    """Sum of the distances of ranks first .. last - 1 from a line, in their order."""
    total = 0.0
    for i in range(first, last):
        total += abs((np.float64(t[i, j]) - centre) - (level + slope * i))
    return total


@kernel
def _line_least_squares(sum1, sum3, j, first, last):
    """Return level and slope of the least-squares line of ranks first .. last - 1.

    ``sum3``: running sums of ``i d``, as ``sum1`` of d.
    """
    k = np.float64(last - first)
    middle = first + 0.5 * (k - 1.0)
    s1 = sum1[last, j] - sum1[first, j]
    s3 = sum3[last, j] - sum3[first, j]
    slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0)
    return s1 / k - slope * middle, slope


@kernel
def _window_linear_fit(t, sum1, sum3, centre, j, first, last, k_low, k_high, absolute, y, slopes, weights):
    """Reject by distance from a line fitted to the sorted samples, refitted on the survivors.

    sigma = 2 mean(abs(residual)); reject ``residual >= k_high sigma`` or ``residual <= -k_low sigma``; repeat until
    nothing falls or fewer than 5 are left. The line is that of least squares or, if ``absolute``, of least absolute
    deviations; then ``y (n_frames,) float64``, ``slopes (n_frames + 8,) float64`` and ``weights (n_frames + 8,) int64``
    are scratch.
    Source: PixInsight's linear fit clipping; W. H. Press et al., "Numerical Recipes", 15.7, for the line.
    NOTE: Siril's sigma has no factor 2, and its line keeps the ranks of removed samples. What lies beyond a rejected
    sample, seen from the middle, is rejected with it; samples equal to one that is kept are kept.
    """
    at = -1
    slope = 0.0
    if absolute:
        for i in range(first, last):
            y[i] = np.float64(t[i, j]) - centre
    while last - first >= 5:
        if absolute:
            if not first <= at < last:  # the first round, or the line's sample fell
                level, slope = _line_least_squares(sum1, sum3, j, first, last)
                at = _nearest_to_line(y, first, last, level, slope)
            level, slope, at = _line_least_absolute(y, first, last, at, slope, slopes, weights)
        else:
            level, slope = _line_least_squares(sum1, sum3, j, first, last)
        total = _distance_from_line(t, centre, j, first, last, level, slope)
        f, g = _fall_from_line(t, centre, j, first, last, level, slope, total, k_low, k_high, last, first, 0.0, 0.0)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


@kernel
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


@kernel
def _distances_inside(flat, start, stop, first, last, work) -> None:
    """Add the distances of rows that are inside the windows ``first, last (LANES,) int64`` of some lanes only."""
    centre, level, slope, total = work[0:96], work[96:192], work[192:288], work[288:384]
    for i in range(start, stop):
        x = flat[i * 96 : (i + 1) * 96]
        rank = np.float64(i)
        for j in range(96):
            r = (np.float64(x[j]) - centre[j]) - (level[j] + slope[j] * rank)
            total[j] += abs(r) if i >= first[j] and i < last[j] else 0.0


@kernel
def _windows_linear_fit(
    t, n_frames, sum1, sum3, centre, first, last, k_low, k_high, absolute, work, state, y, slopes, weights
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_linear_fit`.

    Rounds of least squares are done in lockstep while many lanes need them.
    """
    level, slope, total, smallest, largest = (
        work[96:192], work[192:288], work[288:384], work[384:480], work[480:576],
    )  # fmt: skip
    lane, n_valid = state[0:96], state[96:192]
    flat = t.reshape(-1)
    n_lanes = np.int64(0)
    for j in range(96):
        n_valid[j] = last[j]
        work[j] = centre[j]
        level[j] = 0.0
        slope[j] = 0.0
        if last[j] - first[j] >= 5:
            lane[n_lanes] = j
            n_lanes += 1
    while n_lanes >= 24 and not absolute:
        calm = np.int64(n_frames // 8)  # rows from here on are inside all windows: their residuals need no second look
        calm_end = np.int64(n_frames - n_frames // 8)
        for q in range(n_lanes):
            j = lane[q]
            level[j], slope[j] = _line_least_squares(sum1, sum3, j, first[j], last[j])
            calm = max(calm, first[j])
            calm_end = min(calm_end, last[j])
        calm_end = max(calm, calm_end)
        for j in range(96):
            total[j] = 0.0
        _distances_inside(flat, 0, calm, first, last, work)
        _distances_from_lines(flat, calm, calm_end, work)
        _distances_inside(flat, calm_end, n_frames, first, last, work)
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
        n_lanes = n_left
    for q in range(n_lanes):
        j = lane[q]
        first[j], last[j] = _window_linear_fit(
            t, sum1, sum3, centre[j], j, first[j], last[j], k_low, k_high, absolute, y, slopes, weights
        )
    for j in range(96):
        if n_valid[j] >= 5:
            first[j], last[j] = _with_equals(t, j, n_valid[j], first[j], last[j])


# --- the line of least absolute deviations


@kernel
def _nearest_to_line(y, first, last, level, slope) -> int:
    """Rank of the sample nearest to a line, the lowest of equals."""
    nearest = np.inf
    at = first
    for i in range(first, last):
        distance = abs(y[i] - (level + slope * i))
        if distance < nearest:
            nearest = distance
            at = i
    return at


@kernel
def _weight_of(slopes, weights, n, value) -> int:
    """Return the weight of the slopes that equal a value."""
    total = np.int64(0)
    none = np.int64(0)
    for i in range(n):
        total += weights[i] if slopes[i] == value else none
    return total


@kernel
def _place_of(slopes, n, value) -> int:
    """Return the first place of a value."""
    place = np.int64(n)
    for i in range(n):
        place = min(place, np.int64(i) if slopes[i] == value else np.int64(n))
    return place


@kernel
def _weighted_median(slopes, weights, n, whole, guess, step) -> float:
    """Return the smallest of n slopes at which half of the weight ``whole`` is reached; n is a multiple of 8.

    Every census of the weight below a bound is exact and also finds the two slopes next to the bound, so the search
    ends with the first bound that falls between the median and a neighbour of it, however it was chosen: here by
    interpolation between the two nearest bounds.
    """
    half = 0.5 * np.float64(whole)
    low = -1e308  # less than half of the weight lies below ``low``, at least half below ``high``
    high = 1e308
    w_low = np.int64(0)
    w_high = whole
    bound = guess
    for r in range(200):
        w, under, over = census(slopes, weights, n, bound)
        if 2 * w < whole:
            if 2 * (w + _weight_of(slopes, weights, n, over)) >= whole:
                return over
            low = over
            w_low = w
        else:
            if 2 * (w - _weight_of(slopes, weights, n, under)) < whole:
                return under
            high = under
            w_high = w
        if low < -1e307:
            bound = high - step
            step *= 4.0
        elif high > 1e307:
            bound = low + step
            step *= 4.0
        elif r % 4 == 3:
            bound = 0.5 * (low + high)
        else:
            part = (half - np.float64(w_low)) / np.float64(w_high - w_low)
            bound = low + (high - low) * min(max(part, 0.02), 0.98)
        if not low < bound <= high:
            bound = high
    return low


@kernel
def _line_least_absolute(y, first, last, at, slope, slopes, weights):
    """Return level, slope and a sample of the line of least absolute deviations of ranks first .. last - 1.

    Through sample ``at`` the best slope is a weighted median of the slopes to the others; the line then passes
    through a second sample, whose best line is sought next, until it leads back. ``slope``: where to begin.
    Source: P. Bloomfield, W. Steiger, "Least absolute deviations: theory, applications, and algorithms", 1983.
    """
    k = last - first
    heights = y[first:last]
    size = (k + 7) // 8 * 8
    for i in range(k, size):
        slopes[i] = 1e308
        weights[i] = 0
    came_from = -1
    for _ in range(50):
        own = at - first
        level = y[at]
        for i in range(k):
            weights[i] = abs(i - own)
            slopes[i] = (heights[i] - level) / np.float64(i - own)
        slopes[own] = 1e308  # of weight 0
        whole = (own * (own + 1) + (k - 1 - own) * (k - own)) // 2
        slope = _weighted_median(slopes, weights, size, whole, slope, 0.02 * abs(slope) + 1e-30)
        other = first + _place_of(slopes, k, slope)
        if other == came_from:
            break
        came_from = at
        at = other
    return y[at] - slope * at, slope, at
