"""Brightness of given positions in the stacks of a series, by circular apertures of ``photutils``."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import SpecError

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.tile import Tile

APERTURE_FWHM: Final = 1.5  # radius, in widths of the stars: all but a few per mille of a star's light
RING_FWHM: Final = (3.0, 5.0)  # of the sky around it
LEAST_RADIUS_PX: Final = 2.0
CLIP_SIGMA: Final = 3.0  # of the sky
NEAR_SATURATION: Final = 0.9
MOST_TARGETS: Final = 1000
CHANNELS: Final = {1: ("grey",), 3: ("red", "green", "blue")}
COLUMNS: Final = (
    "target", "channel", "file", "date_avg", "mjd_avg", "exposure_s", "frames", "x", "y", "flux_adu", "flux_error_adu",
    "sky_adu", "snr", "magnitude", "magnitude_error", "saturated",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One target in one channel of one stack; x and y count from 0, unknown numbers are nan."""

    target: str
    channel: str
    file: str
    date: str
    mjd: float
    exposure: float
    frames: int
    x: float
    y: float
    flux: float  # ADU
    error: float  # of it, ADU: sky, and photons where EGAIN is known
    sky: float  # ADU a pixel
    saturated: bool


@dataclass(frozen=True)
class Targets:
    """Positions to be measured: ``places`` are RA, Dec in degrees where ``on_sky``, else x, y in pixels from 0."""

    names: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    on_sky: bool

    @classmethod
    def read(cls, path: str | Path) -> Targets:
        """Read a table with commas: columns ``ra, dec`` (degrees, or 05:34:32 +22:00:52) or ``x, y``, and ``name``.

        Raises
        ------
        SpecError
            The file cannot be read, has no such columns, or a position is none.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            raise SpecError(f"{path}: the targets cannot be read ({exc}); name a table with columns ra, dec") from exc
        rows = [
            {str(key).strip().lower(): str(value or "").strip() for key, value in row.items()}
            for row in csv.DictReader(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
        ]
        if not rows or len(rows) > MOST_TARGETS:
            raise SpecError(f"{path}: {len(rows)} targets; 1 to {MOST_TARGETS} can be measured")
        on_sky = {"ra", "dec"} <= rows[0].keys()
        if not on_sky and not {"x", "y"} <= rows[0].keys():
            raise SpecError(f"{path}: its columns are {', '.join(rows[0])}; ra and dec, or x and y, are needed")
        names, places = [], []
        for k, row in enumerate(rows, start=1):
            try:
                place = _sky(row["ra"], row["dec"]) if on_sky else (float(row["x"]), float(row["y"]))
            except ValueError as exc:
                raise SpecError(f"{path}: target {k} has no position ({exc})") from exc
            if not all(map(math.isfinite, place)):
                raise SpecError(f"{path}: target {k} has no position ({place})")
            places.append(place)
            names.append(row.get("name") or f"target{k}")
        return cls(tuple(names), tuple(places), on_sky)

    def measure(self, tile: Tile, file: str, fwhm: float) -> list[Point]:
        """Measure all targets in a stack; a target that is not whole in it has no flux.

        Raises
        ------
        SpecError
            Positions are on the sky and the stack has no WCS.
        """
        header, image = tile.header, tile.image if tile.image.ndim == 3 else tile.image[..., None]
        if self.on_sky and tile.wcs is None:
            raise SpecError("targets are given in RA and Dec, and the stack has no WCS; give x and y of pixels")
        places = np.array(self.places, float)
        xy = tile.wcs.all_world2pix(places, 0, quiet=True) if self.on_sky and tile.wcs is not None else places
        gain, saturate = _number(header.get("EGAIN")), _number(header.get("SATURATE"))
        points = []
        for c, channel in enumerate(CHANNELS[image.shape[2]]):
            for name, place in zip(self.names, xy, strict=True):
                flux, error, sky, top = aperture_flux(image[..., c], place, fwhm, gain)
                points.append(
                    Point(
                        name, channel, file, str(header.get("DATE-AVG", "")), _number(header.get("MJD-AVG")),
                        _number(header.get("LIVETIME")), tile.report.n_used, float(place[0]), float(place[1]),
                        flux, error, sky,
                        bool(top >= NEAR_SATURATION * saturate),
                    )
                )  # fmt: skip
        return points


def aperture_flux(
    plane: np.ndarray, place: Sequence[float], fwhm: float, gain: float = math.nan
) -> tuple[float, float, float, float]:
    """Return flux, its error, sky (ADU) and the highest pixel in the aperture; nan where a pixel of it is missing.

    Parameters
    ----------
    plane : ndarray (H, W) float32
        ADU; NaN is no data.
    place : (x, y)
        Pixels from 0.
    fwhm : float
        Width of the stars, pixels; the aperture's radius is 1.5 times that, the sky's ring 3 to 5 times.
    gain : float
        Electrons per ADU; nan: photon noise is not known.
    """
    from astropy.stats import SigmaClip
    from photutils.aperture import ApertureStats, CircularAnnulus, CircularAperture

    nothing = (math.nan, math.nan, math.nan, math.nan)
    width = fwhm if math.isfinite(fwhm) and fwhm > 0 else LEAST_RADIUS_PX
    radius = max(LEAST_RADIUS_PX, APERTURE_FWHM * width)
    ring = (max(radius + 1.0, RING_FWHM[0] * width), max(radius + 4.0, RING_FWHM[1] * width))
    x, y = place
    if not (radius <= x <= plane.shape[1] - 1 - radius and radius <= y <= plane.shape[0] - 1 - radius):
        return nothing
    gaps = ~np.isfinite(plane)
    aperture = CircularAperture((x, y), radius)
    inside = aperture.to_mask(method="center").cutout(gaps)
    if inside is None or inside.any():
        return nothing
    sky = ApertureStats(plane, CircularAnnulus((x, y), *ring), mask=gaps, sigma_clip=SigmaClip(CLIP_SIGMA))
    light = ApertureStats(plane, aperture, mask=gaps)
    area, level, spread = float(aperture.area), float(sky.median), float(sky.std)
    n_sky = float(sky.sum_aper_area.value) if sky.sum_aper_area is not None else math.nan
    flux = float(light.sum) - area * level
    variance = area * spread**2 + (area * spread) ** 2 / n_sky
    if gain > 0:
        variance += max(flux, 0.0) / gain
    return flux, math.sqrt(variance) if variance >= 0 else math.nan, level, float(light.max)


def curve_table(points: Sequence[Point]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return a light curve as columns and rows of text; magnitudes are instrumental, -2.5 log10 of the flux."""
    rows = []
    for p in sorted(points, key=lambda p: (p.target, p.channel)):
        snr = p.flux / p.error if p.error > 0 else math.nan
        magnitude = -2.5 * math.log10(p.flux) if p.flux > 0 else math.nan
        spread = 2.5 / math.log(10.0) / snr if snr > 0 else math.nan
        rows.append(
            [p.target, p.channel, p.file, p.date, _text(p.mjd, 8), _text(p.exposure, 3), str(p.frames), _text(p.x, 3),
             _text(p.y, 3), _text(p.flux, 3), _text(p.error, 3), _text(p.sky, 3), _text(snr, 2), _text(magnitude, 5),
             _text(spread, 5), "yes" if p.saturated else "no"]
        )  # fmt: skip
    return COLUMNS, rows


def _sky(ra: str, dec: str) -> tuple[float, float]:
    """Return degrees of a position in degrees, or in hours and degrees with colons or blanks."""
    try:
        return float(ra), float(dec)
    except ValueError:
        from astropy.coordinates import SkyCoord

        found = SkyCoord(ra, dec, unit=("hourangle", "deg"))
        return float(found.ra.deg), float(found.dec.deg)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""
