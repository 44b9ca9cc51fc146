"""Tests of ``detection.star_finder``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from register_case import SHAPE, SIGMA_OF_FWHM, SPEC, paint, rms_error, similarity

from zemosaic_phase3.detection.star_finder import StarList, detect_stars
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points


def nearest(stars, x, y):
    """Distance to, and index of, the true star nearest to each detection."""
    distance = np.hypot(stars.x[:, None] - np.asarray(x), stars.y[:, None] - np.asarray(y))
    return distance.min(axis=1), distance.argmin(axis=1)


def grid_stars(n=60, shape=SHAPE, seed=3):
    """Isolated star positions with random sub-pixel phase."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(40, shape[1] - 40, 60), np.arange(40, shape[0] - 40, 60))
    pick = rng.permutation(columns.size)[:n]
    return columns.ravel()[pick] + rng.random(len(pick)), rows.ravel()[pick] + rng.random(len(pick))


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 4.0])
def test_detection_measures_position_width_and_flux(fwhm):
    x, y = grid_stars()
    peak = np.geomspace(300, 50_000, len(x))
    stars = detect_stars(paint(SHAPE, x, y, peak, fwhm), SPEC)
    assert len(stars) == len(x)
    distance, index = nearest(stars, x, y)
    assert distance.max() < 0.25 and np.sqrt(np.mean(distance**2)) < 0.08
    assert abs(np.median(stars.fwhm) / fwhm - 1) < 0.02
    bright = peak[index] > 1000
    assert np.abs(stars.fwhm[bright] / fwhm - 1).max() < 0.1
    ratio = stars.flux[bright] / (2 * np.pi * (fwhm * SIGMA_OF_FWHM) ** 2 * peak[index][bright])
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.05
    assert 1.0 < np.median(ratio) < 1.14, "these stars are Gaussian, and the profile that is fitted has wings"
    assert np.all(np.diff(stars.flux) <= 0)
    assert np.median(stars.eccentricity[bright]) < 0.25
    # The stated errors are those seen (faint stars, where the floor does not rule).
    faint = peak[index] < 3000
    assert 0.5 < np.median(distance[faint] / stars.error[faint]) / 1.177 < 1.3


def test_moffat_stars_are_centred_without_bias():
    x, y = grid_stars(seed=8)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(0).normal(1000, 30, SHAPE)
    alpha = 3.0 / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    for a, b in zip(x, y, strict=True):
        window = np.s_[int(b) - 30 : int(b) + 31, int(a) - 30 : int(a) + 31]
        squared = (columns[window] - a) ** 2 + (rows[window] - b) ** 2
        image[window] += 20_000 * (1 + squared / alpha**2) ** -3.0
    stars = detect_stars(image.astype(np.float32), SPEC)
    distance, _ = nearest(stars, x, y)
    assert len(stars) == len(x) and distance.max() < 0.02
    assert abs(np.median(stars.fwhm) / 3.0 - 1) < 0.15


def test_elongated_stars_are_measured_as_such():
    x, y = grid_stars(30)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(0).normal(1000, 30, SHAPE)
    for a, b in zip(x, y, strict=True):
        image += 5000 * np.exp(-0.5 * (((columns - a) / 2.4) ** 2 + ((rows - b) / 1.2) ** 2))
    stars = detect_stars(image.astype(np.float32), SPEC)
    assert len(stars) == 30
    assert abs(np.median(stars.eccentricity) - np.sqrt(1 - 0.25)) < 0.03


def test_binned_coordinates_are_mapped_to_full_resolution():
    x, y = grid_stars(20)
    image = paint(SHAPE, x, y, 5000.0)
    binned, full = detect_stars(image, SPEC, scale=2.0, offset=0.5), detect_stars(image, SPEC)
    np.testing.assert_allclose(binned.xy, full.xy * 2 + 0.5)
    np.testing.assert_allclose(binned.fwhm, 2 * full.fwhm)
    np.testing.assert_allclose(binned.error, 2 * full.error)
    np.testing.assert_array_equal(binned.flux, full.flux)


def test_max_stars_keeps_the_brightest():
    x, y = grid_stars(80)
    peak = np.geomspace(500, 40_000, 80)
    stars = detect_stars(paint(SHAPE, x, y, peak), replace(SPEC, max_stars=30))
    _, index = nearest(stars, x, y)
    assert sorted(index) == list(range(50, 80))


def _correlated_noise():
    image = np.random.default_rng(2).normal(0, 30, SHAPE)
    for axis in (0, 1):
        image = image + 0.5 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return image + 1000


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE),
        np.full(SHAPE, 1234.5),
        np.full(SHAPE, np.nan),
        np.random.default_rng(1).normal(1000, 30, SHAPE),
        np.random.default_rng(1).poisson(3.0, SHAPE),
        _correlated_noise(),
        np.add.outer(np.linspace(0, 5000, SHAPE[0]), np.linspace(0, 5000, SHAPE[1])),
        np.zeros((2, 2)),
        np.random.default_rng(1).normal(1000, 30, (9, 11)),
        np.zeros((1, 500)),
    ],
    ids=["zero", "constant", "nan", "noise", "counts", "correlated", "ramp", "2x2", "9x11", "row"],
)
def test_images_without_stars_give_an_empty_list(image):
    stars = detect_stars(image.astype(np.float32), SPEC)
    assert len(stars) == 0
    verdict = register_stars(stars, stars, image.shape, SPEC)
    assert not verdict.ok and "0 stars in the reference" in verdict.reason


