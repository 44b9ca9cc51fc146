"""The stars of one frame: positions, fluxes, widths and centroid errors.

:func:`find_stars` is called once per frame. What it returns serves registration, photometry, the choice of the
reference and the measures of sharpness alike. Pixel coordinates are 0-based, centres at integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.detection.sky_mesh import median_of_nine, mesh_at, sky_mesh, spread_mesh
from zemosaic_phase3.robust import MAD_TO_SIGMA
from zemosaic_phase3.spec import RegisterSpec

FWHM_PER_SIGMA: Final = 2.0 * math.sqrt(2.0 * math.log(2.0))
MESH_CELL: Final = 32  # pixels of the binned frame, cell of the background and noise maps
KERNEL_NOISE: Final = 0.375  # noise of white unit noise after the 3 x 3 kernel (1 2 1; 2 4 2; 1 2 1) / 16
RING_PX: Final = 5  # binned pixels, radius of the ring that a detection must stand out from
MOST_MEASURED: Final = 2_500  # detections that are measured at least, the most significant ones
GUESSED_FROM: Final = 300  # most significant detections that tell the width of a star
FIRST_SIGMA: Final = 2.0  # px, Gaussian width with which those are measured
MAX_AXIS_RATIO: Final = 3.0  # longer than this is a trail
MAX_PEAK_SHARE: Final = 0.65  # of the flux in 3 x 3 px; a Gaussian of FWHM 1.2 px reaches 0.60, a hot pixel 1
MIN_FWHM: Final = 1.0  # px
MAX_STEP: Final = 4.0  # px, that a centroid may lie from the maximum of a binned frame
SAME_STAR: Final = 0.8  # FWHM, closer detections are one star found twice
BLEND: Final = 2.2  # FWHM, closer detections disturb each other's centroid
WIDTH_STARS: Final = 80  # most significant stars that tell the width of the profile that fluxes are fitted with
WIDTH_STEP: Final = 1.15  # factor between the widths that are tried
CENTROID_FLOOR: Final = 0.015  # px, centroid error that no brightness overcomes (sampling, seeing)
SATURATED_ERROR: Final = 0.15  # px, centroid error of a star with a flat top
REACH: Final = 6.0  # sigma, radius of what fluxes are fitted to: the same share of every star, whatever the seeing
MAX_PEAK: Final = 0.9  # of the level that clips; a star whose brightest pixel is above it has no flux


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
    light : ndarray (n, C) float64, optional
        Flux in every channel, ADU; NaN where it could not be measured or the star may be saturated.
    light_error : ndarray (n, C) float64, optional
        Its standard deviation for pixels of unit noise (ADU per ADU).
    n_found : int, optional
        Stars found, of which these are the brightest; -1: as many as are listed.

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
    light: np.ndarray | None = None
    light_error: np.ndarray | None = None
    n_found: int = -1

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
        for name in ("light", "light_error"):
            table = getattr(self, name)
            if table is None or np.ndim(table) != 2 or len(table) != len(self.x):
                empty = np.empty((len(self.x), 0))
                if table is not None:
                    raise ValueError(f"star list: {name} has shape {np.shape(table)}; give one row for each of the x")
                object.__setattr__(self, name, empty)
        if self.n_found < len(self.x):
            object.__setattr__(self, "n_found", len(self.x))

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
        """Return the stars that an index array or a boolean mask picks, in that order; ``n_found`` starts anew."""
        return StarList(
            self.x[index], self.y[index], self.flux[index], self.fwhm[index], self.eccentricity[index],
            self.sigma[index], self.photometry[0][index], self.photometry[1][index],
        )  # fmt: skip

    @property
    def photometry(self) -> tuple[np.ndarray, np.ndarray]:
        """Flux per channel and its error, two (n, C) float64 arrays, never None; C = 0 where it was not measured."""
        none = np.empty((len(self), 0))
        return (none if self.light is None else self.light), (none if self.light_error is None else self.light_error)


def _no_stars() -> StarList:
    empty = np.empty(0)
    return StarList(empty, empty, empty, empty, empty, empty)


def detect_stars(image: np.ndarray, spec: RegisterSpec, *, scale: float = 1.0, offset: float = 0.0) -> StarList:
    """Find the stars of one image; :func:`find_stars` for frames as cameras write them.

    Parameters
    ----------
    image : ndarray (H, W) float32
        Luminance or one channel, ADU; NaN = invalid.
    spec : RegisterSpec
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
    """
    if image.ndim != 2:
        raise ValueError(f"star detection needs an (H, W) image, got shape {image.shape}; pass luminance or a channel")
    stars = find_stars(image, spec)
    return replace(
        stars,
        x=stars.x * scale + offset,
        y=stars.y * scale + offset,
        fwhm=stars.fwhm * scale,
        error=stars.sigma * scale,
    )


class _Sky(NamedTuple):
    """Sky of a binned frame on a mesh of ``MESH_CELL``: level and noise (rows, columns) float64, ADU."""

    level: np.ndarray
    noise: np.ndarray


def find_stars(pixels: np.ndarray, spec: RegisterSpec, cfa: str | None = None) -> StarList:
    """Find and measure the stars of one frame.

    Stars are found on 2x2 cells (mean of the channels; of a mosaic the mean of the two greens) and measured on the
    pixels themselves. Background and noise come from a mesh of 64 px; a star is a local maximum of the matched filter
    (the 3 x 3 kernel 1 2 1; 2 4 2; 1 2 1) above ``spec.detection_sigma`` times its own measured noise, so that
    correlated noise (a debayered image) raises the threshold. Objects at the edge, trails, single hot pixels, saturated
    blends and objects of a size unlike the others are dropped; the ``spec.max_stars`` brightest are listed.

    Centroid and shape are Gaussian-windowed moments, the window iterated to the star's own width, which is the
    definition of SExtractor's XWIN_IMAGE; of a mosaic over the green pixels where they lie, so that neither binning nor
    demosaicing widens a star, nor its colour moves it. Fluxes are least-squares fits of one profile per frame.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, C)
        ADU; NaN = invalid.
    spec : RegisterSpec
        ``detection_sigma``, ``min_area`` and ``max_stars`` are used.
    cfa : str, optional
        Colours of the 2x2 cell of a mosaic (H, W), as "RGGB".

    Returns
    -------
    StarList
        Brightest first; empty for a blank, noisy or fully invalid frame.

    References
    ----------
    Bertin & Arnouts 1996, A&AS 117, 393 (mesh and windowed positions: SExtractor manual, 10.5); Bernstein & Jarvis
    2002, AJ 123, 583 (moments with a matched Gaussian weight); Stetson 1987, PASP 99, 191 (fluxes by a profile fit).
    """
    frame = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None], dtype=np.float32)
    if min(frame.shape[:2]) < 8:
        return _no_stars()
    binned = _binned(frame, cfa)
    sky = _measure_sky(binned)
    if sky is None:
        return _no_stars()
    x, y, noise_ratio = _maxima(_significance(binned, sky), spec)
    stars = _measured(frame, cfa, sky, x, y, noise_ratio)
    n_found = len(stars)
    brightest = np.lexsort((stars.x, stars.y, -stars.flux))[: spec.max_stars]
    return replace(stars.select(brightest), n_found=n_found)


def _binned(frame: np.ndarray, cfa: str | None) -> np.ndarray:
    """Return the 2x2 cells (H // 2, W // 2) float32 on which stars are found; centred on the cells."""
    from zemosaic_phase3.detection.star_kernels import bin_frame

    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    binned = np.empty((height, width), np.float32)
    if cfa is None:
        bin_frame(frame, binned)
        return binned
    (r0, c0), (r1, c1) = (divmod(k, 2) for k, colour in enumerate(cfa) if colour == "G")
    mosaic = frame[: 2 * height, : 2 * width, 0]
    np.add(mosaic[r0::2, c0::2], mosaic[r1::2, c1::2], out=binned)
    binned *= np.float32(0.5)
    return binned


def _measure_sky(binned: np.ndarray) -> _Sky | None:
    """Level and noise on a mesh, smoothed by a 3 x 3 median; None when no cell is valid or all are constant."""
    level, noise = sky_mesh(binned, MESH_CELL)
    valid = np.isfinite(level)
    if not valid.any():
        return None
    for mesh in (level, noise):
        mesh[~valid] = np.median(mesh[valid])
    # A cell without any noise (clipped, constant) would make every pixel beside it infinitely significant.
    floor = 0.1 * float(np.median(noise))
    if not floor > 0.0:
        floor = 1e-3 * float(np.nanstd(np.where(np.isfinite(binned), binned, np.nan)))
    if not floor > 0.0:
        return None
    level, noise = (median_of_nine(mesh) for mesh in (level, noise))
    return _Sky(level, np.maximum(noise, floor))


def _significance(binned: np.ndarray, sky: _Sky) -> np.ndarray:
    """Signal after the matched filter, (h, w) float32 in units of one pixel's noise; invalid pixels are 0."""
    signal = binned - spread_mesh(sky.level, MESH_CELL, binned.shape)
    signal *= spread_mesh(1.0 / sky.noise, MESH_CELL, binned.shape)
    if not np.isfinite(np.sum(signal)):
        signal[~np.isfinite(signal)] = 0.0
    return _smooth(signal)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Convolve with (1 2 1; 2 4 2; 1 2 1) / 16; the outermost pixels become 0."""
    result = np.zeros_like(image)
    rows = image[:, :-2] + image[:, 2:]
    rows += image[:, 1:-1]
    rows += image[:, 1:-1]
    inner = result[1:-1, 1:-1]
    np.add(rows[:-2], rows[2:], out=inner)
    inner += rows[1:-1]
    inner += rows[1:-1]
    inner *= np.float32(1.0 / 16.0)
    return result


def _maxima(filtered: np.ndarray, spec: RegisterSpec) -> tuple[np.ndarray, np.ndarray, float]:
    """Subpixel positions of detections, most significant first, and matched-filter noise over that of white noise.

    A detection is a pixel that none of its eight neighbours exceeds, above the threshold as ``spec.min_area`` full
    pixels beside it are, and that also exceeds a ring around it by the threshold: on a bright background whose level
    the mesh has not followed, every ripple of the noise is above the threshold. Of equal neighbours the first in
    reading order counts.
    """
    noise = max(KERNEL_NOISE, _pixel_noise(filtered))
    threshold = np.float32(spec.detection_sigma * noise)
    width = filtered.shape[1]
    flat = filtered.ravel()
    place = np.flatnonzero(flat >= threshold)  # never on the outermost pixels, which are 0
    value = flat[place]
    bright = np.ones(len(place), np.intp)
    for offset in (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1):
        beside = flat[place + offset]
        bright += beside >= threshold
        highest = value > beside if offset < 0 else value >= beside
        place, value, bright = place[highest], value[highest], bright[highest]
    enough = bright >= min(9, -(-spec.min_area // 4))  # a binned pixel has four
    place, value = place[enough], value[enough]
    proud = value - _ring(filtered, place) >= threshold
    place, value = place[proud], value[proud]
    order = np.lexsort((place, -value))[: max(MOST_MEASURED, 2 * spec.max_stars)]
    place = place[order]
    x = place % width + _vertex(flat[place - 1], flat[place], flat[place + 1])
    y = place // width + _vertex(flat[place - width], flat[place], flat[place + width])
    return x, y, noise / KERNEL_NOISE


def _pixel_noise(filtered: np.ndarray) -> float:
    """Noise of a filtered image, from pixels some way apart, so that a background left in does not count."""
    step = max(1, round(math.sqrt(filtered.size / 60_000)))
    inner = filtered[1:-1, 1:-1]
    difference = inner[::step, RING_PX::step] - inner[::step, :-RING_PX:step]
    return MAD_TO_SIGMA / math.sqrt(2.0) * float(np.median(np.abs(difference))) if difference.size else 0.0


def _ring(filtered: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Median of 16 pixels on a ring about flat indices, (n,) float32; beyond the edge the nearest pixel counts."""
    height, width = filtered.shape
    angle = np.arange(16) * (math.pi / 8.0)
    y = np.rint(place[:, None] // width + RING_PX * np.sin(angle)).astype(np.intp)
    x = np.rint(place[:, None] % width + RING_PX * np.cos(angle)).astype(np.intp)
    return np.median(filtered[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)], axis=1)


def _vertex(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Offset of a parabola's vertex from the middle one of three samples, the largest."""
    bend = 2.0 * at.astype(np.float64) - before - after
    return np.where(bend > 0.0, 0.5 * (after - before) / np.where(bend > 0.0, bend, 1.0), 0.0)


def _measured(
    frame: np.ndarray, cfa: str | None, sky: _Sky, x: np.ndarray, y: np.ndarray, noise_ratio: float
) -> StarList:
    """Measure detections at (x, y) of the binned frame, most significant first; what is no star is dropped."""
    from zemosaic_phase3.detection import star_kernels as kernels

    green = -1 if cfa is None else (0 if cfa[0] == "G" else 1)
    known = np.isfinite(x) & np.isfinite(y)  # samples near the end of float32's range give no vertex
    if not known.all():
        x, y = x[known], y[known]
    level = mesh_at(sky.level, MESH_CELL, x, y)
    x, y = 2.0 * x + 0.5, 2.0 * y + 0.5

    def measure(n: int, sigma: float) -> np.ndarray:
        out = np.empty((min(n, len(x)), kernels.COLUMNS))
        kernels.measure_stars(frame, green, x[:n], y[:n], level[:n], sigma, MAX_PEAK_SHARE, out)
        return out

    first = measure(GUESSED_FROM, FIRST_SIGMA)
    first = first[_is_star(first)]
    is_round = first[:, kernels.MAJOR] < 2.0 * first[:, kernels.MINOR]
    first = first[is_round] if is_round.any() else first
    if len(first) == 0:
        return _no_stars()
    guess = float(np.clip(np.median(first[:100, kernels.CORE]), 0.7, 6.0))
    table = measure(len(x), guess)
    # The widths of all are compared with the commonest; before, whatever is plainly no star is left out.
    table = table[_is_star(table)]
    table = table[_usual_width(table[:, kernels.CORE])]
    if len(table) == 0:
        return _no_stars()
    common = float(np.median(table[:, kernels.CORE]))
    return _star_list(frame, cfa, sky, table, common, noise_ratio)


def _is_star(table: np.ndarray) -> np.ndarray:
    """Mask of measured detections that look like one star."""
    from zemosaic_phase3.detection import star_kernels as kernels

    major, minor = table[:, kernels.MAJOR], table[:, kernels.MINOR]
    return (
        (table[:, kernels.STATE] == kernels.MEASURED)
        & (table[:, kernels.STEP] < MAX_STEP)
        & (table[:, kernels.AMPLITUDE] > 0.0)
        & (minor > 0.0)
        & (major <= MAX_AXIS_RATIO**2 * minor)
        & (table[:, kernels.CORE] >= MIN_FWHM / FWHM_PER_SIGMA)
    )


def _star_list(
    frame: np.ndarray, cfa: str | None, sky: _Sky, table: np.ndarray, sigma: float, noise_ratio: float
) -> StarList:
    """Fluxes, errors and blends of measured stars, ``sigma`` px being their common Gaussian width."""
    from zemosaic_phase3.detection import star_kernels as kernels

    x, y = np.ascontiguousarray(table[:, kernels.X]), np.ascontiguousarray(table[:, kernels.Y])
    light, light_error, peak = _photometry(frame, cfa, x, y, sigma)
    flux = light.mean(axis=1) if cfa is None else light[:, 1]
    # Half of a mosaic's pixels are green, so that the sum over them is half the light.
    amplitude = table[:, kernels.AMPLITUDE] * (1.0 if cfa is None else 2.0)
    # Area of a Gaussian above 97 % of its peak: 0.19 sigma^2. Four green pixels about a star between them are alike.
    flat = (table[:, kernels.FLAT] >= 5.0 + 0.4 * sigma**2) & (amplitude > 30.0 * np.median(sky.noise))
    twice, blended = _neighbours(x, y, flux, sigma * FWHM_PER_SIGMA)
    # Binned is the mean of four pixels, or of two greens, which are half as many: the same information either way.
    per_pixel = noise_ratio * 2.0 * float(np.median(sky.noise))
    error = np.hypot(CENTROID_FLOOR, math.sqrt(2.0 / math.pi) * per_pixel / amplitude)
    error = np.where(flat, np.maximum(error, SATURATED_ERROR), error * np.where(blended, 2.0, 1.0))
    # Nothing is brighter than a clipped pixel; a flat top below others is none.
    highest = np.max(peak, axis=0)
    clipped = np.where(np.any(flat[:, None] & (peak > 0.95 * highest), axis=0), highest, np.inf)
    light = np.where(flat[:, None] | (peak > MAX_PEAK * clipped) | ~(light_error > 0.0), np.nan, light)
    eccentricity = np.sqrt(np.clip(1.0 - table[:, kernels.MINOR] / table[:, kernels.MAJOR], 0.0, 1.0))
    stars = StarList(x, y, flux, table[:, kernels.CORE] * FWHM_PER_SIGMA, eccentricity, error, light, light_error)
    return stars.select((flux > 0.0) & ~twice & ~(flat & blended))


def _photometry(
    frame: np.ndarray, cfa: str | None, x: np.ndarray, y: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, its error for unit noise, and brightest pixel of stars in every channel, each (n, C) float64.

    The profile's width is fitted too, one for all stars and channels: one that is 1 % too wide makes fluxes 1 % too
    large, and the windowed width is not exact to that where a mosaic samples a star coarsely.
    """
    from zemosaic_phase3.detection.star_kernels import star_fluxes

    channels = frame.shape[2] if cfa is None else 3
    cell = np.full((2, 2), -1) if cfa is None else np.array(["RGB".index(colour) for colour in cfa]).reshape(2, 2)
    reach = REACH * sigma

    def fit(n: int, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flux, information, peak = (np.empty((n, channels)) for _ in range(3))
        star_fluxes(frame, cell, x[:n], y[:n], widths, reach, flux, information, peak)
        return flux, information, peak

    widths = np.full(channels, sigma)
    for _ in range(2):
        trials = [fit(min(len(x), WIDTH_STARS), widths * factor) for factor in (1 / WIDTH_STEP, 1.0, WIDTH_STEP)]
        narrow, same, wide = (np.sum(flux**2 * information, axis=1) for flux, information, _ in trials)
        bend = 2.0 * same - narrow - wide
        peaked = bend > 0.0
        if peaked.any():
            vertex = float(np.median(0.5 * (wide - narrow)[peaked] / bend[peaked]))
            widths = widths * WIDTH_STEP ** np.clip(vertex, -1.0, 1.0)
    flux, information, peak = fit(len(x), widths)
    with np.errstate(divide="ignore"):
        return flux, np.where(information > 0.0, 1.0 / np.sqrt(information), 0.0), peak


def _neighbours(x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float) -> tuple[np.ndarray, np.ndarray]:
    """Masks of stars that are another one found again, and of those that a neighbour of some brightness disturbs."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(np.column_stack((x, y))).query_pairs(BLEND * fwhm, output_type="ndarray")
    twice, blended = np.zeros(len(x), bool), np.zeros(len(x), bool)
    a, b = pairs.T
    same = np.hypot(x[a] - x[b], y[a] - y[b]) < SAME_STAR * fwhm
    twice[np.where(flux[a] < flux[b], a, b)[same]] = True
    apart = ~same & ~twice[a] & ~twice[b]
    for one, other in ((a[apart], b[apart]), (b[apart], a[apart])):
        blended[one[flux[other] > 0.1 * flux[one]]] = True
    return twice, blended


def _usual_width(width: np.ndarray) -> np.ndarray:
    """Mask of objects whose width is that of a star in this frame (nebula knots and galaxies are wider)."""
    if len(width) < 5:
        return np.ones(len(width), dtype=bool)
    typical = np.median(width)
    return (width > 0.5 * typical) & (width < 2.5 * typical)
