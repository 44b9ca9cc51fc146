"""Demosaicing and interpolation: exact where exactness is possible, flux, clamping, footprints, slabs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.registration.distortion import displacement, field_shape, make_field, nodes, reach
from zemosaic_phase3.resample import demosaic as demosaic_file
from zemosaic_phase3.resample import footprint, interpolation
from zemosaic_phase3.resample import warp as warp_file

NAMES = ("lanczos3", "bicubic", "bilinear", "nearest")
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


# ------------------------------------------------------------------ interpolation


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize(("name", "tolerance"), [("lanczos3", 1e-3), ("bicubic", 1e-3), ("bilinear", 1e-3)])
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


# ------------------------------------------------------------------ footprint and holes


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


# ------------------------------------------------------------------ distortion


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


# ------------------------------------------------------------------ radial weights


def test_radial_weight_follows_the_frame():
    from zemosaic_phase3.compat.radial_map import make_radial_weight_map

    image = np.ones((41, 61), np.float32)
    _, weights = warp(image, np.eye(3), radial=(0.8, 2.0, 0.05))
    np.testing.assert_allclose(weights, make_radial_weight_map(41, 61, 0.8, 2.0, 0.05), rtol=2e-6)
    out, moved = warp(image, similarity(dx=10.0, dy=5.0), radial=(0.8, 2.0, 0.05))
    np.testing.assert_allclose(moved[:-5, :-10], weights[5:, 10:], rtol=1e-6)
    assert (moved[np.isnan(out)] == 0.0).all()


# ------------------------------------------------------------------ demosaicing


def mosaic_of(colour, pattern):
    raw = np.empty(colour.shape[:2], np.float32)
    for k, letter in enumerate(pattern):
        raw[k // 2 :: 2, k % 2 :: 2] = colour[k // 2 :: 2, k % 2 :: 2, "RGB".index(letter)]
    return raw


def demosaic(raw, pattern, rows=None, columns=None):
    height, width = raw.shape
    y0, y1 = rows or (0, height)
    top, bottom = max(y0 - demosaic_file.CFA_MARGIN, 0), min(y1 + demosaic_file.CFA_MARGIN, height)
    out = np.zeros((y1 - y0) * width * 3 + interpolation.PAD, np.float32)
    demosaic_file.demosaic_rows(
        np.ascontiguousarray(raw[top:bottom]),
        top,
        height,
        width,
        y0,
        y1,
        *demosaic_file.red_position(pattern),
        np.tile([0, width], (y1 - y0, 1)) if columns is None else columns,
        out,
    )
    return out[: (y1 - y0) * width * 3].reshape(y1 - y0, width, 3)


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_demosaic_keeps_samples_and_linear_ramps(pattern):
    y, x = np.mgrid[:30, :41]
    colour = np.stack([1000 + 4 * x + 2 * y, 2000 + 4 * x + 2 * y, 500 + 4 * x + 2 * y], axis=2).astype(np.float32)
    out = demosaic(mosaic_of(colour, pattern), pattern)
    np.testing.assert_allclose(out[2:-2, 2:-2], colour[2:-2, 2:-2], rtol=1e-6)
    for k, letter in enumerate(pattern):
        c = "RGB".index(letter)
        np.testing.assert_array_equal(out[k // 2 :: 2, k % 2 :: 2, c], colour[k // 2 :: 2, k % 2 :: 2, c])


def test_demosaic_is_the_published_filter():
    """Impulse responses: the coefficients of Malvar, He and Cutler, in eighths, for one red sample."""
    raw = np.zeros((12, 12), np.float32)
    raw[6, 6] = 8.0  # RGGB: red
    out = demosaic(raw, "RGGB")
    np.testing.assert_array_equal(out[6, 4:9, 1], [-1, 0, 4, 0, -1])
    np.testing.assert_array_equal(out[5:8, 6, 1], [0, 4, 0])
    np.testing.assert_array_equal(out[6, 4:9, 0], [0, 4, 8, 4, 0])
    np.testing.assert_array_equal(out[5, 4:9, 0], [0, 2, 4, 2, 0])
    np.testing.assert_array_equal(out[6, 4:9, 2], [-1.5, 0, 6, 0, -1.5])
    np.testing.assert_array_equal(out[4:9, 6, 0], [0, 4, 8, 4, 0])


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG"])
def test_demosaic_keeps_the_flux_of_every_colour(pattern):
    """Over all places of a star on the 2x2 cell, each colour's flux is the true one."""
    y, x = np.mgrid[:40, :40]
    total = np.zeros(3)
    for sy in (0.0, 1.0):
        for sx in (0.0, 1.0):
            star = 1e4 * np.exp(-((x - 20 - sx) ** 2 + (y - 20 - sy) ** 2) / 3.2)
            total += demosaic(mosaic_of(np.stack([star, 2 * star, 0.5 * star], axis=2), pattern), pattern).sum(
                axis=(0, 1), dtype=float
            )
    np.testing.assert_allclose(total / (4 * star.sum()), [1.0, 2.0, 0.5], rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(y0=st.integers(0, 20), rows=st.integers(1, 21), pattern=st.sampled_from(["RGGB", "GRBG", "GBRG", "BGGR"]))
def test_demosaiced_rows_equal_the_whole(y0, rows, pattern):
    raw = np.random.default_rng(1).normal(1000, 100, (21, 17)).astype(np.float32)
    y1 = min(y0 + rows, 21)
    np.testing.assert_array_equal(demosaic(raw, pattern, (y0, y1)), demosaic(raw, pattern)[y0:y1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), pattern=st.sampled_from(["RGGB", "GRBG", "GBRG", "BGGR"]))
def test_demosaiced_columns_equal_the_whole(seed, pattern):
    rng = np.random.default_rng(seed)
    raw = rng.normal(1000, 100, (9, int(rng.integers(3, 60)))).astype(np.float32)
    columns = np.sort(rng.integers(0, raw.shape[1] + 1, (9, 2)), axis=1)
    wanted = (np.arange(raw.shape[1]) >= columns[:, :1]) & (np.arange(raw.shape[1]) < columns[:, 1:])
    np.testing.assert_array_equal(demosaic(raw, pattern, columns=columns)[wanted], demosaic(raw, pattern)[wanted])


@settings(max_examples=60, deadline=None)
@given(
    angle=st.one_of(st.floats(-180, 180), st.sampled_from([0.0, 90.0, 180.0, -90.0])),
    dx=st.floats(-60, 60),
    dy=st.floats(-60, 60),
    y0=st.integers(0, 88),
    rows=st.integers(1, 60),
    tilt=st.sampled_from([0.0, 1e-4, 3e-4]),
    strength=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_columns_that_a_slab_does_not_need_may_hold_anything(angle, dx, dy, y0, rows, tilt, strength, seed):
    image = np.random.default_rng(seed).normal(1000.0, 30.0, (90, 120)).astype(np.float32)
    centre = np.array([[1, 0, 59.5], [0, 1, 44.5], [0, 0, 1.0]])
    matrix = centre @ similarity(angle, dx, dy) @ np.linalg.inv(centre)
    matrix[2, :2] = tilt, -tilt / 2
    field = some_field(90, 120, strength, seed) if strength else None
    y1 = min(y0 + rows, 90)
    whole = warp(image, matrix, rows=(y0, y1), field=field)
    first, last = footprint.source_rows(matrix, y0, y1, 120, 90, 0.0 if field is None else reach(field))
    if last <= first:
        return
    far = 0.0 if field is None else float(np.abs(field).max())
    columns = footprint.source_columns(matrix, y0, y1, 120, first, last, 120, far)
    assert columns.shape == (last - first, 2)
    spoilt = image.copy()
    x = np.arange(120)
    spoilt[first:last][(x < columns[:, :1]) | (x >= columns[:, 1:])] = 1e9
    np.testing.assert_array_equal(warp(spoilt, matrix, rows=(y0, y1), field=field), whole)


def test_a_thin_slab_of_a_turned_frame_needs_little_more_than_its_area():
    matrix = similarity(3.0, 20.0, -30.0)
    first, last = footprint.source_rows(matrix, 500, 508, 1920, 1080)
    columns = footprint.source_columns(matrix, 500, 508, 1920, first, last, 1920)
    pixels = np.diff(columns, axis=1).sum() / 1920
    assert 8 < pixels < 8 + 2 * (interpolation.MARGIN + 3) < 0.25 * (last - first)


# ------------------------------------------------------------------ compiled and uncompiled


EVERYTHING = """
import sys; sys.path[:0] = ["tests"]
import numpy as np, test_resample as t
rng = np.random.default_rng(0)
for h, w in ((9, 8), (23, 31)):
    raw = rng.normal(1000.0, 300.0, (h, w)).astype(np.float32)
    for pattern in ("RGGB", "GRBG"):
        print(t.demosaic(raw, pattern).tobytes().hex())
    colour = t.demosaic(raw, "BGGR").copy()
    colour[4, 5] = np.nan
    for image in (raw, colour):
        for name in t.NAMES:
            for matrix in (t.similarity(11.0, 2.3, -1.7), np.array([[1, 0.01, 0.3], [0, 1, 0.2], [1e-3, 1e-3, 1.0]])):
                out, weights = t.warp(image, matrix, name, radial=(0.8, 2.0, 0.05))
                print(out.tobytes().hex(), weights.tobytes().hex())
    out, weights = t.warp(colour, t.similarity(2.0, 1.3, -0.7), field=t.some_field(h, w), radial=(0.8, 2.0, 0.05))
    print(out.tobytes().hex(), weights.tobytes().hex())
"""


def outputs(**environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVERYTHING], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_compiled_kernels_equal_their_uncompiled_text_and_stay_within_bounds():
    compiled = outputs(NUMBA_DISABLE_JIT="0")
    assert compiled.count("\n") == 38
    assert outputs(NUMBA_DISABLE_JIT="1") == compiled
    assert outputs(NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=os.devnull) == compiled
