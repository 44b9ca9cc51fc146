"""The samples of a few pixels of a stack, from the files again, in float64 NumPy: no kernel of the engines has a part.

Frames are read by ranges of rows, decoded, demosaiced (Malvar, He and Cutler), brought onto the grid, scaled. The
text is that of ``docs/algorithms.md``, chapter "Resampling", once more: slow, obvious, and with bounds on how far
float32 arithmetic, which the engines use up to the sample, may be from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.check.drizzled import drizzled_samples
from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.registration.distortion import STEP
from zemosaic_phase3.runtime.threads import parallel_map

AT_ONCE: Final = 256  # frames whose windows are in memory at a time
TAPS: Final = 6  # pixels per axis around a position
CFA_REACH: Final = 2  # pixels on each side that the demosaicing needs
PHASES: Final = 1024  # positions per pixel
RED: Final = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}
FLOAT32: Final = float(np.finfo(np.float32).eps) / 2.0  # what one rounding changes at most, relative
RESAMPLED: Final = 48.0 * FLOAT32  # of the largest pixel around: 16 roundings of terms whose sizes add up to 2.6 of it
DEMOSAICED: Final = 32.0 * FLOAT32  # 12 roundings, 2.5
RADIAL_NODES: Final = 4096  # of the table of radial weights; linear between them


class Samples(NamedTuple):
    """Samples of P pixels in N frames.

    ``value (N, P, C) float64``, ADU: as float32 holds them, NaN where invalid; ``error`` of the same shape, ADU: how
    far another order of float32 operations may be from them; ``weight (N, P, C) float64``, frame weight and, where
    they have one, the samples' own.
    """

    value: np.ndarray
    error: np.ndarray
    weight: np.ndarray


def samples_at(job: Job, rows: np.ndarray, columns: np.ndarray, workers: int = 1) -> Samples:
    """Return the samples of a few pixels near to each other.

    Parameters
    ----------
    job : Job
        What was stacked.
    rows, columns : ndarray (P,) int64
        Pixels of the result. Of each frame one range of rows is read, that holds all of them.
    workers : int
        Threads that read.

    Raises
    ------
    FrameError
        A frame can no longer be read.
    """
    n, shape = len(job.sources), (len(job.sources), len(rows), job.channels)
    value, error, weight = np.full(shape, np.nan), np.zeros(shape), np.empty(shape)
    weight[...] = job.table.weight[:, None, :]
    for start in range(0, n, AT_ONCE):
        for some in _of_one_kind(job, range(start, min(start + AT_ONCE, n))):
            value[some], error[some], own = _of_frames(job, some, rows, columns, workers)
            weight[some] *= own
    if job.sample_weight is not None:
        own = job.sample_weight[:, rows, columns]
        weight *= (own if own.ndim == 3 else own[..., None]).astype(np.float64)
    return Samples(value, error, weight)


def _of_one_kind(job: Job, frames: range) -> Iterator[list[int]]:
    """Yield the mosaics among some frames, and the others."""
    for is_mosaic in (True, False):
        some = [i for i in frames if (job.sources[i].cfa is not None) == is_mosaic]
        if some:
            yield some


def _of_frames(
    job: Job, frames: list[int], rows: np.ndarray, columns: np.ndarray, workers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, errors (n, P, C) and own weights (n, P, 1 or C) of frames that all are mosaics, or none."""
    if job.spec.drizzle > 0.0:
        around = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
        corners = np.stack([_positions(job, frames, rows, columns, *by) for by in around], axis=1)
        return drizzled_samples(job, frames, corners, workers)
    table, spec = job.table, job.spec
    first = job.sources[frames[0]]
    x, y = _positions(job, frames, rows, columns)
    stays = table.in_place[frames] & (not spec.radial_weight)
    xq, inside_x = _in_steps(x, first.width)
    yq, inside_y = _in_steps(y, first.height)
    inside = inside_x & inside_y
    windows, ints = _windows(job, frames, xq >> 10, yq >> 10, inside, workers)
    largest = np.where(np.isfinite(windows), np.abs(windows), 0.0).max(axis=(2, 3))
    taken = _at_pixel(windows, stays[:, None] & inside)
    edge = (xq < 2 * PHASES) | (yq < 2 * PHASES)
    edge |= (xq >= (first.width - 3) * PHASES) | (yq >= (first.height - 3) * PHASES)
    resampled = _interpolated(windows, xq & 1023, yq & 1023, edge, spec.interpolation)
    value = np.where(stays[:, None, None], taken, resampled)
    value[~inside] = np.nan
    scale, offset = table.scale[frames][:, None, :], table.offset[frames][:, None, :]
    error = largest * np.abs(scale) * (0.0 if first.cfa is None or ints else DEMOSAICED)
    error += np.where(stays[:, None, None], 0.0, largest * np.abs(scale) * RESAMPLED)
    with np.errstate(over="ignore", invalid="ignore"):
        value = (value * scale + offset).astype(np.float32).astype(np.float64)
        value[np.isinf(value)] = np.nan
        error += np.where(error > 0.0, 2.0 * FLOAT32 * np.abs(value), 0.0)
    own = np.ones(x.shape)
    if spec.radial_weight:
        own = np.where(inside, _radial(x, y, first, spec.radial_feather, spec.radial_power, spec.radial_floor), 0.0)
    return value, error, own[..., None]


