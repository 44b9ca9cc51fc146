"""Tests of ``simulate.truth``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulate_case import (
    CLEAN,
    frame,
    perfect,
    session,  # noqa: F401 - a fixture
)

from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.truth import compare_with_truth


def test_white_noise_at_the_ideal_reads_one(session):
    _, truth = session
    relative = truth.gains / truth.gains[0]
    ideal = 1 / np.sqrt(((relative[:, None] / truth.sample_sigma) ** 2).sum(axis=0))
    # a block's ideal knows its own coverage and light: full coverage and no nebula make the plain formula apply
    noisy = perfect(truth) + ideal * np.random.default_rng(5).standard_normal(truth.image.shape)
    figures = compare_with_truth(noisy, truth, coverage=np.full((480, 480), 5))
    assert np.allclose(figures["sky_noise_over_ideal"], 1.0, atol=0.07)
    quarter = compare_with_truth(noisy, truth, coverage=np.full((480, 480), 2.5))
    ratio = np.array(figures["sky_noise_ideal_adu"]) / quarter["sky_noise_ideal_adu"]
    assert np.allclose(ratio, np.sqrt(0.5), rtol=1e-2)


def test_faults_put_in_are_found(session):
    _, truth = session
    image = perfect(truth)
    red = image.copy()
    red[..., 0] = truth.sky[0, 0] + 1.05 * (red[..., 0] - truth.sky[0, 0])
    figures = compare_with_truth(red, truth)
    assert figures["photometric_error"] == pytest.approx([0.05, 0, 0], abs=2e-3)
    assert figures["channel_balance_error"] == pytest.approx(0.05, abs=2e-3)
    assert max(figures["sky_noise_over_ideal"]) < 0.1  # an error of scale is not noise

    from scipy.ndimage import gaussian_filter

    wide = compare_with_truth(gaussian_filter(image, (0.8, 0.8, 0)), truth)
    assert 1.1 < wide["fwhm_over_truth_mean"] < 1.3

    start, end = map_points(np.linalg.inv(truth.transforms[truth.trail_frame[0]]), truth.trail_ends[0])
    y, x = np.mgrid[:480, :480]
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / np.hypot(*(end - start))
    on_path = np.abs(normal[0] * (x - start[0]) + normal[1] * (y - start[1])) < truth.trail_fwhm[0]
    left = compare_with_truth(image + 4.0 * on_path[..., None], truth)
    assert left["trail_residual_adu"] == pytest.approx(4.0, abs=0.1)


def test_result_on_the_grid_of_another_frame(tmp_path):
    spec = replace(CLEAN, n_frames=2, height=400, width=400, bayer="none", sky_drift=0.0)
    truth = simulate(spec, tmp_path)
    one_frame = frame(tmp_path, truth, 1).astype(np.float32)
    found = {
        name: t @ np.linalg.inv(truth.transforms[1]) for name, t in zip(truth.names, truth.transforms, strict=True)
    }
    figures = compare_with_truth(
        one_frame, tmp_path, reference_name="sub_0002.fits", coverage=np.ones((400, 400)), transforms=found
    )
    assert figures["registration_rms_px"] < 1e-9
    assert figures["sky_noise_over_ideal"] == pytest.approx([1.0], abs=0.08)
    assert figures["photometric_error_worst"] < 0.02
    wrong = compare_with_truth(one_frame, tmp_path, coverage=np.ones((400, 400)))
    assert wrong["photometric_error_worst"] > 0.2


def test_invalid_pixels_are_left_out(session):
    _, truth = session
    image = perfect(truth)
    image[:100] = np.nan
    figures = compare_with_truth(image, truth)
    assert figures["photometric_error_worst"] < 1e-3
    assert np.isnan(compare_with_truth(np.full_like(image, np.nan), truth)["sky_noise_adu"]).all()


def test_wrong_questions_are_refused(session):
    _, truth = session
    with pytest.raises(ValueError, match=r"\(10, 10\)"):
        compare_with_truth(np.zeros((10, 10), np.float32), truth)
    with pytest.raises(ValueError, match="other.fits"):
        compare_with_truth(perfect(truth), truth, reference_name="other.fits")
