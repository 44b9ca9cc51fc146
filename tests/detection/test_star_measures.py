"""Stars of mosaics and colour frames, their widths and fluxes; kernels compiled and not (``detection.star_finder``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zemosaic_phase3.detection.star_finder import StarList, find_stars, star_light
from zemosaic_phase3.simulate.paint import moffat_stamps
from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
SIDE = 480


def field(fwhm, *, colours=(1.0, 1.0, 1.0), seed=0, noise=5.0, flux=150_000.0, sky=(900.0, 1200.0, 800.0)):
    """Isolated Moffat stars in colour, (S, S, 3) float32 ADU, and their positions (n, 2)."""
    rng = np.random.default_rng(seed)
    grid = np.arange(40, SIDE - 36, 40)
    position = np.array([(x, y) for x in grid for y in grid]) + rng.uniform(-1.0, 1.0, (grid.size**2, 2))
    image = np.zeros((SIDE, SIDE), np.float32)
    pixel = np.rint(position).astype(int)
    for (x, y), stamp in zip(pixel, moffat_stamps(position - pixel, 16, fwhm), strict=True):
        image[y - 16 : y + 17, x - 16 : x + 17] += flux * stamp
    frame = image[..., None] * np.array(colours) + np.array(sky) + rng.normal(0.0, noise, (SIDE, SIDE, 3))
    return frame.astype(np.float32), position


def mosaic(frame, pattern):
    """Bayer mosaic (H, W) of a colour frame."""
    raw = np.empty(frame.shape[:2], np.float32)
    for k, colour in enumerate(pattern):
        raw[k // 2 :: 2, k % 2 :: 2] = frame[k // 2 :: 2, k % 2 :: 2, "RGB".index(colour)]
    return raw


def offsets(stars, position):
    distance = np.hypot(stars.x[:, None] - position[:, 0], stars.y[:, None] - position[:, 1])
    return distance.min(axis=1)


@pytest.mark.parametrize("pattern", [None, "GRBG", "RGGB"])
@pytest.mark.parametrize("fwhm", [2.5, 3.0, 4.5])
def test_mosaics_measure_as_well_as_colour_frames(pattern, fwhm):
    frame, position = field(fwhm)
    stars = find_stars(mosaic(frame, pattern) if pattern else frame, SPEC, pattern)
    assert len(stars) == len(position) == stars.n_found
    error = offsets(stars, position)
    assert np.sqrt(np.mean(error**2)) < (0.01 if fwhm > 2.5 or pattern is None else 0.025)
    # With the pixel's own width, 2.355 / sqrt(12) px; what is left is what wings add to a Gaussian's width.
    assert np.median(stars.fwhm) / np.hypot(fwhm, 0.68) == pytest.approx(1.075, abs=0.035)
    assert np.median(stars.eccentricity) < 0.3


def test_the_colour_of_a_star_moves_it_nowhere_in_a_mosaic():
    for colours in ((3.0, 1.0, 0.3), (0.3, 1.0, 3.0)):
        frame, position = field(3.0, colours=colours)
        stars = find_stars(mosaic(frame, "GRBG"), SPEC, "GRBG")
        assert np.sqrt(np.mean(offsets(stars, position) ** 2)) < 0.01


@pytest.mark.parametrize("pattern", [None, "GRBG"])
def test_fluxes_follow_transparency_and_colour(pattern):
    def light(colours, seed):
        frame, position = field(3.0, colours=colours, seed=seed)
        stars = find_stars(mosaic(frame, pattern) if pattern else frame, SPEC, pattern)
        assert len(stars) == len(position)
        return np.median(stars.photometry[0], axis=0)

    full, dim = light((1.0, 1.0, 1.0), 1), light((0.8, 0.5, 0.25), 2)
    np.testing.assert_allclose(dim / full, [0.8, 0.5, 0.25], rtol=0.006)


def test_fluxes_hardly_follow_the_seeing():
    found = []
    for fwhm in (2.8, 3.2, 3.6):
        frame, _ = field(fwhm)
        found.append(np.median(find_stars(mosaic(frame, "GRBG"), SPEC, "GRBG").photometry[0], axis=0))
    assert np.ptp(found, axis=0).max() / np.mean(found) < 0.02


def test_stated_flux_errors_are_those_seen():
    frame, _ = field(4.0, noise=60.0, flux=40_000.0)  # wide: of a narrow star, a mosaic samples now more, now less
    light, error = find_stars(mosaic(frame, "RGGB"), SPEC, "RGGB").photometry
    seen = 1.4826 * np.median(np.abs(light - np.median(light, axis=0)), axis=0)
    np.testing.assert_allclose(60.0 * np.median(error, axis=0) / seen, 1.0, atol=0.35)


def test_stars_that_may_be_clipped_have_no_flux():
    frame, position = field(3.0, flux=60_000.0)
    bright, _ = field(3.0, flux=2_000_000.0)
    frame[:, : SIDE // 2] = bright[:, : SIDE // 2]
    stars = find_stars(np.minimum(frame, 60_000.0), SPEC)
    left = stars.x < SIDE // 2 - 10
    assert len(stars) == len(position)
    assert np.isnan(stars.photometry[0][left]).all()
    assert np.isfinite(stars.photometry[0][stars.x > SIDE // 2 + 10]).all()


def test_all_that_are_found_are_counted_not_only_those_listed():
    frame, position = field(3.0)
    stars = find_stars(frame, replace(SPEC, max_stars=20))
    assert (len(stars), stars.n_found) == (20, len(position))


def test_a_background_that_the_mesh_cannot_follow_makes_hardly_a_star():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = rng.normal(1000.0, 20.0, (SIDE, SIDE)) + 4000.0 * np.exp(-(((y - 0.3 * x - 150) / 25.0) ** 2))
    assert len(find_stars(image.astype(np.float32), SPEC)) <= 5  # where it is steepest; noise above it makes hundreds


def test_columns_of_a_list_have_one_length():
    ones = np.ones(3)
    with pytest.raises(ValueError, match="column y has shape"):
        StarList(ones, ones[:2], ones, ones, ones)
    with pytest.raises(ValueError, match="light has shape"):
        StarList(ones, ones, ones, ones, ones, light=np.ones((2, 3)))


CODE = """
import json, sys
sys.path[:0] = ["tests/support", "tests/detection", "."]
from test_star_measures import SPEC, field, find_stars, mosaic
frame, _ = field(3.0)
found = [find_stars(frame[:160, :160], SPEC), find_stars(mosaic(frame, "GRBG")[:160, :160], SPEC, "GRBG")]
print(json.dumps([[*map(float, s.x), *map(float, s.fwhm), *map(float, s.photometry[0].ravel())] for s in found]))
"""


def test_compiled_kernels_equal_their_text():
    """Compiled, and as plain Python with every index checked by numpy."""
    root = Path(__file__).parents[2]

    def run(**more):
        environment = {**os.environ, **more}
        text = subprocess.check_output([sys.executable, "-c", CODE], cwd=root, env=environment, text=True)
        return json.loads(text)

    for compiled, plain in zip(run(), run(NUMBA_DISABLE_JIT="1"), strict=True):
        assert len(compiled) > 30
        # A centroid stops when it moves by less than 1e-4 px; the last bits of exp() decide when that is.
        np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def stars_of_exponent(fwhm, exponent, seed):
    """Noiseless Moffat stars of one flux on a grey sky, averaged over their pixels, (S, S, 1); and x, y."""
    rng = np.random.default_rng(seed)
    grid = np.arange(40, SIDE - 36, 50)
    x, y = (np.array([(x, y) for x in grid for y in grid]) + rng.uniform(-1.0, 1.0, (grid.size**2, 2))).T
    alpha, half = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / exponent) - 1.0)), 20
    frame = np.full((SIDE, SIDE), 1000.0)
    fine = (np.arange(5) - 2.0) / 5.0
    steps = (np.arange(-half, half + 1)[:, None] + fine).ravel()
    for a, b in zip(x, y, strict=True):
        i, j = round(a), round(b)
        square = (steps + j - b)[:, None] ** 2 + (steps + i - a) ** 2
        light = (exponent - 1.0) / (np.pi * alpha**2) * (1.0 + square / alpha**2) ** -exponent
        side = 2 * half + 1
        frame[j - half : j + half + 1, i - half : i + half + 1] += 1e5 * light.reshape(side, 5, side, 5).mean((1, 3))
    return frame.astype(np.float32)[..., None], x, y


@pytest.mark.parametrize("cfa", [None, "GRBG"])
@pytest.mark.parametrize("exponent", [2.5, 3.0, 4.765])
def test_fluxes_hardly_depend_on_the_seeing(exponent, cfa):
    """Exponents from wide wings to those of the air alone (4.765, Kolmogorov)."""
    flux = []
    for fwhm in (2.7, 3.3):
        frame, x, y = stars_of_exponent(fwhm, exponent, seed=round(10 * fwhm))
        light, _, _ = star_light(frame, cfa, x, y, 1.05 * fwhm / 2.3548)
        flux.append(np.median(np.log(light / 1e5), axis=0))
        # A mosaic shows red and blue at every other pixel.
        assert np.std(np.log(light), axis=0).max() < (0.01 if cfa is None else 0.012), "nor on where it lies"
        assert np.abs(flux[-1]).max() < 0.13
    change = (flux[1] - flux[0]) / np.log(3.3 / 2.7)
    assert np.abs(change).max() < 0.03
    assert np.ptp(flux[1] - flux[0]) < 0.004, "nor does the colour"
