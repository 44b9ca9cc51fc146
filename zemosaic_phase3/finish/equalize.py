"""Levels of the three colours of a tile made equal."""

from __future__ import annotations

import math

import numpy as np

from zemosaic_phase3.records import Equalization


def equalize_rgb_medians_inplace(img: np.ndarray) -> tuple[float, float, float, float]:
    """Scale the channels of an image, in place, to one median.

    ``m_c`` = median of the finite pixels of channel c; target = median of the usable (finite, > 0) ``m_c``;
    gain = target / ``m_c``, and 1 for a channel that is not usable.

    Parameters
    ----------
    img : ndarray (H, W, 3), floating
        Image, ADU; changed in place. Any other shape is left alone.

    Returns
    -------
    gain_r, gain_g, gain_b, target : float
        Gains (dimensionless) and common median (ADU); (1, 1, 1, nan) when it is impossible.

    Raises
    ------
    TypeError
        An integer image, which cannot be scaled in place.
    """
    if img.ndim != 3 or img.shape[-1] != 3:
        return 1.0, 1.0, 1.0, math.nan
    if not np.issubdtype(img.dtype, np.floating):
        raise TypeError(f"cannot equalise an image of dtype {img.dtype} in place; convert it to float32 first")
    medians = np.array([finite_median(img[..., c]) for c in range(3)])
    usable = np.isfinite(medians) & (medians > 0)
    if not usable.any():
        return 1.0, 1.0, 1.0, math.nan
    target = float(np.median(medians[usable]))
    gains = [target / m if good else 1.0 for m, good in zip(medians.tolist(), usable, strict=True)]
    for c, gain in enumerate(gains):
        img[..., c] *= gain
    return gains[0], gains[1], gains[2], target


def equalize_if(enabled: bool, image: np.ndarray, error: np.ndarray | None = None) -> Equalization:
    """Equalise a stacked image in place if it is asked for, its errors with it, and say what was done."""
    if not enabled:
        return Equalization()
    done = Equalization(True, *equalize_rgb_medians_inplace(image))
    if error is not None and error.ndim == 3:
        error *= np.array([done.gain_r, done.gain_g, done.gain_b], np.float32)
    return done


def luminance(image: np.ndarray) -> np.ndarray:
    """Mean of the channels, (H, W); float64, so that nothing depends on how a sum of float32 was ordered."""
    return image.mean(axis=-1, dtype=np.float64) if image.ndim == 3 else image.astype(np.float64)


def finite_median(values: np.ndarray) -> float:
    """Median of the finite values, nan when there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan
