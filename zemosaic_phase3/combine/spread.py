"""The error of a pixel: how far the mean, or the median, of what it keeps may be off, from how far apart that lies.

Of a pixel's kept samples ``x`` with weights ``w``, whose weighted mean is ``m``,

    variance of m = sum w^2 (x - m)^2 / ((sum w)^2 - sum w^2),

which is right on average both for samples of one variance and for weights that are one over the variance; with equal
weights it is the textbook's ``sum (x - m)^2 / (n (n - 1))``. Of a median it is the variance of the samples times
``pi / (2 n + 1)`` for an odd number n and ``pi / (2 n + 2.6)`` for an even one, which is the exact value for normal
samples within 3 %, from three on. The error is the root, ADU; NaN where fewer than two samples are kept or none has a
weight.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import kernel
from zemosaic_phase3.runtime.lanes import LANES

PI: Final = 3.141592653589793
ODD: Final = 1.0  # beside twice the number of samples, see above
EVEN: Final = 2.6


@kernel
def spread_block(
    cube: np.ndarray, start: int, stop: int, frame_weight: np.ndarray, sample_weight: np.ndarray, step: int,
    by_mean: bool, low: np.ndarray, high: np.ndarray, error: np.ndarray,
) -> None:  # fmt: skip
    """Fill the errors of pixels ``start .. stop - 1``.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
    start, stop : int
        ``start`` is a multiple of ``LANES``.
    frame_weight : ndarray (N, LANES) float64
        Weight of each frame, one column per lane; lane = pixel mod LANES.
    sample_weight : ndarray (N, P / step) float32, or (0, 0)
        Multiplies the frame weight, where given.
    step : int
        Neighbouring elements that share a sample weight.
    by_mean : bool
        The result is a mean; else a median, to which weights do not apply.
    low, high : ndarray (P,) float32, ADU
        The smallest and the largest value each pixel keeps.
    error : ndarray (P,) float32, ADU
        Filled.
    """
    n_frames = cube.shape[0]
    weighs = sample_weight.shape[0] > 0 and by_mean
    total, weight, squares, spread = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for p0 in range(start, stop, LANES):
        width = min(LANES, stop - p0)
        for j in range(width):
            total[j] = 0.0
            weight[j] = 0.0
            squares[j] = 0.0
            spread[j] = 0.0
        for i in range(n_frames):
            for j in range(width):
                x = cube[i, p0 + j]
                w = frame_weight[i, j] if by_mean else 1.0
                if weighs:
                    w = w * np.float64(sample_weight[i, (p0 + j) // step])
                if x >= low[p0 + j] and x <= high[p0 + j]:
                    total[j] += w * np.float64(x)
                    weight[j] += w
                    squares[j] += w * w
        for j in range(width):
            total[j] = total[j] / weight[j]
        for i in range(n_frames):
            for j in range(width):
                x = cube[i, p0 + j]
                w = frame_weight[i, j] if by_mean else 1.0
                if weighs:
                    w = w * np.float64(sample_weight[i, (p0 + j) // step])
                if x >= low[p0 + j] and x <= high[p0 + j]:
                    part = w * (np.float64(x) - total[j])
                    spread[j] += part * part
        for j in range(width):
            free = weight[j] * weight[j] - squares[j]
            variance = spread[j] / free
            if not by_mean:
                n = weight[j]
                odd = n - 2.0 * np.floor(0.5 * n)
                variance = variance * n * (PI / (2.0 * n + (ODD if odd > 0.0 else EVEN)))
            error[p0 + j] = np.float32(np.sqrt(variance)) if free > 0.0 else np.float32(np.nan)
