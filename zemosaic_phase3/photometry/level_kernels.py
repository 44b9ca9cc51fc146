"""Levels of the planes of a frame, compiled: what :func:`photometry.levels.measure_levels` defines."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.detection.mesh_kernels import gather, load_row
from zemosaic_phase3.detection.order_statistics import MOST_COUNTS, pairwise_sum, sort_float32, two_of_sorted
from zemosaic_phase3.runtime.array_views import bits64, flat
from zemosaic_phase3.runtime.jit import compiled_once, kernel

REPEATS: Final = 8  # samples per level, on average, from which samples count as quantised
QUARTILE: Final = 0.6745  # sigmas of a Gaussian from its mean to its quartiles
MOST_LEVELS: Final = 1 << 16  # that samples are counted in; beyond, they are sorted
FLOORED: Final = 0.05  # of the samples, that have the lowest number where what lay below was cut off
TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation

COLUMNS: Final = 5
MEDIAN, MAD_SIGMA, P25, P90, VARIANCE = range(COLUMNS)


@kernel
def levels_of(
    samples: np.ndarray, quantum: float, spare: np.ndarray, counts: np.ndarray, value: np.ndarray, count: np.ndarray,
    many: np.ndarray,
) -> tuple[int, bool]:  # fmt: skip
    """Sort finite samples (n,) float32 into levels; return how many, and whether they are counted.

    ``value (n,) float64``: the levels, ascending; ``count (n,) int64``: samples on each, all 1 where they are not
    counted, equal ones too. ``quantum``: of which all are multiples apart, 0 if not known. ``many int64``: scratch.
    """
    n = samples.size
    lowest, highest = samples[0], samples[0]
    for i in range(n):
        lowest, highest = min(lowest, samples[i]), max(highest, samples[i])
    low = np.float64(lowest)
    if quantum > 0.0 and np.float64(highest) - low < MOST_LEVELS * quantum:
        wanted = int((np.float64(highest) - low) / quantum + 0.5) + 1
        many = many[:wanted] if many.size >= wanted else np.empty(wanted, np.int64)
        many[:] = 0
        unit = np.float32(quantum)
        for i in range(n):
            many[np.uint64(np.rint((samples[i] - lowest) / unit))] += 1
        m = 0
        for k in range(many.size):
            if many[k]:
                value[m], count[m] = low + quantum * k, many[k]
                m += 1
        return m, True
    sort_float32(samples, spare, counts)
    distinct = 1
    for i in range(1, n):
        distinct += 1 if samples[i] > samples[i - 1] else 0
    if distinct * REPEATS > n:
        for i in range(n):
            value[i], count[i] = samples[i], 1
        return n, False
    m = 0
    for i in range(n):
        if i == 0 or samples[i] > samples[i - 1]:
            value[m], count[m] = samples[i], 0
            m += 1
        count[m - 1] += 1
    return m, True


@kernel
def level_step(value: np.ndarray, m: int, size: int) -> float:
    """Step of which all differences of m levels are multiples, ADU; 0 where they are not quantised.

    Found in the samples, not in the file's type: a 12-bit camera's frames come in steps of 16, and integers come as
    float32 from many programs.
    """
    if m < 2 or (m - 1) * REPEATS > size:
        return 0.0
    smallest = np.inf
    for i in range(1, m):
        smallest = min(smallest, value[i] - value[i - 1])
    for part in range(1, 4):  # a step of 1 may show as 2 and 3 only
        step = smallest / part
        worst = 0.0
        for i in range(1, m):
            multiple = (value[i] - value[i - 1]) / step
            worst = max(worst, abs(multiple - np.rint(multiple)))
        if worst < 0.02:
            return step
    return 0.0


@kernel
def _level_at(rank: np.ndarray, m: int, i: int) -> int:
    """Level of sample i: the last whose first sample is not behind it."""
    low, high = 0, m
    while high - low > 1:
        middle = (low + high) // 2
        if rank[middle] <= i:
            low = middle
        else:
            high = middle
    return low


@kernel
def _at(value: np.ndarray, count: np.ndarray, rank: np.ndarray, m: int, step: float, i: int) -> float:
    """Sample i in ascending order, ADU; those of one level spread over ``step``."""
    k = _level_at(rank, m, i)
    return value[k] + step * ((i - rank[k] + 0.5) / count[k] - 0.5) if step else value[k]


@compiled_once
@kernel
def _percentile(
    value: np.ndarray, count: np.ndarray, rank: np.ndarray, m: int, step: float, percent: float, first: int, last: int
) -> float:
    """Linear-interpolated percentile of samples ``first`` .. ``last - 1`` in ascending order."""
    size = last - first
    at = percent / 100.0 * (size - 1)
    k = min(int(at), size - 2) if size > 1 else 0
    low = _at(value, count, rank, m, step, first + k)
    high = _at(value, count, rank, m, step, first + min(k + 1, size - 1))
    return low + (at - k) * (high - low)


@kernel
def _deviation(
    value: np.ndarray, count: np.ndarray, rank: np.ndarray, m: int, step: float, middle: float, k: int
) -> float:
    """Distance from the middle of the k-th nearest sample.

    The k samples nearest to the median are neighbours in the sorted order, so the k-th smallest deviation is that of
    the window of k samples whose farther end is nearest.
    """
    low, high = 0, int(rank[m]) - k
    while low < high:  # as i grows the downward reach falls and the upward one grows: they cross once
        i = (low + high) // 2
        down = middle - _at(value, count, rank, m, step, i)
        if _at(value, count, rank, m, step, i + k - 1) - middle >= down:
            high = i
        else:
            low = i + 1
    down = middle - _at(value, count, rank, m, step, low)
    found = max(down, _at(value, count, rank, m, step, low + k - 1) - middle)
    if low > 0:
        down = middle - _at(value, count, rank, m, step, low - 1)
        found = min(found, max(down, _at(value, count, rank, m, step, low + k - 2) - middle))
    return found


@kernel
def _clipped_variance(
    value: np.ndarray, count: np.ndarray, rank: np.ndarray, m: int, sigma: float, rounds: int, moments: np.ndarray
) -> float:
    """Return the population variance after median-centred sigma clipping; ``moments (2, m)`` is scratch."""
    middle = _percentile(value, count, rank, m, 0.0, 50.0, 0, rank[m])
    for k in range(m):  # small numbers, whose squares keep their digits
        distance = value[k] - middle
        moments[0, k] = count[k] * distance
        moments[1, k] = moments[0, k] * distance
    first, last = 0, m
    variance = 0.0
    for r in range(rounds + 1):
        if value[first] == value[last - 1]:
            return 0.0
        begin, end = rank[first], rank[last]
        mean = pairwise_sum(moments[0], first, last) / (end - begin)
        variance = max(pairwise_sum(moments[1], first, last) / (end - begin) - mean * mean, 0.0)
        if r == rounds:
            break
        middle = _percentile(value, count, rank, m, 0.0, 50.0, begin, end)
        reach = sigma * np.sqrt(variance)
        a, b = first, last
        while a < last and value[a] < middle - reach:
            a += 1
        while b > a and value[b - 1] > middle + reach:
            b -= 1
        if (a == first and b == last) or a == b:
            break
        first, last = a, b
    return variance


@kernel
def _above(
    value: np.ndarray, count: np.ndarray, rank: np.ndarray, m: int, step: float, floor: float
) -> tuple[bool, float, float]:
    """As :func:`robust.sky_above_floor`: whether the high side tells level and noise of a sky, and both."""
    last = rank[m] - 1
    first = _at(value, count, rank, m, step, int(0.6915 * last))
    second = _at(value, count, rank, m, step, int(0.8413 * last))
    third = _at(value, count, rank, m, step, int(0.9332 * last))
    if not first < second < third:
        return False, 0.0, 0.0
    if first > floor:
        noise = 2.0 * (second - first)
        return True, second - noise, noise
    if not second > floor:
        return False, 0.0, 0.0
    noise = 2.0 * (third - second)
    return True, third - 1.5 * noise, noise


@kernel
def _plane_levels(
    samples: np.ndarray, quantum: float, is_spread: bool, spare: np.ndarray, counts: np.ndarray, value: np.ndarray,
    count: np.ndarray, moments: np.ndarray, found: np.ndarray,
) -> None:  # fmt: skip
    """Measure the levels of finite samples (n,) float32, at least one, which are put in order; fills ``found (5,)``.

    ``is_spread``: samples of one level are spread evenly over the step that is found in them, and a sky whose low side
    was cut off is measured from its high side.
    """
    n = samples.size
    m, is_counted = levels_of(samples, quantum, spare[:n], counts, value, count, bits64(flat(moments)))
    rank = np.zeros(m + 1, np.int64)
    for k in range(m):
        rank[k + 1] = rank[k] + count[k]
    found[VARIANCE] = _clipped_variance(value, count, rank, m, 3.0, 5, moments)
    step = level_step(value, m, n) if is_spread and is_counted else 0.0
    floor = value[0]
    has_sky, level, noise = False, 0.0, 0.0
    if is_spread and value[_level_at(rank, m, int(FLOORED * (n - 1)))] == floor:
        has_sky, level, noise = _above(value, count, rank, m, 0.0, floor)
        if has_sky:
            has_sky, level, noise = _above(value, count, rank, m, step, floor)
    middle = _percentile(value, count, rank, m, step, 50.0, 0, n)
    spread = _deviation(value, count, rank, m, step, middle, (n + 1) // 2)
    found[MEDIAN] = middle
    found[MAD_SIGMA] = TO_SIGMA * (0.5 * (spread + _deviation(value, count, rank, m, step, middle, n // 2 + 1)))
    found[P25] = _percentile(value, count, rank, m, step, 25.0, 0, n)
    found[P90] = _percentile(value, count, rank, m, step, 90.0, 0, n)
    if has_sky:
        found[MEDIAN], found[MAD_SIGMA] = level, noise
        found[P25] = level - noise * QUARTILE
        found[VARIANCE] = noise * noise


@kernel
def _luminance_p25(
    frame: np.ndarray, planes: np.ndarray, sides: tuple[int, int], step: int, out: np.ndarray, spare: np.ndarray,
    counts: np.ndarray,
) -> float:  # fmt: skip
    """25th percentile of 0.299 R + 0.587 G + 0.114 B (Rec. 601), linear-interpolated; NaN where none is valid."""
    rows = np.empty((3, sides[1]), np.float32)
    n = 0
    for y in range(0, sides[0], step):
        for p in range(3):
            load_row(frame, planes[p], y, rows[p])
        for x in range(sides[1]):
            value = (np.float32(0.299) * rows[0, x] + np.float32(0.587) * rows[1, x]) + np.float32(0.114) * rows[2, x]
            if abs(value) < np.inf:
                out[n] = value
                n += 1
    if n == 0:
        return np.nan
    at = 0.25 * (n - 1)
    k = int(at)
    last = min(k + 1, n - 1)
    low, high = two_of_sorted(out[:n], k, last, spare, counts)
    return np.float64(low) + (at - k) * (np.float64(high) - np.float64(low))


@kernel
def frame_levels(
    frame: np.ndarray, planes: np.ndarray, sides: tuple[int, int], step: int, quantum: np.ndarray, is_spread: bool,
    few: np.ndarray, work: np.ndarray, found: np.ndarray,
) -> float:  # fmt: skip
    """Measure the levels of planes of a frame, every step-th row; return the 25th percentile of luminance.

    Parameters
    ----------
    frame : ndarray (H, W, C) float32, ADU
    planes : ndarray (P, 6) int64
        From :func:`detection.planes.planes_of`.
    sides : (int, int)
        Samples of a plane down and across.
    quantum : ndarray (P,) float64
        Of which all samples of a plane are multiples apart, ADU; 0 if not known.
    is_spread : bool
        See :func:`photometry.levels.measure_levels`.
    few : ndarray (2, n) float32
        Scratch, n the samples of a plane that are looked at.
    work : ndarray (4, n) float64
        Scratch.
    found : ndarray (P, COLUMNS) float64
        Filled; NaN for a plane without a valid sample.

    Returns
    -------
    float
        NaN where there are not three planes.
    """
    samples, spare, counts = few[0], few[1], np.empty(MOST_COUNTS, np.int64)
    value, count, moments = work[0], bits64(work[1]), work[2:]
    for p in range(len(planes)):
        n = gather(frame, planes[p], (0, sides[0]), (0, sides[1]), (step, 1), samples)
        if n == 0:
            found[p] = np.nan
        else:
            _plane_levels(samples[:n], quantum[p], is_spread, spare, counts, value, count, moments, found[p])
    return _luminance_p25(frame, planes, sides, step, samples, spare, counts) if len(planes) == 3 else np.nan
