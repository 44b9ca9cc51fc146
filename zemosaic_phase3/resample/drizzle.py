"""Drizzle: the pixels of a frame, shrunken, dropped on the grid of the result (Fruchter and Hook 2002).

Gathered, not scattered: every pixel of the result looks for the drops that fall on it, so that one thread owns a pixel
and adds in one order, on any device. What falls on a pixel is the exact area of two convex figures, the square kernel
of the paper: the drop, a square of the frame, and the pixel of the result, which the frame sees as a quadrilateral.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.registration.distortion import STEP
from zemosaic_phase3.resample.interpolation import PAD
from zemosaic_phase3.runtime.jit import kernel

PARTS: Final = 100_000  # one such part of a drop must fall on a pixel of the result to be a sample of it


@kernel
def _area_below(x1: float, y1: float, x2: float, y2: float, side: float) -> float:
    """Return the area between an edge and the x axis inside the square from (0, 0) to (side, side).

    Positive for an edge that goes to the right. Of all edges of a polygon these add up to the area of its part in the
    square, with the sign of its sense of rotation.
    """
    if x1 == x2:
        return 0.0
    rightward = x2 > x1
    left = x1 if rightward else x2
    right = x2 if rightward else x1
    if left >= side or right <= 0.0:
        return 0.0
    at_left = y1 if rightward else y2
    at_right = y2 if rightward else y1
    slope = (at_right - at_left) / (right - left)
    if left < 0.0:
        at_left = at_left - slope * left
        left = 0.0
    if right > side:
        at_right = at_right + slope * (side - right)
        right = side
    if at_left <= 0.0 and at_right <= 0.0:
        return 0.0
    whole = 0.0
    if at_left >= side and at_right >= side:
        whole = (right - left) * side
        return whole if rightward else -whole
    if at_left < 0.0:
        left = left - at_left / slope
        at_left = 0.0
    elif at_right < 0.0:
        right = right - at_right / slope
        at_right = 0.0
    if at_left > side:
        x = left + (side - at_left) / slope
        whole = (x - left) * side
        left = x
        at_left = side
    elif at_right > side:
        x = right + (side - at_right) / slope
        whole = (right - x) * side
        right = x
        at_right = side
    area = whole + 0.5 * (at_left + at_right) * (right - left)
    return area if rightward else -area


@kernel
def _displaced(field: np.ndarray, axis: int, row: int, col: int) -> float:
    """Return one coordinate of a distortion field's displacement at a pixel of the result."""
    f = float(col & (STEP - 1)) / STEP
    g = float(row & (STEP - 1)) / STEP
    j = row // STEP
    k = col // STEP
    above_left = np.float64(field[j, k, axis])
    below_left = np.float64(field[j + 1, k, axis])
    above = above_left + f * (np.float64(field[j, k + 1, axis]) - above_left)
    below = below_left + f * (np.float64(field[j + 1, k + 1, axis]) - below_left)
    return above + g * (below - above)


@kernel
def _corners(matrix: np.ndarray, row: int, col: int, x: np.ndarray, y: np.ndarray) -> bool:
    """Fill the corners of a pixel of the result in the frame, in one sense of rotation; False: one lies behind it."""
    affine = matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0
    for k in range(4):
        fx = float(col) + (0.5 if k == 1 or k == 2 else -0.5)
        fy = float(row) + (0.5 if k >= 2 else -0.5)
        px = matrix[0, 0] * fx + (matrix[0, 1] * fy + matrix[0, 2])
        py = matrix[1, 0] * fx + (matrix[1, 1] * fy + matrix[1, 2])
        if not affine:
            w = matrix[2, 0] * fx + (matrix[2, 1] * fy + matrix[2, 2])
            if not w > 0.0:
                return False
            px = px / w
            py = py / w
        x[k] = px
        y[k] = py
    return True


