"""Why a frame does not register: whether it is mirrored, of another scale, or shows the sensor's defects alone.

Each question is one search on the brightest stars, asked of frames that failed already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.registration.asterisms import transform_hypotheses
from zemosaic_phase3.registration.match import MIN_FRACTION, register_stars
from zemosaic_phase3.registration.star_pairs import (
    MAX_LOG10_CHANCE,
    STATIONARY_RADIUS,
    Pair,
    mutual_neighbours,
    refine,
)
from zemosaic_phase3.registration.transform import grid_points, inside_frame, similarity_parameters, transform_points

if TYPE_CHECKING:
    from zemosaic_phase3.detection.star_finder import StarList
    from zemosaic_phase3.records import Registration
    from zemosaic_phase3.spec import RegisterSpec

ASKED: Final = 40  # brightest stars that the questions are put to
MOST_STILL: Final = 0.5  # of the detections that stand where the reference has them: defects


class Scale(NamedTuple):
    """A scale that is not the reference's, and the stars that show it."""

    scale: float
    matched: int


def brightest(stars: StarList, n: int = ASKED) -> StarList:
    """Return the n brightest stars."""
    return stars.select(np.arange(min(n, len(stars))))


def mirrored(stars: StarList, height: int) -> StarList:
    """Return the stars of a frame of ``height`` rows as they lie when its last row is the first."""
    return replace(stars, y=height - 1.0 - stars.y)


def is_mirrored(reference: StarList, frame: StarList, shape: tuple[int, ...], spec: RegisterSpec) -> bool:
    """Return whether a frame registers once its rows are read in the other order."""
    return register_stars(brightest(reference), mirrored(brightest(frame), int(shape[0])), shape, spec).ok


def other_scale(reference: StarList, frame: StarList, shape: tuple[int, ...], spec: RegisterSpec) -> Scale | None:
    """Return the scale of a frame, the reference's being 1, where its stars match at one beyond what is allowed.

    Parameters
    ----------
    reference, frame : StarList
        Brightest first.
    shape : tuple of int
        (H, W) of both frames, pixels.
    spec : RegisterSpec
        Limits.
    """
    ours, theirs = brightest(reference), brightest(frame)
    if min(len(ours), len(theirs)) < spec.min_matched:
        return None
    pair = Pair.of(ours, theirs, shape)
    for batch in transform_hypotheses(pair, None, spec.max_scale_error, any_size=True):
        for matrix in batch.matrices:
            match = refine(pair, matrix, batch.tried)
            if match is None or match.log10_chance > MAX_LOG10_CHANCE or match.matched < spec.min_matched:
                continue
            scale = similarity_parameters(match.matrix)[0]
            if match.fraction >= MIN_FRACTION and abs(scale - 1.0) > spec.max_scale_error:
                return Scale(scale, match.matched)
    return None


def still_detections(reference: StarList, frame: StarList, shape: tuple[int, ...]) -> int:
    """Return how many of a frame's detections stand on the very pixel of one of the reference's."""
    pair = Pair.of(reference, frame, shape)
    return len(mutual_neighbours(pair, np.eye(3), STATIONARY_RADIUS)[0])


def overlap(matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """Return the part of the reference's field that a frame shows, and where the frame's middle lies from its own.

    Parameters
    ----------
    matrix : ndarray (3, 3) float64
        Reference pixel to frame pixel.
    shape : tuple of int
        (H, W) of both frames, pixels.

    Returns
    -------
    part : float
    away : ndarray (2,) float64
        (x, y) px of the reference.
    """
    size = (int(shape[0]), int(shape[1]))
    grid = grid_points(size, 33)
    middle = np.array([[(size[1] - 1) / 2.0, (size[0] - 1) / 2.0]])
    away = transform_points(np.linalg.inv(matrix), middle) - middle
    return float(np.mean(inside_frame(transform_points(matrix, grid), size))), away[0]


def chained(first: Registration, second: Registration) -> np.ndarray:
    """Return the matrix from the reference through a frame that registers on it to one that registers on that frame."""
    matrix = second.transform @ first.transform
    return matrix / matrix[2, 2]
