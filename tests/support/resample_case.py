"""What several tests share: made for the tests of ``resample``."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.registration.distortion import make_field, nodes, reach
from zemosaic_phase3.resample import footprint, interpolation
from zemosaic_phase3.resample import warp as warp_file

NOTHING = np.empty(0, np.float32)


def padded(image):
    flat = np.ascontiguousarray(image, np.float32).reshape(-1)
    return np.concatenate([flat, np.zeros(interpolation.PAD, np.float32)])


def warp(image, matrix, name="lanczos3", rows=None, clamp=None, scale=None, offset=None, radial=None, field=None):
    """Resample a whole image in memory; ``rows`` (y0, y1) gives only those, from just the source rows they need."""
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    y0, y1 = rows or (0, height)
    far = 0.0 if field is None else reach(field)
    first, last = footprint.source_rows(matrix, y0, y1, width, height, far)
    out = np.full((y1 - y0) * width * channels, 7.0, np.float32)
    table = warp_file.radial_weight_table(*(radial or (0.8, 2.0, 0.05)))
    weights = np.empty((y1 - y0) * width, np.float32) if radial else NOTHING
    if last <= first:
        return np.full((y1 - y0, *image.shape[1:]), np.nan, np.float32)
    warp_file.resample_rows(
        padded(image[first:last]), first, height, width, channels, np.asarray(matrix, float),
        field,
        interpolation.weight_table(name), interpolation.needs_clamp(name) if clamp is None else clamp,
        np.ones(channels) if scale is None else scale, np.zeros(channels) if offset is None else offset,
        y0, y1, width, out, weights, table,
    )  # fmt: skip
    shaped = out.reshape(y1 - y0, *image.shape[1:])
    return (shaped, weights.reshape(y1 - y0, width)) if radial else shaped


def some_field(height, width, strength=3.0, seed=4):
    """Displacements as smooth as those of optics, pixels."""
    rng = np.random.default_rng(seed)
    u, v = np.moveaxis(nodes(height, width), 2, 0) / max(height, width) - 0.5
    powers = [u * u, u * v, v * v, u * (u * u + v * v), v * (u * u + v * v)]
    terms = rng.normal(0.0, 4.0 * strength, (2, len(powers)))
    return make_field(np.stack([sum(t * p for t, p in zip(row, powers, strict=True)) for row in terms], axis=2))


def similarity(angle_deg=0.0, dx=0.0, dy=0.0, scale=1.0):
    c, s = scale * np.cos(np.deg2rad(angle_deg)), scale * np.sin(np.deg2rad(angle_deg))
    return np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]])
