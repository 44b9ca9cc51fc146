"""What rejection and combination mean, in float64 NumPy, one pixel at a time: slow, obvious and independent.

Nothing of the library is imported here, so that an agreement with its kernels means something: the self-check after a
stack (:mod:`pipeline.self_check`) and the tests compare both. Each rejection is a function ``side_<name>(x, **limits)``
of the valid samples of one pixel, and a row of ``SIDES``; ``combine_pixel`` adds the rules that hold for every method
(validity, minimum counts, weights). The text is that of ``docs/algorithms.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Side = np.ndarray  # int array, one per sample: -1 rejected low, 0 kept, +1 rejected high


# ------------------------------------------------------------------ small statistics


def deviation(x: np.ndarray, ddof: int) -> float:
    """Return the standard deviation about the mean; exactly 0 for equal samples, which plain sums do not guarantee."""
    return float(np.std(x - x[0], ddof=ddof))


def clipped_samples(x: np.ndarray, low: float = 3.0, high: float = 3.0, rounds: int = 5) -> np.ndarray:
    """Return the samples left after median-centred clipping with the population deviation, at most ``rounds`` times."""
    for _ in range(rounds):
        m, s = np.median(x), deviation(x, 0)
        inside = (x >= m - low * s) & (x <= m + high * s)
        if inside.all():
            break
        x = x[inside]
    return x


def clipped_median_std(x: np.ndarray, low: float = 3.0, high: float = 3.0) -> tuple[float, float]:
    """Median and population deviation after five rounds of clipping."""
    kept = clipped_samples(x, low, high)
    return float(np.median(kept)), deviation(kept, 0)


def outside(x: np.ndarray, low: float, high: float) -> Side:
    """Which samples lie strictly outside [low, high], and on which side."""
    return (x > high).astype(int) - (x < low).astype(int)


def reject_until_stable(x: np.ndarray, minimum: int, one_round: Callable[[np.ndarray], Side]) -> Side:
    """Repeat ``one_round`` on the survivors until none falls or fewer than ``minimum`` are left."""
    side = np.zeros(x.size, int)
    while True:
        alive = np.flatnonzero(side == 0)
        if alive.size < minimum:
            return side
        falls = one_round(x[alive])
        if not falls.any():
            return side
        side[alive] = falls


def keep_equals(x: np.ndarray, side: Side) -> Side:
    """Keep what equals a kept sample: equal samples share one fate."""
    return np.where(np.isin(x, x[side == 0]), 0, side)


# ------------------------------------------------------------------ rejection, each returning the side of every sample


def side_none(x: np.ndarray) -> Side:
    """Keep all."""
    return np.zeros(x.size, int)


def side_kappa_sigma(
    x: np.ndarray, kappa_low: float = 3.0, kappa_high: float = 3.0, clipped_statistics: bool = False
) -> Side:
    """One pass about the median with the population deviation of all samples.

    ``clipped_statistics`` takes both from the samples left after five clipping rounds with the same limits: the
    variant that ``stack_aligned_images`` and ``_reject_outliers_kappa_sigma`` have always used.
    """
    m, s = clipped_median_std(x, kappa_low, kappa_high) if clipped_statistics else (np.median(x), deviation(x, 0))
    return outside(x, m - kappa_low * s, m + kappa_high * s)


def quantile_clipped(x: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Clip samples to the linear-interpolated quantiles q(l) and q(1 - h)."""
    return np.clip(x, np.quantile(x, limits[0]), np.quantile(x, 1.0 - limits[1]))


def side_winsorized_legacy(
    x: np.ndarray, kappa_low: float = 3.0, kappa_high: float = 3.0, limits: tuple[float, float] = (0.05, 0.05)
) -> Side:
    """ZeMosaic's winsorizing: bounds from the sigma-clipped statistics of the quantile-clipped samples."""
    m, s = clipped_median_std(quantile_clipped(x, limits))
    return outside(x, m - kappa_low * s, m + kappa_high * s)


def huber_deviation(x: np.ndarray) -> float:
    """Deviation of the samples, winsorized at 1.5 sigma about their median until it changes by less than 0.05 %."""
    m, s = np.median(x), deviation(x, 1)
    clipped, done = x, 0
    while s > 0:
        clipped = np.clip(clipped, m - 1.5 * s, m + 1.5 * s)
        previous, s = s, 1.134 * deviation(clipped, 1)
        done += 1
        if done >= 2 and abs(s - previous) < 0.0005 * previous:
            break
    return s


def side_winsorized_pixinsight(x: np.ndarray, kappa_low: float = 4.0, kappa_high: float = 3.0) -> Side:
    """Huber winsorisation, repeated on the survivors."""

    def one_round(kept: np.ndarray) -> Side:
        m, s = np.median(kept), huber_deviation(kept)
        return outside(kept, m - kappa_low * s, m + kappa_high * s)

    return reject_until_stable(x, 3, one_round)


def side_sigma_clip(x: np.ndarray, kappa_low: float = 3.0, kappa_high: float = 3.0) -> Side:
    """Median-centred clipping with the sample deviation (n - 1), repeated on the survivors."""

    def one_round(kept: np.ndarray) -> Side:
        m, s = np.median(kept), deviation(kept, 1)
        return outside(kept, m - kappa_low * s, m + kappa_high * s)

    return reject_until_stable(x, 3, one_round)


def line_least_squares(y: np.ndarray) -> np.ndarray:
    """Least-squares line through value against rank, at the ranks."""
    rank = np.arange(y.size, dtype=float)
    slope = np.sum((rank - rank.mean()) * (y - y.mean())) / np.sum((rank - rank.mean()) ** 2)
    return y.mean() + slope * (rank - rank.mean())


def turned_about(y: np.ndarray, pivot: int, slope: float, pull: int, held: int) -> int:
    """Turn a line through sample ``pivot`` of sorted samples until half of the excess pull has been passed.

    Returns the rank of the sample it then passes through, the lowest of equals; -1 where there is none.
    """
    rank = np.arange(y.size)
    weight = np.abs(rank - pivot)
    with np.errstate(invalid="ignore"):
        slopes = (y - y[pivot]) / (rank - pivot)
    ahead = np.flatnonzero((weight > 0) & ((slopes > slope) if pull > 0 else (slopes < slope)))
    near, group = np.unique(slopes[ahead] if pull > 0 else -slopes[ahead], return_inverse=True)
    passed = 2 * np.cumsum(np.bincount(group, weights=weight[ahead], minlength=near.size))
    enough = np.flatnonzero(passed >= abs(pull) - held + (0 if pull > 0 else 1))
    return int(ahead[group == enough[0]][0]) if enough.size else -1


