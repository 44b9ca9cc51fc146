"""``linear_fit_clip`` with ``line_fit = lad``: a line of least absolute deviations.

How samples are rejected by their distances from it is said in :mod:`rejection.line_distance`.

Such a line passes through two samples at least. About one of them, the pivot z, it can be rotated: each other sample i
then pulls by its weight abs(i - z) towards its own slope from z, so the best slope is a weighted median. A line is best
of all if it cannot be rotated to advantage about any sample on it, which is arithmetic of integers: with S0 the sum of
the signs of all residuals and S1 that of rank times sign, the pull about z is S1 - z S0, and the samples c on the line
resist it with their weights, the sum of abs(c - z). Source: P. Bloomfield, W. Steiger, "Least absolute deviations:
theory, applications, and algorithms", 1983; the steps are those of ``docs/algorithms.md``.

There is no ``judge``: one needs memory for a column of samples side by side. A column, ``x (64 k,) float32``, holds the
sorted samples of one pixel. What is known of a lane's line lies in ``line (5 LANES,) int64``: the ranks p < q of two
samples on it, S0, S1, and how many samples lie on it; p is -1 where nothing is known.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.rejection.judge import Limits, Samples, Scratch
from zemosaic_phase3.rejection.line_distance import begin_lines, clip_by_lines, keep_equals
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.runtime.vector import first_to_reach, lowest_one, ones, slopes_within, without_lowest


@inner_kernel
def slope_between(x: np.ndarray, i: int, k: int) -> float:
    """Slope from sample k to sample i of a column; sorted, so that none is negative."""
    return (np.float64(x[i]) - np.float64(x[k])) / np.float64(i - k)


@inlined
def _surely_below(slope: float) -> np.float32:
    """Return a float32 below a slope, by more than float32 arithmetic of slopes rounds."""
    return np.float32(slope * 0.999999) - np.float32(1e-37)


@inlined
def _surely_above(slope: float) -> np.float32:
    """Return a float32 above a slope, by more than float32 arithmetic of slopes rounds."""
    return np.float32(slope * 1.000001) + np.float32(1e-37)


@inner_kernel
def range_of_ones(start: int, first: int, last: int) -> int:
    """Return a mask whose bits are 1 for the ranks first .. last - 1, bit 0 standing for rank ``start``."""
    low = int(min(max(first - start, 0), 64))
    high = int(min(max(last - start, 0), 64))
    return (-1 << low if low < 64 else 0) & ~(-1 << high if high < 64 else 0)


@inner_kernel
def sum_of_places(mask: int) -> int:
    """Sum of the places of the bits that are 1."""
    return (
        ones(mask & (0x5555555555555555 << 1)) + 2 * ones(mask & (0x3333333333333333 << 2))
        + 4 * ones(mask & (0x0F0F0F0F0F0F0F0F << 4)) + 8 * ones(mask & (0x00FF00FF00FF00FF << 8))
        + 16 * ones(mask & (0x0000FFFF0000FFFF << 16)) + 32 * ones(mask & (0x00000000FFFFFFFF << 32))
    )  # fmt: skip


@inner_kernel
def balance_of(x: np.ndarray, first: int, last: int, p: int, q: int) -> tuple[int, int, int]:
    """Return S0, S1 and the number of samples on the line through samples p and q."""
    slope = slope_between(x, q, p)
    below, above = _surely_below(slope), _surely_above(slope)
    s0 = 0
    s1 = 0
    on_line = 2
    for start in range(first // 64 * 64, last, 64):
        two = range_of_ones(start, p, p + 1) | range_of_ones(start, q, q + 1)
        inside = range_of_ones(start, first, last) & ~two
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
        before = range_of_ones(start, 0, p)  # where a smaller slope is a larger sample
        swap = (over ^ under) & before
        over ^= swap
        under ^= swap
        many = ones(over) - ones(under)
        s0 += many
        s1 += start * many + (sum_of_places(over) - sum_of_places(under))
    return s0, s1, on_line


@inlined
def _close_list(slopes: np.ndarray, places: np.ndarray, n: int, z: int) -> None:
    """Put 8 infinities of weight 0 behind n slopes."""
    for q in range(n, n + 8):
        slopes[q] = np.inf
        places[q] = z


@inner_kernel
def _mark_slopes(
    x: np.ndarray, first: int, last: int, z: int, low: float, high: float, masks: np.ndarray
) -> tuple[int, int, int, int]:
    """Fill ``masks`` with the samples whose slopes from sample z lie within ``low .. high``, as float32 has it.

    Returns their number and their weight, the sum of the signs of i - z, and of these times the rank i.
    """
    n = 0
    weight = 0
    s0 = 0
    s1 = 0
    for k in range(first // 64, (last + 63) // 64):
        start = 64 * k
        mask = slopes_within(x, start, z, low, high) & range_of_ones(start, first, last)
        after = mask & range_of_ones(start, z + 1, last)
        before = mask & range_of_ones(start, first, z)
        masks[k] = after | before
        n_after = ones(after)
        n_before = ones(before)
        more = n_after - n_before
        ranks = start * more + (sum_of_places(after) - sum_of_places(before))
        n += n_after + n_before
        s0 += more
        s1 += ranks
        weight += ranks - z * more
    return n, weight, s0, s1


@inner_kernel
def _list_slopes(
    x: np.ndarray,
    first: int,
    last: int,
    z: int,
    edge: float,
    far: float,
    masks: np.ndarray,
    slopes: np.ndarray,
    places: np.ndarray,
) -> tuple[int, int]:
    """Collect the slopes from sample z in ``(edge, far]`` or, where far is below edge, in ``[far, edge)``.

    ``masks``: where they are, and others very near to the limits, perhaps. Fills ``slopes``, negative if far is below
    edge, so that they grow away from it, and ``places``, their ranks, ascending. Returns how many they are, and their
    weight. Behind the last stand 8 infinities of weight 0.
    """
    side = 1.0 if far > edge else -1.0
    near = side * edge
    end = side * far
    n = 0
    weight = 0
    none = 0
    for k in range(first // 64, (last + 63) // 64):
        mask = int(masks[k])
        while mask != 0:
            i = 64 * k + lowest_one(mask)
            mask = without_lowest(mask)
            s = side * slope_between(x, i, z)
            slopes[n] = s
            places[n] = i
            inside = near < s and s <= end
            n += 1 if inside else 0
            weight += abs(i - z) if inside else none
    _close_list(slopes, places, n, z)
    return n, weight


@inner_kernel
def _pass_all(places: np.ndarray, n: int, z: int) -> tuple[int, int]:
    """Return twice the sum of the signs of i - z over n ranks, and twice that of sign times rank."""
    c0 = 0
    c1 = 0
    for q in range(n):
        sign = 2 if places[q] > z else -2
        c0 += sign
        c1 += sign * places[q]
    return c0, c1


@inner_kernel
def _narrow(slopes: np.ndarray, places: np.ndarray, n: int, z: int, need: int) -> tuple[int, int, int, int]:
    """Part n slopes at one of them, and keep the smaller, the equal or the larger ones: those that reach ``need``.

    Returns how many are kept, what they still have to reach, and :func:`_pass_all` of those below.
    """
    middle = slopes[n // 2]
    smaller = 0
    equal = 0
    none = 0
    for q in range(n):
        weight = abs(places[q] - z)
        smaller += weight if slopes[q] < middle else none
        equal += weight if slopes[q] == middle else none
    part = 0
    if 2 * smaller < need:
        part = 1
        need -= 2 * smaller
        if 2 * equal < need:
            part = 2
            need -= 2 * equal
    c0 = 0
    c1 = 0
    n_left = 0
    for q in range(n):
        s = slopes[q]
        i = places[q]
        its = 0 if s < middle else (1 if s == middle else 2)
        sign = 2 if i > z else -2
        c0 += sign if its < part else none
        c1 += sign * i if its < part else none
        slopes[n_left] = s
        places[n_left] = i
        n_left += 1 if its == part else 0
    _close_list(slopes, places, n_left, z)
    return n_left, need, c0, c1


@inner_kernel
def _rotate(
    x: np.ndarray,
    first: int,
    last: int,
    z: int,
    slope: float,
    far: float,
    need: int,
    masks: np.ndarray,
    slopes: np.ndarray,
    places: np.ndarray,
) -> tuple[int, int, int, int]:
    """Rotate a line about sample z from ``slope`` towards ``far`` until it has passed or met half of weight ``need``.

    Returns the first of the samples met, -1 if there is none; how many they are; and, of every sample passed, counted
    twice, and met, counted once, the sum of the signs of i - z, and of these signs times the rank i.
    """
    reach = far - slope
    up = reach > 0.0
    edge = slope
    c0 = 0
    c1 = 0
    for r in range(30):
        low = _surely_below(edge if up else far)
        high = _surely_above(far if up else edge)
        n, weight, d0, d1 = _mark_slopes(x, first, last, z, low, high, masks)
        if n > 12 and r < 10:  # few are wanted in the list, and enough
            part = np.float64(need) / np.float64(2 * weight)
            if part < 0.9:
                reach *= max(part, 0.1) * 1.1
                far = edge + reach
                continue
        n, weight = _list_slopes(x, first, last, z, edge, far, masks, slopes, places)
        if 2 * weight >= need:
            while n > 8:
                n_left, need, d0, d1 = _narrow(slopes, places, n, z, need)
                c0 += d0
                c1 += d1
                if n_left == n:  # all are equal
                    d0, d1 = _pass_all(places, n, z)
                    return places[0], n, c0 + d0 // 2, c1 + d1 // 2
                n = n_left
            at, met, d0, d1 = first_to_reach(slopes, places, z, need)
            return places[at], met, c0 + d0, c1 + d1
        d0, d1 = _pass_all(places, n, z)
        need -= 2 * weight
        c0 += d0
        c1 += d1
        edge = far
        reach *= 2.0 if r < 15 else 1e6
        far = max(edge + reach, -1.0)
        if edge < 0.0:
            break
    return -1, 0, c0, c1


@inner_kernel
def _best_pivot(
    x: np.ndarray, first: int, last: int, p: int, slope: float, s0: int, s1: int, places: np.ndarray
) -> tuple[int, int, int, int, int]:
    """Return the pivot of a line that passes through more than two samples: where the pull exceeds resistance most.

    The pivot z, the pull about it, the resistance, and the sums of sign(c - z) and of c sign(c - z) over the samples c
    on the line.
    """
    below, above = _surely_below(slope), _surely_above(slope)
    n = 0
    total = 0
    for start in range(first // 64 * 64, last, 64):
        mask = slopes_within(x, start, p, below, above) & range_of_ones(start, first, last)
        mask |= range_of_ones(start, p, p + 1)
        while mask != 0:
            i = start + lowest_one(mask)
            mask = without_lowest(mask)
            if i == p or slope_between(x, i, p) == slope:
                places[n] = i
                n += 1
                total += i
    best = p
    pull = 0
    resistance = 0
    h0 = 0
    h1 = 0
    before = 0
    for q in range(n):
        z = places[q]
        after = total - before - z
        c0 = n - 1 - 2 * q
        weight = after - before - z * c0
        if q == 0 or abs(s1 - z * s0) - weight > abs(pull) - resistance:
            best = z
            pull = s1 - z * s0
            resistance = weight
            h0 = c0
            h1 = after - before
        before += z
    return best, pull, resistance, h0, h1


@inner_kernel
def line_least_absolute(
    x: np.ndarray,
    j: int,
    first: int,
    last: int,
    line: np.ndarray,
    masks: np.ndarray,
    slopes: np.ndarray,
    places: np.ndarray,
) -> None:
    """Find the line of least absolute deviations of ranks first .. last - 1 of a column: ``line`` of lane j.

    It begins with what is known of the window's line, or else with the line through its ranks 0.1465 and 0.8535: the
    best one through a symmetric distribution whose density falls from its middle. While the line can be rotated
    to advantage about a sample on it, it is rotated about the one where the pull exceeds the resistance most, the lower
    of equals.
    """
    p, q, s0, s1, on_line = line[j], line[LANES + j], line[2 * LANES + j], line[3 * LANES + j], line[4 * LANES + j]
    if p < 0:
        part = (last - first - 1) * 150 // 1024
        p = first + part
        q = last - 1 - part
        s0, s1, on_line = balance_of(x, first, last, p, q)
    for _ in range(100):
        slope = slope_between(x, q, p)
        z = p
        pull = s1 - p * s0
        resistance = q - p
        h0 = 1
        h1 = q
        if on_line > 2:
            z, pull, resistance, h0, h1 = _best_pivot(x, first, last, p, slope, s0, s1, places)
        elif abs(s1 - q * s0) > abs(pull):
            z = q
            pull = s1 - q * s0
            h0 = -1
            h1 = -p
        if abs(pull) <= resistance:
            break
        side = 1 if pull > 0 else -1
        need = abs(pull) - resistance + (0 if pull > 0 else 1)
        # The first guess at how far to rotate, from the density of slopes in Gaussian noise.
        k = last - first
        reach = (slope + 1e-30) * (0.4 * np.float64(need) / np.float64(k * k) + 0.5 / np.float64(k))
        at, met, c0, c1 = _rotate(x, first, last, z, slope, slope + side * reach, need, masks, slopes, places)
        if at < 0:
            break
        s0 -= side * (c0 + h0)
        s1 -= side * (c1 + h1)
        on_line = met + 1
        p = min(z, at)
        q = max(z, at)
    line[j] = p
    line[LANES + j] = q
    line[2 * LANES + j] = s0
    line[3 * LANES + j] = s1
    line[4 * LANES + j] = on_line


@inner_kernel
def leave_line(x: np.ndarray, j: int, start: int, stop: int, line: np.ndarray) -> None:
    """Take ranks start .. stop - 1, which left the window of lane j, out of what is known of its line."""
    p = line[j]
    q = line[LANES + j]
    if start == stop or p < 0:
        return
    if start <= p < stop or start <= q < stop:
        line[j] = -1
        return
    slope = slope_between(x, q, p)
    for i in range(start, stop):
        s = slope_between(x, i, p)
        if s == slope:
            line[4 * LANES + j] -= 1
        else:
            sign = 1 if (s > slope) == (i > p) else -1
            line[2 * LANES + j] -= sign
            line[3 * LANES + j] -= sign * i


@inlined
def _fill_columns(t: np.ndarray, n_frames: int, columns: np.ndarray) -> None:
    """Fill ``columns (LANES, 64 k) float32``: the samples of every lane side by side."""
    for j in range(LANES):
        for i in range(n_frames):
            columns[j, i] = t[i, j]


@inner_kernel
def judge_block(samples: Samples, limits: Limits, scratch: Scratch, filled: int) -> None:
    """Narrow the windows of all lanes."""
    first, last, centre, columns = samples.first, samples.last, samples.centre, scratch.columns
    level, slope = scratch.numbers[LANES : 2 * LANES], scratch.numbers[2 * LANES : 3 * LANES]
    lane, old_first, old_last, line = (
        scratch.counters[0:LANES],
        scratch.counters[2 * LANES : 3 * LANES],
        scratch.counters[3 * LANES : 4 * LANES],
        scratch.counters[4 * LANES : 9 * LANES],
    )
    _fill_columns(samples.table, samples.n_frames, columns)
    n_lanes = begin_lines(samples, scratch)
    for j in range(LANES):
        line[j] = -1
    while n_lanes > 0:
        for q in range(n_lanes):
            j = lane[q]
            x = columns[j]
            line_least_absolute(x, j, first[j], last[j], line, scratch.masks, scratch.slopes, scratch.places)
            p = line[j]
            slope[j] = slope_between(x, line[LANES + j], p)
            level[j] = (np.float64(x[p]) - centre[j]) - slope[j] * np.float64(p)
            old_first[j] = first[j]
            old_last[j] = last[j]
        n_lanes = clip_by_lines(samples, limits, scratch, n_lanes)
        for q in range(n_lanes):
            j = lane[q]
            leave_line(columns[j], j, old_first[j], first[j], line)
            leave_line(columns[j], j, last[j], old_last[j], line)
    keep_equals(samples, scratch)
