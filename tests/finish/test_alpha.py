"""Tests of ``finish.alpha``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finish_case import SHAPE, sky

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.finish import alpha as alpha_module
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics


def test_coverage_decides_what_is_faded():
    coverage = np.full(SHAPE, 20)
    coverage[:, :10] = 2
    coverage[:, :3] = 0
    image, alpha = alpha_module.altaz_alpha(
        sky(gradient=400.0), margin_percent=5.0, decay=0.15, nanize=True, coverage=coverage
    )
    band = 12  # 5 % of 240
    expected = np.clip((np.arange(SHAPE[1]) - 9) / band, 0, 1).astype(np.float32)
    np.testing.assert_allclose(alpha, np.broadcast_to(expected, SHAPE), atol=1e-6)
    assert alpha.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(image[..., 1]), alpha == 0)
    assert (
        alpha_module.altaz_alpha(image, decay=0.05, coverage=coverage)[1][0, 3] > 0
    )  # 10 % of the frames are enough now


def test_uncovered_border_is_faded_whatever_the_decay():
    coverage = np.full(SHAPE, 20)
    coverage[:6] = 0
    assert (alpha_module.altaz_alpha(sky(), decay=0.0, coverage=coverage)[1][:6] == 0).all()


def test_fully_covered_tile_is_not_faded_although_one_side_is_darker():
    image = sky(gradient=400.0)
    cleaned, alpha = alpha_module.altaz_alpha(image, coverage=np.full((*SHAPE, 3), 20))
    assert alpha is None
    assert cleaned is image


@pytest.mark.parametrize("nanize", [True, False])
def test_removed_pixels_are_nan_or_zero(nanize):
    image = sky(stars=0)
    image[:, :8] -= 500
    cleaned, alpha = alpha_module.altaz_alpha(image, nanize=nanize)
    gone = alpha <= 1e-3
    assert gone[1:-1, :7].all()  # an opening rounds the corners
    assert (np.isnan(cleaned[gone]) if nanize else cleaned[gone] == 0).all()
    np.testing.assert_array_equal(cleaned[~gone], image[~gone])


def test_nothing_but_nan_becomes_an_empty_mask():
    blank = np.full((40, 50, 3), np.nan, np.float32)
    for coverage in (None, np.zeros((40, 50))):
        assert (alpha_module.altaz_alpha(blank, coverage=coverage)[1] == 0).all()


@pytest.mark.parametrize("bad", [{"margin_percent": 60.0}, {"decay": 1.5}, {"decay": math.nan}])
def test_settings_out_of_range_are_named(bad):
    with pytest.raises(SpecError, match=str(next(iter(bad.values())))):
        alpha_module.altaz_alpha(sky(), **bad)


def test_fault_registration_borders_counted_as_data():
    """Alpha knows from the coverage; the gate knows a dead-flat border even where nobody kept a coverage."""
    coverage = np.ones((*SHAPE, 3), np.int32)
    coverage[:30] = 0
    coverage[30:40, :, 1:] = 0  # one channel is enough
    alpha = alpha_module.alpha_from_coverage(coverage)
    assert alpha.dtype == np.uint8
    assert (alpha[:30] == 0).all()
    assert (alpha[30:] == 255).all()
    image = sky()
    image[:30] = 0.0
    assert evaluate_quality_gate_metrics(image)["EMPTY"] == pytest.approx(30 / 240, abs=1e-3)


def test_alpha_is_the_mask_at_one_half_where_there_is_coverage():
    mask = np.array([[0.0, 0.49, 0.5, 1.0, 1.0]], np.float32)
    coverage = np.array([[5.0, 5.0, 5.0, 0.0, np.nan]])
    assert alpha_module.alpha_from_coverage(coverage, mask).tolist() == [[0, 0, 255, 0, 0]]
    with pytest.raises(ValueError, match="the mask has shape"):
        alpha_module.alpha_from_coverage(coverage, mask.T)
