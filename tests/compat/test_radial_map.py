"""Tests of ``compat.radial_map``."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.compat.radial_map import make_radial_weight_map


def radial_weight(height, width, x, y, feather, power):
    """One pixel of the map, from the definition."""
    distance = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) / (np.hypot(height, width) / 2)
    return np.cos(np.pi / 2 * min(distance / feather, 1.0)) ** power


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (5, 64), (33, 17)])
@pytest.mark.parametrize(("feather", "power", "floor"), [(0.8, 2.0, 0.05), (0.5, 1.0, 0.0), (1.0, 3.0, 0.2)])
def test_radial_weight_map(height, width, feather, power, floor):
    got = make_radial_weight_map(height, width, feather, power, floor)
    assert got.shape == (height, width) and got.dtype == np.float32
    for y, x in {(0, 0), (height // 2, width // 2), (height - 1, width // 3)}:
        expected = max(radial_weight(height, width, x, y, feather, power), floor)
        assert got[y, x] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    np.testing.assert_array_equal(got, got[::-1, ::-1])


def test_radial_limits():
    assert make_radial_weight_map(2, 2, 1.4)[0, 0] == pytest.approx(0.5)  # feather 1.4 counts as 1
    np.testing.assert_array_equal(make_radial_weight_map(9, 9, 0.01), make_radial_weight_map(9, 9, 0.1))
    assert make_radial_weight_map(9, 9, min_weight_floor=1.5).min() == np.float32(0.99)
    assert make_radial_weight_map(9, 9, min_weight_floor=-1).min() >= 0
    assert (make_radial_weight_map(9, 9, shape_power=-3) == 1).all()
    for bad in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="at least 1"):
            make_radial_weight_map(*bad)
    with pytest.raises(ValueError, match="finite"):
        make_radial_weight_map(5, 5, float("nan"))
