"""Gains and offsets of frames that share little with the reference: through the frames they do overlap with.

Each frame is compared with a few others: by the fluxes of the stars that both show, and by the sky. That gives many
more equations than frames, ``ln gain_i - ln gain_j = ln ratio_ij`` and ``offset_i - offset_j = difference_ij``, with
the reference's gain 1 and offset 0; both systems are solved by weighted least squares, so that errors do not pile up
along a chain and levels at the borders of frames agree as well as they can (as Montage matches backgrounds, Berriman et
al. 2003, and SCAMP photometric zero points, Bertin 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.photometry.star_gain import (
    FEWEST_PAIRS,
    MIN_CELLS,
    Gain,
    drawn_together,
    frame_gain,
    sky_difference,
)
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.registration.transform import grid_points, inside_frame, transform_points

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEAR_RANKS: Final = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # others that a frame is compared with, by distance: near and far
LEAST_COMMON: Final = 0.1  # of a frame's field, that two frames must share to be compared
GOOD_OVERLAP: Final = 0.5  # of the reference's field: where all frames share as much, they are compared with it alone
LEAST_ERROR: Final = 1e-3  # of the logarithm of a ratio: stars vary, and optics differ over the field


class Link(NamedTuple):
    """Two frames that are compared: the second, times ``ratio``, has the fluxes of the first; (C,) each."""

    first: int
    second: int
    ratio: np.ndarray
    error: np.ndarray  # relative
    pairs: np.ndarray


def frame_size(stats: FrameStats) -> tuple[int, int]:
    """Return about how large a frame is, (H, W) px, by its mesh of the sky."""
    rows, columns = stats.sky_mesh.shape[:2]
    return rows * stats.sky_cell, columns * stats.sky_cell


def common_part(to_frame: np.ndarray, size: tuple[int, int]) -> float:
    """Return the part of a frame's field that another one shows, from the map of pixels of the one to the other."""
    return float(np.mean(inside_frame(transform_points(to_frame, grid_points(size, 9)), size)))


def overlap_by_little(stats: Sequence[FrameStats], transforms: Sequence[np.ndarray], reference: int) -> bool:
    """Return whether some frame shares too little with the reference to be compared with it alone."""
    size = frame_size(stats[reference])
    if min(size) == 0:
        return False
    from_grid = np.linalg.inv(transforms[reference])
    return any(common_part(t @ from_grid, size) < GOOD_OVERLAP for t in transforms)


def pairs_of(
    stats: Sequence[FrameStats], transforms: Sequence[np.ndarray], reference: int
) -> list[tuple[int, int, np.ndarray]]:
    """Choose which frames are compared: each with the reference and with some others, near and far.

    Parameters
    ----------
    stats : sequence of FrameStats
    transforms : sequence of ndarray (3, 3) float64
        Pixel of the result's grid to the frame's.
    reference : int

    Returns
    -------
    list of (first, second, matrix)
        ``matrix``: pixel of the first to pixel of the second.
    """
    from scipy.spatial import cKDTree

    size = frame_size(stats[reference])
    back = [np.linalg.inv(t) for t in transforms]
    middle = np.array([(size[1] - 1) / 2.0, (size[0] - 1) / 2.0])
    middles = np.stack([transform_points(b, middle) for b in back])
    most = min(len(stats), NEAR_RANKS[-1] + 1)
    _, order = cKDTree(middles).query(middles, k=most)
    order = order.reshape(len(stats), most)
    wanted = {(min(i, reference), max(i, reference)) for i in range(len(stats)) if i != reference}
    for i, others in enumerate(order.tolist()):
        near = [k for k in others if k != i]
        wanted |= {(min(i, near[rank - 1]), max(i, near[rank - 1])) for rank in NEAR_RANKS if rank <= len(near)}
    some = [(first, second, transforms[second] @ back[first]) for first, second in sorted(wanted)]
    return [(first, second, matrix) for first, second, matrix in some if common_part(matrix, size) >= LEAST_COMMON]


def links_of(stats: Sequence[FrameStats], transforms: Sequence[np.ndarray], reference: int) -> list[Link]:
    """Compare the fluxes of stars that frames show, as :func:`pairs_of` chooses them."""
    links = []
    for first, second, to_second in pairs_of(stats, transforms, reference):
        gain = frame_gain(stats[second], stats[first], to_second)
        links.append(Link(first, second, gain.factor, np.maximum(gain.error, LEAST_ERROR), gain.pairs))
    return links


