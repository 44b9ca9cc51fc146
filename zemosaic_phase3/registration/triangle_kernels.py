"""Triangles of stars: how they are formed and compared, and how their proposals vote. Compiled, without the lock."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import kernel

SMALLEST_SIDE: Final = 6.0  # px; the shape of a smaller triangle is that of its centroid errors
THINNEST: Final = 0.04  # of the longest side squared, the doubled area of a sliver


@kernel
def neighbour_triples(xy: np.ndarray, k: int) -> np.ndarray:
    """Return a number for each star with two of its k nearest neighbours: the same number for the same three stars.

    Parameters
    ----------
    xy : ndarray (n, 2) float64
        Stars, px; k < n.
    k : int

    Returns
    -------
    ndarray (n * k * (k - 1) / 2,) int64
        ``(a n + b) n + c`` with a < b < c.
    """
    n = len(xy)
    found = np.empty(n * (k * (k - 1) // 2), np.int64)
    near = np.empty(k, np.int64)
    apart = np.empty(k, np.float64)
    at = 0
    for i in range(n):
        held = 0
        for j in range(n):
            if j == i:
                continue
            d = (xy[j, 0] - xy[i, 0]) * (xy[j, 0] - xy[i, 0]) + (xy[j, 1] - xy[i, 1]) * (xy[j, 1] - xy[i, 1])
            if held == k and d >= apart[k - 1]:
                continue
            place = held if held < k else k - 1
            while place > 0 and apart[place - 1] > d:
                apart[place], near[place] = apart[place - 1], near[place - 1]
                place -= 1
            apart[place], near[place] = d, j
            if held < k:
                held += 1
        for u in range(k):
            for v in range(u + 1, k):
                a, b, c = i, near[u], near[v]
                if a > b:
                    a, b = b, a
                if b > c:
                    b, c = c, b
                if a > b:
                    a, b = b, a
                found[at] = (a * n + b) * n + c
                at += 1
    return found


@kernel
def triangle_shapes(xy: np.ndarray, triples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices and the shapes of triangles that are neither slivers nor tiny.

    Parameters
    ----------
    xy : ndarray (n, 2) float64
        Stars, px.
    triples : ndarray (t,) int64
        From :func:`neighbour_triples`.

    Returns
    -------
    vertices : ndarray (m, 3, 2) float64
        Opposite the longest, the middle, the shortest side, px.
    shapes : ndarray (m, 4) float64
        Middle and shortest side over the longest, the longest in px, and the sense of rotation, +1 or -1.
    """
    n = len(xy)
    vertices = np.empty((len(triples), 3, 2), np.float64)
    shapes = np.empty((len(triples), 4), np.float64)
    index = np.empty(3, np.int64)
    side = np.empty(3, np.float64)
    count = 0
    for t in range(len(triples)):
        index[0] = triples[t] // (n * n)
        index[1] = triples[t] // n % n
        index[2] = triples[t] % n
        for e in range(3):
            p, q = index[(e + 1) % 3], index[(e + 2) % 3]
            dx, dy = xy[p, 0] - xy[q, 0], xy[p, 1] - xy[q, 1]
            side[e] = math.sqrt(dx * dx + dy * dy)
        for u, v in ((0, 1), (1, 2), (0, 1)):  # longest first, equal ones in their order
            if side[v] > side[u]:
                side[u], side[v] = side[v], side[u]
                index[u], index[v] = index[v], index[u]
        ax, ay = xy[index[0], 0], xy[index[0], 1]
        cross = (xy[index[1], 0] - ax) * (ay - xy[index[2], 1]) + (xy[index[1], 1] - ay) * (xy[index[2], 0] - ax)
        if side[2] <= SMALLEST_SIDE or abs(cross) <= THINNEST * side[0] * side[0]:
            continue
        for e in range(3):
            vertices[count, e, 0], vertices[count, e, 1] = xy[index[e], 0], xy[index[e], 1]
        shapes[count, 0], shapes[count, 1], shapes[count, 2] = side[1] / side[0], side[2] / side[0], side[0]
        shapes[count, 3] = 1.0 if cross > 0.0 else -1.0
        count += 1
    return vertices[:count], shapes[:count]


