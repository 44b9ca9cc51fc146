"""Sky levels of two images and the gain and offset between them, under the names that ZeMosaic calls."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

_FLAT_SPAN_ADU: Final = 1e-5  # a narrower sky span carries no scale; the same limit as in the linear_fit normalisation
_CORRELATED: Final = 0.9  # from here on a common structure outweighs the noise: the gain is then good to a few per cent
_FEWEST_PAIRS: Final = 16


def compute_sky_statistics(
    image: np.ndarray | None, low_percentile: float, high_percentile: float
) -> dict[str, float] | None:
    """Return "median", "low" and "high" of the finite pixels of an image, ADU; None where there is none.

    Parameters
    ----------
    image : ndarray or None
        ADU.
    low_percentile, high_percentile : float
        Percentiles, linear-interpolated, between which the sky lies.

    Raises
    ------
    ValueError
        Percentiles outside 0 <= low < high <= 100.
    """
    if not 0 <= low_percentile < high_percentile <= 100:
        raise ValueError(f"percentiles {low_percentile}, {high_percentile} must satisfy 0 <= low < high <= 100")
    values = np.empty(0) if image is None else np.asarray(image, np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    median, low, high = (float(v) for v in np.percentile(values, (50.0, low_percentile, high_percentile)))
    return {"median": median, "low": low, "high": high}


def estimate_sky_affine_to_ref(
    samples_src: np.ndarray | None,
    samples_ref: np.ndarray | None,
    sky_low: float,
    sky_high: float,
    clip_sigma: float,
) -> tuple[float, float, int] | None:
    """Return gain and offset that bring the sky of one image to that of another, from the same places in both.

    The gain comes from the places whose mean level lies between two percentiles. It is the ratio of the standard
    deviations (reduced major axis): both sides carry noise, and a least-squares line of one on the other would always
    be too flat. It is 1 where the two correlate by less than 0.9, because what they do not share is noise, which has no
    scale. Five rounds drop what lies further from the line than ``clip_sigma`` standard deviations. The offset is the
    median of what is left between all places: between the percentiles the noisier side would have the lower level.

    Parameters
    ----------
    samples_src, samples_ref : ndarray (n,), ADU
        Pairs that are not finite do not count.
    sky_low, sky_high : float
        Percentiles.
    clip_sigma : float
        At least 1 is used.

    Returns
    -------
    gain : float
        ``gain * src + offset`` is on the scale of the reference.
    offset : float
        ADU.
    samples : int
        Pairs between the percentiles. None instead of all three where fewer than 16 pairs are finite, or the two
        arrays differ in size.
    """
    if samples_src is None or samples_ref is None or np.size(samples_src) != np.size(samples_ref):
        return None
    pairs = np.stack([np.ravel(samples_src), np.ravel(samples_ref)]).astype(np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < _FEWEST_PAIRS:
        return None
    low, high = np.percentile(pairs.mean(axis=0), (sky_low, sky_high))
    is_sky = (pairs.mean(axis=0) >= low) & (pairs.mean(axis=0) <= high)
    sky = pairs[:, is_sky] if is_sky.sum() >= _FEWEST_PAIRS else pairs
    samples = sky.shape[1]
    gain = 1.0
    for _ in range(5):
        gain = _common_scale(sky)
        residual = sky[1] - gain * sky[0]
        residual = np.abs(residual - np.median(residual))
        keep = residual <= max(clip_sigma, 1.0) * math.sqrt(float(np.mean(residual**2)))
        if keep.all() or keep.sum() < _FEWEST_PAIRS:
            break
        sky = sky[:, keep]
    return gain, float(np.median(pairs[1] - gain * pairs[0])), samples


def _common_scale(pairs: np.ndarray) -> float:
    """Gain of pairs ``(2, n)``, see :func:`estimate_sky_affine_to_ref`."""
    deviation = pairs - pairs.mean(axis=1, keepdims=True)
    xx, yy, xy = np.mean(deviation[0] ** 2), np.mean(deviation[1] ** 2), np.mean(deviation[0] * deviation[1])
    has_scale = min(xx, yy) > _FLAT_SPAN_ADU**2 and xy >= _CORRELATED * math.sqrt(xx * yy)
    return math.sqrt(yy / xx) if has_scale else 1.0
