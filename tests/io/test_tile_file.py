"""Tiles out: what is written is what astropy reads, whole or not at all; and the small helpers."""

from __future__ import annotations

import os
import resource
import shutil
import signal

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from utils_case import COLOUR, RNG, fail_with, only_file, read_back, value_of, write

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.tile_file import save_fits_image, tile_hdus

HEIGHT, WIDTH = 12, 10
RNG = np.random.default_rng(7)
WCS_CARDS = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 5.0, "CRPIX2": 6.0}


@pytest.mark.parametrize("axis_order", ["HWC", "CHW"])
@pytest.mark.parametrize("legacy", [False, True])
def test_float_colour_tile(tmp_path, axis_order, legacy):
    path = tmp_path / "tile.fits"
    image = COLOUR if axis_order == "HWC" else np.moveaxis(COLOUR, -1, 0)
    before = image.copy()
    alpha = np.isfinite(COLOUR[..., 0])
    options = {"axis_order": axis_order, "legacy_rgb_cube": legacy, "alpha_mask": alpha}
    save_fits_image(image, path, {"OBJECT": "M 31"}, save_as_float=True, **options)
    primary, alpha_hdu = read_back(path)
    np.testing.assert_array_equal(primary.data, np.moveaxis(COLOUR, -1, 0))
    header = primary.header
    assert (header["BITPIX"], header["CTYPE3"], header["EXTNAME"], header["OBJECT"]) == (-32, "RGB", "RGB", "M 31")
    assert not {"BSCALE", "BZERO"} & {*header}
    assert alpha_hdu.name == "ALPHA" and alpha_hdu.data.dtype == np.uint8
    np.testing.assert_array_equal(alpha_hdu.data, np.where(alpha, 255, 0))
    np.testing.assert_array_equal(image, before)
    source = open_source(path)
    assert source.shape == COLOUR.shape
    np.testing.assert_array_equal(source.read_rows(0, HEIGHT), COLOUR)


def test_float_mono_tile_stays_two_dimensional(tmp_path):
    for number, image in enumerate([COLOUR[..., 0], COLOUR[..., :1], COLOUR[..., 0].astype(np.float64)]):
        save_fits_image(image, tmp_path / f"{number}.fits", save_as_float=True)
        (primary,) = read_back(tmp_path / f"{number}.fits")
        np.testing.assert_array_equal(primary.data, COLOUR[..., 0])
        assert "CTYPE3" not in primary.header and "EXTNAME" not in primary.header


def test_integers_are_clipped_and_rounded_never_shifted(tmp_path):
    image = np.full((8, 8), 1000.0)
    image[0, :8] = -5, 0.4, 0.6, 65534.6, 70000, np.nan, np.inf, -np.inf
    save_fits_image(image, tmp_path / "a.fits")
    (primary,) = read_back(tmp_path / "a.fits")
    assert primary.data[0].tolist() == [0, 0, 1, 65535, 65535, 0, 65535, 0]
    assert (primary.data[1:] == 1000).all()
    with fits.open(tmp_path / "a.fits", do_not_scale_image_data=True) as hdus:
        assert (hdus[0].header["BITPIX"], hdus[0].header["BZERO"]) == (16, 32768)
    assert open_source(tmp_path / "a.fits").dtype == np.uint16

    raw = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    save_fits_image(raw, tmp_path / "raw.fits", {"BAYERPAT": "GRBG"})
    np.testing.assert_array_equal(read_back(tmp_path / "raw.fits")[0].data, raw)
    assert open_source(tmp_path / "raw.fits").cfa == "GRBG"


def test_the_header_of_a_raw_frame_becomes_that_of_a_tile(tmp_path):
    raw = fits.PrimaryHDU(np.zeros((30, 40), np.uint16)).header
    raw.update(WCS_CARDS | {"CD1_1": -1e-3, "CD2_2": 1e-3, "WCSAXES": 2, "BAYERPAT": "GRBG", "XBAYROFF": 0, "BLANK": 5})
    raw.update({"EXTNAME": "RAW", "DATAMAX": 9.0, "CHECKSUM": "x", "ROWORDER": "TOP-DOWN", "GAIN": 80})
    raw["HISTORY"] = "first"
    before = raw.tostring()
    save_fits_image(COLOUR, tmp_path / "a.fits", raw, save_as_float=True)
    header = read_back(tmp_path / "a.fits")[0].header
    assert not {"BAYERPAT", "XBAYROFF", "BLANK", "DATAMAX", "BZERO"} & {*header}
    assert (header["GAIN"], header["NAXIS1"], header["WCSAXES"], header["ROWORDER"]) == (80, WIDTH, 3, "TOP-DOWN")
    assert list(header["HISTORY"]) == ["first"]
    assert raw.tostring() == before
    wcs = open_source(tmp_path / "a.fits").wcs()
    np.testing.assert_allclose(wcs.all_pix2world(1, 2, 0), WCS(raw).all_pix2world(1, 2, 0), rtol=1e-12)
    assert np.linalg.det(WCS(header).pixel_scale_matrix) != 0  # the third axis leaves the matrix regular

    save_fits_image(COLOUR[..., 0], tmp_path / "b.fits", header, save_as_float=True)  # a colour header on a mono tile
    header = read_back(tmp_path / "b.fits")[0].header
    assert header["WCSAXES"] == 2 and "CTYPE3" not in header and "CD3_3" not in header


