"""Tests of ``registration.few_stars``: two stars deny a WCS, three correct it, and none of another field do."""

from __future__ import annotations

import numpy as np
import pytest
from register_case import SPEC, similarity

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.few_stars import DENIED, check_by_stars, confirm_by_stars
from zemosaic_phase3.registration.transform import transform_points

SHAPE = (300, 400)
SAYS_NOTHING_MOVED = Registration(True, np.eye(3), "wcs", 0, 0.0, model="homography")


def listed(xy: np.ndarray, flux: np.ndarray) -> StarList:
    order = np.argsort(-flux)
    n = len(order)
    return StarList(
        xy[order, 0], xy[order, 1], flux[order], np.full(n, 3.0), np.full(n, 0.1), np.full(n, 0.05)
    )  # fmt: skip


def field(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.random((n, 2)) * [340, 240] + 30, 10 ** rng.uniform(3.5, 5.0, n), rng


def noisy(xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return xy + rng.normal(0, 0.05, xy.shape)


@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("shift", [(13.5, 4.5), (1.5, 0.5), (-40.0, 70.0)])
def test_a_wcs_is_corrected_by_the_shift_of_its_stars(n: int, shift: tuple[float, float]) -> None:
    for seed in range(20):
        xy, flux, rng = field(seed, n)
        moved = xy + shift
        verdict = check_by_stars(
            listed(xy, flux), listed(noisy(moved, rng), flux * 0.6), SHAPE, SPEC, SAYS_NOTHING_MOVED
        )
        assert (verdict.ok, verdict.method) == (True, "stars"), verdict.reason
        assert verdict.matched >= 3
        np.testing.assert_allclose(transform_points(verdict.transform, xy), moved, atol=0.2)


def test_scale_and_rotation_stay_those_of_the_wcs() -> None:
    xy, flux, rng = field(3, 4)
    turned = similarity(1.0, 20.0, (5.0, 0.0), SHAPE)
    truth = similarity(1.0, 20.0, (19.0, -8.0), SHAPE)
    by_wcs = Registration(True, turned, "wcs", 0, 0.0, model="homography")
    verdict = check_by_stars(
        listed(xy, flux), listed(noisy(transform_points(truth, xy), rng), flux), SHAPE, SPEC, by_wcs
    )
    assert verdict.method == "stars"
    np.testing.assert_allclose(verdict.transform, truth, atol=0.2)


def test_two_stars_deny_a_wcs_and_are_too_few_to_correct_it() -> None:
    xy, flux, rng = field(1, 2)
    verdict = check_by_stars(listed(xy, flux), listed(noisy(xy + 15, rng), flux), SHAPE, SPEC, SAYS_NOTHING_MOVED)
    assert not verdict.ok
    assert verdict.reason.startswith(DENIED)
    assert "21." in verdict.reason


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_wcs_that_is_right_stays_as_it_is(n: int) -> None:
    for seed in range(20):
        xy, flux, rng = field(seed, n)
        verdict = check_by_stars(listed(xy, flux), listed(noisy(xy + 0.1, rng), flux), SHAPE, SPEC, SAYS_NOTHING_MOVED)
        assert verdict is SAYS_NOTHING_MOVED


def test_without_stars_nothing_contradicts() -> None:
    xy, flux, _ = field(1, 3)
    none = listed(np.empty((0, 2)), np.empty(0))
    for pair in ((none, none), (listed(xy, flux), none), (none, listed(xy, flux))):
        assert check_by_stars(*pair, SHAPE, SPEC, SAYS_NOTHING_MOVED) is SAYS_NOTHING_MOVED


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_unrelated_stars_never_register(n: int) -> None:
    for seed in range(150):
        (xy, flux, _), (other, theirs, _) = field(seed, n), field(seed + 10_000, n)
        verdict = check_by_stars(listed(xy, flux), listed(other, theirs), SHAPE, SPEC, SAYS_NOTHING_MOVED)
        assert verdict.method != "stars" or not verdict.ok


def test_hot_pixels_do_not_speak_for_the_sky() -> None:
    """A WCS that moved by 20 px with its stars is right, whatever three hot pixels say."""
    xy, flux, rng = field(2, 2)
    hot = rng.random((3, 2)) * [340, 240] + 30
    by_wcs = Registration(True, similarity(shift=(20.0, 0.0), shape=SHAPE), "wcs", 0, 0.0)
    ours = listed(np.vstack((xy, hot)), np.append(flux, [9e4, 8e4, 7e4]))
    theirs = listed(np.vstack((noisy(xy + [20, 0], rng), hot)), np.append(flux, [9e4, 8e4, 7e4]))
    assert check_by_stars(ours, theirs, SHAPE, SPEC, by_wcs) is by_wcs


def test_five_stars_that_turned_are_registered_by_themselves() -> None:
    truth = similarity(1.0, 4.0, (15.0, 3.0), (1080, 1920))
    rng = np.random.default_rng(4)
    xy, flux = rng.random((5, 2)) * [1800, 1000] + 30, 10 ** rng.uniform(4, 5, 5)
    verdict = check_by_stars(
        listed(xy, flux), listed(noisy(transform_points(truth, xy), rng), flux), (1080, 1920), SPEC, SAYS_NOTHING_MOVED
    )
    assert verdict.ok, verdict.reason
    np.testing.assert_allclose(transform_points(verdict.transform, xy), transform_points(truth, xy), atol=0.3)


def test_a_wcs_that_most_stars_confirm_stands_where_a_fit_is_not_believed() -> None:
    xy, flux, rng = field(5, 6)
    by_wcs = Registration(True, similarity(shift=(20.0, 10.0), shape=SHAPE), "wcs", 0, 0.0)
    moved = noisy(xy + [20, 10], rng)
    moved[5] = [200.0, 12.0]
    confirmed = confirm_by_stars(listed(xy, flux), listed(moved, flux), SHAPE, by_wcs)
    assert confirmed is not None
    assert (confirmed.ok, confirmed.method, confirmed.matched) == (True, "wcs", 5)
    assert confirmed.rms_px < 0.2


def test_unrelated_stars_and_hot_pixels_confirm_nothing() -> None:
    by_wcs = Registration(True, similarity(shift=(20.0, 10.0), shape=SHAPE), "wcs", 0, 0.0)
    for seed in range(150):
        (xy, flux, _), (other, theirs, _) = field(seed, 40), field(seed + 10_000, 40)
        assert confirm_by_stars(listed(xy, flux), listed(other, theirs), SHAPE, by_wcs) is None
        still = listed(xy, flux)
        assert confirm_by_stars(still, still, SHAPE, by_wcs) is None
        assert confirm_by_stars(still, still, SHAPE, SAYS_NOTHING_MOVED) is None
