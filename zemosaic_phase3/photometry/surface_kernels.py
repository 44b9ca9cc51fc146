"""A surface of low order added to rows of a frame, without the interpreter's lock."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.runtime.jit import kernel


@kernel
def add_surface(
    pixels: np.ndarray, first: int, row_step: int, column_step: int, columns: np.ndarray, slope: np.ndarray,
    level: np.ndarray, v: np.ndarray,
) -> None:  # fmt: skip
    """Add ``columns[j] + (level[i] + slope[j] v[i])`` to the pixels of a grid.

    Parameters
    ----------
    pixels : ndarray (n,) float32, ADU
        Rows of a frame, one after the other.
    first, row_step, column_step : int
        Pixel (i, j) of the grid is ``pixels[first + i * row_step + j * column_step]``.
    columns, slope : ndarray (columns,) float64
        ADU.
    level, v : ndarray (rows,) float64
        ADU, and the vertical coordinate from -1 to 1. The sum is made in float64 and added in float32.
    """
    for i in range(len(v)):
        at = first + i * row_step
        constant, height = level[i], v[i]
        for j in range(len(columns)):
            pixels[at + j * column_step] += np.float32(columns[j] + (constant + slope[j] * height))
