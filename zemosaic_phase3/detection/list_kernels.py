"""From the places of a frame where stars may be to a list of them, compiled: measuring, sorting out, fluxes."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.detection.order_statistics import ascending, median
from zemosaic_phase3.detection.star_kernels import (
    AMPLITUDE,
    CORE,
    FLAT,
    HEIGHT,
    MAJOR,
    MEASURED,
    MINOR,
    ON_NEBULA,
    STATE,
    STEP,
    X,
    Y,
    measure_stars,
    star_fluxes,
)
from zemosaic_phase3.runtime.jit import compiled_once, kernel

FWHM_PER_SIGMA: Final = 2.0 * math.sqrt(2.0 * math.log(2.0))
GUESSED_FROM: Final = 300  # most significant detections that tell the width of a star
ROUND: Final = 100  # round stars among them, the first ones, that do
BATCH: Final = 50  # that are measured before it is seen whether they are enough
FIRST_SIGMA: Final = 2.0  # px, Gaussian width with which those are measured
UNLIKE: Final = 1.6  # factor between two widths of which one is not that of stars
WIDEST: Final = 2.5  # times the common width: wider is a galaxy
WIDEST_ON_NEBULA: Final = 1.5  # and a knot of a nebula
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

# Columns of a list of stars; behind them flux and its error of each channel.
LIST_X, LIST_Y, LIST_FLUX, LIST_FWHM, LIST_ECCENTRICITY, LIST_ERROR, LIST_LIGHT = range(7)


@kernel
def mesh_level(mesh: np.ndarray, cell: int, x: float, y: float) -> float:
    """Bilinear interpolation of a mesh (rows, columns) at a pixel."""
    rows, columns = mesh.shape
    down = min(max((y + 0.5) / cell - 0.5, 0.0), rows - 1.0)
    right = min(max((x + 0.5) / cell - 0.5, 0.0), columns - 1.0)
    r, c = int(down), int(right)
    r1, c1 = min(r + 1, rows - 1), min(c + 1, columns - 1)
    fy, fx = down - r, right - c
    upper = mesh[r, c] + fx * (mesh[r, c1] - mesh[r, c])
    lower = mesh[r1, c] + fx * (mesh[r1, c1] - mesh[r1, c])
    return upper + fy * (lower - upper)


@kernel
def _is_star(row: np.ndarray) -> bool:
    """Whether a measured detection looks like one star."""
    return (
        row[STATE] == MEASURED
        and row[STEP] < MAX_STEP
        and row[AMPLITUDE] > 0.0
        and row[MINOR] > 0.0
        and row[MAJOR] <= MAX_AXIS_RATIO**2 * row[MINOR]
        and row[CORE] >= MIN_FWHM / FWHM_PER_SIGMA
    )


@kernel
def _stars_of(table: np.ndarray) -> int:
    """Move the rows that look like stars to the front; return how many."""
    n = 0
    for k in range(len(table)):
        if _is_star(table[k]):
            table[n] = table[k]
            n += 1
    return n


@kernel
def _common_width(widths: np.ndarray, weights: np.ndarray, n: int) -> float:
    """Width that n detections have in common, pixels: their median, or that of their light where it is far narrower.

    Where a nebula has more knots than stars, the few bright ones are the stars, and knots are wide. Light that is wider
    than most is that of a saturated star or a galaxy.
    """
    order = ascending(widths[:n])
    half, weight, by_light = 0.0, 0.0, 0.0
    for k in range(n):
        half += 0.5 * weights[k]
    for k in range(n):
        weight += weights[order[k]]
        by_light = widths[order[k]]
        if weight >= half:
            break
    by_number = median(widths, n)
    return by_light if UNLIKE * by_light < by_number else by_number


@compiled_once
@kernel
def _first_width(table: np.ndarray, n: int) -> float:
    """Return the width of the first hundred round ones of n stars, pixels; of all where none is round."""
    widths, weights, count = np.empty(n), np.empty(n), 0
    for is_last in range(2):
        for k in range(n):
            if is_last == 1 or table[k, MAJOR] < 2.0 * table[k, MINOR]:
                widths[count], weights[count] = table[k, CORE], table[k, HEIGHT] * table[k, HEIGHT]
                count += 1
        if count > 0:
            break
    return _common_width(widths, weights, min(count, ROUND))


@compiled_once
@kernel
def _round_stars(table: np.ndarray, n: int) -> int:
    """Round ones among the first n rows."""
    count = 0
    for k in range(n):
        count += 1 if table[k, MAJOR] < 2.0 * table[k, MINOR] else 0
    return count


@kernel
def measure_detections(
    frame: np.ndarray,
    green: int,
    level: np.ndarray,
    noise: np.ndarray,
    cell: int,
    places: np.ndarray,
    table: np.ndarray,
) -> int:
    """Measure detections; what is no star, or of a width unlike that of the others, is left out.

    Parameters
    ----------
    frame : ndarray (H, W, C) float32, ADU
    green : int
        As in :func:`measure_stars`.
    level, noise : ndarray (rows, columns) float64, ADU
        Sky of the binned frame on a mesh.
    cell : int
        Its cell, pixels of the binned frame.
    places : ndarray (6, n) float64
        From :func:`detection.find_kernels.find_maxima`.
    table : ndarray (n, COLUMNS) float64
        Filled.

    Returns
    -------
    int
        Rows of the table that are stars.
    """
    x, y, sky = np.empty(places.shape[1]), np.empty(places.shape[1]), np.empty((places.shape[1], 3))
    on_nebula, height = np.empty(places.shape[1], np.bool_), np.empty(places.shape[1])
    n = 0
    for k in range(places.shape[1]):
        if math.isfinite(places[0, k]) and math.isfinite(places[1, k]):  # no vertex near the end of float32's range
            unit = mesh_level(noise, cell, places[0, k], places[1, k]) if places[2, k] != 0.0 else 0.0
            sky[n, 0] = mesh_level(level, cell, places[0, k], places[1, k]) + unit * places[2, k]
            on_nebula[n], height[n] = places[2, k] != 0.0, places[5, k]
            sky[n, 1], sky[n, 2] = 0.5 * unit * places[3, k], 0.5 * unit * places[4, k]
            x[n], y[n] = 2.0 * places[0, k] + 0.5, 2.0 * places[1, k] + 0.5
            n += 1
    found, first = 0, 0
    while first < min(n, GUESSED_FROM) and _round_stars(table, found) < ROUND:
        last = min(first + BATCH, n, GUESSED_FROM)
        some = table[first:last]
        measure_stars(frame, green, x[first:last], y[first:last], sky[first:last], FIRST_SIGMA, MAX_PEAK_SHARE, some)
        for k in range(first, last):
            table[k, HEIGHT] = height[k]
            if _is_star(table[k]):
                table[found] = table[k]
                found += 1
        first = last
    if found == 0:
        return 0
    guess = min(max(_first_width(table, found), 0.7), 6.0)
    measure_stars(frame, green, x[:n], y[:n], sky[:n], guess, MAX_PEAK_SHARE, table)
    for k in range(n):
        table[k, ON_NEBULA], table[k, HEIGHT] = 1.0 if on_nebula[k] else 0.0, height[k]
    # The widths of all are compared with the commonest; before, whatever is plainly no star is left out.
    found = _stars_of(table[:n])
    if found < 5:
        return found
    usual = _common_width(table[:found, CORE].copy(), table[:found, HEIGHT] * table[:found, HEIGHT], found)
    n = 0
    for k in range(found):  # nebula knots and galaxies are wider
        widest = WIDEST_ON_NEBULA if table[k, ON_NEBULA] else WIDEST
        if 0.5 * usual < table[k, CORE] < widest * usual:
            table[n] = table[k]
            n += 1
    return n


@kernel
def _explained(
    frame: np.ndarray, cell: np.ndarray, x: np.ndarray, y: np.ndarray, widths: np.ndarray, reach: float, out: np.ndarray
) -> None:
    """Sum of squares that a profile of these widths explains of each star, over all channels."""
    shape = (x.size, widths.size)
    flux, information, peak = np.empty(shape), np.empty(shape), np.empty(shape)
    star_fluxes(frame, cell, x, y, widths, reach, flux, information, peak)
    for k in range(x.size):
        out[k] = 0.0
        for c in range(widths.size):
            out[k] += flux[k, c] * flux[k, c] * information[k, c]


@kernel
def _profile_widths(
    frame: np.ndarray, cell: np.ndarray, x: np.ndarray, y: np.ndarray, sigma: float, widths: np.ndarray
) -> None:
    """Fit the width of the profile, one for all stars and channels, beginning with ``sigma``; fills ``widths (C,)``.

    One that is 1 % too wide makes fluxes 1 % too large, and the windowed width is not exact to that where a mosaic
    samples a star coarsely.
    """
    n = min(x.size, WIDTH_STARS)
    explained, vertices = np.empty((3, n)), np.empty(n)
    widths[:] = sigma
    for _ in range(2):
        _explained(frame, cell, x[:n], y[:n], widths * (1 / WIDTH_STEP), REACH * sigma, explained[0])
        _explained(frame, cell, x[:n], y[:n], widths * 1.0, REACH * sigma, explained[1])
        _explained(frame, cell, x[:n], y[:n], widths * WIDTH_STEP, REACH * sigma, explained[2])
        peaked = 0
        for k in range(n):
            bend = 2.0 * explained[1, k] - explained[0, k] - explained[2, k]
            if bend > 0.0:
                vertices[peaked] = 0.5 * (explained[2, k] - explained[0, k]) / bend
                peaked += 1
        if peaked:
            vertex = min(max(median(vertices, peaked), -1.0), 1.0)
            widths *= WIDTH_STEP**vertex


@kernel
def fit_light(
    frame: np.ndarray, cell: np.ndarray, x: np.ndarray, y: np.ndarray, sigma: float, light: np.ndarray,
    information: np.ndarray, peak: np.ndarray,
) -> None:  # fmt: skip
    """Flux, information and brightest pixel of stars, as :func:`star_fluxes`, with the width that fits them best."""
    widths = np.empty(light.shape[1])
    _profile_widths(frame, cell, x, y, sigma, widths)
    star_fluxes(frame, cell, x, y, widths, REACH * sigma, light, information, peak)


@kernel
def _neighbours(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float, twice: np.ndarray, blended: np.ndarray
) -> None:
    """Mark stars that are another one found again, and those that a neighbour of some brightness disturbs."""
    n = x.size
    order = ascending(x)
    reach = BLEND * fwhm
    twice[:], blended[:] = False, False
    for is_second in range(2):
        for i in range(n):
            for j in range(i + 1, n):
                if x[order[j]] - x[order[i]] > reach:
                    break
                a, b = min(order[i], order[j]), max(order[i], order[j])
                dx, dy = x[a] - x[b], y[a] - y[b]
                if not dx * dx + dy * dy <= reach * reach:
                    continue
                if math.sqrt(dx * dx + dy * dy) < SAME_STAR * fwhm:
                    if is_second == 0:
                        twice[a if flux[a] < flux[b] else b] = True
                elif is_second == 1 and not twice[a] and not twice[b]:
                    blended[a] = blended[a] or flux[b] > 0.1 * flux[a]
                    blended[b] = blended[b] or flux[a] > 0.1 * flux[b]


@kernel
def list_stars(
    frame: np.ndarray, cell: np.ndarray, table: np.ndarray, noise: float, noise_ratio: float, channels: int,
    out: np.ndarray,
) -> int:  # fmt: skip
    """Fluxes, errors and blends of measured stars; return how many are listed.

    Parameters
    ----------
    frame : ndarray (H, W, C) float32, ADU
    cell : ndarray (2, 2) int64
        Channels of a mosaic's 2x2 cell; all -1: it is none.
    table : ndarray (n, COLUMNS) float64
        From :func:`measure_detections`, n at least 1.
    noise, noise_ratio : float
        Of the binned frame: median noise of a pixel, ADU; noise after the matched filter over that of white noise.
    channels : int
        Channels of light: 3 for a mosaic.
    out : ndarray (n, LIST_LIGHT + 2 channels) float64
        Filled; columns are named at the head of this module.
    """
    n = len(table)
    is_mosaic = cell[0, 0] >= 0
    x, y = table[:, X].copy(), table[:, Y].copy()
    sigma = median(table[:, CORE].copy(), n)
    light, information, peak = np.empty((n, channels)), np.empty((n, channels)), np.empty((n, channels))
    fit_light(frame, cell, x, y, sigma, light, information, peak)
    flux, flat = np.empty(n), np.empty(n, np.bool_)
    highest = np.full(channels, -np.inf)
    for k in range(n):
        total = 0.0
        for c in range(channels):
            total += light[k, c]
            highest[c] = max(highest[c], peak[k, c])
        flux[k] = light[k, 1] if is_mosaic else total / channels
        # Half of a mosaic's pixels are green, so that the sum over them is half the light.
        table[k, AMPLITUDE] *= 2.0 if is_mosaic else 1.0
        # Area of a Gaussian above 97 % of its peak: 0.19 sigma^2. Four greens about a star between them are alike.
        flat[k] = table[k, FLAT] >= 5.0 + 0.4 * (sigma * sigma) and table[k, AMPLITUDE] > 30.0 * noise
    # Nothing is brighter than a clipped pixel; a flat top below others is none.
    clipped = np.full(channels, np.inf)
    for k in range(n):
        for c in range(channels):
            if flat[k] and peak[k, c] > 0.95 * highest[c]:
                clipped[c] = highest[c]
    twice, blended = np.empty(n, np.bool_), np.empty(n, np.bool_)
    _neighbours(x, y, flux, sigma * FWHM_PER_SIGMA, twice, blended)
    # Binned is the mean of four pixels, or of two greens, which are half as many: the same information either way.
    per_pixel = math.sqrt(2.0 / math.pi) * (noise_ratio * 2.0 * noise)
    listed = 0
    for k in range(n):
        if not flux[k] > 0.0 or twice[k] or (flat[k] and blended[k]):
            continue
        row = out[listed]
        row[LIST_X], row[LIST_Y], row[LIST_FLUX] = x[k], y[k], flux[k]
        row[LIST_FWHM] = table[k, CORE] * FWHM_PER_SIGMA
        row[LIST_ECCENTRICITY] = math.sqrt(min(max(1.0 - table[k, MINOR] / table[k, MAJOR], 0.0), 1.0))
        error = math.hypot(CENTROID_FLOOR, per_pixel / table[k, AMPLITUDE])
        row[LIST_ERROR] = max(error, SATURATED_ERROR) if flat[k] else error * (2.0 if blended[k] else 1.0)
        for c in range(channels):
            light_error = 1.0 / math.sqrt(information[k, c]) if information[k, c] > 0.0 else 0.0
            is_known = light_error > 0.0 and not flat[k] and not peak[k, c] > MAX_PEAK * clipped[c]
            row[LIST_LIGHT + c] = light[k, c] if is_known else np.nan
            row[LIST_LIGHT + channels + c] = light_error
        listed += 1
    return listed
