"""Medians of a few frames at every pixel, and how they differ."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.runtime.jit import inlined, kernel


@inlined
def _median(cube: np.ndarray, p: int, frames: np.ndarray, wanted: int, least: int, ordered: np.ndarray) -> float:
    """Median at pixel p of the first ``wanted`` frames that are valid there; NaN if fewer than ``least`` are."""
    n = 0
    for k in range(frames.size):
        x = np.float64(cube[frames[k], p])
        if x - x != 0.0 or n == wanted:
            continue
        i = n
        while i > 0 and ordered[i - 1] > x:
            ordered[i] = ordered[i - 1]
            i -= 1
        ordered[i] = x
        n += 1
    return 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2]) if n >= least else np.nan


@kernel
def median_differences(
    cube: np.ndarray, start: int, stop: int, sharp: np.ndarray, blurred: np.ndarray, middle: np.ndarray, extremes: int,
    ordered: np.ndarray, sharp_less_middle: np.ndarray, blurred_less_middle: np.ndarray,
) -> None:  # fmt: skip
    """Fill pixels ``start .. stop - 1`` of two maps, ``(P,) float32``, ADU.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
        Samples; NaN and infinities are invalid.
    sharp, blurred, middle : ndarray (k,) int64
        Frames of three medians; of the first two only the first ``extremes`` that are valid at a pixel count. A
        median of fewer valid samples than ``extremes`` is NaN.
    ordered : ndarray (as long as the longest of them,) float64
        Scratch.
    """
    for p in range(start, stop):
        centre = _median(cube, p, middle, middle.size, extremes, ordered)
        sharp_less_middle[p] = np.float32(_median(cube, p, sharp, extremes, extremes, ordered) - centre)
        blurred_less_middle[p] = np.float32(_median(cube, p, blurred, extremes, extremes, ordered) - centre)
