"""Skies whose noise was cut off at the lowest number: dark frames subtracted, the rest stored without a sign.

Half of a sky about 0 is then exactly 0. Rejection takes the spread of what is left for the noise, and throws away high
samples by the dozen; mean and faint stars are wrong either way. A sample on the floor says that it lay somewhere below:
it counts as the mean of what lay there (the expectation step of a censored Gaussian: Tobin 1958, Econometrica 26, 24).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.io.mended_frame import planes_of
from zemosaic_phase3.robust import FLOORED, sky_above_floor

MOST_SEEN: Final = 16_384  # samples of a colour that are looked at
MOST_FLOORED: Final = 0.8  # of the samples; with more there is too little sky to tell by


def find_floors(pixels: np.ndarray, cfa: str | None = None) -> np.ndarray | None:
    """Look for a floor in all pixels of a frame.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, C) uint16 or float32, ADU
        NaN = invalid.
    cfa : str, optional
        Colours of the 2x2 cell of a mosaic.

    Returns
    -------
    ndarray (planes, 3) float64 or None
        Of each of :func:`planes_of`: the floor, what samples on it count as, ADU, and their share; NaN for a plane
        without one. None where no plane has one.
    """
    found = np.full((4 if cfa is not None else 1 if pixels.ndim == 2 else pixels.shape[2], 3), np.nan)
    for row, plane in zip(found, planes_of(pixels, cfa is not None), strict=True):
        step = max(1, int((plane.size / MOST_SEEN) ** 0.5))
        seen = plane[::step, ::step]
        lowest = float(np.fmin.reduce(seen, axis=None)) if seen.dtype.kind == "f" else float(seen.min())
        share = np.count_nonzero(seen == lowest) / seen.size
        if share < FLOORED:
            continue
        known = np.sort(seen[np.isfinite(seen)]).astype(np.float64)
        share = np.count_nonzero(known == lowest) / known.size
        sky = sky_above_floor(known.item, known.size, lowest)
        if sky is None or share > MOST_FLOORED:
            continue
        from scipy.special import ndtri

        at = float(ndtri(share))
        mean_below = sky[0] - sky[1] * float(np.exp(-0.5 * at * at) / np.sqrt(2.0 * np.pi)) / share
        if mean_below < lowest:
            row[:] = lowest, mean_below, share
    return None if np.isnan(found).all() else found
