"""The definitions of ``docs/algorithms.md``, in float64 NumPy, one pixel at a time: slow, obvious and independent.

Nothing of the library is imported here, so an agreement between the two means something. Each rejection is a function
``side_<name>(x, **limits)`` of the valid samples of one pixel, and a row of ``SIDES``. ``reject(name, x, **limits)``
returns ``keep``, a boolean mask, and ``substituted``: None (rejected samples are dropped) or the samples with the
rejected ones replaced.
``combine_pixel`` and ``stack`` add the rules that hold for every method (validity, minimum counts, weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

Side = np.ndarray  # int array, one per sample: -1 rejected low, 0 kept, +1 rejected high


# ------------------------------------------------------------------ small statistics


def deviation(x: np.ndarray, ddof: int) -> float:
    """Standard deviation about the mean; exactly 0 for equal samples, which plain sums do not guarantee."""
    return float(np.std(x - x[0], ddof=ddof))


def clipped_samples(x: np.ndarray, low: float = 3.0, high: float = 3.0, rounds: int = 5) -> np.ndarray:
    """Samples left after median-centred clipping with the population deviation, at most ``rounds`` times."""
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
    """Samples clipped to the linear-interpolated quantiles q(l) and q(1 - h)."""
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


def line_least_absolute(y: np.ndarray) -> np.ndarray:
    """Line of least absolute deviation, at the ranks.

    Some optimal line passes through two of the points, so all pairs are tried. Where several are equally good the
    first pair in rank order is taken.
    """
    rank = np.arange(y.size, dtype=float)
    best, best_cost = np.full(y.size, y[0]), np.inf
    for i in range(y.size - 1):
        j = np.arange(i + 1, y.size)
        lines = y[i] + ((y[j] - y[i]) / (j - i))[:, None] * (rank - i)  # through point i and each later one
        costs = np.abs(y - lines).sum(axis=1)
        if costs.min() < best_cost:
            best, best_cost = lines[np.argmin(costs)], costs.min()
    return best


def side_linear_fit_clip(x: np.ndarray, kappa_low: float = 5.0, kappa_high: float = 2.5, fit: str = "lad") -> Side:
    """Reject by distance from a line fitted to the sorted samples; refit on the survivors with new ranks."""
    line_of = {"lad": line_least_absolute, "ols": line_least_squares}[fit]

    def one_round(kept: np.ndarray) -> Side:
        order = np.argsort(kept, kind="stable")
        residual = kept[order] - line_of(kept[order])
        sigma = 2.0 * np.abs(residual).mean()
        side = np.zeros(kept.size, int)
        if sigma > 1e-12 * np.abs(kept).max():  # less is the rounding of a perfect fit
            side[order] = (residual / sigma >= kappa_high).astype(int) - (-residual / sigma >= kappa_low).astype(int)
        return side

    return reject_until_stable(x, 5, one_round)


class GesdStep(NamedTuple):
    """One step of the generalised extreme Studentised deviate test."""

    index: int  # sample removed in this step
    statistic: float  # R_i
    critical: float  # lambda_i
    side: int  # -1 below the mean, +1 above


def gesd_steps(x: np.ndarray, steps: int, alpha: float = 0.05) -> list[GesdStep]:
    """Rosner's test (Technometrics, 1983): remove the most extreme sample ``steps`` times, with the critical values."""
    alive = list(range(x.size))
    table = []
    for i in range(1, steps + 1):
        kept = x[alive]
        m, s = kept.mean(), deviation(kept, 1)
        if s == 0:
            break
        far = int(np.argmax(np.abs(kept - m)))
        left = x.size - i  # samples that remain after this step
        t = student_t.ppf(1.0 - alpha / (2.0 * (left + 1)), left - 1)
        critical = left * t / np.sqrt((left - 1 + t * t) * (left + 1))
        table.append(GesdStep(alive[far], abs(kept[far] - m) / s, critical, int(np.sign(kept[far] - m))))
        del alive[far]
    return table


def side_gesd(x: np.ndarray, fraction: float = 0.3, alpha: float = 0.05) -> Side:
    """Reject up to the last step whose statistic exceeds its critical value."""
    table = gesd_steps(x, int(np.floor(fraction * x.size + 1e-9)), alpha)
    passed = [i for i, step in enumerate(table, start=1) if step.statistic > step.critical]
    side = np.zeros(x.size, int)
    for step in table[: max(passed, default=0)]:
        side[step.index] = step.side
    return side


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
    """One pass on the distance from the median in units of the median; skipped when the median is 0."""
    m = np.median(x)
    if m == 0:
        return side_none(x)
    return ((x - m) / m > high).astype(int) - ((m - x) / m > low).astype(int)


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


