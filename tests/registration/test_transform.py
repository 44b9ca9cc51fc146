"""Tests of ``registration.transform``."""

from __future__ import annotations

import numpy as np
import pytest
from register_case import SHAPE, SPEC, paint, rms_error, similarity

from zemosaic_phase3.detection.star_finder import detect_stars
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import similarity_parameters, transform_points


def test_painted_frames_register_to_a_fraction_of_a_pixel():
    """Noise, hot pixels that do not move and a trail across the frame, as in real subs."""
    rng = np.random.default_rng(11)
    sky = (rng.random((900, 2)) * 1.4 - 0.2) * [SHAPE[1], SHAPE[0]]
    peak = np.minimum(100 / (1 - rng.random(900)), 50_000)
    truth = similarity(1.0, 3.0, (22.4, -13.7))
    hot = rng.integers(3, SHAPE[0] - 3, 80), rng.integers(3, SHAPE[1] - 3, 80)
    lists = []
    for k, matrix in enumerate((np.eye(3), truth)):
        image = paint(SHAPE, *transform_points(matrix, sky).T, peak, seed=k)
        image[hot] += 8000
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
        image += k * (900 * np.exp(-0.5 * ((rows + 0.7 * columns - 600) / 1.5) ** 2)).astype(np.float32)
        lists.append(detect_stars(image, SPEC))
    result = register_stars(*lists, SHAPE, SPEC)
    assert result.ok, result.reason
    assert rms_error(result.transform, truth, lists[0]) < 0.02
    assert result.matched > 100 and result.rms_px < 0.3


@pytest.mark.parametrize("degrees", [0.0, 33.0, -120.0])
def test_similarity_parameters_invert_the_construction(degrees):
    angle, scale = np.radians(degrees), 1.03
    matrix = np.array(
        [[scale * np.cos(angle), -scale * np.sin(angle), 7.0], [scale * np.sin(angle), scale * np.cos(angle), -4.0],
         [0, 0, 1]]
    )  # fmt: skip
    assert similarity_parameters(3.0 * matrix) == pytest.approx((scale, degrees, 7.0, -4.0))


def test_points_go_through_perspective():
    matrix = np.array([[1.0, 0, 3], [0, 2, 0], [0.001, 0, 1]])
    np.testing.assert_allclose(transform_points(matrix, [[0, 0], [1000, 7]]), [[3, 0], [1003 / 2, 7]])
