"""Stars that a similarity brings together, and the similarity that fits them best. Compiled, without the lock."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.registration.transform import CLIP
from zemosaic_phase3.runtime.jit import compiled_once, kernel

CELL: Final = 8.0  # px, smallest cell of a grid of stars; no search radius is larger
RAYLEIGH: Final = 2.0 * math.log(2.0)  # median of a squared Rayleigh variable, sigma^2
FREE: Final = 2  # pairs that a similarity can always satisfy


@kernel
def star_grid(xy: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Sort stars into square cells.

    Parameters
    ----------
    xy : ndarray (n, 2) float64
        Stars, px; those outside of the image count to the cells at its border.
    height, width : int
        Of the image, px.

    Returns
    -------
    first : ndarray (rows * columns + 1,) int64
        Where the stars of each cell begin in ``stars``.
    stars : ndarray (n,) int64
        Indices, ascending in each cell.
    cell : float
        Side, px.
    columns : int
    """
    n = len(xy)
    cell = max(CELL, math.sqrt(height * width / (2.0 * max(1, n))))
    rows, columns = int(height / cell) + 1, int(width / cell) + 1
    first = np.zeros(rows * columns + 1, np.int64)
    mine = np.empty(n, np.int64)
    for k in range(n):
        column = min(max(int(math.floor(xy[k, 0] / cell)), 0), columns - 1)
        row = min(max(int(math.floor(xy[k, 1] / cell)), 0), rows - 1)
        mine[k] = row * columns + column
        first[mine[k] + 1] += 1
    for c in range(rows * columns):
        first[c + 1] += first[c]
    at = first[:-1].copy()
    stars = np.empty(n, np.int64)
    for k in range(n):
        stars[at[mine[k]]] = k
        at[mine[k]] += 1
    return first, stars, cell, columns


@kernel
def nearest_star(
    x: float, y: float, xy: np.ndarray, first: np.ndarray, stars: np.ndarray, cell: float, columns: int, limit: float
) -> tuple[int, float]:
    """Return the star nearest to a place and its squared distance, below ``limit`` px^2; -1: there is none."""
    rows = (len(first) - 1) // columns
    column = min(max(math.floor(x / cell), 0.0), columns - 1.0)
    row = min(max(math.floor(y / cell), 0.0), rows - 1.0)
    best, least = -1, limit
    for r in range(max(int(row) - 1, 0), min(int(row) + 2, rows)):
        for c in range(max(int(column) - 1, 0), min(int(column) + 2, columns)):
            for s in range(first[r * columns + c], first[r * columns + c + 1]):
                k = stars[s]
                d = (xy[k, 0] - x) * (xy[k, 0] - x) + (xy[k, 1] - y) * (xy[k, 1] - y)
                if d < least or (d == least and best >= 0 and k < best):
                    best, least = k, d
    return best, least


@kernel
def mapped_points(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points (n, 2) px through a homogeneous transform (3, 3)."""
    out = np.empty((len(xy), 2), np.float64)
    flat = matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0
    for k in range(len(xy)):
        x = matrix[0, 0] * xy[k, 0] + matrix[0, 1] * xy[k, 1] + matrix[0, 2]
        y = matrix[1, 0] * xy[k, 0] + matrix[1, 1] * xy[k, 1] + matrix[1, 2]
        if not flat:
            z = matrix[2, 0] * xy[k, 0] + matrix[2, 1] * xy[k, 1] + matrix[2, 2]
            x, y = x / z, y / z
        out[k, 0], out[k, 1] = x, y
    return out


@kernel
def mutual_pairs(
    matrix: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    first: np.ndarray,
    stars: np.ndarray,
    cell: float,
    columns: int,
    radius: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of stars nearest to each other that a transform brings within a radius, at most CELL px.

    Parameters
    ----------
    matrix : ndarray (3, 3) float64
    ours, theirs : ndarray (n, 2), (m, 2) float64
        px.
    first, stars, cell, columns
        Grid of ``theirs``, see :func:`star_grid`.
    radius : float
        px.

    Returns
    -------
    i, j : ndarray (p,) int64
        Ours, ascending, and theirs.
    distance : ndarray (p,) float64
        px.
    """
    mapped = mapped_points(matrix, ours)
    nearest = np.empty(len(ours), np.int64)
    apart = np.empty(len(ours), np.float64)
    taken = np.full(len(theirs), -1, np.int64)
    count = 0
    for k in range(len(ours)):
        nearest[k], apart[k] = nearest_star(
            mapped[k, 0], mapped[k, 1], theirs, first, stars, cell, columns, radius * radius
        )
        if nearest[k] < 0:
            continue
        before = taken[nearest[k]]
        if before < 0:
            count += 1
        if before < 0 or apart[k] < apart[before]:
            taken[nearest[k]] = k
    i, j, distance = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float64)
    at = 0
    for k in range(len(ours)):
        if nearest[k] >= 0 and taken[nearest[k]] == k:
            i[at], j[at], distance[at] = k, nearest[k], math.sqrt(apart[k])
            at += 1
    return i, j, distance


