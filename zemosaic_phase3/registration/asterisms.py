"""First guesses of a transform: triangles of stars of the same shape, or a guess nearby."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.registration.star_pairs import START_RADIUS, Pair
from zemosaic_phase3.registration.transform import similarity_matrix, transform_points

if TYPE_CHECKING:
    pass


def _spread_selection(xy: np.ndarray, shape: tuple[int, int], n: int) -> np.ndarray:
    """Index of the n brightest stars, at most twice its fair share from any cell of a 3 x 3 grid.

    So a cluster cannot take all, and where the field is even the choice is by brightness alone: two frames that
    overlap by half still choose the same stars.
    """
    height, width = shape
    column = np.clip((3.0 * xy[:, 0] / width).astype(int), 0, 2)
    row = np.clip((3.0 * xy[:, 1] / height).astype(int), 0, 2)
    cell = 3 * row + column
    rank = np.zeros(len(xy), dtype=int)
    for number in range(9):
        members = np.flatnonzero(cell == number)
        rank[members] = np.arange(len(members))
    share = math.ceil(2 * n / 9)
    return np.lexsort((np.arange(len(xy)), rank // share))[:n]


class _Triangles(NamedTuple):
    """Asterisms: vertices (t, 3) complex px, opposite the longest, middle, shortest side; features (t, 4)."""

    vertices: np.ndarray
    features: np.ndarray


SHAPE_TOLERANCE: Final = 0.012  # of the two side ratios
SIZE_FEATURE: Final = 2  # column of the logarithm of the size
SIZE_TOLERANCE: Final = 0.25  # of the logarithm of the size; far beyond any plausible scale, which the verdict judges


def triangles(xy: np.ndarray, n_neighbours: int) -> _Triangles:
    """Triangles of each star with pairs of its nearest neighbours, described by similarity invariants.

    Features: the ratios of the middle and the shortest to the longest side, the logarithm of the longest side
    (scaled to the tolerance), and the sense of rotation, which keeps mirror images apart.
    """
    from scipy.spatial import cKDTree

    k = min(n_neighbours, len(xy) - 1)
    _, near = cKDTree(xy).query(xy, k=k + 1)
    pairs = np.array(list(combinations(range(1, k + 1), 2)))
    index = np.empty((len(xy), len(pairs), 3), dtype=np.intp)
    index[:, :, 0], index[:, :, 1], index[:, :, 2] = near[:, :1], near[:, pairs[:, 0]], near[:, pairs[:, 1]]
    index = np.unique(np.sort(index.reshape(-1, 3), axis=1), axis=0)
    z = (xy[:, 0] + 1j * xy[:, 1])[index]
    opposite = np.abs(z[:, [1, 2, 0]] - z[:, [2, 0, 1]])
    order = np.argsort(-opposite, axis=1, kind="stable")
    z, side = np.take_along_axis(z, order, axis=1), np.take_along_axis(opposite, order, axis=1)
    cross = ((z[:, 1] - z[:, 0]) * np.conj(z[:, 2] - z[:, 0])).imag
    # A sliver's or a tiny triangle's shape says little: its errors are those of centroids.
    good = (side[:, 2] > 6.0) & (np.abs(cross) > 0.04 * side[:, 0] ** 2)
    z, side, cross = z[good], side[good], cross[good]
    features = np.column_stack(
        (
            side[:, 1] / side[:, 0],
            side[:, 2] / side[:, 0],
            np.log(side[:, 0]) * (SHAPE_TOLERANCE / SIZE_TOLERANCE),
            np.sign(cross),
        )
    )
    return _Triangles(z, features)


def _asterism_hypotheses(
    pair: Pair, n_stars: int, n_neighbours: int, n_best: int, *, any_size: bool = False
) -> tuple[list[np.ndarray], int]:
    """Similarities proposed by equal triangles, best first, and how many were weighed.

    Every pair of equal triangles proposes one; proposals that agree at the field's centre and its rim vote for each
    other; the ones with most votes are ordered by how many selected stars they bring onto frame stars.
    """
    from scipy.spatial import cKDTree

    reference = pair.reference.xy[_spread_selection(pair.reference.xy, pair.shape, n_stars)]
    frame = pair.frame.xy[_spread_selection(pair.frame.xy, pair.shape, n_stars)]
    ours, theirs = triangles(reference, n_neighbours), triangles(frame, n_neighbours)
    if len(ours.vertices) == 0 or len(theirs.vertices) == 0:
        return [], 0
    if any_size:
        for each in (ours, theirs):
            each.features[:, SIZE_FEATURE] = 0.0
    found = cKDTree(theirs.features).query_ball_point(ours.features, SHAPE_TOLERANCE, p=np.inf, return_sorted=True)
    count = np.array([len(each) for each in found])
    if count.sum() == 0:
        return [], 0
    a = ours.vertices[np.repeat(np.arange(len(found)), count)]
    b = theirs.vertices[np.concatenate([each for each in found if each]).astype(np.intp)]
    a_centre, b_centre = a.mean(axis=1), b.mean(axis=1)
    a, b = a - a_centre[:, None], b - b_centre[:, None]
    slope = np.sum(np.conj(a) * b, axis=1) / np.sum(np.abs(a) ** 2, axis=1)
    middle = 0.5 * complex(pair.shape[1] - 1, pair.shape[0] - 1)
    at_middle = b_centre + slope * (middle - a_centre)
    reach = 0.5 * math.hypot(*pair.shape)
    place = np.column_stack((at_middle.real, at_middle.imag, reach * slope.real, reach * slope.imag))
    votes = cKDTree(place).query_ball_point(place, max(6.0, 0.01 * reach), return_length=True)
    best = _distinct(place, np.argsort(-votes, kind="stable"), max(4.0, 0.005 * reach), 8 * n_best)
    shift = at_middle - slope * middle
    matrices = [similarity_matrix(slope[k], shift[k]) for k in best]
    points = np.stack([transform_points(matrix, reference) for matrix in matrices])
    hits = np.count_nonzero(np.isfinite(pair.tree.query(points, distance_upper_bound=START_RADIUS)[0]), axis=1)
    return [matrices[k] for k in np.argsort(-hits, kind="stable")[:n_best]], len(place)


def _distinct(place: np.ndarray, order: np.ndarray, distance: float, n: int) -> list[int]:
    """First n of ``order`` whose places are farther than ``distance`` from all chosen before."""
    chosen: list[int] = []
    for candidate in order[: 20 * n]:
        if not chosen or np.min(np.sum((place[chosen] - place[candidate]) ** 2, axis=1)) > distance**2:
            chosen.append(int(candidate))
            if len(chosen) == n:
                break
    return chosen


SEED_REACH: Final = 80.0  # px, error of a seed's translation that is absorbed
SEED_BIN: Final = 5.0  # px of the offset histogram


def _seeded_hypotheses(pair: Pair, seed: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Corrections of a seed by the translations that most star pairs agree on, and how many were weighed."""
    mapped = transform_points(seed, pair.reference.xy[:200])
    frame = pair.frame.xy[:300]
    dx, dy = (frame[:, axis] - mapped[:, axis, None] for axis in (0, 1))
    near = (np.abs(dx) < SEED_REACH) & (np.abs(dy) < SEED_REACH)
    offset = np.column_stack((dx[near], dy[near]))
    n_bins = round(2 * SEED_REACH / SEED_BIN)
    edges = np.linspace(-SEED_REACH, SEED_REACH, n_bins + 1)
    column, row = np.minimum(((offset + SEED_REACH) / SEED_BIN).astype(np.intp), n_bins - 1).T
    histogram = np.bincount(column * n_bins + row, minlength=n_bins**2).reshape(n_bins, n_bins)
    padded = np.pad(histogram, 1)
    votes = sum(padded[i : i + n_bins, j : j + n_bins] for i in range(3) for j in range(3)) + 1e-3 * histogram
    centres = 0.5 * (edges[1:] + edges[:-1])
    grid = np.column_stack([axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij")])
    hypotheses = []
    for k in _distinct(grid, np.argsort(-votes, axis=None, kind="stable"), 3.0 * SEED_BIN, 3):
        agreeing = offset[np.all(np.abs(offset - grid[k]) < 1.5 * SEED_BIN, axis=1)]
        if len(agreeing):
            shift = np.eye(3)
            shift[:2, 2] = np.median(agreeing, axis=0)
            hypotheses.append(shift @ seed)
    return hypotheses, n_bins**2


def transform_hypotheses(
    pair: Pair, seed: np.ndarray | None, *, any_size: bool = False
) -> Iterator[tuple[list[np.ndarray], int]]:
    """Yield batches of hypotheses with the number weighed, cheapest first; with ``any_size`` of any scale."""
    if seed is not None:
        yield _seeded_hypotheses(pair, seed)
    # Few stars: all triangles. Many: first the bright ones, then deeper for shifts, clouds and frames of other depth.
    for n_stars, n_neighbours, n_best in ((16, 15, 6), (60, 7, 6), (160, 10, 10)):
        yield _asterism_hypotheses(pair, n_stars, n_neighbours, n_best, any_size=any_size)
