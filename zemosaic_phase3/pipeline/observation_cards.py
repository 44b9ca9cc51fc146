"""The cards of a tile's header that say when and how long its frames were exposed, and what kind of image it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_phase3 import __version__
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.moments import MOMENT_KEYS, Exposure, exposure_of, iso, mjd_of
from zemosaic_phase3.pipeline.group import Group

if TYPE_CHECKING:
    from astropy.io.fits import Header

PROGRAM = f"zemosaic-phase3 {__version__}"
MJD_DECIMALS = 8  # of a day: a millisecond


def exposure_cards(exposures: Sequence[Exposure], reference: Exposure, share: np.ndarray, *, matched: bool) -> Header:
    """Say when and how long the frames of a tile were exposed.

    Parameters
    ----------
    exposures : sequence of Exposure, length N
        Of the frames stacked.
    reference : Exposure
        Of the frame whose levels the tile has.
    share : ndarray (N,) float64
        Weight of each frame in the mean.
    matched : bool
        True where the frames were brought to the levels of the reference. Then the tile has the levels of its exposure,
        and a frame counts in the mean time with its weight. Else both are those of the mean of the exposures as they
        are: a longer one has more light in it.

    Returns
    -------
    Header
        EXPTIME (s), EXPTOTAL and LIVETIME (s), STACKCNT, DATE-OBS and DATE-BEG, DATE-END, DATE-AVG, the MJD of
        each, TIMESYS; without what is not known of any frame.
    """
    from astropy.io.fits import Header

    cards = Header()
    seconds = np.array([e.seconds for e in exposures], np.float64)
    known = seconds > 0
    if matched and reference.seconds > 0:
        cards["EXPTIME"] = (reference.seconds, "s, exposure that the levels belong to")
    elif known.any():
        weights = share[known] if share[known].sum() > 0 else None
        mean = float(np.average(seconds[known], weights=weights))
        cards["EXPTIME"] = (float(f"{mean:.9g}"), "s, mean exposure, that the levels belong to")
    live = [e.live for e in exposures if e.live > 0]
    for key in ("EXPTOTAL", "LIVETIME") if live else ():
        cards[key] = (math.fsum(live), "s, all exposures in it")
    cards["STACKCNT"] = (sum(e.count for e in exposures), "exposures in it")
    starts = [e.start for e in exposures if e.start is not None]
    ends = [e.end for e in exposures if e.end is not None]
    average = _mean_time(exposures, share if matched or not known.all() else share * seconds)
    if starts:
        first = min(starts)
        cards["DATE-OBS"] = (iso(first), "start of the first exposure")
        cards["DATE-BEG"] = (iso(first), "start of the first exposure")
        for key in ("MJD-OBS", "MJD-BEG"):  # of each date its MJD too: astropy would add it, with a warning
            cards[key] = (round(mjd_of(first), MJD_DECIMALS), "d, start of the first exposure")
    if ends:
        cards["DATE-END"] = (iso(max(ends)), "end of the last exposure")
        cards["MJD-END"] = (round(mjd_of(max(ends)), MJD_DECIMALS), "d, end of the last exposure")
    if average is not None:
        cards["DATE-AVG"] = (iso(average), "mean of the mid-exposure times, weighted")
        cards["MJD-AVG"] = (round(mjd_of(average), MJD_DECIMALS), "d, mean of the mid-exposure times, weighted")
    if starts or ends or average is not None:
        cards["TIMESYS"] = ("UTC", "of the dates and times")
    airmass = [e.airmass for e in exposures if e.airmass > 0]
    if airmass:
        cards["AIRMASS"] = (round(float(np.mean(airmass)), 4), "mean of the frames stacked")
    return cards


def _mean_time(exposures: Sequence[Exposure], share: np.ndarray) -> datetime | None:
    """Return the mean of the middles of the exposures."""
    known = [(e.middle, part) for e, part in zip(exposures, share.tolist(), strict=True) if e.middle is not None]
    if not known:
        return None
    first = known[0][0]
    weight = math.fsum(part for _, part in known)
    if not weight > 0:
        known, weight = [(middle, 1.0) for middle, _ in known], float(len(known))
    later = math.fsum((middle - first).total_seconds() * part for middle, part in known) / weight
    return first + timedelta(seconds=later)


def complete_exposures(group: Group) -> None:
    """Add to what the cards of time say what else is known of a frame: its name may tell exposure and number.

    Nothing is read again but the headers of frames of which that is more.
    """
    for i in group.usable:
        facts, scan = group.rows[i].facts, group.scan(i)
        if facts is None:
            continue
        lacks_time = not scan.exposure.seconds > 0 and facts.exposure > 0
        if facts.count <= scan.exposure.count and not lacks_time:
            continue
        try:
            cards = dict(zip(MOMENT_KEYS, group.source(i).card_values(*MOMENT_KEYS), strict=True))
        except FrameError:  # whoever reads its pixels for the stack leaves it out
            continue
        if lacks_time:
            cards["EXPTIME"] = facts.exposure
        cards["STACKCNT"] = max(facts.count, scan.exposure.count)
        group.rows[i].scan = replace(scan, exposure=exposure_of(cards))


def missing_starts(exposures: Sequence[Exposure]) -> list[str]:
    """Say that the times of a tile are those of a part of its frames, where that is so."""
    missing = sum(e.start is None for e in exposures)
    if missing in (0, len(exposures)):
        return []
    return [
        f"{missing} of {len(exposures)} frames do not say when they began (a date without a time of day does not); "
        "the times of the stack are those of the others"
    ]


def program_cards() -> Header:
    """Say what wrote the tile, and when."""
    from astropy.io.fits import Header

    cards = Header()
    for key, what in (("PROGRAM", "made"), ("SWCREATE", "made"), ("CREATOR", "wrote")):
        cards[key] = (PROGRAM, f"software that {what} this file")
    cards["DATE"] = (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC, when this file was made")
    return cards


def master_kind(kind: Any) -> str:
    """Return IMAGETYP of a stack of frames of a kind, as PixInsight and others spell it."""
    word = str(kind or "").lower()
    if "dark" in word and "flat" in word:
        return "Master Dark Flat"
    return next((f"Master {name}" for name in ("Dark", "Flat", "Bias") if name.lower() in word), "Master Light")


def unit_of(unit: Any) -> str:
    """Return BUNIT of a stack of frames in a unit: that unit where astropy can read it, else ADU."""
    text = str(unit or "").strip()
    if text.lower() in ("", "adu", "adus", "count", "counts", "dn"):
        return "adu"
    from astropy.units import Unit

    try:
        Unit(text)
    except (ValueError, TypeError):
        return "adu"
    return text
