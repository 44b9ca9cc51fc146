"""Rejection and combination: each algorithm once.

How a block is combined. ``LANES`` neighbouring pixels are taken at once. Their samples are sorted by a network whose
inner loop runs over the pixels, so the compiler turns every comparison into one SIMD minimum and maximum. On sorted
samples each algorithm only has to find a *window*: the samples ``first .. last - 1`` it keeps. Counts, means and
deviations of any window are differences of two running sums. The average comes last, over the frames in their own
order, of the samples inside the window's values.

Order of additions (part of every definition, so that devices agree to the bit). The running sums of
``d = x - m`` and ``d * d``, m the median of the valid samples, all float64, start at rank ``n_frames // 2`` and grow
outward, so that an outlier at one end never enters the sum of the samples kept. The average adds ``w * x`` and ``w`` in
frame order in float64. A pixel's result depends on its own samples and weights and the number of frames, on nothing
else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_kernels import kernel, sorting_kernel
from zemosaic_spec import StackSpec

LANES: Final = 96  # pixels sorted at once; a multiple of 3 (colour) and of 16 (SIMD), sized for the L2 cache at N = 200

# Numbers the kernels use for the methods. They are written out in the kernels, because a compiled cache does not
# notice a changed global.
METHOD_CODES: Final = {
    "none": 0,
    "kappa_sigma": 1,
    "kappa_sigma_clipped": 2,
    "legacy_quantile": 3,
    "pixinsight": 4,
    "sigma_clip": 5,
    "averaged_sigma": 6,
    "percentile_clip": 7,
    "gesd": 8,
    "linear_fit_ols": 9,
    "linear_fit_lad": 10,
    "given_limits": 11,
}
RANKED: Final = frozenset({8, 9, 10})  # judged by ``ranked_limits``; ``combine_block`` is then given the limits
COMBINE_CODES: Final = {"mean": 0, "median": 1, "min": 2, "max": 3}


def method_code(spec: StackSpec) -> int:
    """Return the kernels' number for the rejection that ``spec`` asks for."""
    names = {"winsorized_sigma_clip": spec.wsc_impl, "linear_fit_clip": f"linear_fit_{spec.line_fit}"}
    return METHOD_CODES[names.get(spec.reject, spec.reject)]


def method_parameters(spec: StackSpec) -> np.ndarray:
    """Return the numbers of a rejection as the kernels take them, ``(6,) float64``.

    kappa low and high (for ``percentile_clip`` the fractions), winsorizing limit low and high, GESD fraction and alpha.
    """
    return np.array([*spec.kappas, *spec.winsor_limits, spec.gesd_fraction, spec.gesd_alpha], np.float64)


@lru_cache(maxsize=8)
def gesd_table(n_frames: int, alpha: float) -> np.ndarray:
    """Return Rosner's critical values by the number of samples that remain after a step, ``(n_frames + 1,) float64``.

    ``lambda = m t / sqrt((m - 1 + t^2)(m + 1))`` with m samples remaining and t the quantile ``1 - alpha / (2 (m +
    1))`` of Student's distribution with m - 1 degrees of freedom; infinite for m < 2.
    """
    from scipy.stats import t as student_t

    left = np.arange(n_frames + 1, dtype=np.float64)
    table = np.full(n_frames + 1, np.inf)
    m = left[2:]
    t = student_t.ppf(1.0 - alpha / (2.0 * (m + 1.0)), m - 1.0)
    table[2:] = m * t / np.sqrt((m - 1.0 + t * t) * (m + 1.0))
    table.flags.writeable = False
    return table


# --------------------------------------------------------------------------- sorting


