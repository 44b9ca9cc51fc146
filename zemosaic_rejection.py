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
instructions (:mod:`zemosaic_rounds`); a lane that is done leaves the list alone, so no pixel's result depends on its
neighbours.
"""

from __future__ import annotations

import numpy as np

from zemosaic_kernels import inner_kernel
from zemosaic_rounds import count_outside, huber_round
from zemosaic_simd import nearest_inside
from zemosaic_sums import running_sums

# --------------------------------------------------------------------------- what all algorithms share


@inner_kernel
def _median_of(t, j, first, last) -> float:
    """Median of the sorted samples of ranks first .. last - 1; the mean of the two middle ones when even."""
    k = last - first
    return 0.5 * (np.float64(t[first + (k - 1) // 2, j]) + np.float64(t[first + k // 2, j]))


@inner_kernel
def _deviation(s1, s2, k, free) -> float:
    """Return the deviation of k samples from their sums of d and d*d, divisor k - free; 0 where rounding went below."""
    ss = s2 - s1 * (s1 / k)
    return np.sqrt(ss / (k - free)) if ss > 0.0 else 0.0


@inner_kernel
def _skip_below(t, j, first, last, limit) -> int:
    """First rank in first .. last whose sample is not below ``limit``."""
    while first < last and np.float64(t[first, j]) < limit:
        first += 1
    return first


@inner_kernel
def _skip_above(t, j, first, last, limit) -> int:
    """One past the last rank in first .. last whose sample is not above ``limit``."""
    while last > first and np.float64(t[last - 1, j]) > limit:
        last -= 1
    return last


@inner_kernel
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
# The first round is that of all lanes: plain loops over neighbouring numbers and vector instructions. The lanes that go
# on stand in a list, ``lane (LANES,) int64``. Where all samples are valid the running sums are first filled near the
# ends only, ``edge`` rows of them, and to the middle when a window of the block reaches deeper.


@inner_kernel
def _first_statistics(n_frames, centre, sum1, sum2, first, last, s) -> None:
    """Fill the deviation ``s (LANES,) float64`` of all samples, divisor n - 1; inf where there is nothing to judge.

    That is where a lane has fewer than 3 samples, or no deviation.
    """
    low1, high1, low2, high2 = sum1[0], sum1[n_frames], sum2[0], sum2[n_frames]
    for j in range(96):
        n = last[j] - first[j]
        k = np.float64(max(n, 3))
        s1 = high1[j] - low1[j]
        ss = (high2[j] - low2[j]) - s1 * (s1 / k)
        deviation = np.sqrt(max(ss, 0.0) / (k - 1.0))
        s[j] = deviation if n >= 3 and deviation > 0.0 else np.inf


@inner_kernel
def _judge_all(t, stop, first, last, m, s, k_low, k_high, work, limits, ranks, state) -> int:
    """Narrow the windows of all lanes to ``m - k_low s .. m + k_high s``, m and s by lane; s = inf rejects nothing.

    ``stop``: the largest last. Fills the list, ``state[0:LANES]``, with the lanes that lost samples and have 3 left;
    returns how many they are. ``work (2 LANES,) float64``, ``limits (2 LANES,) float32``, ``ranks (2 LANES,) int32``
    and the rest of ``state (2 LANES,) int64`` are scratch.
    """
    low, high, lane, goes_on = work[0:96], work[96:192], state[0:96], state[96:192]
    for j in range(96):
        low[j] = m[j] - k_low * s[j]
        high[j] = m[j] + k_high * s[j]
    nearest_inside(low, high, limits)
    count_outside(t, 0, stop, limits, ranks)
    for j in range(96):
        f = min(max(first[j], np.int64(ranks[j])), last[j])
        g = max(min(last[j], np.int64(ranks[96 + j])), f)
        goes_on[j] = 1 if g - f >= 3 and g - f < last[j] - first[j] else 0
        first[j] = f
        last[j] = g
    n_lanes = np.int64(0)
    for j in range(96):
        lane[n_lanes] = j
        n_lanes += goes_on[j]
    return n_lanes


# --------------------------------------------------------------------------- kappa_sigma


@inner_kernel
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


@inner_kernel
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


@inner_kernel
def _sigma_clip_round(t, sum1, sum2, j, first, last, k_low, k_high):
    """Return what one round of :func:`_window_sigma_clip` leaves of a window."""
    if last - first < 3:
        return first, last
    s = _deviation(sum1[last, j] - sum1[first, j], sum2[last, j] - sum2[first, j], last - first, 1)
    if s == 0.0:
        return first, last
    m = _median_of(t, j, first, last)
    f = _skip_below(t, j, first, last, m - k_low * s)
    return f, _skip_above(t, j, f, last, m + k_high * s)


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
def _windows_sigma_clip(
    t, n_frames, sum1, sum2, edge, centre, first, last, k_low, k_high, work, state, limits, ranks
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_sigma_clip`."""
    s, lane = work[192:288], state[0:96]
    _first_statistics(n_frames, centre, sum1, sum2, first, last, s)
    n_lanes = _judge_all(t, n_frames, first, last, centre, s, k_low, k_high, work, limits, ranks, state)
    for q in range(n_lanes):
        j = lane[q]
        f = first[j]
        g = last[j]
        while True:
            if max(f, n_frames - g) > edge:
                running_sums(t, n_frames, centre, sum1, sum2, n_frames)
                edge = n_frames
            a, b = _sigma_clip_round(t, sum1, sum2, j, f, g, k_low, k_high)
            if a == f and b == g:
                break
            f = a
            g = b
        first[j] = f
        last[j] = g


