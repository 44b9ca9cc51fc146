"""Numbers above 32767 that were stored as signed ones and came back 65536 lower: the cores of bright stars."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.robust import MAD_TO_SIGMA

FAR: Final = 10.0  # units of the noise: a sky that far above 0 has no negative numbers of its own
FLANK: Final = 8192.0  # ADU: a number beside one that was wrapped is above that, or was wrapped itself
MOST_SEEN: Final = 65_536  # pixels that tell the level and noise of the sky


def find_wrapped(pixels: np.ndarray) -> np.ndarray | None:
    """Return the pixels of a frame that were wrapped, ``(H, W) bool``; None where there are none.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, C) float32, ADU
        Signed 16-bit numbers. Of three channels a pixel counts as wrapped where all are, and is left otherwise.

    Notes
    -----
    A negative number in a sky far above 0 is a cold pixel or a wrapped one; those that were wrapped lie in areas whose
    brightest neighbour is near the end of the range.
    """
    planes = pixels.reshape(*pixels.shape[:2], -1)
    if not (planes.min() < 0.0 and planes.max() > FLANK):
        return None
    from scipy import ndimage

    step = max(1, int((planes.size / MOST_SEEN) ** 0.5)) | 1
    seen = planes[::step, ::step]
    level = np.nanmedian(seen, axis=(0, 1))
    noise = MAD_TO_SIGMA * np.nanmedian(np.abs(seen - level), axis=(0, 1))
    if (level <= FAR * noise).any():
        return None
    negative = (planes < 0.0).all(axis=2)
    labels, n = ndimage.label(negative, np.ones((3, 3), bool))
    if n == 0:
        return None
    brightest = ndimage.maximum_filter(np.where(negative, 0.0, np.nan_to_num(planes.max(axis=2))), 5)
    flank = ndimage.maximum(brightest, labels, np.arange(n + 1))
    flank[0] = 0.0
    wrapped = flank[labels] > FLANK
    return wrapped if wrapped.any() else None
