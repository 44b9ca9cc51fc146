"""The grid of a tile that holds every pixel of its frames, not only those that the reference shows too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.transform import transform_points


@dataclass(frozen=True)
class Canvas:
    """A grid of ``height`` x ``width`` pixels on which the reference begins at row ``top``, column ``left``."""

    left: int
    top: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the grid."""
        return self.height, self.width

    def to_frame(self, transform: np.ndarray) -> np.ndarray:
        """Turn a map from reference pixels to frame pixels into one from pixels of the canvas, (3, 3) float64."""
        matrix = np.array(transform, np.float64)
        matrix[:, 2] -= matrix[:, 0] * self.left + matrix[:, 1] * self.top
        return matrix / matrix[2, 2]


def canvas_around(
    registered: Sequence[Registration], shape: tuple[int, ...], most: float, cut: float = 0.0
) -> Canvas | None:
    """Return the smallest canvas that holds the footprints of all frames; None where the reference's grid does.

    Parameters
    ----------
    registered : sequence of Registration
        Of the frames, on the reference.
    shape : tuple of int
        (H, W, ...) of every frame, pixels.
    most : float
        Part of the width, or the height, that the canvas may have beyond the reference on each side. What lies further
        out is lost.
    cut : float
        Part of the width, or the height, that a later phase cuts off on each side; below 1/2. An empty margin is added
        for it to take, so that it takes nothing that a frame shows.

    Notes
    -----
    A map with a distortion field is defined on the reference's grid only: with such frames there is no canvas.
    """
    if most <= 0.0 or any(r.distortion is not None for r in registered):
        return None
    height, width = shape[:2]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)
    seen = np.concatenate([transform_points(np.linalg.inv(r.transform), corners) for r in registered])
    limit = np.floor(most * np.array([width, height]))
    before = np.clip(np.floor(-seen.min(axis=0)), 0, limit)  # whole pixels that some frame shows
    after = np.clip(np.floor(seen.max(axis=0) - (width - 1, height - 1)), 0, limit)
    if not (np.isfinite(seen).all() and (before.any() or after.any())):
        return None
    size = np.array([width, height]) + before + after
    margin = np.ceil(size * cut / (1.0 - 2.0 * cut))
    before, size = before + margin, size + 2 * margin
    return Canvas(int(before[0]), int(before[1]), math.floor(size[1]), math.floor(size[0]))
