"""Averages of kept samples, with and without weights."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import inner_kernel

STRIP: Final = 1536  # pixels averaged at once where nothing is rejected: long runs of a frame; a number in the kernel


@inner_kernel
def _crossed(t, j, n, centre, low, high) -> int:
    """Mark a pixel that lost all samples: below ``low`` lies what was rejected low, the rest was rejected high.

    Returns the rank between the two, or 0 where there was no sample.
    """
    if n == 0:
        low[j] = np.float32(np.inf)
        high[j] = np.float32(-np.inf)
        return 0
    f = 0
    while np.float64(t[f, j]) < centre:
        f += 1
    low[j] = t[f, j]
    high[j] = np.float32(-np.inf)
    return f


@inner_kernel
def mean_strips(cube, start, stop, total, image, coverage, weight_map, rejected_low, rejected_high, hits) -> int:
    """Average pixels over all frames, in their order, strip by strip; returns the first pixel that was not done.

    That is ``stop``, or the start of a strip in which a sample is not finite. ``total (STRIP,) float64`` is scratch.
    """
    n = cube.shape[0]
    rows = n // 4 * 4
    for p0 in range(start, stop, 1536):
        size = min(stop - p0, 1536)
        for j in range(size):
            total[j] = 0.0
        for i in range(0, rows, 4):
            a = cube[i, p0 : p0 + size]
            b = cube[i + 1, p0 : p0 + size]
            c = cube[i + 2, p0 : p0 + size]
            d = cube[i + 3, p0 : p0 + size]
            for j in range(size):
                total[j] = (((total[j] + np.float64(a[j])) + np.float64(b[j])) + np.float64(c[j])) + np.float64(d[j])
        for i in range(rows, n):
            a = cube[i, p0 : p0 + size]
            for j in range(size):
                total[j] += np.float64(a[j])
        bad = 0.0
        for j in range(size):
            bad += total[j] - total[j]  # NaN if one is
        if bad != 0.0:
            return p0
        for j in range(size):
            image[p0 + j] = np.float32(total[j] / n)
            coverage[p0 + j] = n
            weight_map[p0 + j] = np.float32(n)
            rejected_low[p0 + j] = 0
            rejected_high[p0 + j] = 0
        for i in range(n):
            hits[i, 2] += size
    return stop


@inner_kernel
def multiplied_weights(width, frame_weight, sample_weight, place, weights) -> None:
    """Fill ``weights (N, LANES) float64``: each frame's, times what its sample at ``place`` weighs."""
    for i in range(frame_weight.shape[0]):
        w = frame_weight[i]
        r = sample_weight[i]
        out = weights[i]
        for j in range(width):
            out[j] = w[j] * np.float64(r[place[j]])


@inner_kernel
def rewinsorized_sums(
    cube, p0, width, frame_weight, sample_weight, place, low, high, clip, plain, total, weight
) -> None:
    """Sum with rejected samples counting with their clipped values, ``clip (2 LANES,)``; weights are 1 if ``plain``."""
    per_sample = sample_weight.shape[0] > 0
    for j in range(96):
        total[j] = 0.0
        weight[j] = 0.0
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        w = frame_weight[i]
        for j in range(width):
            x = np.float64(s[j])
            if x - x != 0.0:
                continue
            if s[j] < low[j] or s[j] > high[j]:
                x = clip[j] if x < clip[j] else (clip[96 + j] if x > clip[96 + j] else x)
            wj = 1.0 if plain else w[j]
            if per_sample and not plain:
                wj = wj * np.float64(sample_weight[i, place[j]])
            total[j] += wj * x
            weight[j] += wj


@inner_kernel
def sort_rewinsorized(t, j, n, first, last, low, high, ordered) -> None:
    """Fill ``ordered (n,)``: the samples with the rejected ones replaced by their clipped values, sorted again."""
    for i in range(n):
        x = np.float64(t[i, j])
        if i < first or i >= last:
            x = low if x < low else (high if x > high else x)
        k = i
        while k > 0 and ordered[k - 1] > x:
            ordered[k] = ordered[k - 1]
            k -= 1
        ordered[k] = x


@inner_kernel
def mark_kept(t, n_valid, centre, first, last, low, high) -> None:
    """Fill the smallest and largest value each pixel keeps, ``low, high (LANES,) float32``; crossed if there is none.

    See :func:`_crossed`.
    """
    for j in range(96):
        if last[j] > first[j]:
            low[j] = t[first[j], j]
            high[j] = t[last[j] - 1, j]
        else:
            first[j] = _crossed(t, j, n_valid[j], centre[j], low, high)
            last[j] = first[j]


@inner_kernel
def mean_of_kept(p0, width, n_valid, first, last, centre, total, image, weight_map) -> int:
    """Write the means of the samples kept and their numbers; returns how many pixels lost all their samples."""
    lost = np.int64(0)
    for j in range(width):
        kept = last[j] - first[j]
        lost += 1 if kept == 0 and n_valid[j] > 0 else 0
        without = centre[j] if n_valid[j] > 0 else np.nan
        image[p0 + j] = np.float32(total[j] / np.float64(kept) if kept > 0 else without)
        weight_map[p0 + j] = np.float32(kept)
    return lost
