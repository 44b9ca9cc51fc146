"""Header cards read without astropy: whatever is not left to it must be what it would say."""

from __future__ import annotations

from typing import Any

import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

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
