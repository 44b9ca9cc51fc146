"""The quality gate: a verdict on one finished tile, before it is written. Nothing is read, written or modified."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from zemosaic_phase3.finish.equalize import finite_median, luminance
from zemosaic_phase3.finish.noise import BACKGROUND_BLOCK_PX, OBJECT_SIGMA, sky_sigma, smooth_background

CORE_FRACTION: Final = 0.1  # the shape is measured above this fraction of the peak, which parts close neighbours
LEAST_CORE_PX: Final = 9  # smaller cores are hot pixels, or too coarsely sampled for a shape
SHAPED_OBJECTS: Final = (5, 500)  # fewer objects are no evidence; more than the brightest so many add none
EMPTY_WEIGHT: Final = 1.5  # a tile is rejected at the default threshold 0.48 when 32 % of it is empty
CORNER_WEIGHT: Final = 0.4  # four empty corners alone do not reject: field rotation makes them
BORDER_WEIGHT: Final = (0.1, 0.4)  # score per unit of excess border noise, and its limit: does not reject alone
SMALLEST_SIDE_PX: Final = 64  # a smaller tile says nothing of border and corners, and adds nothing to a mosaic
BLOWN_UP: Final = 1e6  # ADU, and times the level inside: no camera gives this, a normalisation that went wrong does


def evaluate_quality_gate_metrics(
    image: np.ndarray,
    *,
    edge_band_px: int = 64,
    k_sigma: float = 2.5,
    erode_px: int = 3,
    threshold: float = 0.48,
    alpha: np.ndarray | None = None,
) -> dict[str, Any]:
    """Judge a finished tile: 0 = good, accepted at ``score <= threshold`` unless a rule overrides the score.

    The score is that of the worst fault, so that small blemishes do not add up to a rejection:
    ``max(TRL, 1.5 EMPTY, 0.4 CER, min(0.4, 0.1 (NBR - 1)))``, at most 1.

    - ``TRL``, trailing: median over the brightest stars of 1 - smaller / larger eigenvalue of the second moments, 0 for
      round stars, 0.48 at an axis ratio of 0.72, 0.75 at 0.5. Each object is measured by itself: the moments of all
      bright pixels at once describe where the stars are, not how they look. 0 when fewer than 5 can be measured.
    - ``EMPTY``: fraction of the tile without data (not finite, alpha 0, or a constant darker than the sky).
    - ``CER``, empty corners: the same fraction, of the four corner squares of side ``edge_band_px``.
    - ``NBR``: noise of the border ``edge_band_px`` wide over noise of the rest; 1 when it cannot be measured.
    - ``EOC``, extended-object coverage: fraction of the data brighter than the sky by ``k_sigma`` noise that outlives
      an opening by ``erode_px``. For information: a nebula is no fault.

    Two rules stand above the score. A tile is rejected whatever the threshold (``hard_reject``) if its shorter side is
    below 64 px (``small_dim``), its border (99th percentile) exceeds 1e6 ADU and 1e6 times the level inside
    (``edge_blowup``), or it holds no data (``empty``). It is accepted in spite of a score above the threshold
    (``override``) if only border noise or corners are to blame: they tell of the rim, which the mosaic weighs down.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Tile, ADU; NaN = invalid.
    edge_band_px, erode_px : int
        Pixels.
    k_sigma : float
        Units of the sky noise.
    threshold : float
        Largest score that is accepted.
    alpha : ndarray (H, W), optional
        0 where the tile holds no data.

    Returns
    -------
    dict
        ``score``, ``threshold``, ``EOC``, ``TRL``, ``CER``, ``NBR``, ``EMPTY`` (finite floats), ``objects`` (int, stars
        behind TRL), ``hard_reject`` (0 or 1), ``hard_reject_reason`` (text), ``override``, ``accepted`` (bool). A tile
        without data has score 1.

    Raises
    ------
    ValueError
        ``alpha`` is of another shape than the image.
    """
    lum = luminance(image)
    valid = _holds_data(lum, alpha)
    lum = np.where(valid, lum, np.nan)
    band = max(1, min(int(edge_band_px), min(lum.shape) // 4))
    noise = sky_sigma(lum)
    metrics: dict[str, Any] = {"EOC": 0.0, "TRL": 0.0, "NBR": 1.0, "objects": 0}
    if noise > 0:
        metrics["TRL"], metrics["objects"] = _trailing(lum, noise)
        metrics["EOC"] = _extended_fraction(lum, noise, k_sigma, int(erode_px))
        metrics["NBR"] = _border_noise_ratio(lum, band)
    ends = (slice(band), slice(-band, None))
    metrics["CER"] = 1.0 - float(np.mean([valid[rows, columns] for rows in ends for columns in ends]))
    metrics["EMPTY"] = 1.0 - float(np.mean(valid))
    rate, most = BORDER_WEIGHT
    faults = (
        metrics["TRL"],
        EMPTY_WEIGHT * metrics["EMPTY"],
        CORNER_WEIGHT * metrics["CER"],
        min(most, rate * (metrics["NBR"] - 1.0)),
    )
    score = min(1.0, max(0.0, *faults))
    reason = _hard_reject(image, band, is_empty=not valid.any())
    is_rim_only = max(faults[:2]) <= threshold < score
    return {
        "score": score,
        "threshold": float(threshold),
        **metrics,
        "hard_reject": int(bool(reason)),
        "hard_reject_reason": reason,
        "override": is_rim_only and not reason,
        "accepted": not reason and (score <= threshold or is_rim_only),
    }


def _hard_reject(image: np.ndarray, band: int, *, is_empty: bool) -> str:
    """Why a tile is rejected whatever its score; empty text if it is not."""
    if min(image.shape[:2]) < SMALLEST_SIDE_PX:
        return "small_dim"
    level = np.abs(luminance(image))
    inside = level[band:-band, band:-band]
    rim = np.concatenate([part.ravel() for part in (level[:band], level[-band:], level[:, :band], level[:, -band:])])
    rim = rim[np.isfinite(rim)]
    typical = finite_median(inside)
    if rim.size and np.percentile(rim, 99) > BLOWN_UP * max(1.0, 0.0 if math.isnan(typical) else typical):
        return "edge_blowup"
    return "empty" if is_empty else ""


def _holds_data(lum: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Pixels that are finite, not masked, and not part of a dead-flat area below the sky, which is filler."""
    from scipy import ndimage

    valid = np.isfinite(lum)
    if alpha is not None:
        if alpha.shape != lum.shape:
            raise ValueError(f"alpha has shape {alpha.shape}, the image {lum.shape}; they must agree")
        valid &= alpha > 0
    filled = np.where(valid, lum, np.inf)
    flat = valid & (ndimage.minimum_filter(filled, 3) == ndimage.maximum_filter(np.where(valid, lum, -np.inf), 3))
    if flat.all():
        return ~flat
    sky = finite_median(lum[valid & ~flat])
    filler = ndimage.binary_opening(flat & (lum < sky), np.ones((3, 3), bool))
    return valid & ~ndimage.binary_dilation(filler, np.ones((3, 3), bool), mask=valid & (lum < sky))


