"""Skies cut off at the lowest number (``detection.floor``), and wrapped numbers (``detection.wrapped``)."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.detection.floor import find_floors
from zemosaic_phase3.detection.sky_mesh import sky_mesh
from zemosaic_phase3.detection.wrapped import find_wrapped
from zemosaic_phase3.io.mended_frame import Mend
from zemosaic_phase3.photometry.levels import measure_levels

SHAPE = (240, 320)


def cut_off(level: float, sigma: float = 24.0, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(level, sigma, SHAPE)
    return np.clip(np.round(values), 0, 65535).astype(np.uint16)


@pytest.mark.parametrize("level", [-10.0, 0.0, 12.0, 30.0])
def test_a_cut_off_sky_is_measured_and_its_mean_comes_back(level: float) -> None:
    frame = cut_off(level)
    floors = find_floors(frame)
    assert floors is not None
    floor, mean_below, share = floors[0]
    assert (floor, share) == (0.0, pytest.approx((frame == 0).mean(), abs=0.02))
    assert mean_below < 0.0
    mended = Mend(floors=tuple(map(tuple, floors.tolist()))).apply(frame)
    assert mended.mean() == pytest.approx(level, abs=1.0)
    assert abs(frame.mean() - level) > abs(mended.mean() - level)
    for pixels in (frame.astype(np.float32), mended):
        stats = measure_levels(pixels[:, :, None], quantum=(0.0,))
        assert stats.median[0] == pytest.approx(level, abs=1.5)
        assert stats.mad_sigma[0] == pytest.approx(24.0, rel=0.06)
        mesh, noise = sky_mesh(pixels, 80)
        assert np.median(mesh) == pytest.approx(level, abs=3.0)
        assert np.median(noise) == pytest.approx(24.0, rel=0.12)


def test_colours_of_a_mosaic_have_floors_of_their_own() -> None:
    frame = cut_off(500.0)
    frame[::2, ::2] = cut_off(5.0, seed=1)[::2, ::2]
    floors = find_floors(frame, "RGGB")
    assert floors is not None
    assert np.isfinite(floors[:, 0]).tolist() == [True, False, False, False]


@pytest.mark.parametrize("sigma", [1.0, 3.0, 6.0, 9.0, 14.0])
@pytest.mark.parametrize("phase", [0.0, 5.0, 8.0])
def test_coarse_steps_are_no_floor(sigma: float, phase: float) -> None:
    values = np.random.default_rng(3).normal(960.0 + phase, sigma, SHAPE)
    assert find_floors((np.round(values / 16.0) * 16.0).astype(np.uint16)) is None


def test_an_ordinary_sky_has_no_floor() -> None:
    assert find_floors(cut_off(1000.0)) is None
    assert find_floors(cut_off(100.0)) is None  # 4 sigma above 0


def test_cores_that_were_wrapped_are_found_and_cold_pixels_are_not() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(4).normal(900.0, 20.0, SHAPE)
    for x0, y0, peak in ((60, 60, 45_000.0), (200, 120, 90_000.0), (120, 200, 20_000.0)):
        image += peak * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / 2.0)
    true = np.clip(np.round(image), 0, 65535)
    stored = true.astype(np.uint16).view(np.int16).astype(np.float32)
    stored[30, 30] = stored[150:152, 40] = -300.0
    wrapped = find_wrapped(stored)
    assert wrapped is not None
    np.testing.assert_array_equal(wrapped, true > 32767)
    assert find_wrapped(np.where(wrapped, 900.0, stored)) is None
    assert find_wrapped(np.where(wrapped, 30_000.0, stored) - np.float32(900.0)) is None  # the sky itself is about 0