@kernel
def equal_triangles(
    ours: np.ndarray, theirs: np.ndarray, order: np.ndarray, tolerance: float, smallest: float, largest: float
) -> np.ndarray:
    """Return which triangles have one shape, in the order of ours, then of theirs.

    Parameters
    ----------
    ours, theirs : ndarray (m, 4) float64
        Shapes, see :func:`triangle_shapes`.
    order : ndarray (m,) int64
        That sorts ``theirs`` by its first column.
    tolerance : float
        Of the two ratios of sides.
    smallest, largest : float
        Their longest side over ours.

    Returns
    -------
    ndarray (pairs, 2) int64
    """
    pairs = np.empty((max(1024, 4 * len(ours)), 2), np.int64)
    count = 0
    for i in range(len(ours)):
        low, high = 0, len(order)
        bound = ours[i, 0] - tolerance
        while low < high:
            middle = (low + high) // 2
            if theirs[order[middle], 0] < bound:
                low = middle + 1
            else:
                high = middle
        first = count
        while low < len(order) and theirs[order[low], 0] <= ours[i, 0] + tolerance:
            j = order[low]
            low += 1
            ratio = theirs[j, 2] / ours[i, 2]
            if abs(theirs[j, 1] - ours[i, 1]) > tolerance or theirs[j, 3] != ours[i, 3]:
                continue
            if ratio < smallest or ratio > largest:
                continue
            if count == len(pairs):
                grown = np.empty((2 * count, 2), np.int64)
                grown[:count] = pairs
                pairs = grown
            place = count
            while place > first and pairs[place - 1, 1] > j:
                pairs[place, 0], pairs[place, 1] = pairs[place - 1, 0], pairs[place - 1, 1]
                place -= 1
            pairs[place, 0], pairs[place, 1] = i, j
            count += 1
    return pairs[:count]


@kernel
def proposals(ours: np.ndarray, theirs: np.ndarray, pairs: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the similarity ``z -> slope z + shift`` of each pair of triangles by least squares.

    Parameters
    ----------
    ours, theirs : ndarray (m, 3, 2) float64
        Vertices, px.
    pairs : ndarray (p, 2) int64
    x, y : float
        A place of ours, px.

    Returns
    -------
    ndarray (p, 4) float64
        Where it puts that place (x, y), px, and its slope, real and imaginary.
    """
    found = np.empty((len(pairs), 4), np.float64)
    for t in range(len(pairs)):
        a, b = ours[pairs[t, 0]], theirs[pairs[t, 1]]
        ax, ay = (a[0, 0] + a[1, 0] + a[2, 0]) / 3.0, (a[0, 1] + a[1, 1] + a[2, 1]) / 3.0
        bx, by = (b[0, 0] + b[1, 0] + b[2, 0]) / 3.0, (b[0, 1] + b[1, 1] + b[2, 1]) / 3.0
        real, imaginary, norm = 0.0, 0.0, 0.0
        for e in range(3):
            u, v = a[e, 0] - ax, a[e, 1] - ay
            p, q = b[e, 0] - bx, b[e, 1] - by
            real += u * p + v * q
            imaginary += u * q - v * p
            norm += u * u + v * v
        real, imaginary = real / norm, imaginary / norm
        found[t, 0] = bx + real * (x - ax) - imaginary * (y - ay)
        found[t, 1] = by + real * (y - ay) + imaginary * (x - ax)
        found[t, 2], found[t, 3] = real, imaginary
    return found


@kernel
def count_votes(place: np.ndarray, order: np.ndarray, distance: float) -> np.ndarray:
    """Return how many of the places (p, 4) lie within a distance of each, itself among them; ``order`` sorts by x."""
    votes = np.ones(len(place), np.int64)
    limit = distance * distance
    for u in range(len(order)):
        i = order[u]
        for v in range(u + 1, len(order)):
            j = order[v]
            d = place[j, 0] - place[i, 0]
            if d > distance:
                break
            s = d * d
            for c in range(1, 4):
                s += (place[j, c] - place[i, c]) * (place[j, c] - place[i, c])
            if s <= limit:
                votes[i] += 1
                votes[j] += 1
    return votes


@kernel
def first_distinct(place: np.ndarray, order: np.ndarray, distance: float, n: int) -> np.ndarray:
    """Return the first n of ``order`` whose places (p, d) are farther than a distance from all chosen before."""
    chosen = np.empty(n, np.int64)
    count = 0
    for u in range(min(len(order), 20 * n)):
        i = order[u]
        near = False
        for v in range(count):
            s = 0.0
            for c in range(place.shape[1]):
                s += (place[i, c] - place[chosen[v], c]) * (place[i, c] - place[chosen[v], c])
            if s <= distance * distance:
                near = True
                break
        if not near:
            chosen[count] = i
            count += 1
            if count == n:
                break
    return chosen[:count]
