"""The FITS header of a tile: WCS and observation of the reference, exposures of all frames, what was done."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_phase3 import __version__
from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.io.fits_header import FITS_CARD, card_value
from zemosaic_phase3.io.tile_file import check_writable
from zemosaic_phase3.pipeline.group import Group, Scan
from zemosaic_phase3.records import FrameTable, TileReport
from zemosaic_phase3.spec import StackSpec

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS


KEPT_CARDS = (
    "OBJECT", "DATE-AVG", "FILTER", "INSTRUME", "TELESCOP", "FOCALLEN", "XPIXSZ", "YPIXSZ", "GAIN", "OFFSET",
    "CCD-TEMP", "OBSERVER", "SITELAT", "SITELONG", "RA", "DEC", "EQUINOX", "ROWORDER",
)  # fmt: skip


def cards_of_reference(reference: Header, wcs: WCS | None, shape: tuple[int, ...]) -> tuple[Header, list[str]]:
    """Return what a tile's header takes from the reference, tried out: it can be written in a tile of this shape.

    What comes from elsewhere must not lose a finished stack, so this is done before the stack. What is added to these
    cards later is ours.

    Parameters
    ----------
    reference : Header
        Of the reference frame.
    wcs : WCS or None
        Of the reference frame.
    shape : tuple of int
        (H, W) or (H, W, 3) of the tile.

    Returns
    -------
    cards : Header
    notes : list of str
        What FITS cannot hold and was left out, one line each.
    """
    from astropy.io.fits import Header

    parts: list[tuple[str, Callable[[], Header]]] = [(key, partial(_kept_card, reference, key)) for key in KEPT_CARDS]
    if wcs is not None:
        parts.append(("the WCS", partial(wcs_cards, wcs)))
    notes: list[str] = []

    def joined(*, one_by_one: bool) -> Header:
        header = Header()
        notes.clear()
        for name, make in parts:
            try:
                added = make()
                if one_by_one:
                    check_writable(added, shape)
            except Exception as exc:  # noqa: BLE001 - astropy refuses in many ways, and all mean the same here
                reason = " ".join(str(exc).split())
                notes.append(f"{name} of the reference cannot be in a FITS header and is left out: {reason}")
            else:
                header.extend(added, update=True)
        return header

    header = joined(one_by_one=False)
    try:
        check_writable(header, shape)
    except Exception:  # noqa: BLE001 - which of them it is, is seen next
        header = joined(one_by_one=True)
    return header, notes


def _kept_card(reference: Header, key: str) -> Header:
    """Return one card of the reference as a header; without it where it has no value."""
    from astropy.io.fits import Header

    card = Header()
    value = card_value(reference, key)
    if value is not None:
        card[key] = value
        with contextlib.suppress(Exception):  # a comment is not worth a value
            card.comments[key] = _short_comment(value, reference.comments[key])
    return card


def tile_header(cards: Header, group: Group, job: Job, report: TileReport) -> Header:
    """Return the tile's header: WCS and observation of the reference, exposures of the frames stacked, what was done.

    ``cards``: from :func:`cards_of_reference`.

    Times are those of the frames that were stacked: EXPTIME one exposure (median), EXPTOTAL and LIVETIME their sum,
    seconds; DATE-OBS the first start, DATE-END the last end, UTC.
    """
    header = cards.copy()
    _exposure_cards(header, [group.scan(i) for i in group.usable])
    n = report.n_used
    for key in ("NCOMBINE", "STACKCNT", "NEXP_SUM"):
        header[key] = (n, "frames stacked")
    header["BUNIT"] = ("adu", "level of the reference frame")
    header.extend(_method_cards(job.spec, job.table, is_sparing=job.tolerance is not None))
    header["ZMT_REF"] = (_short(report.reference), "reference frame")
    header["ZMT_DEV"] = (report.device, "device that stacked")
    header["ALPHAEXT"] = (1, "alpha mask in extension ALPHA")
    for name, noise in zip("RGB" if len(report.noise_after) == 3 else "L", report.noise_after, strict=True):
        header[f"ZMT_NOI{name}"] = (_card_number(noise), "sky noise, adu")
    header.add_history(f"zemosaic-phase3 {__version__}: {n} of {report.n_input} frames, device {report.device}")
    return header


def _method_cards(stack: StackSpec, table: FrameTable, *, is_sparing: bool) -> Header:
    """Say what was applied, which may be less than what was asked for: only a mean is weighted."""
    from astropy.io.fits import Header

    cards = Header()
    cards["ZMT_NORM"] = (table.normalize_method or stack.normalize, "normalisation")
    cards["ZMT_WGHT"] = (table.weight_method, "frame weights")
    cards["ZMT_FLAT"] = (stack.flatten, "backgrounds made alike")
    is_radial = stack.radial_weight and stack.combine == "mean"
    cards["ZMT_RADW"] = (is_radial, "radial weighting")
    if is_radial:
        cards["ZMT_RADF"] = (stack.radial_feather, "radial feather, half diagonals")
        cards["ZMT_RADP"] = (stack.radial_power, "radial shape power")
    cards["ZMT_REJ"] = (stack.reject, "rejection")
    cards["ZMT_SPAR"] = (is_sparing, "rejection spares what seeing does to stars")
    if stack.reject == "winsorized_sigma_clip":
        cards["ZMT_WSC"] = (stack.wsc_impl, "winsorizing")
    if stack.is_legacy_winsor:
        cards["HIERARCH ZMT_WINLO"] = (stack.winsor_limits[0], "winsorizing limit, fraction")
        cards["HIERARCH ZMT_WINHI"] = (stack.winsor_limits[1], "winsorizing limit, fraction")
    if stack.reject != "none":
        cards["HIERARCH ZMT_KAPLO"] = (stack.kappas[0], "rejection limit, sigma")
        cards["HIERARCH ZMT_KAPHI"] = (stack.kappas[1], "rejection limit, sigma")
    cards["ZMT_COMB"] = (stack.combine, "combination")
    cards["ZMT_INTP"] = (stack.interpolation, "interpolation")
    return cards


def wcs_cards(wcs: WCS) -> Header:
    """Return the cards of a WCS, SIP included, without the times astropy adds: a tile has its own."""
    header = wcs.to_header(relax=True)
    for key in ("MJDREF", "MJD-OBS", "MJD-AVG", "MJD-BEG", "MJD-END", "DATE-OBS", "DATE-AVG", "DATE-BEG", "DATE-END"):
        header.remove(key, ignore_missing=True)
    return header


def _short(name: str) -> str:
    """Name of a file as a FITS card can hold it: other characters than printable ASCII become question marks."""
    return "".join(c if " " <= c <= "~" else "?" for c in Path(name).name)[:60]


def _short_comment(value: object, comment: str) -> str:
    """Cut a comment to what fits beside the value; astropy cuts it too, with a warning."""
    text = str(value).replace("'", "''")
    room = FITS_CARD - len("KEYWORD = ''") - max(len(text), 18) - len(" / ")
    return comment[: max(room, 0)]


def _card_number(value: float) -> float | str:
    """FITS cards hold no NaN; an unknown number is written as such."""
    return float(f"{value:.7g}") if np.isfinite(value) else "unknown"


def _exposure_cards(header: Header, scans: Sequence[Scan]) -> None:
    known = [scan.exposure for scan in scans if math.isfinite(scan.exposure)]
    if known:
        header["EXPTIME"] = (float(np.median(known)), "one exposure, s")
        header["EXPTOTAL"] = (math.fsum(known), "all exposures stacked, s")
        header["LIVETIME"] = (math.fsum(known), "all exposures stacked, s")
    starts = [scan.start for scan in scans if scan.start is not None]
    ends = [end for scan in scans if (end := _end(scan)) is not None]
    if starts:
        header["DATE-OBS"] = (_iso(min(starts)), "start of the first exposure")
    if ends:
        header["DATE-END"] = (_iso(max(ends)), "end of the last exposure")


def _end(scan: Scan) -> datetime | None:
    if scan.start is None or not math.isfinite(scan.exposure):
        return None
    try:
        return scan.start + timedelta(seconds=scan.exposure)
    except OverflowError:  # beyond the year 9999
        return None


def _iso(moment: datetime) -> str:
    """ISO 8601, with a fraction where there is one."""
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