@kernel
def count_hits(
    place: np.ndarray,
    x: float,
    y: float,
    ours: np.ndarray,
    theirs: np.ndarray,
    first: np.ndarray,
    stars: np.ndarray,
    cell: float,
    columns: int,
    radius: float,
) -> np.ndarray:
    """Return how many of our stars each similarity brings within a radius of one of theirs.

    ``place (p, 4)`` as :func:`registration.triangle_kernels.proposals` returns it for the place (x, y); the rest as in
    :func:`mutual_pairs`.
    """
    hits = np.zeros(len(place), np.int64)
    for p in range(len(place)):
        for k in range(len(ours)):
            u, v = ours[k, 0] - x, ours[k, 1] - y
            at_x = place[p, 0] + place[p, 2] * u - place[p, 3] * v
            at_y = place[p, 1] + place[p, 2] * v + place[p, 3] * u
            if nearest_star(at_x, at_y, theirs, first, stars, cell, columns, radius * radius)[0] >= 0:
                hits[p] += 1
    return hits


@compiled_once
@kernel
def middle_of(values: np.ndarray, n: int) -> float:
    """Return the median of the first n of finite values, n > 0, which are put into another order."""
    half = n // 2
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if half <= j:
            high = j
        elif half >= i:
            low = i
        else:
            break
    upper = values[half]
    if n % 2 == 1:
        return upper
    lower = values[0]
    for k in range(1, half):
        lower = max(lower, values[k])
    return 0.5 * (lower + upper)


@compiled_once
@kernel
def fit_similarity(
    ours: np.ndarray, theirs: np.ndarray, variance: np.ndarray, matrix: np.ndarray, keep: np.ndarray, rounds: int
) -> bool:
    """Fit a similarity with sigma clipping into ``matrix`` (3, 3), the pairs kept into ``keep`` (n,); False: none fits.

    ``ours, theirs (n, 2)`` px and ``variance (n,)`` px^2 of pairs; weights and clipping are those of
    ``registration.transform.robust_fit``.
    """
    n = len(ours)
    squared = np.empty(n, np.float64)
    work = np.empty(n, np.float64)
    work[:] = variance
    extra = middle_of(work, n)
    keep[:] = True
    for _ in range(rounds):
        held, total = 0, 0.0
        ax, ay, bx, by = 0.0, 0.0, 0.0, 0.0
        for k in range(n):
            if keep[k]:
                w = 1.0 / (variance[k] + extra)
                held, total = held + 1, total + w
                ax, ay = ax + w * ours[k, 0], ay + w * ours[k, 1]
                bx, by = bx + w * theirs[k, 0], by + w * theirs[k, 1]
        if held < FREE:
            return False
        ax, ay, bx, by = ax / total, ay / total, bx / total, by / total
        real, imaginary, norm = 0.0, 0.0, 0.0
        for k in range(n):
            if keep[k]:
                w = 1.0 / (variance[k] + extra)
                u, v, p, q = ours[k, 0] - ax, ours[k, 1] - ay, theirs[k, 0] - bx, theirs[k, 1] - by
                real += w * (u * p + v * q)
                imaginary += w * (u * q - v * p)
                norm += w * (u * u + v * v)
        if not norm > 0.0:
            return False
        real, imaginary = real / norm, imaginary / norm
        matrix[0, 0], matrix[0, 1], matrix[0, 2] = real, -imaginary, bx - real * ax + imaginary * ay
        matrix[1, 0], matrix[1, 1], matrix[1, 2] = imaginary, real, by - imaginary * ax - real * ay
        matrix[2, 0], matrix[2, 1], matrix[2, 2] = 0.0, 0.0, 1.0
        held = 0
        for k in range(n):
            u = real * (ours[k, 0] - ax) - imaginary * (ours[k, 1] - ay) + bx - theirs[k, 0]
            v = imaginary * (ours[k, 0] - ax) + real * (ours[k, 1] - ay) + by - theirs[k, 1]
            squared[k] = u * u + v * v
            if keep[k]:
                work[held] = squared[k]
                held += 1
        typical = middle_of(work, held) / RAYLEIGH
        held = 0
        for k in range(n):
            if keep[k]:
                work[held] = variance[k]
                held += 1
        extra = max(0.0, typical - middle_of(work, held))
        same = True
        for k in range(n):
            near = squared[k] <= CLIP * CLIP * (variance[k] + extra)
            same = same and near == keep[k]
            keep[k] = near
        if same:
            break
    return True


