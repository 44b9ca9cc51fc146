"""Defect maps from files."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_case import write

from zemosaic_phase3.calibrate.map_file import read_map
from zemosaic_phase3.errors import SpecError

SHAPE = (40, 50)


def test_masks(tmp_path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 4] = mask[20, 30] = 255
    for path in (write(tmp_path / "m.fits", mask, {}), tmp_path / "m.npy"):
        if path.suffix == ".npy":
            np.save(path, mask)
        np.testing.assert_array_equal(read_map(path, SHAPE, 2).places, np.flatnonzero(mask))
    with pytest.raises(SpecError, match=r"50 x 40 pixels, the frames 60 x 40"):
        read_map(tmp_path / "m.fits", (40, 60), 2)
    with pytest.raises(SpecError, match="cannot be read"):
        read_map(tmp_path / "none.fits", SHAPE, 2)


def test_lists(tmp_path) -> None:
    path = tmp_path / "bad.lst"
    path.write_text("# hot pixels\nP 4 3 H\nPoint 30 20\n\nC 7 0 H\nRow 11\n")
    defects = read_map(path, SHAPE, 1)
    expected = np.zeros(SHAPE, bool)
    expected[3, 4] = expected[20, 30] = True
    expected[:, 7] = expected[11] = True
    np.testing.assert_array_equal(defects.places, np.flatnonzero(expected))
    assert defects.describe() == "2 defects (0.1 %), 1 column, 1 row"


@pytest.mark.parametrize(
    ("text", "why"), [("P 1 2\nQ 3\n", "line 2: 'Q 3' is none of"), ("P 50 3 H\n", "line 1: 'P 50 3 H' lies outside")]
)
def test_lists_that_are_wrong(tmp_path, text, why) -> None:
    path = tmp_path / "bad.lst"
    path.write_text(text)
    with pytest.raises(SpecError, match=why):
        read_map(path, SHAPE, 1)
    with pytest.raises(SpecError, match="give auto, off"):
        read_map(tmp_path / "no.lst", SHAPE, 1)
