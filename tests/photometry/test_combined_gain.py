"""Gains of frames with few stars: no cliff, and never worse than what is known."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.photometry.combined_gain import combined_gains, usable
from zemosaic_phase3.photometry.star_gain import Gain

PAIRS = np.full(3, 20)


def session(n=40, seed=0, error=0.005, depth=0.6):
    """A cloud bank that comes and goes; true log gains (n, 3) and what the stars of each frame say."""
    rng = np.random.default_rng(seed)
    along = np.linspace(0.0, 2.0 * np.pi, n)
    true = np.repeat(depth * (1.0 - np.cos(along))[:, None] / 2.0, 3, axis=1)
    errors = np.broadcast_to(error, n).astype(float)
    gains = [Gain(np.exp(true[i] + errors[i] * rng.normal(size=3)), np.full(3, errors[i]), PAIRS) for i in range(n)]
    gains[0] = Gain(np.ones(3), np.zeros(3), PAIRS)
    return true, gains


def unknown():
    return Gain(np.full(3, np.nan), np.full(3, np.inf), np.zeros(3, np.int64))


def test_supported_gains_stay_as_they_are():
    _, gains = session()
    assert combined_gains(gains, 0) == gains


def test_a_frame_without_stars_lies_between_its_neighbours():
    true, gains = session()
    for k in (7, 20, 21, 33, 39):
        gains[k] = unknown()
    found = combined_gains(gains, 0)
    for k in (7, 20, 21, 33, 39):
        assert usable(found[k]) and not found[k].supported
        assert np.abs(np.log(found[k].factor) - true[k]).max() < 3.0 * found[k].error.max()
        assert found[k].error.max() < 0.08
    assert all(found[k] is gains[k] for k in range(40) if k not in (7, 20, 21, 33, 39))


def test_poor_gains_become_better_and_their_errors_are_true():
    before, after, expected = [], [], []
    for seed in range(30):
        errors = np.full(40, 0.006)
        errors[10:30] = 0.05  # thick cloud
        true, gains = session(seed=seed, error=errors, depth=0.3)
        found = combined_gains(gains, 0)
        for k in range(10, 30):
            before.append(np.log(gains[k].factor) - true[k])
            after.append(np.log(found[k].factor) - true[k])
            expected.append(found[k].error)
    spread = np.std(after)
    assert spread < 0.7 * np.std(before)
    assert spread < 1.1 * np.sqrt(np.mean(np.square(expected)))  # smooth clouds are better known than a walk says


@pytest.mark.parametrize("error", [0.029, 0.031])
def test_there_is_no_cliff(error):
    """A gain just beyond the limit is what it is just before it, but for its neighbours' pull."""
    true, gains = session(error=0.005)
    gains[15] = Gain(np.exp(true[15] + 0.01), np.full(3, error), PAIRS)
    found = combined_gains(gains, 0)[15]
    assert np.abs(np.log(found.factor) - true[15]).max() < 0.012


def test_a_session_that_knows_nothing_says_nothing():
    _, gains = session(n=12)
    for k in range(1, 10):
        gains[k] = unknown()
    assert not any(usable(gain) for gain in combined_gains(gains, 0)[1:10])
    gains[0] = unknown()
    assert not usable(combined_gains(gains, 0)[0])