@kernel
def drizzle_rows(
    src: np.ndarray,
    row0: int,
    height: int,
    width: int,
    red_row: int,
    red_col: int,
    matrix: np.ndarray,
    field: np.ndarray,
    pixfrac: float,
    scale: np.ndarray,
    offset: np.ndarray,
    y0: int,
    y1: int,
    out_width: int,
    out: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Fill rows y0..y1 of the result's grid from one frame, normalised, and what each sample weighs.

    Parameters
    ----------
    src : ndarray (rows * W * P + PAD,) float32, ADU
        Rows ``row0 ...`` of the frame, at least those that drops of these rows lie in as far as the frame has them; P
        is 1 for a mosaic, which is not demosaiced, and else C, pixel-interleaved.
    row0, height, width : int
        First row held; size of the frame.
    red_row, red_col : int
        Place of red in the 2x2 cell of a mosaic; -1 where the frame is none.
    matrix : ndarray (3, 3) float64
        Pixel of the result to frame pixel.
    field : ndarray (rows, columns, 2) float32
        Displacements to be added, pixels, of a pixel of the result as a whole; without elements where there are none.
    pixfrac : float
        Side of a drop, pixels of the frame, above 0 to 1.
    scale, offset : ndarray (C,) float64
        ``out = float32(scale * value + offset)``, ADU.
    y0, y1, out_width : int
        Rows wanted; width of the result.
    out : ndarray ((y1 - y0) * out_width * C,) float32, ADU
        The mean of what falls on each pixel, by area; of a colour of a mosaic, from photosites of that colour alone.
        NaN where less than a part of ``PARTS`` of a drop does.
    weights : ndarray ((y1 - y0) * out_width * C,) float32
        The area: how many drops' worth fall on the pixel.

    Notes
    -----
    Source: A. S. Fruchter, R. N. Hook, "Drizzle: a method for the linear reconstruction of undersampled images", PASP
    114 (2002), 144, with the square kernel. A drop counts with the part of its area that falls on the pixel, so that
    the parts of a drop add up to 1. Drops are added row by row, in float64.
    """
    channels = scale.size
    is_mosaic = red_row >= 0
    planes = 1 if is_mosaic else channels
    stride = width * planes
    last_held = min(row0 + (src.size - PAD) // stride, height) - 1
    half = 0.5 * pixfrac
    per_area = 1.0 / (pixfrac * pixfrac)
    x = np.zeros(4)
    y = np.zeros(4)
    total = np.empty(3)
    area_of = np.empty(3)
    for r in range(y1 - y0):
        for col in range(out_width):
            ahead = _corners(matrix, r + y0, col, x, y)
            if field.size > 0:
                right = _displaced(field, 0, r + y0, col)
                down = _displaced(field, 1, r + y0, col)
                for k in range(4):
                    x[k] = x[k] + right
                    y[k] = y[k] + down
            for c in range(channels):
                total[c] = 0.0
                area_of[c] = 0.0
            low_x = min(min(x[0], x[1]), min(x[2], x[3])) - half
            high_x = max(max(x[0], x[1]), max(x[2], x[3])) + half
            low_y = min(min(y[0], y[1]), min(y[2], y[3])) - half
            high_y = max(max(y[0], y[1]), max(y[2], y[3])) + half
            if ahead and high_x > 0.0 and low_x < width - 1 and high_y > row0 and low_y < last_held:
                first_i = int(np.ceil(low_x)) if low_x > 0.0 else 0
                last_i = int(np.floor(high_x)) if high_x < width - 1 else width - 1
                first_j = int(np.ceil(low_y)) if low_y > row0 else row0
                last_j = int(np.floor(high_y)) if high_y < last_held else last_held
                for j in range(first_j, last_j + 1):
                    for i in range(first_i, last_i + 1):
                        at = (j - row0) * stride + i * planes
                        if planes == 1 and src[at] != src[at]:
                            continue
                        left = float(i) - half
                        top = float(j) - half
                        area = 0.0
                        for k in range(4):
                            n = (k + 1) & 3
                            area += _area_below(x[k] - left, y[k] - top, x[n] - left, y[n] - top, pixfrac)
                        area = (area if area > 0.0 else -area) * per_area
                        if planes == 3:
                            for c in range(3):
                                if src[at + c] == src[at + c]:
                                    total[c] += area * src[at + c]
                                    area_of[c] += area
                        else:
                            c = 0
                            if is_mosaic:
                                c = (0 if ((j ^ red_row) & 1) == 0 else 1) + (0 if ((i ^ red_col) & 1) == 0 else 1)
                            total[c] += area * src[at]
                            area_of[c] += area
            place = (r * out_width + col) * channels
            for c in range(channels):
                if area_of[c] * PARTS >= 1.0:
                    out[place + c] = np.float32(total[c] / area_of[c] * scale[c] + offset[c])
                    weights[place + c] = np.float32(area_of[c])
                else:
                    out[place + c] = np.float32(np.nan)
                    weights[place + c] = np.float32(0.0)
