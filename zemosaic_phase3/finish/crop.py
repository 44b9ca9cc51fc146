"""Cutting the poor rim of a tile off."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.finish.alpha import altaz_alpha
from zemosaic_phase3.finish.coverage import WELL_COVERED_FRACTION, coverage_2d, poorly_covered_border, touching_border
from zemosaic_phase3.finish.equalize import finite_median, luminance
from zemosaic_phase3.finish.noise import MAD_TO_SIGMA, block_medians
from zemosaic_phase3.spec import CropSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS


Box = tuple[int, int, int, int]
"""(y0, x0, y1, x1): rows y0..y1-1 and columns x0..x1-1."""
THIN_RIM_PX: Final = 2  # what frames that were never moved lose at a border by the errors of their registration
KEEP_WHOLE_FRACTION: Final = 0.97  # a crop that would keep this much of the area is not worth a new WCS
LEAST_KEPT_FRACTION: Final = 0.25  # a crop that would leave less says more about the evidence than about the tile
NOISE_PER_K: Final = 0.25  # a block is noisy above 1 + 0.25 k_sigma times the typical noise
LEAST_BLOCKS: Final = 8  # along a side, for a band along another one to stand out
WIDEST_BAND: Final = 0.25  # of the rows of blocks
ALONG_FRACTION: Final = 0.8  # of a side, along which a band is dark
STEEPER: Final = 3.0  # a step, than the slopes beside it
RECTANGLE_CELLS: Final = 256  # the exact search for the largest rectangle is done on a mask of about this size


def detect_autocrop_rgb(
    lum2d: np.ndarray,
    R: np.ndarray,
    G: np.ndarray,
    B: np.ndarray,
    band_px: int = 32,
    k_sigma: float = 2.0,
    margin_px: int = 8,
    min_run: int = 2,
    coverage: np.ndarray | None = None,
) -> Box:
    """Find the part of a tile that is worth keeping.

    The largest axis-aligned rectangle without poor pixels, less ``margin_px`` on the sides that were cut. Poor is what
    touches the border, through other poor pixels too.

    With ``coverage`` that is what has less than half of the largest coverage, or lies in a band along a side that a
    step sets off and that is darker by ``k_sigma`` noise in a channel: a shadow on the sensor is in every frame.

    Without it, that is what is not finite, or lies in a block of ``band_px / 2`` pixels that is constant, or darker
    than a smooth sky by ``k_sigma`` noise in a channel (dark or coloured), or not brighter than the sky and noisier
    than ``1 + k_sigma / 4`` times the typical noise. Bad blocks count in groups of ``min_run`` or more. The pixels can
    mislead (a nebula as large as the tile, strong vignetting): give the coverage where there is one.

    Parameters
    ----------
    lum2d, R, G, B : ndarray (H, W)
        Luminance and channels, ADU; NaN = invalid.
    band_px, margin_px : int
        Scale of border defects and safety margin, pixels.
    k_sigma : float
        Strictness towards dark, noisy and coloured blocks.
    min_run : int
        Smallest group of touching bad blocks that counts.
    coverage : ndarray (H, W) or (H, W, C), optional
        Samples (or weight) behind each pixel.

    Returns
    -------
    y0, x0, y1, x1 : int
        Half-open box. The whole tile when the box would keep 97 % of it or more (not worth it; by coverage that is
        judged before the margin, and a rim of up to 2 px is no border either), or less than 25 % (the evidence then
        speaks of a fault that cropping cannot mend; the quality gate will).

    Raises
    ------
    ValueError
        Arrays of different shapes.
    """
    height, width = lum2d.shape
    for name, plane in (("R", R), ("G", G), ("B", B)):
        if plane.shape != lum2d.shape:
            raise ValueError(f"{name} has shape {plane.shape}, the luminance {lum2d.shape}; they must agree")
    if coverage is None:
        sound = _sound_pixels(lum2d, (R, G, B), band_px, k_sigma, min_run)
    else:
        sound = ~poorly_covered_border(coverage_2d(coverage, lum2d.shape), WELL_COVERED_FRACTION)
        for plane in {id(plane): plane for plane in (R, G, B)}.values():  # of a mono tile all three are one
            sound &= ~_dark_bands(plane, band_px, k_sigma)
    y0, x0, y1, x1 = largest_rectangle(sound)
    if coverage is not None and _is_clean((y0, x0, y1, x1), height, width):
        return 0, 0, height, width
    margin = max(0, int(margin_px))
    y0, x0 = (edge + margin if edge > 0 else 0 for edge in (y0, x0))
    y1, x1 = (edge - margin if edge < end else end for edge, end in ((y1, height), (x1, width)))
    kept = max(0, y1 - y0) * max(0, x1 - x0) / max(1, height * width)
    if not LEAST_KEPT_FRACTION <= kept < KEEP_WHOLE_FRACTION:
        return 0, 0, height, width
    return y0, x0, y1, x1


def _is_clean(box: Box, height: int, width: int) -> bool:
    """Tell whether what is well covered is as good as the whole tile: frames are placed to a fraction of a pixel."""
    y0, x0, y1, x1 = box
    is_thin = max(y0, x0, height - y1, width - x1) <= THIN_RIM_PX
    return is_thin or (y1 - y0) * (x1 - x0) >= KEEP_WHOLE_FRACTION * height * width


def _sound_pixels(
    lum: np.ndarray, rgb: tuple[np.ndarray, ...], band_px: int, k_sigma: float, min_run: int
) -> np.ndarray:
    """Pixels that are no border defect as far as the image itself can tell (see :func:`detect_autocrop_rgb`)."""
    finite = np.isfinite(lum) & np.logical_and.reduce([np.isfinite(plane) for plane in rgb])
    sound = ~poorly_covered_border(finite, 1.0)
    block = max(8, int(band_px) // 2)
    height, width = lum.shape
    if min(height, width) < 4 * block or not finite.any():
        return sound  # too few blocks to know what is typical
    lum = np.where(finite, lum, np.nan)
    level = block_medians(lum, block)
    noise = _block_noise(lum, block)
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False: an empty block is judged by its pixels
        typical = finite_median(noise[noise > 0])
        constant = (noise == 0) & (typical > 0)
        starry = lum > _whole_blocks(level, block, lum.shape) + 3.0 * typical
        noise = _block_noise(np.where(starry, np.nan, lum), block)
        noisy = noise > typical * (1.0 + NOISE_PER_K * k_sigma)
        bad = constant | (noisy & (_side_of_sky(np.where(constant, np.nan, level), k_sigma, typical) <= 0))
        for plane in rgb:  # a border that is coloured for want of data lacks one colour; a nebula has one more
            channel = block_medians(np.where(finite, plane, np.nan), block)
            bad |= _side_of_sky(np.where(constant, np.nan, channel), k_sigma, typical) < 0
    bad = touching_border(bad, max(1, int(min_run)))
    return sound & ~_whole_blocks(bad, block, lum.shape)


def _dark_bands(plane: np.ndarray, band_px: int, k_sigma: float) -> np.ndarray:
    """Pixels of bands along the sides that are darker than what follows, set off by a step, ``(H, W) bool``."""
    band = np.zeros(plane.shape, bool)
    block = max(8, int(band_px) // 2)
    if min(plane.shape) < LEAST_BLOCKS * block or not np.isfinite(plane).any():
        return band  # too few blocks to know what is typical
    for turns in range(4):  # each side in turn becomes the upper one
        turned = np.rot90(plane, turns)
        widest = int(WIDEST_BAND * turned.shape[0] / block)
        strip = turned[: (widest + 5) * block]
        noise = _block_noise(strip, block)
        limit = k_sigma * finite_median(noise[noise > 0])
        rows = block * _dark_rows(block_medians(strip, block), widest, limit)
        np.rot90(band, turns)[:rows] = True  # a view: the pixels marked are the band's
    return band


def _dark_rows(level: np.ndarray, widest: int, limit: float) -> int:
    """Count the rows of blocks above the steepest step, if it is one from dark to bright along the whole side.

    A step rises by more than ``limit``, ADU, in ``ALONG_FRACTION`` of the columns, from one row to the next but one, so
    that its edge may lie anywhere; and by far more than the levels change before and after it, as gradients and
    vignetting do.
    """
    best, found = 0.0, 0
    for k in range(widest):
        before, after, further = level[k], level[k + 2], level[k + 4]
        rise = after - before
        known = np.isfinite(rise)
        if np.count_nonzero(known & (rise > limit)) < ALONG_FRACTION * max(1, level.shape[1]):
            continue
        step, smooth = finite_median(rise), abs(finite_median(further - after))
        if k >= 2:
            smooth = max(smooth, abs(finite_median(before - level[k - 2])))
        if step > max(limit, STEEPER * smooth, best):
            is_dark = finite_median(level[k + 1] - before) < 0.5 * step  # the row with the edge in it
            best, found = step, k + 1 + int(is_dark)
    return found


def _whole_blocks(grid: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Give every pixel the value of its block."""
    return grid.repeat(block, axis=0).repeat(block, axis=1)[: shape[0], : shape[1]]


