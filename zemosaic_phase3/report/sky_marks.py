"""What is written on a picture of the sky: name, exposure, a scale bar, arrows to the north and the east."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.pipeline.tile_facts import TileFacts

if TYPE_CHECKING:
    from astropy.wcs import WCS

BAR_SHARE: Final = 0.22  # of the width of the image, at most
BARS_ARCSEC: Final = (
    1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 18000, 36000,
)  # fmt: skip
STEP_DEG: Final = 1e-3  # by which the sky is followed to the north

Arrow = tuple[float, float]
"""A unit vector (x to the right, y down the rows of the array)."""


@dataclass(frozen=True)
class SkyMarks:
    """What stands on a picture; None and 0 where it is not known.

    ``bar_px``: length of the scale bar in pixels of the image.
    """

    title: str = ""
    lines: tuple[str, ...] = ()
    bar_px: float = 0.0
    bar_label: str = ""
    north: Arrow | None = None
    east: Arrow | None = None

    def flipped(self) -> SkyMarks:
        """Return the marks of a picture whose first row is at the bottom."""

        def turned(arrow: Arrow | None) -> Arrow | None:
            return None if arrow is None else (arrow[0], -arrow[1])

        return replace(self, north=turned(self.north), east=turned(self.east))


def sky_marks(facts: TileFacts, wcs: WCS | None) -> SkyMarks:
    """Return what is written on the picture of a tile.

    Parameters
    ----------
    facts : TileFacts
    wcs : WCS or None
        Celestial, two axes.
    """
    bar_px, label = scale_bar(facts.scale_arcsec, facts.width)
    north, east = (None, None) if wcs is None else directions(wcs, facts.width, facts.height)
    told = [
        duration(facts.total_exposure_s) if facts.total_exposure_s > 0 else "",
        f"{facts.exposures} x {facts.exposure_s:g} s" if facts.exposures > 1 and facts.exposure_s > 0 else "",
        f"filter {facts.filter}" if facts.filter else "",
    ]
    lines = (", ".join(part for part in told if part), facts.date_obs[:10])
    return SkyMarks(facts.object, tuple(line for line in lines if line), bar_px, label, north, east)


def scale_bar(scale_arcsec: float, width: int) -> tuple[float, str]:
    """Return length, px, and label of the longest round bar that takes at most ``BAR_SHARE`` of a width.

    (0, "") where the scale, arcseconds a pixel, is not known.
    """
    if not scale_arcsec > 0:
        return 0.0, ""
    fitting = [bar for bar in BARS_ARCSEC if bar <= BAR_SHARE * width * scale_arcsec]
    if not fitting:
        return 0.0, ""
    bar = fitting[-1]
    label = f"{bar}″" if bar < 60 else f"{bar // 60}′" if bar < 3600 else f"{bar // 3600}°"
    return bar / scale_arcsec, label


def directions(wcs: WCS, width: int, height: int) -> tuple[Arrow | None, Arrow | None]:
    """Return where north and east are, seen from the middle of an image; None where a WCS does not tell."""
    middle = np.array([(width - 1) / 2.0, (height - 1) / 2.0])
    try:
        lon, lat = np.ravel(wcs.wcs_pix2world(middle[None], 0))
        up = STEP_DEG if lat < 90.0 - 2.0 * STEP_DEG else -STEP_DEG  # at the pole all ways lead south
        wide = STEP_DEG / max(math.cos(math.radians(lat)), STEP_DEG)
        at = wcs.wcs_world2pix(np.array([(lon, lat + up), (lon + wide, lat)]), 0) - middle
    except Exception:  # noqa: BLE001 - a caller's WCS may be anything, and a picture without arrows is one
        return None, None
    if not np.isfinite(at).all() or not (np.hypot(*at.T) > 0).all():
        return None, None
    at[0] *= math.copysign(1.0, up)
    north, east = at / np.hypot(*at.T)[:, None]
    return (float(north[0]), float(north[1])), (float(east[0]), float(east[1]))


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, whichever is easiest to grasp."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
