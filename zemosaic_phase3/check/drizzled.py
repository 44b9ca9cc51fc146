"""The samples of a few pixels of a drizzle, from the files again, in float64 NumPy: no kernel has a part.

A drop is a square of the frame, a pixel of the result a quadrilateral in it. What they share is found along the edges
of the quadrilateral, by the mean height at which each passes over the drop.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.runtime.threads import parallel_map

RED: Final = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}
FLOAT32: Final = float(np.finfo(np.float32).eps) / 2.0  # what one rounding changes at most, relative
LEAST: Final = 1e-5  # of a drop
FAR: Final = 1e7  # pixels; nothing is there
MOST: Final = 40  # drops along a side of a pixel of the result, for which memory is taken


def drizzled_samples(
    job: Job, frames: list[int], corners: np.ndarray, workers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, errors and areas (n, P, C) float64 of P pixels in frames that all are mosaics, or none of them.

    ``corners (2, 4, n, P) float64``: x and y of the pixels' corners in the frames, in one sense of rotation.
    """
    pixfrac = job.spec.pixfrac
    corners = np.where(np.isfinite(corners), np.clip(corners, -FAR, FAR), -FAR)
    first = np.ceil(corners.min(axis=1) - pixfrac / 2.0)  # (2, n, P), of the drops that may fall on the pixels
    span = corners.max(axis=1) + pixfrac / 2.0 - first
    reach = np.arange(1 + int(min(span.max(), MOST)))
    xs, ys = (axis[..., None] + reach for axis in first)  # (n, P, K)
    values = _drops(job, frames, xs, ys, workers)  # (n, P, K, K, C)
    areas = _shared(corners, xs, ys, pixfrac)[..., None] * np.isfinite(values)
    total = areas.sum(axis=(2, 3))
    counts = total >= LEAST
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (areas * np.where(np.isfinite(values), values, 0.0)).sum(axis=(2, 3)) / total
    scale, offset = (a[frames][:, None, :] for a in (job.table.scale, job.table.offset))
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.where(counts, mean * scale + offset, np.nan).astype(np.float32).astype(np.float64)
    value[np.isinf(value)] = np.nan
    error = np.where(np.isfinite(value), 2.0 * FLOAT32 * np.abs(value), 0.0)
    return value, error, np.where(counts, total, 0.0).astype(np.float32).astype(np.float64)


def _drops(job: Job, frames: list[int], xs: np.ndarray, ys: np.ndarray, workers: int) -> np.ndarray:
    """Read pixels of the frames, ADU: (n, P, K, K, C) float64; NaN beyond the edges and where there is another colour.

    ``xs``, ``ys (n, P, K)``: columns and rows of the frame.
    """
    n, p, k = xs.shape
    values = np.full((n, p, k, k, job.channels), np.nan)

    def read(number: int) -> None:
        source = job.sources[frames[number]]
        in_x, in_y = (xs[number] >= 0) & (xs[number] < source.width), (ys[number] >= 0) & (ys[number] < source.height)
        some = np.flatnonzero(in_x.any(axis=1) & in_y.any(axis=1))
        if some.size == 0:
            return
        wanted = ys[number, some][in_y[some]]
        top = int(wanted.min())
        rows = source.read_rows(top, int(wanted.max()) + 1).astype(np.float64)
        pixels = rows.reshape(*rows.shape[:2], -1)
        for at in some.tolist():
            y, x = (axis[number, at].astype(np.int64) for axis in (ys, xs))
            here = np.ix_(in_y[at], in_x[at])
            block = pixels[np.ix_(y[in_y[at]] - top, x[in_x[at]])]
            if source.cfa is None:
                values[number, at][here] = block
                continue
            red_row, red_column = RED[source.cfa]
            colour = ((y[in_y[at]] ^ red_row) & 1)[:, None] + ((x[in_x[at]] ^ red_column) & 1)
            for c in range(3):
                values[number, at, ..., c][here] = np.where(colour == c, block[..., 0], np.nan)

    parallel_map(read, range(n), workers)
    values[np.isinf(values)] = np.nan
    return values


def _shared(corners: np.ndarray, xs: np.ndarray, ys: np.ndarray, side: float) -> np.ndarray:
    """Return the part of each drop that falls on each pixel, (n, P, K, K): rows, columns."""
    x = (corners[0][..., None] - xs + side / 2.0) / side  # (4, n, P, K), in units of the drop, from its first corner
    y = (corners[1][..., None] - ys + side / 2.0) / side
    x, y = x[..., None, :], y[..., :, None]
    area = np.zeros(np.broadcast_shapes(x.shape, y.shape)[1:])
    for k in range(4):
        area += _under(x[k], y[k], x[(k + 1) % 4], y[(k + 1) % 4])
    return np.abs(area)


def _under(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
    """Return the area of the unit square below an edge, positive to the right."""
    a, b = np.clip(x1, 0.0, 1.0), np.clip(x2, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(x1 == x2, 0.0, (y2 - y1) / (x2 - x1))
        at_a, at_b = y1 + slope * (a - x1), y1 + slope * (b - x1)
        low, high = np.minimum(at_a, at_b), np.maximum(at_a, at_b)
        inner_low, inner_high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
        inside = np.where(high > low, (inner_high - inner_low) / (high - low), (inner_low > 0.0) & (inner_low < 1.0))
        above = np.where(high > low, (np.maximum(high, 1.0) - np.maximum(low, 1.0)) / (high - low), low >= 1.0)
    return np.asarray((b - a) * (inside * (inner_low + inner_high) / 2.0 + above))