def sides(method: str, x: np.ndarray, **limits: object) -> Side:
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
    return np.where(low, -1, np.where(high, 1, 0))


Rejected = tuple[np.ndarray, np.ndarray | None]


def reject_winsorized_legacy(x: np.ndarray, apply_rewinsor: bool = True, **limits: object) -> Rejected:
    """See :func:`side_winsorized_legacy`; with ``apply_rewinsor`` a rejected sample becomes its clipped value."""
    keep = sides("winsorized_legacy", x, **limits) == 0
    if not apply_rewinsor:
        return keep, None
    return keep, np.where(keep, x, quantile_clipped(x, limits.get("limits", (0.05, 0.05))))


def reject(method: str, x: np.ndarray, **limits: object) -> Rejected:
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
    **limits: object,
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
        value = float({"median": np.median, "min": np.min, "max": np.max}[combine](values))
    return Pixel(value, x.size, float(w.sum()), n_low, n_high)


class Stacked(NamedTuple):
    """Maps of the shape of one frame."""

    value: np.ndarray
    coverage: np.ndarray
    weight_sum: np.ndarray
    n_low: np.ndarray
    n_high: np.ndarray


def stack(
    frames: np.ndarray,
    weights: np.ndarray | None = None,
    method: str = "none",
    combine: str = "mean",
    tolerance: np.ndarray | None = None,
    **limits: object,
) -> Stacked:
    """Combine ``frames (N, H, W[, C])`` pixel by pixel.

    ``weights`` is None or broadcasts against the frames after trailing axes of length 1 are added: ``(N,)`` one per
    frame, ``(N, 1, 1, C)`` one per frame and channel, or the full shape. ``tolerance (H, W[, C])``: of each pixel.
    """
    frames = np.asarray(frames, float)
    allowed = np.zeros(frames.shape[1:]) if tolerance is None else tolerance
    if weights is not None:
        weights = np.asarray(weights, float)
        weights = weights.reshape(weights.shape + (1,) * (frames.ndim - weights.ndim))
        weights = np.broadcast_to(weights, frames.shape)
    out = np.empty((5, *frames.shape[1:]))
    for index in np.ndindex(frames.shape[1:]):
        at = (slice(None), *index)
        weight = None if weights is None else weights[at]
        out[at] = combine_pixel(frames[at], weight, method, combine, float(allowed[index]), **limits)
    return Stacked(out[0], out[1].astype(int), out[2], out[3].astype(int), out[4].astype(int))


# ------------------------------------------------------------------ normalisation, weights, equalisation


def planes(frame: np.ndarray) -> np.ndarray:
    """View a frame as (H, W, C), C = 1 when mono."""
    return frame[..., None] if frame.ndim == 2 else frame


def valid_values(plane: np.ndarray) -> np.ndarray:
    """Finite pixels of a plane, as a vector."""
    return plane[np.isfinite(plane)]


def location_scale(plane: np.ndarray) -> tuple[float, float]:
    """Median and 1.4826 times the median absolute deviation of the valid pixels."""
    v = valid_values(plane)
    m = np.median(v)
    return float(m), float(1.4826 * np.median(np.abs(v - m)))


def linear_fit_coefficients(
    source: np.ndarray, reference: np.ndarray, low: float = 25.0, high: float = 90.0
) -> tuple[float, float]:
    """Scale and offset that bring two percentiles of ``source`` onto those of ``reference``."""
    s_low, s_high = np.percentile(valid_values(source), [low, high])
    r_low, r_high = np.percentile(valid_values(reference), [low, high])
    if s_high - s_low < 1e-5 or r_high - r_low < 1e-5:
        return 1.0, float(r_low - s_low)
    a = (r_high - r_low) / (s_high - s_low)
    return float(a), float(r_low - a * s_low)


def luminance(frame: np.ndarray) -> np.ndarray:
    """0.299 R + 0.587 G + 0.114 B, or the frame itself when mono."""
    if frame.ndim == 2:
        return frame
    return 0.299 * frame[..., 0] + 0.587 * frame[..., 1] + 0.114 * frame[..., 2]


