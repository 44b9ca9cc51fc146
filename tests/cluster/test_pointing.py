"""Where a frame points, by its cards alone, against astropy; and the night it belongs to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.cluster.pointing import night_of, pointing_of
from zemosaic_phase3.io.open_frame import open_source


def write(path: Path, **cards: object) -> Path:
    header = fits.Header()
    header.update(cards)
    fits.writeto(path, np.zeros((60, 90), np.uint16), header)
    return path


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", ["cd", "cdelt", "pc"])
def test_as_astropy_has_it(tmp_path: Path, seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    turn, scale = math.radians(rng.uniform(0, 360)), 10 ** rng.uniform(-4, -2)
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": rng.uniform(0, 360), "CRVAL2": rng.uniform(-89, 89),
        "CRPIX1": rng.uniform(-200, 300), "CRPIX2": rng.uniform(-200, 300),
    }  # fmt: skip
    c, s = math.cos(turn), math.sin(turn)
    if form == "cd":
        cards |= {"CD1_1": -scale * c, "CD1_2": scale * s, "CD2_1": scale * s, "CD2_2": scale * c}
    elif form == "cdelt":
        cards |= {"CDELT1": -scale, "CDELT2": scale, "CROTA2": math.degrees(turn)}
    else:
        cards |= {"CDELT1": -scale, "CDELT2": scale, "PC1_1": c, "PC1_2": -s, "PC2_1": s, "PC2_2": c}
    path = write(tmp_path / "a.fits", **cards)
    found = pointing_of(open_source(path))
    ra, dec = WCS(fits.getheader(path)).all_pix2world(44.5, 29.5, 0)
    assert found.is_solved
    assert abs((found.ra - ra + 180) % 360 - 180) * math.cos(math.radians(dec)) < 1e-9
    assert abs(found.dec - dec) < 1e-9
    assert found.field == pytest.approx(60 * scale, rel=1e-9)


def test_other_projections_go_through_astropy(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.fits", CTYPE1="RA---STG", CTYPE2="DEC--STG", CRVAL1=10.0, CRVAL2=20.0, CRPIX1=45.5, CRPIX2=30.5,
        CDELT1=-0.001, CDELT2=0.001,
    )  # fmt: skip
    found = pointing_of(open_source(path))
    assert (found.ra, found.dec, found.is_solved) == (pytest.approx(10.0), pytest.approx(20.0), True)


@pytest.mark.parametrize(
    ("cards", "ra", "dec"),
    [
        ({"RA": 83.5, "DEC": -5.5}, 83.5, -5.5),
        ({"OBJCTRA": "05 34 00", "OBJCTDEC": "-05 30 00"}, 83.5, -5.5),
        ({"OBJCTRA": "05:34:00.0", "OBJCTDEC": "-00:30:00"}, 83.5, -0.5),
        ({"RA": "many", "DEC": 3.0}, math.nan, math.nan),
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 1.0, "CRVAL2": 2.0}, math.nan, math.nan),
        ({}, math.nan, math.nan),
    ],
)
def test_what_the_mount_said(tmp_path: Path, cards: dict[str, object], ra: float, dec: float) -> None:
    found = pointing_of(open_source(write(tmp_path / "a.fits", **cards)))
    assert not found.is_solved
    assert found.ra == pytest.approx(ra, nan_ok=True)
    assert found.dec == pytest.approx(dec, nan_ok=True)


@pytest.mark.parametrize(
    ("cards", "night"),
    [
        ({"DATE-OBS": "2025-03-01T22:10:00"}, "2025-03-01"),
        ({"DATE-OBS": "2025-03-02T03:10:00"}, "2025-03-01"),
        ({"DATE-OBS": "2025-03-02T06:10:00", "SITELONG": -110.0}, "2025-03-01"),  # Arizona, 23 h local
        ({"DATE-OBS": "2025-03-02T13:10:00", "SITELONG": "150 00 00"}, "2025-03-02"),  # Sydney, 23 h
        ({"DATE-OBS": "2025-03-02"}, ""),
        ({}, ""),
    ],
)
def test_night(cards: dict[str, object], night: str) -> None:
    assert night_of(cards) == night
