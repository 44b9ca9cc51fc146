"""A plain WCS that is read without astropy's header is the one that astropy reads; anything unusual is left to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.io.fits_header import celestial_wcs
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.plain_wcs import plain_cards

PLAIN = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 31.5, "CRPIX2": 20.0, "CRVAL1": 83.82, "CRVAL2": -5.39,
    "CD1_1": -6.6e-4, "CD1_2": 2.0e-6, "CD2_1": 2.1e-6, "CD2_2": 6.65e-4, "RADESYS": "ICRS",
    "DATE-OBS": "2026-01-02T03:04:05",
}  # fmt: skip


def written(path: Path, cards: dict[str, object]) -> Path:
    header = fits.Header()
    for key, value in cards.items():
        if value is not None:
            header[key] = value
    fits.writeto(path, np.arange(40 * 64, dtype=np.uint16).reshape(40, 64), header, overwrite=True)
    return path


def raw(path: Path) -> bytes:
    return path.read_bytes()[: open_source(str(path)).place.offset]


@pytest.mark.parametrize(
    "change",
    [{}, {"CUNIT1": "deg", "CUNIT2": "deg"}, {"RADESYS": None}, {"RADESYS": "FK5", "EQUINOX": 2000.0}, {"CRVAL1": -10}],
)
def test_it_is_the_wcs_of_astropy(change: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", {**PLAIN, **change})
    assert plain_cards(raw(path))
    found, expected = open_source(str(path)).wcs(), celestial_wcs(fits.getheader(path), (64, 40), "a")
    places = np.random.default_rng(0).uniform(-100, 200, (50, 2))
    sky = expected.all_pix2world(places, 0)
    np.testing.assert_array_equal(found.all_pix2world(places, 0), sky)
    np.testing.assert_array_equal(found.all_world2pix(sky, 0), expected.all_world2pix(sky, 0))
    np.testing.assert_array_equal(found.pixel_scale_matrix, expected.pixel_scale_matrix)
    assert str(found.wcs.radesys) == str(expected.wcs.radesys)
    assert found.pixel_shape == expected.pixel_shape == (64, 40)
    assert found.has_celestial and not found.has_distortion


@pytest.mark.parametrize(
    "change",
    [
        {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}, {"A_ORDER": 2}, {"PV1_1": 0.0}, {"CD2_1": 3.3e-4, "CD1_2": 1.3e-3,
        "CD2_2": -6.5e-4}, {"CD1_2": None}, {"CDELT1": 1.0}, {"RADESYS": "FK4"}, {"EQUINOX": 1950.0}, {"CRVAL2": 91.0},
        {"LONPOLE": 170.0}, {"CUNIT1": "rad"}, {"CROTA2": 3.0}, {"PC1_1": 1.0}, {"CTYPE3": "RGB"}, {"CRPIX1": "text"},
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_astropy(change: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", {**PLAIN, **change})
    assert plain_cards(raw(path)) is None or "CD2_2" in change


def test_cards_that_stand_twice_are_left_to_astropy(tmp_path: Path) -> None:
    header = fits.Header([*PLAIN.items(), ("CRVAL1", 12.0)])
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((40, 64), np.uint16), header)
    assert plain_cards(raw(path)) is None


def test_a_header_without_a_wcs_has_none(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", {"EXPTIME": 10.0})
    assert plain_cards(raw(path)) == {}
    assert open_source(str(path)).wcs() is None
