"""Tests of ``io.flipped_frame``: rows, mosaic, header and WCS of a frame that is read from its other end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from zemosaic_phase3.calibrate.calibrated import CalibratedSource
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.flipped_frame import FlippedSource, flip, flipped_wcs, is_turned
from zemosaic_phase3.io.open_frame import open_source


def solved(kind: str) -> WCS:
    """A WCS that is turned and has unequal axes, in each way of writing it."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [10.0, 41.0], [17.0, 9.5]
    if kind == "crota":
        wcs.wcs.cdelt, wcs.wcs.crota = [-6e-4, 5e-4], [0.0, 25.0]
    elif kind == "pc":
        wcs.wcs.cdelt, wcs.wcs.pc = [-6e-4, 5e-4], [[0.9, -0.4], [0.3, 0.95]]
    else:
        wcs.wcs.cd = [[-6e-4, 1e-4], [2e-4, 5e-4]]
    if kind == "sip":
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        a, b = np.zeros((2, 4, 4))
        a[2, 0], a[1, 1], a[0, 2], b[2, 0], b[1, 1], b[0, 3] = 1e-3, -2e-3, 7e-4, 5e-4, 1e-3, 2e-5
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


@pytest.mark.parametrize("kind", ["cd", "pc", "crota", "sip"])
@pytest.mark.parametrize("height", [24, 25])
def test_every_pixel_keeps_its_place_on_the_sky(kind: str, height: int) -> None:
    wcs = solved(kind)
    y, x = np.mgrid[:height:4, :30:5].reshape(2, -1).astype(float)
    sky = np.column_stack(wcs.all_pix2world(x, y, 0))
    found = np.column_stack(flipped_wcs(wcs, height).all_pix2world(x, height - 1 - y, 0))
    np.testing.assert_allclose(found, sky, rtol=0, atol=1e-11)
    assert np.abs(np.column_stack(flipped_wcs(wcs, height).all_pix2world(x, y, 0)) - sky).max() > 1e-4


@pytest.mark.parametrize("height", [24, 25])
def test_rows_and_mosaic_are_those_of_the_turned_array(tmp_path: Path, rng: np.random.Generator, height: int) -> None:
    pixels = rng.integers(0, 60000, (height, 30)).astype(np.uint16)
    header = fits.Header({"BAYERPAT": "GRBG", "ROWORDER": "BOTTOM-UP", "EXPTIME": 3.0})
    fits.writeto(tmp_path / "a.fits", pixels, header)
    fits.writeto(tmp_path / "b.fits", pixels[::-1], fits.Header({"BAYERPAT": "GRBG", "ROWORDER": "TOP-DOWN"}))
    turned, there = flip(open_source(tmp_path / "a.fits")), open_source(tmp_path / "b.fits")
    assert (turned.cfa, turned.shape, turned.row_order) == (there.cfa, there.shape, there.row_order)
    np.testing.assert_array_equal(turned.read_rows(0, height), pixels[::-1])
    for first, last in ((0, 1), (5, 17), (height - 3, height), (7, 7)):
        np.testing.assert_array_equal(turned.read_rows(first, last), pixels[::-1][first:last])
    assert turned.read_rows(3, 9).flags.c_contiguous
    assert turned.read_header()["ROWORDER"] == "TOP-DOWN"
    assert turned.card_values("EXPTIME") == [3.0]
    assert turned.raw_layout is None
    turned.expect_rows(0, 5)
    turned.require_unchanged()
    with pytest.raises(ValueError, match="outside"):
        turned.read_rows(0, height + 1)
    assert turned.origin is not None
    assert turned.origin != open_source(tmp_path / "a.fits").origin


def test_turned_twice_is_as_stored() -> None:
    source = open_source(np.zeros((10, 12), np.float32))
    assert flip(flip(source)) is source
    assert isinstance(flip(source), FlippedSource)
    assert flip(source).origin is None
    assert flip(source).wcs() is None


def test_a_file_that_is_gone_is_an_error_by_name(tmp_path: Path) -> None:
    fits.writeto(tmp_path / "a.fits", np.zeros((10, 12), np.uint16))
    turned = flip(open_source(tmp_path / "a.fits"))
    (tmp_path / "a.fits").unlink()
    with pytest.raises(FrameError, match=r"a\.fits"):
        turned.read_rows(0, 4)


def test_what_is_inside_a_wrapping_tells_how_its_sensor_lies() -> None:
    source = open_source(np.zeros((10, 12), np.float32))
    assert [is_turned(frame) for frame in (source, flip(source), flip(flip(source)))] == [False, True, False]
    dark = np.zeros((10, 12), np.float32)
    wrapped = [CalibratedSource(frame, dark, None, "") for frame in (source, flip(source))]
    assert [is_turned(frame) for frame in wrapped] == [False, True]
