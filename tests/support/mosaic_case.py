"""One sky, wide, and small frames of parts of it: what a plan of tiles is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

SCALE_DEG = 2.4 / 3600.0
RA, DEC = 83.82, -5.39  # of the middle of the sky


@dataclass(frozen=True)
class Sky:
    """Stars and a nebula on a plane around (RA, DEC), in pixels from its middle; light of one exposure, ADU."""

    half_height: float
    half_width: float
    seed: int = 3
    stars_per_million: float = 4000.0
    fwhm: float = 2.6

    def stars(self) -> np.ndarray:
        """Columns x, y, flux."""
        rng = np.random.default_rng(self.seed)
        area = 4.0 * self.half_height * self.half_width
        n = int(area * self.stars_per_million / 1e6)
        x = rng.uniform(-self.half_width, self.half_width, n)
        y = rng.uniform(-self.half_height, self.half_height, n)
        return np.stack([x, y, 1500.0 * rng.pareto(1.1, n).clip(0.1, 40.0)], axis=1)

    def light(self, x0: float, y0: float, height: int, width: int, stars: np.ndarray) -> np.ndarray:
        """Light of a frame whose first pixel is at (x0, y0), without sky, ADU."""
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        image = 200.0 * np.exp(-(((x + x0) / self.half_width) ** 2 + ((y + y0) / self.half_height) ** 2) * 2.0)
        sigma = self.fwhm / 2.3548
        for sx, sy, flux in stars:
            cx, cy = sx - x0, sy - y0
            if -8 < cx < width + 8 and -8 < cy < height + 8:
                a, b = max(0, int(cy) - 8), max(0, int(cx) - 8)
                part = np.s_[a : int(cy) + 9, b : int(cx) + 9]
                r2 = (x[part] - cx) ** 2 + (y[part] - cy) ** 2
                image[part] += flux / (2 * math.pi * sigma**2) * np.exp(-r2 / (2 * sigma**2))
        return image


def header_of(x0: float, y0: float, **cards: object) -> fits.Header:
    """Header of a frame whose first pixel is at (x0, y0) of the sky; all share one tangent point, as one sky does."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = RA, DEC
    header["CRPIX1"], header["CRPIX2"] = 1.0 - x0, 1.0 - y0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -SCALE_DEG, 0.0, 0.0, SCALE_DEG
    header.update(cards)
    return header


def write_panels(
    folder: Path,
    *,
    grid: tuple[int, int] = (1, 2),
    n_frames: int = 6,
    size: tuple[int, int] = (96, 128),
    overlap: float = 0.3,
    dither: float = 3.0,
    noise: float = 12.0,
    seed: int = 1,
    gains: tuple[float, ...] = (1.0,),
    skies: tuple[float, ...] = (1000.0,),
    filters: tuple[str, ...] = ("L",),
) -> list[Path]:
    """Write frames of a grid of panels that overlap, panel after panel; gain and sky go round with the panels."""
    rows, columns = grid
    height, width = size
    step_y, step_x = height * (1 - overlap), width * (1 - overlap)
    sky = Sky(step_y * (rows - 1) / 2 + height, step_x * (columns - 1) / 2 + width)
    stars, rng, paths = sky.stars(), np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for panel in range(rows * columns):
        r, c = divmod(panel, columns)
        for k in range(n_frames):
            dx, dy = rng.uniform(-dither, dither, 2)
            x0 = (c - (columns - 1) / 2) * step_x - width / 2 + dx
            y0 = (r - (rows - 1) / 2) * step_y - height / 2 + dy
            light = sky.light(x0, y0, height, width, stars)
            gain = gains[panel % len(gains)]
            pixels = gain * light + skies[panel % len(skies)] * (1 + 0.01 * k) + rng.normal(0, noise, size)
            band = filters[k * len(filters) // n_frames]
            when = f"2025-01-{1 + panel % 28:02d}T{18 + k // 60:02d}:{k % 60:02d}:00"
            header = header_of(x0, y0, FILTER=band, EXPTIME=10.0, GAIN=80, **{"DATE-OBS": when})
            path = folder / f"p{panel:03d}_{k:04d}.fits"
            fits.writeto(path, np.clip(np.rint(pixels), 0, 65535).astype(np.uint16), header, overwrite=True)
            paths.append(path)
    return paths
