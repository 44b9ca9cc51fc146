"""Defects replaced as rows are read: by the median of their own colour, the same bits for any range of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.calibrate.calibrated import CalibratedSource
from zemosaic_phase3.calibrate.cosmetic import CosmeticSource, DefectMap
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.wrapped_frame import held_bytes
from zemosaic_phase3.photometry.flatten import FlattenedSource
from zemosaic_phase3.resample.decode import read_samples

SHAPE = (40, 50)


def by_hand(pixels: np.ndarray, defect: np.ndarray, step: int, dtype: np.dtype) -> np.ndarray:
    """The definition, one defect after the other."""
    out = pixels.astype(np.float64)
    for y, x in np.argwhere(defect):
        near = [
            pixels[v, u]
            for v in (y - step, y, y + step)
            for u in (x - step, x, x + step)
            if (v, u) != (y, x) and 0 <= v < pixels.shape[0] and 0 <= u < pixels.shape[1] and not defect[v, u]
        ]
        valid = [float(value) for value in near if np.isfinite(value)]
        out[y, x] = np.median(valid) if len(near) >= 2 and valid else np.nan
    return (np.floor(out + 0.5) if dtype == np.uint16 else out).astype(dtype)


@pytest.mark.parametrize("bayer", ["none", "GBRG"])
@pytest.mark.parametrize(("dtype", "gaps"), [(np.uint16, False), (np.uint16, True), (np.float32, True)])
def test_any_range_of_rows_has_the_bits_of_the_whole(bayer, dtype, gaps) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.uniform(500, 60000, SHAPE).astype(dtype)
    defect = np.zeros(SHAPE, bool)
    defect[1::6, ::7] = defect[0, 8:10] = defect[-1, -1] = True
    if gaps:
        defect[rng.random(SHAPE) < 0.05] = defect[:, 13] = defect[0, :5] = True
    if dtype == np.float32:
        pixels[rng.random(SHAPE) < 0.05] = np.nan
    defects = DefectMap(defect, 1 if bayer == "none" else 2)
    source = CosmeticSource(open_source(pixels, bayer=bayer), defects)
    whole = source.read_rows(0, SHAPE[0])
    np.testing.assert_array_equal(whole, by_hand(pixels, defect, defects.step, whole.dtype))
    assert whole.dtype == source.dtype == (np.float32 if gaps else dtype)
    for _ in range(30):
        a, b = np.sort(rng.integers(0, SHAPE[0] + 1, 2))
        np.testing.assert_array_equal(source.read_rows(a, b), whole[a:b])
    assert source.raw_layout is None
    assert source.pixels_in_memory is None


def test_a_place_without_sound_neighbours_becomes_invalid() -> None:
    defect = np.zeros(SHAPE, bool)
    defect[10:15, 20:25] = True
    source = CosmeticSource(open_source(np.full(SHAPE, 100, np.uint16)), DefectMap(defect, 1))
    whole = source.read_rows(0, SHAPE[0])
    assert whole.dtype == np.float32  # integers have no invalid
    assert np.isnan(whole[12, 22])
    assert whole[10, 20] == 100
    assert not np.isnan(whole[~defect]).any()


def test_maps_are_shared_and_counted_once() -> None:
    defect = np.zeros(SHAPE, bool)
    defect[3, 3] = True
    defects, dark = DefectMap(defect, 1), np.zeros(SHAPE, np.float32)
    sources = [
        CosmeticSource(CalibratedSource(open_source(np.ones(SHAPE, np.uint16)), dark, None), defects) for _ in range(9)
    ]
    assert held_bytes(sources) == dark.nbytes + defects.places.nbytes + defects.neighbours.nbytes
    assert held_bytes([open_source(np.ones(SHAPE))]) == 0


def test_where_a_frame_comes_from_tells_what_was_done_to_it(tmp_path) -> None:
    """What a journal kept of a frame serves the frame with the same masters and defects, and no other."""
    path = tmp_path / "a.npy"
    np.save(path, np.ones(SHAPE, np.uint16))
    plain = open_source(path)
    defect = np.zeros(SHAPE, bool)
    defect[3, 3] = True
    recipes = [plain.origin.recipe]
    for place in ((3, 3), (3, 4)):
        defect[place] = True
        twice = [CosmeticSource(open_source(path), DefectMap(defect, 1)).origin for _ in range(2)]
        assert twice[0] == twice[1]
        recipes.append(twice[0].recipe)
    dark = np.zeros(SHAPE, np.float32)
    recipes += [CalibratedSource(plain, dark, None, name).origin.recipe for name in ("one", "two")]
    assert len(set(recipes)) == 5
    assert CalibratedSource(plain, dark, None).origin is None  # nobody said which


@pytest.mark.parametrize("kind", ["uint16 file", "float32 file", "with gaps", "calibrated"])
def test_rows_opened_in_one_pass_have_the_same_bits(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.uniform(500, 60000, SHAPE)
    defect = np.zeros(SHAPE, bool)
    defect[1::6, ::7] = defect[0, 8:10] = defect[-1, -1] = True
    defect[:, 13:20] = kind == "with gaps"
    fits.writeto(tmp_path / "a.fits", pixels.astype(np.float32 if kind == "float32 file" else np.uint16))
    inner = open_source(str(tmp_path / "a.fits"), bayer="GBRG")
    if kind == "calibrated":
        inner = CalibratedSource(inner, np.full(SHAPE, 100.5, np.float32), None)
    mended = CosmeticSource(inner, DefectMap(defect, 2))
    tilted = FlattenedSource(mended, rng.normal(0.0, 10.0, (3, 6)))
    scale, offset = np.array([1.1]), np.array([-3.0])
    for source in (mended, tilted):
        for y0, y1 in ((0, 40), (0, 1), (7, 30), (39, 40)):
            rows = source.read_rows(y0, y1).astype(np.float64)
            out = np.empty((2, rows.size), np.float32)
            read_samples(source, y0, y1, np.ones(1), np.zeros(1), out[0])
            read_samples(source, y0, y1, scale, offset, out[1])
            np.testing.assert_array_equal(out[0], rows.astype(np.float32).reshape(-1))
            np.testing.assert_array_equal(out[1], (rows * scale + offset).astype(np.float32).reshape(-1))
