"""Tests of ``io.mosaic_cards``: names and spellings of a mosaic that programs write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.mosaic_cards import ALIAS_KEYS, cfa_from_header, pattern_of, row_order
from zemosaic_phase3.io.open_frame import open_source


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("GRBG", "GRBG"), ("grbg", "GRBG"), ("GRBG16", "GRBG"), ("grbg8", "GRBG"), ("BAYER_GRBG", "GRBG"),
        ("BayerGR12p", "GRBG"), ("GR", "GRBG"), ("RG", "RGGB"), ("bg", "BGGR"), ("GB", "GBRG"), ("[R,G;G,B]", "RGGB"),
        ("[[G, R], [B, G]]", "GRBG"), ("R G G B", "RGGB"), ("0112", "RGGB"), ("[2 1 1 0]", "BGGR"), ('"BGGR"', "BGGR"),
    ],
)  # fmt: skip
def test_spellings_of_a_pattern(text: str, pattern: str) -> None:
    assert pattern_of(text) == pattern
    assert cfa_from_header({"BAYERPAT": text}, 100, "f") == pattern


@pytest.mark.parametrize("text", ["RGBG", "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG", "RAW16", "1", "CMYG"])
def test_what_is_no_pattern_is_an_error_under_the_name_that_means_nothing_else(text: str) -> None:
    with pytest.raises(FrameError, match="--bayer none"):
        cfa_from_header({"BAYERPAT": text}, 100, "f")


@pytest.mark.parametrize("key", ALIAS_KEYS)
def test_other_names_of_the_card(key: str) -> None:
    assert cfa_from_header({key: "GBRG"}, 100, "f") == "GBRG"
    assert cfa_from_header({key: "mono"}, 100, "f") is None
    assert cfa_from_header({"BAYERPAT": "TRUE", key: "BGGR"}, 100, "f") == "BGGR"
    assert cfa_from_header({"BAYERPAT": "RGGB", key: "BGGR"}, 100, "f") == "RGGB"


def test_a_short_colour_type_is_no_pattern() -> None:
    assert cfa_from_header({"COLORTYP": "GR"}, 100, "f") is None


def test_an_x_trans_pattern_is_an_error_under_any_name() -> None:
    with pytest.raises(FrameError, match="none of RGGB"):
        cfa_from_header({"CFAPATTERN": "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"}, 100, "f")


def test_a_mosaic_that_nobody_names_is_an_error() -> None:
    with pytest.raises(FrameError, match="TRUE"):
        cfa_from_header({"BAYERPAT": "TRUE"}, 100, "f")


def test_offsets_under_both_names() -> None:
    assert cfa_from_header({"BAYERPAT": "RGGB", "BAYOFFX": 1}, 100, "f") == "GRBG"
    assert cfa_from_header({"BAYERPAT": "RGGB", "BAYOFFY": 1, "YBAYROFF": 0}, 100, "f") == "GBRG"


def test_row_orders() -> None:
    assert [row_order({"ROWORDER": text}) for text in ("BOTTOM-UP", "top-down", "Bottom up", "", 3)] == [
        "BOTTOM-UP", "TOP-DOWN", "BOTTOM-UP", "", "",
    ]  # fmt: skip
    assert row_order({}) == ""


def test_cards_of_a_file(tmp_path: Path) -> None:
    header = fits.Header()
    header["HIERARCH CFAPATTERN"] = "[G,R;B,G]"
    header["ROWORDER"] = "TOP-DOWN"
    fits.writeto(tmp_path / "a.fits", np.zeros((10, 12), np.uint16), header)
    source = open_source(tmp_path / "a.fits")
    assert (source.cfa, source.row_order, source.shape) == ("GRBG", "TOP-DOWN", (10, 12, 3))


def test_a_damaged_card_with_another_use_costs_nothing(tmp_path: Path) -> None:
    fits.writeto(tmp_path / "a.fits", np.zeros((10, 12), np.uint16), fits.Header({"BAYER": "GRBG"}))
    raw = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "b.fits").write_bytes(raw.replace(b"BAYER   = 'GRBG    '", b"BAYER   = 'GRBG     "))
    assert open_source(tmp_path / "b.fits").cfa is None