def least_absolute_line(y: np.ndarray, known: tuple[int, int] | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Line of least absolute deviation of sorted samples, at the ranks, and two of the samples on it.

    Where several lines are equally good, the steps decide which is found (``docs/algorithms.md``, "The line of least
    absolute deviations"): begin with the line through two samples, turn it about the sample on it that is held least.
    ``known`` are the samples to begin with, ranks; None: those of ranks 0.1465 and 0.8535.
    """
    rank = np.arange(y.size)
    part = (y.size - 1) * 150 // 1024
    p, q = known or (part, y.size - 1 - part)
    for _ in range(100):
        slope = (y[q] - y[p]) / (q - p)
        with np.errstate(invalid="ignore"):
            from_p = (y - y[p]) / (rank - p)
        on_line = (rank == p) | (from_p == slope)
        signs = np.where(on_line, 0, np.where((from_p > slope) == (rank > p), 1, -1))
        pulls = np.sum(rank * signs) - rank[on_line] * np.sum(signs)
        held = np.abs(rank[on_line][:, None] - rank[on_line]).sum(axis=1)
        least = int(np.argmax(np.abs(pulls) - held))
        if abs(pulls[least]) <= held[least]:
            break
        pivot = int(rank[on_line][least])
        met = turned_about(y, pivot, float(slope), int(pulls[least]), int(held[least]))
        if met < 0:
            break
        p, q = min(pivot, met), max(pivot, met)
    return y[p] + (y[q] - y[p]) / (q - p) * (rank - p), (p, q)


def side_linear_fit_clip(x: np.ndarray, kappa_low: float = 5.0, kappa_high: float = 2.5, fit: str = "lad") -> Side:
    """Reject by distance from a line fitted to the sorted samples; refit on the survivors with new ranks.

    What lies beyond a rejected sample, seen from the middle of the survivors, is rejected with it.
    """
    order = np.argsort(x, kind="stable")
    y, first, last = x[order], 0, x.size
    known: tuple[int, int] | None = None  # samples on the last line, if they survived
    while last - first >= 5:
        kept = y[first:last]
        line, on_line = least_absolute_line(kept, known) if fit == "lad" else (line_least_squares(kept), (0, 0))
        residual = kept - line
        sigma = 2.0 * np.abs(residual).mean()
        if not sigma > 1e-12 * np.abs(kept).max():  # less is the rounding of a perfect fit
            break
        far = np.flatnonzero((residual >= kappa_high * sigma) | (residual <= -kappa_low * sigma))
        if far.size == 0:
            break
        low, high = far[far < kept.size // 2], far[far >= kept.size // 2]
        f, g = (int(low[-1]) + 1 if low.size else 0), (int(high[0]) if high.size else kept.size)
        known = (on_line[0] - f, on_line[1] - f) if f <= on_line[0] and on_line[1] < g else None
        first, last = first + f, first + g
    side = np.zeros(x.size, int)
    side[order[:first]], side[order[last:]] = -1, 1
    return keep_equals(x, side)


class GesdStep(NamedTuple):
    """One step of the generalised extreme Studentised deviate test."""

    index: int  # type: ignore[assignment] # sample removed in this step; a tuple's own method is not needed
    statistic: float  # R_i
    critical: float  # lambda_i
    side: int  # -1 below the mean, +1 above


def gesd_steps(x: np.ndarray, steps: int, alpha: float = 0.05) -> list[GesdStep]:
    """Rosner's test (Technometrics, 1983): remove the most extreme sample ``steps`` times, with the critical values."""
    from scipy.special import stdtrit

    alive = np.argsort(x, kind="stable")  # of two that are equally far the lower one goes
    left = x.size - np.arange(1.0, steps + 1.0)  # samples that remain after each step
    t = stdtrit(left - 1.0, 1.0 - alpha / (2.0 * (left + 1.0)))
    critical = left * t / np.sqrt((left - 1.0 + t * t) * (left + 1.0))
    table = []
    for i in range(steps):
        kept = x[alive]
        m, s = kept.mean(), deviation(kept, 1)
        if s == 0:
            break
        far = int(np.argmax(np.abs(kept - m)))
        side = int(np.sign(kept[far] - m))
        table.append(GesdStep(int(alive[far]), abs(kept[far] - m) / s, float(critical[i]), side))
        alive = np.delete(alive, far)
    return table


def side_gesd(x: np.ndarray, fraction: float = 0.3, alpha: float = 0.05) -> Side:
    """Reject up to the last step whose statistic exceeds its critical value, but nothing that equals a kept sample."""
    table = gesd_steps(x, int(np.floor(fraction * x.size + 1e-9)), alpha)
    passed = [i for i, step in enumerate(table, start=1) if step.statistic > step.critical]
    side = np.zeros(x.size, int)
    for step in table[: max(passed, default=0)]:
        side[step.index] = step.side
    return keep_equals(x, side)


def side_averaged_sigma(x: np.ndarray, kappa_low: float = 4.0, kappa_high: float = 3.0) -> Side:
    """Poisson-like noise: sigma = g sqrt(median), with one gain factor g from all samples. Needs x > 0."""
    if (x <= 0).any():
        return side_none(x)
    m = np.median(x)
    gain = np.sqrt(np.sum((x - m) ** 2 / m) / (x.size - 1))

    def one_round(kept: np.ndarray) -> Side:
        centre = np.median(kept)
        sigma = gain * np.sqrt(centre)
        return outside(kept, centre - kappa_low * sigma, centre + kappa_high * sigma)

    return reject_until_stable(x, 3, one_round)


def side_percentile_clip(x: np.ndarray, low: float = 0.2, high: float = 0.1) -> Side:
    """One pass on the distance from the median in units of the median; skipped when the median is 0.

    Where the median is negative, the samples that lie too far above zero are those of the lower limit.
    """
    m = np.median(x)
    if m == 0:
        return side_none(x)
    side = ((x - m) / m > high).astype(int) - ((m - x) / m > low).astype(int)
    return side if m > 0 else -side


def side_mad_clip(x: np.ndarray, kappa_low: float = 4.5, kappa_high: float = 4.5) -> Side:
    """Median-centred clipping with the median absolute deviation, not scaled, repeated on the survivors."""

    def one_round(kept: np.ndarray) -> Side:
        m = np.median(kept)
        s = np.median(np.abs(kept - m))
        return outside(kept, m - kappa_low * s, m + kappa_high * s) if s > 0 else side_none(kept)

    return reject_until_stable(x, 3, one_round)


SIDES: Mapping[str, tuple[Callable[..., Side], int]] = {
    "none": (side_none, 1),
    "kappa_sigma": (side_kappa_sigma, 3),
    "winsorized_legacy": (side_winsorized_legacy, 3),
    "winsorized_pixinsight": (side_winsorized_pixinsight, 3),
    "sigma_clip": (side_sigma_clip, 3),
    "linear_fit_clip": (side_linear_fit_clip, 5),
    "gesd": (side_gesd, 10),
    "averaged_sigma": (side_averaged_sigma, 3),
    "percentile_clip": (side_percentile_clip, 2),
    "mad_clip": (side_mad_clip, 3),
}
"""Name -> (function, smallest number of valid samples it can judge)."""


def sides(method: str, x: np.ndarray, **limits: Any) -> Side:
    """Side of every valid sample; all kept below the method's minimum count or when the samples are all equal."""
    function, minimum = SIDES[method]
    if x.size < minimum or (x == x[0]).all():
        return side_none(x)
    return function(x, **limits)


def spared(x: np.ndarray, side: Side, tolerance: float) -> Side:
    """Keep what lies between the farthest sample that is kept, or that is ``tolerance`` from the median, on each side.

    A tolerance of 0 spares nothing.
    """
    if not tolerance > 0.0:
        return side
    m = np.median(x)
    kept = x[side == 0]
    lowest, highest = (kept.min(), kept.max()) if kept.size else (m, m)
    low = (x < lowest) & (m - x > tolerance)
    high = (x > highest) & (x - m > tolerance)
    return high.astype(int) - low.astype(int)


Rejected = tuple[np.ndarray, np.ndarray | None]


def reject_winsorized_legacy(x: np.ndarray, apply_rewinsor: bool = True, **limits: Any) -> Rejected:
    """See :func:`side_winsorized_legacy`; with ``apply_rewinsor`` a rejected sample becomes its clipped value."""
    keep = sides("winsorized_legacy", x, **limits) == 0
    if not apply_rewinsor:
        return keep, None
    return keep, np.where(keep, x, quantile_clipped(x, limits.get("limits", (0.05, 0.05))))


def reject(method: str, x: np.ndarray, **limits: Any) -> Rejected:
    """Which samples a method keeps, and what it replaces the others by, if it does."""
    if method == "winsorized_legacy":
        return reject_winsorized_legacy(x, **limits)
    return sides(method, x, **limits) == 0, None


# ------------------------------------------------------------------ combination


class Pixel(NamedTuple):
    """Result at one pixel and channel."""

    value: float
    coverage: int  # valid samples
    weight_sum: float  # of the samples that make the value
    n_low: int
    n_high: int


def weighted_mean(x: np.ndarray, w: np.ndarray) -> float:
    """Mean about the first sample, so that equal samples return themselves; plain when all weights are 0."""
    if not w.any():
        w = np.ones_like(w)
    return float(x[0] + np.sum(w * (x - x[0])) / np.sum(w))


def combine_pixel(
    x_all: np.ndarray,
    weights: np.ndarray | None = None,
    method: str = "none",
    combine: str = "mean",
    tolerance: float = 0.0,
    **limits: Any,
) -> Pixel:
    """Reject and combine the samples of one pixel.

    Parameters
    ----------
    x_all : ndarray (n,)
        Samples, ADU; NaN and infinities are invalid and leave every sum and count.
    weights : ndarray (n,) or None
        One weight per sample, None = all 1. They enter the mean alone.
    method, combine : str
        A key of ``SIDES``; "mean", "median", "min" or "max".
    tolerance : float
        Samples no farther from the median, ADU, are kept, unless rejected ones are replaced.
    **limits
        Passed to the rejection.
    """
    x_all = np.asarray(x_all, float)
    valid = np.isfinite(x_all)
    x = x_all[valid]
    w = np.ones(x.size) if weights is None else np.asarray(weights, float)[valid]
    if x.size == 0:
        return Pixel(np.nan, 0, 0.0, 0, 0)
    keep, substituted = reject(method, x, **limits)
    side = sides(method, x, **{k: v for k, v in limits.items() if k != "apply_rewinsor"})
    if substituted is None:
        side = spared(x, side, tolerance)
        keep = side == 0
    n_low, n_high = int((side < 0).sum()), int((side > 0).sum())
    if substituted is None and not keep.any():
        return Pixel(float(np.median(x)), x.size, float(w.sum()), n_low, n_high)
    values, w = (x[keep], w[keep]) if substituted is None else (substituted, w)
    if combine == "mean":
        value = weighted_mean(values, w)
    else:
        of_all: dict[str, Callable[[np.ndarray], Any]] = {"median": np.median, "min": np.min, "max": np.max}
        value = float(of_all[combine](values))
    return Pixel(value, x.size, float(w.sum()), n_low, n_high)
