"""Frames that lie on each other rather than on the reference: one adjustment of all their transforms.

A chain of registrations, each frame on the one before, adds the errors of all its links. But every star is seen by many
frames, and has one place. So the places of all stars and a small correction of every transform are solved for together,
by least squares over all detections (a block adjustment: Brown 1976, ISPRS XIII; Triggs et al. 2000). A correction is
a similarity of the reference's plane, so that the problem is linear and what a transform is beyond a similarity stays.

Between images of the sky a similarity is not exact: each has its own tangent plane. Where the focal length is known,
a transform is replaced by that of a camera which was turned, the one that is nearest to it in the middle of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.registration.transform import similarity_matrix, transform_points

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST_STARS: Final = 150  # brightest of a frame that the adjustment looks at
RADII: Final = (3.0, 1.0)  # px, within which two detections are one star: before the first adjustment, and after it
ROUNDS: Final = 3  # of leaving out detections that do not fit
CLIP: Final = 3.0  # times the median error, in units of a detection's own, beyond which it is left out
FEWEST_STARS: Final = 4  # of a frame, shared with others, that can correct it
LEAST_SIGMA: Final = 0.05  # px, below which no centroid is believed: seeing and optics move stars by that
SCALE_ERROR: Final = 1e-4  # by which frames of one telescope differ in scale, as its focus moves
OTHER_SCALE: Final = 3e-3  # difference of scale beyond which a frame is of another one
TERMS: Final = 4  # of a correction: shift x, y, scale, rotation


class Sight(NamedTuple):
    """Stars of one frame, brightest first, and how the frame lies: ``xy (n, 2)``, ``sigma (n,)`` px of the frame.

    ``transform (3, 3)``: reference pixel to frame pixel.
    """

    xy: np.ndarray
    sigma: np.ndarray
    transform: np.ndarray


class Adjusted(NamedTuple):
    """Transforms of all frames, ``(3, 3) float64``, and per frame the stars used and their rms distance, px."""

    transforms: list[np.ndarray]
    matched: np.ndarray
    rms: np.ndarray

    @property
    def overall(self) -> float:
        """Root mean square distance of all detections from their stars, px."""
        n = self.matched.sum()
        return math.sqrt(float(np.sum(self.matched * np.nan_to_num(self.rms) ** 2)) / n) if n else math.nan


class _Detections(NamedTuple):
    """Detections of stars that several frames show: frame, star, place on the reference (n, 2) px, error px."""

    frame: np.ndarray
    star: np.ndarray
    place: np.ndarray
    sigma: np.ndarray


def turned_camera(transform: np.ndarray, shape: tuple[int, ...], focal_px: float) -> np.ndarray:
    """Return the map of a camera that was turned, nearest to a transform in the middle of the frame.

    Parameters
    ----------
    transform : ndarray (3, 3) float64
        Reference pixel to frame pixel.
    shape : tuple of int
        (H, W) of both frames; the optical axis is taken to meet their middle.
    focal_px : float
        Focal length, pixels: 206265 over the pixel's size in seconds of arc.

    Returns
    -------
    ndarray (3, 3) float64
        The same place for the frame's middle, the same rotation and the same scale there.
    """
    middle = np.array([(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0])
    to_ray = np.array([[1.0, 0.0, -middle[0]], [0.0, 1.0, -middle[1]], [0.0, 0.0, focal_px]])
    back = np.linalg.inv(transform)
    at, beside = transform_points(back, np.stack([middle, middle + (1.0, 0.0)]))
    axis, right = (to_ray @ (*point, 1.0) for point in (at, beside))
    axis = axis / np.linalg.norm(axis)
    right = right - axis * (right @ axis)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(axis, right), axis])
    from_ray = np.array(
        [[1.0, 0.0, middle[0] / focal_px], [0.0, 1.0, middle[1] / focal_px], [0.0, 0.0, 1.0 / focal_px]]
    )
    matrix = from_ray @ rotation @ to_ray
    slope = _slope_at(transform, at) / _slope_at(matrix, at)
    about_middle = similarity_matrix(slope, complex(*middle) * (1.0 - slope))
    matrix = about_middle @ matrix
    return np.asarray(matrix / matrix[2, 2])


def _slope_at(matrix: np.ndarray, xy: np.ndarray) -> complex:
    """Return the similarity that is nearest to a map at a point: its scale, and the angle by which it turns."""
    w = float(matrix[2] @ (*xy, 1.0))
    jacobian = (matrix[:2, :2] - np.outer(transform_points(matrix, xy), matrix[2, :2])) / w
    return 0.5 * complex(jacobian[0, 0] + jacobian[1, 1], jacobian[1, 0] - jacobian[0, 1])


def adjust(sights: Sequence[Sight], fixed: int, shape: tuple[int, ...], focal_px: float = math.inf) -> Adjusted:
    """Correct the transforms of all frames but one so that the stars they share coincide.

    Parameters
    ----------
    sights : sequence of Sight
        Frames whose transforms are known to a few pixels, in the order in which they were found: each but the first
        overlaps with an earlier one.
    fixed : int
        The reference among them.
    shape : tuple of int
        (H, W) of every frame, pixels.
    focal_px : float
        Focal length, pixels, where the transforms are those of a camera that was turned.

    Returns
    -------
    Adjusted
        A frame that shares fewer than ``FEWEST_STARS`` stars keeps its transform, and has no rms.
    """
    transforms = [np.asarray(s.transform, np.float64) for s in sights]
    matched, rms = np.zeros(len(sights), np.int64), np.full(len(sights), np.nan)
    for radius in RADII:
        seen = _detections(sights, transforms, radius)
        kept = np.ones(len(seen.frame), bool)
        for _ in range(ROUNDS):
            kept = _shared(seen, kept, len(sights))
            if not kept.any():
                return Adjusted(transforms, matched, rms)
            part = _Detections(*(values[kept] for values in seen))
            corrections = _corrections(part, fixed, transforms, shape, focal_px)
            distance = _distances(seen, corrections, kept)
            squared = np.sum(distance**2, axis=1)
            relative = np.abs(distance).max(axis=1) / seen.sigma
            inside = relative <= CLIP * max(float(np.median(relative[kept])), 1.0)
            if np.array_equal(inside & kept, kept):
                break
            kept &= inside
        transforms = [t @ np.linalg.inv(c) for t, c in zip(transforms, corrections, strict=True)]
        transforms = [t / t[2, 2] for t in transforms]
        used = seen.frame[kept]
        matched = np.bincount(used, minlength=len(sights))
        with np.errstate(invalid="ignore"):
            rms = np.sqrt(np.bincount(used, squared[kept], len(sights)) / np.where(matched > 0, matched, np.nan))
    return Adjusted(transforms, matched, rms)


def _detections(sights: Sequence[Sight], transforms: Sequence[np.ndarray], radius: float) -> _Detections:
    """Tell which detections are one star: frame after frame, the nearest of those known within a radius."""
    from scipy.spatial import cKDTree

    stars = np.empty((0, 2))
    frames, names, places, sigmas = [], [], [], []
    for k, (sight, transform) in enumerate(zip(sights, transforms, strict=True)):
        xy = transform_points(np.linalg.inv(transform), sight.xy[:MOST_STARS])
        name = np.full(len(xy), -1, np.int64)
        if len(stars):
            distance, nearest = cKDTree(stars).query(xy, distance_upper_bound=radius)
            near = np.flatnonzero(np.isfinite(distance))
            order = near[np.argsort(distance[near], kind="stable")]
            _, first = np.unique(nearest[order], return_index=True)
            name[order[first]] = nearest[order[first]]
        new = np.flatnonzero((name < 0) & ~(np.isfinite(distance) if len(stars) else np.zeros(len(xy), bool)))
        name[new] = len(stars) + np.arange(len(new))
        stars = np.concatenate([stars, xy[new]])
        known = name >= 0
        frames.append(np.full(np.count_nonzero(known), k))
        names.append(name[known])
        places.append(xy[known])
        sigmas.append(np.maximum(sight.sigma[:MOST_STARS][known], LEAST_SIGMA))
    return _Detections(*(np.concatenate(part) for part in (frames, names, places, sigmas)))


def _shared(seen: _Detections, kept: np.ndarray, n_frames: int) -> np.ndarray:
    """Return which of the detections kept are of stars that two frames show, in frames that share enough of them."""
    while True:
        of_star = np.bincount(seen.star[kept], minlength=int(seen.star.max(initial=-1)) + 1)
        shared = kept & (of_star[seen.star] >= 2)
        of_frame = np.bincount(seen.frame[shared], minlength=n_frames)
        shared &= of_frame[seen.frame] >= FEWEST_STARS
        if np.array_equal(shared, kept):
            return kept
        kept = shared


def _middles(transforms: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    middle = np.array([(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0])
    return np.stack([transform_points(np.linalg.inv(t), middle) for t in transforms])


def _corrections(
    seen: _Detections, fixed: int, transforms: Sequence[np.ndarray], shape: tuple[int, ...], focal_px: float
) -> np.ndarray:
    """Solve for the corrections of all frames and the places of all stars: ``(N, 3, 3)``, on the reference's plane."""
    from scipy.sparse import vstack
    from scipy.sparse.linalg import lsmr

    n_frames, size = len(transforms), 0.5 * math.hypot(*shape[:2])
    middles = _middles(transforms, shape)
    middle = np.array([(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0])
    matrix = _equations(seen, n_frames, fixed, middles, size)
    weight = np.repeat(1.0 / seen.sigma, 2)
    right = -(seen.place.reshape(-1) * weight)
    scales, wanted = _equal_scales(
        transforms, middles, size, matrix.shape[1], np.hypot(*(middles - middle).T) / focal_px
    )
    matrix, right = vstack([matrix, scales]).tocsr(), np.concatenate([right, wanted])
    # Stars are looked for from where their detections are in the mean, so that what is solved for is small.
    start = _mean_places(seen)
    first = np.concatenate([np.zeros(TERMS * n_frames), start.reshape(-1)])
    right = right - matrix @ first
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).reshape(-1))
    norms[norms == 0.0] = 1.0
    scaled = matrix.multiply(1.0 / norms[None, :]).tocsr()
    found = lsmr(scaled, right, atol=1e-12, btol=1e-12, maxiter=20 * (n_frames + 50))[0] / norms
    terms = found[: TERMS * n_frames].reshape(n_frames, TERMS)
    terms[fixed] = 0.0
    result = np.tile(np.eye(3), (n_frames, 1, 1))
    scale, turn = terms[:, 2] / size, terms[:, 3] / size
    result[:, 0, 0] += scale
    result[:, 1, 1] += scale
    result[:, 0, 1] -= turn
    result[:, 1, 0] += turn
    x, y = middles.T
    result[:, 0, 2] = terms[:, 0] - scale * x + turn * y
    result[:, 1, 2] = terms[:, 1] - turn * x - scale * y
    return result