def _positions(
    job: Job, frames: list[int], rows: np.ndarray, columns: np.ndarray, right: float = 0.0, down: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return where pixels of the result lie in the frames, or points beside them: x, y (n, P) float64, pixels."""
    m = job.table.transform[frames][:, None]
    column, row = columns + right, rows + down
    x, y, w = (m[..., k, 0] * column + (m[..., k, 1] * row + m[..., k, 2]) for k in range(3))
    affine = (m[..., 2, 0] == 0.0) & (m[..., 2, 1] == 0.0) & (m[..., 2, 2] == 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (np.where(affine, p, p / w) for p in (x, y))
    for k, i in enumerate(frames):
        field = job.table.distortion[i] if job.table.distortion else np.empty(0)
        if field.size:
            x[k] += _displacement(field[..., 0].astype(np.float64), rows, columns)
            y[k] += _displacement(field[..., 1].astype(np.float64), rows, columns)
    return x, y


def _displacement(nodes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    j, k = rows // STEP, columns // STEP
    f, g = (columns - k * STEP) / STEP, (rows - j * STEP) / STEP
    above = nodes[j, k] + f * (nodes[j, k + 1] - nodes[j, k])
    below = nodes[j + 1, k] + f * (nodes[j + 1, k + 1] - nodes[j + 1, k])
    return above + g * (below - above)


def _in_steps(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in units of 1/1024 pixel, int64, and whether they lie within the outermost pixels' centres."""
    near = (position > -1.0) & (position < size)
    steps = np.floor(np.where(near, position, -1.0) * PHASES + 0.5).astype(np.int64)
    inside = (steps >= 0) & (steps <= (size - 1) * PHASES)
    return np.where(inside, steps, 0), inside


def _windows(
    job: Job, frames: list[int], ix: np.ndarray, iy: np.ndarray, inside: np.ndarray, workers: int
) -> tuple[np.ndarray, bool]:
    """Read the 6x6 pixels around each position, edge pixels repeated, demosaiced: (n, P, 6, 6, C) float64, ADU.

    Also returns whether all of them are whole numbers as stored, which float32 demosaics exactly. Pixels ``ix - 2`` to
    ``ix + 3``; NaN for positions outside of the frame.
    """
    source = job.sources[frames[0]]
    height, width, mosaic = source.height, source.width, source.cfa is not None
    reach = np.arange(TAPS) - 2
    ys, xs = (np.clip(i[..., None] + reach, 0, size - 1) for i, size in ((iy, height), (ix, width)))
    wanted_y, wanted_x, corner_y, corner_x = ys, xs, iy, ix
    if mosaic:
        corner_y, corner_x = np.clip(iy - 2, 0, height - TAPS), np.clip(ix - 2, 0, width - TAPS)
        around = np.arange(-CFA_REACH, TAPS + CFA_REACH)
        wanted_y = _mirrored(corner_y[..., None] + around, height)
        wanted_x = _mirrored(corner_x[..., None] + around, width)
    stored = np.full((*ix.shape, wanted_y.shape[-1], wanted_x.shape[-1], 1 if mosaic else job.channels), np.nan)

    def read(k: int) -> bool:
        some = np.flatnonzero(inside[k])
        if some.size == 0:
            return True
        first, last = int(wanted_y[k, some].min()), int(wanted_y[k, some].max()) + 1
        rows = job.sources[frames[k]].read_rows(first, last)
        pixels = rows.reshape(*rows.shape[:2], -1)
        for p in some.tolist():
            stored[k, p] = pixels[(wanted_y[k, p] - first)[:, None], wanted_x[k, p]]
        return rows.dtype.kind == "u"

    ints = all(parallel_map(read, range(len(frames)), workers))
    if not mosaic:
        return stored, ints
    red = np.array([RED[str(job.sources[i].cfa)] for i in frames])
    colours = _demosaiced(stored[..., 0], corner_y ^ red[:, :1], corner_x ^ red[:, 1:])
    n, p = np.ogrid[: ix.shape[0], : ix.shape[1]]
    at_y, at_x = ys - corner_y[..., None], xs - corner_x[..., None]
    return colours[n[..., None, None], p[..., None, None], at_y[..., :, None], at_x[..., None, :]], ints


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Mirror indices at the frame's edges without repeating the edge pixel."""
    index = np.abs(index)
    return np.where(index >= size, 2 * size - 2 - index, index)


def _demosaiced(raw: np.ndarray, row_parity: np.ndarray, column_parity: np.ndarray) -> np.ndarray:
    """Red, green, blue of the inner 6x6 of 10x10 pixels of mosaics: (n, P, 10, 10) to (n, P, 6, 6, 3).

    ``row_parity``, ``column_parity (n, P)``: even where the first of the inner pixels lies in a row, a column, of red.
    """

    def at(dy: int, dx: int) -> np.ndarray:
        return raw[..., CFA_REACH + dy : CFA_REACH + dy + TAPS, CFA_REACH + dx : CFA_REACH + dx + TAPS]

    k = np.arange(TAPS)
    red_row = ((row_parity[..., None, None] + k[:, None]) & 1) == 0
    red_column = ((column_parity[..., None, None] + k) & 1) == 0
    c, vertical, horizontal = at(0, 0), at(-1, 0) + at(1, 0), at(0, -1) + at(0, 1)
    far_vertical, far_horizontal = at(-2, 0) + at(2, 0), at(0, -2) + at(0, 2)
    diagonal = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    green = (4.0 * c + 2.0 * (vertical + horizontal) - (far_vertical + far_horizontal)) / 8.0
    other = diagonal / 4.0 + (c - (far_vertical + far_horizontal) / 4.0) / 2.0
    across = horizontal / 2.0 + (15.0 * c - 3.0 * (far_horizontal + diagonal) + 1.5 * far_vertical) / 32.0
    along = vertical / 2.0 + (15.0 * c - 3.0 * (far_vertical + diagonal) + 1.5 * far_horizontal) / 32.0
    is_green = red_row != red_column
    of_row = np.where(is_green, across, c)  # the colour that shares the row with green
    of_other_row = np.where(is_green, along, other)
    return np.stack(
        (
            np.where(red_row, of_row, of_other_row), np.where(is_green, c, green),
            np.where(red_row, of_other_row, of_row),
        ),
        axis=-1,
    )  # fmt: skip


def _at_pixel(windows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the pixels that positions fall on."""
    return np.where(wanted[..., None], windows[:, :, 2, 2], np.nan)


def _weights(name: str, phase: np.ndarray) -> np.ndarray:
    """Weights of the 6 pixels along one axis, (..., 6) float64, for positions ``phase / 1024`` beyond the third one."""
    x = phase[..., None] / PHASES - (np.arange(TAPS) - 2)
    a = np.abs(x)
    if name == "lanczos3":
        w = np.where(a < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)
    elif name == "bicubic":
        w = np.where(
            a <= 1.0, 1.5 * a**3 - 2.5 * a**2 + 1.0, np.where(a < 2.0, -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2, 0)
        )
    elif name == "bilinear":
        w = np.maximum(1.0 - a, 0.0)
    elif name == "smooth":  # a Mitchell-Netravali cubic, B = 0.6, C = 0.2
        b, c = 0.6, 0.2
        near = (12 - 9 * b - 6 * c) * a**3 + (12 * b + 6 * c - 18) * a**2 + 6 - 2 * b
        far = -(b + 6 * c) * a**3 + (6 * b + 30 * c) * a**2 - (12 * b + 48 * c) * a + 8 * b + 24 * c
        w = np.where(a < 1.0, near, np.where(a < 2.0, far, 0.0)) / 6.0
    else:  # nearest; the left one of two equally near
        w = ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    w = np.where(np.abs(w) < 1e-12, 0.0, w)
    return w / w.sum(axis=-1, keepdims=True)


def _interpolated(v: np.ndarray, px: np.ndarray, py: np.ndarray, edge: np.ndarray, name: str) -> np.ndarray:
    """Interpolate windows (n, P, 6, 6, C): invalid pixels left out and the rest renormalised, clamped.

    NaN where one of the up to four nearest pixels is invalid. ``edge (n, P)``: the window reaches beyond the frame.
    """
    valid = np.isfinite(v)
    w = (_weights(name, py)[..., :, None] * _weights(name, px)[..., None, :])[..., None]
    norm = np.where(valid, w, 0.0).sum(axis=(2, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(valid, w * np.where(valid, v, 0.0), 0.0).sum(axis=(2, 3)) / norm
    lost = (~valid & (w != 0.0))[:, :, 2:4, 2:4].any(axis=(2, 3))
    whole = valid.all(axis=(2, 3)) & ~edge[..., None]
    if name in ("lanczos3", "bicubic", "smooth"):
        low, high = _range(v, valid & (w != 0.0), whole)
        value = np.maximum(np.minimum(value, high), low)
    return np.where(lost | ~(whole | (norm > 0.25)), np.nan, value)


def _range(v: np.ndarray, counts: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a value is held to, (n, P, C): the range of the 4x4 pixels around it.

    Where a window is whole, the inner 2x2 may stand out of the ring around them by half as much again.
    """
    inner = np.zeros((TAPS, TAPS, 1), bool)
    inner[2:4, 2:4] = True
    block = np.zeros((TAPS, TAPS, 1), bool)
    block[1:5, 1:5] = True

    def most(which: np.ndarray, sign: float) -> np.ndarray:
        return np.where(which, sign * v, -np.inf).max(axis=(2, 3))

    def bound(sign: float) -> np.ndarray:
        core, ring = (most(np.broadcast_to(part, v.shape), sign) for part in (inner, block & ~inner))
        with np.errstate(invalid="ignore"):
            stands_out = np.where(ring > core, ring, core + 0.5 * (core - ring))
        return sign * np.where(whole, stands_out, most(counts & block, sign))

    return bound(-1.0), bound(1.0)


def _radial(
    x: np.ndarray, y: np.ndarray, source: FrameSource, feather: float, power: float, floor: float
) -> np.ndarray:
    """Weights by the distance from the frame's own centre, as float32 holds them."""
    feather, floor = min(max(feather, 0.1), 1.0), min(floor, 0.99)
    nodes = np.linspace(0.0, feather, RADIAL_NODES + 1)
    table = np.maximum(np.cos(0.5 * np.pi * np.clip(nodes / feather, 0.0, 1.0)) ** power, floor)
    d = np.hypot(x - (source.width - 1) / 2.0, y - (source.height - 1) / 2.0)
    d = d / (0.5 * np.hypot(source.height, source.width))
    place = d * (RADIAL_NODES / feather)
    k = np.minimum(place.astype(np.int64), RADIAL_NODES - 1)
    weight = table[k] + np.minimum(place - k, 1.0) * (table[k + 1] - table[k])
    return weight.astype(np.float32).astype(np.float64)
