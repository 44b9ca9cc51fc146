"""Where a frame points and when it was taken, from a few cards of its header: a million frames are asked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.moments import MOMENT_KEYS, start_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zemosaic_phase3.io.frame import FrameSource

_WCS_KEYS: Final = (
    "CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2", "CROTA2", "CD1_1", "CD1_2", "CD2_1",
    "CD2_2", "PC1_1", "PC1_2", "PC2_1", "PC2_2",
)  # fmt: skip
_MOUNT_KEYS: Final = ("RA", "DEC", "OBJCTRA", "OBJCTDEC")
_LONGITUDE_KEYS: Final = ("SITELONG", "LONG-OBS", "OBSGEO-L", "GEO_LONG")
_KEYS: Final = frozenset((*_WCS_KEYS, *_MOUNT_KEYS, *_LONGITUDE_KEYS, *MOMENT_KEYS))
_ANGLE: Final = re.compile(r"\s*([+-]?)(\d{1,3})[:hd°\s]+(\d{1,2})[:m'\s]+(\d{1,2}(?:\.\d*)?)")


@dataclass(frozen=True)
class Pointing:
    """Where one frame points, degrees.

    Attributes
    ----------
    ra, dec : float
        Of its middle; nan: not known.
    field : float
        Its shorter side; nan: not known.
    night : str
        Date of the evening, ISO; empty: not known.
    is_solved : bool
        It has a WCS; else its middle is what the mount said.
    """

    ra: float = math.nan
    dec: float = math.nan
    field: float = math.nan
    night: str = ""
    is_solved: bool = False

    @property
    def unit(self) -> np.ndarray:
        """Unit vector, (3,) float64."""
        ra, dec = math.radians(self.ra), math.radians(self.dec)
        return np.array([math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)])


def pointing_of(source: FrameSource) -> Pointing:
    """Return where a frame points.

    Raises
    ------
    FrameError
        The file can no longer be read.
    """
    cards = source.some_cards(_KEYS)
    night = night_of(cards)
    if str(cards.get("CTYPE1", "")).startswith("RA---TAN") and str(cards.get("CTYPE2", "")).startswith("DEC--TAN"):
        found = _by_tangent(cards, source.height, source.width)
    elif "CTYPE1" in cards:
        found = _by_wcs(source)
    else:
        found = None
    if found is not None:
        return Pointing(*found, night, True)
    ra, dec = _angle(cards.get("RA"), 1.0), _angle(cards.get("DEC"), 1.0)
    if not (math.isfinite(ra) and math.isfinite(dec)):
        ra, dec = _angle(cards.get("OBJCTRA"), 15.0), _angle(cards.get("OBJCTDEC"), 1.0)
    is_there = math.isfinite(ra) and math.isfinite(dec) and abs(dec) <= 90.0
    return Pointing(ra % 360.0, dec, math.nan, night) if is_there else Pointing(night=night)


def _numbers(cards: Mapping[str, Any], *keys: str, default: tuple[float, ...]) -> list[float]:
    return [float(cards[key]) if key in cards else value for key, value in zip(keys, default, strict=True)]


def _by_tangent(cards: Mapping[str, Any], height: int, width: int) -> tuple[float, float, float] | None:
    """Return (ra, dec, shorter side) of a gnomonic WCS without its distortion; None: its numbers are none."""
    try:
        ra0, dec0 = (math.radians(float(cards[key])) for key in ("CRVAL1", "CRVAL2"))
        x0, y0 = (float(cards[key]) for key in ("CRPIX1", "CRPIX2"))
        if "CD1_1" in cards or "CD2_2" in cards:
            a, b, c, d = _numbers(cards, "CD1_1", "CD1_2", "CD2_1", "CD2_2", default=(0.0,) * 4)
        else:
            sx, sy, turn = _numbers(cards, "CDELT1", "CDELT2", "CROTA2", default=(1.0, 1.0, 0.0))
            cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            turned = (cos, -sin * sy / sx, sin * sx / sy, cos) if "CROTA2" in cards else (1.0, 0.0, 0.0, 1.0)
            p = _numbers(cards, "PC1_1", "PC1_2", "PC2_1", "PC2_2", default=turned)
            a, b, c, d = sx * p[0], sx * p[1], sy * p[2], sy * p[3]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    scale = math.sqrt(abs(a * d - b * c))
    if not (math.isfinite(scale) and scale > 0 and all(map(math.isfinite, (ra0, dec0, x0, y0)))):
        return None
    x, y = (width + 1) / 2 - x0, (height + 1) / 2 - y0
    xi, eta = math.radians(a * x + b * y), math.radians(c * x + d * y)
    down = math.cos(dec0) - eta * math.sin(dec0)
    ra = ra0 + math.atan2(xi, down)
    dec = math.atan2(math.sin(dec0) + eta * math.cos(dec0), math.hypot(xi, down))
    return math.degrees(ra) % 360.0, math.degrees(dec), scale * min(height, width)


def _by_wcs(source: FrameSource) -> tuple[float, float, float] | None:
    """Return the same of any other WCS, with astropy; None: it has none that can be used."""
    from astropy.wcs.utils import proj_plane_pixel_scales

    try:
        wcs = source.wcs()
        if wcs is None:
            return None
        ra, dec = (float(v) for v in wcs.all_pix2world((source.width - 1) / 2, (source.height - 1) / 2, 0))
        field = float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * min(source.height, source.width)
    except FrameError:
        raise
    except Exception:  # noqa: BLE001 - wcslib fails in many ways, and none of them is news here
        return None
    return (ra % 360.0, dec, field) if all(map(math.isfinite, (ra, dec, field))) else None


def _angle(value: Any, factor: float) -> float:
    """Return degrees: a number as it stands, or a text in sexagesimal times ``factor``; nan: neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _ANGLE.match(str(value)) if value is not None else None
    if found is None:
        return math.nan
    size = int(found[2]) + int(found[3]) / 60 + float(found[4]) / 3600
    return (-size if found[1] == "-" else size) * factor


def night_of(cards: Mapping[str, Any]) -> str:
    """Return the date of the evening before, at the place if its longitude is known, else as if at Greenwich."""
    start = start_of(cards)
    if start is None:
        return ""
    longitude = next((x for key in _LONGITUDE_KEYS if math.isfinite(x := _angle(cards.get(key), 1.0))), 0.0)
    local = start + timedelta(hours=(longitude if abs(longitude) <= 360.0 else 0.0) / 15.0)
    return (local - timedelta(hours=12)).date().isoformat()
