"""What the levels of a frame are: median, deviation, percentiles and clipped variance of each channel.

Levels are measured on the frame's own pixels, before registration. Samples are sorted into distinct levels and how
often each occurs, which is all that any of these needs: a camera's 130,000 samples have some thousand levels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.robust import FLOORED, MAD_TO_SIGMA, sky_above_floor

MAX_SAMPLES: Final = 1 << 17  # pixels per channel that are looked at
LUMINANCE: Final = (0.299, 0.587, 0.114)  # Rec. 601
REPEATS: Final = 8  # samples per level, on average, from which samples count as quantised
QUARTILE: Final = 0.6745  # sigmas of a Gaussian from its mean to its quartiles
MOST_LEVELS: Final = 1 << 16  # that samples are counted in; beyond, they are sorted


@dataclass(frozen=True)
class Levels:
    """Sorted samples: levels ``value (m,) float64``, ascending, and ``count (m,) int64`` of samples on each.

    ``rank (m + 1,)``: samples below each level, and all. Both None where every sample is a level of its own, equal
    ones too. ``step``: over which the samples of one level are spread evenly, ADU; 0 where each counts as it is.
    """

    value: np.ndarray
    count: np.ndarray | None = None
    rank: np.ndarray | None = None
    step: float = 0.0

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.value) if self.rank is None else int(self.rank[-1])

    def below(self, k: int) -> int:
        """Return the samples below level ``k``; all, where there are ``k`` levels."""
        return k if self.rank is None else int(self.rank[k])

    def at(self, i: int) -> float:
        """Return sample ``i`` in ascending order, ADU."""
        if self.rank is None or self.count is None:
            return float(self.value[i])
        k = int(np.searchsorted(self.rank, i, side="right")) - 1
        value = float(self.value[k])
        return value + self.step * ((i - int(self.rank[k]) + 0.5) / int(self.count[k]) - 0.5) if self.step else value


def levels_of(samples: np.ndarray, quantum: float = 0.0) -> Levels:
    """Sort the finite ones of samples ``(n,)``, ADU; ``quantum``: of which all are multiples apart, 0 if not known.

    Samples of fewer than an eighth as many levels are counted level by level, whatever is known of them.
    """
    finite = samples[np.isfinite(samples)]
    lowest = float(finite.min()) if finite.size else 0.0
    if quantum > 0.0 and finite.size and float(finite.max()) - lowest < MOST_LEVELS * quantum:
        steps = finite - np.float32(lowest)
        steps /= np.float32(quantum)
        counts = np.bincount(np.rint(steps, out=steps).astype(np.intp))
        present = np.flatnonzero(counts)
        return _counted(lowest + quantum * present, counts[present])
    finite.sort()
    is_first = np.diff(finite, prepend=-np.inf) > 0.0
    if np.count_nonzero(is_first) * REPEATS > finite.size:
        return Levels(finite.astype(np.float64))
    first = np.flatnonzero(is_first)
    return _counted(finite[first].astype(np.float64), np.diff(first, append=finite.size))


def _counted(value: np.ndarray, count: np.ndarray) -> Levels:
    return Levels(value, count, np.concatenate(([0], np.cumsum(count))))


def level_step(levels: Levels) -> float:
    """Step of which all differences of samples are multiples, ADU; 0 where they are not quantised.

    Found in the samples, not in the file's type: a 12-bit camera's frames come in steps of 16, and integers come as
    float32 from many programs.
    """
    jumps = np.diff(levels.value)
    if levels.count is None or jumps.size == 0 or jumps.size * REPEATS > levels.size:
        return 0.0
    smallest = float(jumps.min())
    for step in (smallest, smallest / 2.0, smallest / 3.0):  # a step of 1 may show as 2 and 3 only
        multiple = jumps / step
        if float(np.abs(multiple - np.rint(multiple)).max()) < 0.02:
            return step
    return 0.0


def _percentile(levels: Levels, percent: float, first: int = 0, last: int | None = None) -> float:
    """Linear-interpolated percentile of samples ``first`` .. ``last - 1`` in ascending order."""
    size = (levels.size if last is None else last) - first
    at = percent / 100.0 * (size - 1)
    k = min(int(at), size - 2) if size > 1 else 0
    low, high = levels.at(first + k), levels.at(first + min(k + 1, size - 1))
    return low + (at - k) * (high - low)


def _median_deviation(levels: Levels, median: float) -> float:
    """Median absolute deviation of samples about their median, by bisection.

    The k samples nearest to the median are neighbours in the sorted order, so the k-th smallest deviation is that of
    the window of k samples whose farther end is nearest.
    """

    def smallest(k: int) -> float:
        def reaches(i: int) -> tuple[float, float]:  # of the window that begins at i, downward and upward
            return median - levels.at(i), levels.at(i + k - 1) - median

        last = levels.size - k  # as i grows the downward reach falls and the upward one grows: they cross once
        i = bisect_left(range(last), True, key=lambda at: reaches(at)[1] >= reaches(at)[0])
        return max(reaches(i)) if i == 0 else min(max(reaches(i)), max(reaches(i - 1)))

    return 0.5 * (smallest((levels.size + 1) // 2) + smallest(levels.size // 2 + 1))


def clipped_variance(levels: Levels, sigma: float = 3.0, rounds: int = 5) -> float:
    """Return the population variance of samples after median-centred sigma clipping, ADU^2; NaN for none.

    Parameters
    ----------
    levels : Levels
        Samples that count as they are (``step`` 0).
    sigma : float
        Limit on either side, units of the population standard deviation.
    rounds : int
        Most rounds made.
    """
    if levels.size == 0:
        return float("nan")
    first, last = 0, len(levels.value)
    distance = levels.value - _percentile(levels, 50.0)  # small numbers, whose squares keep their digits
    first_moment = distance if levels.count is None else levels.count * distance
    second_moment = first_moment * distance
    for r in range(rounds + 1):
        kept = levels.value[first:last]
        if kept[0] == kept[-1]:
            return 0.0
        begin, end = levels.below(first), levels.below(last)
        mean = np.add.reduce(first_moment[first:last]) / (end - begin)
        variance = max(float(np.add.reduce(second_moment[first:last]) / (end - begin) - mean**2), 0.0)
        if r == rounds:
            break
        middle, reach = _percentile(levels, 50.0, begin, end), sigma * variance**0.5
        a = first + int(np.searchsorted(kept, middle - reach, side="left"))
        b = first + int(np.searchsorted(kept, middle + reach, side="right"))
        if (a, b) == (first, last) or a == b:
            break
        first, last = a, b
    return variance


def measure_levels(
    view: np.ndarray, *, quantum: Sequence[float] | None = None, max_samples: int | None = MAX_SAMPLES
) -> FrameStats:
    """Measure the levels of one frame.

    Parameters
    ----------
    view : ndarray (h, w, C) float32, ADU
        NaN and infinity are left out.
    quantum : sequence of float, optional
        Step between levels of each channel as stored, from :func:`photometry.measure.quanta`; quantised samples are
        then spread over the step that is found in them, and a sky whose low side was cut off is measured from its high
        side. None: every sample counts as it is.
    max_samples : int or None
        Look at every k-th row, so that at most about this many pixels count; None looks at all.

    Returns
    -------
    FrameStats
        All NaN for a channel without a valid pixel.

    Notes
    -----
    The median and MAD of a camera's integers are integers too, good to half a step; a scale taken from a MAD of 21
    would be wrong by 2 %. Samples of one level are assumed to be spread evenly over it: the median of grouped data (any
    textbook; Kenney and Keeping, "Mathematics of Statistics", part 1).
    """
    h, w, channels = view.shape
    step = 1 if max_samples is None else max(1, -(-h * w // max_samples))
    rows = view[::step]
    names = ("median", "mad_sigma", "p25", "p90", "variance")
    found = {name: np.full(channels, np.nan) for name in names}
    for c in range(channels):
        levels = levels_of(rows[:, :, c].ravel(), quantum[c] if quantum is not None else 0.0)
        if levels.size == 0:
            continue
        found["variance"][c] = clipped_variance(levels)
        floor = levels.at(0)
        is_floored = quantum is not None and levels.at(int(FLOORED * (levels.size - 1))) == floor
        is_floored = is_floored and sky_above_floor(levels.at, levels.size, floor) is not None
        levels = replace(levels, step=level_step(levels) if quantum is not None else 0.0)
        above = sky_above_floor(levels.at, levels.size, floor) if is_floored else None
        median = _percentile(levels, 50.0)
        found["median"][c] = median
        found["mad_sigma"][c] = MAD_TO_SIGMA * _median_deviation(levels, median)
        found["p25"][c] = _percentile(levels, 25.0)
        found["p90"][c] = _percentile(levels, 90.0)
        if above is not None:
            found["median"][c], found["mad_sigma"][c] = above
            found["p25"][c] = above[0] - above[1] * QUARTILE
            found["variance"][c] = above[1] ** 2
    return FrameStats(
        median=found["median"],
        mad_sigma=found["mad_sigma"],
        p25=found["p25"],
        p90=found["p90"],
        variance=found["variance"],
        luminance_p25=_luminance_p25(rows) if channels == 3 else float(found["p25"][0]),
    )


def _luminance_p25(rows: np.ndarray) -> float:
    luminance = rows @ np.asarray(LUMINANCE, np.float32)
    valid = luminance[np.isfinite(luminance)]
    return float(np.percentile(valid, 25.0)) if valid.size else float("nan")
