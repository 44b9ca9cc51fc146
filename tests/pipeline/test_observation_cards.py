"""Tests of ``pipeline.observation_cards`` and of the headers made with them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.io.moments import Exposure
from zemosaic_phase3.pipeline.observation_cards import exposure_cards, master_kind, missing_starts, unit_of
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

START = datetime(2024, 8, 1, 22)


def exposure(after: float, seconds: float, live: float = math.nan, count: int = 1, span: float = 0.0) -> Exposure:
    start = START + timedelta(seconds=after)
    span = span or seconds
    middle, end = start + timedelta(seconds=span / 2), start + timedelta(seconds=span)
    return Exposure(start, middle, end, seconds, live if live > 0 else seconds, count)


def test_exposures_of_two_lengths_that_were_matched() -> None:
    both = [exposure(0, 10.0), exposure(100, 30.0)]
    cards = exposure_cards(both, both[1], np.array([0.25, 1.0]), matched=True)
    assert (cards["EXPTIME"], cards["EXPTOTAL"], cards["LIVETIME"], cards["STACKCNT"]) == (30.0, 40.0, 40.0, 2)
    assert (cards["DATE-OBS"], cards["DATE-END"]) == ("2024-08-01T22:00:00", "2024-08-01T22:02:10")
    assert cards["DATE-AVG"] == "2024-08-01T22:01:33"  # (0.25 x 5 s + 1 x 115 s) / 1.25
    assert (cards["DATE-BEG"], cards["TIMESYS"]) == (cards["DATE-OBS"], "UTC")
    assert cards["MJD-AVG"] - cards["MJD-OBS"] == pytest.approx(93.0 / 86400, abs=2e-8)


def test_exposures_that_were_not_matched_give_the_levels_of_their_mean() -> None:
    both = [exposure(0, 10.0), exposure(100, 30.0)]
    cards = exposure_cards(both, both[1], np.array([1.0, 1.0]), matched=False)
    assert cards["EXPTIME"] == 20.0
    assert cards["DATE-AVG"] == "2024-08-01T22:01:27.500"  # the longer one has three times the light


def test_stacks_add_up() -> None:
    nights = [exposure(0, 10.0, 2000.0, 200, 2500.0), exposure(86400, 10.0, 150.0, 14, 160.0)]
    cards = exposure_cards(nights, nights[0], np.array([1.0, 0.07]), matched=True)
    assert (cards["EXPTIME"], cards["EXPTOTAL"], cards["STACKCNT"]) == (10.0, 2150.0, 214)
    assert cards["DATE-END"] == "2024-08-02T22:02:40"


def test_unknown_times_are_left_out_and_told() -> None:
    unknown = Exposure()
    cards = exposure_cards([unknown], unknown, np.ones(1), matched=True)
    assert set(cards) == {"STACKCNT"}
    assert missing_starts([unknown, unknown]) == []
    (note,) = missing_starts([unknown, exposure(0, 1.0)])
    assert note.startswith("1 of 2 frames do not say when they began")


@pytest.mark.parametrize(
    ("kind", "master"),
    [("Light", "Light"), (None, "Light"), ("Dark Frame", "Dark"), ("FLAT", "Flat"), ("DarkFlat", "Dark Flat")],
)
def test_kind_of_a_stack(kind: Any, master: str) -> None:
    assert master_kind(kind) == f"Master {master}"


@pytest.mark.parametrize(
    ("unit", "told"), [(None, "adu"), ("ADU", "adu"), ("electron", "electron"), ("bananas", "adu")]
)
def test_unit_of_a_stack(unit: Any, told: str) -> None:
    assert unit_of(unit) == told


@pytest.fixture
def headers() -> list[dict[str, Any]]:
    return [
        {
            "DATE-OBS": "2024-08-01", "TIME-OBS": f"22:0{k}:00", "EXPTIME": 0.0, "EXPOSURE": 20.0,
            "AIRMASS": 1.0 + k / 5, "EGAIN": 0.25, "XBINNING": 2, "APTDIA": 50.0, "IMAGETYP": "Light",
            "BAYERPAT": "RGGB",
            "ROWORDER": "BOTTOM-UP", "DATE-AVG": "2024-08-01T22:00:10", "OBJCTRA": "05 35 17", "SITEELEV": 12.0,
        }
        for k in range(5)
    ]  # fmt: skip


def test_header_of_a_tile(paths: list[Path], headers: list[dict[str, Any]]) -> None:  # noqa: F811 - fixture
    pixels = [fits.getdata(path) for path in paths]
    inputs = [{"data": p, "header": h, "name": str(k)} for k, (p, h) in enumerate(zip(pixels, headers, strict=True))]
    header = stack_files(inputs, reference="0", bayer="none", stack=StackSpec(weight="none")).header
    assert (header["DATE-OBS"], header["DATE-END"]) == ("2024-08-01T22:00:00", "2024-08-01T22:04:20")
    assert header["DATE-AVG"] == "2024-08-01T22:02:10"
    assert (header["EXPTIME"], header["EXPTOTAL"], header["NCOMBINE"], header["STACKCNT"]) == (20.0, 100.0, 5, 5)
    assert (header["IMAGETYP"], header["ROWORDER"], header["EGAIN"], header["XBINNING"]) == (
        "Master Light", "BOTTOM-UP", 0.25, 2,
    )  # fmt: skip
    assert (header["AIRMASS"], header["APTDIA"], header["SITEELEV"]) == (1.4, 50.0, 12.0)
    assert header["OBJCTRA"] == "05 35 17"  # where the telescope pointed: there is no WCS
    assert header["PROGRAM"] == header["SWCREATE"] == header["CREATOR"]
    assert "BAYERPAT" not in header
    assert datetime.fromisoformat(header["DATE"])


def test_stacks_that_only_their_names_tell_count_as_such(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    for k, name in enumerate(
        ("Stacked_40_M31_10.0s_LP_20240801-220000.fit", "Stacked_60_M31_10.0s_LP_20240802-220000.fit")
    ):
        cards = fits.Header({"DATE-OBS": f"2024-08-0{k + 1}T22:00:00", "OBJECT": "M 31"})
        fits.writeto(tmp_path / name, fits.getdata(paths[k]), cards)
    header = stack_files([tmp_path / "*.fit"], tmp_path / "m.fits").header
    assert (header["STACKCNT"], header["EXPTIME"], header["EXPTOTAL"], header["NCOMBINE"]) == (100, 10.0, 1000.0, 2)
    assert header["FILTER"] == "LP"


def test_one_frame_without_a_time(paths: list[Path], headers: list[dict[str, Any]]) -> None:  # noqa: F811 - fixture
    del headers[2]["TIME-OBS"], headers[2]["DATE-AVG"]
    pixels = [fits.getdata(path) for path in paths]
    inputs = [{"data": p, "header": h, "name": str(k)} for k, (p, h) in enumerate(zip(pixels, headers, strict=True))]
    tile = stack_files(inputs, reference="0", bayer="none", register=RegisterSpec(mode="none"))
    assert tile.header["DATE-OBS"] == "2024-08-01T22:00:00"
    assert any("1 of 5 frames do not say when they began" in note for note in tile.report.warnings)
