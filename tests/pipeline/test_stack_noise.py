"""Tests of ``pipeline.stack_noise``: stacks of different depth are weighed by their noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

SHAPE = (160, 200)
NONE = RegisterSpec(mode="none")
ADDITIVE = StackSpec(normalize="additive")  # there are no stars to match by


def night(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a stack of exposures with noise 100 on a sky whose shape alone has a variance of 900 ADU^2."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    sky = 1000.0 + 0.5 * x + 60.0 * np.exp(-((x - 90) ** 2 + (y - 70) ** 2) / 8000.0)
    pixels = sky + rng.normal(0.0, 100.0 / np.sqrt(count), SHAPE)
    cards = {"EXPTIME": 10.0, "STACKCNT": count, "DATE-OBS": "2024-08-01T22:00:00"}
    return {"data": pixels.astype(np.float32), "header": cards, "name": f"night of {count}"}


def weights(counts: list[int], rng: np.random.Generator) -> np.ndarray:
    tile = stack_files([night(n, rng) for n in counts], register=NONE, stack=ADDITIVE)
    return np.array([row.weight[0] for row in tile.rows])


def test_weights_go_with_the_number_of_exposures(rng: np.random.Generator) -> None:
    found = weights([200, 57], rng)
    assert found[1] / found[0] == pytest.approx(57 / 200, rel=0.06)  # both noises are good to 1 % of 16,000 differences
    few_and_many = weights([2, 100], rng)
    assert few_and_many[0] / few_and_many[1] == pytest.approx(0.02, rel=0.06)


def test_single_exposures_are_weighed_as_they_were(rng: np.random.Generator) -> None:
    inputs = [night(1, rng) for _ in range(3)]
    tile = stack_files(inputs, register=NONE)
    plain = stack_files([frame["data"] for frame in inputs], register=NONE)
    assert np.array_equal(tile.image, plain.image, equal_nan=True)
    assert [row.weight for row in tile.rows] == [row.weight for row in plain.rows]