@kernel
def same_numbers(some: np.ndarray, others: np.ndarray) -> bool:
    """Return whether two arrays (n,) and (m,) int64 hold the same numbers in the same order."""
    same = len(some) == len(others)
    for k in range(len(some) if same else 0):
        same = same and some[k] == others[k]
    return same


@kernel
def shrink_similarity(
    matrix: np.ndarray,
    ours: np.ndarray,
    our_sigma: np.ndarray,
    theirs: np.ndarray,
    their_sigma: np.ndarray,
    first: np.ndarray,
    stars: np.ndarray,
    cell: float,
    columns: int,
    area: float,
    radius: float,
    least: float,
) -> tuple[np.ndarray, float]:
    """Alternate pairing and fitting of a similarity while the search radius shrinks as far as true pairs allow.

    As ``registration.star_pairs.shrink``; ``area`` px^2 of the image, ``radius`` to begin with and ``least`` px.
    """
    density = len(theirs) / area
    true_pairs = 0.0
    best = matrix.copy()
    while True:
        refitted = best.copy()
        found = 0
        before_i, before_j = np.empty(0, np.int64), np.empty(0, np.int64)
        for again in range(3):
            i, j, _ = mutual_pairs(refitted, ours, theirs, first, stars, cell, columns, radius)
            if again > 0 and same_numbers(i, before_i) and same_numbers(j, before_j):
                break
            found, before_i, before_j = len(i), i, j
            good = False
            if found > FREE:
                variance = our_sigma[i] * our_sigma[i] + their_sigma[j] * their_sigma[j]
                keep = np.empty(found, np.bool_)
                good = fit_similarity(ours[i], theirs[j], variance, refitted, keep, 3)
            if not good:
                return best, radius if true_pairs == 0.0 else radius / 0.6
        excess = found * (1.0 - min(1.0, len(ours) * density * math.pi * radius * radius / found))
        if true_pairs > 0.0 and excess < 0.8 * true_pairs:
            return best, radius / 0.6
        best, true_pairs = refitted, max(excess, 1e-9)
        if radius * 0.6 < least:
            return best, radius
        radius *= 0.6


@kernel
def nearest_stars(
    places: np.ndarray, xy: np.ndarray, first: np.ndarray, stars: np.ndarray, cell: float, columns: int, radius: float
) -> np.ndarray:
    """Return the star nearest to each place (n, 2) px within a radius, at most CELL px; -1: there is none."""
    found = np.empty(len(places), np.int64)
    for k in range(len(places)):
        found[k] = nearest_star(places[k, 0], places[k, 1], xy, first, stars, cell, columns, radius * radius)[0]
    return found


@kernel
def ring_counts(
    places: np.ndarray,
    xy: np.ndarray,
    first: np.ndarray,
    stars: np.ndarray,
    cell: float,
    columns: int,
    inner: float,
    outer: float,
) -> np.ndarray:
    """Return how many stars lie between two distances (px) of each place, (n,) int64."""
    rows = (len(first) - 1) // columns
    found = np.zeros(len(places), np.int64)
    for p in range(len(places)):
        x, y = places[p, 0], places[p, 1]
        top = int(min(max(math.floor((y - outer) / cell), 0.0), rows - 1.0))
        bottom = int(min(max(math.floor((y + outer) / cell), 0.0), rows - 1.0))
        left = int(min(max(math.floor((x - outer) / cell), 0.0), columns - 1.0))
        right = int(min(max(math.floor((x + outer) / cell), 0.0), columns - 1.0))
        for r in range(top, bottom + 1):
            for c in range(left, right + 1):
                for s in range(first[r * columns + c], first[r * columns + c + 1]):
                    k = stars[s]
                    d = (xy[k, 0] - x) * (xy[k, 0] - x) + (xy[k, 1] - y) * (xy[k, 1] - y)
                    if inner * inner < d <= outer * outer:
                        found[p] += 1
    return found
