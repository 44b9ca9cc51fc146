"""Tests of ``resample.interpolation``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resample_case import similarity, some_field, warp

from zemosaic_phase3.methods import SMOOTHING
from zemosaic_phase3.registration.distortion import displacement, field_shape, make_field

NAMES = ("lanczos3", "bicubic", "bilinear", "smooth", "nearest")


def star_field(height=90, width=120, fwhm=3.0, seed=3, n=12, channels=1):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width), 1000.0)
    sigma = fwhm / 2.3548
    for cx, cy, flux in zip(
        rng.uniform(20, width - 20, n), rng.uniform(20, height - 20, n), rng.uniform(1e3, 2e5, n), strict=True
    ):
        image += flux / (2 * np.pi * sigma**2) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    image = image if channels == 1 else np.stack([image, 1.5 * image, 0.7 * image], axis=2)
    return image.astype(np.float32)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMOOTHING])
@pytest.mark.parametrize("channels", [1, 3])
def test_identity_and_whole_shifts_are_exact(name, channels):
    image = star_field(channels=channels)
    np.testing.assert_array_equal(warp(image, np.eye(3), name), image)
    shifted = warp(image, similarity(dx=4.0, dy=-3.0), name)
    np.testing.assert_array_equal(shifted[3:, :-4], image[:-3, 4:])
    assert np.isnan(shifted[:3]).all()
    assert np.isnan(shifted[:, -4:]).all()


@pytest.mark.parametrize("name", NAMES)
def test_flat_field_stays_flat(name):
    flat = np.full((40, 50), 1234.5, np.float32)
    out = warp(flat, similarity(3.7, 1.3, 0.6), name)
    inside = np.isfinite(out)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(out[inside], 1234.5, rtol=1e-6)  # weights rounded to float32


@pytest.mark.parametrize(
    ("name", "tolerance"), [("lanczos3", 1e-3), ("bicubic", 1e-3), ("bilinear", 1e-3), ("smooth", 1e-3)]
)
def test_flux_is_conserved(name, tolerance):
    image = star_field(n=1, seed=5) - np.float32(1000.0)
    y, x = np.unravel_index(image.argmax(), image.shape)
    total = image[y - 12 : y + 13, x - 12 : x + 13].sum(dtype=float)
    worst = 0.0
    for angle, dx, dy in ((0.0, 0.5, 0.5), (0.0, 0.25, 0.75), (2.0, 0.3, 0.1), (30.0, 5.2, -4.4)):
        out = warp(image, similarity(angle, dx, dy), name)
        worst = max(worst, abs(np.nansum(out, dtype=float) / total - 1.0)) if angle < 5 else worst
    assert worst < tolerance


@pytest.mark.parametrize(
    ("name", "sigma", "beside", "two_away"),
    [
        ("lanczos3", 0.89, 0.12, -0.07),
        ("bicubic", 0.82, 0.16, -0.04),
        ("bilinear", 0.67, 0.25, 0.0),
        ("smooth", 0.59, 0.35, 0.0),
        ("nearest", 1, 0, 0),
    ],
)
def test_noise_is_correlated_as_documented(name, sigma, beside, two_away):
    noise = np.random.default_rng(0).normal(1000, 30, (300, 300)).astype(np.float32)
    out = warp(noise, similarity(4.0, 3.3, 2.1), name)[40:-40, 40:-40] - 1000.0
    variance = np.mean(out**2)
    assert np.sqrt(variance) / 30.0 == pytest.approx(sigma, abs=0.015)
    for step, expected in ((1, beside), (2, two_away)):
        found = 0.5 * (np.mean(out[:, step:] * out[:, :-step]) + np.mean(out[step:] * out[:-step])) / variance
        assert found == pytest.approx(expected, abs=0.02)


def test_lanczos_is_sharper_than_bilinear():
    image = star_field(n=6, seed=8)
    half = similarity(dx=0.5, dy=0.5)
    back = np.linalg.inv(half)
    error = {
        n: np.nanstd(
            warp(np.nan_to_num(warp(image, half, n), nan=1000.0), back, n)[10:-10, 10:-10] - image[10:-10, 10:-10]
        )
        for n in ("lanczos3", "bilinear")
    }
    assert error["lanczos3"] < 0.3 * error["bilinear"]


def test_saturated_plateau_does_not_ring():
    image = np.full((60, 60), 1000.0, np.float32)
    y, x = np.mgrid[:60, :60]
    image[(y - 30) ** 2 + (x - 30) ** 2 < 40] = 65535.0
    out = warp(image, similarity(11.0, 8.3, -4.4), "lanczos3")
    assert np.nanmax(out) <= 65535.0
    assert np.nanmin(out) >= 1000.0
    free = warp(image, similarity(11.0, 8.3, -4.4), "lanczos3", clamp=False)
    assert np.nanmin(free) < 900.0  # without the clamp it would


def test_clamp_keeps_the_peak_of_a_star():
    image = star_field(n=1, seed=5)
    half = similarity(dx=0.5, dy=0.5)
    free, held = warp(image, half, clamp=False), warp(image, half, clamp=True)
    y, x = np.unravel_index(np.nanargmax(free), free.shape)
    assert held[y, x] == free[y, x]


def test_normalisation_is_applied_per_channel():
    image = star_field(channels=3)
    scale, offset = np.array([1.1, 0.9, 2.0]), np.array([-3.0, 5.0, 0.25])
    out = warp(image, np.eye(3), scale=scale, offset=offset)
    np.testing.assert_array_equal(out, (image * scale + offset).astype(np.float32))


def test_footprint_is_the_hull_of_pixel_centres():
    image = np.ones((20, 30), np.float32)
    out = warp(image, similarity(dx=0.25, dy=0.0), "lanczos3")
    assert np.isfinite(out[:, :-1]).all()
    assert np.isnan(out[:, -1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_hole_spoils_only_the_pixels_beside_it(name):
    image = star_field()
    image[40, 60] = np.nan
    out = warp(image, similarity(dx=0.5, dy=0.5), name)
    bad = np.argwhere(np.isnan(out[5:-5, 5:-5])) + 5
    assert 1 <= len(bad) <= 4
    assert (np.abs(bad - [40, 60]).max(axis=1) <= 1).all()
    clean = warp(np.nan_to_num(image, nan=1000.0), similarity(dx=0.5, dy=0.5), name)
    far = np.ones(out.shape, bool)
    far[36:45, 56:65] = False
    np.testing.assert_array_equal(out[far], clean[far])


def test_an_unrelated_place_gives_nothing():
    assert np.isnan(warp(np.ones((20, 30), np.float32), similarity(dx=500.0))).all()


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-180, 180),
    dx=st.floats(-40, 40),
    dy=st.floats(-40, 40),
    cut=st.integers(1, 89),
    name=st.sampled_from(NAMES),
    channels=st.sampled_from([1, 3]),
)
def test_any_slab_equals_the_whole(angle, dx, dy, cut, name, channels):
    image = star_field(channels=channels)
    image[50, 30] = np.nan
    centre = np.array([[1, 0, 59.5], [0, 1, 44.5], [0, 0, 1.0]])
    matrix = centre @ similarity(angle, dx, dy) @ np.linalg.inv(centre)
    whole = warp(image, matrix, name)
    parts = np.concatenate([warp(image, matrix, name, (0, cut)), warp(image, matrix, name, (cut, 90))])
    np.testing.assert_array_equal(parts, whole)


def test_homography_slabs_equal_the_whole():
    image = star_field()
    matrix = np.array([[1.0, 0.01, 2.0], [-0.02, 1.0, 3.0], [1e-4, -2e-4, 1.0]])
    whole = warp(image, matrix)
    parts = [warp(image, matrix, rows=(y, min(y + 7, 90))) for y in range(0, 90, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert np.isfinite(whole).mean() > 0.7


@pytest.mark.parametrize("tilt", [0.0, 1e-4])
def test_a_distortion_field_is_added_to_the_mapped_position(tilt):
    """On ramps the interpolated value is the position itself."""
    height, width = 150, 333  # more than one segment of a row, and several cells
    y, x = np.mgrid[:height, :width].astype(np.float32)
    matrix = similarity(3.0, 4.0, -2.5)
    matrix[2, :2] = tilt, -tilt / 2
    field = some_field(height, width)
    assert 1.0 < np.abs(field).max() < 20.0
    reference = np.column_stack([x.ravel(), y.ravel()]).astype(np.float64)
    homogeneous = np.column_stack([reference, np.ones(len(reference))]) @ matrix.T
    expected = homogeneous[:, :2] / homogeneous[:, 2:] + displacement(field, reference)
    for axis, ramp in ((0, x), (1, y)):
        found = warp(ramp, matrix, "bilinear", field=field).ravel()
        inside = np.isfinite(found)
        assert inside.mean() > 0.7
        np.testing.assert_allclose(found[inside], expected[inside, axis], atol=0.5 / 1024 + 1e-4)


def test_a_field_of_zeros_changes_no_bit():
    image = star_field(channels=3)
    zeros = np.zeros(field_shape(90, 120), np.float32)
    matrix = similarity(11.0, 2.3, -1.7)
    np.testing.assert_array_equal(warp(image, matrix, field=zeros), warp(image, matrix))
    assert make_field(zeros).size == 0


@settings(max_examples=25, deadline=None)
@given(angle=st.floats(-180, 180), strength=st.floats(0.1, 8.0), cut=st.integers(1, 149), seed=st.integers(0, 99))
def test_any_slab_of_a_distorted_frame_equals_the_whole(angle, strength, cut, seed):
    image = np.random.default_rng(seed).normal(1000.0, 30.0, (150, 140)).astype(np.float32)
    centre = np.array([[1, 0, 69.5], [0, 1, 74.5], [0, 0, 1.0]])
    matrix = centre @ similarity(angle, 3.0, -4.0) @ np.linalg.inv(centre)
    field = some_field(150, 140, strength, seed)
    whole = warp(image, matrix, field=field)
    parts = [warp(image, matrix, rows=rows, field=field) for rows in ((0, cut), (cut, 150))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_radial_weight_follows_the_frame():
    from zemosaic_phase3.compat.radial_map import make_radial_weight_map

    image = np.ones((41, 61), np.float32)
    _, weights = warp(image, np.eye(3), radial=(0.8, 2.0, 0.05))
    np.testing.assert_allclose(weights, make_radial_weight_map(41, 61, 0.8, 2.0, 0.05), rtol=2e-6)
    out, moved = warp(image, similarity(dx=10.0, dy=5.0), radial=(0.8, 2.0, 0.05))
    np.testing.assert_allclose(moved[:-5, :-10], weights[5:, 10:], rtol=1e-6)
    assert (moved[np.isnan(out)] == 0.0).all()
