"""When and for how long a frame was exposed, from what the capture programs of forty years write.

A moment is right or absent. A date without a time is no moment: taken for midnight it would be up to a day wrong, and
nothing would show it. Local time is not UTC. Only :mod:`datetime` is used: there are ten thousand frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Final

# Cards that say when an exposure began, in the order in which they are believed.
_START_KEYS: Final = ("DATE-BEG", "DATE-OBS", "DATE_OBS", "UTSTART", "UT-START", "TIME-OBS", "EXPSTART")
_DAY_KEYS: Final = ("DATE-BEG", "DATE-OBS", "DATE_OBS", "UTDATE", "UT-DATE", "DATE-UT")
_CLOCK_KEYS: Final = (
    "TIME-BEG", "UTSTART", "UT-START", "UT_START", "UTCSTART", "UT-STR", "UT-BEG", "UTC-BEG", "TM-START", "TM_START",
    "EXPSTART", "STARTTIM", "TIME-OBS", "TIME_OBS", "UTC-OBS", "UTOBS", "UT-OBS", "UT", "UTC", "UTIME", "UT-TIME",
    "TIME-UT", "TIME-UTC", "UTSHUT",
)  # fmt: skip
_SECONDS_KEYS: Final = frozenset({"TM-START", "TM_START", "UTC"})  # numbers there are seconds of the day (ESO)
_MJD_KEYS: Final = ("MJD-BEG", "MJD-STR", "MJD-OBS", "MJD_OBS", "MJD", "EXPSTART")
_JD_KEYS: Final = ("JD-OBS", "JD-BEG", "JD", "JD_SOBS")
EXPOSURE_KEYS: Final = (
    "EXPTIME", "EXPOSURE", "EXP_TIME", "EXP-TIME", "EXPTIM", "XPOSURE", "EXPOINUS", "ITIME", "INTTIME",
)  # fmt: skip
LIVE_KEYS: Final = ("LIVETIME", "EXPTOTAL", "TOTALEXP", "TOTEXP", "TOT_EXP")
COUNT_KEYS: Final = (
    "STACKCNT", "NCOMBINE", "SNAPSHOT", "LIGH_CNT", "LUM_CNT", "RED_CNT", "GRN_CNT", "BLU_CNT", "RGB_CNT", "STACKS",
    "NSTACK", "NSTACKED", "NSUBS", "NUMSUBS", "STKCOUNT",
)  # fmt: skip
_MICROSECONDS: Final = "EXPOINUS"

MOMENT_KEYS: Final = tuple(
    dict.fromkeys((
        *_START_KEYS, *_DAY_KEYS, *_CLOCK_KEYS, *_MJD_KEYS, *_JD_KEYS, *EXPOSURE_KEYS, *LIVE_KEYS, *COUNT_KEYS,
        "DATE-END", "MJD-END", "DATE-AVG", "MJD-AVG", "DATE-LOC", "TIMESYS", "AIRMASS",
    ))
)  # fmt: skip
"""Cards of a header that :func:`exposure_of` looks at."""

_MJD_ZERO: Final = datetime(1858, 11, 17)  # noqa: DTZ001 - moments are UTC, without a zone, as FITS writes them
_JD_OF_MJD: Final = 2_400_000.5
_MJD_RANGE: Final = (15_000.0, 100_000.0)  # the years 1899 to 2132; other numbers under these keys are no dates
_DAY: Final = 86_400.0  # seconds
LONGEST_SECONDS: Final = 1e9  # thirty years; more is no exposure
# To be subtracted from other time systems for UTC, seconds, since the last leap second; before it: no moment.
_TO_UTC: Final[Mapping[str, float]] = {
    "TAI": 37.0, "IAT": 37.0, "TT": 69.184, "TDT": 69.184, "ET": 69.184, "TDB": 69.184, "GPS": 18.0,
}  # fmt: skip
_LAST_LEAP_SECOND: Final = datetime(2017, 1, 1)  # noqa: DTZ001 - UTC

_CLOCK: Final = re.compile(
    r"(?P<h>\d{1,2}):(?P<m>\d{1,2})(?::(?P<s>\d{1,2}(?:\.\d*)?))?\s*(?P<zone>Z|UTC?|GMT|[+-]\d\d:?\d\d)?", re.IGNORECASE
)
_ISO_DAY: Final = re.compile(r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})|(?P<packed>\d{8})")
_OLD_DAY: Final = re.compile(r"(?P<d>\d{1,2})[/-](?P<m>\d{1,2})[/-](?P<y>\d{2}|\d{4})")  # FITS before 1999
_OLDEST_CENTURY_YEAR: Final = 30  # of two digits; below, it may be one of the 21st century
_UNIT: Final = re.compile(r"\s*(s|sec|secs|second|seconds)\.?$", re.IGNORECASE)


@dataclass(frozen=True)
class Exposure:
    """When and for how long a frame was exposed; moments are UTC, unknown numbers nan.

    Attributes
    ----------
    start, middle, end : datetime or None
        Of the exposure, or of all that a stack holds.
    seconds : float
        Of one exposure, to which the levels belong.
    live : float
        Of all exposures in it together, seconds; of a single frame the same.
    count : int
        Exposures in it: 1, or those of a stack.
    airmass : float
    """

    start: datetime | None = None
    middle: datetime | None = None
    end: datetime | None = None
    seconds: float = math.nan
    live: float = math.nan
    count: int = 1
    airmass: float = math.nan


def exposure_of(cards: Mapping[str, Any]) -> Exposure:
    """Gather the facts of an exposure from a header's values.

    Parameters
    ----------
    cards : mapping
        Values by key of :data:`MOMENT_KEYS`; None where there is none.

    Returns
    -------
    Exposure
        Unknown where the cards do not tell. A stack of others counts what it says it holds; where it names a number
        and no sum, its exposures are taken to be as long as the one it names.
    """
    seconds = exposure_seconds(cards)
    total = next((s for key in LIVE_KEYS if (s := _positive(cards.get(key))) > 0), math.nan)
    count = max([n for key in COUNT_KEYS if (n := _whole(cards.get(key))) > 1], default=1)
    if count == 1:
        live = seconds if seconds > 0 else total
    else:
        live = total if not total < seconds else seconds * count
        live = live if live > 0 else seconds * count
    start = start_of(cards)
    end = _end_of(cards, start, seconds, live, count)
    if start is None and end is not None and count == 1:
        start = _later(end, -seconds)
    airmass = _number(cards.get("AIRMASS"))
    return Exposure(
        start, _middle_of(cards, start, end), end, seconds, live, count, airmass if 1.0 <= airmass < 40.0 else math.nan
    )


def exposure_seconds(cards: Mapping[str, Any]) -> float:
    """Return how long one exposure was, seconds; nan where the cards do not tell."""
    for key in EXPOSURE_KEYS:
        value = cards.get(key)
        found = _positive(_number(value) / 1e6 if key == _MICROSECONDS else value)
        if found > 0:
            return found
    return math.nan


def start_of(cards: Mapping[str, Any]) -> datetime | None:
    """Return when an exposure began, UTC; None where the cards do not tell.

    Believed in this order: date and time in one card; a date, and the time in another card; MJD and JD; a local time
    that names its zone. Exactly midnight gives way to another card that tells a time of day. Where MJD is a whole day
    away from date and time in two cards, MJD holds: the date was that of the evening.
    """
    offset = _to_utc(cards.get("TIMESYS"))
    if offset is None:
        return None
    whole = next((m for key in _START_KEYS if (m := moment(cards.get(key))) is not None), None)
    if whole is not None and whole.time() != time():
        return _in_utc(whole, offset)
    by_number, apart = next(_numbered(cards), None), _apart(cards)
    if apart is not None and by_number is not None:
        days = (by_number - apart).total_seconds() / _DAY
        if round(days) and abs(days - round(days)) * _DAY < 60.0:
            apart = by_number
    found = apart or by_number
    if whole is not None and (found is None or abs((found - whole).total_seconds()) >= _DAY):
        found = whole
    if found is None:  # only with its zone
        return moment(cards.get("DATE-LOC"), needs_zone=True)
    return _in_utc(found, offset)


def moment(text: object, *, needs_zone: bool = False) -> datetime | None:
    """Return the moment that a text of date and time names, in UTC where it names a zone; None where it is none.

    A date alone is none. Seconds may be 60 (rounded, or a leap second), the hour 24; between date and time may stand
    "T" or blanks, the date may be day/month/year, as FITS had it before 1999.
    """
    if not isinstance(text, str):
        return None
    day, rest = _day_and_rest(text.strip())
    if day is None or not rest:
        return None
    clock = _CLOCK.fullmatch(rest.lstrip("Tt ").rstrip())
    return None if clock is None else _at(day, clock, needs_zone=needs_zone)


def mjd_of(at: datetime) -> float:
    """Return the Modified Julian Date of a moment, days."""
    return (at - _MJD_ZERO) / timedelta(days=1)


def iso(at: datetime) -> str:
    """Return a moment as FITS writes it, with milliseconds where there are some."""
    at = _rounded(at, 1000)
    return at.isoformat(timespec="milliseconds" if at.microsecond else "seconds")


def _day_and_rest(text: str) -> tuple[date | None, str]:
    """Split a text behind its date; None where it begins with none."""
    for pattern in (_ISO_DAY, _OLD_DAY):
        found = pattern.match(text)
        if found is None:
            continue
        parts = found.groupdict()
        packed = parts.get("packed")
        year, month, day = (packed[:4], packed[4:6], packed[6:]) if packed else (parts["y"], parts["m"], parts["d"])
        try:
            if pattern is _OLD_DAY and not _is_one_day(year, month, day):
                return None, ""
            return date(int(year) + (1900 if len(year) == 2 else 0), int(month), int(day)), text[found.end() :]
        except ValueError:
            return None, ""
    return None, ""


def _is_one_day(year: str, month: str, day: str) -> bool:
    """Return True if a date of the kind 31/12/99 can be read in one way only.

    Two digits are a year of the 20th century (FITS standard 4.0, section 4.4.2.1), but programs of our own write 24 for
    2024; with four digits some write the month first.
    """
    return int(year) >= _OLDEST_CENTURY_YEAR if len(year) == 2 else int(day) > 12 or int(day) == int(month)


def _at(day: date, clock: re.Match[str], *, needs_zone: bool = False) -> datetime | None:
    """Return the moment of a time of day; None where there is no such time, or no zone where one is needed."""
    hours, minutes, seconds = int(clock["h"]), int(clock["m"]), float(clock["s"] or 0.0)
    zone = (clock["zone"] or "").upper()
    if hours > 24 or minutes > 59 or seconds >= 61.0 or (needs_zone and not zone):
        return None
    east = 0.0
    if zone[:1] in ("+", "-"):
        digits = zone[1:].replace(":", "")
        east = (1.0 if zone[0] == "+" else -1.0) * (3600.0 * int(digits[:2]) + 60.0 * int(digits[2:]))
    start = datetime.combine(day, time())
    return _later(start, 3600.0 * hours + 60.0 * minutes + seconds - east)


def _apart(cards: Mapping[str, Any]) -> datetime | None:
    """Return the moment of a date and a time of day in two cards."""
    days = (_day_and_rest(str(cards.get(key) or "").strip()) for key in _DAY_KEYS)
    day = next((day for day, _ in days if day is not None), None)
    if day is None:
        return None
    for key in _CLOCK_KEYS:
        value = cards.get(key)
        if isinstance(value, str):
            clock = _CLOCK.fullmatch(value.strip())
            found = None if clock is None else _at(day, clock)
            if found is not None:
                return found
        seconds = _number(value)
        # Below 24 a number may be hours as well as seconds, but where the keyword says which; others may be MJD.
        if key not in _MJD_KEYS and (seconds >= 24.0 or key in _SECONDS_KEYS) and 0.0 <= seconds < _DAY + 1.0:
            return _later(datetime.combine(day, time()), seconds)
    return None


def _numbered(cards: Mapping[str, Any]) -> Iterator[datetime]:
    """Give the moments of MJD and JD that name a time of day."""
    for keys, zero in ((_MJD_KEYS, 0.0), (_JD_KEYS, _JD_OF_MJD)):
        for key in keys:
            found = _of_days(cards.get(key), zero)
            if found is not None:
                yield found


def _of_days(value: object, zero: float = 0.0) -> datetime | None:
    """Return the moment of a number of days; None where it names a day alone, or has too few digits to tell a time.

    Rounded as far as its digits go: a number with seven decimals is good to 9 ms, and means the whole second that is
    nearer than that.
    """
    number = _number(value)
    if not _MJD_RANGE[0] <= number - zero <= _MJD_RANGE[1]:
        return None
    decimals = len(str(value).strip().rstrip("0").partition(".")[2])
    if (number - zero) % 1.0 == 0.0 or "e" in str(value).lower():
        return None
    unit = max(10.0**-decimals, math.ulp(number)) * _DAY  # s
    whole_days, part = divmod(number - zero, 1.0)
    at = _later(_MJD_ZERO + timedelta(days=whole_days), part * _DAY)
    second = None if at is None else _rounded(at, 1_000_000)
    if at is None or second is None:
        return None
    if abs((at - second).total_seconds()) <= unit and unit < 1.0:
        return second
    if unit > 1.0:  # good to minutes at best, unless it is a plain part of the day
        return second if second.second == 0 and abs((at - second).total_seconds()) < 1e-3 else None
    return _rounded(at, 1000)


def _end_of(
    cards: Mapping[str, Any], start: datetime | None, seconds: float, live: float, count: int
) -> datetime | None:
    """Return when an exposure, or the last of a stack, ended.

    The card of a single frame is believed as far as its exposure time allows: some write the time of saving, or local
    time.
    """
    offset = _to_utc(cards.get("TIMESYS"))
    told = None if offset is None else moment(cards.get("DATE-END")) or _of_days(cards.get("MJD-END"))
    told = told if told is None or offset is None else _in_utc(told, offset)
    length = seconds if count == 1 else live
    counted = None if start is None else _later(start, length)
    if start is None or told is None:
        return counted if told is None else told
    took = (told - start).total_seconds()
    if count == 1:
        fits = took > 0 and (math.isnan(seconds) or 0.9 * seconds <= took <= 2.0 * seconds + 5.0)
        return told if fits else counted
    return told if took > 0 else counted


def _middle_of(cards: Mapping[str, Any], start: datetime | None, end: datetime | None) -> datetime | None:
    """Return the middle of an exposure: what a card says between start and end, else half-way."""
    offset = _to_utc(cards.get("TIMESYS"))
    told = None if offset is None else moment(cards.get("DATE-AVG")) or _of_days(cards.get("MJD-AVG"))
    told = told if told is None or offset is None else _in_utc(told, offset)
    if start is None or end is None:
        return told if start is None and end is None else None
    return told if told is not None and start <= told <= end else start + (end - start) / 2


def _to_utc(system: object) -> float | None:
    """Return what a time system is ahead of UTC, seconds; None where that is not known."""
    name = str(system or "UTC").strip().upper()
    if name.startswith(("UT", "GMT")):
        return 0.0
    return _TO_UTC.get(name.partition("(")[0].strip())


def _in_utc(at: datetime, ahead: float) -> datetime | None:
    """Return a moment of another time system in UTC; None before the last leap second."""
    return at if not ahead else None if at < _LAST_LEAP_SECOND else _later(at, -ahead)


def _later(at: datetime, seconds: float) -> datetime | None:
    """Return the moment so many seconds later; None where that is not known, or beyond the years 1 to 9999."""
    try:
        return at + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None


def _rounded(at: datetime, microseconds: int) -> datetime:
    """Round a moment to whole microseconds of a second, or to whole seconds."""
    part = at.microsecond
    try:
        return at + timedelta(microseconds=round(part / microseconds) * microseconds - part)
    except OverflowError:
        return at.replace(microsecond=part // microseconds * microseconds)


def _number(value: object) -> float:
    """Return a finite number, or nan; a flag is none."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _positive(value: object) -> float:
    """Return a length of time, seconds, with or without its unit behind it; nan where it is none."""
    number = _number(_UNIT.sub("", value) if isinstance(value, str) else value)
    return number if 0 < number < LONGEST_SECONDS else math.nan


def _whole(value: object) -> int:
    """Return a number of exposures; 0 where it is none."""
    number = _number(value)
    return int(number) if 0 < number < 1e9 and number == int(number) else 0
