"""The sky of one image on a mesh of cells: its level and noise, and both at any pixel.

For finding stars and for matching the backgrounds of frames.
"""

from __future__ import annotations

from math import prod

import numpy as np

from zemosaic_phase3.detection.planes import Planes, planes_of
from zemosaic_phase3.runtime.workspace import Workspace


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
    the two differ by more than 0.3 of the noise (Bertin & Arnouts 1996, A&AS 117, 393, 7.1). Where the samples come in
    steps of a sixteenth of the noise or more, all of that is taken from the distribution between the steps, see
    :func:`detection.mesh_kernels.grouped_cell`. Where the low side was cut off, it is taken from the high one.

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
    frame = np.ascontiguousarray(image, np.float32)[:, :, None]
    level, noise = sky_of_planes(frame, planes_of(frame.shape), cell, step)
    return level[0], noise[0]


def sky_of_planes(
    frame: np.ndarray, planes: Planes, cell: int, step: int = 2, workspace: Workspace | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the sky of planes of a frame (H, W, C) float32 where they lie, each (P, rows, columns)."""
    from zemosaic_phase3.detection.mesh_kernels import measure_mesh

    shape = (len(planes.table), max(1, planes.height // cell), max(1, planes.width // cell))
    level, noise = np.empty(shape), np.empty(shape)
    size = prod(-(-min(cell, side) // step) for side in (planes.height, planes.width))
    samples = (workspace or Workspace()).array("samples", (shape[1] * shape[2], size), np.float32)
    measure_mesh(frame, planes.table, (planes.height, planes.width), cell, step, samples, level, noise)
    return level, noise


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
