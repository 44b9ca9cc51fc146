"""After the stack: everything that is done to one finished image, as functions of arrays.

RGB equalisation, noise, quality crop, alt-az cleanup, alpha. Nothing is read, written or displayed, and no input is
modified but by :func:`equalize_rgb_medians_inplace` (and the two functions that apply it). Where a coverage map is
given it is used instead of the pixels: it *knows* what the pixels only suggest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_sky import median_of_nine
from zemosaic_spec import CropSpec, SpecError, as_bool, setting

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "alpha_from_coverage",
    "altaz_alpha",
    "apply_crop_pipeline",
    "crop_spec_from_config",
    "detect_autocrop_rgb",
    "equalize_rgb_medians_inplace",
    "measure_noise",
    "noise_rows",
    "poststack_rgb_equalization",
    "shift_wcs",
    "typical_noise",
]

Box = tuple[int, int, int, int]
"""(y0, x0, y1, x1): rows y0..y1-1 and columns x0..x1-1."""

MAD_TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation

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

# Quality crop
WELL_COVERED_FRACTION: Final = 0.5  # of the largest coverage: noise at most 1.41 times that of the centre
THIN_RIM_PX: Final = 2  # what frames that were never moved lose at a border by the errors of their registration
KEEP_WHOLE_FRACTION: Final = 0.97  # a crop that would keep this much of the area is not worth a new WCS
LEAST_KEPT_FRACTION: Final = 0.25  # a crop that would leave less says more about the evidence than about the tile
NOISE_PER_K: Final = 0.25  # a block is noisy above 1 + 0.25 k_sigma times the typical noise
RECTANGLE_CELLS: Final = 256  # the exact search for the largest rectangle is done on a mask of about this size

# Alt-az cleanup
ALPHA_EMPTY: Final = 1e-3  # alpha at or below this carries no data


# --------------------------------------------------------------------------- RGB equalisation


def equalize_rgb_medians_inplace(img: np.ndarray) -> tuple[float, float, float, float]:
    """Scale the channels of an image, in place, to one median.

    ``m_c`` = median of the finite pixels of channel c; target = median of the usable (finite, > 0) ``m_c``;
    gain = target / ``m_c``, and 1 for a channel that is not usable.

    Parameters
    ----------
    img : ndarray (H, W, 3), floating
        Image, ADU; changed in place. Any other shape is left alone.

    Returns
    -------
    gain_r, gain_g, gain_b, target : float
        Gains (dimensionless) and common median (ADU); (1, 1, 1, nan) when it is impossible.

    Raises
    ------
    TypeError
        An integer image, which cannot be scaled in place.
    """
    if img.ndim != 3 or img.shape[-1] != 3:
        return 1.0, 1.0, 1.0, math.nan
    if not np.issubdtype(img.dtype, np.floating):
        raise TypeError(f"cannot equalise an image of dtype {img.dtype} in place; convert it to float32 first")
    medians = np.array([finite_median(img[..., c]) for c in range(3)])
    usable = np.isfinite(medians) & (medians > 0)
    if not usable.any():
        return 1.0, 1.0, 1.0, math.nan
    target = float(np.median(medians[usable]))
    gains = [target / m if good else 1.0 for m, good in zip(medians.tolist(), usable, strict=True)]
    for c, gain in enumerate(gains):
        img[..., c] *= gain
    return gains[0], gains[1], gains[2], target


def poststack_rgb_equalization(stacked: np.ndarray, enabled: bool) -> dict[str, Any]:
    """Equalise a stacked image in place if it is asked for, and say what was done.

    Returns
    -------
    dict
        ``enabled``, ``applied`` (bool), ``gain_r``, ``gain_g``, ``gain_b`` (1.0 when not applied) and
        ``target_median`` (ADU; nan when not applied, so it must not become a header card unseen).
    """
    gains = (1.0, 1.0, 1.0, math.nan)
    if enabled:
        gains = equalize_rgb_medians_inplace(stacked)
    names = ("gain_r", "gain_g", "gain_b", "target_median")
    return {"enabled": enabled, "applied": math.isfinite(gains[3]), **dict(zip(names, gains, strict=True))}


def _poststack_rgb_equalization(
    stacked: np.ndarray, zconfig: object = None, stack_metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Inherited form: switched by ``zconfig.poststack_equalize_rgb`` (default True), answers in the metadata too."""
    info = poststack_rgb_equalization(stacked, as_bool(setting(zconfig, "poststack_equalize_rgb"), True))
    if stack_metadata is not None:
        stack_metadata["rgb_equalization"] = info
    return info


