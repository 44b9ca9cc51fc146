"""What several tests share: made for the tests of ``register``."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
SHAPE = (540, 960)
SIGMA_OF_FWHM = 1.0 / 2.3548


def paint(shape, x, y, peak, fwhm=3.0, seed=0, sky=1000.0, noise=30.0):
    """Frame (H, W) float32 ADU with Gaussian stars."""
    image = np.random.default_rng(seed).normal(sky, noise, shape).astype(np.float32)
    radius = int(np.ceil(4 * fwhm))
    span = np.arange(-radius, radius + 1)
    padded = np.pad(image, radius)
    for a, b, height in zip(x, y, np.broadcast_to(peak, len(x)), strict=True):
        column, row = round(a), round(b)
        if 0 <= column < shape[1] and 0 <= row < shape[0]:
            profile_x = np.exp(-0.5 * ((span + column - a) / (fwhm * SIGMA_OF_FWHM)) ** 2)
            profile_y = np.exp(-0.5 * ((span + row - b) / (fwhm * SIGMA_OF_FWHM)) ** 2)
            window = np.s_[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            padded[window] += height * np.outer(profile_y, profile_x)
    return padded[radius:-radius, radius:-radius]


def similarity(scale=1.0, degrees=0.0, shift=(0.0, 0.0), shape=SHAPE):
    """Reference -> frame about the centre."""
    angle = np.radians(degrees)
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    return matrix


def rms_error(matrix, truth, reference, shape=SHAPE):
    target = transform_points(truth, reference.xy)
    seen = np.all((target > 0) & (target < [shape[1], shape[0]]), axis=1)
    return float(np.sqrt(np.mean(np.sum((transform_points(matrix, reference.xy) - target)[seen] ** 2, axis=1))))
