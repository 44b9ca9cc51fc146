"""Tests of ``compat.sky_match``."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zemosaic_phase3.compat.sky_match import compute_sky_statistics, estimate_sky_affine_to_ref


def test_sky_statistics_are_percentiles_of_the_valid_pixels():
    levels = np.linspace(0, 100, 101)
    with_gaps = np.concatenate([levels, [np.nan, np.inf, -np.inf]])
    assert compute_sky_statistics(with_gaps, 25.0, 75.0) == {"median": 50.0, "low": 25.0, "high": 75.0}
    assert compute_sky_statistics(np.full((4, 4), np.nan), 25.0, 60.0) is None
    assert compute_sky_statistics(None, 25.0, 60.0) is None
    with pytest.raises(ValueError, match="percentiles 60"):
        compute_sky_statistics(levels, 60, 25)


def test_sky_affine_is_recovered_in_spite_of_outliers_and_gaps():
    rng = np.random.default_rng(42)
    source = rng.uniform(10, 100, 5000).astype(np.float32)
    reference = 1.2 * source - 5.0
    reference[:50] += rng.normal(0, 25, 50)
    source[50:60] = np.nan
    gain, offset, samples = estimate_sky_affine_to_ref(source, reference, sky_low=25.0, sky_high=60.0, clip_sigma=2.5)
    assert gain == pytest.approx(1.2, abs=0.02)
    assert offset == pytest.approx(-5.0, abs=0.5)
    assert samples == pytest.approx(0.35 * 5000, rel=0.02)


def test_sky_affine_takes_no_scale_from_noise():
    """Two flat skies of different noise differ in level alone; a ratio of their spreads would be 3."""
    rng = np.random.default_rng(3)
    source, reference = rng.normal(1000, 10, 20000), rng.normal(1100, 30, 20000)
    gain, offset, _ = estimate_sky_affine_to_ref(source, reference, 25.0, 60.0, 2.5)
    assert gain == 1.0
    assert offset == pytest.approx(100.0, abs=1.0)


def test_sky_affine_is_not_flattened_by_noise():
    """A least-squares line through equally noisy sides would give 1.5 times 0.95."""
    rng = np.random.default_rng(4)
    sky = rng.uniform(900, 1100, 20000)
    noise = 0.05 * sky.std() ** 2
    source = sky + rng.normal(0, math.sqrt(noise), sky.size)
    reference = 1.5 * (sky + rng.normal(0, math.sqrt(noise), sky.size)) + 40.0
    gain, offset, _ = estimate_sky_affine_to_ref(source, reference, 0.0, 100.0, 5.0)
    assert gain == pytest.approx(1.5, rel=0.005)
    assert gain * 1000 + offset == pytest.approx(1540.0, abs=2.0)


def test_sky_affine_needs_pairs():
    few = np.arange(10.0)
    assert estimate_sky_affine_to_ref(few, few, 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(np.arange(20.0), np.arange(21.0), 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(None, few, 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(np.full(99, 50.0), np.full(99, 80.0), 25.0, 60.0, 2.5) == (1.0, 30.0, 99)
