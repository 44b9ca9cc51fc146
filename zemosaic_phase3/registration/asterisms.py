"""First guesses of a transform: triangles of stars of the same shape, or a guess nearby."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.registration.false_alarms import Tried
from zemosaic_phase3.registration.star_pairs import START_RADIUS, Pair
from zemosaic_phase3.registration.transform import similarity_matrix, transform_points


def _spread_selection(xy: np.ndarray, shape: tuple[int, int], n: int) -> np.ndarray:
    """Index of the n brightest stars, at most twice its fair share from any cell of a 3 x 3 grid.

    So a cluster cannot take all, and where the field is even the choice is by brightness alone: two frames that
    overlap by half still choose the same stars.
    """
    height, width = shape
    column = np.clip((3.0 * xy[:, 0] / width).astype(int), 0, 2)
    row = np.clip((3.0 * xy[:, 1] / height).astype(int), 0, 2)
    cell = 3 * row + column
    counts = np.bincount(cell, minlength=9)
    rank = np.empty(len(xy), dtype=int)  # within its cell
    rank[np.argsort(cell, kind="stable")] = np.arange(len(xy)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = math.ceil(2 * n / 9)
    return np.lexsort((np.arange(len(xy)), rank // share))[:n]


class Hypotheses(NamedTuple):
    """Transforms to be refined, best first, and what was looked through to find them."""

    matrices: list[np.ndarray]
    tried: Tried


SHAPE_TOLERANCE: Final = 0.012  # of the two side ratios
SIZE_RATIO: Final = math.exp(0.25)  # of the longest sides; far beyond any plausible scale, which the verdict judges
ANY_RATIO: Final = 1e9


class _Triangles(NamedTuple):
    """Asterisms: vertices (t, 3, 2) px, shapes (t, 4), and the sorted lengths of the segments they are made of, px."""

    vertices: np.ndarray
    shapes: np.ndarray
    lengths: np.ndarray


def triangles(xy: np.ndarray, n_neighbours: int) -> _Triangles:
    """Return the triangles of each star with pairs of its nearest neighbours, described by similarity invariants.

    See :func:`registration.triangle_kernels.triangle_shapes`; the sense of rotation keeps mirror images apart.
    """
    from zemosaic_phase3.registration.triangle_kernels import neighbour_triples, triangle_shapes

    n = len(xy)
    k = min(n_neighbours, n - 1)
    if k < 2:
        return _Triangles(np.empty((0, 3, 2)), np.empty((0, 4)), np.empty(0))
    triples = np.unique(neighbour_triples(xy, k))
    first, second, third = triples // (n * n), triples // n % n, triples % n
    segments = np.unique(np.concatenate((first * n + second, first * n + third, second * n + third)))
    apart = xy[segments // n] - xy[segments % n]
    vertices, shapes = triangle_shapes(xy, triples)
    return _Triangles(vertices, shapes, np.sort(np.hypot(apart[:, 0], apart[:, 1])))


@functools.lru_cache(maxsize=64)
def _bright_triangles(
    stars: bytes, shape: tuple[int, int], n_stars: int, n_neighbours: int
) -> tuple[np.ndarray, _Triangles]:
    """Return the selected ones of stars, bytes of ``(n, 2) float64``, and their triangles.

    Every frame asks for those of the reference, so that the last answers are kept; they are not to be changed.
    """
    xy = np.frombuffer(stars).reshape(-1, 2)
    chosen = xy[_spread_selection(xy, shape, n_stars)]
    return chosen, triangles(chosen, n_neighbours)


def _segment_pairs(ours: np.ndarray, theirs: np.ndarray, ratio: float) -> float:
    """Return how many segments of sorted lengths could be one, either way round, at a scale within a ratio."""
    return 2.0 * float(np.sum(np.searchsorted(theirs, ours * ratio) - np.searchsorted(theirs, ours / ratio)))


def _asterism_hypotheses(
    pair: Pair, n_stars: int, n_neighbours: int, n_best: int, scale_error: float, *, any_size: bool = False
) -> Hypotheses:
    """Similarities proposed by equal triangles, best first.

    Every pair of equal triangles proposes one; proposals that agree at the field's centre and its rim vote for each
    other; the ones with most votes are ordered by how many selected stars they bring onto frame stars.
    """
    from zemosaic_phase3.registration.pair_kernels import count_hits
    from zemosaic_phase3.registration.triangle_kernels import count_votes, equal_triangles, first_distinct, proposals

    reference, ours = _bright_triangles(pair.reference.xy.tobytes(), pair.shape, n_stars, n_neighbours)
    theirs = _bright_triangles(pair.frame.xy.tobytes(), pair.shape, n_stars, n_neighbours)[1]
    ratio = ANY_RATIO if any_size else SIZE_RATIO
    order = np.argsort(theirs.shapes[:, 0], kind="stable")
    pairs = equal_triangles(ours.shapes, theirs.shapes, order, SHAPE_TOLERANCE, 1.0 / ratio, ratio)
    if len(pairs) == 0:
        return Hypotheses([], Tried(0.0))
    height, width = pair.shape
    x, y = 0.5 * (width - 1), 0.5 * (height - 1)
    reach = 0.5 * math.hypot(height, width)
    place = proposals(ours.vertices, theirs.vertices, pairs, x, y)
    scaled = place * (1.0, 1.0, reach, reach)
    votes = count_votes(scaled, np.argsort(scaled[:, 0], kind="stable"), max(6.0, 0.01 * reach))
    best = first_distinct(scaled, np.argsort(-votes, kind="stable"), max(4.0, 0.005 * reach), 8 * n_best)
    hits = count_hits(place[best], x, y, reference, pair.frame.xy, *pair.grid, START_RADIUS)
    chosen = place[best[np.argsort(-hits, kind="stable")[:n_best]]]
    slope, at = chosen[:, 2] + 1j * chosen[:, 3], chosen[:, 0] + 1j * chosen[:, 1]
    # A scale beyond what is plausible is never accepted, so that such pairs of segments are no chances.
    segments = _segment_pairs(ours.lengths, theirs.lengths, ratio if any_size else 1.0 + scale_error)
    return Hypotheses(
        [similarity_matrix(s, z - s * complex(x, y)) for s, z in zip(slope, at, strict=True)],
        Tried(float(len(pairs)), max(segments, 1.0)),
    )


SEED_REACH: Final = 80.0  # px, error of a seed's translation that is absorbed
SEED_BIN: Final = 5.0  # px of the offset histogram


def _seeded_hypotheses(pair: Pair, seed: np.ndarray) -> Hypotheses:
    """Corrections of a seed by the translations that most star pairs agree on."""
    from zemosaic_phase3.registration.triangle_kernels import first_distinct

    mapped = transform_points(seed, pair.reference.xy[:200])
    frame = pair.frame.xy[:300]
    n_bins = round(2 * SEED_REACH / SEED_BIN)
    dx, dy = (frame[:, axis] - mapped[:, axis, None] for axis in (0, 1))
    near = (np.abs(dx) < SEED_REACH) & (np.abs(dy) < SEED_REACH)
    offset = np.column_stack((dx[near], dy[near]))
    column, row = np.minimum(((offset + SEED_REACH) / SEED_BIN).astype(np.intp), n_bins - 1).T
    histogram = np.bincount(column * n_bins + row, minlength=n_bins**2).reshape(n_bins, n_bins)
    padded = np.pad(histogram, 1)
    votes = sum(padded[i : i + n_bins, j : j + n_bins] for i in range(3) for j in range(3)) + 1e-3 * histogram
    centres = (np.arange(n_bins) + 0.5) * SEED_BIN - SEED_REACH
    grid = np.column_stack([axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij")])
    matrices = []
    for k in first_distinct(grid, np.argsort(-votes, axis=None, kind="stable"), 3.0 * SEED_BIN, 3):
        agreeing = offset[np.all(np.abs(offset - grid[k]) < 1.5 * SEED_BIN, axis=1)]
        if len(agreeing):
            shift = np.eye(3)
            shift[:2, 2] = np.median(agreeing, axis=0)
            matrices.append(shift @ seed)
    return Hypotheses(matrices, Tried(float(n_bins**2)))


def transform_hypotheses(
    pair: Pair, seed: np.ndarray | None, scale_error: float, *, any_size: bool = False
) -> Iterator[Hypotheses]:
    """Yield batches of hypotheses, cheapest first, of scales that ``scale_error`` allows; with ``any_size`` of any.

    A seed is tried as it is before corrections of it are: where the stars are where it says, it is one hypothesis.
    """
    if seed is not None:
        yield Hypotheses([seed], Tried(1.0))
        yield _seeded_hypotheses(pair, seed)
    # Few stars: all triangles. Many: first the bright ones, then deeper for shifts, clouds and frames of other depth.
    for n_stars, n_neighbours, n_best in ((16, 15, 6), (60, 7, 6), (160, 10, 10)):
        yield _asterism_hypotheses(pair, n_stars, n_neighbours, n_best, scale_error, any_size=any_size)
