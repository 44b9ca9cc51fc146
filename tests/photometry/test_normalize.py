"""Tests of ``photometry.normalize``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from weights_case import frames, stats_of

from zemosaic_phase3.photometry import normalize
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.spec import StackSpec


def test_a_flat_frame_is_shifted_never_replaced():
    stack = frames(2)
    stack[1] = 77.0
    stats = [measure_levels(f) for f in stack]
    for method in ("linear_fit", "additive", "additive_scaling"):
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_array_equal(scale[1], 1.0)
        np.testing.assert_allclose(77.0 + offset[1], stats[0].p25 if method == "linear_fit" else stats[0].median)
    for method in ("multiplicative", "multiplicative_scaling"):  # no dispersion to match: the level alone
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_allclose(77.0 * scale[1] + offset[1], stats[0].median)


def test_negative_levels_are_shifted():
    stats = [replace(stats_of(4.0), median=np.array([m])) for m in (-5.0, 20.0)]
    for method in ("additive", "additive_scaling"):
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_allclose((scale[1], offset[1]), [[1.0], [-25.0]])


def test_small_units_are_scaled_too():
    stack = frames(2, 1) * np.float32(1e-9)
    stack[1] *= np.float32(2.0)
    spec = StackSpec(normalize="additive_scaling")
    scale, _ = normalize.normalisation(spec, [measure_levels(f) for f in stack], 0)
    assert scale[1, 0] == pytest.approx(0.5 * 0.9 / 1.1, rel=0.2)
