"""Tests of ``io.moments``: a moment is right or absent, never midnight by accident."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
from astropy.time import Time

from zemosaic_phase3.io.frame_kind import frame_kind
from zemosaic_phase3.io.moments import MOMENT_KEYS, Exposure, exposure_of, iso, mjd_of, moment, start_of

TEN_PAST = 60523.0 + (22 * 3600 + 10) / 86400  # 2024-08-01T22:00:10


@pytest.mark.parametrize(
    ("cards", "start"),
    [
        ({"DATE-OBS": "2024-08-01T22:00:10"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01T22:00:10Z"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-02T00:00:10+02:00"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01 22:00:10.5"}, "2024-08-01T22:00:10.500"),
        ({"DATE-OBS": "2024-08-01T22:00:10.2243843"}, "2024-08-01T22:00:10.224"),
        ({"DATE-OBS": "2024-08-01T22:00:60.000"}, "2024-08-01T22:01:00"),
        ({"DATE-OBS": "2024-08-01T24:00:00"}, "2024-08-02T00:00:00"),
        ({"DATE-OBS": "2024/08/01 22:00:10"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "  2024-08-01T22:00 "}, "2024-08-01T22:00:00"),
        ({"DATE-OBS": "2024-08-01T00:00:00"}, "2024-08-01T00:00:00"),
        # date and time apart
        ({"DATE-OBS": "2024-08-01", "TIME-OBS": "22:00:10"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01T00:00:00", "UT": "22:00:10.25"}, "2024-08-01T22:00:10.250"),
        ({"DATE-OBS": "01/08/99", "UT": "22:00:10"}, "1999-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01", "UTC": 79210.0}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01", "TM-START": 5.0}, "2024-08-01T00:00:05"),
        ({"DATE-OBS": "2024-08-01", "UTSTART": "2024-08-01T22:00:10"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01", "EXPSTART": "22:00:10"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01", "UT": "22:05:10", "UT-STR": "22:00:10"}, "2024-08-01T22:00:10"),
        # numbers of days
        ({"MJD-OBS": 60523.9166667}, "2024-08-01T22:00:00"),
        ({"DATE-OBS": "2024-08-01", "MJD-OBS": TEN_PAST}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01", "EXPSTART": TEN_PAST}, "2024-08-01T22:00:10"),
        ({"JD": 2400000.5 + TEN_PAST}, "2024-08-01T22:00:10"),
        ({"MJD-OBS": 60523.5}, "2024-08-01T12:00:00"),
        ({"DATE-OBS": "2024-08-01", "UT": "01:00:00", "MJD-OBS": 60524.0416667}, "2024-08-02T01:00:00"),
        ({"DATE-OBS": "2024-08-01T00:00:00", "MJD-OBS": 60600.5}, "2024-08-01T00:00:00"),
        # local time, other systems
        ({"DATE-LOC": "2024-08-02T00:00:10", "MJD-OBS": 60523.9166667}, "2024-08-01T22:00:00"),
        ({"DATE-LOC": "2024-08-02T00:00:10+02:00"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01T22:00:47", "TIMESYS": "TAI"}, "2024-08-01T22:00:10"),
        ({"DATE-OBS": "2024-08-01T22:00:10", "TIMESYS": "UTC (approximate)"}, "2024-08-01T22:00:10"),
        # from the end
        ({"DATE-END": "2024-08-01T22:00:20", "EXPTIME": 10.0}, "2024-08-01T22:00:10"),
    ],
)
def test_dialects_of_the_start(cards: dict[str, Any], start: str) -> None:
    found = exposure_of(cards).start
    assert found is not None
    assert iso(found) == start


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"DATE-OBS": "2024-08-01"},
        {"DATE-OBS": "2024-08-01", "UT": "25:00:00"},
        {"DATE-OBS": "2024-08-01", "UT": 22.0},  # hours or seconds
        {"DATE-OBS": "2024-08-01", "MJD-OBS": 60523.0},
        {"MJD-OBS": 60523.92},  # good to a quarter of an hour
        {"MJD-OBS": 0.0},
        {"MJD-OBS": True},
        {"DATE-OBS": "01/08/24", "UT": "22:00:10"},  # 1924 or 2024
        {"DATE-OBS": "01/08/2024", "UT": "22:00:10"},  # August or January
        {"DATE-OBS": "15/01/95"},
        {"DATE-OBS": "2024-13-01T22:00:10"},
        {"DATE-OBS": "2024-08-01T22:61:10"},
        {"DATE-OBS": "0001-01-01T00:00:00+10:00"},
        {"DATE-OBS": 5},
        {"DATE-OBS": ""},
        {"DATE-LOC": "2024-08-02T00:00:10"},
        {"DATE-OBS": "2024-08-01T22:00:10", "TIMESYS": "LOCAL"},
        {"DATE-OBS": "2004-08-01T22:00:10", "TIMESYS": "TAI"},  # before the last leap second
        {"DATE-OBS": "nonsense", "UT": "22:00:10"},
    ],
)
def test_what_does_not_tell_is_absent(cards: dict[str, Any]) -> None:
    assert start_of(cards) is None


@pytest.mark.parametrize("text", ["2024-02-29T23:59:59.9996", "1999-12-31T00:00:00", "1972-06-01T12:34:56.789"])
def test_days_are_those_of_astropy(text: str) -> None:
    at = moment(text)
    assert at is not None
    assert mjd_of(at) == pytest.approx(Time(text).mjd, abs=1e-9)
    back = start_of({"MJD-OBS": round(mjd_of(at), 8)})
    assert back is None or abs((back - at).total_seconds()) <= 1e-3


@pytest.mark.parametrize(
    ("cards", "seconds", "live", "count"),
    [
        ({"EXPTIME": 10.0}, 10.0, 10.0, 1),
        ({"EXPTIME": 0.0, "EXPOSURE": 4.0}, 4.0, 4.0, 1),
        ({"EXPTIME": "", "EXP_TIME": "4.5 sec"}, 4.5, 4.5, 1),
        ({"EXPTIME": "10,0", "EXPOSURE": 3.0}, 3.0, 3.0, 1),
        ({"EXPTIME": True}, math.nan, math.nan, 1),
        ({"EXPTIME": -1.0}, math.nan, math.nan, 1),
        ({"EXPTIME": 10.0, "LIVETIME": 9.5}, 10.0, 10.0, 1),
        ({"LIVETIME": 9.5}, math.nan, 9.5, 1),
        ({"EXPTIME": 10.0, "STACKCNT": 1, "NCOMBINE": 1}, 10.0, 10.0, 1),
        ({"EXPTIME": 10.0, "STACKCNT": 57}, 10.0, 570.0, 57),
        ({"EXPTIME": 10.0, "STACKCNT": 40, "TOTALEXP": 400.0}, 10.0, 400.0, 40),
        ({"EXPTIME": 10.0, "LIVETIME": 2150.0, "NCOMBINE": 2, "STACKCNT": 214}, 10.0, 2150.0, 214),
        ({"EXPTIME": 600.0, "SNAPSHOT": 3, "LIVETIME": 0.0}, 600.0, 1800.0, 3),
        ({"EXPTIME": 10.0, "STACKCNT": 2.5}, 10.0, 10.0, 1),
        ({"EXPOINUS": 1_200_000_000}, 1200.0, 1200.0, 1),  # microseconds
        ({"EXPTIME": 10.0, "NSTACK": 30}, 10.0, 300.0, 30),
        ({"EXPTIME": 10.0, "NSUBS": 30, "TOT_EXP": 290.0}, 10.0, 290.0, 30),
    ],
)
def test_exposure_and_count(cards: dict[str, Any], seconds: float, live: float, count: int) -> None:
    found = exposure_of(cards)
    assert (found.seconds, found.live) == pytest.approx((seconds, live), nan_ok=True)
    assert found.count == count


@pytest.mark.parametrize("card", ["EXP-TIME", "EXPTIM", "INTTIME", "EXPOINUS", "XPOSURE"])
def test_what_tells_the_exposure_tells_the_kind_too(card: str) -> None:
    cards = {card: 5_000_000 if card == "EXPOINUS" else 5.0}
    assert frame_kind(cards, "a.fits").exposure == exposure_of(cards).seconds == 5.0


def test_end_and_middle_of_a_frame_and_of_a_stack() -> None:
    start = datetime(2024, 8, 1, 22)
    cards = {"DATE-OBS": "2024-08-01T22:00:00", "EXPTIME": 10.0}
    frame = exposure_of(cards)
    assert frame == Exposure(start, datetime(2024, 8, 1, 22, 0, 5), datetime(2024, 8, 1, 22, 0, 10), 10.0, 10.0) or (
        math.isnan(frame.airmass) and frame.end == datetime(2024, 8, 1, 22, 0, 10)
    )
    assert frame.middle == datetime(2024, 8, 1, 22, 0, 5)
    # Of a frame the end must fit its exposure: some programs write local time there, or when the file was saved.
    assert exposure_of({**cards, "DATE-END": "2024-08-02T00:00:10"}).end == frame.end
    assert exposure_of({**cards, "DATE-END": "2024-08-01T22:00:11"}).end == datetime(2024, 8, 1, 22, 0, 11)
    stack = exposure_of({
        **cards, "STACKCNT": 200, "DATE-END": "2024-08-01T23:00:00", "DATE-AVG": "2024-08-01T22:40:00", "AIRMASS": 1.2,
    })  # fmt: skip
    assert (stack.end, stack.middle) == (datetime(2024, 8, 1, 23), datetime(2024, 8, 1, 22, 40))
    assert (stack.live, stack.count, stack.airmass) == (2000.0, 200, 1.2)
    outside = exposure_of({**cards, "DATE-AVG": "2024-08-01T22:40:00"})
    assert outside.middle == frame.middle


def test_the_last_moments_of_the_calendar() -> None:
    found = exposure_of({"DATE-OBS": "9999-12-31T23:59:59.9999", "EXPTIME": 4.0})
    assert found.start is not None and found.end is None
    assert iso(found.start).startswith("9999-12-31T23:59:59")


def test_every_card_that_is_looked_at_is_asked_for() -> None:
    asked: set[str] = set()

    class Cards(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    exposure_of(Cards({"DATE-OBS": "2024-08-01"}))
    assert asked <= set(MOMENT_KEYS)
