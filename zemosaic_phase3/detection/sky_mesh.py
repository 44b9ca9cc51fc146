"""The sky of one image on a mesh of cells: its level and noise, and both at any pixel.

For finding stars and for matching the backgrounds of frames. Everything is vectorised over cells: nothing to compile.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.robust import FLOORED, sky_above_floor

ENOUGH: Final = 0.25  # of a cell's samples, that must be valid
CLIP: Final = 3.0  # units of the noise, samples beyond are no sky
CROWDED: Final = 0.3  # units of the noise, between mean and median; beyond it the mode's formula fails
FINE: Final = 1.0 / 16.0  # of the noise: a step below it moves a median less than the noise does
COARSE: Final = 2.0  # units of the noise: the mean of numbers with a wider step depends on where the sky lies in it
CELLS_SEEN: Final = 4  # cells whose samples tell the step
REPEATS: Final = 8  # samples a level, on average, from which samples count as quantised
ROUNDING: Final = 5e-7  # of a number, by which equal ones may differ that float32 arithmetic made


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
    :func:`grouped_sky`. Where the low side was cut off, it is taken from the high one.

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
    floored = usable & (samples[:, 0] == samples[each, (FLOORED * last).astype(np.intp)]) & (last > 0)
    for k in np.flatnonzero(floored).tolist():
        above = sky_above_floor(samples[k].item, int(last[k]) + 1, float(samples[k, 0]))
        floored[k] = above is not None
        if above is not None:
            level[k], noise[k] = above
    step_adu = sample_step(samples, usable, last, noise)
    if step_adu > 0.0:
        grouped = usable & ~floored & (noise * FINE <= step_adu)
        level[grouped], noise[grouped] = grouped_sky(samples[grouped], last[grouped] + 1, step_adu, noise[grouped])
    level[~usable], noise[~usable] = np.nan, np.nan
    return level.reshape(rows, columns), noise.reshape(rows, columns)


def sample_step(samples: np.ndarray, usable: np.ndarray, last: np.ndarray, noise: np.ndarray) -> float:
    """Return the step of which all differences of samples are multiples; 0 where there is none that matters.

    It is looked for in the samples themselves, in the middle two thirds of a few cells: what a file's type says is not
    what its camera did, and the mean of two greens has half of the step.

    Parameters
    ----------
    samples : ndarray (cells, n) float64, ADU
        Ascending in each cell.
    usable : ndarray (cells,) bool
        Cells that have a sky.
    last : ndarray (cells,) int64
        Place of the last valid sample.
    noise : ndarray (cells,) float64, ADU
    """
    cells = np.flatnonzero(usable)
    if len(cells) == 0:
        return 0.0
    cells = cells[np.linspace(0, len(cells) - 1, min(CELLS_SEEN, len(cells))).astype(np.intp)]
    seen = np.concatenate([samples[k, int(0.1587 * last[k]) : int(0.8413 * last[k]) + 1] for k in cells])
    seen.sort()
    jumps = np.diff(seen)
    jumps = jumps[jumps > ROUNDING * max(abs(seen[0]), abs(seen[-1]))]
    if jumps.size == 0 or jumps.size * REPEATS > seen.size:
        return 0.0
    smallest = float(jumps.min())
    for step in (smallest, smallest / 2.0, smallest / 3.0):  # a step of 1 may show as 2 and 3 only
        multiple = jumps / step
        if float(np.abs(multiple - np.rint(multiple)).max()) < 0.05:
            step = float(jumps.sum() / np.rint(multiple).sum())
            return step if step >= FINE * float(np.median(noise[usable])) else 0.0
    return 0.0


def grouped_sky(
    samples: np.ndarray, valid: np.ndarray, step: float, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Measure level and noise of the sky from samples that are multiples of a step apart.

    A number on the grid stands for all between the middles of its neighbours, so that how many samples lie below is
    known exactly at those middles, and nowhere else. In between it is interpolated as a normal distribution is, by its
    quantiles, which is exact where the sky's noise is Gaussian, however coarse the step. The median of the numbers
    themselves sits on the grid, wrong by up to half a step, and 2.5 times that in the mode.

    Parameters
    ----------
    samples : ndarray (cells, n) float64, ADU
        Ascending in each cell; infinity behind the valid ones.
    valid : ndarray (cells,) int64
        How many are.
    step : float
        ADU.
    noise : ndarray (cells,) float64, ADU
        As measured on the numbers themselves: good to a step.

    Returns
    -------
    level, noise : ndarray (cells,) float64, ADU
    """
    from scipy.special import ndtr, ndtri

    cells = len(samples)
    middle = samples[np.arange(cells), valid // 2]
    reach = int(np.ceil(CLIP * (float(noise.max()) / step + 1.0))) + 1
    edges = middle[:, None] + (np.arange(-reach, reach + 2) - 0.5) * step
    below = np.array([row.searchsorted(places) for row, places in zip(samples, edges, strict=True)])
    count = valid[:, None].astype(np.float64)
    share = np.clip(below / count, 0.5 / count, 1.0 - 0.5 / count)
    sigmas = ndtri(share)

    def at(wanted: np.ndarray | float) -> np.ndarray:
        """Place where the distribution has so many sigmas, (cells,)."""
        k = np.clip(np.argmax(sigmas > np.reshape(wanted, (-1, 1)), axis=1), 1, sigmas.shape[1] - 1)
        each = np.arange(cells)
        low, high = sigmas[each, k - 1], sigmas[each, k]
        part = np.where(high > low, (wanted - low) / np.where(high > low, high - low, 1.0), 0.5)
        return edges[each, k - 1] + np.clip(part, 0.0, 1.0) * step

    median, low, high = at(0.0), at(-1.0), at(1.0)
    noise = np.minimum(0.5 * (high - low), median - low)
    cut_low, cut_high = (np.clip(median + side * CLIP * noise, edges[:, 0], edges[:, -1]) for side in (-1.0, 1.0))
    ends = []
    for cut in (cut_low, cut_high):
        k = np.minimum(((cut - edges[:, 0]) / step).astype(np.intp), edges.shape[1] - 2)
        part = (cut - edges[np.arange(cells), k]) / step
        ends.append(ndtr(sigmas[np.arange(cells), k] * (1.0 - part) + sigmas[np.arange(cells), k + 1] * part)[:, None])
    inside = np.clip(share, *ends)
    between = np.clip(edges, cut_low[:, None], cut_high[:, None])
    kept = np.diff(inside, axis=1)
    total = np.maximum(kept.sum(axis=1), 1e-12)
    mean = median + np.sum(kept * (0.5 * (between[:, 1:] + between[:, :-1]) - median[:, None]), axis=1) / total
    median = at(ndtri(0.5 * (ends[0] + ends[1]))[:, 0])
    is_plain = (np.abs(mean - median) < CROWDED * noise) & (step < COARSE * noise)
    return np.where(is_plain, 2.5 * median - 1.5 * mean, median), noise


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
