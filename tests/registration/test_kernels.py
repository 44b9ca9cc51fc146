"""Compiled pairing, fitting and triangles against plain NumPy and SciPy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from zemosaic_phase3.registration.asterisms import triangles
from zemosaic_phase3.registration.pair_kernels import (
    fit_similarity,
    middle_of,
    mutual_pairs,
    nearest_stars,
    ring_counts,
    star_grid,
)
from zemosaic_phase3.registration.transform import robust_fit, similarity_matrix, transform_points
from zemosaic_phase3.registration.triangle_kernels import count_votes, equal_triangles, first_distinct

SHAPE = (400, 700)


def places(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random((n, 2)) * [SHAPE[1] + 40, SHAPE[0] + 40] - 20


@pytest.mark.parametrize("n", [1, 30, 3000])
@pytest.mark.parametrize("radius", [0.5, 6.0])
def test_pairs_are_those_of_a_search_tree(n: int, radius: float) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = places(rng, n), places(rng, n)
    theirs[: n // 2] = ours[: n // 2] + rng.normal(0.0, 0.3, (n // 2, 2))
    distance, nearest = cKDTree(theirs).query(ours, distance_upper_bound=radius)
    first: dict[int, int] = {}
    for k in np.flatnonzero(np.isfinite(distance)):
        if nearest[k] not in first or distance[k] < distance[first[nearest[k]]]:
            first[int(nearest[k])] = int(k)
    expected = sorted((k, j) for j, k in first.items())
    grid = star_grid(theirs, *SHAPE)
    i, j, apart = mutual_pairs(np.eye(3), ours, theirs, *grid, radius)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    np.testing.assert_allclose(apart, distance[i], rtol=1e-12)
    np.testing.assert_array_equal(nearest_stars(ours, theirs, *grid, radius) >= 0, np.isfinite(distance))
    counts = [cKDTree(theirs).query_ball_point(ours, r, return_length=True) for r in (12.0, 60.0)]
    np.testing.assert_array_equal(ring_counts(ours, theirs, *grid, 12.0, 60.0), counts[1] - counts[0])


@pytest.mark.parametrize("n", [3, 8, 41, 400])
def test_a_fit_is_that_of_numpy(n: int) -> None:
    rng = np.random.default_rng(n)
    truth = similarity_matrix(0.99 + 0.05j, 30.0 - 8.0j)
    sigma = rng.uniform(0.02, 0.5, n)
    ours = places(rng, n)
    theirs = transform_points(truth, ours) + sigma[:, None] * rng.standard_normal((n, 2))
    theirs[: n // 8] += 5.0
    expected = robust_fit("similarity", ours, theirs, sigma)
    matrix, keep = np.eye(3), np.empty(n, np.bool_)
    assert expected is not None and fit_similarity(ours, theirs, sigma**2, matrix, keep, 10)
    np.testing.assert_allclose(matrix, expected[0], rtol=1e-11, atol=1e-10)
    np.testing.assert_array_equal(keep, expected[1])


def test_medians() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 10, 101, 256):
        values = np.round(rng.normal(size=n + 3), 1)  # with ties
        assert middle_of(values.copy(), n) == np.median(values[:n])


def test_triangles_of_all_stars_are_all_triangles() -> None:
    xy = places(np.random.default_rng(2), 9)
    found = triangles(xy, 8)
    expected = 0
    for index in combinations(range(9), 3):
        a, b, c = xy[list(index)]
        sides = sorted((np.hypot(*(a - b)), np.hypot(*(b - c)), np.hypot(*(a - c))))
        cross = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0])
        if sides[0] > 6.0 and cross > 0.04 * sides[2] ** 2:
            expected += 1
    assert len(found.vertices) == expected and len(found.lengths) == 36
    for corners, shape in zip(found.vertices, found.shapes, strict=True):
        opposite = np.hypot(*(corners[[1, 2, 0]] - corners[[2, 0, 1]]).T)
        assert opposite[0] >= opposite[1] >= opposite[2]
        np.testing.assert_allclose(shape[:3], [opposite[1] / opposite[0], opposite[2] / opposite[0], opposite[0]])
        turn = np.cross(np.append(corners[1] - corners[0], 0.0), np.append(corners[2] - corners[0], 0.0))[2]
        assert shape[3] in (-1.0, 1.0) and turn != 0.0
    mirror = triangles(xy * [1.0, -1.0], 8)
    order = np.argsort(mirror.shapes[:, 0], kind="stable")
    assert len(equal_triangles(found.shapes, mirror.shapes, order, 1e-9, 0.9, 1.1)) == 0
    order = np.argsort(found.shapes[:, 0], kind="stable")
    same = equal_triangles(found.shapes, found.shapes, order, 1e-9, 0.9, 1.1)
    np.testing.assert_array_equal(same, np.column_stack([np.arange(expected)] * 2))


def test_votes_and_choices_are_those_of_distances() -> None:
    rng = np.random.default_rng(3)
    place = rng.normal(0.0, 5.0, (200, 4))
    near = np.linalg.norm(place[:, None] - place[None], axis=2) <= 4.0
    votes = count_votes(place, np.argsort(place[:, 0]), 4.0)
    np.testing.assert_array_equal(votes, near.sum(axis=1))
    order = np.argsort(-votes, kind="stable")
    chosen: list[int] = []
    for k in order:
        if not near[k, chosen].any():
            chosen.append(int(k))
    np.testing.assert_array_equal(first_distinct(place, order, 4.0, 5), chosen[:5])
