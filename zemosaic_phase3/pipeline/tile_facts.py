"""What an observer asks of a finished tile first: what, how long, when, how large, how sharp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.detection.star_finder import find_stars
from zemosaic_phase3.photometry.weights import SHAPE_STARS
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

WIDTH_SIDE_PX: Final = 1024  # of the middle of a tile, on which the width of its stars is measured
ARCSEC: Final = 206.264806  # arcseconds of a micrometre at a millimetre


@dataclass(frozen=True)
class TileFacts:
    """What a tile shows; "" and nan where that is not known.

    ``object``, ``filter``; ``exposure_s`` of one exposure and ``total_exposure_s`` of all in it, seconds;
    ``exposures``, how many those are; ``date_obs``, ``date_end``, UTC; ``width``, ``height`` px; ``scale_arcsec``,
    arcseconds a pixel, and whether it is ``scale_from`` "WCS" or "FOCALLEN"; ``fwhm_px`` of its stars.
    """

    object: str
    filter: str
    exposure_s: float
    total_exposure_s: float
    exposures: int
    date_obs: str
    date_end: str
    width: int
    height: int
    scale_arcsec: float
    scale_from: str
    fwhm_px: float


def facts_of(tile: Tile) -> TileFacts:
    """Gather the facts from a tile's header, WCS and report."""
    return facts_from(tile.header, tile.wcs, tile.image.shape, tile.report)


def facts_from(header: Header, wcs: WCS | None, shape: tuple[int, ...], report: TileReport) -> TileFacts:
    """Gather the facts of a tile of a shape (H, W, ...), wherever its parts come from."""
    scale, origin = math.nan, ""
    if wcs is not None:
        scale = 3600.0 * math.sqrt(abs(float(np.linalg.det(wcs.pixel_scale_matrix))))
        origin = "WCS"
    elif _number(header, "FOCALLEN") > 0 and _number(header, "XPIXSZ") > 0:
        scale, origin = ARCSEC * _number(header, "XPIXSZ") / _number(header, "FOCALLEN"), "FOCALLEN"
    height, width = shape[:2]
    return TileFacts(
        object=str(header.get("OBJECT", "")).strip(),
        filter=str(header.get("FILTER", "")).strip(),
        exposure_s=_number(header, "EXPTIME"),
        total_exposure_s=_number(header, "EXPTOTAL"),
        exposures=int(header.get("STACKCNT", report.n_used)),
        date_obs=str(header.get("DATE-OBS", "")),
        date_end=str(header.get("DATE-END", "")),
        width=width,
        height=height,
        scale_arcsec=scale,
        scale_from=origin,
        fwhm_px=report.fwhm_px,
    )


def _number(header: Any, key: str) -> float:
    try:
        return float(header.get(key, math.nan))
    except (TypeError, ValueError):
        return math.nan


def star_width(image: np.ndarray) -> float:
    """Measure the stars of a finished image, as those of frames are: median of the brightest, in its middle.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3) float32, ADU
        NaN = invalid.

    Returns
    -------
    float
        Full width at half maximum, px; nan without stars.
    """
    top, left = (max(0, (side - WIDTH_SIDE_PX) // 2) for side in image.shape[:2])
    stars = find_stars(image[top : top + WIDTH_SIDE_PX, left : left + WIDTH_SIDE_PX], RegisterSpec())
    return float(np.median(stars.fwhm[:SHAPE_STARS])) if len(stars) else math.nan
