"""Pixels filled with one exact number (``detection.filler``): found whole, and nothing else taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_phase3.detection.filler import find_filler

SHAPE = (300, 400)


def sky(level: float = 1000.0, sigma: float = 30.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, sigma, SHAPE)


def stored(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 65535).astype(np.uint16)


def outside(degrees: float) -> np.ndarray:
    """Return what a turned frame does not cover of a canvas."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    angle = np.deg2rad(degrees)
    u = np.cos(angle) * (x - 200) + np.sin(angle) * (y - 150)
    v = -np.sin(angle) * (x - 200) + np.cos(angle) * (y - 150)
    return (np.abs(u) > 170) | (v < -120)


@pytest.mark.parametrize("value", [0, 65535, 1000, 512])
@pytest.mark.parametrize("degrees", [0.0, 0.4, 5.0, 33.0])
def test_a_canvas_around_a_frame_is_found_at_any_angle(value: int, degrees: float) -> None:
    frame, filled = stored(sky()), outside(degrees)
    frame[filled] = value
    found = find_filler(frame)
    assert found is not None
    mask, number = found
    assert number == value
    # A pixel of a slanted border may be apart from the rest, and one of the sky may have the number too.
    assert np.count_nonzero(mask & ~filled) <= 40
    assert np.count_nonzero(filled & ~mask) <= 60
    if degrees == 0.0:
        assert np.array_equal(mask | (frame == value), mask) or value == 1000


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_rows_that_never_came_and_blocks_that_were_lost(dtype: type) -> None:
    frame = stored(sky()).astype(dtype)
    filled = np.zeros(SHAPE, bool)
    filled[230:] = filled[96:128, 64:160] = filled[20:36, 300:316] = True
    filled[229, 150:] = True
    frame[filled] = 0
    found = find_filler(frame)
    assert found is not None
    assert np.count_nonzero(found[0] ^ filled) <= 250


@pytest.mark.parametrize("width", [1, 2, 8])
def test_thin_borders(width: int) -> None:
    frame = stored(sky())
    frame[:, :width] = 512
    found = find_filler(frame)
    assert found is not None
    np.testing.assert_array_equal(np.flatnonzero(found[0].any(axis=0)), np.arange(width))
    assert found[0][:, :width].all()


def test_filler_of_mosaics_and_of_colour_frames() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    colours = np.where((y % 2 == 0) & (x % 2 == 0), 500.0, np.where((y % 2 == 1) & (x % 2 == 1), 300.0, 1200.0))
    mosaic = stored(colours + sky(0.0))
    mosaic[:, :40] = 0
    found = find_filler(mosaic, "RGGB")
    assert found is not None
    assert found[0].sum() == 40 * SHAPE[0]
    colour = np.stack([sky(500.0), sky(1200.0, seed=1), sky(300.0, seed=2)], axis=2).astype(np.float32)
    colour[:25] = (0.0, 10.0, 0.0)
    found = find_filler(colour)
    assert found is not None
    assert found[0].sum() == 25 * SHAPE[1]


def test_pixels_that_an_interpolation_mixed_with_filler_go_with_it() -> None:
    turned = ndimage.rotate(sky(), 7.0, reshape=False, order=1, mode="constant", cval=0.0).astype(np.float32)
    found = find_filler(turned)
    assert found is not None
    assert turned[~found[0]].min() > 700.0
    assert found[0].mean() < (turned == 0.0).mean() + 0.01


def vignetted() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return sky(60.0) - ((y - 150) ** 2 + (x - 200) ** 2) / 150.0


def with_saturated_stars() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = sky()
    for x0, y0, width in ((60, 50, 3.0), (0, 150, 3.5), (300, 299, 4.0), (399, 0, 3.0), (220, 160, 5.0)):
        image += 1e9 * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / width**2)
    return image + 1e8 * (1.0 + ((x - 120) ** 2 + (y - 220) ** 2) / 9.0) ** -2.5


def stars_alone() -> np.ndarray:
    image = with_saturated_stars()
    return np.where(image > 1150.0, image, 900.0)


def moon() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.where((x - 380) ** 2 + (y - 140) ** 2 < 100**2, 70_000.0, sky())


@pytest.mark.parametrize(
    "frame",
    [
        stored(sky()), stored(sky(0.0)), stored(sky(-56.0)), stored(vignetted()), stored(with_saturated_stars()),
        stored(moon()), stored(stars_alone()), np.clip(sky() - 1070.0, 0.0, None).astype(np.float32),
        *[stored(np.round(sky(980.0, sigma) / 16.0) * 16.0) for sigma in (1.0, 2.0, 5.0, 12.0)],
        np.where(sky() > 1100.0, np.nan, sky()).astype(np.float32),
    ],
    ids=[
        "plain", "half at 0", "all but 3 % at 0", "corners at 0", "saturated stars", "moon", "stars on one number",
        "only stars", "step 16 noise 1", "step 16 noise 2", "step 16 noise 5", "step 16 noise 12", "NaN",
    ],
)  # fmt: skip
def test_what_is_no_filler(frame: np.ndarray) -> None:
    assert find_filler(frame) is None
