"""Weights of frames: by noise, by what a faint star shows, by the sharpness of stars, by signal to noise, by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.records import FrameStats

FLUX_STARS: Final = 50  # brightest stars whose flux tells how transparent the air was
MIN_FLUX_STARS: Final = 5  # fewer do not: one variable star or one blend would decide the weight
SHAPE_STARS: Final = 100  # brightest stars whose median width and shape are those of the frame
WIDTH_SCATTER: Final = 0.15  # relative, of the widths of those stars: their median is good to 1.25 of it over sqrt(n)
ROUNDEST: Final = 25.0  # percent of the frames that show how elongated stars seem that are round


def noise_variance_weights(variance: np.ndarray) -> np.ndarray:
    """``min(v) / v`` over all frames and channels, ``(N, C) float64``; NaN for a frame that cannot be measured.

    Only the ratio between frames of one channel enters a mean. A frame is not measurable when a variance is not finite,
    or is zero while other frames have noise in that channel (a constant frame has no noise, but no sky either). A
    channel without noise in every frame, as an empty one of a two-colour image, weighs the same in all.
    """
    measured = np.isfinite(variance).all(axis=1)
    noisy = (variance[measured] > 0.0).any(axis=0)
    usable = measured & (variance[:, noisy] > 0.0).all(axis=1)
    weight = np.full(variance.shape, np.nan)
    weight[usable] = 1.0
    if usable.any() and noisy.any():
        shown = variance[np.ix_(usable, noisy)]
        weight[np.ix_(usable, noisy)] = shown.min() / shown
    return weight


def _only(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Values of the frames that could be measured, NaN for the others, so that they set no minimum; ``(N, 1)`` too."""
    return np.where(measured.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def noise_fwhm_weights(variance: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """``min(v) / v (min(F) / F)^2``, ``(N, C) float64``; NaN for a frame that cannot be measured.

    A star's peak, and the signal to noise of a point source under a matched filter, go with 1 / F^2 and 1 / F.

    Parameters
    ----------
    variance : ndarray (N, C) float64
        Noise after normalisation, ADU^2.
    fwhm : ndarray (N,) float64
        Median over the frame's stars, pixels; NaN without stars.
    """
    noise = noise_variance_weights(_only(variance, np.isfinite(fwhm)))
    measured = _only(fwhm, np.isfinite(noise).all(axis=1))
    return noise * (extreme(measured, np.fmin) / measured)[:, None] ** 2


def point_source_weights(variance: np.ndarray, width: np.ndarray) -> np.ndarray:
    """``min(v) / v (min(L) / L)^1.5``, ``(N, C) float64``; NaN for a frame whose noise cannot be measured.

    The noise of a faint star in the mean of frames, measured with the profile that the mean has, is least with weights
    that solve ``w = sum_j(w_j / (L^2 + L_j^2)) / v``, between ``1 / (v L)`` and ``1 / (v L^2)``. The exponent 1.5 comes
    within 1 % of that noise for sessions of 2.2 to 8.7 px, and its stars are 2 to 3 % narrower. The noise is that at
    one transparency, so that clouds count with the square of what they take.

    Parameters
    ----------
    variance : ndarray (N, C) float64
        Noise after normalisation, ADU^2.
    width : ndarray (N,) float64
        From :func:`star_widths`; NaN: not known of any frame.
    """
    noise = noise_variance_weights(variance)
    usable = _only(width, np.isfinite(noise).all(axis=1))
    ratio = extreme(usable, np.fmin) / width
    return noise * np.where(np.isfinite(ratio), ratio * np.sqrt(np.where(ratio > 0.0, ratio, 1.0)), 1.0)[:, None]


def star_widths(
    fwhm: np.ndarray, eccentricity: np.ndarray, n_stars: np.ndarray, area: np.ndarray | None = None
) -> np.ndarray:
    """Return the full width at half maximum of each frame's stars along their longer axis, ``(N,) float64``.

    A width of few stars is drawn to the session's median by as much as its error explains, and a frame without stars
    takes the median. Noise makes round stars seem elongated: what the roundest quarter of the frames shows is taken
    off, so that only what is more than in those counts.

    Parameters
    ----------
    fwhm : ndarray (N,) float64
        Median over the frame's stars, of the mean of both axes, pixels of the frame; NaN without stars.
    eccentricity : ndarray (N,) float64
        Median over the frame's stars, ``sqrt(1 - (b / a)^2)``; NaN without stars.
    n_stars : ndarray (N,) int
        Stars found.
    area : ndarray (N,) float64, optional
        Of a pixel of the reference, in pixels of the frame: widths are in pixels of the reference then.
    """
    known = np.isfinite(fwhm) & (fwhm > 0.0)
    if not known.any():
        return np.full(fwhm.shape, np.nan)
    level = np.log(np.where(known, fwhm, 1.0) / (1.0 if area is None else np.sqrt(area)))
    middle = float(np.median(level[known]))
    error = 1.2533 * WIDTH_SCATTER / np.sqrt(np.clip(n_stars, 1, SHAPE_STARS))
    off = np.where(known, level - middle, 0.0)
    own = np.where(off != 0.0, np.maximum(0.0, 1.0 - (error / np.where(off != 0.0, off, 1.0)) ** 2), 0.0)
    squares = np.where(np.isfinite(eccentricity), eccentricity, 0.0) ** 2
    more = np.maximum(squares - float(np.percentile(squares[known], ROUNDEST)), 0.0)
    # The mean of a^2 and b^2 is what a width is made of, and b^2 = (1 - e^2) a^2.
    return np.exp(middle + own * off) * np.sqrt(2.0 / (2.0 - more))


def snr_weights(variance: np.ndarray, star_flux: Sequence[np.ndarray]) -> np.ndarray:
    """``min(v) / v (f / max(f))^2``, ``(N, C) float64``; NaN for a frame that cannot be measured.

    f = geometric mean of the middle half, by flux, of the k brightest stars, with one k for all frames (what the
    poorest has, at most 50), so that f goes with transparency alone; the brightest quarter may be saturated or lost
    in one frame and not in the next. The inverse of the variance of a frame brought to one transparency: the weight of
    least noise for a mean of fluxes (any textbook on errors). Both f and v are those before normalisation; whatever
    factor a normalisation applies, it applies to both.

    NOTE f is good to about 3 % with 50 stars, 15 % with 20 of which some are saturated (simulated frames).

    Parameters
    ----------
    variance : ndarray (N, C) float64
        Noise before normalisation, ADU^2.
    star_flux : N arrays (n,) float64
        Brightest first, ADU.
    """
    counts = np.array([flux.size for flux in star_flux])
    noise = noise_variance_weights(_only(variance, counts >= MIN_FLUX_STARS))
    measured = np.isfinite(noise).all(axis=1)
    k = min(int(counts[measured].min()), FLUX_STARS) if measured.any() else 0
    middle = slice(k // 4, k - k // 4)
    typical = np.full(len(star_flux), np.nan)
    for i in np.flatnonzero(measured).tolist():
        typical[i] = np.exp(np.mean(np.log(star_flux[i][middle])))
    return noise * (typical / extreme(typical, np.fmax))[:, None] ** 2


def star_count_weights(n_stars: np.ndarray, channels: int) -> np.ndarray:
    """``n / max(n)``, ``(N, C) float64``; NaN for a frame without stars. Haze and bad seeing hide the faint stars."""
    counts = np.where(n_stars > 0, n_stars, np.nan)
    return np.repeat((counts / extreme(counts, np.fmax))[:, None], channels, axis=1)


def extreme(values: np.ndarray, of: np.ufunc) -> float:
    """Smallest (``np.fmin``) or largest (``np.fmax``) number; NaN where there is none."""
    return float(of.reduce(values, initial=np.nan))


def frame_weights(
    method: str, stats: Sequence[FrameStats], scale: np.ndarray, area: np.ndarray | None = None
) -> np.ndarray:
    """Return the weight of every frame and channel, ``(N, C) float64``; NaN for a frame that cannot be measured.

    Parameters
    ----------
    method : str
        A :data:`methods.WeightName`.
    stats : sequence of FrameStats
    scale : ndarray (N, C) float64
        What the normalisation multiplies the frames by.
    area : ndarray (N,) float64, optional
        Of a pixel of the reference, in pixels of each frame; None: 1.
    """
    variance = np.stack([s.variance for s in stats])
    if method == "noise_variance":
        return noise_variance_weights(variance * scale**2)
    if method == "noise_fwhm":
        return noise_fwhm_weights(variance * scale**2, np.array([s.fwhm for s in stats]))
    if method == "point_source":
        fwhm, eccentricity, n_stars = (
            np.array([getattr(s, name) for s in stats]) for name in ("fwhm", "eccentricity", "n_stars")
        )
        return point_source_weights(variance * scale**2, star_widths(fwhm, eccentricity, n_stars, area))
    if method == "snr":
        return snr_weights(variance, [s.star_flux for s in stats])
    if method == "stars":
        return star_count_weights(np.array([s.n_stars for s in stats]), variance.shape[1])
    return np.ones_like(variance)
