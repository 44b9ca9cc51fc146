"""What one reading of a frame tells: its levels, its stars, its times, and what has to be put right in its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.detection.look import Look
from zemosaic_phase3.detection.planes import planes_of
from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.detection.star_finder import find_stars as stars_of
from zemosaic_phase3.io.foreign_file import whole_bytes
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.mended_frame import Mend
from zemosaic_phase3.io.moments import MOMENT_KEYS, Exposure, exposure_of
from zemosaic_phase3.photometry.levels import MAX_SAMPLES, levels_of_planes
from zemosaic_phase3.photometry.measure import quanta, shown, with_stars
from zemosaic_phase3.pipeline.blank_frames import middle_rows, refuse_blank, shows_something
from zemosaic_phase3.pipeline.samples import (
    as_stored,
    clip_levels,
    find_mend,
    look_over,
    may_have_filler,
    mended,
    refuse_clipped,
    refuse_rounded,
)
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.runtime.workspace import Workspace
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS


SORTED_BYTES: Final = 40  # a sample that is sorted into levels


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


def scan_frame(
    source: FrameSource,
    spec: RegisterSpec,
    *,
    find_stars: bool,
    measure: bool = True,
    workspace: Workspace | None = None,
) -> Scan:
    """Read a frame once; measure its levels and find its stars.

    The stars' widths and number are part of the levels; the stars themselves are kept where ``spec`` registers by
    them, so that looking for them to weigh the frames changes nothing else. Where neither levels (``measure``) nor
    stars are wanted, a few rows are enough to see that the frame is not blank. ``workspace`` keeps the memory for the
    next frame of this thread.

    Nearly all of the work is done by kernels, which leave the interpreter to other threads.

    Raises
    ------
    FrameError
        The frame cannot be read, has no valid pixel, or is blank.
    """
    stats, stars, mend = None, None, Mend()
    saturate, *moments = source.card_values("SATURATE", *MOMENT_KEYS)
    stored = as_stored(source)
    if measure or find_stars:
        space = workspace or Workspace()
        source, pixels, look, mend = _read_and_mend(source, stored, space)
        clip = clip_levels(look, saturate, source.cfa)
        if look.may_be_clipped:
            refuse_clipped(source.name, pixels)
        frame = pixels.reshape(*pixels.shape[:2], -1)
        levels = levels_of_planes(frame, planes_of(frame.shape, source.cfa), quantum=quanta(source), workspace=space)
        stats = replace(levels, clip=clip)
        refuse_rounded(source, stats)
        if find_stars:
            stars = stars_of(pixels, spec, source.cfa, space)
            stats = with_stars(stats, stars, frame, source.cfa, space)
    elif not shows_something(middle_rows(source)):
        refuse_blank(source, shown(source.read_rows(0, source.height), source.cfa))
    elif may_have_filler(stored):
        pixels = read_pixels(stored)
        mend = find_mend(stored, pixels, look_over(pixels, stored.cfa))
    wcs = source.wcs() if spec.mode in ("auto", "wcs") else None
    return Scan(
        stats,
        stars if spec.mode in ("auto", "stars") else None,
        exposure_of(dict(zip(MOMENT_KEYS, moments, strict=True))),
        wcs,
        wcs is not None,
        mend,
    )


def _read_and_mend(
    source: FrameSource, stored: FrameSource, space: Workspace
) -> tuple[FrameSource, np.ndarray, Look, Mend]:
    """Read a frame, put right what is wrong in it as it is stored, and see that it shows something."""
    pixels, look = _seen(stored, space)
    mend = find_mend(stored, pixels, look)
    if stored is not source:  # calibrated
        if mend or look.may_be_clipped:
            refuse_clipped(source.name, mend.apply(pixels) if mend else pixels)
        source = mended(source, mend) if mend else source
        return source, *_seen(source, space), mend
    if mend:
        source, pixels = mended(source, mend), mend.apply(pixels)
        look = look_over(pixels, source.cfa)
    return source, pixels, look, mend


def _seen(source: FrameSource, space: Workspace) -> tuple[np.ndarray, Look]:
    """Read a frame and look at it; a blank one is refused."""
    pixels = read_pixels(source, space)
    look = look_over(pixels, source.cfa)
    if not look.shows:
        refuse_blank(source, shown(pixels, source.cfa))
    return pixels, look


def read_pixels(source: FrameSource, workspace: Workspace | None = None) -> np.ndarray:
    """Read a whole frame as it is stored, ``(H, W)`` or ``(H, W, C) float32``, ADU, NaN where invalid.

    A mosaic stays one. With a ``workspace`` the pixels are its own, until the next frame is read.
    """
    from zemosaic_phase3.resample.decode import read_samples

    channels = 1 if source.cfa is not None else source.channels
    shape = (source.height, source.width) if channels == 1 else (source.height, source.width, channels)
    pixels = (workspace or Workspace()).array("pixels", shape, np.float32)
    one, none = np.ones(channels), np.zeros(channels)
    read_samples(source, 0, source.height, one, none, pixels.reshape(-1), workspace)
    return pixels


def scan_bytes(source: FrameSource) -> int:
    """Return the bytes that scanning a frame takes: its pixels as stored and as samples, cells, sorted samples.

    Of a file that its library decodes whole, also what that takes.
    """
    channels = 1 if source.cfa is not None else source.channels
    pixels = source.height * source.width
    # Where the stored bytes cannot be opened as they are, or are put right, there are two arrays of samples for a time.
    stored = source.dtype.itemsize if source.raw_layout is not None else 8
    cells = 2 * 4 * (pixels // 4)
    samples = SORTED_BYTES * min(pixels // (4 if source.cfa is not None else 1), 2 * MAX_SAMPLES)
    return pixels * channels * (4 + stored) + cells + samples + whole_bytes(source)
