"""Stars, nebula and trails as expected pixels.

The brightness model uses only ``+ - * / sqrt`` (a Moffat profile with exponent 3, polynomial blobs), so that the
expected image is the same on every machine; for that it has a ``map_points`` of its own, without matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from zemosaic_phase3.simulate.session import SimulationSpec

MOFFAT_FWHM_PER_ALPHA: Final = 1.0196490017862786  # 2 sqrt(2^(1/3) - 1), exponent 3
STAMP_LIMIT_ADU: Final = 0.02  # a star's stamp ends where its profile falls below this
STAMP_STEP: Final = 8  # stamp radii are multiples of this, pixels
STAMP_MAX_RADIUS: Final = 96  # pixels
STAMP_BATCH: Final = 512  # stars whose stamps are in memory at one time
# Gauss-Legendre rule with 3 points on a pixel [-1/2, 1/2]: integrates the profile over the pixel to about 1e-6
GAUSS_NODES: Final = (-0.3872983346207417, 0.0, 0.3872983346207417)
GAUSS_WEIGHTS: Final = (5 / 18, 8 / 18, 5 / 18)


@dataclass(frozen=True)
class Nebula:
    """Smooth blobs ``amplitude (1 - q)^3`` for q < 1, with q the quadratic form of the distance to the centre."""

    centre: np.ndarray  # (B, 2)
    form: np.ndarray  # (B, 2, 2), 1/pixel^2
    amplitude: np.ndarray  # (B, C), ADU


def map_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (n, 2) carried through a homogeneous transform (3, 3)."""
    x, y = points[..., 0], points[..., 1]
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in np.asarray(transform, float))
    return np.stack([u / w, v / w], axis=-1)


