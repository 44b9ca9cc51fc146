"""From the rows of a raw frame to rows of the reference grid: demosaicing and interpolation, each defined once.

Geometry. An output pixel (X, Y) of the reference grid is mapped to the frame by the 3x3 matrix of its
registration, in float64, in this order: ``x = (m00 X + (m01 Y + m02)) / w`` and likewise y and w. Where the frame has a
distortion field (``zemosaic_distortion``), its displacement there is added. The position is then rounded to 1/1024
pixel; that grid is part of the definition, so that the weights come from one small table made once. An output pixel is
inside the frame when that rounded position lies within the centres of its outermost pixels.

Every output pixel depends on absolute coordinates alone: the rows of a slab equal the same rows of the whole.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_distortion import STEP
from zemosaic_kernels import kernel
from zemosaic_lines import LANES, SPARE, TAPS, demosaic_run, interpolate_grey, interpolate_rgb

PHASES: Final = 1024  # positions per pixel; rounding moves a sample by 1/2048 px at most, 0.0003 px rms
PAD: Final = 32  # spare floats behind a source block: the inner loops read whole SIMD registers
CFA_MARGIN: Final = 2  # rows the demosaicing needs above and below
MARGIN: Final = 3  # rows the interpolation needs above and below the mapped rows
SEGMENT: Final = 256  # pixels of a row worked on at once: what is held of them stays in the first-level cache
OUTSIDE: Final = -(1 << 31)  # in place of a position: not in the frame

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
def demosaic_rows(raw, row0, height, width, y0, y1, red_row, red_col, columns, out) -> None:
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
    images", ICASSP 2004, with the gains 1/2, 5/8, 3/4 of the paper. Linear and shift invariant per cell position: every
    colour keeps its flux exactly, because the corrections sum to zero.
    NOTE: frame edges are mirrored; the paper leaves them open. A NaN spoils the pixels that use it.
    """
    end = width - 2
    for y in range(y0, y1):
        o = (y - y0) * width
        first = columns[y - y0, 0]
        stop = columns[y - y0, 1]
        if stop <= first:
            continue
        mirrored = y < 2 or y >= height - 2 or end < LANES + 2
        left = width if mirrored else 2 if first < 2 else 0
        right = end if stop > end and not mirrored else width
        _demosaic_mirrored(raw, row0, height, width, y, left, right, red_row, red_col, out, o)
        first = max(first, 2)
        stop = min(stop, end)
        if mirrored or stop <= first:
            continue
        on_red_row = ((y ^ red_row) & 1) == 0
        own = red_col if on_red_row else red_col + 1  # the columns of this parity are not green
        last = first + (stop - first) // LANES * LANES
        demosaic_run(raw, y - row0, width, first, last, ((own ^ first) & 1) == 0, on_red_row, out, o)
        if last < stop:  # what is left, and before it pixels done already
            first = max(stop - LANES, 2)
            demosaic_run(raw, y - row0, width, first, first + LANES, ((own ^ first) & 1) == 0, on_red_row, out, o)


@kernel
def _demosaic_mirrored(raw, row0, height, width, y, left, right, red_row, red_col, out, o) -> None:
    """Demosaic the first ``left`` pixels of row y and those from ``right`` on, for which the frame is mirrored."""
    pixel = np.empty(3, np.float32)
    for k in range(left + width - right):
        x = k if k < left else k - left + right
        _demosaic_pixel(raw, row0, height, width, y, x, red_row, red_col, pixel)
        for c in range(3):
            out[3 * (o + x) + c] = pixel[c]


# --------------------------------------------------------------------------- interpolation


@kernel
def _larger(a: float, b: float) -> float:
    return a if a > b else b


@kernel
def _smaller(a: float, b: float) -> float:
    return a if a < b else b


@kernel
def _careful(src, row0, height, width, channels, c, xq, yq, table, clamp) -> float:
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
    src,
    row0,
    height,
    width,
    channels,
    matrix,
    field,
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
    field : ndarray (rows, columns, 2) float32, or None
        Displacements to be added, pixels, see ``zemosaic_distortion``.
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
def _locate(matrix, field, row, start, count, width, height, row0, rows_held, x, y, xq, yq) -> int:
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
def _displace(field, row, start, count, x, y) -> None:
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
def _mend(src, row0, height, width, channels, xq, yq, count, table, clamp, scale, offset, line) -> None:
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
def _weigh(x, y, xq, count, width, height, radial_table, radial, place) -> None:
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


# --------------------------------------------------------------------------- which rows a slab needs


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


def slab_reach(matrices: np.ndarray, out_width: int, height: int, displaced: float = 0.0) -> tuple[int, float]:
    """Return (margin, stretch): ``source_rows`` asks for at most ``rows * stretch + margin`` rows for any slab.

    Parameters
    ----------
    matrices : ndarray (N, 3, 3) float64
        Reference pixel to frame pixel, of all frames that are resampled.
    out_width, height : int
        Width of the reference grid; height of it and of the frames.
    displaced : float
        Rows by which a distortion field displaces a pixel at most.

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
    apart, stretch = np.abs(right_edge - left_edge).max() + 2.0 * displaced, (slopes / nearest**2).max()
    return math.ceil(min(apart, height)) + 2 * MARGIN + 4, max(float(stretch), 1.0)