# --------------------------------------------------------------------------- levels


def luminance(image: np.ndarray) -> np.ndarray:
    """Mean of the channels, (H, W); float64, so that nothing depends on how a sum of float32 was ordered."""
    return image.mean(axis=-1, dtype=np.float64) if image.ndim == 3 else image.astype(np.float64)


def finite_median(values: np.ndarray) -> float:
    """Median of the finite values, nan when there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def _block_medians(plane: np.ndarray, block: int) -> np.ndarray:
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
    grid = _block_medians(lum, block)
    grid = median_of_nine(np.where(np.isfinite(grid), grid, finite_median(lum)))
    for length in lum.shape:  # rows, then columns: the transposes bring each axis to the front and back
        at = np.clip((np.arange(length) + 0.5) / block - 0.5, 0.0, grid.shape[0] - 1.0)
        before = at.astype(int)
        after = np.minimum(before + 1, grid.shape[0] - 1)
        grid = (grid[before] + (at - before)[:, None] * (grid[after] - grid[before])).T
    return grid


# --------------------------------------------------------------------------- noise


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
        near = _dilated(signal > OBJECT_SIGMA * sigma, STAR_REACH_PX)
    return near


def _dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """Set every pixel that is at most ``reach`` rows and ``reach`` columns from one that is set."""
    grown = np.pad(mask, reach)
    for _ in range(2):  # rows, then columns
        seen = 1  # neighbouring pixels that an element has taken up; they double with each step
        while seen < 2 * reach + 1:
            step = min(seen, 2 * reach + 1 - seen)
            grown = grown[:-step] | grown[step:]
            seen += step
        grown = grown.T
    return grown


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
    centre = np.median(difference)
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(difference - centre)))
    for _ in range(NOISE_ROUNDS):
        kept = difference[np.abs(difference - centre) <= 3.0 * sigma]
        centre, previous, sigma = kept.mean(), sigma, float(kept.std()) / CLIPPED_STD
        if abs(sigma - previous) <= 1e-4 * sigma:
            break
    return sigma / math.sqrt(2.0)


# --------------------------------------------------------------------------- quality crop


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
    touches the border (through other poor pixels) and, if ``coverage`` is given, has less than half of the largest
    coverage; otherwise is not finite, or lies in a block of ``band_px / 2`` pixels that is constant, or darker than a
    smooth sky by ``k_sigma`` noise in a channel (dark or coloured), or not brighter than the sky and noisier than
    ``1 + k_sigma / 4`` times the typical noise. Bad blocks count in groups of ``min_run`` or more. The pixels
    can mislead (a nebula as large as the tile, strong vignetting): give the coverage where there is one.

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
        sound = ~_poorly_covered_border(_coverage_2d(coverage, lum2d.shape), WELL_COVERED_FRACTION)
    y0, x0, y1, x1 = _largest_rectangle(sound)
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


def _coverage_2d(coverage: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Coverage per pixel: of its best covered channel."""
    flat = coverage.max(axis=-1) if coverage.ndim == 3 else coverage
    if flat.shape != shape[:2]:
        raise ValueError(f"coverage has shape {coverage.shape}, the image {shape}; they must agree")
    return flat


def _touching_border(poor: np.ndarray, least: int = 1) -> np.ndarray:
    """Keep the 8-connected groups of True that touch the border and have at least ``least`` members."""
    from scipy import ndimage

    labels, count = ndimage.label(poor, structure=np.ones((3, 3), bool))
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    wanted = np.zeros(count + 1, bool)
    wanted[rim] = True
    wanted &= np.bincount(labels.ravel(), minlength=count + 1) >= least
    wanted[0] = False
    return wanted[labels]


def _poorly_covered_border(coverage: np.ndarray, fraction: float) -> np.ndarray:
    """Pixels below ``fraction`` of the largest coverage that form a border, not a hole inside or a bad column.

    Streaks up to 4 px wide are forgiven by an opening whose outside counts as poor, so that a thin rim is kept.
    """
    from scipy import ndimage

    most = float(np.max(coverage, initial=0.0, where=np.isfinite(coverage)))
    poor = ~np.asarray(coverage >= fraction * most) if most > 0 else np.zeros(coverage.shape, bool)
    border = _touching_border(poor)
    padded = ndimage.binary_opening(np.pad(border, 4, constant_values=True), np.ones((5, 5), bool))
    return border & padded[4:-4, 4:-4]


