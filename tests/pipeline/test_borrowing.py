"""Frames that register with the help of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from cells_case import SIGMA, save

from zemosaic_phase3.pipeline.borrowing import _guess
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.registration.transform import similarity_matrix, transform_points
from zemosaic_phase3.spec import RegisterSpec

SHAPE = (200, 280)
AUTO = RegisterSpec()
RNG = np.random.default_rng(21)
SHOWN = np.array([[40.0, 30.0], [250.0, 60.0], [60.0, 170.0], [230.0, 160.0], [140.0, 90.0]])
HIDDEN = np.array([[90.0, 40.0], [200.0, 30.0], [30.0, 100.0], [180.0, 120.0], [110.0, 180.0], [255.0, 110.0]])


def exposure(stars: np.ndarray, move: tuple[float, float], seed: int) -> np.ndarray:
    at = stars + move
    across = np.exp(-0.5 * ((np.arange(SHAPE[1]) - at[:, :1]) / SIGMA) ** 2)
    down = np.exp(-0.5 * ((np.arange(SHAPE[0]) - at[:, 1:]) / SIGMA) ** 2)
    image = 1000.0 + 30000.0 / (2 * np.pi * SIGMA**2) * down.T @ across
    return np.random.default_rng(seed).poisson(image).astype(np.float64)


def session(folder: Path) -> list[Path]:
    """Five frames: the reference shows some stars, the third others, and all the rest both."""
    both = np.vstack((SHOWN, HIDDEN))
    stars = [SHOWN, both, np.vstack((SHOWN[:1], HIDDEN)), both, both]
    moves = [(0.0, 0.0), (4.0, 1.0), (7.5, 2.5), (11.0, 3.0), (15.0, 5.0)]
    return [
        save(folder / f"sub_{k}.fits", exposure(s, m, k), **{"DATE-OBS": f"2026-01-01T00:0{k}:00", "EXPTIME": 10.0})
        for k, (s, m) in enumerate(zip(stars, moves, strict=True))
    ]


def registered(paths: list[Path]) -> Group:
    group = open_group(paths, reference="sub_0.fits")
    scan_group(group, AUTO, find_stars=True, workers=2)
    register_group(group, AUTO, workers=2)
    return group


def test_stars_that_the_reference_does_not_show_bring_a_frame_in(tmp_path: Path) -> None:
    group = registered(session(tmp_path))
    assert group.usable == [0, 1, 2, 3, 4]
    found = group.rows[2].registration
    assert found is not None and found.matched >= 6
    np.testing.assert_allclose(transform_points(found.transform, SHOWN), SHOWN + (7.5, 2.5), atol=0.1)
    assert any("1 of 5 frames registered only with the help" in note and "6 stars" in note for note in group.notes)


def test_a_frame_of_another_field_borrows_in_vain(tmp_path: Path) -> None:
    paths = session(tmp_path)
    other = RNG.random((9, 2)) * [260, 180] + 10
    save(paths[2], exposure(other, (0.0, 0.0), 9), **{"DATE-OBS": "2026-01-01T00:02:00", "EXPTIME": 10.0})
    assert fits.getdata(paths[2]).shape == SHAPE
    assert registered(paths).usable == [0, 1, 3, 4]


def test_a_guess_lies_between_its_neighbours() -> None:
    turned = [similarity_matrix(np.exp(1j * a), complex(10 * a, 5)) for a in (0.0, 0.2)]
    placed = {0: turned[0], 4: turned[1]}
    guess = _guess(placed, 1, SHAPE)
    assert guess is not None
    assert np.sqrt(np.linalg.det(guess[:2, :2])) == 1.0 or abs(np.linalg.det(guess[:2, :2]) - 1.0) < 1e-12
    assert abs(np.arctan2(guess[1, 0], guess[0, 0]) - 0.05) < 1e-3
    np.testing.assert_array_equal(_guess(placed, 5, SHAPE), turned[1])
    assert _guess({}, 1, SHAPE) is None
    flipped = {0: np.eye(3), 4: similarity_matrix(-1.0 + 0.0j, complex(279, 199))}
    np.testing.assert_array_equal(_guess(flipped, 3, SHAPE), flipped[4])
