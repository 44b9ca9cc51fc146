"""Surfaces of low order added to rows of a frame, without the interpreter's lock."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.runtime.jit import kernel


@kernel
def add_surfaces(
    pixels: np.ndarray, first: int, row_step: int, column_step: int, columns: np.ndarray, slope: np.ndarray,
    levels: np.ndarray, v: np.ndarray,
) -> None:  # fmt: skip
    """Add ``columns[j] + (levels[i, j % 2] + slope[j] v[i])`` to the pixels of a grid.

    Parameters
    ----------
    pixels : ndarray (n,) float32, ADU
        Rows of a frame, one after the other.
    first, row_step, column_step : int
        Pixel (i, j) of the grid is ``pixels[first + i * row_step + j * column_step]``.
    columns, slope : ndarray (columns,) float64
        ADU.
    levels, v : ndarray (rows, 2) and (rows,) float64
        ADU, of even and of odd columns, and the vertical coordinate from -1 to 1. The sum is made in float64 and added
        in float32.
    """
    for i in range(len(v)):
        at = first + i * row_step
        even, odd, height = levels[i, 0], levels[i, 1], v[i]
        if column_step == 1:  # a loop of its own, because neighbours in memory are taken several at once
            row = pixels[at : at + len(columns)]
            for j in range(len(columns)):
                row[j] += np.float32(columns[j] + ((odd if j & 1 else even) + slope[j] * height))
        else:
            for j in range(len(columns)):
                pixels[at + j * column_step] += np.float32(columns[j] + (even + slope[j] * height))
