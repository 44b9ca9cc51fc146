"""What an observer asks of a finished tile first: what, how long, when, how large, how sharp, and what it gained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.detection.star_finder import find_stars
from zemosaic_phase3.photometry.weights import SHAPE_STARS
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.records import FrameTable
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.tile import Tile

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
    header = tile.header
    scale, origin = math.nan, ""
    if tile.wcs is not None:
        scale = 3600.0 * math.sqrt(abs(float(np.linalg.det(tile.wcs.pixel_scale_matrix))))
        origin = "WCS"
    elif _number(header, "FOCALLEN") > 0 and _number(header, "XPIXSZ") > 0:
        scale, origin = ARCSEC * _number(header, "XPIXSZ") / _number(header, "FOCALLEN"), "FOCALLEN"
    height, width = tile.image.shape[:2]
    return TileFacts(
        object=str(header.get("OBJECT", "")).strip(),
        filter=str(header.get("FILTER", "")).strip(),
        exposure_s=_number(header, "EXPTIME"),
        total_exposure_s=_number(header, "EXPTOTAL"),
        exposures=int(header.get("STACKCNT", tile.report.n_used)),
        date_obs=str(header.get("DATE-OBS", "")),
        date_end=str(header.get("DATE-END", "")),
        width=width,
        height=height,
        scale_arcsec=scale,
        scale_from=origin,
        fwhm_px=tile.report.fwhm_px,
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


def typical_noise_of_frame(noise_of_reference: list[float], group: Group, table: FrameTable) -> list[float]:
    """Return the noise of a typical frame at the levels of the tile, to be compared with that of the tile.

    Both are measured alike, by the differences of pixels (``finish.noise``), which takes a demosaiced frame: that is
    done for the reference alone. How much noisier or calmer the others are is known from their levels.

    Parameters
    ----------
    noise_of_reference : list of float, length C
        ADU.
    group : Group
        With the levels of the frames.
    table : FrameTable
        What the levels of the frames were multiplied by.

    Returns
    -------
    list of float, length C
        ADU: the noise of the reference, times the median over the frames stacked of (scale x sigma), over that of the
        reference; the noise of the reference itself where levels were not measured.
    """
    scans = {row.name: row.scan for row in group.rows}
    sigmas = []
    for name, scale in zip(table.names, table.scale, strict=True):
        scan = scans[name]
        if scan is None or scan.stats is None:
            return noise_of_reference
        sigmas.append(np.abs(scale) * np.sqrt(scan.stats.variance))
    reference = scans[group.rows[group.reference].name]
    if reference is None or reference.stats is None:
        return noise_of_reference
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.median(sigmas, axis=0) / np.sqrt(reference.stats.variance)
    if ratio.shape != np.shape(noise_of_reference):
        return noise_of_reference
    return np.where(np.isfinite(ratio), np.array(noise_of_reference) * ratio, noise_of_reference).tolist()
