"""Tests of ``detection.mosaic_cells``: mosaics are known by their cells, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from cells_case import photons

from zemosaic_phase3.detection.mosaic_cells import judge_cells, measure_cells

SUBURBAN = (0.8, 1.0, 1.3)
SEEDS = (0, 1, 2)


def judged(frames):
    cells = [measure_cells(frame) for frame in frames]
    return judge_cells([each for each in cells if each is not None])


@pytest.mark.parametrize(
    ("pattern", "left"),
    [("RGGB", {"RGGB", "BGGR"}), ("BGGR", {"RGGB", "BGGR"}), ("GRBG", {"GRBG", "GBRG"}), ("GBRG", {"GRBG", "GBRG"})],
)
def test_a_mosaic_is_known_and_its_greens_are_found(pattern, left):
    verdict = judged(photons(seed, SUBURBAN, pattern) for seed in SEEDS)
    assert verdict.kind == "mosaic"
    assert set(verdict.patterns) == left
    assert verdict.contrast > 5


def test_a_narrow_band_lights_one_place():
    frames = [photons(seed, (1.0, 0.04, 0.02), "GRBG", sky=300.0) + 200.0 for seed in SEEDS]
    verdict = judged(frames)
    assert (verdict.kind, set(verdict.patterns)) == ("mosaic", {"GRBG", "GBRG"})


def test_a_mosaic_without_stars_is_known():
    assert judged(photons(seed, SUBURBAN, "RGGB", n=0) for seed in SEEDS).kind == "mosaic"


def test_no_mosaic_is_even():
    assert judged(photons(seed) for seed in SEEDS).kind == "even"


def test_a_gradient_is_no_mosaic():
    slope = np.mgrid[:256, :320].sum(axis=0) * 0.7
    assert judged(photons(seed) + slope for seed in SEEDS).kind == "even"


def test_a_binned_mosaic_is_even_though_its_stars_are_sharp():
    def binned(seed):
        shift = tuple(np.random.default_rng(seed).uniform(-6, 6, 2))
        big = photons(seed, SUBURBAN, "GRBG", size=(512, 640), n=240, shift=shift)
        return big[::2, ::2] + big[::2, 1::2] + big[1::2, ::2] + big[1::2, 1::2]

    assert judged(binned(seed) for seed in SEEDS).kind == "even"


@pytest.mark.parametrize(
    ("rows", "columns", "corner"), [(10.0, 0.0, 0.0), (0.0, 15.0, 0.0), (10.0, 10.0, 0.0), (0.0, 0.0, 25.0)]
)
def test_how_a_grey_camera_is_read_is_no_mosaic(rows, columns, corner):
    def read(seed):
        image = photons(seed)
        image[::2] += rows
        image[:, ::2] += columns
        image[::2, ::2] += corner
        return image

    assert judged(read(seed) for seed in SEEDS).kind == "unclear"


def test_amplifiers_of_other_gain_are_no_mosaic():
    def read(seed):
        image = photons(seed)
        image[::2, ::2] *= 1.01
        return image

    assert judged(read(seed) for seed in SEEDS).kind == "unclear"


@pytest.mark.parametrize("colours", [(1.0, 1.0, 1.0), (0.998, 1.0, 1.002)])
def test_a_mosaic_under_a_white_sky_is_not_called_even(colours):
    assert judged(photons(seed, colours, "GRBG") for seed in SEEDS).kind != "even"


def test_a_bias_frame_says_nothing():
    rng = np.random.default_rng(1)
    assert judged(500.0 + rng.normal(0, 5, (256, 320)) for _ in SEEDS).kind == "unclear"


def test_frames_that_differ_say_nothing():
    frames = [photons(0, SUBURBAN, "GRBG"), photons(1, SUBURBAN, "GRBG"), photons(2)]
    assert judged(frames).kind == "unclear"


def test_what_cannot_be_measured_is_none():
    assert measure_cells(np.full((256, 320), 7.0)) is None
    assert measure_cells(np.full((256, 320), np.nan)) is None
    assert measure_cells(np.zeros((4, 4))) is None
    assert judge_cells([]).kind == "unclear"


def test_invalid_pixels_do_not_matter():
    frames = [photons(seed, SUBURBAN, "GRBG") for seed in SEEDS]
    for frame in frames:
        frame[100:140] = np.nan
    assert judged(frames).kind == "mosaic"