def _equal_scales(
    transforms: Sequence[np.ndarray], middles: np.ndarray, size: float, n_columns: int, tangents: np.ndarray
) -> tuple[csr_matrix, np.ndarray]:
    """Return equations that keep frames to the reference's scale: they come from one telescope, and focus moves little.

    A frame of another scale by more than ``OTHER_SCALE`` has none. ``tangents (N,)``: of the angles by which the camera
    was turned; on the reference's plane lengths there are larger by 1 / cos, and away from its middle by 1 / cos^2.
    """
    from scipy.sparse import csr_matrix

    cosine = 1.0 / np.sqrt(1.0 + tangents**2)
    own = np.log([abs(_slope_at(t, m)) for t, m in zip(transforms, middles, strict=True)])
    own -= np.log(0.5 * (cosine + cosine**2))
    alike = np.flatnonzero(np.abs(own) < OTHER_SCALE)
    weight = np.full(alike.size, 1.0 / (size * SCALE_ERROR))
    place = np.arange(alike.size), TERMS * alike + 2
    return csr_matrix((weight, place), (alike.size, n_columns)), own[alike] / SCALE_ERROR


def _mean_places(seen: _Detections) -> np.ndarray:
    n_stars = int(seen.star.max()) + 1
    count = np.maximum(np.bincount(seen.star, minlength=n_stars), 1)
    return np.stack([np.bincount(seen.star, seen.place[:, axis], n_stars) / count for axis in (0, 1)], axis=1)