def test_a_colour_image_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 5, 3\)"):
        detect_stars(np.zeros((4, 5, 3), np.float32), SPEC)


def test_invalid_pixels_make_no_stars_and_hide_none():
    x, y = grid_stars(60)
    image = paint(SHAPE, x, y, 5000.0)
    image[:, :200] = np.nan
    image[100, 300:320] = np.inf
    stars = detect_stars(image, SPEC)
    distance, index = nearest(stars, x, y)
    assert distance.max() < 0.2
    clear = np.flatnonzero((x > 210) & (np.hypot(y - 100, x - np.clip(x, 300, 319)) > 8))
    assert set(clear) <= set(index)
    assert np.all(stars.x > 200)


def test_hot_pixels_trails_and_edges_are_not_stars():
    x, y = grid_stars(60)
    image = paint(SHAPE, x, y, 5000.0)
    rng = np.random.default_rng(5)
    hot_y, hot_x = rng.integers(5, SHAPE[0] - 5, 300), rng.integers(5, SHAPE[1] - 5, 300)
    apart = np.min(np.hypot(hot_x[:, None] - x, hot_y[:, None] - y), axis=1) > 12
    image[hot_y[apart], hot_x[apart]] += rng.uniform(500, 50_000, np.count_nonzero(apart)).astype(np.float32)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image += (2000 * np.exp(-0.5 * ((rows - 0.4 * columns - 80.3) / 1.3) ** 2)).astype(np.float32)
    edge = paint(SHAPE, [1.0, 500.0, 958.6], [200.0, 538.5, 300.0], 20_000.0, noise=0.0, sky=0.0)
    stars = detect_stars(image + edge, SPEC)
    distance, index = nearest(stars, x, y)
    off_trail = np.abs(y - 0.4 * x - 80.3) > 15
    assert np.count_nonzero(distance > 1.0) <= 3
    assert len(set(np.flatnonzero(off_trail)) - set(index)) <= 1


def test_saturated_stars_stay_with_a_larger_error():
    x, y = grid_stars(40)
    peak = np.where(np.arange(40) < 8, 400_000.0, 5000.0)
    stars = detect_stars(np.minimum(paint(SHAPE, x, y, peak), 60_000), SPEC)
    distance, index = nearest(stars, x, y)
    saturated = index < 8
    assert np.count_nonzero(saturated) == 8 and np.all(stars.error[saturated] >= 0.15)
    assert distance[saturated].max() < 0.3
    assert np.all(stars.error[~saturated] < 0.1)


def test_a_crowded_field_does_not_raise_and_is_repeatable():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1919, 5000), rng.uniform(0, 1079, 5000)
    image = paint((1080, 1920), x, y, np.exp(rng.uniform(np.log(100), np.log(50_000), 5000)))
    untouched = image.copy()
    first = detect_stars(image, replace(SPEC, max_stars=5000))
    assert 3000 < len(first) <= 5000
    np.testing.assert_array_equal(image, untouched)
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(lambda _: detect_stars(image, replace(SPEC, max_stars=5000)), range(2)):
            np.testing.assert_array_equal(again.xy, first.xy)


def test_bright_stars_weigh_more():
    truth = similarity(1.0, 2, (10, 5))
    rng = np.random.default_rng(3)
    sky = rng.random((100, 2)) * [SHAPE[1], SHAPE[0]]
    error = np.where(np.arange(100) < 20, 0.01, 0.4)
    frame_xy = transform_points(truth, sky) + error[:, None] * rng.standard_normal((100, 2))
    ones = np.ones(100)
    reference = StarList(*sky.T, 100.0 - np.arange(100), ones, ones, 0.01 * ones)
    frame = StarList(*frame_xy.T, 100.0 - np.arange(100), ones, ones, error)
    blind = replace(frame, error=ones)
    weighted, equal = (register_stars(reference, each, SHAPE, SPEC) for each in (frame, blind))
    assert weighted.ok and equal.ok
    assert rms_error(weighted.transform, truth, reference) < 0.5 * rms_error(equal.transform, truth, reference)


def flat_list(n, fwhm):
    ones = np.ones(n)
    return StarList(ones, ones, ones, fwhm * ones, ones)


def test_star_lists_have_equal_columns():
    with pytest.raises(ValueError, match="flux"):
        StarList(np.ones(3), np.ones(3), np.ones(2), np.ones(3), np.ones(3))
    stars = flat_list(3, 2.0)
    assert len(stars) == 3 and stars.xy.shape == (3, 2) and stars.sigma.shape == (3,)