def colour_map(spec: SimulationSpec, height: int, width: int) -> np.ndarray | None:
    """Channel that each pixel samples, (height, width) intp; None when every pixel samples all of them."""
    if spec.bayer == "rgb":
        return None
    if spec.bayer == "none":
        return np.zeros((height, width), np.intp)
    cell = np.array(["RGB".index(colour) for colour in spec.bayer], np.intp).reshape(2, 2)
    return np.tile(cell, (height // 2 + 1, width // 2 + 1))[:height, :width]


def moffat_stamps(offset: np.ndarray, radius: int, fwhm: float) -> np.ndarray:
    """Return pixel-integrated profiles of unit flux, (n, 2 radius + 1, 2 radius + 1) float32.

    ``offset`` (n, 2): the star's position relative to the centre of the stamp's middle pixel.
    """
    alpha = fwhm / MOFFAT_FWHM_PER_ALPHA
    pixel = np.arange(-radius, radius + 1, dtype=np.float32)
    square = [
        [(((pixel + node) - offset[:, axis, None]) / alpha).astype(np.float32) ** 2 for node in GAUSS_NODES]
        for axis in (0, 1)
    ]
    stamps = np.zeros((len(offset), pixel.size, pixel.size), np.float32)
    for weight_x, square_x in zip(GAUSS_WEIGHTS, square[0], strict=True):
        for weight_y, square_y in zip(GAUSS_WEIGHTS, square[1], strict=True):
            term = square_x[:, None, :] + (square_y[:, :, None] + np.float32(1.0))
            stamps += np.float32(weight_x * weight_y) / (term * term * term)
    stamps *= np.float32(2.0 / (np.pi * alpha * alpha))
    return stamps


def paint_stars(spec: SimulationSpec, position: np.ndarray, flux: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the stars alone: (H, W) as the sensor samples them, or (H, W, C) for ``bayer="rgb"``; float32, ADU."""
    height, width = spec.height, spec.width
    pixel = np.rint(position).astype(np.intp)
    alpha = fwhm / MOFFAT_FWHM_PER_ALPHA
    peak = flux.max(axis=1) * 2.0 / (np.pi * alpha * alpha)
    reach = alpha * np.sqrt(np.maximum(np.cbrt(peak / STAMP_LIMIT_ADU) - 1.0, 1.0))
    radius = np.minimum(STAMP_STEP * np.ceil(reach / STAMP_STEP), STAMP_MAX_RADIUS).astype(np.intp)
    touches = np.all((pixel + radius[:, None] >= 0) & (pixel - radius[:, None] < [width, height]), axis=1)
    # room for every stamp that touches the frame; a multiple of STAMP_STEP and so even: the mosaic keeps its phase
    margin = 2 * int(radius.max(initial=0))
    colours = colour_map(spec, height + 2 * margin, width + 2 * margin)
    canvas = np.zeros((height + 2 * margin, width + 2 * margin) + (() if colours is not None else (3,)), np.float32)
    light = flux.astype(np.float32)
    for reach_px in np.unique(radius[touches]):
        members = np.flatnonzero(touches & (radius == reach_px))
        for batch in np.split(members, range(STAMP_BATCH, members.size, STAMP_BATCH)):
            stamps = moffat_stamps(position[batch] - pixel[batch], int(reach_px), fwhm)
            for star, stamp in zip(batch, stamps, strict=True):
                x, y = pixel[star] + (margin - reach_px)
                box = np.s_[y : y + stamp.shape[0], x : x + stamp.shape[1]]
                canvas[box] += stamp[..., None] * light[star] if colours is None else stamp * light[star][colours[box]]
    return canvas[margin : margin + height, margin : margin + width]


def paint_nebula(spec: SimulationSpec, nebula: Nebula, transform: np.ndarray) -> np.ndarray:
    """Return the nebula alone, shaped as :func:`paint_stars` does; float32, ADU."""
    height, width = spec.height, spec.width
    colours = colour_map(spec, height, width)
    canvas = np.zeros((height, width) + (() if colours is not None else (3,)), np.float32)
    back = np.linalg.inv(transform[:2, :2])  # a rotation: blobs turn with the sky
    for (x, y), form, amplitude in zip(
        map_points(transform, nebula.centre), nebula.form, nebula.amplitude.astype(np.float32), strict=True
    ):
        turned = back.T @ form @ back
        half_x, half_y = np.sqrt(np.diag(np.linalg.inv(turned)))
        x0, x1 = max(int(x - half_x), 0), min(int(x + half_x) + 2, width)
        y0, y1 = max(int(y - half_y), 0), min(int(y + half_y) + 2, height)
        if x0 >= x1 or y0 >= y1:
            continue
        dx = (np.arange(x0, x1) - x).astype(np.float32)[None, :]
        dy = (np.arange(y0, y1) - y).astype(np.float32)[:, None]
        xx, xy, yy = np.float32(turned[0, 0]), np.float32(2 * turned[0, 1]), np.float32(turned[1, 1])
        inside = np.maximum(np.float32(1.0) - (xx * dx * dx + xy * dx * dy + yy * dy * dy), np.float32(0.0))
        blob = inside * inside * inside
        box = np.s_[y0:y1, x0:x1]
        canvas[box] += blob[..., None] * amplitude if colours is None else blob * amplitude[colours[box]]
    return canvas


def paint_trail(shape: tuple[int, int], ends: np.ndarray, peak: float, fwhm: float) -> np.ndarray:
    """Return one trail, (H, W) float32 ADU: ``peak (1 + (d/a)^2)^-2`` with d the distance to its axis."""
    distance = distance_to_line(shape, ends)
    half = fwhm / (2.0 * 0.6435942529055826)  # sqrt(sqrt(2) - 1): half maximum of the profile
    term = np.float32(1.0) + (distance / np.float32(half)) ** 2
    return np.where(np.abs(distance) < 12 * fwhm, np.float32(peak) / (term * term), np.float32(0.0))


def distance_to_line(shape: tuple[int, int], ends: np.ndarray) -> np.ndarray:
    """Signed distance of every pixel to the line through two points (x, y); (H, W) float32, pixels."""
    (x0, y0), (x1, y1) = ends
    length = np.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
    nx, ny = -(y1 - y0) / length, (x1 - x0) / length
    along_x = (nx * (np.arange(shape[1]) - x0)).astype(np.float32)
    along_y = (ny * (np.arange(shape[0]) - y0)).astype(np.float32)
    return along_y[:, None] + along_x[None, :]
