"""The definitions of ``docs/algorithms.md``, in float64 NumPy: slow, obvious and independent.

Rejection and combination stand in ``zemosaic_phase3/check/definitions.py``, which imports nothing of the library, and
are handed on here; nothing else of the library is imported, so an agreement between the two means something.
``stack`` applies them to whole frames. What levels, weights and equalisation mean stands here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zemosaic_phase3.check.definitions import (
    SIDES,
    Pixel,
    clipped_median_std,
    clipped_samples,
    combine_pixel,
    deviation,
    gesd_steps,
    line_least_squares,
    reject,
    reject_winsorized_legacy,
)

__all__ = [
    "SIDES", "Pixel", "clipped_median_std", "clipped_samples", "combine_pixel", "deviation", "gesd_steps",
    "line_least_squares", "reject", "reject_winsorized_legacy",
]  # fmt: skip


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


def point_source_weights(frames: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Return (N, C) weights min(v) / v (min(L) / L)^1.5, L = width along the longer axis; here of round stars."""
    fwhm = np.asarray(fwhm, float)
    return noise_variance_weights(frames) * ((fwhm.min() / fwhm) ** 1.5)[:, None]


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