def _equations(seen: _Detections, n_frames: int, fixed: int, middles: np.ndarray, size: float) -> csr_matrix:
    """One equation per detection and axis: correction of its frame at its place, less the place of its star."""
    from scipy.sparse import coo_matrix

    n, n_stars = len(seen.frame), int(seen.star.max()) + 1
    u, v = ((seen.place - middles[seen.frame]) / size).T
    one, none = np.ones(n), np.zeros(n)
    weight, free = 1.0 / seen.sigma, np.where(seen.frame == fixed, 0.0, 1.0)
    rows, columns, values = [], [], []
    for axis, terms in enumerate(((one, none, u, -v), (none, one, v, u))):
        row = 2 * np.arange(n) + axis
        for k, term in enumerate(terms):
            rows.append(row)
            columns.append(TERMS * seen.frame + k)
            values.append(term * weight * free)
        rows.append(row)
        columns.append(TERMS * n_frames + 2 * seen.star + axis)
        values.append(-weight)
    place = np.concatenate(rows), np.concatenate(columns)
    return coo_matrix((np.concatenate(values), place), (2 * n, TERMS * n_frames + 2 * n_stars)).tocsr()


def _distances(seen: _Detections, corrections: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return how far corrected detections (n, 2) px lie from the weighted mean of those of their star that count."""
    c = corrections[seen.frame]
    place = np.einsum("nij,nj->ni", c[:, :2, :2], seen.place) + c[:, :2, 2]
    weight = np.where(kept, seen.sigma**-2.0, 0.0)
    n_stars = int(seen.star.max()) + 1
    total = np.bincount(seen.star, weight, n_stars)
    with np.errstate(invalid="ignore"):
        mean = np.stack([np.bincount(seen.star, weight * place[:, axis], n_stars) / total for axis in (0, 1)], axis=1)
    return np.asarray(np.nan_to_num(place - mean[seen.star], nan=np.inf))