def gains_through(links: Sequence[Link], n: int, channels: int, reference: int) -> list[Gain]:
    """Solve for the gains of all frames; NaN, with an infinite error, where no link leads to the reference.

    ``error`` is that of the best single path from the reference, which is more than that of the solution.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    factor, error = np.full((n, channels), np.nan), np.full((n, channels), np.inf)
    pairs = np.zeros((n, channels), np.int64)
    for c in range(channels):
        some = [k for k in links if k.pairs[c] >= FEWEST_PAIRS and np.isfinite(k.ratio[c]) and np.isfinite(k.error[c])]
        if not some:
            continue
        first, second = np.array([k.first for k in some]), np.array([k.second for k in some])
        ratio, sigma = np.array([k.ratio[c] for k in some]), np.array([k.error[c] for k in some])
        graph = csr_matrix((sigma**2, (first, second)), (n, n))
        away = dijkstra(graph, directed=False, indices=reference)
        known = np.isfinite(away)
        factor[known, c] = np.exp(_solved(first, second, np.log(ratio), sigma, known, reference)[known])
        error[known, c] = np.sqrt(away[known])
        for k in some:
            for side in (k.first, k.second):
                pairs[side, c] = max(pairs[side, c], k.pairs[c])
    return [
        Gain(np.ones(channels), np.zeros(channels), pairs[i])
        if i == reference
        else Gain(drawn_together(factor[i], error[i]), error[i], pairs[i])
        for i in range(n)
    ]


def offsets_through(
    links: Sequence[Link],
    stats: Sequence[FrameStats],
    transforms: Sequence[np.ndarray],
    scale: np.ndarray,
    reference: int,
) -> np.ndarray:
    """Solve for the offsets (N, C), ADU, that bring the skies of overlapping frames together; NaN: no link leads there.

    ``scale (N, C)``: gains; frames without one (NaN) are left aside.
    """
    n, channels = scale.shape
    offset = np.full((n, channels), np.nan)
    back = [np.linalg.inv(t) for t in transforms]
    first, second, difference, count = [], [], [], []
    for k in links:
        if not (np.isfinite(scale[k.first]).all() and np.isfinite(scale[k.second]).all()):
            continue
        ratio = scale[k.second] / scale[k.first]
        _, missing = sky_difference(stats[k.second], stats[k.first], transforms[k.second] @ back[k.first], ratio)
        known = np.isfinite(missing)
        if np.count_nonzero(known, axis=0).min() < MIN_CELLS:
            continue
        first.append(k.first)
        second.append(k.second)
        difference.append(np.array([np.median(missing[known[:, c], c]) for c in range(channels)]) * scale[k.first])
        count.append(np.count_nonzero(known, axis=0))
    if not first:
        offset[reference] = 0.0
        return offset
    a, b = np.array(first), np.array(second)
    for c in range(channels):
        sigma = np.array([n_cells[c] for n_cells in count]) ** -0.5
        known = _connected(a, b, n, reference)
        solved = _solved(a, b, np.array([d[c] for d in difference]), sigma, known, reference)
        offset[known, c] = solved[known]
    return offset


def _connected(first: np.ndarray, second: np.ndarray, n: int, reference: int) -> np.ndarray:
    """Return which of n frames links lead to from the reference."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(csr_matrix((np.ones(len(first)), (first, second)), (n, n)), directed=False)
    return np.asarray(label == label[reference])


def _solved(
    first: np.ndarray, second: np.ndarray, difference: np.ndarray, sigma: np.ndarray, known: np.ndarray, reference: int
) -> np.ndarray:
    """Solve ``x[second] - x[first] = difference`` by weighted least squares with ``x[reference] = 0``, (n,) float64.

    ``known (n,)``: which frames are connected with the reference; the others are 0.
    """
    from scipy.sparse.linalg import spsolve

    free = known.copy()
    free[reference] = False
    result = np.zeros(known.size)
    if not free.any():
        return result
    matrix = _design(first, second, 1.0 / sigma, known.size)[:, np.flatnonzero(free)]
    normal = (matrix.T @ matrix).tocsc()
    result[free] = spsolve(normal, matrix.T @ (difference / sigma))
    return result


def _design(first: np.ndarray, second: np.ndarray, weight: np.ndarray, n: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    row = np.arange(len(first))
    values = np.concatenate([weight, -weight])
    return csr_matrix((values, (np.concatenate([row, row]), np.concatenate([second, first]))), (len(first), n))
