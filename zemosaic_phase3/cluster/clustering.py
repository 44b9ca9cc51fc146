"""Points of the sky sorted into clusters none of which is wider than asked for.

Complete linkage (Sorensen 1948, as ``scipy.cluster.hierarchy`` has it): two clusters are joined if the farthest of
their members are near enough, so that every pair of frames in a tile overlaps by a known part. It wants all distances.
So pointings that are a small part of the width apart are one point first, and points without a way to each other in
steps of the width are separate from the start. A region with more points than that is cut into a grid.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

MOST_LINKED: Final = 4000  # points whose distances are all taken: 64 MB
GRAIN: Final = 1 / 20  # of the width: nearer pointings are one point


def clusters(units: np.ndarray, width: float) -> list[np.ndarray]:
    """Sort directions into clusters no two of whose members are farther apart than a width, but for the grain.

    Parameters
    ----------
    units : ndarray (N, 3) float64
        Unit vectors.
    width : float
        Degrees.

    Returns
    -------
    list of ndarray of int
        Members of each cluster, ascending; clusters in the order of their first members. The same points in the same
        order give the same clusters.
    """
    if len(units) == 0:
        return []
    chord = 2.0 * math.sin(min(math.radians(width), math.pi) / 2.0)
    label = _grains(units, max(chord * GRAIN, 1e-12))
    points = _means(units, label)
    of_point = np.zeros(len(points), np.int64)
    n_found = 0
    for part in _connected(points, chord):
        found = _linked(points[part], chord)
        of_point[part] = n_found + found
        n_found += int(found.max()) + 1
    label = of_point[label]
    order = np.argsort(label, kind="stable")
    edges = np.flatnonzero(np.diff(label[order])) + 1
    return sorted(np.split(order, edges), key=lambda members: int(members[0]))


def _grains(units: np.ndarray, size: float) -> np.ndarray:
    """Return the grain of each point: a cell of a cube grid around it."""
    cells = np.floor(units / size).astype(np.int64)
    _, first, label = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[label.reshape(-1)])


def _means(units: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the mean direction of the members of each label, unit vectors."""
    sums = np.zeros((int(label.max()) + 1, 3))
    np.add.at(sums, label, units)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _connected(points: np.ndarray, chord: float) -> list[np.ndarray]:
    """Return sets of points that are joined by steps of a length; no cluster goes beyond one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(points).query_pairs(chord, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(points),) * 2)
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


def _linked(points: np.ndarray, chord: float) -> np.ndarray:
    """Return the cluster of each point by complete linkage; where there are too many, each cell of a grid by itself."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(points) == 1:
        return np.zeros(1, np.int64)
    if len(points) > MOST_LINKED:
        label = _grains(points, chord / math.sqrt(3.0))  # the diagonal of a cell is the width
        if label.max() > 0:
            return label
    return np.asarray(fcluster(linkage(points, "complete"), chord, "distance"), np.int64) - 1
