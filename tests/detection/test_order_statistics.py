"""Kernels that sort, select and add up, against NumPy; the normal distribution against SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.detection.normal_distribution import normal_quantile, normal_share
from zemosaic_phase3.detection.order_statistics import (
    MOST_COUNTS,
    ascending,
    median,
    pairwise_sum,
    select,
    sort_float32,
    two_of_sorted,
)


def numbers(n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    values = {
        "camera": lambda: np.rint(rng.normal(1000.0, 40.0, n)),
        "stars": lambda: np.rint(rng.normal(1000.0, 40.0, n)) + (rng.random(n) < 0.05) * rng.integers(0, 64_000, n),
        "about 0": lambda: rng.normal(0.0, 1.0, n),
        "negative": lambda: -np.abs(rng.normal(1e-3, 1e3, n)),
        "wide": lambda: rng.normal(0.0, 1.0, n) * 10.0 ** rng.integers(-30, 30, n),
        "one": lambda: np.full(n, 7.0),
        "infinite": lambda: np.where(rng.random(n) < 0.3, np.inf, rng.normal(5.0, 1.0, n)),
    }
    return values[kind]().astype(np.float32)


@pytest.mark.parametrize("kind", ["camera", "stars", "about 0", "negative", "wide", "one", "infinite"])
def test_numbers_are_sorted(kind: str, rng: np.random.Generator) -> None:
    counts = np.empty(MOST_COUNTS, np.int64)
    for n in (0, 1, 2, 17, 256, 4095, 4096, 20_000):
        values = numbers(n, kind, rng)
        expected = np.sort(values)
        found = values.copy()
        sort_float32(found, np.empty_like(found), counts)
        np.testing.assert_array_equal(found, expected)
        if n < 2:
            continue
        for first in {0, n // 4, (n - 1) // 2, n - 2}:
            pair = two_of_sorted(values.copy(), first, first + 1, np.empty(max(n, 2), np.float32), counts)
            assert pair == (expected[first], expected[first + 1])


def test_ordered_numbers_too_are_found_by_rank(rng: np.random.Generator) -> None:
    """What a few of many tell may be wrong, and is then not believed."""
    values = np.concatenate([np.zeros(7000), np.arange(3000)]).astype(np.float32)
    values[::19] = 5000.0
    expected = np.sort(values)
    for first in (100, 2500, 5000, 9000):
        work = np.empty(values.size, np.float32), np.empty(MOST_COUNTS, np.int64)
        assert two_of_sorted(values.copy(), first, first + 1, *work) == (expected[first], expected[first + 1])


def test_sums_are_added_in_the_order_of_numpy(rng: np.random.Generator) -> None:
    for n in (0, 1, 7, 8, 127, 128, 129, 255, 256, 1000, 1024, 65_537):
        values = rng.normal(size=n + 5) * 10.0 ** rng.integers(-4, 4, n + 5)
        assert pairwise_sum(values, 3, n + 3) == np.add.reduce(values[3 : n + 3].copy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_medians_are_those_of_numpy(dtype: type[np.generic], rng: np.random.Generator) -> None:
    for n in (1, 2, 3, 10, 101, 1000):
        values = np.rint(rng.normal(0.0, 20.0, n)).astype(dtype)
        assert median(values.copy(), n) == np.median(values)
        assert [select(values.copy(), n, k) for k in range(n)] == np.sort(values).tolist()


def test_equal_numbers_keep_their_order(rng: np.random.Generator) -> None:
    for n in (0, 1, 5, 64, 1001):
        values = rng.integers(0, 20, n).astype(np.float64)
        np.testing.assert_array_equal(ascending(values), np.argsort(values, kind="stable"))


def test_the_normal_distribution_is_that_of_scipy() -> None:
    from scipy.special import ndtr, ndtri

    shares = np.concatenate([np.linspace(1e-3, 1.0 - 1e-3, 999), 10.0 ** -np.arange(3.0, 12.0)])
    np.testing.assert_allclose([normal_quantile(p) for p in shares], ndtri(shares), rtol=2e-14, atol=1e-15)
    sigmas = np.linspace(-6.0, 6.0, 601)
    np.testing.assert_allclose([normal_share(z) for z in sigmas], ndtr(sigmas), rtol=5e-14)
