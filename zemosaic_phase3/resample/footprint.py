"""Which rows and columns of a frame a range of rows of the grid needs."""

from __future__ import annotations

import math

import numpy as np

from zemosaic_phase3.resample.interpolation import MARGIN


def source_rows(
    matrix: np.ndarray, y0: int, y1: int, out_width: int, height: int, reach: float = 0.0
) -> tuple[int, int]:
    """Return the rows of a frame (first, one past last) that rows y0..y1 of the reference grid need; (0, 0) when none.

    A projective map takes straight lines to straight lines, so the corners of the slab bound it. ``reach``: rows by
    which a distortion field displaces a pixel at most.
    """
    corners = np.array([[x, y, 1.0] for y in (y0, y1 - 1) for x in (0, out_width - 1)])
    mapped = corners @ matrix.T
    if not (mapped[:, 2] > 0).all():
        return 0, height
    y = mapped[:, 1] / mapped[:, 2]
    first = max(int(np.floor(y.min() - reach)) - MARGIN, 0)
    last = min(int(np.ceil(y.max() + reach)) + MARGIN + 2, height)
    return (first, last) if last > first else (0, 0)


def source_columns(
    matrix: np.ndarray, y0: int, y1: int, out_width: int, first: int, last: int, width: int, reach: float = 0.0
) -> np.ndarray:
    """Return the columns that rows y0..y1 of the reference grid need of each row of a frame.

    A slab of a turned frame crosses many of its rows, and each only for a part.

    Parameters
    ----------
    matrix : ndarray (3, 3) float64
        Reference pixel to frame pixel.
    y0, y1, out_width : int
        Rows and width of the slab.
    first, last, width : int
        Rows of the frame, see :func:`source_rows`; its width.
    reach : float
        Pixels by which a distortion field displaces at most.

    Returns
    -------
    ndarray (last - first, 2) int64
        First column and one past the last, a few more than are needed.
    """
    if matrix[2, 0] != 0.0 or matrix[2, 1] != 0.0 or matrix[2, 2] != 1.0:  # rarely; all of every row
        return np.tile(np.array([0, width]), (last - first, 1))
    (x_of_x, x_of_y, x_at_0), (y_of_x, y_of_y, y_at_0) = matrix[:2].tolist()
    pad = MARGIN + 1.0 + reach
    y_left = sorted(y_of_y * y + y_at_0 for y in (y0, y1 - 1))  # of the slab's left side, in the frame
    x_left = sorted(x_of_y * y + x_at_0 for y in (y0, y1 - 1))
    rows = np.arange(first, last, dtype=np.float64)
    start, stop = np.zeros(rows.size), np.full(rows.size, out_width - 1.0)  # columns of the slab that lie on a row
    if abs(y_of_x) > 1e-9:
        ends = (rows - pad - y_left[1]) / y_of_x, (rows + pad - y_left[0]) / y_of_x
        start, stop = (np.clip(end, 0.0, out_width - 1.0) for end in (ends if y_of_x > 0.0 else ends[::-1]))
    ends = (start, stop) if x_of_x > 0.0 else (stop, start)
    columns = np.empty((rows.size, 2), np.int64)
    columns[:, 0] = np.clip(np.floor(x_of_x * ends[0] + (x_left[0] - pad)), 0.0, width)
    columns[:, 1] = np.clip(np.ceil(x_of_x * ends[1] + (x_left[1] + pad + 1.0)), 0.0, width)
    return columns


def slab_reach(
    matrices: np.ndarray, out_width: int, height: int, displaced: float = 0.0, frame_height: int | None = None
) -> tuple[int, float]:
    """Return (margin, stretch): ``source_rows`` asks for at most ``rows * stretch + margin`` rows for any slab.

    Parameters
    ----------
    matrices : ndarray (N, 3, 3) float64
        Pixel of the grid to frame pixel, of all frames that are resampled.
    out_width, height : int
        Width and height of the grid.
    displaced : float
        Rows by which a distortion field displaces a pixel at most.
    frame_height : int, optional
        Height of the frames, where the grid has another one.

    Returns
    -------
    margin : int
        Rows; a frame's height if a map turns a point of the grid behind the camera: a frame is then needed as a whole.
    stretch : float
        1 or more.

    Notes
    -----
    Along the left and the right edge of the grid, the ends of every row, the mapped row is ``g(y) = (n + a y) / (w +
    c y)`` of slope ``A / (w + c y)^2``, ``A = a w - c n``. The steepest slope is at an end, since ``w + c y > 0`` is
    linear. The largest distance between the edges in one row is at an end too, or where both slopes are the same,
    ``sqrt|A_right| w_left(y) = sqrt|A_left| w_right(y)``. Corners of a slab are apart by at most that distance and the
    slope for every row.
    """
    most = height if frame_height is None else frame_height
    a, c, right, bottom = matrices[:, 1, 1], matrices[:, 2, 1], out_width - 1.0, height - 1.0
    n = np.array([matrices[:, 1, 2], matrices[:, 1, 0] * right + matrices[:, 1, 2]])  # (2, N): left, right
    w = np.array([matrices[:, 2, 2], matrices[:, 2, 0] * right + matrices[:, 2, 2]])
    nearest = np.minimum(w, w + c * bottom)
    if not (nearest > 0).all():
        return most, 1.0
    slopes = np.abs(a * w - c * n)
    roots = np.sqrt(slopes)
    bend = c * (roots[1] - roots[0])
    with np.errstate(over="ignore"):  # nearly parallel: far outside, and clipped
        alike = (roots[0] * w[1] - roots[1] * w[0]) / np.where(bend == 0.0, 1.0, bend)
    rows = np.array([np.zeros_like(c), np.full_like(c, bottom), np.clip(alike, 0.0, bottom)])
    left_edge, right_edge = ((n[edge] + a * rows) / (w[edge] + c * rows) for edge in (0, 1))
    apart, stretch = np.abs(right_edge - left_edge).max() + 2.0 * displaced, (slopes / nearest**2).max()
    return math.ceil(min(apart, most)) + 2 * MARGIN + 4, max(float(stretch), 1.0)
