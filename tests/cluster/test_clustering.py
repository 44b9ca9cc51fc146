"""No cluster is wider than asked for, whatever the points; what lies together is together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from zemosaic_phase3.cluster import clustering
from zemosaic_phase3.cluster.clustering import GRAIN, clusters


def directions(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def widest(units: np.ndarray, found: list[np.ndarray]) -> float:
    """Degrees."""
    chords = [pdist(units[members]).max() for members in found if len(members) > 1]
    return math.degrees(2 * math.asin(max(chords, default=0.0) / 2))


@pytest.mark.parametrize("most", [4000, 20])
def test_no_cluster_is_too_wide(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, most: int) -> None:
    monkeypatch.setattr(clustering, "MOST_LINKED", most)  # beyond it a grid cuts
    units = directions(rng.uniform(0, 6, 800), rng.uniform(80, 86, 800))
    found = clusters(units, 1.0)
    assert sorted(np.concatenate(found).tolist()) == list(range(800))
    assert widest(units, found) <= 1.0 * (1 + 4 * GRAIN)
    assert len(found) > 5


def test_panels_are_found_across_the_zero_of_right_ascension(rng: np.random.Generator) -> None:
    middles = [(359.2, 10.0), (0.1, 10.0), (0.1, 10.9), (180.0, -60.0)]
    panel = rng.integers(0, 4, 400)
    ra = np.array([m[0] for m in middles])[panel] + rng.normal(0, 0.02, 400)
    dec = np.array([m[1] for m in middles])[panel] + rng.normal(0, 0.02, 400)
    found = clusters(directions(ra % 360.0, dec), 0.5)
    assert sorted(map(len, found)) == sorted(np.bincount(panel).tolist())
    assert all(len(set(panel[members].tolist())) == 1 for members in found)
    firsts = [int(members[0]) for members in found]
    assert firsts == sorted(firsts)


def test_many_points_take_little_memory_and_time(rng: np.random.Generator) -> None:
    middles = rng.uniform(0, 20, (100, 2))
    which = rng.integers(0, 100, 100_000)
    at = middles[which] + rng.normal(0, 0.003, (100_000, 2))
    found = clusters(directions(at[:, 0], at[:, 1] - 10.0), 0.3)
    assert sum(map(len, found)) == 100_000
    assert len(found) <= 110  # panels that lie nearer to each other than the width may be cut anew


def test_few() -> None:
    assert clusters(np.empty((0, 3)), 1.0) == []
    assert [members.tolist() for members in clusters(directions(np.zeros(3), np.zeros(3)), 1.0)] == [[0, 1, 2]]
