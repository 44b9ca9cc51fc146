"""What one reading of a frame tells: its levels, its stars, its times, and what has to be put right in its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.detection.star_finder import find_stars as stars_of
from zemosaic_phase3.io.foreign_file import whole_bytes
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.mended_frame import Mend
from zemosaic_phase3.io.moments import MOMENT_KEYS, Exposure, exposure_of
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.photometry.measure import quanta, read_frame, shown, with_stars
from zemosaic_phase3.pipeline.blank_frames import middle_rows, refuse_blank, shows_something
from zemosaic_phase3.pipeline.samples import (
    as_stored,
    clip_levels,
    find_mend,
    may_have_filler,
    mended,
    refuse_clipped,
    refuse_rounded,
)
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS


@dataclass(frozen=True)
class Scan:
    """What one reading of a frame tells: levels, stars, and when and how long it was exposed."""

    stats: FrameStats | None  # None: not measured, because nothing needs the levels
    stars: StarList | None  # None: not for registration, or they have served; 10,000 lists are 200 MB
    exposure: Exposure = Exposure()
    wcs: WCS | None = None  # celestial; None: it has none, or not for registration, or it has served
    has_wcs: bool = False  # for registration; where ``wcs`` is None all the same, the file tells it again
    mend: Mend = Mend()  # what is put right in its pixels

    @property
    def n_stars(self) -> int:
        """Stars found."""
        return 0 if self.stats is None else self.stats.n_stars

    @property
    def fwhm(self) -> float:
        """Median full width at half maximum of the stars, pixels; nan without stars."""
        return math.nan if self.stats is None else self.stats.fwhm


def scan_frame(source: FrameSource, spec: RegisterSpec, *, find_stars: bool, measure: bool = True) -> Scan:
    """Read a frame once; measure its levels and find its stars.

    The stars' widths and number are part of the levels; the stars themselves are kept where ``spec`` registers by
    them, so that looking for them to weigh the frames changes nothing else. Where neither levels (``measure``) nor
    stars are wanted, a few rows are enough to see that the frame is not blank.

    Raises
    ------
    FrameError
        The frame cannot be read, has no valid pixel, or is blank.
    """
    stats, stars, mend = None, None, Mend()
    saturate, *moments = source.card_values("SATURATE", *MOMENT_KEYS)
    stored = as_stored(source)
    if measure or find_stars:
        pixels, view = read_frame(stored)
        refuse_blank(stored, view)
        mend = find_mend(stored, pixels)
        if stored is not source:
            refuse_clipped(source.name, mend.apply(pixels) if mend else pixels)
            source = mended(source, mend) if mend else source
            pixels, view = read_frame(source)
            refuse_blank(source, view)
        elif mend:
            source = mended(source, mend)
            pixels, view = shown(mend.apply(pixels), source.cfa)
        clip = clip_levels(pixels, saturate, source.cfa)
        refuse_clipped(source.name, pixels)
        stats = replace(measure_levels(view, quantum=quanta(source)), clip=clip)
        refuse_rounded(source, stats)
        if find_stars:
            stars = stars_of(pixels, spec, source.cfa)
            stats = with_stars(stats, stars, view, source.cfa)
    elif not shows_something(middle_rows(source)):
        refuse_blank(source, read_frame(source)[1])
    elif may_have_filler(stored):
        mend = find_mend(stored, stored.read_rows(0, stored.height))
    wcs = source.wcs() if spec.mode in ("auto", "wcs") else None
    return Scan(
        stats,
        stars if spec.mode in ("auto", "stars") else None,
        exposure_of(dict(zip(MOMENT_KEYS, moments, strict=True))),
        wcs,
        wcs is not None,
        mend,
    )


def scan_bytes(source: FrameSource) -> int:
    """Return the bytes that scanning a frame takes: its pixels, its 2x2 cells, and what finding stars needs.

    Of a file that its library decodes whole, also what that takes.
    """
    cells = source.height * source.width // 4
    pixel = 4 * source.channels if source.cfa is None else source.dtype.itemsize + 4
    return cells * (4 * pixel + (50 if source.cfa is None else 36)) + whole_bytes(source)
