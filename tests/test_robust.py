"""The median of a few numbers."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.robust import median_of


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_median_has_the_bits_of_numpys(dtype: type, rng: np.random.Generator) -> None:
    for n in (*range(1, 9), 100, 1001):
        for values in (rng.normal(1e3, 50.0, n), rng.integers(0, 4, n), np.full(n, np.inf)):
            assert median_of(values.astype(dtype)) == np.median(values.astype(dtype))