def test_a_header_that_fits_cannot_hold_does_not_lose_the_tile(tmp_path):
    cards = {"EXPTIME": 10.0, "RGBGAINR": float("nan"), "MT_NFRAMES": 5, "THING": object(), "SITE": "Orléans"}
    save_fits_image(COLOUR, tmp_path / "a.fits", cards, save_as_float=True)
    header = read_back(tmp_path / "a.fits")[0].header
    assert (header["EXPTIME"], header["MT_NFRAMES"], header["SITE"]) == (10.0, 5, "Orl?ans")
    assert "RGBGAINR" not in header and "THING" not in header

    raw = fits.Header.fromstring("FOCALLEN= 250mm".ljust(80) + "GOOD    = 1".ljust(80) + "END".ljust(80))
    save_fits_image(COLOUR, tmp_path / "b.fits", raw, save_as_float=True)
    with fits.open(tmp_path / "b.fits") as hdus:
        assert hdus[0].header["GOOD"] == 1


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (np.full((HEIGHT, WIDTH), 0.5), 128),
        (np.full((HEIGHT, WIDTH, 1), 2.0, np.float32), 255),
        (np.full((HEIGHT, WIDTH), np.nan), 0),
        (np.full((HEIGHT, WIDTH), 200, np.uint8), 200),
        (np.full((HEIGHT, WIDTH), 300, np.int64), 255),
        (np.ones((HEIGHT, WIDTH), bool), 255),
    ],
)
def test_alpha_values(alpha, expected):
    assert np.unique(tile_hdus(COLOUR, None, alpha=alpha)["ALPHA"].data).tolist() == [expected]


def test_maps_and_frames(tmp_path):
    coverage = RNG.integers(0, 300, (HEIGHT, WIDTH)).astype(np.uint16)
    rejected = RNG.integers(0, 3, (HEIGHT, WIDTH, 3))
    columns = {
        "name": ["a.fits", "Orléans.fits", ""],
        "used": [True, False, True],
        "transform": np.arange(27.0).reshape(3, 3, 3),
        "stars": np.array([5, 6, 7]),
        "fwhm": np.array([2.5, np.nan, 3.0], np.float32),
    }
    hdus = tile_hdus(
        COLOUR,
        {},
        maps={"COVERAGE": coverage, "WEIGHT": COLOUR.astype(np.float64), "REJ_LOW": rejected},
        frames_table=columns,
        frames_units={"fwhm": "pix"},
    )
    write_fits_atomically(hdus, tmp_path / "a.fits", overwrite=False)
    back = read_back(tmp_path / "a.fits")
    assert [hdu.name for hdu in back[1:]] == ["COVERAGE", "WEIGHT", "REJ_LOW", "FRAMES"]
    np.testing.assert_array_equal(back["COVERAGE"].data, coverage)
    assert back["COVERAGE"].header["BITPIX"] == 16 and "BZERO" not in back["COVERAGE"].header
    np.testing.assert_array_equal(back["WEIGHT"].data, np.moveaxis(COLOUR, -1, 0))
    np.testing.assert_array_equal(back["REJ_LOW"].data, np.moveaxis(rejected, -1, 0))
    table = back["FRAMES"]
    assert table.data["name"].tolist() == ["a.fits", "Orl\\xe9ans.fits", ""]
    assert table.data["used"].tolist() == columns["used"]
    np.testing.assert_array_equal(table.data["transform"], columns["transform"])
    np.testing.assert_array_equal(table.data["fwhm"], columns["fwhm"])
    assert table.columns["fwhm"].unit == "pix" and table.columns["stars"].unit is None


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="alpha"):
        tile_hdus(COLOUR, None, alpha=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="different lengths"):
        tile_hdus(COLOUR, None, frames_table={"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="axis_order 'WHC'"):
        save_fits_image(COLOUR, tmp_path / "a.fits", axis_order="WHC")
    for shape in ((5,), (5, 5, 4), (0, 5), (2, 2, 2, 2)):
        with pytest.raises(ValueError, match="shape"):
            save_fits_image(np.zeros(shape), tmp_path / "a.fits", save_as_float=True)
    assert not list(tmp_path.iterdir())


def test_without_overwrite_an_existing_file_is_an_error(tmp_path):
    path = tmp_path / "tile.fits"
    write(path, 1.0, overwrite=False)
    with pytest.raises(OutputError, match=r"tile\.fits: exists already.*--overwrite"):
        write(path, 2.0, overwrite=False)
    with pytest.raises(OutputError, match="exists"):
        save_fits_image(np.ones((9, 9)), path, overwrite=False)
    assert value_of(only_file(tmp_path)) == 1
    write(path, 2.0, overwrite=True)
    assert value_of(only_file(tmp_path)) == 2


def test_interrupt_in_the_middle_of_the_data(tmp_path):
    class Interrupting(fits.ImageHDU):
        def _writedata(self, fileobj):
            raise KeyboardInterrupt

    hdus = tile_hdus(COLOUR, None)
    hdus.append(Interrupting(np.ones((9, 9))))
    with pytest.raises(KeyboardInterrupt):
        write_fits_atomically(hdus, tmp_path / "tile.fits", overwrite=True)
    assert not list(tmp_path.iterdir())


def test_a_real_limit_on_the_size_of_files(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
        with pytest.raises(OutputError, match=r"tile\.fits") as caught:
            save_fits_image(np.ones((400, 400)), tmp_path / "tile.fits", save_as_float=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "no room left" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(os, "fsync", fail_with(AssertionError("written all the same")))
    with pytest.raises(OutputError, match=r"\d+ bytes are needed and 4000 are free"):
        write(tmp_path / "tile.fits")
    assert not list(tmp_path.iterdir())


class Usage:
    free = 4000
