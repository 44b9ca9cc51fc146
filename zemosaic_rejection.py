"""Rejection: each algorithm once.

A block of ``LANES`` neighbouring pixels arrives sorted, ``t (rows, LANES) float32``: lane j holds one pixel, its n
valid samples in ranks 0 .. n - 1. On sorted samples each algorithm only has to find a *window*: the samples
``first .. last - 1`` it keeps. Counts, means and deviations of any window are differences of two running sums.

Order of additions (part of every definition, so that devices agree to the bit). The running sums ``sum1, sum2
(n_frames + 1, LANES) float64`` of ``d = x - m`` and ``d * d``, m the median of the valid samples, start at rank
``n_frames // 2`` and grow outward, so that an outlier at one end never enters the sum of the samples kept. A pixel's
window depends on its own samples and the number of frames, on nothing else.

Two forms of one definition. The functions ``_window_...`` treat one lane: they are the definition. Where it pays,
``_windows_...`` do the rounds of many lanes in lockstep, statement by statement the same arithmetic with SIMD
instructions; a lane that is done leaves the list alone, so no pixel's result depends on its neighbours.
"""

from __future__ import annotations

import numpy as np

from zemosaic_kernels import kernel
from zemosaic_simd import nearest_inside

# --------------------------------------------------------------------------- what all algorithms share


