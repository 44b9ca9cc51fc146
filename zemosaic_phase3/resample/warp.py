"""Rows of a frame on the grid of the reference: located, weighted, summed."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_phase3.registration.distortion import STEP
from zemosaic_phase3.resample.interpolation import PAD
from zemosaic_phase3.resample.vector import SPARE, interpolate_grey, interpolate_rgb
from zemosaic_phase3.runtime.jit import kernel

SEGMENT: Final = 256  # pixels of a row worked on at once: what is held of them stays in the first-level cache
OUTSIDE: Final = -(1 << 31)  # in place of a position: not in the frame


@kernel
def _larger(a: float, b: float) -> float:
    return a if a > b else b


@kernel
def _smaller(a: float, b: float) -> float:
    return a if a < b else b


@kernel
def _careful(
    src: np.ndarray,
    row0: int,
    height: int,
    width: int,
    channels: int,
    c: int,
    xq: int,
    yq: int,
    table: np.ndarray,
    clamp: bool,
) -> float | np.float32:
    """Interpolate near an edge or an invalid pixel: edge pixels repeated, invalid ones left out, the rest renormalised.

    NaN when one of the up to four nearest pixels, those with weight in the inner taps, is invalid. With ``clamp``
    held to the range of the valid pixels among the 4x4 around it.
    """
    ix = xq >> 10
    iy = yq >> 10
    px = xq & 1023
    py = yq & 1023
    low = np.float32(np.inf)
    high = np.float32(-np.inf)
    total = np.float32(0.0)
    norm = np.float32(0.0)
    for j in range(6):
        wy = table[py, j]
        if wy == 0.0:
            continue
        y = min(max(iy + j - 2, 0), height - 1) - row0
        for i in range(6):
            w = wy * table[px, i]
            if w == 0.0:
                continue
            x = min(max(ix + i - 2, 0), width - 1)
            v = src[(y * width + x) * channels + c]
            if v == v:
                total += w * v
                norm += w
                if 0 < i < 5 and 0 < j < 5:
                    low = _smaller(low, v)
                    high = _larger(high, v)
            elif (i == 2 or i == 3) and (j == 2 or j == 3):
                return np.nan
    if not norm > 0.25:
        return np.nan
    value = total / norm
    return _smaller(_larger(value, low), high) if clamp else value


@kernel
def resample_rows(
    src: np.ndarray,
    row0: int,
    height: int,
    width: int,
    channels: int,
    matrix: np.ndarray,
    field: np.ndarray | None,
    table: np.ndarray,
    clamp: bool,
    scale: np.ndarray,
    offset: np.ndarray,
    y0: int,
    y1: int,
    out_width: int,
    out: np.ndarray,
    radial: np.ndarray,
    radial_table: np.ndarray,
) -> None:
    """Fill rows y0..y1 of the reference grid from one frame, normalised; NaN outside the frame's footprint.

    Parameters
    ----------
    src : ndarray (rows * W * C + PAD,) float32, ADU
        Rows ``row0 ...`` of the frame (pixel-interleaved channels), at least the mapped rows and ``MARGIN`` more
        on either side as far as the frame has them.
    row0, height, width, channels : int
        First row held; size of the frame.
    matrix : ndarray (3, 3) float64
        Reference pixel to frame pixel.
    field : ndarray (rows, columns, 2) float32, or None
        Displacements to be added, pixels, see ``registration.distortion``.
    table : ndarray (PHASES, TAPS) float32
        From :func:`weight_table`.
    clamp : bool
        Hold the value to the local range (see Notes).
    scale, offset : ndarray (C,) float64
        ``out = float32(scale * value + offset)``, ADU.
    y0, y1, out_width : int
        Rows wanted; width of the reference grid.
    out : ndarray ((y1 - y0) * out_width * C,) float32, ADU
    radial : ndarray ((y1 - y0) * out_width,) float32, or empty
        Radial weight of each sample, when not empty.
    radial_table : ndarray (n,) float64
        Weight against distance from the frame's own centre in units of half its diagonal, times the step given in
        its last element; see :func:`radial_weight_table`.

    Notes
    -----
    Taps are summed down each column first, then along the row, in float32.
    Clamping: a sample may not leave the range of the 4x4 pixels around it, except at a genuine peak or hole, where the
    inner 2x2 pixels stand out from the ring around them: there half of what they stand out is allowed on top. A
    star's peak between pixels keeps its height and the flux its value; the rim of a saturated plateau cannot ring.
    """
    stride = width * channels
    rows_held = (src.size - PAD) // stride
    x, y = np.empty(SEGMENT), np.empty(SEGMENT)
    xq, yq = np.empty(SEGMENT, np.int32), np.empty(SEGMENT, np.int32)
    line = np.empty(SEGMENT * channels + SPARE, np.float32)
    for r in range(y1 - y0):
        for start in range(0, out_width, SEGMENT):
            count = min(SEGMENT, out_width - start)
            inner = _locate(matrix, field, r + y0, start, count, width, height, row0, rows_held, x, y, xq, yq)
            if channels == 3:
                invalid = interpolate_rgb(src, row0, stride, xq, yq, count, table, clamp, scale, offset, line)
            else:
                invalid = interpolate_grey(src, row0, stride, xq, yq, count, table, clamp, scale, offset, line)
            if invalid or inner < count:
                _mend(src, row0, height, width, channels, xq, yq, count, table, clamp, scale, offset, line)
            place = r * out_width + start
            piece = out[place * channels : (place + count) * channels]
            for k in range(count * channels):
                piece[k] = line[k]
            if radial.size > 0:
                _weigh(x, y, xq, count, width, height, radial_table, radial, place)


@kernel
def _locate(
    matrix: np.ndarray,
    field: np.ndarray | None,
    row: int,
    start: int,
    count: int,
    width: int,
    height: int,
    row0: int,
    rows_held: int,
    x: np.ndarray,
    y: np.ndarray,
    xq: np.ndarray,
    yq: np.ndarray,
) -> int | np.int32:
    """Map pixels ``start ...`` of a row of the reference grid into the frame.

    ``x, y float64``: positions, pixels. ``xq, yq int32``: the same in units of 1/1024 pixel, and ``xq`` tells what a
    pixel needs. Where it is not negative, the 6x6 pixels around lie inside the frame and the rows held; how many these
    are is returned. ``OUTSIDE``: not in the frame. Any other negative number is the complement of a position near an
    edge.
    """
    fy = float(row)
    base_x = matrix[0, 1] * fy + matrix[0, 2]
    base_y = matrix[1, 1] * fy + matrix[1, 2]
    base_w = matrix[2, 1] * fy + matrix[2, 2]
    m00 = matrix[0, 0]
    m10 = matrix[1, 0]
    m20 = matrix[2, 0]
    for i in range(count):
        fx = float(start + i)
        x[i] = m00 * fx + base_x
        y[i] = m10 * fx + base_y
    if not (m20 == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0):  # not affine
        for i in range(count):
            w = m20 * float(start + i) + base_w
            x[i] = x[i] / w
            y[i] = y[i] / w
    if field is not None:  # decided when this is compiled: what most runs do not need costs them nothing
        _displace(field, row, start, count, x, y)
    last_x = np.int32((width - 1) * 1024)
    last_y = np.int32((height - 1) * 1024)
    far_x = float(width)
    far_y = float(height)
    left = np.int32(2 * 1024)
    right = np.int32((width - 3) * 1024)
    top = np.int32((max(0, row0) + 2) * 1024)
    bottom = np.int32((min(height, row0 + rows_held) - 3) * 1024)
    none = np.int32(OUTSIDE)
    found = np.int32(0)
    for i in range(count):
        near = (x[i] > -1.0) & (y[i] > -1.0) & (x[i] < far_x) & (y[i] < far_y)
        a = np.int32(np.floor((x[i] if near else -1.0) * 1024.0 + 0.5))
        b = np.int32(np.floor((y[i] if near else -1.0) * 1024.0 + 0.5))
        inside = (a >= 0) & (b >= 0) & (a <= last_x) & (b <= last_y)
        inner = (a >= left) & (a < right) & (b >= top) & (b < bottom)
        xq[i] = (a if inner else ~a) if inside else none
        yq[i] = b
        found += np.int32(inner & inside)
    return found


@kernel
def _displace(field: np.ndarray, row: int, start: int, count: int, x: np.ndarray, y: np.ndarray) -> None:
    """Add the displacements of a field to mapped positions, bilinear between its nodes: along its rows first."""
    j = row // STEP
    g = float(row - j * STEP) / STEP
    for axis in range(2):
        place = x if axis == 0 else y
        for i in range(count):
            k = (start + i) // STEP
            f = float(start + i - k * STEP) / STEP
            corner = np.float64(field[j, k, axis])
            above = corner + f * (np.float64(field[j, k + 1, axis]) - corner)
            corner = np.float64(field[j + 1, k, axis])
            below = corner + f * (np.float64(field[j + 1, k + 1, axis]) - corner)
            place[i] = place[i] + (above + g * (below - above))


@kernel
def _mend(
    src: np.ndarray,
    row0: int,
    height: int,
    width: int,
    channels: int,
    xq: np.ndarray,
    yq: np.ndarray,
    count: int,
    table: np.ndarray,
    clamp: bool,
    scale: np.ndarray,
    offset: np.ndarray,
    line: np.ndarray,
) -> None:
    """Fill in the pixels of a line that are outside the frame, near its edge, or spoiled by an invalid sample."""
    for i in range(count):
        at_edge = xq[i] < 0
        position = ~xq[i] if at_edge else xq[i]
        for c in range(channels):
            k = i * channels + c
            if xq[i] == OUTSIDE:
                line[k] = np.nan
            elif at_edge or line[k] != line[k]:
                v = _careful(src, row0, height, width, channels, c, position, yq[i], table, clamp)
                line[k] = np.float32(v * scale[c] + offset[c])


@kernel
def _weigh(
    x: np.ndarray,
    y: np.ndarray,
    xq: np.ndarray,
    count: int,
    width: int,
    height: int,
    radial_table: np.ndarray,
    radial: np.ndarray,
    place: int,
) -> None:
    """Fill in the radial weights of pixels at ``x, y`` in the frame."""
    centre_x = 0.5 * (width - 1)
    centre_y = 0.5 * (height - 1)
    per_px = radial_table[-1] / (0.5 * np.sqrt(float(width * width + height * height)))
    nodes = radial_table.size - 2
    for i in range(count):
        if xq[i] == OUTSIDE:
            radial[place + i] = 0.0
            continue
        dx = x[i] - centre_x
        dy = y[i] - centre_y
        t = np.sqrt(dx * dx + dy * dy) * per_px
        k = min(int(t), nodes - 1)
        f = min(t - k, 1.0)
        radial[place + i] = np.float32(radial_table[k] + f * (radial_table[k + 1] - radial_table[k]))


@lru_cache(maxsize=8)
def radial_weight_table(feather: float, power: float, floor: float, nodes: int = 4096) -> np.ndarray:
    """Return the radial weight on a grid of distances, its step appended.

    ``w(d) = max(cos(pi/2 clip(d/feather, 0, 1))**power, floor)``, d in units of half the diagonal. As in
    ``make_radial_weight_map`` the feather counts as 0.1 .. 1 and the floor as at most 0.99.

    Returns
    -------
    ndarray (nodes + 2,) float64
        Weight at ``d = k / (nodes/d_max)``, k = 0..nodes; last element: nodes per unit of d.
    """
    feather, floor = min(max(feather, 0.1), 1.0), min(floor, 0.99)
    d_max = feather  # beyond the feather the weight is constant
    d = np.arange(nodes + 1) / nodes * d_max
    weight = np.maximum(np.cos(0.5 * np.pi * np.clip(d / feather, 0.0, 1.0)) ** power, floor)
    table = np.append(weight, nodes / d_max)
    table.flags.writeable = False
    return table
