"""Lights calibrated as they are read: the formulas, mosaics, dead photosites, any range of rows."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.calibrate.calibrated import CalibratedSource, relative_flat, scaled_dark
from zemosaic_phase3.io.open_frame import open_source

SHAPE = (40, 50)


def maps(seed=0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    light = rng.integers(0, 65536, SHAPE).astype(np.uint16)
    return light, rng.normal(500, 9, SHAPE).astype(np.float32), rng.uniform(2e4, 3e4, SHAPE).astype(np.float32)


def test_formula_and_any_range_of_rows() -> None:
    light, dark, flat = maps()
    relative = relative_flat(flat, None)
    np.testing.assert_allclose(relative, flat / flat.mean(dtype=np.float64), rtol=3e-7)
    source = CalibratedSource(open_source(light, bayer="RGGB"), dark, relative)
    whole = source.read_rows(0, SHAPE[0])
    np.testing.assert_array_equal(whole, (light.astype(np.float32) - dark) / relative)
    assert (whole < 0).any()  # nothing is cut off
    assert (source.dtype, source.cfa, source.raw_layout) == (np.float32, "RGGB", None)
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = np.sort(rng.integers(0, SHAPE[0] + 1, 2))
        np.testing.assert_array_equal(source.read_rows(a, b), whole[a:b])
    np.testing.assert_array_equal(open_source(light).read_rows(0, SHAPE[0]), light)  # the caller's array is untouched


@pytest.mark.parametrize(("use_dark", "use_flat"), [(True, False), (False, True)])
def test_one_of_both(use_dark, use_flat) -> None:
    light, dark, flat = maps()
    relative = relative_flat(flat, None)
    source = CalibratedSource(open_source(light), dark if use_dark else None, relative if use_flat else None)
    expected = light.astype(np.float32)
    expected = expected - dark if use_dark else expected / relative
    np.testing.assert_array_equal(source.read_rows(0, SHAPE[0]), expected)


@pytest.mark.parametrize("cfa", ["RGGB", "GBRG"])
def test_a_flat_changes_no_colour_and_dead_photosites_are_invalid(cfa) -> None:
    _, _, flat = maps()
    for k, letter in enumerate(cfa):
        flat[k // 2 :: 2, k % 2 :: 2] *= {"R": 0.4, "G": 1.0, "B": 0.7}[letter]
    flat[3, 4], flat[7, 8], flat[9, 9] = 0.0, np.nan, -5.0
    relative = relative_flat(flat, cfa)
    assert np.isnan(relative[[3, 7, 9], [4, 8, 9]]).all()
    assert np.count_nonzero(np.isnan(relative)) == 3
    for colour in "RGB":
        of_colour = [relative[k // 2 :: 2, k % 2 :: 2].ravel() for k in range(4) if cfa[k] == colour]
        assert np.nanmean(np.concatenate(of_colour), dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
    source = CalibratedSource(open_source(np.full(SHAPE, 1000, np.uint16), bayer=cfa), None, relative)
    assert np.isnan(source.read_rows(3, 4)[0, 4])


def test_colour_images_have_a_mean_for_each_plane() -> None:
    rng = np.random.default_rng(0)
    relative = relative_flat(rng.uniform(1, 2, (*SHAPE, 3)) * [1, 2, 3], None)
    np.testing.assert_allclose(relative.mean(axis=(0, 1), dtype=np.float64), 1.0, atol=1e-6)


def test_a_dark_is_scaled_about_its_bias() -> None:
    _, dark, _ = maps()
    bias = dark - np.float32(40.0)
    np.testing.assert_allclose(scaled_dark(dark, bias, 2.5), bias + 100.0, rtol=1e-5)
    assert scaled_dark(dark, bias, 2.5).dtype == np.float32
