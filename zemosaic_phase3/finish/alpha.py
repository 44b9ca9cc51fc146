"""The alpha mask: where a tile counts."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.finish.coverage import coverage_2d, poorly_covered_border, touching_border
from zemosaic_phase3.finish.equalize import finite_median, luminance
from zemosaic_phase3.finish.noise import MAD_TO_SIGMA

# Alt-az cleanup
ALPHA_EMPTY: Final = 1e-3  # alpha at or below this carries no data


def altaz_alpha(
    image: np.ndarray,
    *,
    margin_percent: float = 5.0,
    decay: float = 0.15,
    nanize: bool = True,
    coverage: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Fade out the border that field rotation leaves poorly exposed.

    ``alpha = clip(distance to the nearest poor pixel / band, 0, 1)``, band = max(4, ``margin_percent`` of the shorter
    side) pixels. With ``coverage``, poor is what touches the border and has none or less than ``decay`` of the largest
    coverage. Without it, poor is what within ``band`` of the edge is not finite or has a luminance (mean of the
    channels) below median - 1.4826 MAD of the inner 60 %, after a binary opening with a cross; ``decay`` then has no
    effect. The pixels alone cannot tell a poor border from the darker side of a gradient: give the coverage where there
    is one.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        ADU; not modified.
    margin_percent : float
        Width of the band, percent of the shorter side.
    decay : float
        Fraction of the largest coverage, 0 to 1.
    nanize : bool
        Pixels with alpha <= 0.001 become NaN; otherwise 0.
    coverage : ndarray (H, W) or (H, W, C), optional
        Samples (or weight) behind each pixel.

    Returns
    -------
    image : ndarray
        Cleaned copy, or the image itself when nothing is poor.
    alpha : ndarray (H, W) float32 or None
        0 to 1; None when nothing is poor.

    Raises
    ------
    SpecError
        ``margin_percent`` outside 0 to 50 or ``decay`` outside 0 to 1.
    """
    from scipy import ndimage

    for name, value, top in (("alt-az margin percent", margin_percent, 50.0), ("alt-az decay", decay, 1.0)):
        if not 0.0 <= value <= top:
            raise SpecError(f"{name} = {value!r} is outside [0, {top:g}]")
    band = max(4, int(min(image.shape[:2]) * margin_percent / 100.0))
    if coverage is None:
        poor = _low_signal_border(luminance(image), band)
    else:
        per_pixel = coverage_2d(coverage, image.shape)
        # "less than 0 of the largest" would be nothing: an uncovered border is poor whatever the decay
        poor = touching_border(~(per_pixel > 0)) | poorly_covered_border(per_pixel, decay)
    if not poor.any():
        return image, None
    distance = ndimage.distance_transform_edt(~poor) if not poor.all() else np.zeros(poor.shape)
    alpha = np.clip(distance / band, 0.0, 1.0).astype(np.float32)
    cleaned = np.array(image, dtype=np.result_type(image.dtype, np.float32))
    cleaned[alpha <= ALPHA_EMPTY] = np.nan if nanize else 0.0
    return cleaned, alpha


def _low_signal_border(lum: np.ndarray, band: int) -> np.ndarray:
    from scipy import ndimage

    height, width = lum.shape
    inner = lum[int(0.2 * height) : math.ceil(0.8 * height), int(0.2 * width) : math.ceil(0.8 * width)]
    middle = finite_median(inner)
    if math.isnan(middle):
        return np.ones(lum.shape, bool)  # a tile without a middle has nothing to save
    low = ~(lum >= middle - MAD_TO_SIGMA * finite_median(np.abs(inner - middle)))
    low[band:-band, band:-band] = False
    return ndimage.binary_opening(low)


def alpha_from_coverage(coverage: np.ndarray, altaz_alpha: np.ndarray | None = None) -> np.ndarray:
    """Say which pixels hold data: 255 where a channel has coverage and the alt-az mask, if any, is at least 0.5.

    Parameters
    ----------
    coverage : ndarray (H, W) or (H, W, C)
        Samples (or weight, or bool) behind each pixel; NaN counts as none.
    altaz_alpha : ndarray (H, W), optional
        From :func:`altaz_alpha`, 0 to 1.

    Returns
    -------
    ndarray (H, W) uint8
        0 or 255.

    Raises
    ------
    ValueError
        The two have different shapes.
    """
    covered = (coverage > 0).any(axis=-1) if coverage.ndim == 3 else coverage > 0
    if altaz_alpha is not None:
        if altaz_alpha.shape != covered.shape:
            raise ValueError(f"the mask has shape {altaz_alpha.shape}, the coverage {covered.shape}; they must agree")
        covered = covered & (altaz_alpha >= 0.5)
    return np.where(covered, np.uint8(255), np.uint8(0))
