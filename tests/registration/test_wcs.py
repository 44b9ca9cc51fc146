"""Tests of ``registration.wcs``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from distortion_case import SPEC, optics, seen, sky_of

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.distortion import (
    displacement,
)
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.registration.wcs import distortion_between, register_stars_seeded, register_wcs, wcs_transform

SHAPE = (1080, 1920)


def listed(xy: np.ndarray, noise: float = 0.0, seed: int = 0) -> StarList:
    """Stars at these places, brightest first."""
    n = len(xy)
    xy = xy + np.random.default_rng(seed).normal(0.0, noise, xy.shape) if noise else xy
    return StarList(xy[:, 0], xy[:, 1], np.geomspace(1e6, 1e3, n), np.full(n, 3.0), np.zeros(n), np.full(n, 0.02))


@pytest.mark.parametrize("transform", ["similarity", "homography", "auto"])
@pytest.mark.parametrize(("ours", "theirs"), [(5.0, 5.0), (5.0, 0.0), (0.0, 5.0)])
def test_two_headers_give_the_whole_map(transform: str, ours: float, theirs: float) -> None:
    here, there = optics(SHAPE, ours), optics(SHAPE, theirs, (100.0, -60.0), 2.0)
    found = register_wcs(here, there, SHAPE, replace(SPEC, transform=transform))
    assert found.ok, found.reason
    assert found.distortion is not None
    assert found.rms_px < 0.01
    xy, _ = seen(here, sky_of(here, SHAPE, 500), SHAPE)
    xy = xy[np.all((xy > 0) & (xy < (SHAPE[1] - 1, SHAPE[0] - 1)), axis=1)]
    expected = there.all_world2pix(here.all_pix2world(xy, 0), 0)
    on_both = np.all((expected > 0) & (expected < (SHAPE[1] - 1, SHAPE[0] - 1)), axis=1)
    alone = transform_points(found.transform, xy)
    full = alone + displacement(found.distortion, xy)
    assert np.hypot(*(alone - expected)[on_both].T).max() > 0.2
    assert np.hypot(*(full - expected)[on_both].T).max() < 0.02


def test_headers_without_distortion_give_no_field() -> None:
    here, there = optics(SHAPE, 0.0), optics(SHAPE, 0.0, (100.0, 50.0), 3.0)
    for transform in ("similarity", "homography"):
        assert register_wcs(here, there, SHAPE, replace(SPEC, transform=transform)).distortion is None
    assert distortion_between(here, there, wcs_transform(here, there, SHAPE), SHAPE).size == 0
    faint = optics(SHAPE, 0.001), optics(SHAPE, 0.001, (100.0, 50.0))
    assert register_wcs(*faint, SHAPE, replace(SPEC, transform="homography")).distortion is None


def test_a_distortion_no_telescope_has_is_refused() -> None:
    found = register_wcs(optics(SHAPE, 0.0), optics(SHAPE, 60.0), SHAPE, replace(SPEC, transform="homography"))
    assert not found.ok
    assert "stretches" in found.reason or "inverted" in found.reason


def offset(wcs: WCS, pixels: tuple[float, float]) -> WCS:
    """Return a plate solution that is wrong by some pixels."""
    wrong = wcs.deepcopy()
    wrong.wcs.crpix = wcs.wcs.crpix + pixels
    wrong.sip = wcs.sip
    wrong.wcs.set()
    return wrong


@pytest.mark.parametrize("transform", ["similarity", "auto", "homography"])
@pytest.mark.parametrize("error", [(0.0, 0.0), (6.0, -4.0)])
def test_stars_refine_the_matrix_on_top_of_the_distortion(transform: str, error: tuple[float, float]) -> None:
    spec = replace(SPEC, transform=transform)
    here, there = optics(SHAPE, 5.0), optics(SHAPE, 5.0, (100.0, -70.0), 12.0)
    sky = sky_of(here, SHAPE, 400)
    (ours, in_ours), (theirs, in_theirs) = seen(here, sky, SHAPE), seen(there, sky, SHAPE)
    reference, frame = listed(ours[in_ours], 0.02), listed(theirs[in_theirs], 0.02, 5)
    both = in_ours & in_theirs
    by_wcs = register_wcs(here, offset(there, error), SHAPE, spec)
    found = register_stars_seeded(reference, frame, SHAPE, spec, by_wcs)
    assert found.ok and found.method == "stars", found.reason
    assert found.distortion is by_wcs.distortion
    mapped = transform_points(found.transform, ours[both]) + displacement(found.distortion, ours[both])
    bound = 0.02 + 0.01 * max(map(abs, error))  # the field of a solution that is off is off by its slope
    assert np.sqrt(np.mean(np.sum((mapped - theirs[both]) ** 2, axis=1))) < bound
    alone = register_stars(reference, frame, SHAPE, replace(spec, transform="homography"), by_wcs.transform)
    left = transform_points(alone.transform, ours[both]) - theirs[both]
    assert np.sqrt(np.mean(np.sum(left**2, axis=1))) > 0.2
    assert found.rms_px < 0.5 * alone.rms_px
    assert found.matched >= 0.95 * np.count_nonzero(both)


def test_a_header_whose_distortion_the_stars_deny_is_not_believed() -> None:
    true_here, true_there = optics(SHAPE, 0.0), optics(SHAPE, 0.0, (100.0, -70.0), 3.0)
    sky = sky_of(true_here, SHAPE, 400)
    (ours, in_ours), (theirs, in_theirs) = seen(true_here, sky, SHAPE), seen(true_there, sky, SHAPE)
    reference, frame = listed(ours[in_ours], 0.02), listed(theirs[in_theirs], 0.02, 5)
    by_wcs = register_wcs(optics(SHAPE, 0.0), optics(SHAPE, 3.0, (100.0, -70.0), 3.0), SHAPE, SPEC)
    assert by_wcs.ok and by_wcs.distortion is not None
    found = register_stars_seeded(reference, frame, SHAPE, SPEC, by_wcs)
    plain = register_stars(reference, frame, SHAPE, SPEC, by_wcs.transform)
    assert found.ok and found.distortion is None
    np.testing.assert_array_equal(found.transform, plain.transform)


def test_hot_pixels_are_known_although_the_distortion_moves_them() -> None:
    here, there = optics(SHAPE, 5.0), optics(SHAPE, 5.0, (100.0, -70.0))
    sky = sky_of(here, SHAPE, 90)
    (ours, in_ours), (theirs, in_theirs) = seen(here, sky, SHAPE), seen(there, sky, SHAPE)
    hot = np.random.default_rng(3).uniform((0, 0), (SHAPE[1] - 1, SHAPE[0] - 1), (200, 2))
    reference, frame = listed(np.vstack([hot, ours[in_ours]]), 0.02), listed(np.vstack([hot, theirs[in_theirs]]), 0.02)
    by_wcs = register_wcs(here, there, SHAPE, SPEC)
    found = register_stars_seeded(reference, frame, SHAPE, SPEC, by_wcs)
    both = in_ours & in_theirs
    assert found.ok and found.distortion is not None, found.reason
    mapped = transform_points(found.transform, ours[both]) + displacement(found.distortion, ours[both])
    assert np.sqrt(np.mean(np.sum((mapped - theirs[both]) ** 2, axis=1))) < 0.02
