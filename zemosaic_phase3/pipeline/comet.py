"""A stack that holds still for a moving target: by how much each frame is shifted after it was registered by the stars.

Frames are measured, registered and matched by their stars as ever; only then is each moved by what the target moved
between the reference's middle of exposure and its own. The target's path comes from two places where a user saw it, and
is a straight line then, or from an ephemeris, and is a smooth curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.registration.transform import transform_points

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import Table
    from astropy.wcs import WCS

    from zemosaic_phase3.pipeline.group import Group

REMEDY: Final = (
    "give the target's place in two frames, --comet FIRST.fits:X,Y --comet LAST.fits:X,Y, or a table with columns for "
    "the time (UTC), RA and DEC, --comet TABLE.csv"
)
TIME_COLUMNS: Final = ("time", "date", "datetime", "date_utc", "utc", "datetime_str", "datetime_jd", "jd", "mjd")
RA_COLUMNS: Final = ("ra", "ra_deg", "r.a.", "raj2000")
DEC_COLUMNS: Final = ("dec", "dec_deg", "de", "dej2000")
JD_OF_MJD: Final = 2_400_000.5
MJD_ZERO: Final = datetime(1858, 11, 17)  # noqa: DTZ001 - moments are UTC, without a zone, as FITS writes them
DAY: Final = 86_400.0  # seconds
SMOOTH: Final = 4  # places from which on a path is a cubic spline; fewer are joined by lines


class Click(NamedTuple):
    """Where a user saw the target: a frame's name, and the place in its own pixels."""

    frame: str
    x: float
    y: float


@dataclass(frozen=True)
class Comet:
    """A moving target: two ``clicks``, or an ephemeris ``table``."""

    clicks: tuple[Click, ...] = ()
    table: Path | None = None


def comet_of(said: str | Sequence[str] | None) -> Comet | None:
    """Return the target that a user names; None where there is none.

    Parameters
    ----------
    said : str or sequence of str or None
        ``"FRAME:X,Y"`` twice, with the name or path of a frame and a place in its pixels (counted from 0 or from 1,
        but alike in both); or the path of a table.

    Raises
    ------
    SpecError
        It is neither; or the table does not exist.
    """
    texts = [said] if isinstance(said, str) else list(said or ())
    if not texts:
        return None
    clicks = [click for text in texts if (click := _click(text)) is not None]
    if len(texts) == 1 and not clicks:
        table = Path(texts[0])
        if not table.is_file():
            raise SpecError(f"--comet {texts[0]}: no such table; {REMEDY}")
        return Comet(table=table)
    if len(clicks) != 2 or len(texts) != 2:
        count = "one place alone" if len(texts) == 1 else f"{len(texts)} places"
        wrong = next((text for text in texts if _click(text) is None), count)
        raise SpecError(f"--comet {wrong}: {REMEDY}")
    if Path(clicks[0].frame).name == Path(clicks[1].frame).name:
        raise SpecError(f"--comet names {clicks[0].frame} twice; {REMEDY}")
    return Comet(tuple(clicks))


def _click(text: str) -> Click | None:
    frame, colon, place = text.rpartition(":")
    try:
        x, y = (float(part) for part in place.split(","))
    except ValueError:
        return None
    return Click(frame, x, y) if colon and frame and math.isfinite(x) and math.isfinite(y) else None


class Motion(NamedTuple):
    """Where the target moves from a reference pixel to others: ``shifts`` by position in the group, and what to say."""

    shifts: dict[int, np.ndarray]
    note: str


def find_motion(group: Group, comet: Comet) -> Motion:
    """Return by how much the target moved in each usable frame since the reference, ``(2,) float64`` reference pixels.

    Frames whose time is not known, or lies outside an ephemeris, are left out with the reason.

    Raises
    ------
    SpecError
        The reference has no time; a frame with a click is not among those used; the ephemeris cannot be read, does not
        reach over the reference's time, or there is no WCS to place it by.
    """
    moments = {i: group.scan(i).exposure.middle for i in group.usable}
    start = moments.get(group.reference)
    if start is None:
        raise SpecError(
            f"--comet: {group.rows[group.reference].name}, the reference, does not say when it was exposed; name "
            "another one with --reference"
        )
    times = {i: (moment - start).total_seconds() for i, moment in moments.items() if moment is not None}
    for i in moments.keys() - times.keys():
        group.rows[i].drop("it does not say when it was exposed, so that the comet cannot be found in it")
    path = _line(group, comet.clicks, times) if comet.clicks else _curve(group, comet, start)
    for i in [i for i in times if not path.first <= times[i] <= path.last]:
        if i == group.reference:
            raise SpecError(
                f"--comet {comet.table}: the table does not reach over {start.isoformat()}, the reference's time"
            )
        group.rows[i].drop(f"it was exposed at {moments[i]}, where {comet.table} has no place of the comet")
        del times[i]
    order = list(times)
    places = path.places(np.array([0.0, *(times[i] for i in order)]))
    shifts = {i: place - places[0] for i, place in zip(order, places[1:], strict=True)}
    hours = max(times.values()) - min(times.values())
    length = float(np.hypot(*(shifts[max(times, key=times.__getitem__)] - shifts[min(times, key=times.__getitem__)])))
    speed = f", {3600.0 * length / hours:.2f} px an hour" if hours > 0 else ""
    return Motion(shifts, f"aligned on a moving target: {length:.2f} px from the first frame to the last{speed}")


