"""The stars of one frame: positions, fluxes, widths and centroid errors; and the frame that has the best of them.

:func:`detect_stars` is called once per frame. What it returns serves registration, the choice of the reference and the
measures of sharpness alike. Pixel coordinates are 0-based, centres at integers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from zemosaic_spec import RegisterSpec

__all__ = ["StarList", "choose_reference", "detect_stars"]

FWHM_PER_SIGMA: Final = 2.0 * math.sqrt(2.0 * math.log(2.0))
BACKGROUND_MESH: Final = 64  # px, cell of the background and noise maps
KERNEL_NOISE: Final = 0.375  # noise of white unit noise after the 3 x 3 kernel (1 2 1; 2 4 2; 1 2 1) / 16
PIXELS_PER_STAR: Final = 35  # px above the threshold that a kept star needs in a rich field
MAX_AXIS_RATIO: Final = 3.0  # longer than this is a trail
MAX_PEAK_SHARE: Final = 0.65  # of the flux in 3 x 3 px; a Gaussian of FWHM 1.2 px reaches 0.60, a hot pixel 1
MIN_FWHM: Final = 1.0  # px of the detection image
CENTROID_FLOOR: Final = 0.015  # px, centroid error that no brightness overcomes (sampling, seeing)
SATURATED_ERROR: Final = 0.15  # px, centroid error of a star with a flat top

_sep_limits = threading.Lock()  # sep's buffer sizes are global to the process


# --------------------------------------------------------------------------- star lists


@dataclass(frozen=True, eq=False)
class StarList:
    """Stars of one frame, brightest first.

    Attributes
    ----------
    x, y : ndarray (n,) float64
        Centroids, full-resolution pixels.
    flux : ndarray (n,) float64
        Flux above the background, ADU of the detection image (summed over its pixels).
    fwhm : ndarray (n,) float64
        Full width at half maximum, full-resolution pixels.
    eccentricity : ndarray (n,) float64
        ``sqrt(1 - (b / a)^2)``, 0 = round.
    error : ndarray (n,) float64, optional
        One-sigma centroid error per axis, full-resolution pixels; :data:`CENTROID_FLOOR` for all if not given.

    Raises
    ------
    ValueError
        The columns differ in length or are not one-dimensional.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    fwhm: np.ndarray
    eccentricity: np.ndarray
    error: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Bring all columns to one form."""
        if self.error is None:
            object.__setattr__(self, "error", np.full(np.shape(self.x), CENTROID_FLOOR))
        for name in ("x", "y", "flux", "fwhm", "eccentricity", "error"):
            column = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if column.ndim != 1 or column.shape != np.shape(self.x):
                raise ValueError(
                    f"star list: column {name} has shape {column.shape}, x has {np.shape(self.x)}; give equal lengths"
                )
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        """Return the number of stars."""
        return len(self.x)

    @property
    def xy(self) -> np.ndarray:
        """Positions as (n, 2) float64."""
        return np.column_stack((self.x, self.y))

    @property
    def sigma(self) -> np.ndarray:
        """Centroid errors as (n,) float64, never None."""
        return np.full(len(self), CENTROID_FLOOR) if self.error is None else self.error

    def select(self, index: np.ndarray) -> StarList:
        """Return the stars that an index array or a boolean mask picks, in that order."""
        return StarList(
            self.x[index], self.y[index], self.flux[index], self.fwhm[index], self.eccentricity[index],
            self.sigma[index],
        )  # fmt: skip


def _no_stars() -> StarList:
    empty = np.empty(0)
    return StarList(empty, empty, empty, empty, empty, empty)


# --------------------------------------------------------------------------- detection


class _Sky(NamedTuple):
    """An image without its background: signal and noise (H, W) float32 ADU, invalid (H, W) bool or None."""

    signal: np.ndarray
    noise: np.ndarray
    invalid: np.ndarray | None


def detect_stars(image: np.ndarray, spec: RegisterSpec, *, scale: float = 1.0, offset: float = 0.0) -> StarList:
    """Find the stars of one frame.

    Background and noise come from a 64 px mesh (``sep``); pixels are found where the matched filter (the 3 x 3 kernel
    1 2 1; 2 4 2; 1 2 1) exceeds ``spec.detection_sigma`` times its own measured noise, so that correlated noise (a
    debayered image) raises the threshold. Objects at the edge, trails, single hot pixels, saturated blends and objects
    of a size unlike the others are dropped; of the rest, the ``spec.max_stars`` brightest are kept.

    Centroid, width and shape are Gaussian-windowed moments, the window iterated to the star's own width, which is
    the definition of SExtractor's XWIN_IMAGE and for a Gaussian star its true FWHM (pixel integration included).

    Parameters
    ----------
    image : ndarray (H, W) float32
        Luminance or one channel, ADU; NaN = invalid.
    spec : RegisterSpec
        ``detection_sigma``, ``min_area`` and ``max_stars`` are used.
    scale, offset : float
        For a binned image: ``x_full = x * scale + offset``, y likewise; FWHM is multiplied by ``scale``.
        2 x 2 superpixels have scale 2, offset 0.5.

    Returns
    -------
    StarList
        Empty for a blank, noisy or fully invalid image: the registration verdict speaks of it.

    Raises
    ------
    ValueError
        The image is not two-dimensional.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393 (windowed positions: SExtractor manual, 10.5); Barbary 2016, JOSS 1, 58 (sep).
    Bernstein & Jarvis 2002, AJ 123, 583 (moments with a matched Gaussian weight).
    """
    if image.ndim != 2:
        raise ValueError(f"star detection needs an (H, W) image, got shape {image.shape}; pass luminance or a channel")
    sky = _subtract_background(image)
    if sky is None:
        return _no_stars()
    objects, noise_ratio = _extract(sky, spec)
    if len(objects) == 0:
        return _no_stars()
    guess = float(np.median(np.sqrt(objects["a"] * objects["b"])[:100]))
    stamps = _cut_stamps(sky, objects, float(np.clip(guess, 0.9, 6.0)))
    stars = _measure(stamps, noise_ratio)
    stars = stars.select(_usual_width(stars.fwhm))
    stars = stars.select(np.lexsort((stars.x, stars.y, -stars.flux))[: spec.max_stars])
    return replace(
        stars,
        x=stars.x * scale + offset,
        y=stars.y * scale + offset,
        fwhm=stars.fwhm * scale,
        error=stars.sigma * scale,
    )


def _subtract_background(image: np.ndarray) -> _Sky | None:
    """Split an image into background-free signal and noise; None when no pixel is valid."""
    import sep

    data = np.ascontiguousarray(image, dtype=np.float32)
    invalid: np.ndarray | None = ~np.isfinite(data)
    if not np.any(invalid):
        invalid = None
    elif np.all(invalid):
        return None
    background = sep.Background(data, mask=invalid, bw=BACKGROUND_MESH, bh=BACKGROUND_MESH)
    signal = background.back(dtype=np.float32)
    np.subtract(data, signal, out=signal)
    if invalid is not None:
        signal[invalid] = 0.0
    noise = background.rms(dtype=np.float32)
    # A mesh cell without any noise (clipped, constant) would make every pixel beside it infinitely significant.
    np.maximum(noise, np.float32(0.1 * background.globalrms), out=noise)
    return _Sky(signal, noise, invalid)


def _extract(sky: _Sky, spec: RegisterSpec) -> tuple[np.ndarray, float]:
    """Return star-like ``sep`` objects, most significant first, and matched-filter noise over that of white noise."""
    filtered = _smooth(sky.signal / sky.noise)
    step = max(1, round(math.sqrt(filtered.size / 60_000)))
    sample = filtered[1:-1:step, 1:-1:step]
    noise = max(KERNEL_NOISE, 1.4826 * float(np.median(np.abs(sample)))) if sample.size else KERNEL_NOISE
    threshold = spec.detection_sigma * noise
    wanted = spec.max_stars + spec.max_stars // 2 + 32  # spare ones, since some are dropped once they are measured
    # In a rich field the stars that are kept stand far above the threshold: look for them alone first (half the time).
    share = PIXELS_PER_STAR * wanted / filtered.size
    raised = float(np.quantile(sample, 1.0 - share)) if share < 1.0 and sample.size else 0.0
    for level in (raised, threshold) if raised > 1.5 * threshold else (threshold,):
        objects = _extract_above(filtered, level, spec.min_area)
        if len(objects) >= wanted:
            break
    order = np.lexsort((objects["x"], objects["y"], -objects["flux"]))
    return objects[order[:wanted]], noise / KERNEL_NOISE


def _extract_above(filtered: np.ndarray, level: float, min_area: int) -> np.ndarray:
    """``sep`` objects of a filtered image above a level, without those at the edge, trails and failed blends."""
    import sep

    active = int(np.count_nonzero(filtered > level)) + 1024
    with _sep_limits:  # grow only, so that another thread's larger frame keeps its buffer
        sep.set_extract_pixstack(max(sep.get_extract_pixstack(), active))
        sep.set_sub_object_limit(max(sep.get_sub_object_limit(), 65_536))
    # Already filtered, so no kernel; cleaning only removes faint objects beside bright ones, which are not kept anyway.
    objects = sep.extract(filtered, level, minarea=min_area, filter_kernel=None, deblend_nthresh=16, clean=False)
    height, width = filtered.shape
    unusable = objects["flag"] & (sep.OBJ_TRUNC | sep.OBJ_DOVERFLOW | sep.OBJ_SINGU)
    inside = (
        (objects["xmin"] > 1) & (objects["ymin"] > 1) & (objects["xmax"] < width - 2) & (objects["ymax"] < height - 2)
    )
    return objects[(unusable == 0) & inside & (objects["a"] <= MAX_AXIS_RATIO * objects["b"])]


def _smooth(image: np.ndarray) -> np.ndarray:
    """Convolve with (1 2 1; 2 4 2; 1 2 1) / 16; the outermost pixels become 0."""
    result = np.zeros_like(image)
    if min(image.shape) < 3:
        return result
    rows = image[:, :-2] + image[:, 2:]
    rows += image[:, 1:-1]
    rows += image[:, 1:-1]
    inner = result[1:-1, 1:-1]
    np.add(rows[:-2], rows[2:], out=inner)
    inner += rows[1:-1]
    inner += rows[1:-1]
    inner *= np.float32(1.0 / 16.0)
    return result


class _Stamps(NamedTuple):
    """Square cutouts around objects: pixels (n, s, s) float64 ADU, centre pixel (n,), noise (n,) ADU, and hints."""

    pixels: np.ndarray
    x0: np.ndarray
    y0: np.ndarray
    x: np.ndarray  # first guess of the centroid, px
    y: np.ndarray
    noise: np.ndarray
    merged: np.ndarray  # cut out of a blend
    sigma: float  # first guess of the stars' Gaussian sigma, px


def _cut_stamps(sky: _Sky, objects: np.ndarray, sigma: float) -> _Stamps:
    import sep

    # The window times the star falls to 0.2 % at 2.5 sigma; room for widths 1.5 times the guess.
    radius = math.ceil(3.75 * sigma) + 1
    height, width = sky.signal.shape
    x0 = np.rint(objects["x"]).astype(np.intp)
    y0 = np.rint(objects["y"]).astype(np.intp)
    inside = (x0 >= radius) & (y0 >= radius) & (x0 < width - radius) & (y0 < height - radius)
    objects, x0, y0 = objects[inside], x0[inside], y0[inside]
    span = np.arange(-radius, radius + 1)
    rows, columns = (y0[:, None] + span)[:, :, None], (x0[:, None] + span)[:, None, :]
    keep = np.ones(len(x0), dtype=bool)
    if sky.invalid is not None:
        core = np.hypot(span[:, None], span) <= FWHM_PER_SIGMA * sigma
        keep = ~np.any(sky.invalid[rows, columns] & core, axis=(1, 2))
    pixels = sky.signal[rows, columns].astype(np.float64)
    merged = (objects["flag"] & sep.OBJ_MERGED) != 0
    noise = sky.noise[y0, x0].astype(np.float64)
    x, y = objects["x"], objects["y"]
    return _Stamps(pixels[keep], x0[keep], y0[keep], x[keep], y[keep], noise[keep], merged[keep], sigma)


def _measure(stamps: _Stamps, noise_ratio: float) -> StarList:
    """Windowed centroid, flux, width, shape and centroid error; what is no star is dropped."""
    dx, dy = stamps.x - stamps.x0, stamps.y - stamps.y0  # centroid relative to the stamp's centre
    first_dx, first_dy = dx, dy
    low, high = 0.9, max(2.0 * stamps.sigma, 1.5)  # an undersampled star still needs a window of about 2 px FWHM
    window = np.full(len(dx), np.clip(stamps.sigma, low, high))
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(12):
            total, mean_x, mean_y, xx, yy, xy = _windowed_moments(stamps.pixels, dx, dy, window)
            dx, dy = dx + np.clip(2.0 * mean_x, -1.0, 1.0), dy + np.clip(2.0 * mean_y, -1.0, 1.0)
            variance_1, variance_2 = _unwindowed(xx, yy, xy, window)
            mean_variance = 0.5 * (variance_1 + variance_2)
            window = np.sqrt(np.clip(np.nan_to_num(mean_variance, nan=0.0), low**2, high**2))
        sigma = np.sqrt(mean_variance)
        amplitude = total * (sigma**2 + window**2) / (2.0 * np.pi * sigma**2 * window**2)
        error = np.hypot(CENTROID_FLOOR, math.sqrt(2.0 / math.pi) * noise_ratio * stamps.noise / amplitude)
        eccentricity = np.sqrt(np.clip(1.0 - variance_2 / variance_1, 0.0, 1.0))
        flat = _flat_top(stamps, sigma, amplitude)
        core = stamps.pixels[:, stamps.pixels.shape[1] // 2 - 1 :, stamps.pixels.shape[2] // 2 - 1 :][:, :3, :3]
        peak_share = core.max(axis=(1, 2)) / core.sum(axis=(1, 2))
        star = (
            (np.hypot(dx - first_dx, dy - first_dy) < max(2.0, stamps.sigma))
            & (amplitude > 0.0)
            & (variance_2 > 0.0)
            & (variance_1 <= MAX_AXIS_RATIO**2 * variance_2)
            & (sigma >= MIN_FWHM / FWHM_PER_SIGMA)
            & (peak_share > 0.0)
            & (peak_share <= MAX_PEAK_SHARE)
            & ~(flat & stamps.merged)
        )
    common = float(np.median(sigma[star])) if np.any(star) else stamps.sigma
    # One window for all stars: for equal profiles the flux is exact, and it does not inherit each star's width error.
    common_window = np.full(len(dx), max(common, low))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = _windowed_moments(stamps.pixels, dx, dy, common_window)[0]
    flux = total * (1.0 + (common / common_window) ** 2)
    error = np.where(flat, np.maximum(error, SATURATED_ERROR), error * np.where(stamps.merged, 2.0, 1.0))
    stars = StarList(stamps.x0 + dx, stamps.y0 + dy, flux, sigma * FWHM_PER_SIGMA, eccentricity, error)
    return stars.select(star & (flux > 0.0))


def _windowed_moments(pixels: np.ndarray, dx: np.ndarray, dy: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sum, means and central second moments (xx, yy, xy) of stamps under a Gaussian window of sigma ``window``.

    The window is separable, so two small matrix products per star give all moments at once.
    """
    span = np.arange(pixels.shape[1]) - pixels.shape[1] // 2
    x, y = span - dx[:, None], span - dy[:, None]
    weight_x = np.exp(-0.5 * (x / window[:, None]) ** 2)
    weight_y = np.exp(-0.5 * (y / window[:, None]) ** 2)
    basis_x = np.stack((weight_x, weight_x * x, weight_x * x * x), axis=2)
    basis_y = np.stack((weight_y, weight_y * y, weight_y * y * y), axis=1)
    moment = basis_y @ pixels @ basis_x  # [star, power of y, power of x]
    total = moment[:, 0, 0]
    mean_x, mean_y = moment[:, 0, 1] / total, moment[:, 1, 0] / total
    xx = moment[:, 0, 2] / total - mean_x**2
    yy = moment[:, 2, 0] / total - mean_y**2
    return total, mean_x, mean_y, xx, yy, moment[:, 1, 1] / total - mean_x * mean_y


