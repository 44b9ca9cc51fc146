"""Tests of ``finish.noise``."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from finish_case import NOISE, sky
from hypothesis import given
from hypothesis import strategies as st
from places import DATA

from zemosaic_phase3.finish import crop as crop_file
from zemosaic_phase3.finish import noise as noise_module
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.spec import CropSpec


@pytest.mark.parametrize(("stars", "gradient", "noise"), [(0, 0.0, 10.0), (60, 100.0, 10.0), (300, 2000.0, 1.0)])
def test_noise_is_that_of_the_sky_in_spite_of_stars_and_gradient(stars, gradient, noise):
    measured = noise_module.measure_noise(sky(stars=stars, gradient=gradient, noise=noise))
    np.testing.assert_allclose(measured, noise, rtol=0.03)  # 1 % statistical, rest: wings of stars


def test_noise_of_a_large_image_is_measured_on_bands_of_it():
    image = sky(shape=(1400, 1000), stars=300, noise=10.0)
    rows = noise_module.noise_rows(1400, 1000)
    assert len(rows) % 2 == 1 and sum(r.stop - r.start for r in rows) * 1000 >= noise_module.NOISE_PIXELS
    assert rows[0].start > 0 and rows[-1].stop < 1400
    assert all(a.stop < b.start for a, b in itertools.pairwise(rows))
    measured = noise_module.measure_noise(image)
    np.testing.assert_allclose(measured, 10.0, rtol=0.02)
    assert measured == noise_module.typical_noise(image[r] for r in rows)
    image[rows[0]] = np.nan  # not covered there
    image[rows[1]] *= 5.0  # something bright and uneven
    np.testing.assert_allclose(noise_module.measure_noise(image), 10.0, rtol=0.02)


def test_a_small_image_is_measured_whole():
    assert noise_module.noise_rows(300, 400) == [slice(0, 300)]
    assert noise_module.noise_rows(3, 100_000) == [slice(0, 3)]


@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_dilation_reaches_as_far_as_said(reach, height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.95
    grown = noise_module.dilated(mask, reach)
    set_y, set_x = np.nonzero(mask)
    for y, x in np.ndindex(mask.shape):
        assert grown[y, x] == bool(((abs(set_y - y) <= reach) & (abs(set_x - x) <= reach)).any())


def test_noise_is_not_flattered_by_interpolation(rng):
    """Averaging neighbours lowers sigma by 2 exactly; differences of neighbours would say more than that."""
    white = rng.normal(0, NOISE, (400, 400))
    smooth = 0.25 * (white + np.roll(white, 1, 0) + np.roll(white, 1, 1) + np.roll(white, (1, 1), (0, 1)))
    np.testing.assert_allclose(noise_module.measure_noise(smooth), [NOISE / 2], rtol=0.02)


def test_noise_without_evidence_is_nan_and_of_a_constant_zero():
    assert all(map(math.isnan, noise_module.measure_noise(np.full((40, 40, 3), np.nan, np.float32))))
    assert math.isnan(noise_module.measure_noise(np.ones((3, 40), np.float32))[0])
    assert noise_module.measure_noise(np.full((40, 40), 7, np.float32)) == [0.0]


def test_noise_of_valid_pixels_only():
    image = sky()
    image[:, :100] = np.nan
    np.testing.assert_allclose(noise_module.measure_noise(image), NOISE, rtol=0.03)


def test_real_frame_is_left_whole_and_accepted():
    from astropy.io import fits

    image = fits.getdata(DATA / "isaac_cutout.fits").astype(np.float32)
    assert crop_file.apply_crop_pipeline(image, CropSpec(quality_crop=True))[2] is None
    metrics = evaluate_quality_gate_metrics(image)
    assert metrics["accepted"]
    assert metrics["objects"] >= 50
    rng = np.random.default_rng(1)
    own = noise_module.measure_noise(image)[0]
    more = noise_module.measure_noise(image + rng.normal(0, 2 * own, image.shape).astype(np.float32))[0]
    assert more == pytest.approx(math.sqrt(5) * own, rel=0.05)
