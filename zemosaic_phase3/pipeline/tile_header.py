"""The FITS header of a tile: WCS and observation of the reference, exposures of all frames, what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.io.fits_header import FITS_CARD, card_value
from zemosaic_phase3.io.tile_file import check_writable, fits_text
from zemosaic_phase3.photometry.flatten import count_flattened
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.observation_cards import (
    PROGRAM,
    exposure_cards,
    master_kind,
    missing_starts,
    program_cards,
    unit_of,
)
from zemosaic_phase3.records import Equalization, TileReport

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS


KEPT_CARDS = (
    "OBJECT", "FILTER", "INSTRUME", "TELESCOP", "FOCALLEN", "FOCRATIO", "APTDIA", "XPIXSZ", "YPIXSZ", "XBINNING",
    "YBINNING", "GAIN", "OFFSET", "EGAIN", "CCD-TEMP", "SET-TEMP", "OBSERVER", "SITELAT", "SITELONG", "SITEELEV",
    "RA", "DEC", "OBJCTRA", "OBJCTDEC", "EQUINOX", "ROWORDER",
)  # fmt: skip
"""Cards of the reference that are true of the tile: it has the reference's pixels, levels and colours."""


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
    parts.append(("what it shows", partial(_kind_cards, reference)))
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


def _kind_cards(reference: Header) -> Header:
    """Return what kind of image a stack of such frames is, and the unit of its pixels."""
    from astropy.io.fits import Header

    cards = Header()
    cards["IMAGETYP"] = (master_kind(card_value(reference, "IMAGETYP")), "a stack of frames of this kind")
    cards["BUNIT"] = (unit_of(card_value(reference, "BUNIT")), "level of the reference frame")
    return cards


def tile_header(cards: Header, group: Group, job: Job, report: TileReport, equalization: Equalization) -> Header:
    """Return the tile's header: WCS and observation of the reference, exposures of the frames stacked, what was done.

    Parameters
    ----------
    cards : Header
        From :func:`cards_of_reference`.
    group : Group
        The frames.
    job : Job
        What was stacked at the end.
    report : TileReport
        Warnings are added to it, where the times are not those of all frames.
    equalization : Equalization
        How the colours were scaled.

    Returns
    -------
    Header
        Times and exposures are those of the frames that were stacked, and of the exposures in them where they are
        stacks themselves; see :func:`pipeline.observation_cards.exposure_cards`.
    """
    header = cards.copy()
    _refine_pixels(header, job.spec.drizzle)
    facts = group.rows[group.reference].facts
    if facts is not None and facts.filter and "FILTER" not in header:
        header["FILTER"] = (fits_text(facts.filter), "of the reference")
    exposures = {group.rows[i].name: group.scan(i).exposure for i in range(len(group.rows)) if group.rows[i].scan}
    stacked = [exposures[name] for name in job.table.names]
    matched = bool((job.table.scale != 1.0).any()) or len({e.seconds for e in stacked}) == 1
    share = job.table.weight.mean(axis=1)
    header.extend(exposure_cards(stacked, exposures[report.reference], share, matched=matched), update=True)
    report.warnings += missing_starts(stacked)
    n = report.n_used
    for key in ("NCOMBINE", "NEXP_SUM"):
        header[key] = (n, "frames stacked")
    header.extend(_method_cards(job), update=True)
    if equalization.applied:
        header.remove("EGAIN", ignore_missing=True)  # the colours have units of their own now
        for colour, gain in zip("RGB", (equalization.gain_r, equalization.gain_g, equalization.gain_b), strict=True):
            header[f"RGBGAIN{colour}"] = (_card_number(gain), "RGB equalisation")
        header["RGBEQMED"] = (_card_number(equalization.target_median), "RGB equalisation")
    if report.wcs_mean is not None and report.wcs_mean.combined > 1:
        header["ZMT_NWCS"] = (report.wcs_mean.combined, "solutions of frames that the WCS is the mean of")
        header["ZMT_SWCS"] = (_card_number(report.wcs_mean.spread_px), "px, their rms scatter per axis")
    header["ZMT_REF"] = (fits_text(Path(report.reference).name), "reference frame")
    header["ZMT_DEV"] = (report.device, "device that stacked")
    if report.calstat:
        header["CALSTAT"] = (report.calstat, "calibrated: B bias, D dark, F flat")
    if report.defects:
        header["ZMT_COSM"] = (report.defects, "defective photosites replaced")
    header["ALPHAEXT"] = (1, "alpha mask in extension ALPHA")
    for name, noise in zip("RGB" if len(report.noise_after) == 3 else "L", report.noise_after, strict=True):
        header[f"ZMT_NOI{name}"] = (_card_number(noise), "sky noise, adu")
    header.extend(program_cards(), update=True)
    header.add_history(f"{PROGRAM}: {n} of {report.n_input} frames, device {report.device}")
    return header


def _refine_pixels(header: Header, drizzle: float) -> None:
    """Write the size of the result's pixels where it is finer than the camera: programs tell its scale by them."""
    for key in ("XPIXSZ", "YPIXSZ") if drizzle > 1.0 else ():
        size = header.get(key)
        if isinstance(size, int | float):
            header[key] = (float(f"{size / drizzle:.8g}"), "of the drizzle, micrometres")


