"""Kernels that measure stars: binning, windowed moments, fluxes.

Numba compiles them, so this room is imported inside functions only. They release the interpreter lock: frames are
measured by as many threads as there are cores. Pixel coordinates are 0-based, centres at integers.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import kernel

ITERATIONS: Final = 14  # most steps of a centroid
CORE_WINDOW: Final = 0.65  # sigma of the window that measures a width, units of the star's: see `measure_stars`

# Columns of what `measure_stars` fills in.
X, Y, TOTAL, MAJOR, MINOR, CORE, AMPLITUDE, PEAK_SHARE, FLAT, STEP, STATE, ON_NEBULA, HEIGHT = range(13)
COLUMNS: Final = 13
MEASURED: Final = 1.0  # of column STATE; 0: at the edge, on an invalid pixel, or no light


@kernel
def _load_stamp(pixels: np.ndarray, green: int, x0: int, y0: int, sky: np.ndarray, stamp: np.ndarray) -> None:
    """Cut a stamp about (x0, y0), indexed by column and row: mean of the channels less the sky, ADU; NaN where invalid.

    ``green`` 0 or 1: of a mosaic only the pixels of that parity of row + column count, and the others are 0.
    """
    side = stamp.shape[0]
    channels = pixels.shape[2]
    for j in range(side):
        y = y0 - side // 2 + j
        for i in range(side):
            x = x0 - side // 2 + i
            if green >= 0 and (x + y) & 1 != green:
                stamp[i, j] = 0.0
                continue
            total = 0.0
            for c in range(channels):
                total += pixels[y, x, c]
            stamp[i, j] = total / channels - (sky[0] + (sky[1] * (i - side // 2) + sky[2] * (j - side // 2)))


@kernel
def _fill_window(out: np.ndarray, half: int, centre: float, window: float) -> None:
    """Gaussian about ``half + centre``, from its middle outward: each step's ratio is the last one's times a constant.

    Four exponentials instead of one a pixel; the error of a product of ten is 1e-15.
    """
    inverse = 1.0 / (window * window)
    constant = math.exp(-inverse)
    out[half] = math.exp(-0.5 * centre * centre * inverse)
    ratio = math.exp((centre - 0.5) * inverse)
    for i in range(half + 1, out.size):
        out[i] = out[i - 1] * ratio
        ratio *= constant
    ratio = math.exp((-centre - 0.5) * inverse)
    for i in range(half - 1, -1, -1):
        out[i] = out[i + 1] * ratio
        ratio *= constant


@kernel
def _moments(stamp: np.ndarray, dx: float, dy: float, window: float, basis: np.ndarray, moment: np.ndarray) -> None:
    """Moments of a stamp under a Gaussian window: sum, then x, y, xx, yy, xy about (dx, dy), central; into ``moment``.

    ``basis (5, side)`` is scratch: the window is separable, and the sums along the rows are made for all rows at once.
    """
    side = stamp.shape[0]
    half = side // 2
    across, down, s0, s1, s2 = basis[0], basis[1], basis[2], basis[3], basis[4]
    _fill_window(across, half, dx, window)
    _fill_window(down, half, dy, window)
    basis[2:] = 0.0
    for i in range(side):
        column, weight, x = stamp[i], across[i], i - half - dx
        for j in range(side):
            v = weight * column[j]
            s0[j] += v
            s1[j] += v * x
            s2[j] += v * x * x
    total, mx, my, mxx, myy, mxy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(side):
        y = j - half - dy
        w = down[j]
        total += w * s0[j]
        mx += w * s1[j]
        mxx += w * s2[j]
        my += w * y * s0[j]
        mxy += w * y * s1[j]
        myy += w * y * y * s0[j]
    mx, my = mx / total, my / total
    moment[0], moment[1], moment[2] = total, mx, my
    moment[3], moment[4], moment[5] = mxx / total - mx * mx, myy / total - my * my, mxy / total - mx * my


@kernel
def _without_window(moment: np.ndarray, window: float) -> tuple[float, float]:
    """Variances along the major and minor axis of a Gaussian whose windowed moments are given.

    Star times window is a Gaussian whose inverse covariance is the sum of both: subtract the window's.
    """
    middle, difference = 0.5 * (moment[3] + moment[4]), 0.5 * (moment[3] - moment[4])
    half = math.sqrt(difference * difference + moment[5] * moment[5])
    own = 1.0 / (window * window)
    return 1.0 / (1.0 / (middle + half) - own), 1.0 / (1.0 / (middle - half) - own)


@kernel
def _limited(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


@kernel
def measure_stars(
    pixels: np.ndarray,
    green: int,
    x: np.ndarray,
    y: np.ndarray,
    sky: np.ndarray,
    sigma: float,
    peak_limit: float,
    out: np.ndarray,
) -> None:
    """Windowed centroid, shape and width of stars: SExtractor's XWIN_IMAGE, the window fitted to each star.

    The width is measured again through a window of 0.65 of the star's own: for a Gaussian that changes nothing; a
    Moffat profile of exponent 3, whose wings a window of the star's own width takes for 8 % of width, then reads
    within 2 % of its full width at half maximum.

    Parameters
    ----------
    pixels : ndarray (H, W, C) float32, ADU
        A frame, or a mosaic with C = 1.
    green : int
        Parity of row + column of a mosaic's green pixels, 0 or 1; -1: every pixel counts.
    x, y : ndarray (n,) float64
        First guesses, pixels of the frame.
    sky : ndarray (n, 3) float64
        Level of the sky there, mean of the channels, ADU, and its slopes along x and y, ADU a pixel.
    sigma : float
        First guess of the stars' Gaussian sigma, pixels.
    peak_limit : float
        Largest share of the light of 3x3 pixels that a star's brightest one may have.
    out : ndarray (n, COLUMNS) float64
        Filled; columns are named at the head of this module. MAJOR, MINOR (variances along the axes) and CORE
        (standard deviation of the core) in pixels, AMPLITUDE and TOTAL in ADU, STEP how far the centroid moved.
    """
    height, width = pixels.shape[:2]
    half = int(math.ceil(3.75 * sigma)) + 1  # the window times the star is 0.2 % at 2.5 sigma; widths may be 1.5 times
    stamp = np.empty((2 * half + 1, 2 * half + 1))
    basis = np.empty((5, 2 * half + 1))
    moment = np.empty(6)
    spacing = 1.0 if green < 0 else math.sqrt(2.0)  # px, of the pixels that count
    lowest, narrowest = 0.9 * spacing, 0.7 * spacing  # an undersampled star still needs a window of 2 pixels FWHM
    highest = 2.0 * sigma if sigma > 0.75 * spacing else 1.5 * spacing
    for k in range(x.size):
        out[k] = 0.0
        x0, y0 = int(math.floor(x[k] + 0.5)), int(math.floor(y[k] + 0.5))
        if x0 < half or y0 < half or x0 >= width - half or y0 >= height - half:
            continue
        _load_stamp(pixels, green, x0, y0, sky[k], stamp)
        peak, share = _peak_of(stamp, 2.3548 * sigma)
        out[k, PEAK_SHARE] = share
        if not 0.0 < share <= peak_limit:  # one hot pixel, a hole, or an invalid pixel in the core
            continue
        dx, dy, window = x[k] - x0, y[k] - y0, _limited(sigma, lowest, highest)
        left = ITERATIONS
        while left > -2:  # at 0 the window and the centroid are those of the star; at -1 the window is narrow
            _moments(stamp, dx, dy, window, basis, moment)
            major, minor = _without_window(moment, window)
            variance = 0.5 * (major + minor)
            left -= 1
            if left == -1:
                out[k, X], out[k, Y], out[k, TOTAL] = x0 + dx, y0 + dy, moment[0]
                out[k, MAJOR], out[k, MINOR] = major, minor
                out[k, STATE] = MEASURED
                if not variance > 0.0:
                    break
                square = window * window
                out[k, AMPLITUDE] = moment[0] * (variance + square) / (2.0 * math.pi * variance * square)
                window = _limited(CORE_WINDOW * math.sqrt(variance), narrowest, highest)
            elif left == -2:
                out[k, CORE] = math.sqrt(variance) if variance > 0.0 else 0.0
            else:
                step_x, step_y = _limited(2.0 * moment[1], -1.0, 1.0), _limited(2.0 * moment[2], -1.0, 1.0)
                dx, dy = dx + step_x, dy + step_y
                before = window
                window = _limited(math.sqrt(variance), lowest, highest) if variance > 0.0 else lowest
                if not (abs(dx) + abs(dy) < half and moment[0] > 0.0):
                    break
                if abs(step_x) + abs(step_y) + abs(window - before) < 1e-4:
                    left = 0
        out[k, FLAT] = _near_peak(stamp, peak)
        out[k, STEP] = math.sqrt((x0 + dx - x[k]) ** 2 + (y0 + dy - y[k]) ** 2)


@kernel
def _peak_of(stamp: np.ndarray, radius: float) -> tuple[float, float]:
    """Brightest pixel within ``radius`` of the middle, and its share of the 3x3 about it; share 0 if one is invalid."""
    side = stamp.shape[0]
    half = side // 2
    peak, at_j, at_i = -np.inf, half, half
    for j in range(side):
        for i in range(side):
            v = stamp[i, j]
            distance = (j - half) * (j - half) + (i - half) * (i - half)
            if not abs(v) < np.inf:
                if distance <= radius * radius:
                    return 0.0, 0.0
                stamp[i, j] = 0.0
            elif v > peak and distance <= 9.0:
                peak, at_j, at_i = v, j, i
    total = 0.0
    for j in range(max(at_j - 1, 0), min(at_j + 2, side)):
        for i in range(max(at_i - 1, 0), min(at_i + 2, side)):
            total += stamp[i, j]
    return peak, peak / total if peak > 0.0 and total > 0.0 else 0.0


@kernel
def _near_peak(stamp: np.ndarray, peak: float) -> float:
    """Pixels of a stamp within 3 % of its brightest."""
    n = 0.0
    for j in range(stamp.shape[0]):
        for i in range(stamp.shape[1]):
            n += 1.0 if stamp[i, j] >= 0.97 * peak else 0.0
    return n


@kernel
def star_fluxes(
    pixels: np.ndarray,
    colours: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    sigma: np.ndarray,
    reach: float,
    flux: np.ndarray,
    information: np.ndarray,
    peak: np.ndarray,
) -> None:
    """Flux of stars at known positions, per channel: a profile of known width and a constant, least squares.

    The profile is Moffat's with exponent 4, averaged over each pixel. Works on the pixels of one colour wherever they
    lie, so that a mosaic needs no demosaicing.

    Notes
    -----
    Stars whose profile is another one are all scaled alike, nearly however wide they are: those of 2.6 and 10 px within
    1 % for exponents from 2.5 to 4, what air and telescopes make of a star; with a scatter of 0.7 % in the red and blue
    of a mosaic. With the profile at the middle of the pixels narrow stars seemed 2 to 4 % brighter than wide ones. A
    Gaussian scatters by 2.2 %, and is exact for Gaussian stars alone. Source of the profile: A. F. J. Moffat, "A
    theoretical investigation of focal stellar images", A&A 3, 455 (1969).

    Parameters
    ----------
    pixels : ndarray (H, W, C) float32, ADU
        A frame, or a mosaic with C = 1; invalid pixels are left out.
    colours : ndarray (2, 2) int64
        Channel of each pixel of a mosaic's 2x2 cell; all -1: every pixel has all channels.
    x, y : ndarray (n,) float64
        Positions, pixels.
    sigma : ndarray (channels,) float64
        Width in each channel as a Gaussian's of the same full width at half maximum, pixels.
    reach : float
        Radius of what is fitted, pixels.
    flux, information, peak : ndarray (n, channels) float64
        Filled: flux, ADU; inverse variance of the flux for pixels of unit noise; brightest pixel, ADU. Information 0
        where less than half of the pixels is valid. ``flux^2 information`` is the sum of squares that the fit explains.
    """
    height, width = pixels.shape[:2]
    channels = sigma.size
    steepness = 1.0 / (7.32689 * sigma * sigma)  # of exponent 4, (1.1774 sigma)^2 / (2^(1/4) - 1)
    half = int(math.ceil(reach))
    sums = np.empty((channels, 5))  # of 1, profile, profile^2, pixel, profile pixel
    for k in range(x.size):
        sums[:] = 0.0
        peak[k] = -np.inf
        x0, y0 = int(math.floor(x[k] + 0.5)), int(math.floor(y[k] + 0.5))
        looked_at = 0
        for v in range(max(y0 - half, 0), min(y0 + half + 1, height)):
            for u in range(max(x0 - half, 0), min(x0 + half + 1, width)):
                square = (u - x[k]) * (u - x[k]) + (v - y[k]) * (v - y[k])
                if square > reach * reach:
                    continue
                looked_at += 1
                colour = colours[v & 1, u & 1]
                for c in range(pixels.shape[2]):
                    channel = c if colour < 0 else colour
                    value = float(pixels[v, u, c])
                    if abs(value) < np.inf:
                        bend = steepness[channel]
                        near = 1.0 / (1.0 + square * bend)
                        # Mean over a pixel: the profile and a 24th of its Laplacian.
                        inner = near * bend * (2.0 / 3.0 - 10.0 / 3.0 * square * bend * near)
                        profile = (near * near) * (near * near) * (1.0 - inner)
                        sums[channel, 0] += 1.0
                        sums[channel, 1] += profile
                        sums[channel, 2] += profile * profile
                        sums[channel, 3] += value
                        sums[channel, 4] += profile * value
                        if value > peak[k, channel]:
                            peak[k, channel] = value
        for channel in range(channels):
            n, p, pp, d, pd = sums[channel]
            share = 0.5 if colours[0, 0] < 0 else 0.1  # half of the quarter of a mosaic's pixels that are red
            flux[k, channel], information[k, channel] = 0.0, 0.0
            if n > 3.0 and n >= share * looked_at:
                determinant = pp - p * p / n
                area = math.pi / (3.0 * steepness[channel])
                flux[k, channel] = area * (pd - p * d / n) / determinant
                information[k, channel] = determinant / (area * area)
