"""Medians of a few frames at every pixel, and how they differ."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import inlined, kernel

FEWEST: Final = 3  # samples of a median, so that one of them may be wrong
CHUNK: Final = 1 << 14  # pixels at a time, whose samples of all frames fit into the processor's caches


def median_differences(
    cube: np.ndarray,
    start: int,
    stop: int,
    groups: tuple[np.ndarray, np.ndarray, np.ndarray],
    wanted: tuple[int, int, int],
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Fill pixels ``start .. stop - 1``: medians of the sharp and of the blurred frames less the middle's, and that.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
        Samples; NaN and infinities are invalid.
    groups : three ndarrays (k,) int64
        Sharp, blurred and middle frames.
    wanted : three ints
        The first so many frames of each that are valid at a pixel count there. A median of fewer than ``FEWEST`` is
        NaN.
    out : three ndarrays (P,) float32, ADU
    """
    sharp, blurred, middle = groups
    ordered = np.empty(max(group.size for group in groups))
    in_short = wanted == (3, 3, 5) and all(group.size >= n for group, n in zip(groups, wanted, strict=True))
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        if not in_short:
            _at_each(cube, np.arange(first, last), *groups, *wanted, ordered, *out)
            continue
        a, b = ([cube[k, first:last] for k in group[:3]] for group in (sharp, blurred))
        m = [cube[k, first:last] for k in middle[:5]]
        with np.errstate(over="ignore", invalid="ignore"):
            centre = _median_of_five(*m)
            np.subtract(_median_of_three(*a), centre, out=out[0][first:last])
            np.subtract(_median_of_three(*b), centre, out=out[1][first:last])
            out[2][first:last] = centre
            invalid = np.flatnonzero(~np.isfinite(sum([*a[1:], *b, *m], a[0])))
        if invalid.size:
            _at_each(cube, invalid + first, *groups, *wanted, ordered, *out)


def _median_of_three(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)))


def _median_of_five(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Neither the smaller of two smaller ones nor the larger of two larger ones is the median: three are left."""
    lower = np.maximum(np.minimum(a, b), np.minimum(c, d))
    upper = np.minimum(np.maximum(a, b), np.maximum(c, d))
    return _median_of_three(lower, upper, e)


@inlined
def _median(cube: np.ndarray, p: int, frames: np.ndarray, wanted: int, ordered: np.ndarray) -> float:
    """Median at pixel p of the first ``wanted`` frames that are valid there; NaN if fewer than ``FEWEST`` are."""
    n = 0
    for k in range(frames.size):
        x = np.float64(cube[frames[k], p])
        if x - x != 0.0 or n == wanted:
            continue
        i = n
        while i > 0 and ordered[i - 1] > x:
            ordered[i] = ordered[i - 1]
            i -= 1
        ordered[i] = x
        n += 1
    return 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2]) if n >= FEWEST else np.nan


@kernel
def _at_each(
    cube: np.ndarray, pixels: np.ndarray, sharp: np.ndarray, blurred: np.ndarray, middle: np.ndarray, n_sharp: int,
    n_blurred: int, n_middle: int, ordered: np.ndarray, sharp_less_middle: np.ndarray, blurred_less_middle: np.ndarray,
    of_middle: np.ndarray,
) -> None:  # fmt: skip
    """Do the same for some pixels, whatever is valid there. ``ordered``: as long as the longest group."""
    for p in pixels:
        centre = _median(cube, p, middle, n_middle, ordered)
        of_middle[p] = np.float32(centre)
        sharp_less_middle[p] = np.float32(_median(cube, p, sharp, n_sharp, ordered) - centre)
        blurred_less_middle[p] = np.float32(_median(cube, p, blurred, n_blurred, ordered) - centre)
