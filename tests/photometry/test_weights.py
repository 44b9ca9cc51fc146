"""Tests of ``photometry.weights``."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import oracle
import pytest
from weights_case import frames, stats_of

from zemosaic_phase3.methods import WeightName
from zemosaic_phase3.photometry import weights
from zemosaic_phase3.photometry.levels import measure_levels


@pytest.mark.parametrize("method", get_args(WeightName))
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_equal_the_oracle(method, channels):
    stack = frames(channels=channels)
    rng = np.random.default_rng(9)
    fwhm, counts = [2.5, 3.5, 2.0, 9.0], [80, 7, 60, 200]
    flux = [np.sort(rng.uniform(100, 5000, n))[::-1] for n in counts]
    stats = [
        replace(measure_levels(f), fwhm=w, n_stars=n, star_flux=x[: weights.FLUX_STARS])
        for f, w, n, x in zip(stack, fwhm, counts, flux, strict=True)
    ]
    images = stack.astype(float) if channels == 3 else stack[..., 0].astype(float)
    # Each width leans on the session's by its error, 1.25 x 0.15 / sqrt(n): the logarithm's distance from the median.
    middle = np.log([2.5, 3.5]).mean()
    off = np.log(fwhm) - middle
    drawn = np.exp(middle + off * (1 - (1.2533 * 0.15 / np.sqrt(np.minimum(counts, 100)) / off) ** 2))
    expected = {
        "none": lambda: np.ones((4, channels)),
        "noise_variance": lambda: oracle.noise_variance_weights(images),
        "noise_fwhm": lambda: oracle.noise_fwhm_weights(images, fwhm),
        "point_source": lambda: oracle.point_source_weights(images, drawn),
        "snr": lambda: oracle.snr_weights(images, flux),
        "stars": lambda: oracle.star_count_weights(counts, channels),
    }[method]()
    ours = weights.frame_weights(method, stats, np.ones((4, channels)))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert (ours > 0).all()  # the worst frame too


def test_a_frame_that_is_left_out_sets_no_scale():
    stats = [replace(stats_of(v), fwhm=f) for v, f in ((4.0, 3.0), (1.0, np.nan), (np.nan, 1.0), (16.0, 6.0))]
    ours = weights.frame_weights("noise_fwhm", stats, np.ones((4, 1)))[:, 0]
    np.testing.assert_allclose(ours, [1.0, np.nan, np.nan, 1 / 16])


def test_a_channel_empty_in_all_frames_costs_no_frame():
    variance = np.array([[100.0, 50.0, 0.0], [100.0, 25.0, 0.0], [100.0, 0.0, 0.0]])
    given = weights.noise_variance_weights(variance)
    np.testing.assert_allclose(given[:2], [[0.25, 0.5, 1.0], [0.25, 1.0, 1.0]])
    assert np.isnan(given[2]).all()


def test_a_frame_without_stars_takes_the_width_of_the_session():
    width = weights.star_widths(
        np.array([3.0, np.nan, 5.0, 3.0]), np.array([0.3, np.nan, 0.3, 0.3]), np.array([99, 0, 99, 99])
    )
    np.testing.assert_allclose(width[[0, 1, 3]], 3.0)
    assert 4.9 < width[2] < 5.0
    assert np.isnan(weights.star_widths(np.full(2, np.nan), np.full(2, np.nan), np.zeros(2))).all()
    given = weights.frame_weights("point_source", [stats_of(4.0), stats_of(1.0)], np.ones((2, 1)))
    np.testing.assert_allclose(given, [[0.25], [1.0]])


def test_only_what_is_longer_than_the_roundest_quarter_counts_as_elongated():
    noisy = np.full(8, 0.4)
    noisy[5] = 0.8
    width = weights.star_widths(np.full(8, 3.0), noisy, np.full(8, 100))
    np.testing.assert_allclose(np.delete(width, 5), 3.0)
    more = 0.8**2 - 0.4**2  # b^2 / a^2 = 1 - more, and 9 is the mean of a^2 and b^2
    assert width[5] == pytest.approx(3.0 * np.sqrt(2.0 / (2.0 - more)))


def test_a_width_of_two_stars_hardly_counts():
    counts = np.array([100, 100, 100, 2])
    width = weights.star_widths(np.array([3.0, 3.0, 3.0, 3.4]), np.zeros(4), counts)
    assert width[3] == pytest.approx(3.0)
    counts[3] = 100
    assert weights.star_widths(np.array([3.0, 3.0, 3.0, 3.4]), np.zeros(4), counts)[3] > 3.38


@pytest.mark.parametrize("ratio", [1.2, 2.0, 3.0])
def test_weights_by_point_sources_are_within_one_percent_of_the_least_noise(ratio):
    """Of stars with Gaussian profiles: noise over signal of a matched filter on the mean, least by its eigenvector."""
    width = np.linspace(1.0, ratio, 20)
    overlap = 2.0 / (width[:, None] ** 2 + width**2)
    best = np.linalg.eigh(overlap)[1][:, -1]

    def noise(w):
        return np.sqrt(w @ w / (w @ overlap @ w))

    given = weights.point_source_weights(np.ones((20, 1)), width)[:, 0]
    assert noise(given) < 1.01 * noise(best)
    if ratio > 1.5:
        assert noise(np.ones(20)) > 1.02 * noise(best)
