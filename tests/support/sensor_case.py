"""What several tests share: a small sensor with bias, dark current, vignetting, dust and defects, and its exposures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.special import erf

SHAPE = (96, 128)
FULL = 65535.0


class Sensor:
    """A sensor whose truth is known; every map is ``(H, W) float64``, ADU or ADU/s."""

    def __init__(self, seed: int = 3, shape: tuple[int, int] = SHAPE, cfa: str | None = "RGGB") -> None:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[: shape[0], : shape[1]]
        self.shape, self.cfa = shape, cfa
        self.bias = 500.0 + 5.0 * rng.standard_normal(shape)
        glow = 3.0 * np.exp(-((x - shape[1]) ** 2 + y**2) / 400.0)
        self.current = 0.5 + glow + rng.gamma(0.5, 0.5, shape)
        self.hot = np.zeros(shape, bool)
        self.hot.reshape(-1)[rng.choice(shape[0] * shape[1], 30, replace=False)] = True
        self.current[self.hot] += rng.uniform(30.0, 300.0, 30)
        r2 = ((x - shape[1] / 2) ** 2 + (y - shape[0] / 2) ** 2) / (shape[1] / 2) ** 2
        self.response = (1.0 - 0.4 * r2) * (1.0 + 0.01 * rng.standard_normal(shape))
        self.response[20:28, 40:48] *= 0.8  # dust
        self.colour = np.ones(shape)
        if cfa is not None:
            for k, letter in enumerate(cfa):
                self.colour[k // 2 :: 2, k % 2 :: 2] = {"R": 0.6, "G": 1.0, "B": 0.8}[letter]

    def expose(self, light: np.ndarray | float, seconds: float, seed: int, read_noise: float = 4.0) -> np.ndarray:
        """Return one exposure as uint16: ``light (H, W)`` in ADU as it would be recorded by a perfect sensor."""
        rng = np.random.default_rng(seed)
        electrons = rng.poisson(np.maximum(light, 0.0) * self.colour * self.response + self.current * seconds)
        level = self.bias + electrons + rng.normal(0.0, read_noise, self.shape)
        return np.clip(np.round(level), 0, FULL).astype(np.uint16)


def cards(kind: str, seconds: float, **more: object) -> dict[str, object]:
    """Return the header cards of a camera."""
    return {
        "IMAGETYP": kind, "EXPTIME": seconds, "GAIN": 80, "CCD-TEMP": -10.0, "XBINNING": 1, "YBINNING": 1,
        "INSTRUME": "Cam 1", "DATE-OBS": "2025-01-15T21:00:00", **more,
    }  # fmt: skip


def write(path: Path, pixels: np.ndarray, header: dict[str, object]) -> Path:
    """Write a FITS file."""
    unit = fits.PrimaryHDU(pixels)
    for key, value in header.items():
        unit.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    unit.writeto(path, overwrite=True)
    return path


def write_set(
    folder: Path, sensor: Sensor, kind: str, light: float, seconds: float, n: int = 6, seed: int = 0, **more: object
) -> Path:
    """Write calibration frames of one kind into ``folder/kind`` and return it."""
    names = {"Dark": "dark", "Flat": "flat", "Bias": "bias", "DarkFlat": "darkflat"}
    target = folder / names[kind]
    pattern = {} if sensor.cfa is None else {"BAYERPAT": sensor.cfa}
    for i in range(n):
        pixels = sensor.expose(light * (1.0 + 0.05 * i), seconds, 1000 * seed + i)
        write(target / f"{names[kind]}_{seconds:g}_{i:02d}.fits", pixels, cards(kind, seconds, **pattern, **more))
    return target


def star_image(
    shape: tuple[int, int], stars: np.ndarray, fwhm: float, dx: float = 0.0, dy: float = 0.0, sky: float = 1000.0
) -> np.ndarray:
    """Return stars ``(n, 3)`` of x, y, flux integrated over the pixels, on a sky, ``(H, W) float64``."""
    image, s, reach = np.full(shape, sky), fwhm / 2.3548 * 2.0**0.5, int(4 * fwhm) + 3
    for x, y, flux in stars:
        x0, x1 = max(0, int(x + dx) - reach), min(shape[1], int(x + dx) + reach + 1)
        y0, y1 = max(0, int(y + dy) - reach), min(shape[0], int(y + dy) + reach + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        u, v = np.arange(x0, x1) - x - dx, np.arange(y0, y1) - y - dy
        along = [0.5 * (erf((w + 0.5) / s) - erf((w - 0.5) / s)) for w in (u, v)]
        image[y0:y1, x0:x1] += flux * along[1][:, None] * along[0]
    return image


def some_stars(
    shape: tuple[int, int], n: int, seed: int, faintest: float = 300.0, brightest: float = 3e4
) -> np.ndarray:
    """Return ``(n, 3)``: x, y inside the frame, and flux, ADU."""
    rng = np.random.default_rng(seed)
    flux = np.exp(rng.uniform(np.log(faintest), np.log(brightest), n))
    return np.stack([rng.uniform(4, shape[1] - 5, n), rng.uniform(4, shape[0] - 5, n), flux], 1)
