"""Three colours for every pixel of a mosaic, after Malvar, He and Cutler (2004)."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.resample.vector import VECTOR_WIDTH, demosaic_run
from zemosaic_phase3.runtime.jit import kernel

CFA_MARGIN: Final = 2  # rows the demosaicing needs above and below


_CELLS: Final = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}  # row, column of red in the 2x2 cell


def red_position(pattern: str) -> tuple[int, int]:
    """Return (row, column) of the red sample in the 2x2 cell at the frame's first pixel."""
    return _CELLS[pattern]


@kernel
def _at(raw: np.ndarray, row0: int, height: int, width: int, y: int, x: int) -> float:
    """Sample of the mosaic at absolute (y, x); mirrored at the frame's edges without repeating the edge pixel.

    A mirror about a pixel keeps the colour: -1 becomes 1, of the same parity.
    """
    if y < 0:
        y = -y
    elif y >= height:
        y = 2 * height - 2 - y
    if x < 0:
        x = -x
    elif x >= width:
        x = 2 * width - 2 - x
    return raw[y - row0, x]


@kernel
def _demosaic_pixel(
    raw: np.ndarray, row0: int, height: int, width: int, y: int, x: int, red_row: int, red_col: int, out: np.ndarray
) -> None:
    """Red, green, blue at one pixel, into ``out[0..2]``; see :func:`demosaic_rows`."""
    eighth = np.float32(0.125)
    part = np.float32(0.03125)
    two = np.float32(2.0)  # float32 throughout: a whole number would lift compiled sums to float64
    three = np.float32(3.0)
    quadruple = np.float32(4.0)
    fifteen = np.float32(15.0)
    sixteen = np.float32(16.0)
    more = np.float32(1.5)
    c = _at(raw, row0, height, width, y, x)
    n1 = _at(raw, row0, height, width, y - 1, x)
    s1 = _at(raw, row0, height, width, y + 1, x)
    w1 = _at(raw, row0, height, width, y, x - 1)
    e1 = _at(raw, row0, height, width, y, x + 1)
    vertical2 = _at(raw, row0, height, width, y - 2, x) + _at(raw, row0, height, width, y + 2, x)
    horizontal2 = _at(raw, row0, height, width, y, x - 2) + _at(raw, row0, height, width, y, x + 2)
    diagonal = (_at(raw, row0, height, width, y - 1, x - 1) + _at(raw, row0, height, width, y - 1, x + 1)) + (
        _at(raw, row0, height, width, y + 1, x - 1) + _at(raw, row0, height, width, y + 1, x + 1)
    )
    vertical1 = n1 + s1
    horizontal1 = w1 + e1
    on_red_row = ((y ^ red_row) & 1) == 0
    on_red_col = ((x ^ red_col) & 1) == 0
    if on_red_row == on_red_col:  # a red or a blue sample
        green = (c * quadruple + (vertical1 + horizontal1) * two - (vertical2 + horizontal2)) * eighth
        other = (c * quadruple + diagonal * two - (vertical2 + horizontal2)) * eighth
        out[1] = green
        if on_red_row:
            out[0] = c
            out[2] = other
        else:
            out[0] = other
            out[2] = c
    else:  # a green sample: one colour lies left and right, the other above and below
        across = (c * fifteen + horizontal1 * sixteen - (horizontal2 + diagonal) * three + vertical2 * more) * part
        along = (c * fifteen + vertical1 * sixteen - (vertical2 + diagonal) * three + horizontal2 * more) * part
        out[1] = c
        if on_red_row:
            out[0] = across
            out[2] = along
        else:
            out[0] = along
            out[2] = across


@kernel
def demosaic_rows(
    raw: np.ndarray,
    row0: int,
    height: int,
    width: int,
    y0: int,
    y1: int,
    red_row: int,
    red_col: int,
    columns: np.ndarray,
    out: np.ndarray,
) -> None:
    """Demosaic rows y0..y1 of a Bayer frame by the gradient-corrected linear method.

    Parameters
    ----------
    raw : ndarray (rows, W) float32, ADU
        Rows ``row0 ...`` of the mosaic; must hold rows y0 - 2 .. y1 + 2 as far as the frame has them.
    row0, height, width, y0, y1, red_row, red_col : int
        First row held, size of the frame, rows wanted, place of red in the 2x2 cell.
    columns : ndarray (y1 - y0, 2) int64
        Columns wanted of each row: the first, and one past the last. Other pixels are left as they are, or filled too.
    out : ndarray ((y1 - y0) * W * 3 + PAD,) float32
        Filled with R, G, B per pixel.

    Notes
    -----
    Source: H. S. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
    images", ICASSP 2004. Linear and shift invariant per cell position: every colour keeps its flux exactly, because the
    corrections sum to zero.
    NOTE: red and blue are corrected with the gains 15/32 at green and 1/2 at the other colour, where the paper has 5/8
    and 3/4, the best for daylight pictures with their white balance. A camera's own numbers of a star are about three
    quarters as large in red and blue as in green, or less, and so is the curvature that they lack: with the gains of
    the paper the cores of stars were bluer than the stars.
    NOTE: frame edges are mirrored; the paper leaves them open. A NaN spoils the pixels that use it.
    """
    end = width - 2
    for y in range(y0, y1):
        o = (y - y0) * width
        first = columns[y - y0, 0]
        stop = columns[y - y0, 1]
        if stop <= first:
            continue
        mirrored = y < 2 or y >= height - 2 or end < VECTOR_WIDTH + 2
        left = width if mirrored else 2 if first < 2 else 0
        right = end if stop > end and not mirrored else width
        _demosaic_mirrored(raw, row0, height, width, y, left, right, red_row, red_col, out, o)
        first = max(first, 2)
        stop = min(stop, end)
        if mirrored or stop <= first:
            continue
        on_red_row = ((y ^ red_row) & 1) == 0
        own = red_col if on_red_row else red_col + 1  # the columns of this parity are not green
        last = first + (stop - first) // VECTOR_WIDTH * VECTOR_WIDTH
        demosaic_run(raw, y - row0, width, first, last, ((own ^ first) & 1) == 0, on_red_row, out, o)
        if last < stop:  # what is left, and before it pixels done already
            first = max(stop - VECTOR_WIDTH, 2)
            demosaic_run(
                raw, y - row0, width, first, first + VECTOR_WIDTH, ((own ^ first) & 1) == 0, on_red_row, out, o
            )


@kernel
def _demosaic_mirrored(
    raw: np.ndarray,
    row0: int,
    height: int,
    width: int,
    y: int,
    left: int,
    right: int,
    red_row: int,
    red_col: int,
    out: np.ndarray,
    o: int,
) -> None:
    """Demosaic the first ``left`` pixels of row y and those from ``right`` on, for which the frame is mirrored."""
    pixel = np.empty(3, np.float32)
    for k in range(left + width - right):
        x = k if k < left else k - left + right
        _demosaic_pixel(raw, row0, height, width, y, x, red_row, red_col, pixel)
        for c in range(3):
            out[3 * (o + x) + c] = pixel[c]
