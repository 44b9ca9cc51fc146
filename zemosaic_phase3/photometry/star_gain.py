"""Frames matched by what they show: gains from the fluxes of the same stars, offsets from the same patches of sky.

A frame is ``transparency x (stars + nebula) + sky``, the sky being the air's own light. Its gain must come from stars:
levels and noise follow the sky. Its offset must come from places that both frames show, with the gain applied, so
that a nebula in one corner cancels. Everything here is a few hundred numbers per frame, measured when it was read.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from weakref import WeakKeyDictionary, ref

import numpy as np

from zemosaic_phase3.detection.sky_mesh import mesh_at
from zemosaic_phase3.records import IDENTITY, FrameStats
from zemosaic_phase3.registration.distortion import displacement
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.robust import median_of

MATCH_FWHM: Final = 0.5  # distance at which two detections are one star, units of the FWHM
MIN_MATCH_PX: Final = 1.0  # but not less
WIDEST_SEARCH_PX: Final = 8.0  # that the cells of the kernels for pairs reach; wider stars take a tree
MIN_SNR: Final = 10.0  # of a flux in either frame; fainter ones are biased by having been found
SCATTER: Final = 0.01  # relative error that no brightness overcomes: sampling of a mosaic, variable stars, flat field
MIN_PAIRS: Final = 5  # stars that a gain needs to stand alone
FEW_STARS_ERROR: Final = 0.05  # relative, of a gain from fewer, at least
FEWEST_PAIRS: Final = 3  # that say something, to be combined with what other frames say
MAX_GAIN_ERROR: Final = 0.03  # relative standard error of a gain that can be used
CLIP: Final = 3.0  # residuals beyond, units of their own sigma, are variable, saturated or blended stars
ROUNDS: Final = 12
AREA_STEP: Final = 8.0  # px, over which the area of a pixel is measured
MIN_CELLS: Final = 4  # cells of the sky mesh that an offset needs


class Gain(NamedTuple):
    """Factor that brings a frame's stars to the reference's fluxes, per channel; NaN where it has none.

    The fluxes are those on the reference's pixels: of a frame whose pixels show less of the sky, a star covers more of
    them, each with its level, and when the frame is resampled the levels stay and the star covers fewer.
    """

    factor: np.ndarray  # (C,)
    error: np.ndarray  # (C,), relative standard error
    pairs: np.ndarray  # (C,), stars that decided
    area: float = 1.0  # of a pixel of the reference, in pixels of the frame; contained in the factor

    @property
    def supported(self) -> bool:
        """True when every channel has enough stars and they agree."""
        return bool(np.all(self.pairs >= MIN_PAIRS) and np.all(self.error <= MAX_GAIN_ERROR))


_known: WeakKeyDictionary[FrameStats, tuple[ref[FrameStats], bytes, Gain]] = WeakKeyDictionary()


def frame_gain(
    frame: FrameStats,
    reference: FrameStats,
    to_frame: np.ndarray,
    field: np.ndarray | None = None,
    to_grid: np.ndarray = IDENTITY,
) -> Gain:
    """Compare the fluxes of the stars that two frames share.

    Per channel the weighted mean of ln(reference / frame), the frame's on the pixels of the reference, that is divided
    by :func:`pixel_areas`; weights 1 / (error^2 + s^2) with s the scatter that the errors do not explain, from which
    stars beyond 3 sigma are left out until nothing changes. Where the channels' gains differ by no more than their
    errors explain, they are drawn together: air and clouds are nearly grey, and a difference that is noise would tint
    the frame.

    Parameters
    ----------
    frame, reference : FrameStats
    to_frame : ndarray (3, 3) float64
        Reference frame's pixel to frame's pixel.
    field : ndarray (rows, columns, 2) float32, optional
        Displacements on top of that, px, see :mod:`registration.distortion`.
    to_grid : ndarray (3, 3) float64
        Reference frame's pixel to that of the grid on which the field is given.
    """
    if field is not None:
        return _frame_gain(frame, reference, to_frame, field, to_grid)
    # The reference is chosen, frames are rated and levels are matched by the same gains: the last one is remembered.
    on, asked, gain = _known.get(frame, (None, b"", None))
    transforms = (np.asarray(to_frame, np.float64) + 0.0).tobytes() + (to_grid + 0.0).tobytes()
    if gain is None or on is None or on() is not reference or asked != transforms:
        gain = _frame_gain(frame, reference, to_frame, field, to_grid)
        _known[frame] = (ref(reference), transforms, gain)
    return gain


def _frame_gain(
    frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, field: np.ndarray | None, to_grid: np.ndarray
) -> Gain:
    """Compare fluxes, see :func:`frame_gain`."""
    channels = frame.median.size
    i, j = same_stars(frame, reference, to_frame, field, to_grid)
    area = pixel_areas(to_frame, reference.star_xy[i].astype(np.float64), field, to_grid)
    factor, error, pairs = np.full(channels, np.nan), np.full(channels, np.inf), np.zeros(channels, np.int64)
    for c in range(channels if len(i) else 0):
        ours, theirs = reference.star_light[i, c].astype(np.float64), frame.star_light[j, c].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # a frame without noise; NaN, a star that may be saturated
            snr = ours / reference.star_light_error[i, c], theirs / frame.star_light_error[j, c]
            good = (snr[0] > MIN_SNR) & (snr[1] > MIN_SNR)
        if np.count_nonzero(good) < FEWEST_PAIRS:
            pairs[c] = np.count_nonzero(good)
            continue
        ratio = np.log(ours[good] / theirs[good] * area[good])
        mean, error[c], pairs[c] = _robust_mean(ratio, snr[0][good] ** -2.0 + snr[1][good] ** -2.0 + SCATTER**2)
        factor[c] = np.exp(mean)
        if np.count_nonzero(good) < MIN_PAIRS:  # too few to tell a wrong one among them
            error[c] = max(error[c], FEW_STARS_ERROR)
    return Gain(drawn_together(factor, error), error, pairs, float(np.median(area)) if area.size else 1.0)


def pixel_areas(
    to_frame: np.ndarray, xy: np.ndarray, field: np.ndarray | None = None, to_grid: np.ndarray = IDENTITY
) -> np.ndarray:
    """Return how many pixels of the frame a pixel of the reference covers at places ``xy (n, 2)``, ``(n,) float64``.

    The determinant of the map's derivative, by differences over ``AREA_STEP`` pixels, so that the distortion counts;
    ``field`` and ``to_grid`` as in :func:`frame_gain`.
    """
    steps = AREA_STEP * np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]])
    places = xy[:, None, :] + steps
    there = transform_points(to_frame, places.reshape(-1, 2))
    if field is not None:
        there += displacement(field, transform_points(to_grid, places.reshape(-1, 2)))
    left, right, below, above = there.reshape(-1, 4, 2).transpose(1, 0, 2)
    (ax, ay), (bx, by) = ((right - left) / AREA_STEP).T, ((above - below) / AREA_STEP).T
    return np.abs(ax * by - ay * bx)


def drawn_together(factor: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Shrink the channels' gains towards their weighted mean by (C - 1) / chi^2 of their differences (James-Stein)."""
    if factor.size == 1 or not np.all(np.isfinite(factor)):
        return factor
    log_factor, weight = np.log(factor), error**-2.0
    common = np.sum(weight * log_factor) / np.sum(weight)
    chi_squared = float(np.sum(weight * (log_factor - common) ** 2))
    own = max(0.0, 1.0 - (factor.size - 1) / chi_squared) if chi_squared > 0.0 else 0.0
    return np.exp(common + own * (log_factor - common))