# --------------------------------------------------------------------------- winsorized_sigma_clip, legacy_quantile


@inner_kernel
def _quantile(t, j, n, fraction) -> float:
    """Linear-interpolated quantile of n sorted samples (Hyndman and Fan's type 7, NumPy's default)."""
    at = fraction * (n - 1)
    k = int(np.floor(at))
    if k >= n - 1:
        return np.float64(t[n - 1, j])
    low = np.float64(t[k, j])
    return low + (at - k) * (np.float64(t[k + 1, j]) - low)


@inner_kernel
def _clipped_sample(t, j, i, low, high) -> float:
    x = np.float64(t[i, j])
    return low if x < low else (high if x > high else x)


@inner_kernel
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


@inner_kernel
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
            a = _skip_below(t, j, np.int64(ranks[j]), np.int64(ranks[96 + j]), low[q])
            b = _skip_above(t, j, a, np.int64(ranks[96 + j]), high[q])
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
def _windows_pixinsight(
    t, n_frames, sum1, sum2, edge, centre, first, last, k_low, k_high, work, state, limits, ranks
) -> None:
    """Narrow the windows ``first, last (LANES,) int64`` of all lanes by :func:`_window_pixinsight`.

    The list holds lanes in any of their rounds: a lane that is done with the inner rounds is judged at once and begins
    its next outer round beside the others.
    """
    deviation, median, lane, settled = work[672:768], work[768:864], state[0:96], state[96:192]
    _first_statistics(n_frames, centre, sum1, sum2, first, last, deviation)
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
            running_sums(t, n_frames, centre, sum1, sum2, n_frames)
            edge = n_frames
        if not huber_round(lane, n_lanes, ranks, first, last, sum1, sum2, work):
            continue
        n_lanes, n_settled = _split_settled(lane, n_lanes, work, deviation, settled)
        for q in range(n_settled):
            j = settled[q]
            f = _skip_below(t, j, first[j], last[j], median[j] - k_low * deviation[j])
            g = _skip_above(t, j, f, last[j], median[j] + k_high * deviation[j])
            if f == first[j] and g == last[j]:
                continue
            first[j] = f
            last[j] = g
            if g - f < 3:
                continue
            if max(f, n_frames - g) > edge:
                running_sums(t, n_frames, centre, sum1, sum2, n_frames)
                edge = n_frames
            s = _deviation(sum1[g, j] - sum1[f, j], sum2[g, j] - sum2[f, j], g - f, 1)
            if s > 0.0:
                median[j] = _median_of(t, j, f, g)
                _enter(n_lanes, j, first, last, median[j], s, centre, lane, work, ranks)
                n_lanes += 1


def compile_huber_rounds() -> None:
    """Compile :func:`_windows_pixinsight` by itself, for a block in which nothing is to be judged.

    It takes longest of what the kernel of winsorized clipping is made of, and is needed last: in a first run another
    process finds it in the cache, see :mod:`zemosaic_warmup`.
    """
    table, sums, centre, work = np.zeros((1, 96), np.float32), np.zeros((2, 96)), np.zeros(96), np.zeros(12 * 96)
    first, last, state = np.zeros(96, np.int64), np.full(96, 3), np.zeros(4 * 96, np.int64)
    limits, ranks = np.zeros(4 * 96, np.float32), np.zeros(4 * 96, np.int32)
    one = np.int64(1)
    _windows_pixinsight(table, one, sums, sums, one, centre, first, last, 3.0, 3.0, work, state, limits, ranks)


# --------------------------------------------------------------------------- averaged_sigma


@inner_kernel
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


@inner_kernel
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


@inner_kernel
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
