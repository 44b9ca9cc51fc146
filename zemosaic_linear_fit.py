"""Rejection by distance from a line fitted to a pixel's sorted samples: ``linear_fit_clip``, both kinds of line.

sigma = 2 mean(abs(residual)); reject ``residual >= k_high sigma`` or ``residual <= -k_low sigma``; fit again to the
survivors, until nothing falls or fewer than 5 are left. Source: PixInsight's linear fit clipping.
NOTE: Siril's sigma has no factor 2, and its line keeps the ranks of removed samples. What lies beyond a rejected
sample, seen from the middle, is rejected with it; samples equal to one that is kept are kept.

What all rejections share, and in which order numbers are added, says :mod:`zemosaic_rejection`. Lines are ``level +
slope i`` with i the rank among all valid samples, and heights relative to the median.
"""

from __future__ import annotations

import numpy as np

from zemosaic_kernels import inner_kernel
from zemosaic_rejection import _with_equals
from zemosaic_simd import first_to_reach, lowest_one, ones, slopes_within, without_lowest

# --------------------------------------------------------------------------- who falls


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
def _fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work) -> int:
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
def _list_of_five(centre, first, last, lane, n_valid, work) -> int:
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
def _keep_equals(t, n_valid, first, last) -> None:
    """Widen the windows of all lanes that were judged to samples that equal one inside."""
    for j in range(96):
        if n_valid[j] >= 5:
            first[j], last[j] = _with_equals(t, j, n_valid[j], first[j], last[j])


# --------------------------------------------------------------------------- lines of least squares


@inner_kernel
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


@inner_kernel
def _windows_least_squares(t, n_frames, sum1, sum3, centre, first, last, k_low, k_high, work, state) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by their distances from least-squares lines."""
    level, slope = work[96:192], work[192:288]
    lane, n_valid = state[0:96], state[96:192]
    n_lanes = _list_of_five(centre, first, last, lane, n_valid, work)
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            level[j], slope[j] = _line_least_squares(sum1, sum3, j, first[j], last[j])
        n_lanes = _fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work)
    _keep_equals(t, n_valid, first, last)


# --------------------------------------------------------------------------- lines of least absolute deviations
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
def _slope(x, i, k) -> float:
    """Slope from sample k to sample i of a column; sorted, so that none is negative."""
    return (np.float64(x[i]) - np.float64(x[k])) / np.float64(i - k)


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
    slope = _slope(x, q, p)
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
            s = _slope(x, i, p)
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
            s = side * _slope(x, i, z)
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
            if i == p or _slope(x, i, p) == slope:
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
        slope = _slope(x, q, p)
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
    slope = _slope(x, q, p)
    for i in range(start, stop):
        s = _slope(x, i, p)
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
def _windows_least_absolute(
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
    n_lanes = _list_of_five(centre, first, last, lane, n_valid, work)
    for j in range(96):
        line[j] = -1
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            x = columns[j]
            _line_least_absolute(x, j, first[j], last[j], line, words, value, place)
            p = line[j]
            slope[j] = _slope(x, line[96 + j], p)
            level[j] = (np.float64(x[p]) - centre[j]) - slope[j] * np.float64(p)
            old_first[j] = first[j]
            old_last[j] = last[j]
        n_lanes = _fall_from_lines(t, n_frames, first, last, lane, n_lanes, k_low, k_high, work)
        for q in range(n_lanes):
            j = lane[q]
            _leave_line(columns[j], j, old_first[j], first[j], line)
            _leave_line(columns[j], j, last[j], old_last[j], line)
    _keep_equals(t, n_valid, first, last)