class Track(NamedTuple):
    """Places of the target, reference pixels, by seconds since the reference."""

    seconds: np.ndarray
    xy: np.ndarray
    first: float
    last: float

    def places(self, seconds: np.ndarray) -> np.ndarray:
        """Return places at some times, ``(n, 2) float64``."""
        if len(self.seconds) >= SMOOTH:
            from scipy.interpolate import CubicSpline

            return np.asarray(CubicSpline(self.seconds, self.xy)(seconds))
        step = np.diff(self.xy, axis=0) / np.diff(self.seconds)[:, None]
        k = np.clip(np.searchsorted(self.seconds, seconds) - 1, 0, len(step) - 1)
        return np.asarray(self.xy[k] + (seconds - self.seconds[k])[:, None] * step[k])


def _line(group: Group, clicks: Iterable[Click], times: dict[int, float]) -> Track:
    """Return the straight path through two places that were seen; it goes on before and after."""
    seen = []
    for click in clicks:
        i = next((i for i in times if _is_named(group.rows[i].name, click.frame)), None)
        if i is None:
            why = next((f": {row.reason}" for row in group.rows if _is_named(row.name, click.frame) and row.reason), "")
            raise SpecError(f"--comet {click.frame}: it is not among the frames that are stacked{why}; name others")
        (found,) = group.registrations([i])
        seen.append((times[i], transform_points(np.linalg.inv(found.transform), np.array([[click.x, click.y]]))[0]))
    seen.sort(key=lambda pair: pair[0])
    if seen[1][0] <= seen[0][0]:
        raise SpecError(f"--comet: both frames were exposed at the same time; {REMEDY}")
    return Track(np.array([t for t, _ in seen]), np.array([xy for _, xy in seen]), -math.inf, math.inf)


def _is_named(name: str, wanted: str) -> bool:
    return name == wanted or Path(name).name == wanted or Path(name) == Path(wanted)


def _curve(group: Group, comet: Comet, start: datetime) -> Track:
    """Return the path of an ephemeris on the reference's pixels."""
    from astropy.coordinates import SkyCoord

    reference = group.source(group.reference)
    wcs: WCS | None = reference.wcs()
    if wcs is None:
        raise SpecError(
            f"--comet {comet.table}: {reference.name}, the reference, has no celestial WCS to place RA and DEC by; "
            "plate-solve it, or give the target's place in two frames"
        )
    table = _read_table(comet)
    columns = {name.lower().strip(): name for name in table.colnames}
    when, ra, dec = (_column(table, columns, names, comet) for names in (TIME_COLUMNS, RA_COLUMNS, DEC_COLUMNS))
    try:
        moments = np.array([_moment(value) for value in when])
        if np.asarray(ra).dtype.kind in "fiu":
            places = SkyCoord(np.asarray(ra, float), np.asarray(dec, float), unit="deg")
        else:
            places = SkyCoord([str(v) for v in ra], [str(v) for v in dec], unit=("hourangle", "deg"))
    except (ValueError, TypeError) as exc:
        raise SpecError(f"--comet {comet.table}: {exc}; {REMEDY}") from exc
    seconds = DAY * (moments - (start - MJD_ZERO).total_seconds() / DAY)
    order = np.argsort(seconds)
    seconds = seconds[order]
    if len(seconds) < 2 or (np.diff(seconds) <= 0).any():
        raise SpecError(f"--comet {comet.table}: it needs two or more places at different times")
    x, y = wcs.world_to_pixel(places[order])
    xy = np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)
    if not np.isfinite(xy).all():
        raise SpecError(f"--comet {comet.table}: not all of its places are on the sky around the field; shorten it")
    return Track(seconds, xy, float(seconds[0]), float(seconds[-1]))


def _read_table(comet: Comet) -> Table:
    from astropy.table import Table

    try:
        return Table.read(comet.table, format="ascii.ecsv" if comet.table.suffix == ".ecsv" else "ascii")  # type: ignore[union-attr]
    except Exception as exc:  # noqa: BLE001 - guessing formats raises whatever the last guess did
        first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise SpecError(f"--comet {comet.table}: it is no table that can be read ({first}); {REMEDY}") from exc


def _column(table: Table, columns: dict[str, str], names: Sequence[str], comet: Comet) -> Any:
    for name in names:
        if name in columns:
            return table[columns[name]]
    raise SpecError(
        f"--comet {comet.table}: it has no column {names[0]!r} (nor {', '.join(names[1:])}), but {', '.join(columns)}; "
        f"{REMEDY}"
    )


def _moment(value: Any) -> float:
    """Return a moment as MJD: of a date and time, or of a JD or MJD."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        from astropy.time import Time

        return float(Time(_iso(str(value).strip()), scale="utc").mjd)
    return number - JD_OF_MJD if number > JD_OF_MJD else number


def _iso(text: str) -> str:
    """Return a date as JPL Horizons writes it, ``2026-Nov-28 12:00``, as ISO 8601 has it; others as they are."""
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    for k, month in enumerate(months):
        text = text.replace(f"-{month}-", f"-{k + 1:02d}-")
    return text.removesuffix("Z").replace("T", " ")


def note_motion(header: Header, shifts: Mapping[int, np.ndarray]) -> Header:
    """Add to a tile's header that a target was held still, so that its WCS holds for the reference's moment alone.

    ``shifts``: by how much it moved in each frame, pixels of the reference; empty: the sky was held still.
    """
    if shifts:
        places = np.stack([np.asarray(shift, np.float64) for shift in shifts.values()])
        moved = float(np.hypot(*(places.max(axis=0) - places.min(axis=0))))
        header["ZMT_MOVE"] = (float(f"{moved:.6g}"), "px the target moved that was held still")
    return header