def _sound_pixels(
    lum: np.ndarray, rgb: tuple[np.ndarray, ...], band_px: int, k_sigma: float, min_run: int
) -> np.ndarray:
    """Pixels that are no border defect as far as the image itself can tell (see :func:`detect_autocrop_rgb`)."""
    finite = np.isfinite(lum) & np.logical_and.reduce([np.isfinite(plane) for plane in rgb])
    sound = ~_poorly_covered_border(finite, 1.0)
    block = max(8, int(band_px) // 2)
    height, width = lum.shape
    if min(height, width) < 4 * block or not finite.any():
        return sound  # too few blocks to know what is typical
    lum = np.where(finite, lum, np.nan)
    level = _block_medians(lum, block)
    noise = _block_noise(lum, block)
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False: an empty block is judged by its pixels
        typical = finite_median(noise[noise > 0])
        constant = (noise == 0) & (typical > 0)
        starry = lum > _whole_blocks(level, block, lum.shape) + 3.0 * typical
        noise = _block_noise(np.where(starry, np.nan, lum), block)
        noisy = noise > typical * (1.0 + NOISE_PER_K * k_sigma)
        bad = constant | (noisy & (_side_of_sky(np.where(constant, np.nan, level), k_sigma, typical) <= 0))
        for plane in rgb:  # a border that is coloured for want of data lacks one colour; a nebula has one more
            channel = _block_medians(np.where(finite, plane, np.nan), block)
            bad |= _side_of_sky(np.where(constant, np.nan, channel), k_sigma, typical) < 0
    bad = _touching_border(bad, max(1, int(min_run)))
    return sound & ~_whole_blocks(bad, block, lum.shape)


def _whole_blocks(grid: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Give every pixel the value of its block."""
    return grid.repeat(block, axis=0).repeat(block, axis=1)[: shape[0], : shape[1]]


def _block_noise(lum: np.ndarray, block: int) -> np.ndarray:
    """Noise per block from differences of neighbours; good for comparing blocks, not as an absolute figure."""
    return _block_medians(np.abs(np.diff(lum, axis=1, append=np.nan)), block) * MAD_TO_SIGMA / math.sqrt(2.0)


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


def _largest_rectangle(good: np.ndarray) -> Box:
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


# --------------------------------------------------------------------------- alt-az cleanup, alpha


def altaz_alpha(
    image: np.ndarray,
    *,
    margin_percent: float = 5.0,
    decay: float = 0.15,
    nanize: bool = True,
    coverage: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Fade out the border that field rotation leaves poorly exposed.

    ``alpha = clip(distance to the nearest poor pixel / band, 0, 1)``, band = max(4, ``margin_percent`` of the shorter
    side) pixels. With ``coverage``, poor is what touches the border and has none or less than ``decay`` of the largest
    coverage. Without it, poor is what within ``band`` of the edge is not finite or has a luminance (mean of the
    channels) below median - 1.4826 MAD of the inner 60 %, after a binary opening with a cross; ``decay`` then has no
    effect. The pixels alone cannot tell a poor border from the darker side of a gradient: give the coverage where there
    is one.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        ADU; not modified.
    margin_percent : float
        Width of the band, percent of the shorter side.
    decay : float
        Fraction of the largest coverage, 0 to 1.
    nanize : bool
        Pixels with alpha <= 0.001 become NaN; otherwise 0.
    coverage : ndarray (H, W) or (H, W, C), optional
        Samples (or weight) behind each pixel.

    Returns
    -------
    image : ndarray
        Cleaned copy, or the image itself when nothing is poor.
    alpha : ndarray (H, W) float32 or None
        0 to 1; None when nothing is poor.

    Raises
    ------
    SpecError
        ``margin_percent`` outside 0 to 50 or ``decay`` outside 0 to 1.
    """
    from scipy import ndimage

    for name, value, top in (("alt-az margin percent", margin_percent, 50.0), ("alt-az decay", decay, 1.0)):
        if not 0.0 <= value <= top:
            raise SpecError(f"{name} = {value!r} is outside [0, {top:g}]")
    band = max(4, int(min(image.shape[:2]) * margin_percent / 100.0))
    if coverage is None:
        poor = _low_signal_border(luminance(image), band)
    else:
        per_pixel = _coverage_2d(coverage, image.shape)
        # "less than 0 of the largest" would be nothing: an uncovered border is poor whatever the decay
        poor = _touching_border(~(per_pixel > 0)) | _poorly_covered_border(per_pixel, decay)
    if not poor.any():
        return image, None
    distance = ndimage.distance_transform_edt(~poor) if not poor.all() else np.zeros(poor.shape)
    alpha = np.clip(distance / band, 0.0, 1.0).astype(np.float32)
    cleaned = np.array(image, dtype=np.result_type(image.dtype, np.float32))
    cleaned[alpha <= ALPHA_EMPTY] = np.nan if nanize else 0.0
    return cleaned, alpha


def _low_signal_border(lum: np.ndarray, band: int) -> np.ndarray:
    from scipy import ndimage

    height, width = lum.shape
    inner = lum[int(0.2 * height) : math.ceil(0.8 * height), int(0.2 * width) : math.ceil(0.8 * width)]
    middle = finite_median(inner)
    if math.isnan(middle):
        return np.ones(lum.shape, bool)  # a tile without a middle has nothing to save
    low = ~(lum >= middle - MAD_TO_SIGMA * finite_median(np.abs(inner - middle)))
    low[band:-band, band:-band] = False
    return ndimage.binary_opening(low)


def alpha_from_coverage(coverage: np.ndarray, altaz_alpha: np.ndarray | None = None) -> np.ndarray:
    """Say which pixels hold data: 255 where a channel has coverage and the alt-az mask, if any, is at least 0.5.

    Parameters
    ----------
    coverage : ndarray (H, W) or (H, W, C)
        Samples (or weight, or bool) behind each pixel; NaN counts as none.
    altaz_alpha : ndarray (H, W), optional
        From :func:`altaz_alpha`, 0 to 1.

    Returns
    -------
    ndarray (H, W) uint8
        0 or 255.

    Raises
    ------
    ValueError
        The two have different shapes.
    """
    covered = (coverage > 0).any(axis=-1) if coverage.ndim == 3 else coverage > 0
    if altaz_alpha is not None:
        if altaz_alpha.shape != covered.shape:
            raise ValueError(f"the mask has shape {altaz_alpha.shape}, the coverage {covered.shape}; they must agree")
        covered = covered & (altaz_alpha >= 0.5)
    return np.where(covered, np.uint8(255), np.uint8(0))


# --------------------------------------------------------------------------- both, as configured


def crop_spec_from_config(cfg: Mapping[str, Any] | None) -> CropSpec:
    """Read the ``quality_crop_*`` and ``altaz_*`` keys of an existing configuration; absent or None = default (off)."""
    given = cfg or {}
    default = CropSpec()

    def value(key: str, fallback: Any) -> Any:
        found = given.get(key)
        return fallback if found is None else type(fallback)(found)

    return CropSpec(
        quality_crop=as_bool(given.get("quality_crop_enabled"), default.quality_crop),
        band_px=value("quality_crop_band_px", default.band_px),
        k_sigma=value("quality_crop_k_sigma", default.k_sigma),
        margin_px=value("quality_crop_margin_px", default.margin_px),
        min_run=value("quality_crop_min_run", default.min_run),
        altaz_cleanup=as_bool(given.get("altaz_cleanup_enabled"), default.altaz_cleanup),
        altaz_margin_percent=value("altaz_margin_percent", default.altaz_margin_percent),
        altaz_decay=value("altaz_decay", default.altaz_decay),
        altaz_nanize=as_bool(given.get("altaz_nanize"), default.altaz_nanize),
    )


def apply_crop_pipeline(
    arr: np.ndarray, cfg: Mapping[str, Any] | CropSpec | None, coverage: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, Box | None]:
    """Quality crop, then alt-az cleanup of what is left, each if switched on.

    Parameters
    ----------
    arr : ndarray (H, W) or (H, W, 3)
        Tile, ADU; not modified.
    cfg : Mapping or CropSpec or None
        Settings; a mapping is read by :func:`crop_spec_from_config`.
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
    spec = cfg if isinstance(cfg, CropSpec) else crop_spec_from_config(cfg)
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


def _apply_lecropper_pipeline(arr: np.ndarray, cfg: Mapping[str, Any] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Inherited form: alt-az cleanup only, judged by the pixels.

    It never crops, whatever ``quality_crop_enabled`` says: it cannot tell its caller by how much the WCS has to follow.
    :func:`apply_crop_pipeline` can.
    """
    spec = crop_spec_from_config(cfg)
    if not spec.altaz_cleanup:
        return arr, None
    return altaz_alpha(
        arr, margin_percent=spec.altaz_margin_percent, decay=spec.altaz_decay, nanize=spec.altaz_nanize
    )  # fmt: skip
