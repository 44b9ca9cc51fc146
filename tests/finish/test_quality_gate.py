"""Tests of ``finish.quality_gate``."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from finish_case import SHAPE, WHOLE, crop, sky

from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics


def test_negative_and_zero_sky_is_data():
    image = sky() - 1100.0
    assert evaluate_quality_gate_metrics(image)["EMPTY"] == 0.0
    assert crop(image) == WHOLE


@pytest.mark.parametrize("fwhm", [1.8, 2.5, 4.0, 7.0])
def test_good_tile_is_accepted(fwhm):
    metrics = evaluate_quality_gate_metrics(sky(fwhm=fwhm))
    assert metrics["accepted"]
    assert metrics["score"] < 0.25
    assert metrics["objects"] >= 20
    assert metrics["NBR"] == pytest.approx(1.0, abs=0.1)
    assert metrics["CER"] == metrics["EMPTY"] == 0.0


@pytest.mark.parametrize(("trail", "angle"), [(6.0, 0.0), (6.0, 0.8), (12.0, 1.6), (25.0, 2.5)])
def test_trailed_tile_is_rejected(trail, angle):
    metrics = evaluate_quality_gate_metrics(sky(trail=trail, angle=angle, stars=40))
    assert not metrics["accepted"]
    assert metrics["score"] == pytest.approx(metrics["TRL"])


def test_trailing_follows_the_axis_ratio_of_the_stars():
    """A star of sigma s drawn out over t px has variances s^2 and s^2 + t^2 / 12 (cut at 10 % of the peak: nearly)."""
    sigma2 = (4.0 / 2.3548) ** 2
    for trail in (2.0, 3.0, 4.0):
        expected = 1.0 - sigma2 / (sigma2 + trail**2 / 12)
        measured = evaluate_quality_gate_metrics(sky(fwhm=4.0, trail=trail))["TRL"]
        assert measured == pytest.approx(expected, abs=0.08)


def test_round_stars_in_a_row_are_not_trailing():
    """The moments of all bright pixels at once would see one long object."""
    image = sky(stars=0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for k in range(12):
        star = 3000 * np.exp(-0.5 * ((x - 20.3 - 25 * k) ** 2 + (y - 117.6) ** 2) / 1.6**2)
        image += star.astype(np.float32)[..., None]
    metrics = evaluate_quality_gate_metrics(image)
    assert metrics["objects"] == 12
    assert metrics["TRL"] < 0.15


@pytest.mark.parametrize("how", ["nan", "zero", "alpha"])
def test_half_empty_tile_is_rejected(how):
    image = sky()
    alpha = np.full(SHAPE, 255, np.uint8)
    if how == "alpha":
        alpha[:, :160] = 0
    else:
        image[:, :160] = np.nan if how == "nan" else 0.0
    metrics = evaluate_quality_gate_metrics(image, alpha=alpha)
    assert not metrics["accepted"]
    assert metrics["EMPTY"] == pytest.approx(0.5, abs=0.01)
    assert metrics["CER"] == pytest.approx(0.5, abs=0.01)


def test_corners_lost_to_rotation_do_not_reject():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = sky()
    image[np.minimum(x, SHAPE[1] - 1 - x) + np.minimum(y, SHAPE[0] - 1 - y) < 50] = np.nan
    metrics = evaluate_quality_gate_metrics(image, edge_band_px=24)
    assert metrics["CER"] > 0.9
    assert metrics["accepted"]


def test_nebula_is_reported_and_not_a_fault():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = 800 * np.exp(-((x - 150) ** 2 + (y - 120) ** 2) / (2 * 25.0**2))
    plain, with_nebula = (evaluate_quality_gate_metrics(image) for image in (sky(), sky() + nebula[..., None]))
    assert with_nebula["EOC"] > plain["EOC"] + 0.05
    assert with_nebula["accepted"]


def test_noisy_border_is_measured(rng):
    image = sky(stars=10)
    noisy = image + rng.normal(0, 20, image.shape)
    noisy[40:-40, 40:-40] = image[40:-40, 40:-40]
    metrics = evaluate_quality_gate_metrics(noisy, edge_band_px=40)
    assert metrics["NBR"] == pytest.approx(math.sqrt(5), rel=0.05)  # hypot(10, 20) / 10
    assert metrics["accepted"]


@pytest.mark.parametrize(
    "image", [np.full((64, 64, 3), np.nan, np.float32), np.zeros((64, 64, 3), np.float32), np.ones((1, 1), np.float32)]
)
def test_tile_without_data_is_rejected_with_numbers_that_fit_a_header(image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = evaluate_quality_gate_metrics(image)
    assert not metrics["accepted"]
    assert metrics["score"] == 1.0
    assert metrics["hard_reject_reason"] == ("small_dim" if min(image.shape[:2]) < 64 else "empty")
    assert all(math.isfinite(value) for value in metrics.values() if not isinstance(value, str))
    assert not evaluate_quality_gate_metrics(image, threshold=999.0)["accepted"]


def test_border_that_blew_up_is_rejected_whatever_the_threshold():
    image = sky()
    image[:64] = 1e12
    for tile_image in (image, np.where(image == 1e12, image, np.float32(0))):  # a flat inside too
        metrics = evaluate_quality_gate_metrics(tile_image, threshold=999.0)
        assert (metrics["accepted"], metrics["hard_reject"]) == (False, 1)
        assert metrics["hard_reject_reason"] == "edge_blowup"


def test_bright_star_at_the_border_is_no_blow_up():
    image = sky(stars=0)
    image[:3, :3] = 60000.0
    assert evaluate_quality_gate_metrics(image)["hard_reject"] == 0


def test_noisy_rim_alone_is_no_reason_to_reject(rng):
    noise = rng.normal(0, 50, (*SHAPE, 3))
    noise[40:-40, 40:-40] = 0
    for image, accepted in ((sky(), True), (sky(trail=12.0, stars=40), False)):
        metrics = evaluate_quality_gate_metrics((image + noise).astype(np.float32), threshold=0.2, edge_band_px=40)
        assert metrics["score"] > 0.2
        assert metrics["override"] is metrics["accepted"] is accepted


def test_threshold_decides_and_a_wrong_alpha_is_refused():
    image = sky(trail=6.0)
    score = evaluate_quality_gate_metrics(image)["score"]
    assert evaluate_quality_gate_metrics(image, threshold=score)["accepted"]
    assert not evaluate_quality_gate_metrics(image, threshold=score - 1e-9)["accepted"]
    with pytest.raises(ValueError, match="alpha has shape"):
        evaluate_quality_gate_metrics(image, alpha=np.ones((3, 3)))
