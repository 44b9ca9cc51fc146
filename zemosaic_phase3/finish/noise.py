"""The noise of the sky of a tile or a frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from zemosaic_phase3.detection.masks import dilated
from zemosaic_phase3.detection.sky_mesh import median_of_nine
from zemosaic_phase3.finish.equalize import finite_median, luminance
from zemosaic_phase3.robust import MAD_TO_SIGMA, median_of

# Noise, stars
BACKGROUND_BLOCK_PX: Final = 64
OBJECT_SIGMA: Final = 5.0  # a pixel this far above the smooth background belongs to a star, units of the sky noise
NOISE_LAG_PX: Final = 4  # beyond the reach of debayering and interpolation, which correlate neighbours
STAR_REACH_PX: Final = 5  # faint wings around the pixels that stand out
NOISE_ROUNDS: Final = 5
CLIPPED_STD: Final = 0.986578  # std of a unit Gaussian cut at +-3
NOISE_SAMPLES: Final = 1_000_000  # differences used per channel; gives sigma to 0.1 %
NOISE_PIXELS: Final = 1 << 18  # of a large image that are looked at for its noise; gives sigma to 0.2 %
NOISE_BAND_PX: Final = 32  # rows of a band of them


def block_medians(plane: np.ndarray, block: int) -> np.ndarray:
    """Median of the finite pixels of each ``block`` x ``block`` cell, nan for a cell that has fewer than an eighth."""
    rows, columns = (-(-length // block) for length in plane.shape)
    pad = ((0, rows * block - plane.shape[0]), (0, columns * block - plane.shape[1]))
    finite = np.where(np.isfinite(plane), plane, np.nan).astype(np.float32, copy=False)
    padded = np.pad(finite, pad, constant_values=np.nan)
    cells = padded.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(rows, columns, -1)
    cells = np.sort(cells, axis=-1)  # NaN last
    count = np.isfinite(cells).sum(axis=-1, keepdims=True)
    middle = [np.take_along_axis(cells, np.maximum(count - 1 + i, 0) // 2, axis=-1) for i in (0, 1)]
    median = 0.5 * (middle[0].astype(np.float64) + middle[1])
    return np.where(count >= block * block // 8, median, np.nan)[..., 0]


def smooth_background(lum: np.ndarray, block: int) -> np.ndarray:
    """Smooth background: block medians, median of 3 x 3 blocks, bilinear between the block centres."""
    block = max(1, min(block, *lum.shape))
    grid = block_medians(lum, block)
    grid = median_of_nine(np.where(np.isfinite(grid), grid, finite_median(lum)))
    for length in lum.shape:  # rows, then columns: the transposes bring each axis to the front and back
        at = np.clip((np.arange(length) + 0.5) / block - 0.5, 0.0, grid.shape[0] - 1.0)
        before = at.astype(int)
        after = np.minimum(before + 1, grid.shape[0] - 1)
        grid = (grid[before] + (at - before)[:, None] * (grid[after] - grid[before])).T
    return grid


def noise_rows(height: int, width: int) -> list[slice]:
    """Return the rows of an image on which its noise is measured: all of a small one, else a few bands.

    The bands lie at equal distances, with half of one to the edges, and hold at least ``NOISE_PIXELS`` pixels.
    """
    bands = -(-NOISE_PIXELS // (NOISE_BAND_PX * width)) | 1  # an odd number has a middle one
    if 2 * bands * NOISE_BAND_PX > height:
        return [slice(0, height)]
    starts = [(2 * k + 1) * height // (2 * bands) - NOISE_BAND_PX // 2 for k in range(bands)]
    return [slice(start, start + NOISE_BAND_PX) for start in starts]


def typical_noise(bands: Iterable[np.ndarray], workers: int = 1) -> list[float]:
    """Return the noise of an image of which ``bands``, at :func:`noise_rows`, are given: the median over the bands.

    Parameters
    ----------
    bands : iterable of ndarray (h, W) or (h, W, C)
        ADU; NaN = invalid.
    workers : int
        Threads.

    Returns
    -------
    list of float
        One standard deviation per channel, ADU; see :func:`measure_noise`.
    """
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="zemosaic") as pool:
        found = np.array(list(pool.map(_noise_of, bands)))
    known = [values[np.isfinite(values)] for values in found.T]
    return [float(np.median(values)) if values.size else math.nan for values in known]


def measure_noise(image: np.ndarray, workers: int = 1) -> list[float]:
    """Noise of the sky, per channel, little affected by stars, gradients and interpolation.

    The standard deviation of differences between pixels 4 apart in x and in y, divided by sqrt 2. A gradient is a
    constant in the differences. Stars (5 sigma above a smooth background, and 5 px around) are left out; what remains
    of them are outliers, removed by five rounds of 3-sigma clipping that start from the MAD (the std after a cut is
    corrected for the cut). Neighbours are not compared because debayering and interpolation make them alike, which
    would flatter the image. Where stars leave little sky the figure rests on little. A large image is measured on a few
    bands of it, see :func:`noise_rows`; where the noise of the sky varies the figure may be 2 % from that of the whole.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        ADU; NaN = invalid.
    workers : int
        Threads.

    Returns
    -------
    list of float
        One standard deviation per channel, ADU; nan where fewer than 16 differences are valid.
    """
    return typical_noise((image[rows] for rows in noise_rows(*image.shape[:2])), workers)


def _noise_of(band: np.ndarray) -> list[float]:
    """Noise of an image, or of a part of it, per channel."""
    planes = band[..., None] if band.ndim == 2 else band
    if min(planes.shape[:2]) <= NOISE_LAG_PX:
        return [math.nan] * planes.shape[-1]
    stars = _near_stars(luminance(planes))
    return [sky_sigma(np.where(stars, np.nan, planes[..., c]), NOISE_PIXELS) for c in range(planes.shape[-1])]


def _near_stars(lum: np.ndarray) -> np.ndarray:
    """Pixels within 5 px of one that is brighter than its surroundings by 5 sigma; sigma is refined as stars leave."""
    signal = lum - smooth_background(lum, BACKGROUND_BLOCK_PX)
    near = np.zeros(lum.shape, bool)
    for _ in range(3):
        sigma = sky_sigma(np.where(near, np.nan, lum), NOISE_PIXELS)
        if not sigma > 0:
            break
        near = dilated(signal > OBJECT_SIGMA * sigma, STAR_REACH_PX)
    return near


def sky_sigma(plane: np.ndarray, samples: int = NOISE_SAMPLES) -> float:
    """Clipped standard deviation of the differences of one plane (see :func:`measure_noise`), nan without evidence.

    At most about ``samples`` differences are looked at, of every k-th row.
    """
    lag = max(1, min(NOISE_LAG_PX, min(plane.shape) - 1))
    step = max(1, plane.size // samples)
    with np.errstate(invalid="ignore"):  # infinite minus infinite is dropped with the NaN
        difference = plane[lag:, lag:][::step].astype(np.float64) - plane[:-lag, :-lag][::step]
    difference = difference[np.isfinite(difference)]
    if difference.size < 16:
        return math.nan
    centre = median_of(difference)
    sigma = MAD_TO_SIGMA * median_of(np.abs(difference - centre))
    for _ in range(NOISE_ROUNDS):
        kept = difference[np.abs(difference - centre) <= 3.0 * sigma]
        centre, previous, sigma = float(kept.mean()), sigma, float(kept.std()) / CLIPPED_STD
        if abs(sigma - previous) <= 1e-4 * sigma:
            break
    return sigma / math.sqrt(2.0)
