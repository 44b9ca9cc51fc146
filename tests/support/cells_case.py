"""Frames as cameras with and without a colour mosaic take them; for tests of ``mosaic_cells`` and ``colour_check``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

SIGMA = 3.0 / 2.3548  # px, FWHM 3
SIZE = (256, 320)
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def photons(
    seed: int,
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0),
    pattern: str | None = None,
    *,
    sky: float = 1000.0,
    tint: float = 0.4,
    sigma: float = SIGMA,
    shift: tuple[float, float] = (0.0, 0.0),
    field: int = 7,
    size: tuple[int, int] = SIZE,
    n: int = 60,
) -> np.ndarray:
    """Frame (H, W) float64, electrons: a sky of these colours and stars of many, behind a mosaic or none."""
    rng = np.random.default_rng(field)
    height, width = size
    xy = rng.random((n, 2)) * [width + 40, height + 40] - 20 + shift
    flux = 3000.0 + 60000.0 * rng.random(n) ** 2
    tints = np.column_stack([1 + tint * rng.uniform(-1, 1, n), np.ones(n), 1 + tint * rng.uniform(-1, 1, n)])
    across = np.exp(-0.5 * ((np.arange(width) - xy[:, :1]) / sigma) ** 2)
    down = np.exp(-0.5 * ((np.arange(height) - xy[:, 1:]) / sigma) ** 2)
    planes = np.empty((3, height, width))
    for c in range(3):
        peak = flux * tints[:, c] * (colours[c] if pattern else 1.0) / (2 * np.pi * sigma**2)
        planes[c] = sky * colours[c] + (down * peak[:, None]).T @ across
    image = planes[1].copy()
    if pattern:
        for (row, column), colour in zip(PLACES, pattern, strict=True):
            image[row::2, column::2] = planes["RGB".index(colour)][row::2, column::2]
    return np.random.default_rng((field, seed)).poisson(image).astype(np.float64)


def save(path: Path, image: np.ndarray, **cards: object) -> Path:
    """Write 16-bit FITS with these cards."""
    header = fits.Header({key.replace("_", "-") if key == "CFA_PAT" else key: value for key, value in cards.items()})
    fits.writeto(path, np.clip(np.round(image), 0, 65535).astype(np.uint16), header, overwrite=True)
    return path


def session(folder: Path, n: int, *arguments: object, cards: dict[str, object] | None = None, **keywords: object):
    """Write n dithered frames of :func:`photons`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    moves = np.random.default_rng(5).uniform(-6, 6, (n, 2))
    return [
        save(folder / f"sub_{k}.fits", photons(k, *arguments, shift=tuple(moves[k]), **keywords), **(cards or {}))
        for k in range(n)
    ]
