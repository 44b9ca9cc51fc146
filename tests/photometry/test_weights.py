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
    expected = {
        "none": lambda: np.ones((4, channels)),
        "noise_variance": lambda: oracle.noise_variance_weights(images),
        "noise_fwhm": lambda: oracle.noise_fwhm_weights(images, fwhm),
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
