"""Cards of a WCS: what is let through, and that a good header gives the very WCS that astropy makes of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import astropy.wcs
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from header_case import SIP
from header_case import WCS as PLAIN

from zemosaic_phase3.io.fits_header import celestial_wcs
from zemosaic_phase3.io.wcs_cards import wcs_cards_of
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SIZE = (96, 80)
TPV = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 1e-3}


def header_of(cards: dict[str, object]) -> fits.Header:
    header = fits.Header()
    header.update({**PLAIN, **cards})
    return header


def with_card(text: str, cards: dict[str, object] | None = None) -> fits.Header:
    """A header that was read from a file, with one more card as it stands there."""
    good = "".join(card.image for card in header_of(cards or {}).cards if card.keyword != text[:8].rstrip())
    return fits.Header.fromstring(good + text.ljust(80))


def real_headers(data: Path) -> Iterator[tuple[str, fits.Header]]:
    """Of the frames beside the tests, and those that astropy brings for its own tests."""
    for path in sorted(data.glob("*.fits")):
        yield path.name, fits.getheader(path)
    for path in sorted((Path(astropy.wcs.__file__).parent / "tests" / "data").glob("**/*.hdr")):
        yield path.name, fits.Header.fromstring(path.read_bytes().decode("latin-1").encode("ascii", "replace"))


def as_astropy(header: fits.Header) -> WCS | None:
    try:
        return WCS(header, naxis=2)
    except (ValueError, MemoryError):
        return None


def assert_same(ours: WCS, theirs: WCS) -> None:
    assert ours.to_header_string(relax=True) == theirs.to_header_string(relax=True)
    assert (ours.sip is None) == (theirs.sip is None)
    for name in ("a", "b", "ap", "bp", "crpix") if ours.sip is not None else ():
        assert np.array_equal(getattr(ours.sip, name), getattr(theirs.sip, name)), name
    places = np.array([[0.0, 0.0], [40.25, 33.5], [95.0, 79.0]])
    assert np.array_equal(ours.all_pix2world(places, 0), theirs.all_pix2world(places, 0), equal_nan=True)


def test_real_headers_give_the_wcs_of_astropy(data_dir: Path) -> None:
    compared = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of astropy, of what it mends in these headers
        for name, header in real_headers(data_dir):
            if "CTYPE1" not in header or (theirs := as_astropy(header)) is None or theirs.wcs.naxis != 2:
                continue
            told = wcs_cards_of(header)
            assert not told.fault, (name, told.fault)
            assert_same(WCS(told.header, naxis=2), theirs)
            compared += 1
    assert compared >= 30


@pytest.mark.parametrize("cards", [{}, SIP, TPV], ids=["tan", "sip", "tpv"])
def test_made_headers_give_the_wcs_of_astropy(cards: dict[str, object]) -> None:
    header = header_of(cards)
    ours = celestial_wcs(header, SIZE, "frame")
    assert ours is not None
    assert (ours.sip is not None) == (cards is SIP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        theirs = WCS(header, naxis=2)
    theirs.pixel_shape = SIZE
    assert_same(ours, theirs)


def test_simulated_frames_give_the_wcs_of_astropy(tmp_path: Path) -> None:
    simulate(SimulationSpec(n_frames=2, height=64, width=80, n_stars=10), tmp_path)
    for path in sorted(tmp_path.glob("*.fits")):
        header = fits.getheader(path)
        ours = celestial_wcs(header, SIZE, path.name)
        theirs = WCS(header, naxis=2)
        theirs.pixel_shape = SIZE
        assert_same(ours, theirs)


def test_digits_go_on_as_they_are() -> None:
    for text in ("8.3633123456789012E+01", "83.633123456789012", "8.3633123456789012D1", "+83.633", ".5", "83"):
        told = wcs_cards_of(with_card(f"CRVAL1  = {text} / degrees"))
        assert told.header.cards["CRVAL1"].image.startswith(f"CRVAL1  = {text} ")
        assert (told.fault, told.notes) == ("", [])


@pytest.mark.filterwarnings("ignore:Verification reported errors", "ignore:Card 'CRVAL1' is not FITS", "ignore:Note")
def test_a_number_that_astropy_mends_is_mended() -> None:
    told = wcs_cards_of(with_card("CRVAL1  = 8.3633d1"))
    assert (told.fault, told.header["CRVAL1"]) == ("", 83.633)


@pytest.mark.parametrize(
    "text",
    [
        "CTYPE1  = 5", "CTYPE1  = T", "CTYPE1  = 'RA---TAB'", "CRVAL1  = 'abc'", "CRVAL1  = 1E999",
        "CRVAL3  = 'RA---TAB'", "CD1_1   = (1.0, 2.0)", "CRPIX1  = T", "PV2_1   = 'abc'", "PV2_1   = 'a: 1.0'",
        "LONPOLE = 'abc'", "CDELT1  = -1E400", "CRPIX1  = 'NaN'",
    ],
)  # fmt: skip
def test_a_card_of_the_place_that_is_damaged_leaves_no_wcs(text: str, caplog: pytest.LogCaptureFixture) -> None:
    header = with_card(text)
    assert wcs_cards_of(header).fault.startswith(f"{text[:8].rstrip()} = ")
    with caplog.at_level(logging.INFO, "zemosaic.frames"):
        assert celestial_wcs(header, SIZE, "a.fits") is None
    assert "a.fits: its WCS cannot be used (" in caplog.text
    assert text[:8].rstrip() in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "A_ORDER = 'abc'", "A_ORDER = 30000", "A_ORDER = 2.5", "A_ORDER = -1", "A_ORDER = 1E999", "B_ORDER = T",
        "A_2_0   = 'x'", "A_0_2   = 'a: 1.0'", "B_2_0   = 'NAXES: 2'", "A_12_0  = 1.0", "AP_1_0  = NaN",
    ],
)  # fmt: skip
def test_a_damaged_card_of_the_distortion_leaves_the_rest(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "zemosaic.frames"):  # what the command line shows
        ours = celestial_wcs(with_card(text, SIP), SIZE, "a.fits")
    assert f"a.fits: card {text[:8].rstrip()}" in caplog.text
    assert "SIP" in caplog.text
    assert ours is not None
    assert ours.sip is None
    theirs = WCS(header_of({}), naxis=2)
    theirs.pixel_shape = SIZE
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "text",
    [
        "WCSAXES = 65536", "WCSAXES = 'abc'", "WCSAXES = 2.0", "RADESYS = 'FK9'", "RADESYS = 5", "EQUINOX = 'abc'",
        "EQUINOX = 1E300", "CPDIS1  = 1", "CPDIS1  = 'LOOKUP'", "CPERR1  = 'abc'", "D2IMDIS1= 'LOOKUP'", "AXISCORR= 1",
        "DP1     = 'EXTVER: 1'", "MJD-OBS = 'abc'", "DATE-OBS= 5", "WCSNAME = T", "OBSGEO-X= 'abc'",
    ],
)  # fmt: skip
def test_any_other_damaged_card_is_left_out_alone(text: str) -> None:
    told = wcs_cards_of(with_card(text))
    assert (told.fault, len(told.notes)) == ("", 1)
    assert told.notes[0].startswith(text[:8].rstrip(" ="))
    assert text[:8].rstrip() not in told.header
    assert celestial_wcs(with_card(text), SIZE, "a.fits") is not None


def test_an_order_written_as_a_real_number_is_one() -> None:
    ours = celestial_wcs(with_card("A_ORDER = 2.0", SIP), SIZE, "a.fits")
    assert ours.sip.a_order == 2


def test_the_first_of_several_sizes_counts() -> None:
    told = wcs_cards_of(fits.Header.fromstring("WCSAXES = 2".ljust(80) + "WCSAXES = 3".ljust(80)))
    assert [card.value for card in told.header.cards] == [2]


@pytest.mark.parametrize("cards", [{"CRVAL1": 1e308}, {"CRPIX1": 1e308}, {"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}])
def test_a_wcs_that_cannot_be_evaluated_is_none(cards: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    assert celestial_wcs(header_of(cards), SIZE, "a.fits") is None
    assert "a.fits: its WCS cannot be used (" in caplog.text


def test_a_dictionary_of_a_caller_is_checked_too() -> None:
    from zemosaic_phase3.io.open_frame import open_source

    array = np.zeros((80, 96), np.float32)
    for bad in ({"A_ORDER": 30000}, {"WCSAXES": 65536}, {"A_2_0": "a: 1.0"}):
        assert open_source({"data": array, "header": {**PLAIN, **SIP, **bad}}).wcs() is not None
    assert open_source({"data": array, "header": {**PLAIN, "CTYPE1": 5}}).wcs() is None