def sky_level(frame: np.ndarray, percentile: float = 25.0) -> float:
    """Percentile of the luminance of valid pixels."""
    return float(np.percentile(valid_values(luminance(frame)), percentile))


def plane_coefficients(method: str, source: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Scale and offset of one plane for the methods that work per channel.

    ``multiplicative_scaling`` multiplies by both ratios, (m0 / m)(s0 / s), as Siril and PixInsight do. A level that is
    not positive cannot be scaled: NaN.
    """
    if method == "linear_fit":
        return linear_fit_coefficients(source, reference)
    (m, s), (m0, s0) = location_scale(source), location_scale(reference)
    ratio = s0 / s if s > 0 and s0 > 0 else 1.0
    factor = m0 / m if m > 0 and m0 > 0 else np.nan
    return {
        "additive": (1.0, m0 - m),
        "multiplicative": (factor, 0.0),
        "additive_scaling": (ratio, m0 - ratio * m),
        "multiplicative_scaling": (factor * ratio, 0.0),
    }[method]


def normalize(frames: np.ndarray, method: str = "none", reference: int = 0) -> np.ndarray:
    """Return float64 copies of ``frames (N, H, W[, C])`` with the levels of frame ``reference``."""
    out = np.array(frames, float)
    ref = np.array(out[reference])
    for i, frame in enumerate(out):
        if method == "none" or i == reference:
            continue
        if method == "sky_mean":
            frame += sky_level(ref) - sky_level(frame)
            continue
        for c in range(planes(frame).shape[-1]):
            a, b = plane_coefficients(method, planes(frame)[..., c], planes(ref)[..., c])
            planes(frame)[..., c] = a * planes(frame)[..., c] + b
    return out


def noise_variance_weights(frames: np.ndarray) -> np.ndarray:
    """Return (N, C) weights min(v) / v, v = variance after sigma-clipping; the smallest v is that of all planes."""
    v = np.array(
        [[deviation(clipped_samples(valid_values(p)), 0) ** 2 for p in np.moveaxis(planes(f), -1, 0)] for f in frames]
    )
    return v.min() / v


def noise_fwhm_weights(frames: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Return (N, C) weights min(v) / v (min(F) / F)^2, F = median width of each frame's stars."""
    fwhm = np.asarray(fwhm, float)
    return noise_variance_weights(frames) * ((fwhm.min() / fwhm) ** 2)[:, None]


def snr_weights(frames: np.ndarray, star_flux: list[np.ndarray]) -> np.ndarray:
    """Return (N, C) weights min(v) / v (f / max(f))^2.

    f = geometric mean of the fluxes of the k brightest without the first and last quarter; k = what all frames have.
    """
    k = min(50, *(len(flux) for flux in star_flux))
    middle = [sorted(flux, reverse=True)[:k][k // 4 : k - k // 4] for flux in star_flux]
    f = np.array([np.prod(np.power(some, 1.0 / len(some))) for some in middle])
    return noise_variance_weights(frames) * ((f / f.max()) ** 2)[:, None]


def star_count_weights(n_stars: np.ndarray, channels: int) -> np.ndarray:
    """Return (N, C) weights n / max(n)."""
    return np.repeat(np.asarray(n_stars, float)[:, None] / np.max(n_stars), channels, axis=1)


def radial_weight(height: int, width: int, feather: float = 0.8, power: float = 2.0, floor: float = 0.05) -> np.ndarray:
    """Cosine fall-off with distance from the frame's centre in units of half its diagonal, not below ``floor``."""
    y, x = np.mgrid[:height, :width].astype(float)
    d = np.hypot(y - (height - 1) / 2.0, x - (width - 1) / 2.0) / (0.5 * np.hypot(height, width))
    return np.maximum(np.cos(np.pi / 2.0 * np.clip(d / feather, 0.0, 1.0)) ** power, floor)


def equalize_rgb(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return a copy whose channel medians are equal, and (gain R, gain G, gain B, target)."""
    out = np.array(image, float)
    nothing = (1.0, 1.0, 1.0, float("nan"))
    if out.ndim != 3 or out.shape[-1] != 3:
        return out, nothing
    medians = [np.median(v) if (v := valid_values(out[..., c])).size else np.nan for c in range(3)]
    usable = [m for m in medians if np.isfinite(m) and m > 0]
    if not usable:
        return out, nothing
    target = float(np.median(usable))
    gains = [target / m if m in usable else 1.0 for m in medians]
    return out * gains, (*map(float, gains), target)