@kernel
def _median_of(t, j, first, last) -> float:
    """Median of the sorted samples of ranks first .. last - 1; the mean of the two middle ones when even."""
    k = last - first
    return 0.5 * (np.float64(t[first + (k - 1) // 2, j]) + np.float64(t[first + k // 2, j]))


@kernel
def _deviation(s1, s2, k, free) -> float:
    """Return the deviation of k samples from their sums of d and d*d, divisor k - free; 0 where rounding went below."""
    ss = s2 - s1 * (s1 / k)
    return np.sqrt(ss / (k - free)) if ss > 0.0 else 0.0


@kernel
def _skip_below(t, j, first, last, limit) -> int:
    """First rank in first .. last whose sample is not below ``limit``."""
    while first < last and np.float64(t[first, j]) < limit:
        first += 1
    return first


@kernel
def _skip_above(t, j, first, last, limit) -> int:
    """One past the last rank in first .. last whose sample is not above ``limit``."""
    while last > first and np.float64(t[last - 1, j]) > limit:
        last -= 1
    return last


@kernel
def _with_equals(t, j, n, first, last):
    """Widen a range of ranks to all samples that equal one inside: equal samples share one fate."""
    if last > first:
        while first > 0 and t[first - 1, j] == t[first, j]:
            first -= 1
        while last < n and t[last, j] == t[last - 1, j]:
            last += 1
    return first, last


# --------------------------------------------------------------------------- rounds of many lanes in lockstep
#
# The lanes still at work stand in a list, ``lane (LANES,) int64``; what belongs to the q-th of them stands in place q
# of its row of ``work``. So the arithmetic of a round is a plain loop over neighbouring numbers, which the compiler
# turns into SIMD instructions, and costs nothing for lanes that are done.


@kernel
def _gather_statistics(t, sum1, sum2, first, last, lane, n_lanes, m, s1, s2, k) -> None:
    """Fill median, sums and number of samples of the listed lanes' windows."""
    for q in range(n_lanes):
        j = lane[q]
        f = first[j]
        g = last[j]
        m[q] = _median_of(t, j, f, g)
        s1[q] = sum1[g, j] - sum1[f, j]
        s2[q] = sum2[g, j] - sum2[f, j]
        k[q] = np.float64(g - f)


@kernel
def _deviations(s1, s2, k, n_lanes, s) -> None:
    """Fill ``s``: :func:`_deviation` with divisor k - 1."""
    for q in range(n_lanes):
        ss = s2[q] - s1[q] * (s1[q] / k[q])
        s[q] = np.sqrt(max(ss, 0.0) / (k[q] - 1))


@kernel
def _count_outside(t, start, stop, limits, ranks) -> None:
    """Fill the rank of the first sample of rows ``start .. stop - 1`` not below, and that behind the last not above.

    ``limits (2 LANES,) float32``: low and high of every lane; ``ranks (2 LANES,) int32``. Row by row from either end,
    as long as a sample of a row lies outside.
    """
    flat = t.reshape(-1)
    low, high, first, last = limits[0:96], limits[96:192], ranks[0:96], ranks[96:192]
    one = np.int32(1)
    none = np.int32(0)
    for j in range(96):
        first[j] = start
        last[j] = stop
    for i in range(start, stop):
        x = flat[i * 96 : (i + 1) * 96]
        outside = none
        for j in range(96):
            out = one if x[j] < low[j] else none
            first[j] += out
            outside |= out
        if outside == none:
            break
    for i in range(stop - 1, start - 1, -1):
        x = flat[i * 96 : (i + 1) * 96]
        outside = none
        for j in range(96):
            out = one if x[j] > high[j] else none
            last[j] -= out
            outside |= out
        if outside == none:
            break


@kernel
def _skip_outside(t, lane, n_lanes, low, high, a, b, limits, ranks) -> None:
    """Move the ranks ``a, b (LANES,) int64`` of the listed lanes inward to the first and behind the last sample inside.

    Inside is ``low[q] <= x <= high[q]``, float64: :func:`_skip_below` and :func:`_skip_above`, for many lanes row by
    row. Then the limits are the nearest float32 inside, which no sample can tell from them. ``limits (4 LANES,)
    float32`` and ``ranks (2 LANES,) int32`` are scratch.
    """
    if n_lanes < 24:
        for q in range(n_lanes):
            j = lane[q]
            a[j] = _skip_below(t, j, a[j], b[j], low[q])
            b[j] = _skip_above(t, j, a[j], b[j], high[q])
        return
    nearest_inside(low, high, limits)
    start = np.int64(t.shape[0])
    stop = np.int64(0)
    for j in range(96):
        limits[192 + j] = np.float32(-np.inf)
        limits[288 + j] = np.float32(np.inf)
    for q in range(n_lanes):
        j = lane[q]
        limits[192 + j] = limits[q]
        limits[288 + j] = limits[96 + q]
        start = min(start, a[j])
        stop = max(stop, b[j])
    _count_outside(t, start, stop, limits[192:384], ranks)
    for q in range(n_lanes):
        j = lane[q]
        a[j] = min(max(a[j], np.int64(ranks[j])), b[j])
        b[j] = max(min(b[j], np.int64(ranks[96 + j])), a[j])


@kernel
def _judge(t, first, last, lane, n_lanes, m, s, k_low, k_high, spare_flat) -> int:
    """Narrow the listed lanes' windows to ``m - k_low s .. m + k_high s``.

    On the list, whose new length is returned, stay the lanes that lost samples and have 3 left. ``spare_flat``: where s
    is 0 nothing is rejected; otherwise all but the median is.
    """
    n_left = np.int64(0)
    for q in range(n_lanes):
        if spare_flat and s[q] == 0.0:
            continue
        j = lane[q]
        f = _skip_below(t, j, first[j], last[j], m[q] - k_low * s[q])
        g = _skip_above(t, j, f, last[j], m[q] + k_high * s[q])
        if f != first[j] or g != last[j]:
            first[j] = f
            last[j] = g
            if g - f >= 3:
                lane[n_left] = j
                n_left += 1
    return n_left


@kernel
def _list_lanes(first, last, lane) -> int:
    """Fill ``lane`` with the lanes that have at least 3 samples; returns how many they are."""
    n_lanes = np.int64(0)
    for j in range(96):
        if last[j] - first[j] >= 3:
            lane[n_lanes] = j
            n_lanes += 1
    return n_lanes


# --------------------------------------------------------------------------- kappa_sigma


@kernel
def _window_kappa_sigma(t, sum1, sum2, j, n, k_low, k_high):
    """ZeMosaic's single pass: keep ``m - k_low s <= x <= m + k_high s``, m median, s population deviation of all valid.

    Source: the recorded behaviour of ZeMosaic's ``stack_kappa_sigma_clip``. At least 3 samples. Zero deviation keeps
    all.
    The limits are rounded to float32, the type of the samples, before they are compared, as in the recorded numbers.
    NOTE: one pass at 3 sigma cannot reject a single outlier for n <= 7: the outlier inflates the deviation itself.
    """
    s = _deviation(sum1[n, j] - sum1[0, j], sum2[n, j] - sum2[0, j], n, 0)
    if s == 0.0:
        return 0, n
    m = _median_of(t, j, 0, n)
    first = _skip_below(t, j, 0, n, np.float64(np.float32(m - k_low * s)))
    return first, _skip_above(t, j, first, n, np.float64(np.float32(m + k_high * s)))


@kernel
def _window_kappa_sigma_clipped(t, sum1, sum2, j, n, k_low, k_high):
    """Set the same limits about sigma-clipped statistics: median and population deviation after at most 5 rounds.

    What ZeMosaic's ``stack_aligned_images`` calls kappa_sigma.
    """
    first = 0
    last = n
    for _ in range(5):
        k = last - first
        s = _deviation(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 0)
        m = _median_of(t, j, first, last)
        a = _skip_below(t, j, first, last, m - k_low * s)
        b = _skip_above(t, j, a, last, m + k_high * s)
        if a == first and b == last:
            break
        first = a
        last = b
    k = last - first
    s = _deviation(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 0)
    if s == 0.0:
        return 0, n
    m = _median_of(t, j, first, last)
    first = _skip_below(t, j, 0, n, m - k_low * s)
    return first, _skip_above(t, j, first, n, m + k_high * s)


# --------------------------------------------------------------------------- sigma_clip


@kernel
def _window_sigma_clip(t, sum1, sum2, j, first, last, k_low, k_high):
    """Iterate: reject ``x < m - k_low s`` or ``x > m + k_high s``, m median, s = std(n - 1) of what is kept.

    Ends when nothing falls, the deviation is zero or fewer than 3 samples are left.
    Source: the textbook method, as Siril's ``rej s``. NOTE: Siril keeps at least 4 samples in file order.
    """
    while last - first >= 3:
        k = last - first
        s = _deviation(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        m = _median_of(t, j, first, last)
        f = _skip_below(t, j, first, last, m - k_low * s)
        g = _skip_above(t, j, f, last, m + k_high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


@kernel
def _windows_sigma_clip(t, sum1, sum2, first, last, k_low, k_high, work, lane) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_sigma_clip`."""
    m, s, s1, s2, k = work[0:96], work[96:192], work[192:288], work[288:384], work[384:480]
    n_lanes = _list_lanes(first, last, lane)
    while n_lanes > 0:
        _gather_statistics(t, sum1, sum2, first, last, lane, n_lanes, m, s1, s2, k)
        _deviations(s1, s2, k, n_lanes, s)
        n_lanes = _judge(t, first, last, lane, n_lanes, m, s, k_low, k_high, True)


# --------------------------------------------------------------------------- winsorized_sigma_clip, legacy_quantile


@kernel
def _quantile(t, j, n, fraction) -> float:
    """Linear-interpolated quantile of n sorted samples (Hyndman and Fan's type 7, NumPy's default)."""
    at = fraction * (n - 1)
    k = int(np.floor(at))
    if k >= n - 1:
        return np.float64(t[n - 1, j])
    low = np.float64(t[k, j])
    return low + (at - k) * (np.float64(t[k + 1, j]) - low)


@kernel
def _clipped_sample(t, j, i, low, high) -> float:
    x = np.float64(t[i, j])
    return low if x < low else (high if x > high else x)


@kernel
def _clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, free) -> float:
    """Return the deviation of ranks first .. last - 1: those below a counting as ``low``, from b on as ``high``."""
    i0 = min(max(a, first), last)
    i1 = max(min(b, last), i0)
    n_low = i0 - first
    n_high = last - i1
    d_low = low - centre[j]
    d_high = high - centre[j]
    s1 = (sum1[i1, j] - sum1[i0, j]) + (n_low * d_low + n_high * d_high)
    s2 = (sum2[i1, j] - sum2[i0, j]) + (n_low * (d_low * d_low) + n_high * (d_high * d_high))
    return _deviation(s1, s2, last - first, free)


@kernel
def _window_legacy_quantile(t, sum1, sum2, centre, j, n, k_low, k_high, low_fraction, high_fraction, clip):
    """ZeMosaic's winsorized sigma clip; writes the clip values into ``clip[j]`` and ``clip[LANES + j]``.

    Clip the samples to their quantiles l and 1 - h; m, s = median and population deviation of the clipped samples after
    sigma-clipping them (3 sigma about the median, at most 5 rounds); reject originals outside ``m - k_low s .. m +
    k_high s``. Source: the recorded behaviour of ZeMosaic's ``stack_winsorized_sigma_clip``. At least 3 samples.
    """
    low = _quantile(t, j, n, low_fraction)
    high = _quantile(t, j, n, 1.0 - high_fraction)
    clip[j] = low
    clip[96 + j] = high
    a = _skip_below(t, j, 0, n, low)
    b = _skip_above(t, j, a, n, high)
    first = 0
    last = n
    m = 0.0
    s = 0.0
    for r in range(6):
        k = last - first
        s = _clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, 0)
        m = 0.5 * (
            _clipped_sample(t, j, first + (k - 1) // 2, low, high) + _clipped_sample(t, j, first + k // 2, low, high)
        )
        if r == 5:
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
    first = _skip_below(t, j, 0, n, m - k_low * s)
    return first, _skip_above(t, j, first, n, m + k_high * s)


# --------------------------------------------------------------------------- winsorized_sigma_clip, pixinsight


@kernel
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
        m = _median_of(t, j, first, last)
        s = _deviation(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        low = -np.inf
        high = np.inf
        a = first
        b = last
        for r in range(200):
            low = max(low, m - 1.5 * s)
            high = min(high, m + 1.5 * s)
            a = _skip_below(t, j, a, b, low)
            b = _skip_above(t, j, a, b, high)
            before = s
            s = 1.134 * _clipped_deviation(sum1, sum2, centre, j, first, last, a, b, low, high, 1)
            if r > 0 and abs(s - before) <= 0.0005 * before:
                break
        f = _skip_below(t, j, first, last, m - k_low * s)
        g = _skip_above(t, j, f, last, m + k_high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


@kernel
def _huber_deviations(t, sum1, sum2, first, last, lane, n_lanes, work, state, limits, ranks, deviation) -> None:
    """Fill ``deviation (LANES,) float64`` of the listed lanes with the s of :func:`_window_pixinsight`'s inner rounds.

    ``work`` holds the statistics of the lanes' windows; lanes and statistics are used up.
    """
    m, s, s1, s2 = work[0:96], work[96:192], work[192:288], work[288:384]
    k, c, low, high = work[384:480], work[480:576], work[576:672], work[672:768]
    below, above = work[768:864], work[864:960]
    a, b = state[0:96], state[96:192]
    for q in range(n_lanes):
        j = lane[q]
        low[q] = -np.inf
        high[q] = np.inf
        a[j] = first[j]
        b[j] = last[j]
    for r in range(200):
        for q in range(n_lanes):
            low[q] = max(low[q], m[q] - 1.5 * s[q])
            high[q] = min(high[q], m[q] + 1.5 * s[q])
        _skip_outside(t, lane, n_lanes, low, high, a, b, limits, ranks)
        for q in range(n_lanes):
            j = lane[q]
            i0 = a[j]
            i1 = b[j]
            s1[q] = sum1[i1, j] - sum1[i0, j]
            s2[q] = sum2[i1, j] - sum2[i0, j]
            below[q] = np.float64(i0 - first[j])
            above[q] = np.float64(last[j] - i1)
        for q in range(n_lanes):
            d_low = low[q] - c[q]
            d_high = high[q] - c[q]
            t1 = s1[q] + (below[q] * d_low + above[q] * d_high)
            t2 = s2[q] + (below[q] * (d_low * d_low) + above[q] * (d_high * d_high))
            ss = t2 - t1 * (t1 / k[q])
            new = 1.134 * np.sqrt(max(ss, 0.0) / (k[q] - 1))
            s1[q] = abs(new - s[q]) - 0.0005 * s[q]
            s[q] = new
        if r == 0:
            continue
        n_left = np.int64(0)
        for q in range(n_lanes):  # the settled leave the list
            j = lane[q]
            deviation[j] = s[q]
            lane[n_left] = j
            m[n_left] = m[q]
            s[n_left] = s[q]
            c[n_left] = c[q]
            k[n_left] = k[q]
            low[n_left] = low[q]
            high[n_left] = high[q]
            n_left += 1 if s1[q] > 0.0 else 0
        n_lanes = n_left
        if n_lanes == 0:
            break


def compile_huber_rounds() -> None:
    """Compile :func:`_huber_deviations` by itself, for the list of no lanes.

    It takes longest of what the kernel of winsorized clipping is made of, and is needed last: in a first run another
    process finds it in the cache, see :mod:`zemosaic_warmup`.
    """
    table, sums = np.empty((1, 96), np.float32), np.empty((2, 96))
    lanes, work, state = np.zeros(96, np.int64), np.empty(12 * 96), np.empty(4 * 96, np.int64)
    limits, ranks = np.empty(4 * 96, np.float32), np.empty(2 * 96, np.int32)
    nothing = np.int64(0)
    _huber_deviations(table, sums, sums, lanes, lanes, lanes, nothing, work, state, limits, ranks, work[960:1056])


@kernel
def _windows_pixinsight(t, sum1, sum2, centre, first, last, k_low, k_high, work, state, limits, ranks) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_pixinsight`."""
    m, s, s1, s2, k, c = work[0:96], work[96:192], work[192:288], work[288:384], work[384:480], work[480:576]
    deviation, median = work[960:1056], work[1056:1152]
    lane, busy = state[192:288], state[288:384]
    n_lanes = _list_lanes(first, last, lane)
    while n_lanes > 0:
        _gather_statistics(t, sum1, sum2, first, last, lane, n_lanes, m, s1, s2, k)
        _deviations(s1, s2, k, n_lanes, s)
        n_live = np.int64(0)
        for q in range(n_lanes):  # no deviation, nothing to reject
            if s[q] != 0.0:
                lane[n_live] = lane[q]
                busy[n_live] = lane[q]
                m[n_live] = m[q]
                median[n_live] = m[q]
                s[n_live] = s[q]
                c[n_live] = centre[lane[q]]
                k[n_live] = k[q]
                n_live += 1
        _huber_deviations(t, sum1, sum2, first, last, busy, n_live, work, state, limits, ranks, deviation)
        for q in range(n_live):
            s[q] = deviation[lane[q]]
        n_lanes = _judge(t, first, last, lane, n_live, median, s, k_low, k_high, False)


# --------------------------------------------------------------------------- averaged_sigma


@kernel
def _window_averaged_sigma(t, sum2, j, n, k_low, k_high):
    """Clip at a deviation that follows the square root of the level, as photon noise does.

    ``g = sqrt(sum((x - m)^2 / m) / (n - 1))`` once, from all valid samples and their median m; then with the median
    m of what is kept reject ``x < m - k_low g sqrt(m)`` or ``x > m + k_high g sqrt(m)``; repeat until nothing falls. At
    least 3 samples, all above 0, otherwise all are kept. Source: IRAF imcombine, ``reject = avsigclip``.
    NOTE: imcombine averages g over the pixels of a line; here every pixel has its own.
    """
    if not t[0, j] > 0.0:
        return 0, n
    m = _median_of(t, j, 0, n)
    square = (sum2[n, j] - sum2[0, j]) / m / (n - 1)
    if not square > 0.0:
        return 0, n
    gain = np.sqrt(square)
    first = 0
    last = n
    while last - first >= 3:
        m = _median_of(t, j, first, last)
        s = gain * np.sqrt(m)
        f = _skip_below(t, j, first, last, m - k_low * s)
        g = _skip_above(t, j, f, last, m + k_high * s)
        if f == first and g == last:
            break
        first = f
        last = g
    return first, last


# --------------------------------------------------------------------------- percentile_clip


@kernel
def _window_percentile_clip(t, j, n, p_low, p_high):
    """Reject in one pass ``(m - x) / m > p_low`` and ``(x - m) / m > p_high``, m the median; skipped when m = 0.

    At least 2 samples. Source: Siril's and PixInsight's percentile clipping. NOTE: with a negative median the fraction
    ``p_high`` bounds the samples below it, as the formula says.
    """
    m = _median_of(t, j, 0, n)
    if m == 0.0:
        return 0, n
    below = p_low if m > 0.0 else p_high
    above = p_high if m > 0.0 else p_low
    size = abs(m)
    first = 0
    last = n
    while first < last and (m - np.float64(t[first, j])) / size > below:
        first += 1
    while last > first and (np.float64(t[last - 1, j]) - m) / size > above:
        last -= 1
    return first, last


# --------------------------------------------------------------------------- gesd


@kernel
def _window_gesd(t, sum1, sum2, centre, j, n, fraction, critical):
    """Generalised extreme Studentised deviate test for up to ``floor(fraction n)`` outliers.

    Each step removes the sample farthest from the mean of the rest, R = its distance in units of std(n - 1); rejected
    is what was removed up to the last step with R above its critical value. At least 10 samples.
    Source: B. Rosner, "Percentage points for a generalized ESD many-outlier procedure", Technometrics 25 (1983) 165.
    NOTE: samples equal to one that is kept are kept.
    """
    first = 0
    last = n
    best_first = 0
    best_last = n
    for _ in range(int(np.floor(fraction * n + 1e-9))):
        k = last - first
        s1 = sum1[last, j] - sum1[first, j]
        s = _deviation(s1, sum2[last, j] - sum2[first, j], k, 1)
        if s == 0.0:
            break
        mean = centre[j] + s1 / k
        low = mean - np.float64(t[first, j])
        high = np.float64(t[last - 1, j]) - mean
        if low >= high:
            first += 1
        else:
            last -= 1
        if max(low, high) / s > critical[k - 1]:
            best_first = first
            best_last = last
    return _with_equals(t, j, n, best_first, best_last)
