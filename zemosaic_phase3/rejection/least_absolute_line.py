"""Rejection by distance from a line fitted to a pixel's sorted samples: ``linear_fit_clip``, both kinds of line.

sigma = 2 mean(abs(residual)); reject ``residual >= k_high sigma`` or ``residual <= -k_low sigma``; fit again to the
survivors, until nothing falls or fewer than 5 are left. Source: PixInsight's linear fit clipping.
NOTE: Siril's sigma has no factor 2, and its line keeps the ranks of removed samples. What lies beyond a rejected
sample, seen from the middle, is rejected with it; samples equal to one that is kept are kept.

What all rejections share, and in which order numbers are added, says :mod:`rejection.window`. Lines are ``level +
slope i`` with i the rank among all valid samples, and heights relative to the median.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.line_distance import fall_from_lines, keep_equals, list_of_five, slope_between
from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.vector import first_to_reach, lowest_one, ones, slopes_within, without_lowest


@inner_kernel
def _surely_below(slope):
    """Return a float32 below a slope, by more than float32 arithmetic of slopes rounds."""
    return np.float32(slope * 0.999999) - np.float32(1e-37)


@inner_kernel
def _surely_above(slope):
    """Return a float32 above a slope, by more than float32 arithmetic of slopes rounds."""
    return np.float32(slope * 1.000001) + np.float32(1e-37)


@inner_kernel
def _range_of_ones(start, first, last) -> int:
    """Return a word whose bits are 1 for the ranks first .. last - 1, bit 0 standing for rank ``start``."""
    low = int(min(max(first - start, 0), 64))
    high = int(min(max(last - start, 0), 64))
    return (-1 << low if low < 64 else 0) & ~(-1 << high if high < 64 else 0)


@inner_kernel
def _sum_of_places(word) -> int:
    """Sum of the places of the bits that are 1."""
    return (
        ones(word & (0x5555555555555555 << 1)) + 2 * ones(word & (0x3333333333333333 << 2))
        + 4 * ones(word & (0x0F0F0F0F0F0F0F0F << 4)) + 8 * ones(word & (0x00FF00FF00FF00FF << 8))
        + 16 * ones(word & (0x0000FFFF0000FFFF << 16)) + 32 * ones(word & (0x00000000FFFFFFFF << 32))
    )  # fmt: skip


@inner_kernel
def _balance(x, first, last, p, q):
    """Return S0, S1 and the number of samples on the line through samples p and q."""
    slope = slope_between(x, q, p)
    below, above = _surely_below(slope), _surely_above(slope)
    s0 = np.int64(0)
    s1 = np.int64(0)
    on_line = np.int64(2)
    for start in range(first // 64 * 64, last, 64):
        two = _range_of_ones(start, p, p + 1) | _range_of_ones(start, q, q + 1)
        inside = _range_of_ones(start, first, last) & ~two
        over = slopes_within(x, start, p, above, np.float32(np.inf)) & inside
        under = slopes_within(x, start, p, np.float32(-1.0), below) & inside
        rest = inside ^ over ^ under
        while rest != 0:
            i = start + lowest_one(rest)
            rest = without_lowest(rest)
            s = slope_between(x, i, p)
            if s == slope:
                on_line += 1
            else:
                sign = 1 if (s > slope) == (i > p) else -1
                s0 += sign
                s1 += sign * i
        before = _range_of_ones(start, 0, p)  # where a smaller slope is a larger sample
        swap = (over ^ under) & before
        over ^= swap
        under ^= swap
        many = ones(over) - ones(under)
        s0 += many
        s1 += start * many + (_sum_of_places(over) - _sum_of_places(under))
    return s0, s1, on_line


@inner_kernel
def _close_list(value, place, n, z) -> None:
    """Put 8 infinities of weight 0 behind n slopes."""
    for q in range(n, n + 8):
        value[q] = np.inf
        place[q] = z


@inner_kernel
def _look(x, first, last, z, low, high, words):
    """Fill ``words`` with the samples whose slopes from sample z lie within ``low .. high``, as float32 has it.

    Returns their number and their weight, the sum of the signs of i - z, and of these times the rank i.
    """
    n = np.int64(0)
    weight = np.int64(0)
    s0 = np.int64(0)
    s1 = np.int64(0)
    for k in range(first // 64, (last + 63) // 64):
        start = 64 * k
        word = slopes_within(x, start, z, low, high) & _range_of_ones(start, first, last)
        after = word & _range_of_ones(start, z + 1, last)
        before = word & _range_of_ones(start, first, z)
        words[k] = after | before
        n_after = ones(after)
        n_before = ones(before)
        more = n_after - n_before
        ranks = start * more + (_sum_of_places(after) - _sum_of_places(before))
        n += n_after + n_before
        s0 += more
        s1 += ranks
        weight += ranks - z * more
    return n, weight, s0, s1


@inner_kernel
def _list_slopes(x, first, last, z, edge, far, words, value, place):
    """Collect the slopes from sample z in ``(edge, far]`` or, where far is below edge, in ``[far, edge)``.

    ``words``: where they are, and others very near to the limits, perhaps. Fills ``value``, the slopes, negative if far
    is below edge, so that they grow away from it, and ``place``, their ranks, ascending. Returns how many they are,
    and their weight. Behind the last stand 8 infinities of weight 0.
    """
    side = 1.0 if far > edge else -1.0
    near = side * edge
    end = side * far
    n = np.int64(0)
    weight = np.int64(0)
    none = np.int64(0)
    for k in range(first // 64, (last + 63) // 64):
        word = int(words[k])
        while word != 0:
            i = 64 * k + lowest_one(word)
            word = without_lowest(word)
            s = side * slope_between(x, i, z)
            value[n] = s
            place[n] = i
            inside = near < s and s <= end
            n += 1 if inside else 0
            weight += abs(i - z) if inside else none
    _close_list(value, place, n, z)
    return n, weight


@inner_kernel
def _pass_all(place, n, z):
    """Return twice the sum of the signs of i - z over n ranks, and twice that of sign times rank."""
    c0 = np.int64(0)
    c1 = np.int64(0)
    for q in range(n):
        sign = 2 if place[q] > z else -2
        c0 += sign
        c1 += sign * place[q]
    return c0, c1


@inner_kernel
def _narrow(value, place, n, z, need):
    """Part n slopes at one of them, and keep the smaller, the equal or the larger ones: those that meet ``need``.

    Returns how many are kept, what they still have to meet, and :func:`_pass_all` of those below.
    """
    middle = value[n // 2]
    smaller = np.int64(0)
    equal = np.int64(0)
    none = np.int64(0)
    for q in range(n):
        weight = abs(place[q] - z)
        smaller += weight if value[q] < middle else none
        equal += weight if value[q] == middle else none
    part = 0
    if 2 * smaller < need:
        part = 1
        need -= 2 * smaller
        if 2 * equal < need:
            part = 2
            need -= 2 * equal
    c0 = np.int64(0)
    c1 = np.int64(0)
    n_left = np.int64(0)
    for q in range(n):
        s = value[q]
        i = place[q]
        its = 0 if s < middle else (1 if s == middle else 2)
        sign = 2 if i > z else -2
        c0 += sign if its < part else none
        c1 += sign * i if its < part else none
        value[n_left] = s
        place[n_left] = i
        n_left += 1 if its == part else 0
    _close_list(value, place, n_left, z)
    return n_left, need, c0, c1


@inner_kernel
def _turn(x, first, last, z, slope, far, need, words, value, place):
    """Turn a line about sample z from ``slope`` towards ``far`` until it has passed or met half of weight ``need``.

    Returns the first of the samples met, -1 if there is none; how many they are; and, of every sample passed, counted
    twice, and met, counted once, the sum of the signs of i - z, and of these signs times the rank i.
    """
    reach = far - slope
    up = reach > 0.0
    edge = slope
    c0 = np.int64(0)
    c1 = np.int64(0)
    for r in range(30):
        low = _surely_below(edge if up else far)
        high = _surely_above(far if up else edge)
        n, weight, d0, d1 = _look(x, first, last, z, low, high, words)
        if n > 12 and r < 10:  # few are wanted in the list, and enough
            part = np.float64(need) / np.float64(2 * weight)
            if part < 0.9:
                reach *= max(part, 0.1) * 1.1
                far = edge + reach
                continue
        n, weight = _list_slopes(x, first, last, z, edge, far, words, value, place)
        if 2 * weight >= need:
            while n > 8:
                n_left, need, d0, d1 = _narrow(value, place, n, z, need)
                c0 += d0
                c1 += d1
                if n_left == n:  # all are equal
                    d0, d1 = _pass_all(place, n, z)
                    return place[0], n, c0 + d0 // 2, c1 + d1 // 2
                n = n_left
            at, met, d0, d1 = first_to_reach(value, place, z, need)
            return place[at], met, c0 + d0, c1 + d1
        d0, d1 = _pass_all(place, n, z)
        need -= 2 * weight
        c0 += d0
        c1 += d1
        edge = far
        reach *= 2.0 if r < 15 else 1e6
        far = max(edge + reach, -1.0)
        if edge < 0.0:
            break
    return np.int64(-1), np.int64(0), c0, c1


@inner_kernel
def _least_held(x, first, last, p, slope, s0, s1, place):
    """Return the sample about which a line that passes through more than two is turned best, and what holds there.

    The sample, the pull about it, the weight that holds it, and the sums of sign(c - z) and of c sign(c - z) over the
    samples c on the line.
    """
    below, above = _surely_below(slope), _surely_above(slope)
    n = np.int64(0)
    total = np.int64(0)
    for start in range(first // 64 * 64, last, 64):
        word = slopes_within(x, start, p, below, above) & _range_of_ones(start, first, last)
        word |= _range_of_ones(start, p, p + 1)
        while word != 0:
            i = start + lowest_one(word)
            word = without_lowest(word)
            if i == p or slope_between(x, i, p) == slope:
                place[n] = i
                n += 1
                total += i
    best = p
    pull = np.int64(0)
    holds = np.int64(0)
    h0 = np.int64(0)
    h1 = np.int64(0)
    before = np.int64(0)
    for q in range(n):
        z = place[q]
        after = total - before - z
        c0 = n - 1 - 2 * q
        weight = after - before - z * c0
        if q == 0 or abs(s1 - z * s0) - weight > abs(pull) - holds:
            best = z
            pull = s1 - z * s0
            holds = weight
            h0 = c0
            h1 = after - before
        before += z
    return best, pull, holds, h0, h1


@inner_kernel
def _line_least_absolute(x, j, first, last, line, words, value, place) -> None:
    """Find the line of least absolute deviations of ranks first .. last - 1 of a column: ``line`` of lane j.

    It begins with what is known of the window's line, or else with the line through its ranks 0.1465 and 0.8535: the
    best one through a symmetric distribution whose density falls from its middle. While the line can be turned to
    advantage about a sample on it, it is turned about the one that is held least, the lower of equals.
    """
    p, q, s0, s1, on_line = line[j], line[96 + j], line[192 + j], line[288 + j], line[384 + j]
    if p < 0:
        part = (last - first - 1) * 150 // 1024
        p = first + part
        q = last - 1 - part
        s0, s1, on_line = _balance(x, first, last, p, q)
    for _ in range(100):
        slope = slope_between(x, q, p)
        z = p
        pull = s1 - p * s0
        holds = q - p
        h0 = np.int64(1)
        h1 = q
        if on_line > 2:
            z, pull, holds, h0, h1 = _least_held(x, first, last, p, slope, s0, s1, place)
        elif abs(s1 - q * s0) > abs(pull):
            z = q
            pull = s1 - q * s0
            h0 = np.int64(-1)
            h1 = -p
        if abs(pull) <= holds:
            break
        side = 1 if pull > 0 else -1
        need = abs(pull) - holds + (0 if pull > 0 else 1)
        # The first guess at how far to turn, from the density of slopes in Gaussian noise.
        k = last - first
        reach = (slope + 1e-30) * (0.4 * np.float64(need) / np.float64(k * k) + 0.5 / np.float64(k))
        at, met, c0, c1 = _turn(x, first, last, z, slope, slope + side * reach, need, words, value, place)
        if at < 0:
            break
        s0 -= side * (c0 + h0)
        s1 -= side * (c1 + h1)
        on_line = met + 1
        p = min(z, at)
        q = max(z, at)
    line[j] = p
    line[96 + j] = q
    line[192 + j] = s0
    line[288 + j] = s1
    line[384 + j] = on_line


@inner_kernel
def _leave_line(x, j, start, stop, line) -> None:
    """Take ranks start .. stop - 1, which left the window of lane j, out of what is known of its line."""
    p = line[j]
    q = line[96 + j]
    if start == stop or p < 0:
        return
    if start <= p < stop or start <= q < stop:
        line[j] = -1
        return
    slope = slope_between(x, q, p)
    for i in range(start, stop):
        s = slope_between(x, i, p)
        if s == slope:
            line[384 + j] -= 1
        else:
            sign = 1 if (s > slope) == (i > p) else -1
            line[192 + j] -= sign
            line[288 + j] -= sign * i


@inner_kernel
def _fill_columns(t, n_frames, columns) -> None:
    """Fill ``columns (LANES, 64 k) float32``: the samples of every lane side by side."""
    for j in range(96):
        for i in range(n_frames):
            columns[j, i] = t[i, j]


@inner_kernel
def windows_least_absolute(
    t, n_frames, centre, first, last, k_low, k_high, work, state, columns, words, value, place
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by their distances from the best lines.

    ``columns (LANES, 64 k) float32``, ``words (k,) int64``, ``value (n_frames + 8,) float64`` and ``place (n_frames +
    8,) int64`` are scratch.
    """
    level, slope = work[96:192], work[192:288]
    lane, n_valid, old_first, old_last, line = (
        state[0:96],
        state[96:192],
        state[192:288],
        state[288:384],
        state[384:864],
    )
    _fill_columns(t, n_frames, columns)
    n_lanes = list_of_five(centre, first, last, lane, n_valid, work)
    for j in range(96):
        line[j] = -1
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            x = columns[j]
            _line_least_absolute(x, j, first[j], last[j], line, words, value, place)
            p = line[j]
            slope[j] = slope_between(x, line[96 + j], p)
            level[j] = (np.float64(x[p]) - centre[j]) - slope[j] * np.float64(p)
            old_first[j] = first[j]
            old_last[j] = last[j]
        n_lanes = fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work)
        for q in range(n_lanes):
            j = lane[q]
            _leave_line(columns[j], j, old_first[j], first[j], line)
            _leave_line(columns[j], j, last[j], old_last[j], line)
    keep_equals(t, n_valid, first, last)
