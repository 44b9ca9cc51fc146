"""The rim of a tile where few frames overlap."""

from __future__ import annotations

from typing import Final

import numpy as np

# Quality crop
WELL_COVERED_FRACTION: Final = 0.5  # of the largest coverage: noise at most 1.41 times that of the centre


def coverage_2d(coverage: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Coverage per pixel: of its best covered channel."""
    flat = coverage.max(axis=-1) if coverage.ndim == 3 else coverage
    if flat.shape != shape[:2]:
        raise ValueError(f"coverage has shape {coverage.shape}, the image {shape}; they must agree")
    return flat


def touching_border(poor: np.ndarray, least: int = 1) -> np.ndarray:
    """Keep the 8-connected groups of True that touch the border and have at least ``least`` members."""
    from scipy import ndimage

    labels, count = ndimage.label(poor, structure=np.ones((3, 3), bool))
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    wanted = np.zeros(count + 1, bool)
    wanted[rim] = True
    wanted &= np.bincount(labels.ravel(), minlength=count + 1) >= least
    wanted[0] = False
    return wanted[labels]


def poorly_covered_border(coverage: np.ndarray, fraction: float) -> np.ndarray:
    """Pixels below ``fraction`` of the largest coverage that form a border, not a hole inside or a bad column.

    Streaks up to 4 px wide are forgiven by an opening whose outside counts as poor, so that a thin rim is kept.
    """
    from scipy import ndimage

    most = float(np.max(coverage, initial=0.0, where=np.isfinite(coverage)))
    poor = ~np.asarray(coverage >= fraction * most) if most > 0 else np.zeros(coverage.shape, bool)
    border = touching_border(poor)
    padded = ndimage.binary_opening(np.pad(border, 4, constant_values=True), np.ones((5, 5), bool))
    return border & padded[4:-4, 4:-4]
