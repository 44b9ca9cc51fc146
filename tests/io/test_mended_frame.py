"""Frames that are put right as they are read (``io.mended_frame``): any range of rows has the bits of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.io.mended_frame import Mend, MendedSource, areas_of
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.value_bytes import from_bytes, to_bytes

NO_FLOORS = ((0.0, -20.0, 0.5), (np.nan, np.nan, np.nan), (3.0, -5.0, 0.2), (0.0, -9.0, 0.3))


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 50)) < 0.02
    mask[:7] = mask[:, 44:] = True
    mask[20:30, 10:20] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_areas_hold_just_the_pixels_of_a_mask(seed: int) -> None:
    mask, again = random_mask(seed), np.zeros((40, 50), np.int64)
    areas = areas_of(mask)
    for y0, y1, x0, x1 in areas.tolist():
        again[y0:y1, x0:x1] += 1
    np.testing.assert_array_equal(again, mask)
    assert Mend(invalid=areas).invalid_pixels == mask.sum()


def test_a_straight_border_is_one_area() -> None:
    mask = np.zeros((40, 50), bool)
    mask[:, :9] = True
    assert areas_of(mask).tolist() == [[0, 40, 0, 9]]
    assert len(areas_of(np.zeros((4, 5), bool))) == 0


@pytest.mark.parametrize("cfa", [None, "GRBG"])
def test_rows_are_those_of_the_whole(cfa: str | None) -> None:
    pixels = np.random.default_rng(1).integers(0, 9, (40, 50)).astype(np.uint16)
    floors = NO_FLOORS if cfa else NO_FLOORS[:1]
    mend = Mend(areas_of(random_mask(2)), np.array([[31, 33, 2, 5]], np.int32), 0.0, floors)
    source = MendedSource(open_source(pixels, bayer=cfa or "none"), mend)
    whole = source.read_rows(0, 40)
    assert whole.dtype == source.dtype == np.float32
    assert source.raw_layout is None
    np.testing.assert_array_equal(np.isnan(whole), random_mask(2))
    assert (whole[31:33, 2:5][np.isfinite(whole[31:33, 2:5])] >= 65536.0 - 20.0).all()
    for y0, y1 in ((0, 1), (3, 22), (17, 18), (25, 40)):
        np.testing.assert_array_equal(source.read_rows(y0, y1), whole[y0:y1])
    np.testing.assert_array_equal(mend.apply(pixels), whole)


def test_what_is_put_right_survives_a_journal() -> None:
    mend = Mend(areas_of(random_mask(3)), value=512.0, floors=NO_FLOORS)
    again = from_bytes(to_bytes(mend), (Mend,))
    np.testing.assert_array_equal(again.invalid, mend.invalid)
    assert repr(again.floors) == repr(mend.floors)
    assert again and not Mend()