def _method_cards(job: Job) -> Header:
    """Say what was applied, which may be less than what was asked for: only a mean is weighted."""
    from astropy.io.fits import Header

    stack, table, flattened = job.spec, job.table, count_flattened(job.sources)
    cards = Header()
    cards["ZMT_NORM"] = (table.normalize_method or stack.normalize, "normalisation")
    cards["ZMT_WGHT"] = (table.weight_method, "frame weights")
    if stack.framing != "reference":
        cards["ZMT_FRAM"] = (stack.framing, "what of the sky is shown")
    cards["ZMT_FLAT"] = (flattened > 0, "backgrounds made alike")
    if stack.flatten == "on" or flattened:
        cards["ZMT_NFLT"] = (flattened, "frames that got a surface")
    is_radial = stack.radial_weight and stack.combine == "mean"
    cards["ZMT_RADW"] = (is_radial, "radial weighting")
    if is_radial:
        cards["ZMT_RADF"] = (stack.radial_feather, "radial feather, half diagonals")
        cards["ZMT_RADP"] = (stack.radial_power, "radial shape power")
    cards["ZMT_REJ"] = (stack.reject, "rejection")
    cards["ZMT_SPAR"] = (job.tolerance is not None, "rejection spares what seeing does to stars")
    if stack.reject == "winsorized_sigma_clip":
        cards["ZMT_WSC"] = (stack.wsc_impl, "winsorizing")
    if stack.is_legacy_winsor:
        cards["HIERARCH ZMT_WINLO"] = (stack.winsor_limits[0], "winsorizing limit, fraction")
        cards["HIERARCH ZMT_WINHI"] = (stack.winsor_limits[1], "winsorizing limit, fraction")
    if stack.reject != "none":
        cards["HIERARCH ZMT_KAPLO"] = (stack.kappas[0], "rejection limit, sigma")
        cards["HIERARCH ZMT_KAPHI"] = (stack.kappas[1], "rejection limit, sigma")
    cards["ZMT_COMB"] = (stack.combine, "combination")
    cards["ZMT_INTP"] = ("drizzle" if stack.drizzle else stack.interpolation, "interpolation")
    if stack.drizzle:
        cards["ZMT_DRIZ"] = (stack.drizzle, "drizzle: pixels for one of the reference")
        cards["ZMT_PIXF"] = (stack.pixfrac, "drizzle: side of a drop, pixels of its frame")
    return cards


_TIMES_OF_WCS = (
    "MJDREF", "MJDREFI", "MJDREFF", "DATEREF", "TIMESYS", "MJD-OBS", "MJD-AVG", "MJD-BEG", "MJD-END", "DATE-OBS",
    "DATE-AVG", "DATE-BEG", "DATE-END",
)  # fmt: skip


def wcs_cards(wcs: WCS) -> Header:
    """Return the cards of a WCS, SIP included, and of the centre of its image.

    The matrix is written as CD, in degrees a pixel, as cameras and solvers do, and not as the PC and CDELT = 1 that
    astropy writes: PixInsight, DS9 and Montage read CDELT alone, and take a pixel for a degree. The times that astropy
    adds are left out: a tile has its own.

    Parameters
    ----------
    wcs : WCS
        Celestial, two axes. Where its ``pixel_shape`` is set, RA, DEC (degrees) and OBJCTRA, OBJCTDEC (sexagesimal,
        hours and degrees) are those of the middle of the image.

    Returns
    -------
    Header
    """
    header = wcs.to_header(relax=True)
    matrix = np.asarray(wcs.pixel_scale_matrix, np.float64)
    for key in _TIMES_OF_WCS:
        header.remove(key, ignore_missing=True)
    for i in (1, 2):
        header.remove(f"CDELT{i}", ignore_missing=True)
        for j in (1, 2):
            header.remove(f"PC{i}_{j}", ignore_missing=True)
            header[f"CD{i}_{j}"] = (float(matrix[i - 1, j - 1]), "deg/pixel")
    if "EQUINOX" not in header and str(header.get("RADESYS", "ICRS")).strip() in ("ICRS", "FK5"):
        header["EQUINOX"] = (2000.0, "yr, for programs that ask for it")  # Siril drops CTYPE without it
    with contextlib.suppress(Exception):  # a caller's WCS may be anything; without its centre it is still one
        header.extend(_centre_cards(wcs), update=True)
    return header


def _centre_cards(wcs: WCS) -> Header:
    """Return where the middle of an image lies; nothing where that is not known."""
    from astropy.coordinates import Angle
    from astropy.io.fits import Header

    cards = Header()
    if wcs.pixel_shape is None:
        return cards
    centre = wcs.pixel_to_world(*((side - 1) / 2.0 for side in wcs.pixel_shape))
    if not hasattr(centre, "ra"):  # galactic or ecliptic coordinates
        centre = centre.icrs
    cards["RA"] = (round(float(centre.ra.deg), 8), "deg, middle of the image")
    cards["DEC"] = (round(float(centre.dec.deg), 8), "deg, middle of the image")
    hours = Angle(centre.ra).to_string(unit="hourangle", sep=" ", precision=2, pad=True)
    cards["OBJCTRA"] = (hours, "h m s, middle of the image")
    degrees = Angle(centre.dec).to_string(unit="deg", sep=" ", precision=1, pad=True, alwayssign=True)
    cards["OBJCTDEC"] = (degrees, "d m s, middle of the image")
    return cards


def _short_comment(value: object, comment: str) -> str:
    """Cut a comment to what fits beside the value; astropy cuts it too, with a warning."""
    text = str(value).replace("'", "''")
    room = FITS_CARD - len("KEYWORD = ''") - max(len(text), 18) - len(" / ")
    return comment[: max(room, 0)]


def _card_number(value: float) -> float | str:
    """FITS cards hold no NaN; an unknown number is written as such."""
    return float(f"{value:.7g}") if np.isfinite(value) else "unknown"