def _unwindowed(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances along the major and minor axis of a Gaussian whose windowed moments are given.

    Star times window is a Gaussian whose inverse covariance is the sum of both: subtract the window's.
    """
    middle, half = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    return (
        1.0 / (1.0 / (middle + half) - 1.0 / window**2),
        1.0 / (1.0 / (middle - half) - 1.0 / window**2),
    )


def _flat_top(stamps: _Stamps, sigma: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """Tell where so many pixels are within 3 % of the peak that the star must be saturated."""
    peak = stamps.pixels.max(axis=(1, 2))
    near_peak = np.count_nonzero(stamps.pixels >= 0.97 * peak[:, None, None], axis=(1, 2))
    # Area of a Gaussian above 97 % of its peak: 0.19 sigma^2.
    return (near_peak >= 5.0 + 0.4 * np.nan_to_num(sigma) ** 2) & (amplitude > 30.0 * stamps.noise)


def _usual_width(fwhm: np.ndarray) -> np.ndarray:
    """Mask of objects whose width is that of a star in this frame (nebula knots and galaxies are wider)."""
    if len(fwhm) < 5:
        return np.ones(len(fwhm), dtype=bool)
    typical = np.median(fwhm)
    return (fwhm > 0.5 * typical) & (fwhm < 2.5 * typical)


# --------------------------------------------------------------------------- reference


def choose_reference(stars: Sequence[StarList], shape: tuple[int, ...], offsets: np.ndarray | None = None) -> int:
    """Return the index of the frame the others should be registered on: well populated, central, sharpest.

    Among frames with at least 70 % of the median star count (frames without stars do not enter the median), and
    within a quarter of the frame's diagonal of the median field centre if ``offsets`` is given, the one with the
    lowest median FWHM; ties by more stars, then by the lower index.

    Parameters
    ----------
    stars : sequence of StarList
        Stars per frame.
    shape : tuple of int
        (H, W), pixels.
    offsets : ndarray (N, 2) float64, optional
        Field centres (x, y), pixels of any common system; nan where unknown.

    Raises
    ------
    ValueError
        ``stars`` is empty.
    """
    if len(stars) == 0:
        raise ValueError("no frames to choose a reference from; give at least one star list")
    count = np.array([len(each) for each in stars])
    if not np.any(count):
        return 0
    usable = count >= max(1.0, 0.7 * float(np.median(count[count > 0])))
    if offsets is not None:
        centre = np.asarray(offsets, dtype=np.float64)
        known = np.all(np.isfinite(centre), axis=1)
        if np.any(known & usable):
            distance = np.full(len(count), np.inf)
            distance[known] = np.hypot(*(centre[known] - np.median(centre[known], axis=0)).T)
            central = distance <= max(0.25 * math.hypot(shape[0], shape[1]), float(np.min(distance[usable])))
            usable &= central
    return min(
        np.flatnonzero(usable).tolist(), key=lambda k: (float(np.median(stars[k].fwhm)), -int(count[k]), k)
    )  # fmt: skip
