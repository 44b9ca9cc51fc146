"""Tests of ``finish.equalize``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finish_case import sky

from zemosaic_phase3.finish import equalize


def test_channels_get_one_median_and_nan_stays():
    image = sky()
    image[5:9, 5:9, 1] = np.nan
    before = image.copy()
    *gains, target = equalize.equalize_rgb_medians_inplace(image)
    np.testing.assert_allclose(np.nanmedian(image, axis=(0, 1)), target, rtol=1e-6)
    np.testing.assert_allclose(image, before * np.array(gains, np.float32), rtol=1e-6)
    assert target == np.median(np.nanmedian(before, axis=(0, 1)))


def test_channel_without_a_usable_median_is_left_alone():
    image = sky()
    image[..., 0] -= 5000
    red = image[..., 0].copy()
    gain_r, gain_g, gain_b, target = equalize.equalize_rgb_medians_inplace(image)
    np.testing.assert_array_equal(image[..., 0], red)
    assert gain_r == 1.0
    assert gain_g < 1.0 < gain_b
    np.testing.assert_allclose(np.median(image[..., 1:], axis=(0, 1)), target, rtol=1e-6)


@pytest.mark.parametrize("image", [np.ones((4, 5), np.float32), np.full((4, 5, 3), np.nan), np.zeros((4, 5, 3))])
def test_equalisation_that_is_impossible_changes_nothing(image):
    before = image.copy()
    *gains, target = equalize.equalize_rgb_medians_inplace(image)
    assert gains == [1.0, 1.0, 1.0]
    assert math.isnan(target)
    np.testing.assert_array_equal(image, before)


def test_integer_image_cannot_be_equalised_in_place():
    with pytest.raises(TypeError, match="uint16"):
        equalize.equalize_rgb_medians_inplace(np.ones((4, 5, 3), np.uint16))