def _block_noise(lum: np.ndarray, block: int) -> np.ndarray:
    """Noise per block from differences of neighbours; good for comparing blocks, not as an absolute figure."""
    return block_medians(np.abs(np.diff(lum, axis=1, append=np.nan)), block) * MAD_TO_SIGMA / math.sqrt(2.0)


def _side_of_sky(levels: np.ndarray, k_sigma: float, noise: float) -> np.ndarray:
    """Which blocks stand out from a smooth sky: -1 dark, +1 bright, 0 part of it (or unknown).

    To stand out, a block differs by ``k_sigma`` times the noise (or the scatter, if larger) from a robust quadratic
    surface, which allows for gradients and vignetting. A surface that bends under a nebula leaves innocent sky beside
    it, so a dark block is also darker, by ``k_sigma`` noise, than anything in the middle half of the tile (5th
    percentile, less its distance to the median).
    """
    y, x = (axis / max(1, n - 1) - 0.5 for axis, n in zip(np.indices(levels.shape), levels.shape, strict=True))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    excess, scatter = levels - finite_median(levels), 0.0
    for _ in range(5):
        scatter = MAD_TO_SIGMA * finite_median(np.abs(excess))
        used = np.abs(excess) <= 3.0 * max(scatter, 1e-12)
        if used.sum() < 2 * terms.shape[-1]:
            break
        fit, *_ = np.linalg.lstsq(terms[used], levels[used], rcond=None)
        excess = levels - terms @ fit
    limit = k_sigma * max(scatter, noise)
    rows, columns = levels.shape
    middle = levels[rows // 4 : -(-3 * rows // 4), columns // 4 : -(-3 * columns // 4)]
    middle = middle[np.isfinite(middle)]
    if not middle.size:
        return np.zeros(levels.shape, int)
    low, median = np.percentile(middle, (5.0, 50.0))
    dark = (excess < -limit) & (levels < 2.0 * low - median - k_sigma * noise)
    return (excess > limit).astype(int) - dark


def largest_rectangle(good: np.ndarray) -> Box:
    """Largest axis-aligned rectangle of True, exact to a cell of about 1/256 of the side, then grown to the pixel.

    The classic sweep over histograms of column heights, on cells that are wholly True.
    """
    height, width = good.shape
    cell = max(1, -(-max(height, width) // RECTANGLE_CELLS))
    rows, columns = height // cell, width // cell
    cells = np.all(good[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell), axis=(1, 3))
    best, box = 0, (0, 0, 0, 0)
    depth = np.zeros(columns + 1, int)  # the extra column, always 0, ends every open bar
    for row in range(rows):
        depth[:-1] = np.where(cells[row], depth[:-1] + 1, 0)
        open_bars: list[tuple[int, int]] = []  # (first column, height), heights increasing
        for column, bar in enumerate(depth.tolist()):
            start = column
            while open_bars and open_bars[-1][1] >= bar:
                start, tall = open_bars.pop()
                if tall * (column - start) > best:
                    best, box = tall * (column - start), (row + 1 - tall, start, row + 1, column)
            open_bars.append((start, bar))
    if best == 0:
        return 0, 0, 0, 0
    y0, x0, y1, x1 = (edge * cell for edge in box)
    while y0 > 0 and good[y0 - 1, x0:x1].all():
        y0 -= 1
    while y1 < height and good[y1, x0:x1].all():
        y1 += 1
    while x0 > 0 and good[y0:y1, x0 - 1].all():
        x0 -= 1
    while x1 < width and good[y0:y1, x1].all():
        x1 += 1
    return y0, x0, y1, x1


def shift_wcs(wcs: WCS | None, y0: int, x0: int, shape: tuple[int, ...]) -> WCS | None:
    """Return a copy of ``wcs`` that fits the crop beginning at row ``y0``, column ``x0``.

    Parameters
    ----------
    wcs : astropy.wcs.WCS or None
        WCS of the whole tile; SIP distortion is kept. None gives None.
    y0, x0 : int
        First row and column of the crop, pixels of the whole tile.
    shape : tuple
        (height, width, ...) of the crop, pixels.
    """
    if wcs is None:
        return None
    from astropy.wcs import Sip

    moved = copy.deepcopy(wcs)
    moved.wcs.crpix = np.asarray(wcs.wcs.crpix) - (x0, y0)
    if wcs.sip is not None:  # the polynomials count from their own reference pixel, which cannot be set
        sip = wcs.sip
        moved.sip = Sip(sip.a, sip.b, sip.ap, sip.bp, np.asarray(sip.crpix) - (x0, y0))
    moved.pixel_shape = (int(shape[1]), int(shape[0]))
    moved.wcs.set()
    return moved


def apply_crop_pipeline(
    arr: np.ndarray, spec: CropSpec, coverage: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, Box | None]:
    """Quality crop, then alt-az cleanup of what is left, each if switched on.

    Parameters
    ----------
    arr : ndarray (H, W) or (H, W, 3)
        Tile, ADU; not modified.
    spec : CropSpec
        What to do.
    coverage : ndarray (H, W) or (H, W, C), optional
        Samples (or weight) behind each pixel of ``arr``.

    Returns
    -------
    image : ndarray
        Cropped and cleaned copy, or ``arr`` itself when nothing changed.
    mask : ndarray (h, w) float32 or None
        Alpha of the alt-az cleanup, 0 to 1, of the cropped tile.
    box : tuple or None
        (y0, x0, y1, x1) if the tile was cropped: crop the other maps alike and give it to :func:`shift_wcs`.
    """
    image, box = arr, None
    if spec.quality_crop:
        planes = [arr[..., c] for c in range(3)] if arr.ndim == 3 and arr.shape[-1] == 3 else [luminance(arr)] * 3
        found = detect_autocrop_rgb(
            luminance(arr), planes[0], planes[1], planes[2], spec.band_px, spec.k_sigma, spec.margin_px,
            spec.min_run, coverage,
        )  # fmt: skip
        if found != (0, 0, *arr.shape[:2]):
            box = found
            rows, columns = slice(box[0], box[2]), slice(box[1], box[3])
            image = arr[rows, columns].copy()
            coverage = None if coverage is None else coverage[rows, columns]
    if not spec.altaz_cleanup:
        return image, None, box
    image, mask = altaz_alpha(
        image, margin_percent=spec.altaz_margin_percent, decay=spec.altaz_decay, nanize=spec.altaz_nanize,
        coverage=coverage,
    )  # fmt: skip
    return image, mask, box