@lru_cache(maxsize=64)
def sorting_network(n: int) -> np.ndarray:
    """Return Batcher's odd-even merge sort for n rows as pairs of rows to compare, ``(K, 2) int32``.

    Source: K. E. Batcher, "Sorting networks and their applications", 1968; the form for any n is in
    Knuth, TAOCP vol. 3, 5.2.2, algorithm M.
    """
    pairs: list[np.ndarray] = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            low = np.concatenate(
                [np.arange(j, min(j + k, n - k)) for j in range(k % p, n - k, 2 * k)] or [np.empty(0, int)]
            )
            keep = low // (2 * p) == (low + k) // (2 * p)
            pairs.append(np.stack([low[keep], low[keep] + k], axis=1))
            k //= 2
        p *= 2
    network = np.concatenate(pairs) if pairs else np.empty((0, 2))
    network = np.ascontiguousarray(network, dtype=np.int32)
    network.flags.writeable = False
    return network


@sorting_kernel
def sort_rows(t: np.ndarray, network: np.ndarray) -> None:
    """Sort every column of ``t (rows, LANES) float32`` ascending; values are finite."""
    for c in range(network.shape[0]):
        a = t[network[c, 0]]
        b = t[network[c, 1]]
        for j in range(96):
            x = a[j]
            y = b[j]
            a[j] = min(x, y)
            b[j] = max(x, y)


@kernel
def _load(cube, p0, width, t, n_valid, seen) -> None:
    """Copy ``width`` pixels of all frames into ``t``; invalid samples become the largest number and are not counted.

    ``n_valid (LANES,) int32`` counts the valid samples of each pixel, ``seen (N,) int64`` grows by those of each frame.
    """
    big = np.float32(3.4028235e38)
    zero = np.float32(0.0)
    one = np.int32(1)
    none = np.int32(0)
    for j in range(96):
        n_valid[j] = none
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        d = t[i]
        valid = none
        for j in range(width):
            v = s[j]
            ok = v - v == zero  # false for NaN and infinity
            d[j] = v + zero if ok else big  # -0 becomes +0: the two must not be told apart by their order
            n_valid[j] += one if ok else none
            valid += one if ok else none
        seen[i] += valid
        for j in range(width, 96):
            d[j] = zero
    for j in range(width, 96):
        n_valid[j] = np.int32(cube.shape[0])


