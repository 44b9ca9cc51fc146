"""The sky of one image on a mesh of cells: its level and noise, and both at any pixel.

For finding stars and for matching the backgrounds of frames. Everything is vectorised over cells: nothing to compile.
"""

from __future__ import annotations

from typing import Final

import numpy as np

ENOUGH: Final = 0.25  # of a cell's samples, that must be valid
CLIP: Final = 3.0  # units of the noise, samples beyond are no sky
CROWDED: Final = 0.3  # units of the noise, between mean and median; beyond it the mode's formula fails


def median_of_nine(grid: np.ndarray) -> np.ndarray:
    """Median of every cell of ``grid (h, w)`` and its eight neighbours; at the edge the nearest count for those beyond.

    What ``scipy.ndimage.median_filter`` gives, without its import, which takes 0.1 s.
    """
    rows, columns = grid.shape
    padded = np.pad(grid, 1, mode="edge")
    return np.median([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)


def sky_mesh(image: np.ndarray, cell: int, step: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Measure level and noise of the sky in every cell of an image.

    The noise is half of the 16th to 84th percentile, or the 16th to the 50th where that is less (stars); what lies
    beyond 3 of it from the median is left out; the level is ``2.5 median - 1.5 mean`` of the rest, or the median where
    the two differ by more than 0.3 of the noise (Bertin & Arnouts 1996, A&AS 117, 393, 7.1).

    Parameters
    ----------
    image : ndarray (h, w) float32, ADU
        NaN = invalid.
    cell : int
        Side of a cell, pixels; one cell where the image is smaller. What is left over at the far edges is left out.
    step : int
        Every step-th row and column counts.

    Returns
    -------
    level, noise : ndarray (rows, columns) float64, ADU
        NaN where less than a quarter of the samples is valid.
    """
    rows, columns = (max(1, side // cell) for side in image.shape)
    height, width = (min(cell, side) for side in image.shape)
    cut = image[: rows * height, : columns * width].reshape(rows, height, columns, width)[:, ::step, :, ::step]
    samples = cut.swapaxes(1, 2).reshape(rows * columns, -1)
    samples = np.sort(np.where(np.isfinite(samples), samples, np.float32(np.inf)), axis=1).astype(np.float64)
    valid = np.count_nonzero(samples < np.inf, axis=1)
    usable = valid >= max(1.0, ENOUGH * samples.shape[1])
    samples[~usable] = 0.0
    last = np.where(usable, valid, samples.shape[1]) - 1
    each = np.arange(len(samples))
    low, median, high = (samples[each, np.rint(share * last).astype(np.intp)] for share in (0.1587, 0.5, 0.8413))
    noise = np.minimum(0.5 * (high - low), median - low)
    about = samples - median[:, None]
    kept = np.abs(about) <= CLIP * noise[:, None]
    count = np.count_nonzero(kept, axis=1)
    mean = median + np.sum(np.where(kept, about, 0.0), axis=1) / count
    median = samples[each, np.argmax(kept, axis=1) + count // 2]
    level = np.where(np.abs(mean - median) < CROWDED * noise, 2.5 * median - 1.5 * mean, median)
    level[~usable], noise[~usable] = np.nan, np.nan
    return level.reshape(rows, columns), noise.reshape(rows, columns)


def between_cells(at: np.ndarray, cell: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mesh cells on either side of positions along one axis (pixels), and how far between their centres a position is.

    Positions beyond the outermost centres count as those. One that is NaN is NaN from the first cell.
    """
    place = np.clip((np.asarray(at) + 0.5) / cell - 0.5, 0.0, count - 1.0)
    first = np.where(np.isnan(place), 0.0, place).astype(np.intp)
    return first, np.minimum(first + 1, count - 1), place - first


def mesh_at(mesh: np.ndarray, cell: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of a mesh (rows, columns, ...) at pixels (x, y), (n, ...) float64."""
    (r, r1, fy), (c, c1, fx) = (between_cells(at, cell, n) for at, n in zip((y, x), mesh.shape[:2], strict=True))
    fx, fy = (f.reshape(-1, *[1] * (mesh.ndim - 2)) for f in (fx, fy))
    upper = mesh[r, c] + fx * (mesh[r, c1] - mesh[r, c])
    lower = mesh[r1, c] + fx * (mesh[r1, c1] - mesh[r1, c])
    return upper + fy * (lower - upper)


def spread_mesh(mesh: np.ndarray, cell: int, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear interpolation of a mesh (rows, columns) on all pixels of an image, float32.

    NOTE without BLAS, which would start threads of its own inside each of ours.
    """
    (r, r1, fy), (c, _, fx) = (
        between_cells(np.arange(n), cell, cells) for n, cells in zip(shape, mesh.shape, strict=True)
    )
    rows = (mesh[r] + fy[:, None] * (mesh[r1] - mesh[r])).astype(np.float32)
    result = np.take(np.diff(rows, axis=1, append=rows[:, -1:]), c, axis=1)
    result *= fx.astype(np.float32)
    result += np.take(rows, c, axis=1)
    return result
