"""Whether the pixels of a frame are a colour mosaic: the four places of its 2x2 cells compared.

Behind the filters of a mosaic the four places see other light: other sky, other noise, other brightness of the stars.
The two green ones, on one diagonal of the cell, see the same. A camera without filters can differ in sky alone, where
its rows, columns or amplifiers are read with other offsets, and a frame that was binned or debayered before differs in
nothing.

Each pixel is compared with the mean of its neighbourhood, (1 2 1; 2 4 2; 1 2 1) / 16, in which every place of the cell
has the same share and the same centre, so that no gradient of the sky counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from zemosaic_phase3.robust import MAD_TO_SIGMA

ROWS: Final = 256  # of a frame that are looked at, and
COLUMNS: Final = 2048  # of their columns, in the middle
SKY_REACH: Final = 3.0  # sigma of the smoothed frame, pixels within are sky
PIXEL_REACH: Final = 6.0  # sigma of a place's pixels, those beyond are stars or defects
SAMPLED: Final = 5000  # pixels of each place that its usual level is measured on
FEWEST_SKY: Final = 1000  # pixels of each place, of sky
TILE: Final = 8  # cells, side of the tiles whose starlight is compared, tapered so that no star is cut by an edge
SIGNAL: Final = 30.0  # times its noise, least light of a tile that counts
SATURATED: Final = 0.9  # of the brightest pixel; tiles that come near it do not count
FEWEST_TILES: Final = 6  # with starlight

MOSAIC_SKY: Final = 0.25  # sigma, smallest range of the four places' skies in a mosaic
CLEAR_SKY: Final = 1.0  # sigma, range that needs nothing beside it where there is no starlight
LOUD_SKY: Final = 5.0  # sigma, range that no reading of a camera without filters makes
MOSAIC_LIGHT: Final = 0.05  # smallest range of the places' shares of starlight in a mosaic
MOSAIC_NOISE: Final = 0.03  # smallest range of their noise
GREENS: Final = 0.12  # of the range of the skies, by which two green places may differ
ERRORS: Final = 5.0  # standard errors that make a difference
EVEN_NOISE: Final = 0.02  # largest range of the noise in a frame that is no mosaic
EVEN_LIGHT: Final = 0.04  # and of the differences in a tile's starlight
EVEN_ERRORS: Final = 4.0  # standard errors of a place, that two of a faint tile may differ by
ALIKE: Final = 0.5  # ratio of the two diagonals' scatter above which it is the sampling of sharp stars, not colour

DIAGONALS: Final = {0: ("GRBG", "GBRG"), 1: ("RGGB", "BGGR")}  # with their greens on places 0 and 3, or on 1 and 2


class Cells(NamedTuple):
    """What the four places of the cell show, in the order of its rows; all dimensionless.

    ``sky (4,)``: level of the sky, in units of the pixel noise; ``sky_error``: its standard error. ``noise (4,)``:
    pixel noise, 1 on average. ``light (t, 4)``: how much more of the starlight of a tile than on average falls on the
    place; ``light_error (t,)``: its standard error. No tiles without stars.
    """

    sky: np.ndarray
    sky_error: float
    noise: np.ndarray
    light: np.ndarray
    light_error: np.ndarray


class Verdict(NamedTuple):
    """What frames are: "mosaic", "even" (none: nothing differs) or "unclear"; of a mosaic the possible patterns."""

    kind: Literal["mosaic", "even", "unclear"]
    patterns: tuple[str, ...] = ()
    contrast: float = 0.0  # range of the four skies, units of the noise


UNCLEAR: Final = Verdict("unclear")


def measure_cells(pixels: np.ndarray) -> Cells | None:
    """Compare the four places of the 2x2 cells.

    Parameters
    ----------
    pixels : ndarray (h, w), ADU
        Rows of a frame from an even row on, and columns from an even column on; NaN where invalid. A few hundred rows
        are enough.

    Returns
    -------
    Cells or None
        None where there is too little sky, or no noise, to tell.
    """
    block = np.ascontiguousarray(pixels, np.float32)
    if min(block.shape) < 8:
        return None
    block = block[: block.shape[0] // 2 * 2, : block.shape[1] // 2 * 2]
    down = block[:-2] + 2.0 * block[1:-1] + block[2:]
    smooth = (down[:, :-2] + 2.0 * down[:, 1:-1] + down[:, 2:]) * np.float32(1.0 / 16.0)
    above = block[1:-1, 1:-1] - smooth
    sample = smooth[::5, ::3]
    sample = sample[np.isfinite(sample)]
    if sample.size < FEWEST_SKY:
        return None
    middle = float(np.median(sample))
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(sample - middle)))
    if not sigma > 0.0:
        return None
    sky, noise, counts = np.zeros(4), np.zeros(4), []
    for place in range(4):
        first = np.s_[1 - place // 2 :: 2, 1 - place % 2 :: 2]  # the inner pixels begin on the cell's last place
        own, around = above[first], smooth[first]
        own = own[np.abs(around - np.float32(middle)) < SKY_REACH * sigma]
        some = own[:: max(1, own.size // SAMPLED)]
        if some.size < FEWEST_SKY // 4:
            return None
        usual = np.median(some)
        reach = PIXEL_REACH * MAD_TO_SIGMA * np.median(np.abs(some - usual))
        chosen = own[np.abs(own - usual) < reach]
        if chosen.size < FEWEST_SKY:
            return None
        sky[place], noise[place] = chosen.mean(dtype=np.float64), chosen.std(dtype=np.float64)
        counts.append(chosen.size)
    if not (noise > 0.0).all():
        return None
    unit = float(noise.mean())
    light, light_error = _starlight(block, middle + sky, unit)
    return Cells(sky / unit, math.sqrt(2.0 / min(counts)), noise / unit, light, light_error)


def _starlight(block: np.ndarray, sky: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the places in the starlight of each tile that has much, and their errors."""
    side = 2 * TILE
    h, w = (length // side * side for length in block.shape)
    if not (h and w):
        return np.empty((0, 4)), np.empty(0)
    taper = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    weight = taper.astype(np.float32).reshape(TILE, 2)
    tiles = block[:h, :w].reshape(h // side, TILE, 2, w // side, TILE, 2)
    down = np.einsum("aibcjd,ib->abcjd", tiles, weight)
    light = np.einsum("abcjd,jd->acbd", down, weight).reshape(-1, 4) - TILE**2 / 4.0 * sky
    peak = tiles.max(axis=(1, 2, 4, 5)).ravel()
    mean, error = light.mean(axis=1), noise * float(np.sum(taper[::2] ** 2))
    with np.errstate(invalid="ignore"):
        bright = (mean > SIGNAL * error) & (peak < SATURATED * np.nanmax(block))
    return light[bright] / mean[bright, None] - 1.0, error / mean[bright]


def judge_cells(measured: Sequence[Cells]) -> Verdict:
    """Say what the frames are that a few were measured of; all must show the same.

    Returns
    -------
    Verdict
        Of a mosaic with the patterns whose greens lie where two places of one diagonal are equal: two patterns, or all
        four where both diagonals are.
    """
    if not measured:
        return UNCLEAR
    skies = np.stack([cells.sky for cells in measured])
    sky, sky_error = skies.mean(axis=0), float(np.sqrt(np.sum([cells.sky_error**2 for cells in measured])))
    sky_error /= len(measured)
    contrast = float(np.ptp(sky))
    if np.abs(skies - sky).max() > max(ERRORS * max(cells.sky_error for cells in measured), 0.5 * contrast):
        return UNCLEAR
    noise = float(np.ptp(np.mean([cells.noise for cells in measured], axis=0)))
    light, light_error = (np.concatenate([cells[k] for cells in measured]) for k in (3, 4))
    if contrast <= ERRORS * sky_error:
        return Verdict("even", (), contrast) if noise <= EVEN_NOISE and _is_white(light, light_error) else UNCLEAR
    if contrast < max(MOSAIC_SKY, 2.0 * ERRORS * sky_error):
        return UNCLEAR
    least = LOUD_SKY if len(light) >= FEWEST_TILES else CLEAR_SKY
    if not (noise >= MOSAIC_NOISE or _is_filtered(light) or contrast >= least):
        return UNCLEAR
    apart = np.abs([sky[0] - sky[3], sky[1] - sky[2]])
    equal = apart <= max(ERRORS * sky_error, GREENS * contrast)
    patterns = tuple(pattern for k in (1, 0) if equal[k] for pattern in DIAGONALS[k])
    return Verdict("mosaic", patterns, contrast) if patterns else UNCLEAR


def _spread(values: np.ndarray) -> float:
    """Return the robust scatter of values about 0."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values)))


def _is_white(light: np.ndarray, error: np.ndarray) -> bool:
    """Return whether all places see the same light of each star, but for how sharp stars fall on the pixels.

    In a mosaic the two greens of every star agree, and its red and blue do not. Sharp stars differ on both diagonals.
    """
    if len(light) < FEWEST_TILES:
        return False
    limit = max(EVEN_LIGHT, EVEN_ERRORS * float(np.median(error)))
    diagonals = sorted((_spread(light[:, 0] - light[:, 3]), _spread(light[:, 1] - light[:, 2])))
    across = 0.5 * _spread(light[:, 0] + light[:, 3] - light[:, 1] - light[:, 2])
    is_sampling = diagonals[0] >= ALIKE * diagonals[1] and across <= max(limit, ALIKE * diagonals[0])
    return is_sampling or max(diagonals[1], across) <= limit


def _is_filtered(light: np.ndarray) -> bool:
    """Return whether the places see other parts of the starlight on the whole."""
    if len(light) < FEWEST_TILES:
        return False
    middle = np.median(light, axis=0)
    error = max(_spread(light[:, place] - middle[place]) for place in range(4)) / math.sqrt(len(light))
    return float(np.ptp(middle)) >= max(MOSAIC_LIGHT, ERRORS * error)
