"""Tests of ``resample.drizzle``: against the package of the telescope, and what must be conserved."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.resample.drizzle import drizzle_rows
from zemosaic_phase3.resample.interpolation import PAD

NO_FIELD = np.empty((0, 0, 2), np.float32)


def drizzled(frame, matrix, shape, pixfrac, red=(-1, -1), rows=None, channels=None):
    """Value and area, (rows, W, C) float32 each."""
    height, width = frame.shape[:2]
    channels = channels or (3 if red[0] >= 0 or frame.ndim == 3 else 1)
    first, last = rows or (0, shape[0])
    block = np.concatenate([np.asarray(frame, np.float32).reshape(-1), np.zeros(PAD, np.float32)])
    value, area = (np.full((last - first, shape[1], channels), -7.0, np.float32) for _ in range(2))
    drizzle_rows(
        block, 0, height, width, *red, matrix, NO_FIELD, pixfrac, np.ones(channels), np.zeros(channels),
        first, last, shape[1], value.reshape(-1), area.reshape(-1),
    )  # fmt: skip
    return value, area


def similarity_map(angle_deg, dx, dy, size):
    c, s = size * np.cos(np.deg2rad(angle_deg)), size * np.sin(np.deg2rad(angle_deg))
    return np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]])


def onto(scale, angle_deg=0.0, dx=0.0, dy=0.0, size=1.0):
    """From pixels of a grid ``scale`` times as fine as the reference's to those of a frame that is turned and moved."""
    step = 1.0 / scale
    grid = np.array([[step, 0.0, 0.5 * step - 0.5], [0.0, step, 0.5 * step - 0.5], [0.0, 0.0, 1.0]])
    return similarity_map(angle_deg, dx, dy, size) @ grid


@pytest.mark.parametrize(("scale", "pixfrac"), [(1.0, 1.0), (2.0, 0.7), (3.0, 0.4), (1.5, 1.0)])
@pytest.mark.parametrize(("angle", "size"), [(7.3, 1.0), (-151.0, 1.03), (0.0, 1.0)])
def test_it_is_the_square_kernel_of_the_drizzle_package(rng, scale, pixfrac, angle, size):
    """Values to float32 rounding, areas to 1e-7 of a drop. The package leaves pixels out at the frame's edges."""
    package = pytest.importorskip("drizzle.resample")
    frame = rng.normal(1000.0, 50.0, (60, 71)).astype(np.float32)
    height, width = frame.shape
    shape = int(height * scale), int(width * scale)
    centre = similarity_map(angle, 0.0, 0.0, size) @ [35.0, 30.0, 1.0]
    matrix = onto(scale, angle, 35.3 - centre[0], 29.6 - centre[1], size)
    value, area = (a[..., 0] for a in drizzled(frame, matrix, shape, pixfrac))
    y, x = np.mgrid[:height, :width].astype(float)
    there = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(matrix).T
    theirs = package.Drizzle(kernel="square", fillval="NaN", out_shape=shape, disable_ctx=True)
    theirs.add_image(
        frame, exptime=1.0, pixmap=there[..., :2], pixfrac=pixfrac, weight_map=np.ones_like(frame), in_units="cps"
    )
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    here = (np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T)[..., :2]
    inner = ((here > 3) & (here < (width - 4, height - 4))).all(axis=-1)
    inner &= (x > 2) & (x < shape[1] - 3) & (y > 2) & (y < shape[0] - 3)
    sure = inner & (theirs.out_wht > 2e-5)
    assert sure.sum() > 0.4 * inner.sum()
    np.testing.assert_allclose(value[sure], theirs.out_img[sure], rtol=1e-6)
    np.testing.assert_allclose(area[sure], theirs.out_wht[sure], atol=2e-7)
    assert np.isnan(value[inner & (theirs.out_wht < 0.9e-5)]).all()


@pytest.mark.parametrize("scale", [1.0, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("pixfrac", [1.0, 0.6])
def test_light_is_conserved(scale, pixfrac):
    """All parts of a drop add up to 1, so that the sum of area times value is the sum of the frame.

    With whole drops the area is the same everywhere, and so the sum of the values is that of the frame, times the
    square of the scale.
    """
    y, x = np.mgrid[:40, :44]
    star = (1e5 * np.exp(-((x - 21.3) ** 2 + (y - 19.8) ** 2) / 2.0)).astype(np.float32)
    shape = int(60 * scale), int(60 * scale)
    value, area = drizzled(star, onto(scale, 12.0, -1.0, -9.0), shape, pixfrac)
    total = star.sum(dtype=float)
    assert np.nansum(value.astype(float) * area) == pytest.approx(total, rel=1e-6)
    if pixfrac == 1.0:
        assert np.nansum(value, dtype=float) == pytest.approx(total * scale**2, rel=1e-4)


@pytest.mark.parametrize(("pattern", "red"), [("RGGB", (0, 0)), ("GBRG", (1, 0))])
def test_of_a_mosaic_only_the_photosites_of_a_colour_count(pattern, red):
    height, width = 24, 30
    levels = {"R": 100.0, "G": 200.0, "B": 300.0}
    raw = np.empty((height, width), np.float32)
    for k, letter in enumerate(pattern):
        raw[k // 2 :: 2, k % 2 :: 2] = levels[letter]
    value, area = drizzled(raw, onto(1.0, 20.0, 3.0, -4.0), (height, width), 1.0, red)
    for c, level in enumerate(levels.values()):
        some = np.isfinite(value[..., c])
        np.testing.assert_array_equal(value[..., c][some], np.float32(level))
        np.testing.assert_array_equal(area[..., c] > 0, some)
    grey = drizzled(raw, onto(1.0, 20.0, 3.0, -4.0), (height, width), 1.0)[1][..., 0]
    np.testing.assert_allclose(area.sum(axis=-1), grey, atol=2e-5)
    inner = grey > 0.999
    assert np.isnan(value[inner]).any(axis=0).tolist() == [True, False, True], "red and blue have holes, green none"


def test_a_photosite_without_a_number_drops_nothing(rng):
    frame = rng.normal(1000.0, 50.0, (20, 20)).astype(np.float32)
    frame[9, 11] = np.nan
    matrix = onto(2.0)
    value, area = (a[..., 0] for a in drizzled(frame, matrix, (40, 40), 1.0))
    np.testing.assert_array_equal(np.argwhere(np.isnan(value)), [[18, 22], [18, 23], [19, 22], [19, 23]])
    assert (area[np.isfinite(value)] == 0.25).all()
    colour = np.stack([frame, frame, frame * 2], axis=-1)
    colour[3, 3, 1] = np.nan
    value, area = drizzled(colour, matrix, (40, 40), 1.0)
    assert np.isnan(value).sum(axis=(0, 1)).tolist() == [4, 8, 4]


def test_rows_equal_the_whole(rng):
    frame = rng.normal(1000.0, 50.0, (30, 33)).astype(np.float32)
    matrix = onto(1.5, 33.0, 8.0, -5.0)
    whole = drizzled(frame, matrix, (45, 49), 0.8)
    part = drizzled(frame, matrix, (45, 49), 0.8, rows=(17, 23))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[17:23], b)


def test_what_lies_behind_the_camera_has_no_sample(rng):
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -0.1, 1.0]])
    value, area = drizzled(rng.normal(100.0, 1.0, (12, 9)), matrix, (20, 9), 1.0)
    assert np.isnan(value[10:]).all()
    assert not area[10:].any()
    assert np.isfinite(value[:3]).any()
