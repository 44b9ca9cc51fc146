"""Levels of tiles brought to one, by what they show where they overlap.

The light of tile i on its own scale is I_i. Wanted are gains g and offsets o so that g_i I_i + o_i agree in all
overlaps. Each pair gives a ratio of gains and a difference of levels, with their uncertainties; all pairs together are
two small systems of least squares, one after the other, so that no tile is matched twice along different ways. Where an
overlap has too little structure to tell a gain, the gain stays near 1: noise has no slope that means anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

LEAST_CELLS: Final = 12  # of an overlap, below which it tells nothing
PRIOR_GAIN: Final = 0.15  # of ln g about 0: transparency between reference frames
LEAST_SIGMA: Final = 0.003  # of a gain from one overlap: seeing differs, and cells cut through stars
CLIP: Final = 4.0  # sigma, of cells that do not follow the line: edges of stars, satellites
ROUNDS: Final = 6
SIGNIFICANT: Final = 5.0  # sigma, of what the cells spread beyond their noise
STRUCTURE: Final = 0.25  # of the variance of a cell, below which the noise of pixels is not known well enough
TIE: Final = 1e-6  # weight that holds what no overlap ties


@dataclass(frozen=True)
class Overlap:
    """What one pair of tiles tells: ``log_ratio`` = ln(g_i / g_j), and cells of both, valid in both, ADU."""

    i: int
    j: int
    log_ratio: float
    sigma: float
    cells_i: np.ndarray
    cells_j: np.ndarray


def compare(i: int, j: int, a: np.ndarray, b: np.ndarray, noise_a: float, noise_b: float) -> Overlap | None:
    """Compare two tiles where they overlap.

    Parameters
    ----------
    i, j : int
        Which ones.
    a, b : ndarray (N,) float64
        Means of the same cells of sky, ADU.
    noise_a, noise_b : float
        Of a cell.

    Returns
    -------
    Overlap or None
        None: too small.

    Notes
    -----
    The line through the cells is Deming's (1943), errors on both axes, with four-sigma clipping.
    """
    if a.size < LEAST_CELLS:
        return None
    ratio = (max(noise_b, 1e-30) / max(noise_a, 1e-30)) ** 2
    keep = np.ones(a.size, bool)
    slope = 1.0
    for _ in range(ROUNDS):
        x, y = a[keep] - np.median(a[keep]), b[keep] - np.median(b[keep])
        x, y = x - x.mean(), y - y.mean()
        sxx, syy, sxy = float(x @ x), float(y @ y), float(x @ y)
        if sxy <= 0.0:
            return Overlap(i, j, 0.0, math.inf, a, b)
        t = syy - ratio * sxx
        slope = (t + math.sqrt(t * t + 4.0 * ratio * sxy * sxy)) / (2.0 * sxy)
        residual = b - slope * a
        residual -= np.median(residual[keep])
        spread = max(1.4826 * float(np.median(np.abs(residual[keep]))), math.hypot(noise_b, slope * noise_a))
        new = np.abs(residual) <= CLIP * spread
        if new.sum() < LEAST_CELLS or np.array_equal(new, keep):
            break
        keep = new
    x = a[keep] - a[keep].mean()
    signal = float(x @ x) - keep.sum() * noise_a**2  # what of the spread is structure
    # Of noise alone it would be 0, give or take.
    if signal <= max(SIGNIFICANT * math.sqrt(2.0 * keep.sum()), STRUCTURE * keep.sum()) * noise_a**2:
        return Overlap(i, j, 0.0, math.inf, a[keep], b[keep])
    error = spread / math.sqrt(signal) / slope
    return Overlap(i, j, math.log(slope), math.hypot(error, LEAST_SIGMA), a[keep], b[keep])


@dataclass(frozen=True)
class Levels:
    """Gain and offset of each tile, (n,) float64; and what is left of differences in overlaps, ADU, one a pair."""

    gain: np.ndarray
    offset: np.ndarray
    left: tuple[tuple[int, int, float], ...]


def match_levels(n: int, overlaps: Sequence[Overlap], *, gains: bool = True, offsets: bool = True) -> Levels:
    """Solve for the gains and offsets of all tiles.

    Parameters
    ----------
    n : int
        Tiles.
    overlaps : sequence of Overlap
    gains, offsets : bool
        What may differ from 1 and 0.

    Returns
    -------
    Levels
        The mean of ln g is 0, and that of the offsets, in each set of tiles that hang together.
    """
    log_gain = np.zeros(n)
    if gains:
        rows, values = [], []
        for pair in overlaps:
            if math.isfinite(pair.sigma):
                row = np.zeros(n)
                row[pair.i], row[pair.j] = 1.0 / pair.sigma, -1.0 / pair.sigma
                rows.append(row)
                values.append(pair.log_ratio / pair.sigma)
        rows += list(np.eye(n) / PRIOR_GAIN)
        log_gain = np.linalg.lstsq(np.array(rows), np.array([*values, *np.zeros(n)]), rcond=None)[0]
        log_gain -= log_gain.mean()
    gain = np.exp(log_gain)
    offset = np.zeros(n)
    steps = [float(np.median(gain[p.j] * p.cells_j - gain[p.i] * p.cells_i)) for p in overlaps]
    if offsets and overlaps:
        rows, values = [], []
        for pair, step in zip(overlaps, steps, strict=True):
            weight = math.sqrt(pair.cells_i.size)
            row = np.zeros(n)
            row[pair.i], row[pair.j] = weight, -weight
            rows.append(row)
            values.append(weight * step)
        rows += list(np.eye(n) * TIE)
        offset = np.linalg.lstsq(np.array(rows), np.array([*values, *np.zeros(n)]), rcond=None)[0]
    left = tuple(
        (pair.i, pair.j, step + float(offset[pair.j] - offset[pair.i]))
        for pair, step in zip(overlaps, steps, strict=True)
    )
    return Levels(gain, offset, left)
