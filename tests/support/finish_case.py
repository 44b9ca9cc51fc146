"""What several tests share: made for the tests of ``tile``."""

from __future__ import annotations

import math

import numpy as np

from zemosaic_phase3.finish import crop as crop_file

NOISE = 10.0
SHAPE = (240, 320)
WHOLE = (0, 0, *SHAPE)


def sky(seed: int = 0, *, shape=SHAPE, stars=60, fwhm=3.0, trail=0.0, angle=0.5, gradient=100.0, noise=NOISE):
    """RGB tile (H, W, 3) float32, ADU: tilted sky of 1000, Gaussian stars, each drawn out over ``trail`` px."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image = 1000.0 + gradient * (x / width + 0.5 * y / height)
    sigma, steps = fwhm / 2.3548, max(1, int(2 * trail))
    reach = int(trail / 2 + 5 * fwhm)
    for _ in range(stars):
        cx, cy, flux = rng.uniform(0, width), rng.uniform(0, height), 10 ** rng.uniform(3.3, 5)
        window = np.s_[max(0, int(cy) - reach) : int(cy) + reach, max(0, int(cx) - reach) : int(cx) + reach]
        for t in (np.arange(steps) + 0.5) / steps - 0.5:
            dx, dy = x[window] - cx - t * trail * math.cos(angle), y[window] - cy - t * trail * math.sin(angle)
            r2 = dx * dx + dy * dy
            image[window] += flux / steps / (2 * math.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)
    return (image[..., None] * [1.0, 1.1, 0.9] + rng.normal(0, noise, (*shape, 3))).astype(np.float32)


def ragged_coverage(shape=SHAPE, frames=30, degrees=6.0, seed=3):
    """Number of frames, dithered by 8 px and rotated by up to ``degrees``, that cover each pixel."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    coverage = np.zeros(shape, np.int32)
    for _ in range(frames):
        a = math.radians(rng.uniform(-degrees, degrees))
        dy, dx = y - height / 2 - rng.normal(0, 8), x - width / 2 - rng.normal(0, 8)
        u, v = dx * math.cos(a) + dy * math.sin(a), dy * math.cos(a) - dx * math.sin(a)
        coverage += (abs(u) < width / 2) & (abs(v) < height / 2)
    return coverage


def crop(image, **kwargs):
    return crop_file.detect_autocrop_rgb(image.mean(axis=-1), *np.moveaxis(image, -1, 0), **kwargs)
