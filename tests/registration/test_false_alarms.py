"""What is believed of a match: its residuals and what was known before, against chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import betainc

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.false_alarms import Evidence, Tried, log10_of_false_alarms, log10_of_tail
from zemosaic_phase3.registration.match import _search, register_stars
from zemosaic_phase3.registration.star_pairs import Pair
from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
SHAPE = (540, 960)
FOUND = Evidence(matched=5, candidates=6, free=2, density=6 / (540 * 960), squares=0.01, radius=0.6, reach=6.0)
STARS = Tried(100.0, 1000.0)


def field(rng: np.random.Generator, n: int) -> StarList:
    x, y = rng.random((2, n)) * [[SHAPE[1]], [SHAPE[0]]]
    return StarList(x, y, np.sort(1.0 + rng.random(n))[::-1], np.full(n, 3.0), np.zeros(n), np.full(n, 0.05))


def test_smaller_residuals_and_a_nearer_prior_say_more() -> None:
    chances = [log10_of_false_alarms(FOUND._replace(squares=s, radius=20.0), STARS) for s in (0.01, 0.1, 1.0, 100.0)]
    assert chances == sorted(chances) and chances[0] < -10.0 < -6.0 < chances[3]
    prior = [log10_of_false_alarms(FOUND._replace(reach=r), Tried(1.0)) for r in (6.0, 30.0, 200.0)]
    assert prior == sorted(prior) and prior[0] < chances[0]
    assert log10_of_false_alarms(FOUND, Tried(1024.0)) == pytest.approx(prior[0] + np.log10(1024.0), abs=1e-9)
    assert log10_of_false_alarms(FOUND._replace(matched=2), STARS) == 0.0


def test_residuals_below_what_positions_are_good_for_prove_nothing_more() -> None:
    tiny, small = (log10_of_false_alarms(FOUND._replace(squares=s), STARS) for s in (1e-9, 5 * 0.05**2))
    assert tiny == pytest.approx(small)


@pytest.mark.parametrize("seeded", [False, True])
def test_the_number_of_false_alarms_is_not_understated(seeded: bool) -> None:
    # Of unrelated fields no more than a tenth may look as good as one in ten, and one in a hundred as one in a hundred.
    rng = np.random.default_rng(11)
    best = []
    for _ in range(400):
        pair = Pair.of(field(rng, 12), field(rng, 9), SHAPE)
        found = _search(pair, SPEC, np.eye(3) if seeded else None)
        best.append(0.0 if found is None else found.log10_chance)
    assert np.mean(np.array(best) <= -1.0) < 0.1
    assert np.mean(np.array(best) <= -2.0) <= 0.015


@pytest.mark.parametrize("seed", [None, np.eye(3)])
def test_five_exact_pairs_of_six_are_no_chance(seed: np.ndarray | None) -> None:
    rng = np.random.default_rng(12)
    ours = field(rng, 6)
    shift = np.array([3.0, -2.0])
    xy = ours.xy + shift
    xy[5] = (10.0, 500.0)
    theirs = StarList(xy[:, 0], xy[:, 1], ours.flux, ours.fwhm, ours.eccentricity, ours.error)
    found = register_stars(ours, theirs, SHAPE, SPEC, seed)
    assert found.ok and found.matched == 5
    np.testing.assert_allclose(found.transform[:2, 2], shift, atol=1e-6)
    loose = replace(theirs, x=theirs.x + rng.normal(0.0, 3.0, 6), y=theirs.y + rng.normal(0.0, 3.0, 6))
    assert not register_stars(ours, loose, SHAPE, SPEC, seed).ok


def test_five_detections_that_did_not_move_are_not_taken_for_stars() -> None:
    rng = np.random.default_rng(13)
    ours = field(rng, 12)
    found = register_stars(ours, ours.select(np.arange(5)), SHAPE, SPEC, np.eye(3))
    assert not found.ok and "hot pixels" in found.reason


def test_the_binomial_tail_is_that_of_the_incomplete_beta_function(rng: np.random.Generator) -> None:
    for n in (1, 7, 60, 400, 2500):
        for p in (1e-5, 0.01, 0.4, 0.999):
            for m in {1, n, *(int(m) for m in rng.integers(1, n + 1, 5)), min(n, max(1, round(n * p)))}:
                expected = np.log10(max(betainc(m, n - m + 1.0, p), 1e-300))
                if expected > -250.0:  # where that function is exact
                    assert log10_of_tail(m, n, p) == pytest.approx(expected, abs=1e-9)
    assert log10_of_tail(0, 5, 0.5) == log10_of_tail(6, 5, 0.5) == log10_of_tail(3, 5, 1.0) == 0.0
    assert log10_of_tail(400, 400, 1e-5) == -300.0
