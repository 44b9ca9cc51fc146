"""The stars of one frame: positions, fluxes, widths and centroid errors.

:func:`find_stars` is called once per frame. What it returns serves registration, photometry, the choice of the
reference and the measures of sharpness alike. Pixel coordinates are 0-based, centres at integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zemosaic_phase3.detection.planes import planes_of
from zemosaic_phase3.detection.sky_mesh import sky_of_planes
from zemosaic_phase3.runtime.workspace import Workspace
from zemosaic_phase3.spec import RegisterSpec

MOST_MEASURED: Final = 2_500  # detections that are measured at least, the most significant ones
CENTROID_FLOOR: Final = 0.015  # px, centroid error that no brightness overcomes (sampling, seeing)


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


def find_stars(
    pixels: np.ndarray, spec: RegisterSpec, cfa: str | None = None, workspace: Workspace | None = None
) -> StarList:
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
    workspace : Workspace, optional
        Keeps memory for the next frame.

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
    from zemosaic_phase3.detection import find_kernels as find

    planes = planes_of(frame.shape, cfa)
    space = workspace or Workspace()
    half = (frame.shape[0] // 2, frame.shape[1] // 2)
    binned, filtered = space.array("binned", half, np.float32), space.array("filtered", half, np.float32)
    find.bin_frame(frame, planes.table, binned)
    sky = _measure_sky(binned, space)
    if sky is None:
        return _no_stars()
    find.significance(binned, *sky, filtered)
    noise = max(
        find.KERNEL_NOISE,
        find.pixel_noise(filtered, space.array("samples", (2, find.most_differences(*half)), np.float32)),
    )
    bright_pixels = min(9, -(-spec.min_area // 4))  # a binned pixel has four
    most = max(MOST_MEASURED, 2 * spec.max_stars)
    places = find.find_maxima(filtered, spec.detection_sigma, noise, bright_pixels, most)
    stars = measured_stars(frame, cfa, sky, places, noise / find.KERNEL_NOISE)
    n_found = len(stars)
    brightest = np.lexsort((stars.x, stars.y, -stars.flux))[: spec.max_stars]
    return replace(stars.select(brightest), n_found=n_found)


def _measure_sky(binned: np.ndarray, workspace: Workspace) -> tuple[np.ndarray, np.ndarray] | None:
    """Level and noise on a mesh, smoothed by a 3 x 3 median; None when no cell is valid or all are constant.

    Where a nebula makes a cell's pixels differ by more than their noise, it is measured between neighbours.
    """
    from zemosaic_phase3.detection import find_kernels as find

    cells = binned[:, :, None]
    level, noise = (mesh[0] for mesh in sky_of_planes(cells, planes_of(cells.shape), find.MESH_CELL, 2, workspace))
    floor = find.settle_sky(level, noise)
    if math.isnan(floor):
        return None
    if not floor > 0.0:
        floor = 1e-3 * float(np.nanstd(np.where(np.isfinite(binned), binned, np.nan)))
    if not floor > 0.0:
        return None
    local = np.empty_like(noise)
    find.difference_noise(binned, noise, local)
    smooth = np.empty((3, *level.shape))
    for mesh, out in zip((level, noise, local), smooth, strict=True):
        find.median_of_nine(mesh, out)
    find.without_structure(smooth[1], smooth[2])
    return smooth[0], np.maximum(smooth[1], floor)


def measured_stars(
    frame: np.ndarray, cfa: str | None, sky: tuple[np.ndarray, np.ndarray], places: np.ndarray, noise_ratio: float
) -> StarList:
    """Measure detections (6, n) of the binned frame, most significant first; what is no star is dropped."""
    from zemosaic_phase3.detection import find_kernels as find
    from zemosaic_phase3.detection import list_kernels as lists
    from zemosaic_phase3.detection.star_kernels import COLUMNS

    level, noise = sky
    table = np.empty((places.shape[1], COLUMNS))
    green = -1 if cfa is None else (0 if cfa[0] == "G" else 1)
    found = lists.measure_detections(frame, green, level, noise, find.MESH_CELL, places, table)
    if found == 0:
        return _no_stars()
    channels = frame.shape[2] if cfa is None else 3
    cell = _channels_of_cell(cfa)
    rows = np.empty((found, lists.LIST_LIGHT + 2 * channels))
    listed = rows[: lists.list_stars(frame, cell, table[:found], float(np.median(noise)), noise_ratio, channels, rows)]
    x, y, flux, fwhm, eccentricity, error = listed.T[: lists.LIST_LIGHT]
    light = listed[:, lists.LIST_LIGHT :]
    return StarList(x, y, flux, fwhm, eccentricity, error, light[:, :channels].copy(), light[:, channels:].copy())


def _channels_of_cell(cfa: str | None) -> np.ndarray:
    """Return the channel of each pixel of a mosaic's 2x2 cell, (2, 2) int64; all -1 where there is no mosaic."""
    return np.full((2, 2), -1) if cfa is None else np.array(["RGB".index(colour) for colour in cfa]).reshape(2, 2)


def star_light(
    frame: np.ndarray, cfa: str | None, x: np.ndarray, y: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flux (ADU), its inverse variance for unit noise, and brightest pixel of stars in every channel.

    Parameters
    ----------
    frame : ndarray (H, W, C) float32, ADU
    cfa : str or None
        Of a mosaic.
    x, y : ndarray (n,) float64
        Positions, pixels.
    sigma : float
        First guess of their common width, pixels; it is fitted too.

    Returns
    -------
    light, information, peak : ndarray (n, channels) float64
    """
    from zemosaic_phase3.detection.list_kernels import fit_light

    shape = (len(x), frame.shape[2] if cfa is None else 3)
    light, information, peak = (np.empty(shape) for _ in range(3))
    fit_light(frame, _channels_of_cell(cfa), x, y, sigma, light, information, peak)
    return light, information, peak
