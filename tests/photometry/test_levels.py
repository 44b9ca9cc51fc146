"""Tests of ``photometry.levels``."""

from __future__ import annotations

from typing import get_args

import numpy as np
import oracle
import pytest
from weights_case import frames

from zemosaic_phase3.methods import STAR_NORMALISATIONS, NormalizeName
from zemosaic_phase3.photometry import normalize
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.spec import StackSpec


@pytest.mark.parametrize("method", [name for name in get_args(NormalizeName) if name not in STAR_NORMALISATIONS])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_the_oracle(method, channels):
    stack = frames(channels=channels)
    stats = [measure_levels(f) for f in stack]
    scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 2)
    ours = stack * scale[:, None, None] + offset[:, None, None]
    expected = oracle.normalize(stack.astype(float) if channels == 3 else stack[..., 0].astype(float), method, 2)
    np.testing.assert_allclose(ours if channels == 3 else ours[..., 0], expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize("digits", [0, 6])
def test_levels_equal_the_definitions(n, digits):
    rng = np.random.default_rng(n)
    for _ in range(20):
        values = np.round(100 * rng.standard_t(2, n), digits).astype(np.float32)
        stats = measure_levels(values.reshape(n, 1, 1))
        exact = values.astype(float)
        median, mad_sigma = oracle.location_scale(exact)
        assert stats.median[0] == pytest.approx(median, rel=1e-15)
        assert stats.mad_sigma[0] == pytest.approx(mad_sigma, rel=1e-14)
        np.testing.assert_allclose([stats.p25[0], stats.p90[0]], np.percentile(exact, [25, 90]), rtol=1e-12)
        clipped = oracle.deviation(oracle.clipped_samples(exact), 0) ** 2
        assert stats.variance[0] == pytest.approx(clipped, rel=1e-10, abs=1e-20)


def test_variance_keeps_its_digits_beside_huge_outliers():
    values = (1000 + 5 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    values[:40] = 1e12
    expected = oracle.deviation(oracle.clipped_samples(values.astype(float)), 0) ** 2
    assert measure_levels(values.reshape(-1, 1, 1)).variance[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top", [3000, 65535])
def test_quantised_samples_are_sorted_as_any(top):
    rng = np.random.default_rng(1)
    greens = (rng.integers(0, top, (50, 40, 1)) + rng.integers(0, top, (50, 40, 1))).astype(np.float32) / 2
    greens[0, :2] = [[0.0], [top]]  # the widest span there is
    plain, quantised = measure_levels(greens), measure_levels(greens, quantum=(0.5,))
    np.testing.assert_allclose(quantised.variance, plain.variance, rtol=1e-12)
    assert quantised.median[0] == pytest.approx(plain.median[0], abs=0.25)


def test_a_frame_without_valid_pixels_has_no_levels():
    for quantum in (None, (1.0,)):
        stats = measure_levels(np.full((4, 4, 1), np.nan, np.float32), quantum=quantum)
        assert np.isnan([*stats.median, *stats.mad_sigma, *stats.p25, *stats.p90, *stats.variance]).all()


def test_quantised_levels_are_known_better_than_their_step():
    rng = np.random.default_rng(4)
    true = 1000.37 + 14.2 * rng.standard_normal((400, 500, 1))
    stats = measure_levels(np.round(true).astype(np.float32), quantum=(1.0,))
    exact = measure_levels(true.astype(np.float32))
    assert stats.median[0] == pytest.approx(exact.median[0], abs=0.02)
    assert stats.mad_sigma[0] == pytest.approx(exact.mad_sigma[0], rel=2e-3)
    plain = measure_levels(np.round(true).astype(np.float32))
    assert abs(plain.mad_sigma[0] / exact.mad_sigma[0] - 1.0) > 5e-3  # what the spreading mends


def test_sampling_every_kth_row_changes_little():
    image = (1000 + 30 * np.random.default_rng(0).standard_normal((300, 300, 1))).astype(np.float32)
    whole, part = measure_levels(image, max_samples=None), measure_levels(image, max_samples=30_000)
    assert abs(whole.median[0] - part.median[0]) < 1.0
    assert part.mad_sigma[0] == pytest.approx(whole.mad_sigma[0], rel=0.03)


def test_continuous_and_uneven_samples_are_left_as_they_are():
    rng = np.random.default_rng(0)
    for values in (rng.random(1000), rng.choice([0.0, 1.0, np.pi, 10.0], 1000)):
        view = values.astype(np.float32).reshape(-1, 1, 1)
        plain, spread = measure_levels(view), measure_levels(view, quantum=(0.0,))
        assert (plain.median, plain.mad_sigma) == (spread.median, spread.mad_sigma)
    even = rng.choice([0.0, 1.0, 2.0, 3.0], 1000).astype(np.float32).reshape(-1, 1, 1)
    assert measure_levels(even).median != measure_levels(even, quantum=(0.0,)).median


@pytest.mark.parametrize("step", [1, 3])
def test_luminance_is_that_of_the_definition(step: int) -> None:
    rng = np.random.default_rng(8)
    view = rng.normal(1000.0, 30.0, (90, 131, 3)).astype(np.float32)
    view[rng.random(view.shape) < 0.02] = np.nan
    found = measure_levels(view, max_samples=-(-90 * 131 // step)).luminance_p25
    luminance = view[::step].astype(float) @ [0.299, 0.587, 0.114]
    assert found == pytest.approx(np.percentile(luminance[np.isfinite(luminance)], 25.0), rel=1e-6)
    assert np.isnan(measure_levels(np.full((9, 9, 3), np.nan, np.float32)).luminance_p25)