def _trailing(lum: np.ndarray, noise: float) -> tuple[float, int]:
    """Median trailing of the brightest well-measured objects, and their number."""
    from scipy import ndimage

    signal = np.nan_to_num(lum - smooth_background(lum, BACKGROUND_BLOCK_PX), nan=0.0)
    labels, count = ndimage.label(signal > OBJECT_SIGMA * noise)
    peaks = np.zeros(count + 1)
    np.maximum.at(peaks, labels.ravel(), signal.ravel())
    cores, count = ndimage.label((labels > 0) & (signal > CORE_FRACTION * peaks[labels]))
    y, x = np.nonzero(cores)
    core, weight = cores[y, x], signal[y, x]

    def per_core(values: np.ndarray) -> np.ndarray:
        return np.bincount(core, weight * values, minlength=count + 1)[1:]

    flux = per_core(np.ones_like(weight))
    cx, cy = per_core(x) / flux, per_core(y) / flux
    dx, dy = x - cx[core - 1], y - cy[core - 1]
    xx, yy, xy = (per_core(values) / flux for values in (dx * dx, dy * dy, dx * dy))
    half_sum, root = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    pixels = np.bincount(core, minlength=count + 1)[1:]
    whole = np.ones(count + 1, bool)  # not cut by the edge of the data
    whole[cores[ndimage.binary_dilation(np.pad(np.isnan(lum), 1, constant_values=True))[1:-1, 1:-1]]] = False
    usable = np.flatnonzero(whole[1:] & (pixels >= LEAST_CORE_PX))
    fewest, most = SHAPED_OBJECTS
    if usable.size < fewest:
        return 0.0, 0
    usable = usable[np.argsort(-flux[usable], kind="stable")[:most]]
    trailing = 1.0 - (half_sum - root)[usable] / (half_sum + root)[usable]
    return float(np.median(trailing)), int(usable.size)


def _extended_fraction(lum: np.ndarray, noise: float, k_sigma: float, erode_px: int) -> float:
    from scipy import ndimage

    with np.errstate(invalid="ignore"):
        bright = lum - smooth_background(lum, max(BACKGROUND_BLOCK_PX, min(lum.shape) // 4)) > k_sigma * noise
    if erode_px > 0:
        bright = ndimage.binary_opening(bright, iterations=erode_px)
    return float(bright.sum() / np.isfinite(lum).sum())


def _border_noise_ratio(lum: np.ndarray, band: int) -> float:
    inside = np.zeros(lum.shape, bool)
    inside[band:-band, band:-band] = True
    border = sky_sigma(np.where(inside, np.nan, lum))
    rest = sky_sigma(np.where(inside, lum, np.nan))
    ratio = border / rest if rest > 0 else math.nan
    return ratio if math.isfinite(ratio) else 1.0