def same_stars(
    frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, field: np.ndarray | None, to_grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the stars that are mutually nearest and close enough: indices (reference's, frame's)."""
    if len(frame.star_xy) == 0 or len(reference.star_xy) == 0:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    known = reference.star_xy.astype(np.float64)
    expected = transform_points(to_frame, known)
    if field is not None:
        expected += displacement(field, transform_points(to_grid, known))
    radius = max(MIN_MATCH_PX, MATCH_FWHM * frame.fwhm) if np.isfinite(frame.fwhm) else MIN_MATCH_PX
    if radius <= WIDEST_SEARCH_PX:
        from zemosaic_phase3.registration.pair_kernels import mutual_pairs, star_grid

        theirs = frame.star_xy.astype(np.float64)
        width, height = (int(v) for v in np.maximum(theirs.max(axis=0), 0.0) + 1.0)
        i, j, _ = mutual_pairs(IDENTITY, expected, theirs, *star_grid(theirs, height, width), radius)
        return i, j
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(frame.star_xy).query(expected, distance_upper_bound=radius)
    near = np.flatnonzero(np.isfinite(distance))
    _, back = cKDTree(expected).query(frame.star_xy[nearest[near]])
    mutual = near[back == near]
    return mutual, nearest[mutual]


def _robust_mean(values: np.ndarray, variance: np.ndarray) -> tuple[float, float, int]:
    """Weighted mean with clipping, its standard error, and how many values decided."""
    kept = np.ones(values.size, bool)
    mean, extra = median_of(values), 0.0
    weight = 1.0 / variance
    for _ in range(ROUNDS):
        residual = np.abs(values - mean)
        # Scatter beyond the errors, from the median of what is kept: 0.6745 sigma for a Gaussian.
        extra = max(0.0, (median_of(residual[kept]) / 0.6745) ** 2 - median_of(variance[kept]))
        inside = residual <= CLIP * np.sqrt(variance + extra)
        if np.count_nonzero(inside) < min(3, values.size):
            break
        weight = np.where(inside, 1.0 / (variance + extra), 0.0)
        new = float(np.sum(weight * values) / np.sum(weight))
        if np.array_equal(inside, kept) and abs(new - mean) < 1e-9:
            break
        kept, mean = inside, new
    return mean, float(1.0 / np.sqrt(np.sum(weight))), int(np.count_nonzero(kept))


def sky_difference(
    frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where both frames show sky, and what the frame lacks there once its gain is applied.

    Parameters
    ----------
    frame, reference : FrameStats
    to_frame : ndarray (3, 3) float64
        Reference frame's pixel to frame's pixel.
    factor : ndarray (C,) float64
        Gain of the frame.

    Returns
    -------
    xy : ndarray (n, 2) float64
        Centres of the reference's mesh cells that lie inside the frame's mesh, pixels of the reference frame.
    missing : ndarray (n, C) float64
        Reference's sky less ``factor`` times the frame's, ADU; NaN where either has none.
    """
    if frame.sky_mesh.size == 0 or reference.sky_mesh.size == 0:
        return np.empty((0, 2)), np.empty((0, frame.median.size))
    rows, columns, channels = reference.sky_mesh.shape
    y, x = np.mgrid[:rows, :columns]
    cell = reference.sky_cell
    xy = np.column_stack((x.ravel(), y.ravel())) * cell + (cell - 1.0) / 2.0
    there = transform_points(to_frame, xy)
    size = np.array([frame.sky_mesh.shape[1], frame.sky_mesh.shape[0]]) * frame.sky_cell
    inside = np.all((there >= 0.25 * frame.sky_cell) & (there <= size - 0.25 * frame.sky_cell - 1.0), axis=1)
    theirs = mesh_at(frame.sky_mesh.astype(np.float64), frame.sky_cell, there[inside, 0], there[inside, 1])
    return xy[inside], reference.sky_mesh.reshape(-1, channels)[inside].astype(np.float64) - factor * theirs


def frame_offset(frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Offset (C,) that brings the sky of a frame, times ``factor``, to the reference's, ADU.

    Median over the patches that both show; of the whole frames' medians where there are too few.
    """
    _, missing = sky_difference(frame, reference, to_frame, factor)
    whole = reference.median - factor * frame.median
    known = np.isfinite(missing)
    enough = np.count_nonzero(known, axis=0) >= MIN_CELLS
    found = [np.median(missing[known[:, c], c]) if enough[c] else whole[c] for c in range(whole.size)]
    return np.array(found, np.float64)