@kernel
def _centre(t, n_valid, centre) -> None:
    """Median of the valid samples of every pixel, float64; 0 where there is none."""
    for j in range(96):
        n = n_valid[j]
        centre[j] = 0.5 * (np.float64(t[(n - 1) // 2, j]) + np.float64(t[n // 2, j])) if n > 0 else 0.0


@kernel
def _running_sums(t, n_frames, n_valid, centre, sum1, sum2) -> None:
    """Fill sums such that ``sum[last] - sum[first]`` adds ranks first .. last - 1, from the middle outward."""
    middle = n_frames // 2
    for j in range(96):
        sum1[middle, j] = 0.0
        sum2[middle, j] = 0.0
    for i in range(middle, n_frames):
        for j in range(96):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i + 1, j] = sum1[i, j] + d
            sum2[i + 1, j] = sum2[i, j] + d * d
    for i in range(middle - 1, -1, -1):
        for j in range(96):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i, j] = sum1[i + 1, j] - d
            sum2[i, j] = sum2[i + 1, j] - d * d


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
def _window_sigma_clip(t, sum1, sum2, j, n, k_low, k_high):
    """Iterate: reject ``x < m - k_low s`` or ``x > m + k_high s``, m median, s = std(n - 1) of what is kept.

    Ends when nothing falls, the deviation is zero or fewer than 3 samples are left.
    Source: the textbook method, as Siril's ``rej s``. NOTE: Siril keeps at least 4 samples in file order.
    """
    first = 0
    last = n
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
def _window_legacy_quantile(t, sum1, sum2, centre, j, n, k_low, k_high, low_fraction, high_fraction, limits):
    """ZeMosaic's winsorized sigma clip; writes the clip values into ``limits[0..1]``.

    Clip the samples to their quantiles l and 1 - h; m, s = median and population deviation of the clipped samples after
    sigma-clipping them (3 sigma about the median, at most 5 rounds); reject originals outside ``m - k_low s .. m +
    k_high s``. Source: the recorded behaviour of ZeMosaic's ``stack_winsorized_sigma_clip``. At least 3 samples.
    """
    low = _quantile(t, j, n, low_fraction)
    high = _quantile(t, j, n, 1.0 - high_fraction)
    limits[0] = low
    limits[1] = high
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
def _window_pixinsight(t, sum1, sum2, centre, j, n, k_low, k_high):
    """Winsorized sigma clipping with Huber's winsorisation, as PixInsight and Siril have it.

    Outer round: m = median and s = std(n - 1) of the kept samples; inner rounds: clip cumulatively to ``m -+ 1.5
    s``, then
    ``s = 1.134 std(n - 1)`` of the clipped, at least twice, until s changes by at most 0.0005 of itself; reject
    ``x < m - k_low s`` or ``x > m + k_high s``; repeat on the survivors until none falls or fewer than 3 are left.
    1.134 undoes what clipping a Gaussian at 1.5 sigma takes from its deviation.
    Source: P. J. Huber, E. M. Ronchetti, "Robust Statistics", 2nd ed. 2009; PixInsight reference documentation,
    ImageIntegration. NOTE: Siril keeps at least 4 samples in file order; here 3 are enough to go on.
    """
    first = 0
    last = n
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


# --------------------------------------------------------------------------- linear_fit_clip
#
# The samples of one pixel lie in ``y`` (float64, relative to their median), sorted; sums run over four interleaved
# partial sums, ``(s0 + s1) + (s2 + s3)``, the rest added last.


@kernel
def _sum_of(y, n) -> float:
    a = 0.0
    b = 0.0
    c = 0.0
    d = 0.0
    i = 0
    while i + 4 <= n:
        a += y[i]
        b += y[i + 1]
        c += y[i + 2]
        d += y[i + 3]
        i += 4
    total = (a + b) + (c + d)
    while i < n:
        total += y[i]
        i += 1
    return total


@kernel
def _line_least_squares(y, n, work):
    """Return level at rank 0 and slope of the least-squares line of y against rank."""
    middle = 0.5 * (n - 1)
    for i in range(n):
        work[i] = (i - middle) * y[i]
    slope = _sum_of(work, n) / (n * (np.float64(n) * n - 1.0) / 12.0)
    return _sum_of(y, n) / n - slope * middle, slope


@kernel
def _weight_below(slopes, weights, n, bound) -> int:
    """Sum of the integer weights of the slopes below a bound; exact in any order, so the compiler may choose it."""
    total = np.int32(0)
    none = np.int32(0)
    for i in range(n):
        total += weights[i] if slopes[i] < bound else none
    return total


@kernel
def _weighted_median(slopes, weights, n, guess, step) -> int:
    """Place of the weighted median: the smallest slope at which half of the weight is reached, the first of equal ones.

    A bracket grows from the guess and is halved a few times; what is left in it is taken one by one. A slope that is
    NaN does not count.
    """
    total = _weight_below(slopes, weights, n, np.inf)
    low = guess - step
    high = guess + step
    for _ in range(60):
        if 2 * _weight_below(slopes, weights, n, low) < total:
            break
        high = low
        low -= step
        step *= 2.0
    for _ in range(60):
        if 2 * _weight_below(slopes, weights, n, high) >= total:
            break
        low = high
        high += step
        step *= 2.0
    for _ in range(6):
        middle = 0.5 * (low + high)
        if 2 * _weight_below(slopes, weights, n, middle) < total:
            low = middle
        else:
            high = middle
    reached = _weight_below(slopes, weights, n, low)
    place = 0
    for _ in range(n):  # less than half of the weight lies below ``low``: the median is at or above it
        smallest = np.inf
        for i in range(n):
            if slopes[i] >= low and slopes[i] < smallest:
                smallest = slopes[i]
                place = i
        low = smallest
        for i in range(n):
            if slopes[i] == low:
                reached += weights[i]
        if 2 * reached >= total:
            break
        low = np.nextafter(low, np.inf)
    return place


@kernel
def _line_least_absolute(y, n, at, slope, slopes, weights):
    """Return level at rank 0, slope and a sample of a line of least absolute deviation of y against rank.

    Through sample ``at`` the best slope is a weighted median of the slopes to the others; the line then passes
    through a
    second sample, whose best line is sought next, until it leads back. ``slope``: where to begin. ``slopes (n,)``
    float64 and ``weights (n,)`` int32 are overwritten.
    Source: P. Bloomfield, W. Steiger, "Least absolute deviations: theory, applications, and algorithms", 1983.
    """
    came_from = -1
    for _ in range(50):
        level = y[at]
        for i in range(n):
            weights[i] = abs(i - at)
            slopes[i] = (y[i] - level) / (i - at)  # 0 / 0 at the sample itself: NaN, weight 0
        other = _weighted_median(slopes, weights, n, slope, 0.05 * abs(slope) + 1e-30)
        slope = slopes[other]
        if other == came_from:
            break
        came_from = at
        at = other
    return y[at] - slope * at, slope, at


@kernel
def _window_linear_fit(t, centre, j, n, k_low, k_high, absolute, samples, work, weights):
    """Reject by distance from a line fitted to the sorted samples, refitted on the survivors with ranks renewed.

    sigma = 2 mean(abs(residual)); reject ``residual / sigma >= k_high`` or ``-residual / sigma >= k_low``; repeat until
    nothing falls or fewer than 5 are left.
    Source: PixInsight's linear fit clipping; W. H. Press et al., "Numerical Recipes", 15.7, for the line.
    NOTE: Siril's sigma has no factor 2, and its line keeps the ranks of removed samples. What lies beyond a rejected
    sample, seen from the middle, is rejected with it; samples equal to one that is kept are kept.
    """
    for i in range(n):
        samples[i] = np.float64(t[i, j]) - centre[j]
    first = 0
    last = n
    residual = work[0]
    size = work[1]
    at = -1
    slope = 0.0
    while last - first >= 5:
        y = samples[first:last]
        k = last - first
        if absolute:
            if not first <= at < last:  # the first round, or the line's sample fell
                level, slope = _line_least_squares(y, k, work[0])
                nearest = np.inf
                for i in range(k):
                    distance = abs(y[i] - (level + slope * i))
                    if distance < nearest:
                        nearest = distance
                        at = first + i
            level, slope, at = _line_least_absolute(y, k, at - first, slope, work[0], weights)
            at += first
        else:
            level, slope = _line_least_squares(y, k, work[0])
        for i in range(k):
            residual[i] = y[i] - (level + slope * i)
            size[i] = abs(residual[i])
        sigma = 2.0 * _sum_of(size, k) / k
        largest = max(abs(np.float64(t[first, j])), abs(np.float64(t[last - 1, j])))
        if not sigma > 1e-12 * largest:  # less is the rounding of a perfect fit
            break
        f = 0
        g = k
        for i in range(k // 2):
            if residual[i] / sigma >= k_high or -residual[i] / sigma >= k_low:
                f = i + 1
        for i in range(k - 1, k // 2 - 1, -1):
            if residual[i] / sigma >= k_high or -residual[i] / sigma >= k_low:
                g = i
        if f == 0 and g == k:
            break
        last = first + g
        first = first + f
    return _with_equals(t, j, n, first, last)


@kernel
def _with_equals(t, j, n, first, last):
    """Widen a range of ranks to all samples that equal one inside: equal samples share one fate."""
    if last > first:
        while first > 0 and t[first - 1, j] == t[first, j]:
            first -= 1
        while last < n and t[last, j] == t[last - 1, j]:
            last += 1
    return first, last


# --------------------------------------------------------------------------- one block of pixels


@kernel
def _crossed(t, j, n, centre, low, high) -> int:
    """Mark a pixel that lost all samples: below ``low`` lies what was rejected low, the rest was rejected high.

    Returns the rank between the two, or 0 where there was no sample.
    """
    if n == 0:
        low[j] = np.float32(np.inf)
        high[j] = np.float32(-np.inf)
        return 0
    f = 0
    while np.float64(t[f, j]) < centre:
        f += 1
    low[j] = t[f, j]
    high[j] = np.float32(-np.inf)
    return f


@kernel
def _reject(t, n_valid, method, par, given_low, given_high, centre, sum1, sum2, first, last, clip, low, high) -> None:
    """Find what every pixel of a sorted block keeps.

    Fills the ranks ``first, last (LANES,) int32``, the smallest and largest value kept ``low, high (LANES,) float32``,
    and ``clip (2 LANES,) float64``, the values that replace rejected samples. Where all was rejected the limits are
    crossed, see :func:`_crossed`. ``given_low, given_high``: the limits themselves, for method 11.
    """
    limits = np.empty(2, np.float64)
    _centre(t, n_valid, centre)
    if method < 7:
        _running_sums(t, t.shape[0], n_valid, centre, sum1, sum2)
    for j in range(96):
        n = np.int64(n_valid[j])
        f = 0
        g = n
        limits[0] = np.nan
        limits[1] = np.nan
        if n >= 3:
            if method == 1:
                f, g = _window_kappa_sigma(t, sum1, sum2, j, n, par[0], par[1])
            elif method == 2:
                f, g = _window_kappa_sigma_clipped(t, sum1, sum2, j, n, par[0], par[1])
            elif method == 3:
                f, g = _window_legacy_quantile(t, sum1, sum2, centre, j, n, par[0], par[1], par[2], par[3], limits)
            elif method == 4:
                f, g = _window_pixinsight(t, sum1, sum2, centre, j, n, par[0], par[1])
            elif method == 5:
                f, g = _window_sigma_clip(t, sum1, sum2, j, n, par[0], par[1])
            elif method == 6:
                f, g = _window_averaged_sigma(t, sum2, j, n, par[0], par[1])
        if method == 7 and n >= 2:
            f, g = _window_percentile_clip(t, j, n, par[0], par[1])
        elif method == 11 and j < given_low.size:
            f = _skip_below(t, j, 0, n, np.float64(given_low[j]))
            g = _skip_above(t, j, f, n, np.float64(given_high[j]))
        clip[j] = limits[0]
        clip[96 + j] = limits[1]
        if g > f:
            low[j] = t[f, j]
            high[j] = t[g - 1, j]
        else:
            f = _crossed(t, j, n, centre[j], low, high)
            g = f
        first[j] = f
        last[j] = g


@kernel
def _count_hits(cube, p0, width, low, high, hits) -> None:
    """Add the samples of each frame that were rejected low and high to ``hits (N, 3) int64``."""
    one = np.int32(1)
    none = np.int32(0)
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        n_low = none
        n_out = none
        for j in range(width):
            finite = s[j] - s[j] == np.float32(0.0)
            below = s[j] < low[j] and finite
            n_low += one if below else none
            n_out += one if below or (s[j] > high[j] and finite) else none
        hits[i, 0] += n_low
        hits[i, 1] += n_out - n_low


@kernel
def _plain_sums(cube, p0, width, low, high, total) -> None:
    """``total (LANES,) float64``: the sum over the frames, in their order, of the samples kept."""
    n = cube.shape[0]
    for j in range(96):
        total[j] = 0.0
    i = 0
    while i + 4 <= n:
        a = cube[i, p0 : p0 + width]
        b = cube[i + 1, p0 : p0 + width]
        c = cube[i + 2, p0 : p0 + width]
        d = cube[i + 3, p0 : p0 + width]
        for j in range(width):
            lo = low[j]
            hi = high[j]
            t = total[j]
            t += np.float64(a[j]) if a[j] >= lo and a[j] <= hi else 0.0
            t += np.float64(b[j]) if b[j] >= lo and b[j] <= hi else 0.0
            t += np.float64(c[j]) if c[j] >= lo and c[j] <= hi else 0.0
            t += np.float64(d[j]) if d[j] >= lo and d[j] <= hi else 0.0
            total[j] = t
        i += 4
    while i < n:
        a = cube[i, p0 : p0 + width]
        for j in range(width):
            total[j] += np.float64(a[j]) if a[j] >= low[j] and a[j] <= high[j] else 0.0
        i += 1


@kernel
def _weighted_sums(cube, p0, width, frame_weight, sample_weight, place, low, high, total, weight) -> None:
    """``total`` of w x and ``weight`` of w over the frames, in their order, of the samples kept.

    With all weights 1 this is :func:`_plain_sums` to the bit.
    """
    per_sample = sample_weight.shape[0] > 0
    for j in range(96):
        total[j] = 0.0
        weight[j] = 0.0
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        w = frame_weight[i]
        if per_sample:
            r = sample_weight[i]
            for j in range(width):
                keep = s[j] >= low[j] and s[j] <= high[j]
                wj = w[j] * np.float64(r[place[j]])
                total[j] += wj * np.float64(s[j]) if keep else 0.0
                weight[j] += wj if keep else 0.0
        else:
            for j in range(width):
                keep = s[j] >= low[j] and s[j] <= high[j]
                total[j] += w[j] * np.float64(s[j]) if keep else 0.0
                weight[j] += w[j] if keep else 0.0


@kernel
def _rewinsorized_sums(
    cube, p0, width, frame_weight, sample_weight, place, low, high, clip, plain, total, weight
) -> None:
    """Sum with rejected samples counting with their clipped values, ``clip (2 LANES,)``; all weights 1 if ``plain``."""
    per_sample = sample_weight.shape[0] > 0
    for j in range(96):
        total[j] = 0.0
        weight[j] = 0.0
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        w = frame_weight[i]
        for j in range(width):
            x = np.float64(s[j])
            if x - x != 0.0:
                continue
            if s[j] < low[j] or s[j] > high[j]:
                x = clip[j] if x < clip[j] else (clip[96 + j] if x > clip[96 + j] else x)
            wj = 1.0 if plain else w[j]
            if per_sample and not plain:
                wj = wj * np.float64(sample_weight[i, place[j]])
            total[j] += wj * x
            weight[j] += wj


@kernel
def _sort_rewinsorized(t, j, n, first, last, low, high, ordered) -> None:
    """Fill ``ordered (n,)``: the samples with the rejected ones replaced by their clipped values, sorted again."""
    for i in range(n):
        x = np.float64(t[i, j])
        if i < first or i >= last:
            x = low if x < low else (high if x > high else x)
        k = i
        while k > 0 and ordered[k - 1] > x:
            ordered[k] = ordered[k - 1]
            k -= 1
        ordered[k] = x


@kernel
def combine_block(
    cube,
    start,
    stop,
    network,
    method,
    par,
    low_map,
    high_map,
    rewinsor,
    combine,
    frame_weight,
    sample_weight,
    sample_step,
    image,
    coverage,
    weight_map,
    rejected_low,
    rejected_high,
    hits,
) -> int:
    """Reject and combine pixels ``start .. stop - 1``; returns how many had every sample rejected.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
        Samples of P pixels (or pixel-channels) of N frames; NaN and infinity are invalid.
    start, stop : int
        Pixels to do; ``start`` is a multiple of ``LANES``.
    network : ndarray (K, 2) int32
        ``sorting_network(N)``.
    method, combine : int
        From ``METHOD_CODES`` and ``COMBINE_CODES``.
    par : ndarray (6,) float64
        From :func:`method_parameters`.
    low_map, high_map : ndarray (P,) float32
        Limits found by :func:`ranked_limits`, for method 11 ("given_limits"); empty for the other methods.
    rewinsor : bool
        Replace rejected samples by their clipped values (legacy winsorizing only) instead of dropping them.
    frame_weight : ndarray (N, LANES) float64
        Weight of each frame, one column per lane so that channels may differ; lane = pixel mod LANES.
    sample_weight : ndarray (N, P / sample_step) float32, or (0, 0)
        Multiplies the frame weight, where given.
    sample_step : int
        Neighbouring elements that share a sample weight (the channels of a pixel, or 1).
    image : ndarray (P,) float32, ADU
    coverage, rejected_low, rejected_high : ndarray (P,) int32
        Valid samples; samples rejected on either side.
    weight_map : ndarray (P,) float32
        Sum of the weights that entered the mean (the number of samples for the other combinations).
    hits : ndarray (N, 3) int64
        Grows by the samples of each frame rejected low, rejected high, and valid.
    """
    n_frames = cube.shape[0]
    t = np.empty((n_frames, 96), np.float32)
    sum1 = np.empty((n_frames + 1, 96), np.float64)
    sum2 = np.empty((n_frames + 1, 96), np.float64)
    centre = np.empty(96, np.float64)
    clip = np.empty(192, np.float64)
    first = np.empty(96, np.int32)
    last = np.empty(96, np.int32)
    n_valid = np.empty(96, np.int32)
    place = np.empty(96, np.int64)
    low = np.empty(96, np.float32)
    high = np.empty(96, np.float32)
    total = np.empty(96, np.float64)
    weight = np.empty(96, np.float64)
    column = np.empty(n_frames, np.float64)
    spare = np.empty(96, np.float64)
    uniform = sample_weight.shape[0] == 0 and bool((frame_weight == 1.0).all())
    seen = hits[:, 2]
    lost = 0
    for p0 in range(start, stop, 96):
        width = min(96, stop - p0)
        for j in range(96):
            place[j] = (p0 + j) // sample_step
        _load(cube, p0, width, t, n_valid, seen)
        if method != 0 or combine != 0:
            sort_rows(t, network)
        if method != 0:
            given_low = low_map[p0 : p0 + width] if method == 11 else low_map
            given_high = high_map[p0 : p0 + width] if method == 11 else high_map
            _reject(t, n_valid, method, par, given_low, given_high, centre, sum1, sum2, first, last, clip, low, high)
        else:
            for j in range(96):
                first[j] = 0
                last[j] = n_valid[j]
                low[j] = np.float32(-3.4028235e38)
                high[j] = np.float32(3.4028235e38)
        rejected = 0
        for j in range(width):
            rejected += n_valid[j] - (last[j] - first[j])
        if rejected > 0:
            _count_hits(cube, p0, width, low, high, hits)
        if combine == 0:
            if rewinsor:
                _rewinsorized_sums(
                    cube, p0, width, frame_weight, sample_weight, place, low, high, clip, False, total, weight
                )
            elif uniform:
                _plain_sums(cube, p0, width, low, high, total)
            else:
                _weighted_sums(cube, p0, width, frame_weight, sample_weight, place, low, high, total, weight)
        unweighted = False
        for j in range(width):
            n = n_valid[j]
            kept = last[j] - first[j]
            counted = n if rewinsor else kept
            p = p0 + j
            coverage[p] = n
            rejected_low[p] = first[j]
            rejected_high[p] = n - last[j]
            weight_map[p] = np.float32(counted)
            if n == 0:
                image[p] = np.float32(np.nan)
                continue
            lost += 1 if kept == 0 else 0
            if counted == 0:
                image[p] = np.float32(centre[j])
            elif combine == 0:
                divisor = np.float64(counted) if uniform and not rewinsor else weight[j]
                weight_map[p] = np.float32(divisor)
                unweighted = unweighted or not divisor > 0.0
                image[p] = np.float32(total[j] / divisor) if divisor > 0.0 else np.float32(0.0)
            elif rewinsor:
                _sort_rewinsorized(t, j, n, first[j], last[j], clip[j], clip[96 + j], column)
                at = 0 if combine == 2 else n - 1
                middle = 0.5 * (column[(n - 1) // 2] + column[n // 2])
                image[p] = np.float32(middle if combine == 1 else column[at])
            elif combine == 1:
                image[p] = np.float32(_median_of(t, j, first[j], last[j]))
            elif combine == 2:
                image[p] = t[first[j], j]
            else:
                image[p] = t[last[j] - 1, j]
        if unweighted:  # all weights of some pixel are 0: its plain mean
            if rewinsor:
                _rewinsorized_sums(
                    cube, p0, width, frame_weight, sample_weight, place, low, high, clip, True, total, spare
                )
            else:
                _plain_sums(cube, p0, width, low, high, total)
            for j in range(width):
                counted = n_valid[j] if rewinsor else last[j] - first[j]
                if counted > 0 and not weight[j] > 0.0:
                    image[p0 + j] = np.float32(total[j] / counted)
    return lost


@kernel
def limits_block(cube, network, method, par, low_map, high_map) -> None:
    """Write the smallest and largest value each pixel of ``cube (N, P) float32`` keeps; crossed where it keeps none."""
    n_frames = cube.shape[0]
    t = np.empty((n_frames, 96), np.float32)
    sum1 = np.empty((n_frames + 1, 96), np.float64)
    sum2 = np.empty((n_frames + 1, 96), np.float64)
    centre = np.empty(96, np.float64)
    clip = np.empty(192, np.float64)
    first = np.empty(96, np.int32)
    last = np.empty(96, np.int32)
    n_valid = np.empty(96, np.int32)
    seen = np.zeros(n_frames, np.int64)
    low = np.empty(96, np.float32)
    high = np.empty(96, np.float32)
    nothing = np.empty(0, np.float32)
    for p0 in range(0, cube.shape[1], 96):
        width = min(96, cube.shape[1] - p0)
        _load(cube, p0, width, t, n_valid, seen)
        sort_rows(t, network)
        _reject(t, n_valid, method, par, nothing, nothing, centre, sum1, sum2, first, last, clip, low, high)
        for j in range(width):
            low_map[p0 + j] = low[j]
            high_map[p0 + j] = high[j]


@kernel
def ranked_limits(cube, start, stop, network, method, par, critical, low_map, high_map) -> None:
    """Do the same for pixels ``start .. stop - 1`` by the methods that judge samples one by one: GESD and line fits.

    A kernel of its own, so that nobody waits for its compilation who does not use it. ``critical``: from
    :func:`gesd_table`; empty for the line.
    """
    n_frames = cube.shape[0]
    t = np.empty((n_frames, 96), np.float32)
    sum1 = np.empty((n_frames + 1, 96), np.float64)
    sum2 = np.empty((n_frames + 1, 96), np.float64)
    centre = np.empty(96, np.float64)
    n_valid = np.empty(96, np.int32)
    seen = np.zeros(n_frames, np.int64)
    low = np.empty(96, np.float32)
    high = np.empty(96, np.float32)
    work = np.empty((3, n_frames), np.float64)
    weights = np.empty(n_frames, np.int32)
    for p0 in range(start, stop, 96):
        width = min(96, stop - p0)
        _load(cube, p0, width, t, n_valid, seen)
        sort_rows(t, network)
        _centre(t, n_valid, centre)
        if method == 8:
            _running_sums(t, n_frames, n_valid, centre, sum1, sum2)
        for j in range(width):
            n = np.int64(n_valid[j])
            f = 0
            g = n
            if method == 8 and n >= 10:
                f, g = _window_gesd(t, sum1, sum2, centre, j, n, par[4], critical)
            elif method != 8 and n >= 5:
                f, g = _window_linear_fit(t, centre, j, n, par[0], par[1], method == 10, work[2], work, weights)
            if g > f:
                low[j] = t[f, j]
                high[j] = t[g - 1, j]
            else:
                _crossed(t, j, n, centre[j], low, high)
            low_map[p0 + j] = low[j]
            high_map[p0 + j] = high[j]
