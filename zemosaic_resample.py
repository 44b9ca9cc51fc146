"""From the rows of a raw frame to rows of the reference grid: demosaicing and interpolation, each defined once.

Geometry. An output pixel (X, Y) of the reference grid is mapped to the frame by the 3x3 matrix of its
registration, in float64, in this order: ``x = (m00 X + (m01 Y + m02)) / w`` and likewise y and w. The position is then
rounded to 1/1024 pixel; that grid is part of the definition, so that the weights come from one small table made once.
An output pixel is inside the frame when that rounded position lies within the centres of its outermost pixels.

Every output pixel depends on absolute coordinates alone: the rows of a slab equal the same rows of the whole.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_kernels import kernel
from zemosaic_simd import TAPS, interpolate_grey, interpolate_rgb

PHASES: Final = 1024  # positions per pixel; rounding moves a sample by 1/2048 px at most, 0.0003 px rms
PAD: Final = 32  # spare floats behind a source block: the inner loops read whole SIMD registers
CFA_MARGIN: Final = 2  # rows the demosaicing needs above and below
MARGIN: Final = 3  # rows the interpolation needs above and below the mapped rows

# --------------------------------------------------------------------------- interpolation tables


def _lanczos3(x: np.ndarray) -> np.ndarray:
    """Lanczos window of order 3: sinc(x) sinc(x/3) for abs(x) < 3 (Duchon 1979)."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -1/2 (Keys 1981)."""
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1.0
    far = ((-0.5 * a + 2.5) * a - 4.0) * a + 2.0
    return np.where(a <= 1.0, near, np.where(a < 2.0, far, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _nearest(x: np.ndarray) -> np.ndarray:
    """Take the pixel whose centre is nearest; the left one of two equally near."""
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_FUNCTIONS: Final = {"lanczos3": _lanczos3, "bicubic": _bicubic, "bilinear": _bilinear, "nearest": _nearest}


@lru_cache(maxsize=8)
def weight_table(name: str) -> np.ndarray:
    """Return the weights of one interpolation, ``(PHASES, TAPS) float32``, each row summing to 1.

    Tap k of a position with integer part i is pixel ``i + k - 2``. The sum over a row is 1 before rounding to float32,
    so that a flat field stays flat and a star keeps its flux.
    """
    phase = np.arange(PHASES)[:, None] / PHASES
    taps = _FUNCTIONS[name](phase - (np.arange(TAPS)[None, :] - 2))
    taps[np.abs(taps) < 1e-12] = 0.0  # sinc(1) is 0, not 4e-17: a pixel without weight must not count
    table = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
    table.flags.writeable = False
    return table


def needs_clamp(name: str) -> bool:
    """Return True for interpolations with negative weights, which ring unless clamped."""
    return name in ("lanczos3", "bicubic")


# --------------------------------------------------------------------------- demosaicing

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
def _demosaic_pixel(raw, row0, height, width, y, x, red_row, red_col, out) -> None:
    """Red, green, blue at one pixel (Malvar, He, Cutler 2004), into ``out[0..2]``."""
    eighth = np.float32(0.125)
    half = np.float32(0.5)
    two = np.float32(2.0)  # float32 throughout: a whole number would lift compiled sums to float64
    quadruple = np.float32(4.0)
    five = np.float32(5.0)
    six = np.float32(6.0)
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
        other = (c * six + diagonal * two - (vertical2 + horizontal2) * np.float32(1.5)) * eighth
        out[1] = green
        if on_red_row:
            out[0] = c
            out[2] = other
        else:
            out[0] = other
            out[2] = c
    else:  # a green sample: one colour lies left and right, the other above and below
        across = (c * five + horizontal1 * quadruple - (horizontal2 + diagonal) + vertical2 * half) * eighth
        along = (c * five + vertical1 * quadruple - (vertical2 + diagonal) + horizontal2 * half) * eighth
        out[1] = c
        if on_red_row:
            out[0] = across
            out[2] = along
        else:
            out[0] = along
            out[2] = across


@kernel
def demosaic_rows(raw, row0, height, width, y0, y1, red_row, red_col, out) -> None:
    """Demosaic rows y0..y1 of a Bayer frame by the gradient-corrected linear method.

    Parameters
    ----------
    raw : ndarray (rows, W) float32, ADU
        Rows ``row0 ...`` of the mosaic; must hold rows y0 - 2 .. y1 + 2 as far as the frame has them.
    row0, height, width, y0, y1, red_row, red_col : int
        First row held, size of the frame, rows wanted, place of red in the 2x2 cell.
    out : ndarray ((y1 - y0) * W * 3 + PAD,) float32
        Filled with R, G, B per pixel.

    Notes
    -----
    Source: H. S. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
    images", ICASSP 2004, with the gains 1/2, 5/8, 3/4 of the paper. Linear and shift invariant per cell position: every
    colour keeps its flux exactly, because the corrections sum to zero.
    NOTE: frame edges are mirrored; the paper leaves them open. A NaN spoils the pixels that use it.
    """
    pixel = np.empty(3, np.float32)
    for y in range(y0, y1):
        o = (y - y0) * width * 3
        for x in range(width):
            if y < 2 or y >= height - 2 or x < 2 or x >= width - 2:
                _demosaic_pixel(raw, row0, height, width, y, x, red_row, red_col, pixel)
                out[o + 3 * x] = pixel[0]
                out[o + 3 * x + 1] = pixel[1]
                out[o + 3 * x + 2] = pixel[2]
        if y < 2 or y >= height - 2:
            continue
        _demosaic_inner_row(raw, y - row0, width, ((y ^ red_row) & 1) == 0, red_col, out, o)


@kernel
def _demosaic_inner_row(raw, r, width, on_red_row, red_col, out, o) -> None:
    """Do the sums of :func:`_demosaic_pixel`, in the same order, for the columns that need no mirror."""
    eighth = np.float32(0.125)
    half = np.float32(0.5)
    two = np.float32(2.0)  # float32 throughout: a whole number would lift compiled sums to float64
    quadruple = np.float32(4.0)
    five = np.float32(5.0)
    six = np.float32(6.0)
    three_halves = np.float32(1.5)
    a = raw[r - 2]
    b = raw[r - 1]
    m = raw[r]
    d = raw[r + 1]
    e = raw[r + 2]
    own = 0 if on_red_row else 2  # the colour that shares the row with green
    far = 2 - own
    first = 2 + ((red_col if on_red_row else red_col + 1) & 1)  # first column with the row's own colour
    for x in range(first, width - 2, 2):
        four = (a[x] + e[x]) + (m[x - 2] + m[x + 2])
        p = o + 3 * x
        out[p + own] = m[x]
        out[p + 1] = (m[x] * quadruple + ((b[x] + d[x]) + (m[x - 1] + m[x + 1])) * two - four) * eighth
        diagonal = (b[x - 1] + b[x + 1]) + (d[x - 1] + d[x + 1])
        out[p + far] = (m[x] * six + diagonal * two - four * three_halves) * eighth
    for x in range(5 - first, width - 2, 2):
        vertical2 = a[x] + e[x]
        horizontal2 = m[x - 2] + m[x + 2]
        diagonal = (b[x - 1] + b[x + 1]) + (d[x - 1] + d[x + 1])
        p = o + 3 * x
        out[p + 1] = m[x]
        out[p + own] = (
            m[x] * five + (m[x - 1] + m[x + 1]) * quadruple - (horizontal2 + diagonal) + vertical2 * half
        ) * eighth
        out[p + far] = (m[x] * five + (b[x] + d[x]) * quadruple - (vertical2 + diagonal) + horizontal2 * half) * eighth


# --------------------------------------------------------------------------- interpolation


@kernel
def _larger(a: float, b: float) -> float:
    return a if a > b else b


@kernel
def _smaller(a: float, b: float) -> float:
    return a if a < b else b


@kernel
def _careful(src, row0, height, width, channels, c, ix, iy, px, py, table, clamp) -> float:
    """Interpolate near an edge or an invalid pixel: edge pixels repeated, invalid ones left out, the rest renormalised.

    NaN when one of the up to four nearest pixels, those with weight in the inner taps, is invalid. With ``clamp``
    held to the range of the valid pixels among the 4x4 around it.
    """
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
    src,
    row0,
    height,
    width,
    channels,
    matrix,
    table,
    clamp,
    scale,
    offset,
    y0,
    y1,
    out_width,
    out,
    radial,
    radial_table,
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
    pixel = np.empty(3, np.float32)
    last_x = (width - 1) * 1024
    last_y = (height - 1) * 1024
    affine = matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0
    with_radial = radial.size > 0
    centre_x = 0.5 * (width - 1)
    centre_y = 0.5 * (height - 1)
    per_px = radial_table[-1] / (0.5 * np.sqrt(float(width * width + height * height)))
    nodes = radial_table.size - 2
    rows_held = (src.size - 32) // stride
    m00 = matrix[0, 0]
    m10 = matrix[1, 0]
    m20 = matrix[2, 0]
    for r in range(y1 - y0):
        fy = float(r + y0)
        base_x = matrix[0, 1] * fy + matrix[0, 2]
        base_y = matrix[1, 1] * fy + matrix[1, 2]
        base_w = matrix[2, 1] * fy + matrix[2, 2]
        for i in range(out_width):
            x = m00 * i + base_x
            y = m10 * i + base_y
            if not affine:
                w = m20 * i + base_w
                x = x / w
                y = y / w
            o = (r * out_width + i) * channels
            inside = x > -1.0 and y > -1.0 and x < width and y < height
            xq = int(np.floor(x * 1024.0 + 0.5)) if inside else -1
            yq = int(np.floor(y * 1024.0 + 0.5)) if inside else -1
            if xq < 0 or yq < 0 or xq > last_x or yq > last_y:
                for c in range(channels):
                    out[o + c] = np.nan
                if with_radial:
                    radial[r * out_width + i] = 0.0
                continue
            if with_radial:
                dx = x - centre_x
                dy = y - centre_y
                t = np.sqrt(dx * dx + dy * dy) * per_px
                k = min(int(t), nodes - 1)
                f = min(t - k, 1.0)
                radial[r * out_width + i] = np.float32(radial_table[k] + f * (radial_table[k + 1] - radial_table[k]))
            ix = xq >> 10
            iy = yq >> 10
            px = xq & 1023
            py = yq & 1023
            top = iy - 2 - row0
            if ix < 2 or ix + 3 >= width or iy < 2 or iy + 3 >= height or top < 0 or top + 6 > rows_held:
                for c in range(channels):
                    v = _careful(src, row0, height, width, channels, c, ix, iy, px, py, table, clamp)
                    out[o + c] = np.float32(v * scale[c] + offset[c])
                continue
            b = top * stride + (ix - 2) * channels
            if channels == 3:
                red, green, blue = interpolate_rgb(src, b, stride, table, py, px, clamp)
                pixel[0] = red
                pixel[1] = green
                pixel[2] = blue
            else:
                (grey,) = interpolate_grey(src, b, stride, table, py, px, clamp)
                pixel[0] = grey
            for c in range(channels):
                v = pixel[c]
                if v != v:
                    v = np.float32(_careful(src, row0, height, width, channels, c, ix, iy, px, py, table, clamp))
                out[o + c] = np.float32(v * scale[c] + offset[c])


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


# --------------------------------------------------------------------------- which rows a slab needs


def source_rows(matrix: np.ndarray, y0: int, y1: int, out_width: int, height: int) -> tuple[int, int]:
    """Return the rows of a frame (first, one past last) that rows y0..y1 of the reference grid need; (0, 0) when none.

    A projective map takes straight lines to straight lines, so the corners of the slab bound it.
    """
    corners = np.array([[x, y, 1.0] for y in (y0, y1 - 1) for x in (0, out_width - 1)])
    mapped = corners @ matrix.T
    if not (mapped[:, 2] > 0).all():
        return 0, height
    y = mapped[:, 1] / mapped[:, 2]
    first = max(int(np.floor(y.min())) - MARGIN, 0)
    last = min(int(np.ceil(y.max())) + MARGIN + 2, height)
    return (first, last) if last > first else (0, 0)


def slab_reach(matrices: np.ndarray, out_width: int, height: int) -> tuple[int, float]:
    """Return (margin, stretch): ``source_rows`` asks for at most ``rows * stretch + margin`` rows for any slab.

    Parameters
    ----------
    matrices : ndarray (N, 3, 3) float64
        Reference pixel to frame pixel, of all frames that are resampled.
    out_width, height : int
        Width of the reference grid; height of it and of the frames.

    Returns
    -------
    margin : int
        Rows; ``height`` if a map turns a point of the grid behind the camera, since then a frame is needed as a whole.
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
    a, c, right, bottom = matrices[:, 1, 1], matrices[:, 2, 1], out_width - 1.0, height - 1.0
    n = np.array([matrices[:, 1, 2], matrices[:, 1, 0] * right + matrices[:, 1, 2]])  # (2, N): left, right
    w = np.array([matrices[:, 2, 2], matrices[:, 2, 0] * right + matrices[:, 2, 2]])
    nearest = np.minimum(w, w + c * bottom)
    if not (nearest > 0).all():
        return height, 1.0
    slopes = np.abs(a * w - c * n)
    roots = np.sqrt(slopes)
    bend = c * (roots[1] - roots[0])
    with np.errstate(over="ignore"):  # nearly parallel: far outside, and clipped
        alike = (roots[0] * w[1] - roots[1] * w[0]) / np.where(bend == 0.0, 1.0, bend)
    rows = np.array([np.zeros_like(c), np.full_like(c, bottom), np.clip(alike, 0.0, bottom)])
    left_edge, right_edge = ((n[edge] + a * rows) / (w[edge] + c * rows) for edge in (0, 1))
    reach, stretch = np.abs(right_edge - left_edge).max(), (slopes / nearest**2).max()
    return math.ceil(min(reach, height)) + 2 * MARGIN + 4, max(float(stretch), 1.0)
