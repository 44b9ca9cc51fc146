"""Few stars on a bright nebula: they are found, and its knots and filaments are not."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.detection.star_finder import find_stars
from zemosaic_phase3.spec import RegisterSpec

SHAPE = (480, 640)
GAIN = 0.25  # electrons an ADU


def nebula(seed: int) -> np.ndarray:
    """Light of blobs and filaments, ADU."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light = np.zeros(SHAPE)
    for _ in range(5):
        centre, width = rng.uniform(0.2, 0.8, 2) * SHAPE, rng.uniform(30.0, 90.0)
        light += rng.uniform(1000.0, 3500.0) * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    for _ in range(3):
        angle, offset = rng.uniform(0.0, np.pi), rng.uniform(-100.0, 100.0)
        across = (y - SHAPE[0] / 2) * np.cos(angle) - (x - SHAPE[1] / 2) * np.sin(angle) - offset
        light += 900.0 * np.exp(-0.5 * (across / rng.uniform(3.0, 7.0)) ** 2)
    return light


def frame(seed: int, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a mosaic of stars on a nebula, and where the stars are, (n, 2)."""
    rng = np.random.default_rng(100 + seed)
    grid = np.stack(np.meshgrid(np.linspace(60, 580, 5), np.linspace(60, 420, 4)), axis=-1).reshape(-1, 2)
    places = rng.permutation(grid)[: len(flux)] + rng.uniform(-15.0, 15.0, (len(flux), 2))
    light = 1000.0 + nebula(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for (cx, cy), total in zip(places, flux, strict=True):
        light += total / (2 * np.pi * 1.3**2) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 1.3**2))
    return (rng.poisson(light * GAIN) / GAIN + rng.normal(0.0, 6.0, SHAPE)).round().astype(np.uint16), places


@pytest.mark.parametrize("cfa", ["GRBG", None])
def test_stars_on_a_nebula_are_found_and_its_knots_are_not(cfa: str | None) -> None:
    found = false = 0
    for seed in range(4):
        pixels, places = frame(seed, np.geomspace(8_000.0, 60_000.0, 10))
        stars = find_stars(pixels, RegisterSpec(), cfa)
        distance = np.hypot(places[:, :1] - stars.x, places[:, 1:] - stars.y)
        found += int((distance.min(axis=1, initial=9.0) < 1.0).sum())
        false += int((distance.min(axis=0) > 2.0).sum())
        assert np.median(stars.fwhm) == pytest.approx(2.3548 * 1.3, rel=0.1)
    assert found >= 34
    assert false <= 3


def test_a_nebula_without_stars_has_next_to_none() -> None:
    assert sum(len(find_stars(frame(seed, np.empty(0))[0], RegisterSpec(), "GRBG")) for seed in range(4)) <= 8
