"""One adjustment of all transforms: chains of frames that overlap, and cameras that were turned."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.registration.network import Sight, adjust, turned_camera
from zemosaic_phase3.registration.transform import fit_transform, grid_points, transform_points
from zemosaic_phase3.simulate.pointing import pointing
from zemosaic_phase3.simulate.session import SimulationSpec

SHAPE = (300, 400)


def chain(rng: np.random.Generator, noise: float, n: int = 20) -> tuple[list[np.ndarray], list[Sight]]:
    """Return true transforms of frames that wander by three widths, and what pairs of neighbours make of them."""
    stars = rng.uniform([-100, -100], [1700, 500], (900, 2))
    true, sights = [], []
    for k in range(n):
        angle = np.deg2rad(rng.normal(0.0, 1.0))
        c, s = np.cos(angle), np.sin(angle)
        true.append(np.array([[c, -s, -60.0 * k + rng.normal(0, 3)], [s, c, -5.0 * k], [0.0, 0.0, 1.0]]))
        xy = transform_points(true[k], stars)
        xy = xy[((xy > 0) & (xy < SHAPE[::-1])).all(axis=1)]
        sights.append(Sight(xy + rng.normal(0.0, noise, xy.shape), np.full(len(xy), noise), true[k]))
    drift = np.eye(3)
    for k, sight in enumerate(sights):  # errors of the links add up
        if k:
            turn = rng.normal(0.0, 2e-4)
            drift = drift @ np.array([[1.0, -turn, rng.normal(0, 0.05)], [turn, 1.0, rng.normal(0, 0.05)], [0, 0, 1.0]])
        sights[k] = sight._replace(transform=true[k] @ drift)
    return true, sights


def worst(found: list[np.ndarray], true: list[np.ndarray]) -> float:
    corners = np.array([[0, 0], [SHAPE[1], 0], [0, SHAPE[0]], [SHAPE[1], SHAPE[0]]], float)
    return max(
        float(np.abs(transform_points(np.linalg.inv(a), corners) - transform_points(np.linalg.inv(b), corners)).max())
        for a, b in zip(found, true, strict=True)
    )


def test_errors_of_a_chain_do_not_add_up(rng: np.random.Generator) -> None:
    true, sights = chain(rng, 0.08)
    adjusted = adjust(sights, 0, SHAPE)
    before, after = worst([s.transform for s in sights], true), worst(adjusted.transforms, true)
    assert after < 0.2 < 0.4 < before
    assert np.array_equal(adjusted.transforms[0], sights[0].transform)
    assert 0.05 < adjusted.overall < 0.15  # two axes of 0.08


def test_adjustment_of_perfect_stars_is_exact(rng: np.random.Generator) -> None:
    true, sights = chain(rng, 1e-6)
    assert worst(adjust(sights, 0, SHAPE).transforms, true) < 1e-4


def test_stars_that_are_wrong_do_not_count(rng: np.random.Generator) -> None:
    true, sights = chain(rng, 0.05)
    for k in range(0, len(sights), 3):
        sights[k].xy[::9] += 1.5
    assert worst(adjust(sights, 0, SHAPE).transforms, true) < 0.15


def test_a_frame_that_shares_nothing_stays_as_it_is(rng: np.random.Generator) -> None:
    _, sights = chain(rng, 0.05, 4)
    alone = Sight(
        rng.uniform(0, 300, (20, 2)), np.full(20, 0.05), np.eye(3) + np.array([[0, 0, 9e4], [0, 0, 0], [0] * 3])
    )
    adjusted = adjust([*sights, alone], 0, SHAPE)
    assert np.array_equal(adjusted.transforms[-1], alone.transform)
    assert np.isnan(adjusted.rms[-1])
    assert adjusted.matched[-1] == 0


@pytest.mark.parametrize("time", [0.3, 1.0])
def test_a_camera_that_was_turned_is_found_from_a_similarity(time: float) -> None:
    spec = SimulationSpec(width=SHAPE[1], height=SHAPE[0], wander_px=(6000.0, 900.0), rotation_deg=5.0)
    true = pointing(spec, time, np.zeros(2))
    places = grid_points(SHAPE, 9)
    there = transform_points(np.linalg.inv(true), places)
    flat = fit_transform("similarity", there, places, np.ones(len(places)))
    found = turned_camera(flat, SHAPE, 206264.806 / spec.scale_arcsec)
    left, before = (np.abs(transform_points(t, there) - places).max() for t in (found, flat))
    assert before > 0.3 * time**2
    assert left < 0.4 * before  # the adjustment does the rest
    focal = 206264.806 / spec.scale_arcsec
    np.testing.assert_allclose(turned_camera(true, SHAPE, focal), true, rtol=0, atol=1e-6)
