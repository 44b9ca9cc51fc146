"""Header cards read without astropy: whatever is not left to it must be what it would say."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.fits_header import card_value, plain_value, plain_values


def card(text: str) -> bytes:
    return text.ljust(80).encode("latin-1")[:80]


def astropy_value(image: bytes) -> Any:
    """What astropy says of a card; an instance of a class of its own where it finds no value or no sense."""
    try:
        return fits.Card.fromstring(image).value
    except fits.VerifyError:
        return fits.card.Undefined()


PLAIN = {
    "T / conforms to FITS standard": True,
    "F": False,
    "                  16 / bits": 16,
    "                -007": -7,
    "             32768.0 / zero": 32768.0,
    "              1.5E-3": 0.0015,
    "5.": 5.0,
    "'GRBG    '           / pattern": "GRBG",
    "'2026-01-01T20:00:01.123'": "2026-01-01T20:00:01.123",
    "'/ no comment' / comment": "/ no comment",
}
OTHERS = (
    "",
    "/ only a comment",
    "''",
    "'it''s'",
    "'goes on&'",
    "'DP1: 2.0'",
    ".5",
    "1.0D5",
    "1e5",
    "(1.0, 2.0)",
    "5 5",
    "'",
)


@pytest.mark.parametrize(("text", "value"), PLAIN.items())
def test_a_plain_card_is_read_without_astropy(text: str, value: object) -> None:
    image = card(f"KEYWORD = {text}")
    assert plain_value(image) == value == astropy_value(image)
    assert type(plain_value(image)) is type(value)


@pytest.mark.parametrize("text", OTHERS)
def test_any_other_card_is_left_to_astropy(text: str) -> None:
    assert plain_value(card(f"KEYWORD = {text}")) is None
    assert plain_value(card(f"KEYWORD {text}")) is None


@given(st.text("0123456789+-.ED TF'/&:aé", max_size=12), st.sampled_from(["", " / note", " / it's", "'"]))
def test_it_never_differs_from_astropy(text: str, end: str) -> None:
    image = card(f"KEYWORD = {text}{end}")
    ours = plain_value(image)
    assert ours is None or (ours, type(ours)) == (astropy_value(image), type(astropy_value(image)))


def test_the_first_of_several_cards_counts() -> None:
    header = b"".join(map(card, ("SIMPLE  = T", "GAIN    = 80", "OBJECT  = '   '", "GAIN    = 90", "END")))
    assert plain_values(header, ("GAIN", "OBJECT", "FILTER")) == {"GAIN": 80, "OBJECT": None, "FILTER": None}


def test_cards_left_behind_the_end_do_not_count() -> None:
    header = b"".join(map(card, ("SIMPLE  = T", "GAIN    = 80", "END", "EXPTIME = 99.0", "NAXIS   = 7")))
    assert plain_values(header, ("GAIN", "EXPTIME")) == {"GAIN": 80, "EXPTIME": None}
    left = b"".join(map(card, ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 0", "END", "NAXIS1  = -5", "PCOUNT  = -1")))
    assert headers.scan_cards(left, "left") == {"SIMPLE": True, "BITPIX": 16, "NAXIS": 0}


@pytest.mark.parametrize("text", ["GAIN    = 80 80", "GAIN=     80", "GAIN    ="])
def test_a_header_with_an_unusual_card_is_left_to_astropy(text: str) -> None:
    assert plain_values(card("SIMPLE  = T") + card(text) + card("END"), ("GAIN",)) is None


def test_a_card_that_breaks_the_standard_is_no_value() -> None:
    header = fits.Header.fromstring("GAIN    = 80 80 80".ljust(80) + "OBJECT  =".ljust(80) + "END".ljust(80))
    assert [card_value(header, key) for key in ("GAIN", "OBJECT", "FILTER")] == [None, None, None]


# ------------------------------------------------------------------------------------- damaged headers

PRIMARY = ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 96", "NAXIS2  = 80")


def raw(*cards: str) -> bytes:
    return b"".join(map(card, (*cards, "END"))).ljust(headers.FITS_BLOCK)


@pytest.mark.parametrize("text", ["NAXIS   = 3", "NAXIS1  = 97", "BITPIX  = 8", "HIERARCH NAXIS = 3", "naxis   = 3"])
def test_a_structural_card_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match="stands twice"):
        headers.scan_cards(raw(*PRIMARY, text), "a.fits")


def test_twice_the_same_is_no_fault() -> None:
    assert headers.scan_cards(raw(*PRIMARY, PRIMARY[2]), "a.fits")["NAXIS"] == 2
    assert headers.scan_cards(raw(*PRIMARY, "BAYERPAT= 'RGGB'", "BAYERPAT= 'GRBG'"), "a.fits")["BAYERPAT"] == "RGGB"


@pytest.mark.parametrize("text", ["TFIELDS = 'abc'", "TFIELDS = 1000", "TFIELDS = 1000000000000", "TFIELDS = -1"])
def test_a_table_has_a_number_of_columns(text: str) -> None:
    with pytest.raises(FrameError, match="TFIELDS"):
        headers.scan_cards(raw(*PRIMARY, text), "a.fits")


def test_a_unit_beyond_any_file_is_refused() -> None:
    table = ("XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4294967296", "NAXIS2  = 4294967296")
    empty = raw("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0")
    with pytest.raises(FrameError, match="unit 2 claims 18446744073709551616 bytes"):
        headers.find_image(BytesIO(empty + raw(*table)), "a.fits")


def test_control_characters_are_blanks() -> None:
    header = headers.parse_header(raw("OBJECT  = 'M\x0042' / caf\xe9\x07"))
    assert (header["OBJECT"], header.comments["OBJECT"]) == ("M 42", "caf?")


def test_only_readable_cards_are_inherited() -> None:
    primary = fits.Header.fromstring(raw(*PRIMARY, "GAIN    = 80", "OFFSET  = 1 2").decode())
    extension = fits.Header.fromstring(raw("FILTER  = 'R'", "FOCUS   = 1 2").decode())
    merged = headers.inherit(extension, primary)
    assert dict(merged) == {"FILTER": "R", "GAIN": 80}


def test_structure_is_taken_off_as_astropy_does(data_dir: Path) -> None:
    for path in sorted(data_dir.glob("*.fits")):
        with path.open("rb") as stream:
            header = headers.parse_header(headers.header_bytes(stream, path.name, 0))
        ours = headers.without_structure(header)
        header.strip()
        assert ours.tostring() == header.tostring(), path.name
