"""A block of pixels from samples to result: loaded, sorted, rejected, combined.

``LANES`` neighbouring pixels are taken at once. Their samples are sorted (:mod:`zemosaic_sorting`), each pixel's window
is found (:mod:`zemosaic_rejection`, :mod:`zemosaic_linear_fit`), and the average comes last, over the frames in their
own order, of the samples inside the window's values: it adds ``w * x`` and ``w`` in frame order in float64.

Every combination of methods is a kernel of its own, compiled when it is first used (:func:`_block_kernel`): nobody
waits for the compilation of what they do not use. The cache on disk keeps them apart by the numbers they enclose.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from zemosaic_kernels import kernel
from zemosaic_linear_fit import _windows_least_absolute, _windows_least_squares
from zemosaic_rejection import (
    _median_of,
    _window_averaged_sigma,
    _window_gesd,
    _window_kappa_sigma,
    _window_kappa_sigma_clipped,
    _window_legacy_quantile,
    _window_percentile_clip,
    _windows_pixinsight,
    _windows_sigma_clip,
)
from zemosaic_sorting import new_table, sort_block

NOWHERE: Final = (np.empty(0, np.float32), np.empty(0, np.float32))
_BUILDING = threading.Lock()  # a cache lets two threads build what neither has, and then compile it twice
STRIP: Final = 1536  # pixels averaged at once where nothing is rejected: long runs of a frame; a number in the kernel

# --------------------------------------------------------------------------- from the cube to a sorted table


@kernel
def _count_valid(cube, p0, width, n_valid, seen) -> None:
    """Count the valid samples of ``width`` pixels, ``n_valid (LANES,) int64``; pixels behind them count as valid.

    ``seen (N,) int64`` grows by those of each frame.
    """
    n_frames = cube.shape[0]
    for j in range(96):
        n_valid[j] = n_frames
    for i in range(n_frames):
        s = cube[i, p0 : p0 + width]
        invalid = np.int32(0)
        for j in range(width):
            invalid += np.int32(0) if s[j] - s[j] == np.float32(0.0) else np.int32(1)  # NaN and infinity
        seen[i] += width - invalid
        if invalid > 0:
            for j in range(width):
                n_valid[j] -= 0 if s[j] - s[j] == np.float32(0.0) else 1


@kernel
def _whole_block(cube, p0, width) -> np.ndarray:
    """Return pixels ``p0 .. p0 + width - 1`` and zeros behind them, ``(N, LANES) float32``."""
    block = np.zeros((cube.shape[0], 96), np.float32)
    for i in range(cube.shape[0]):
        for j in range(width):
            block[i, j] = cube[i, p0 + j]
    return block


@kernel
def _centre(t, n_valid, centre) -> None:
    """Median of the valid samples of every pixel, float64; 0 where there is none."""
    for j in range(96):
        n = n_valid[j]
        centre[j] = 0.5 * (np.float64(t[(n - 1) // 2, j]) + np.float64(t[n // 2, j])) if n > 0 else 0.0


@kernel
def _running_sums(t, n_frames, n_valid, centre, sum1, sum2) -> None:
    """Fill sums such that ``sum[last] - sum[first]`` adds ranks first .. last - 1, from the middle outward."""
    middle = n_frames // 2
    for j in range(96):
        sum1[middle, j] = 0.0
        sum2[middle, j] = 0.0
    for i in range(middle, n_frames):
        for j in range(96):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i + 1, j] = sum1[i, j] + d
            sum2[i + 1, j] = sum2[i, j] + d * d
    for i in range(middle - 1, -1, -1):
        for j in range(96):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i, j] = sum1[i + 1, j] - d
            sum2[i, j] = sum2[i + 1, j] - d * d


@kernel
def _running_sums_of_all(flat, n_frames, centre, sum1, sum2) -> None:
    """Fill the same sums where every sample is valid, four rows at a time; tables as rows of numbers."""
    middle = n_frames // 2
    for j in range(96):
        sum1[middle * 96 + j] = 0.0
        sum2[middle * 96 + j] = 0.0
    up = middle + (n_frames - middle) // 4 * 4
    for i in range(middle, up, 4):
        x = flat[i * 96 : (i + 4) * 96]
        a = sum1[i * 96 : (i + 5) * 96]
        b = sum2[i * 96 : (i + 5) * 96]
        for j in range(96):
            m = centre[j]
            d0 = np.float64(x[j]) - m
            d1 = np.float64(x[96 + j]) - m
            d2 = np.float64(x[192 + j]) - m
            d3 = np.float64(x[288 + j]) - m
            s = a[j] + d0
            q = b[j] + d0 * d0
            a[96 + j] = s
            b[96 + j] = q
            s += d1
            q += d1 * d1
            a[192 + j] = s
            b[192 + j] = q
            s += d2
            q += d2 * d2
            a[288 + j] = s
            b[288 + j] = q
            a[384 + j] = s + d3
            b[384 + j] = q + d3 * d3
    for i in range(up, n_frames):
        for j in range(96):
            d = np.float64(flat[i * 96 + j]) - centre[j]
            sum1[(i + 1) * 96 + j] = sum1[i * 96 + j] + d
            sum2[(i + 1) * 96 + j] = sum2[i * 96 + j] + d * d
    down = middle % 4
    for i in range(middle - 4, down - 1, -4):
        x = flat[i * 96 : (i + 4) * 96]
        a = sum1[i * 96 : (i + 5) * 96]
        b = sum2[i * 96 : (i + 5) * 96]
        for j in range(96):
            m = centre[j]
            d0 = np.float64(x[j]) - m
            d1 = np.float64(x[96 + j]) - m
            d2 = np.float64(x[192 + j]) - m
            d3 = np.float64(x[288 + j]) - m
            s = a[384 + j] - d3
            q = b[384 + j] - d3 * d3
            a[288 + j] = s
            b[288 + j] = q
            s -= d2
            q -= d2 * d2
            a[192 + j] = s
            b[192 + j] = q
            s -= d1
            q -= d1 * d1
            a[96 + j] = s
            b[96 + j] = q
            a[j] = s - d0
            b[j] = q - d0 * d0
    for i in range(down - 1, -1, -1):
        for j in range(96):
            d = np.float64(flat[i * 96 + j]) - centre[j]
            sum1[i * 96 + j] = sum1[(i + 1) * 96 + j] - d
            sum2[i * 96 + j] = sum2[(i + 1) * 96 + j] - d * d


@kernel
def _running_sums_of_ranks(flat, n_frames, n_valid, centre, sum1, sum3) -> None:
    """Fill the sums of d and of ``i d``, i the rank, in the same order; tables as rows of numbers."""
    middle = n_frames // 2
    for j in range(96):
        sum1[middle * 96 + j] = 0.0
        sum3[middle * 96 + j] = 0.0
    for i in range(middle, n_frames):
        x = flat[i * 96 : (i + 1) * 96]
        a = sum1[i * 96 : (i + 2) * 96]
        b = sum3[i * 96 : (i + 2) * 96]
        rank = np.float64(i)
        for j in range(96):
            d = np.float64(x[j]) - centre[j] if i < n_valid[j] else 0.0
            a[96 + j] = a[j] + d
            b[96 + j] = b[j] + rank * d
    for i in range(middle - 1, -1, -1):
        x = flat[i * 96 : (i + 1) * 96]
        a = sum1[i * 96 : (i + 2) * 96]
        b = sum3[i * 96 : (i + 2) * 96]
        rank = np.float64(i)
        for j in range(96):
            d = np.float64(x[j]) - centre[j] if i < n_valid[j] else 0.0
            a[j] = a[96 + j] - d
            b[j] = b[96 + j] - rank * d


# --------------------------------------------------------------------------- what every pixel keeps


@kernel
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


@kernel
def _count_hits(cube, p0, width, low, high, hits) -> None:
    """Add the samples of each frame that were rejected low and high to ``hits (N, 3) int64``."""
    one = np.int32(1)
    none = np.int32(0)
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        n_low = none
        n_out = none
        for j in range(width):
            finite = s[j] - s[j] == np.float32(0.0)
            below = s[j] < low[j] and finite
            n_low += one if below else none
            n_out += one if below or (s[j] > high[j] and finite) else none
        hits[i, 0] += n_low
        hits[i, 1] += n_out - n_low


# --------------------------------------------------------------------------- sums over the frames


@kernel
def _plain_sums(cube, p0, width, low, high, total) -> None:
    """``total (LANES,) float64``: the sum over the frames, in their order, of the samples kept."""
    n = cube.shape[0]
    for j in range(96):
        total[j] = 0.0
    i = 0
    while i + 4 <= n:
        a = cube[i, p0 : p0 + width]
        b = cube[i + 1, p0 : p0 + width]
        c = cube[i + 2, p0 : p0 + width]
        d = cube[i + 3, p0 : p0 + width]
        for j in range(width):
            lo = low[j]
            hi = high[j]
            t = total[j]
            t += np.float64(a[j]) if a[j] >= lo and a[j] <= hi else 0.0
            t += np.float64(b[j]) if b[j] >= lo and b[j] <= hi else 0.0
            t += np.float64(c[j]) if c[j] >= lo and c[j] <= hi else 0.0
            t += np.float64(d[j]) if d[j] >= lo and d[j] <= hi else 0.0
            total[j] = t
        i += 4
    while i < n:
        a = cube[i, p0 : p0 + width]
        for j in range(width):
            total[j] += np.float64(a[j]) if a[j] >= low[j] and a[j] <= high[j] else 0.0
        i += 1


@kernel
def _sums_and_hits(cube, p0, width, low, high, total, hits) -> None:
    """Do :func:`_plain_sums` and :func:`_count_hits` in one pass over samples that are all valid."""
    one = np.int32(1)
    none = np.int32(0)
    for j in range(96):
        total[j] = 0.0
    n_frames = cube.shape[0]
    for i in range(0, n_frames - 1, 2):
        a = cube[i, p0 : p0 + width]
        b = cube[i + 1, p0 : p0 + width]
        a_low = none
        a_out = none
        b_low = none
        b_out = none
        for j in range(width):
            lo = low[j]
            hi = high[j]
            x = a[j]
            y = b[j]
            x_out = x < lo or x > hi
            y_out = y < lo or y > hi
            t = total[j] + (0.0 if x_out else np.float64(x))
            total[j] = t + (0.0 if y_out else np.float64(y))
            a_low += one if x < lo else none
            b_low += one if y < lo else none
            a_out += one if x_out else none
            b_out += one if y_out else none
        hits[i, 0] += a_low
        hits[i, 1] += a_out - a_low
        hits[i + 1, 0] += b_low
        hits[i + 1, 1] += b_out - b_low
    if n_frames % 2:
        a = cube[n_frames - 1, p0 : p0 + width]
        a_low = none
        a_out = none
        for j in range(width):
            x = a[j]
            out = x < low[j] or x > high[j]
            total[j] += 0.0 if out else np.float64(x)
            a_low += one if x < low[j] else none
            a_out += one if out else none
        hits[n_frames - 1, 0] += a_low
        hits[n_frames - 1, 1] += a_out - a_low


@kernel
def _mean_strips(cube, start, stop, image, coverage, weight_map, rejected_low, rejected_high, hits) -> int:
    """Average pixels over all frames, in their order, strip by strip; returns the first pixel that was not done.

    That is ``stop``, or the start of a strip in which a sample is not finite.
    """
    n = cube.shape[0]
    total = np.empty(1536, np.float64)
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


@kernel
def _weighted_sums(cube, p0, width, frame_weight, sample_weight, place, low, high, total, weight) -> None:
    """``total`` of w x and ``weight`` of w over the frames, in their order, of the samples kept.

    With all weights 1 this is :func:`_plain_sums` to the bit.
    """
    per_sample = sample_weight.shape[0] > 0
    for j in range(96):
        total[j] = 0.0
        weight[j] = 0.0
    for i in range(cube.shape[0]):
        s = cube[i, p0 : p0 + width]
        w = frame_weight[i]
        if per_sample:
            r = sample_weight[i]
            for j in range(width):
                keep = s[j] >= low[j] and s[j] <= high[j]
                wj = w[j] * np.float64(r[place[j]])
                total[j] += wj * np.float64(s[j]) if keep else 0.0
                weight[j] += wj if keep else 0.0
        else:
            for j in range(width):
                keep = s[j] >= low[j] and s[j] <= high[j]
                total[j] += w[j] * np.float64(s[j]) if keep else 0.0
                weight[j] += w[j] if keep else 0.0


@kernel
def _rewinsorized_sums(
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


@kernel
def _sort_rewinsorized(t, j, n, first, last, low, high, ordered) -> None:
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


# --------------------------------------------------------------------------- one kernel per combination of methods


@kernel
def _mark_kept(t, n_valid, centre, first, last, low, high) -> None:
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


@kernel
def _mean_of_kept(p0, width, n_valid, first, last, centre, total, image, weight_map) -> int:
    """Write the means of the samples kept and their numbers; returns how many pixels lost all their samples."""
    lost = np.int64(0)
    for j in range(width):
        kept = last[j] - first[j]
        lost += 1 if kept == 0 and n_valid[j] > 0 else 0
        without = centre[j] if n_valid[j] > 0 else np.nan
        image[p0 + j] = np.float32(total[j] / np.float64(kept) if kept > 0 else without)
        weight_map[p0 + j] = np.float32(kept)
    return lost


@lru_cache(maxsize=64)
def _block_kernel(method: int, by_mean: bool, rewinsor: bool, uniform: bool) -> Any:
    """Return the kernel that rejects by ``method`` and then averages, or takes a sample; see :func:`combine_block`.

    Inside it the four are constants: branches on them are decided, and pruned, before anything is compiled.
    """
    samples_alone = method == 0 and not by_mean
    sorts = method != 0 or not by_mean
    sums_of_squares = method in (1, 2, 3, 4, 5, 6, 8)
    sums_of_ranks = method == 9
    sums_and_hits = by_mean and uniform and not rewinsor
    weighted = by_mean and not uniform and not rewinsor
    rewinsorized = by_mean and rewinsor
    may_weigh_nothing = weighted or rewinsorized
    singly = method in (1, 2, 3, 6, 7, 8)

    @kernel
    def block(
        cube, start, stop, par, critical, combine, frame_weight, sample_weight, sample_step,
        image, coverage, weight_map, rejected_low, rejected_high, hits, kept_low, kept_high,
    ):  # fmt: skip
        n_frames = cube.shape[0]
        zero = np.int64(0)
        unity = 1.0  # its sign makes True and False one type, and one compilation of what takes them
        t = new_table(n_frames)
        sum1 = np.empty((n_frames + 1, 96), np.float64)
        sum2 = np.empty((n_frames + 1, 96), np.float64)
        work = np.empty(1152, np.float64)
        state = np.empty(864, np.int64)
        limits = np.empty(384, np.float32)
        ranks = np.empty(192, np.int32)
        centre = np.zeros(96, np.float64)
        clip = np.empty(192, np.float64)
        first = np.empty(96, np.int64)
        last = np.empty(96, np.int64)
        n_valid = np.empty(96, np.int64)
        low = np.empty(96, np.float32)
        high = np.empty(96, np.float32)
        total = np.empty(96, np.float64)
        weight = np.empty(96, np.float64)
        column = np.empty(n_frames + 8, np.float64)
        columns = np.empty((96, (n_frames + 63) // 64 * 64 if method == 10 else 0), np.float32)
        words = np.empty((n_frames + 63) // 64, np.int64)
        places = np.empty(n_frames + 8, np.int64)
        place = np.empty(96, np.int64)
        seen = hits[:, 2]
        lost = zero
        whole = zero  # pixels of the blocks in which all samples are valid
        for p0 in range(start, stop, 96):
            width = min(np.int64(96), stop - p0)
            if sample_weight.shape[0] > 0:
                for j in range(96):
                    place[j] = (p0 + j) // sample_step
            full = False
            middle_known = False
            if sorts:
                source, at = cube, p0
                if width < 96:
                    source, at = _whole_block(cube, p0, width), zero
                full, middle_known = sort_block(source, at, t, samples_alone and combine == 1, low, high)
            if full:
                whole += width
                for j in range(96):
                    n_valid[j] = n_frames
            else:
                _count_valid(cube, p0, width, n_valid, seen)
            for j in range(96):
                centre[j] = 0.5 * (np.float64(low[j]) + np.float64(high[j])) if middle_known else 0.0
                first[j] = 0
                last[j] = n_valid[j]
                low[j] = np.float32(-3.4028235e38)
                high[j] = np.float32(3.4028235e38)
            if method != 0:
                _centre(t, n_valid, centre)
                if sums_of_squares:
                    if full:
                        _running_sums_of_all(t.reshape(-1), n_frames, centre, sum1.reshape(-1), sum2.reshape(-1))
                    else:
                        _running_sums(t, n_frames, n_valid, centre, sum1, sum2)
                if sums_of_ranks:
                    _running_sums_of_ranks(t.reshape(-1), n_frames, n_valid, centre, sum1.reshape(-1), sum2.reshape(-1))
                    _windows_least_squares(t, n_frames, sum1, sum2, centre, first, last, par[0], par[1], work, state)
                if method == 10:
                    _windows_least_absolute(
                        t, n_frames, centre, first, last, par[0], par[1], work, state, columns, words, column, places
                    )
                if method == 4:
                    _windows_pixinsight(t, sum1, sum2, centre, first, last, par[0], par[1], work, state, limits, ranks)
                if method == 5:
                    _windows_sigma_clip(t, sum1, sum2, first, last, par[0], par[1], work, state)
                if singly:
                    for j in range(96):
                        n = n_valid[j]
                        f = zero
                        g = n
                        if method == 1 and n >= 3:
                            f, g = _window_kappa_sigma(t, sum1, sum2, j, n, par[0], par[1])
                        if method == 2 and n >= 3:
                            f, g = _window_kappa_sigma_clipped(t, sum1, sum2, j, n, par[0], par[1])
                        if method == 3:
                            clip[j] = np.nan
                            clip[96 + j] = np.nan
                            if n >= 3:
                                f, g = _window_legacy_quantile(
                                    t, sum1, sum2, centre, j, n, par[0], par[1], par[2], par[3], clip
                                )
                        if method == 6 and n >= 3:
                            f, g = _window_averaged_sigma(t, sum2, j, n, par[0], par[1])
                        if method == 7 and n >= 2:
                            f, g = _window_percentile_clip(t, j, n, par[0], par[1])
                        if method == 8 and n >= 10:
                            f, g = _window_gesd(t, sum1, sum2, centre, j, n, par[4], critical)
                        first[j] = f
                        last[j] = g
                _mark_kept(t, n_valid, centre, first, last, low, high)
            rejected = zero
            together = False
            if method != 0:
                for j in range(width):
                    rejected += n_valid[j] - (last[j] - first[j])
                if sums_and_hits and full and rejected > 0:
                    together = True
                    _sums_and_hits(cube, p0, width, low, high, total, hits)
                elif rejected > 0:
                    _count_hits(cube, p0, width, low, high, hits)
            if sums_and_hits and not together:
                _plain_sums(cube, p0, width, low, high, total)
            if weighted:
                _weighted_sums(cube, p0, width, frame_weight, sample_weight, place, low, high, total, weight)
            if rewinsorized:
                _rewinsorized_sums(
                    cube, p0, width, frame_weight, sample_weight, place, low, high, clip, unity < 0.0, total, weight
                )
            for j in range(width):
                coverage[p0 + j] = n_valid[j]
                rejected_low[p0 + j] = first[j]
                rejected_high[p0 + j] = n_valid[j] - last[j]
            unweighted = False
            if middle_known:
                for j in range(width):
                    weight_map[p0 + j] = np.float32(n_valid[j])
                    image[p0 + j] = np.float32(centre[j])
            elif sums_and_hits:
                lost += _mean_of_kept(p0, width, n_valid, first, last, centre, total, image, weight_map)
            else:
                for j in range(width):
                    n = n_valid[j]
                    kept = last[j] - first[j]
                    counted = n if rewinsor else kept
                    p = p0 + j
                    weight_map[p] = np.float32(counted)
                    if n == 0:
                        image[p] = np.float32(np.nan)
                        continue
                    lost += 1 if kept == 0 else 0
                    if counted == 0:
                        image[p] = np.float32(centre[j])
                    elif by_mean:
                        weight_map[p] = np.float32(weight[j])
                        unweighted = unweighted or not weight[j] > 0.0
                        image[p] = np.float32(total[j] / weight[j]) if weight[j] > 0.0 else np.float32(0.0)
                    elif rewinsor:
                        _sort_rewinsorized(t, j, n, first[j], last[j], clip[j], clip[96 + j], column)
                        at = zero if combine == 2 else n - 1
                        middle = 0.5 * (column[(n - 1) // 2] + column[n // 2])
                        image[p] = np.float32(middle if combine == 1 else column[at])
                    elif combine == 1:
                        image[p] = np.float32(_median_of(t, j, first[j], last[j]))
                    elif combine == 2:
                        image[p] = t[first[j], j]
                    else:
                        image[p] = t[last[j] - 1, j]
            if kept_low.size > 0:
                for j in range(width):
                    kept_low[p0 + j] = low[j]
                    kept_high[p0 + j] = high[j]
            if may_weigh_nothing and unweighted:  # all weights of some pixel are 0: its plain mean
                if weighted:
                    _plain_sums(cube, p0, width, low, high, total)
                if rewinsorized:
                    _rewinsorized_sums(
                        cube, p0, width, frame_weight, sample_weight, place, low, high, clip, unity > 0.0, total, work
                    )
                for j in range(width):
                    counted = n_valid[j] if rewinsor else last[j] - first[j]
                    if counted > 0 and not weight[j] > 0.0:
                        image[p0 + j] = np.float32(total[j] / counted)
        for i in range(n_frames):
            seen[i] += whole
        return lost

    return block


def combine_block(
    cube: np.ndarray,
    start: int,
    stop: int,
    method: int,
    par: np.ndarray,
    critical: np.ndarray,
    rewinsor: bool,
    combine: int,
    uniform: bool,
    frame_weight: np.ndarray,
    sample_weight: np.ndarray,
    sample_step: int,
    maps: Sequence[np.ndarray],
    hits: np.ndarray,
    *,
    kept: tuple[np.ndarray, np.ndarray] = NOWHERE,
) -> int:
    """Reject and combine pixels ``start .. stop - 1``; returns how many had every sample rejected.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
        Samples of P pixels (or pixel-channels) of N frames; NaN and infinity are invalid.
    start, stop : int
        Pixels to do; ``start`` is a multiple of ``LANES``.
    method, combine : int
        From ``METHOD_CODES`` and ``COMBINE_CODES`` of :mod:`zemosaic_recipe`.
    par : ndarray (6,) float64
        From :func:`zemosaic_recipe.method_parameters`.
    critical : ndarray (N + 1,) float64
        From :func:`zemosaic_recipe.gesd_table`; empty for other methods.
    rewinsor : bool
        Replace rejected samples by their clipped values (legacy winsorizing only) instead of dropping them.
    uniform : bool
        All weights are 1.
    frame_weight : ndarray (N, LANES) float64
        Weight of each frame, one column per lane so that channels may differ; lane = pixel mod LANES.
    sample_weight : ndarray (N, P / sample_step) float32, or (0, 0)
        Multiplies the frame weight, where given.
    sample_step : int
        Neighbouring elements that share a sample weight (the channels of a pixel, or 1).
    maps : five ndarrays (P,)
        Filled: the image, float32, ADU; the coverage, int32, valid samples; the sum of the weights that entered the
        mean (the number of samples for other combinations), float32; the samples rejected low and high, int32.
    hits : ndarray (N, 3) int64
        Grows by the samples of each frame rejected low, rejected high, and valid.
    kept : two ndarrays (P,) float32, optional
        Filled with the smallest and the largest value each pixel keeps; crossed where it keeps none.
    """
    with _BUILDING:
        run = _block_kernel(int(method), combine == 0, bool(rewinsor), bool(uniform) and combine == 0)
    rest = (par, critical, combine, frame_weight, sample_weight, sample_step, *maps, hits, *kept)
    if method != 0 or combine != 0 or not uniform or kept is not NOWHERE:
        return int(run(cube, start, stop, *rest))
    lost = 0
    while (at := _mean_strips(cube, start, stop, *maps, hits)) < stop:
        start = min(at + STRIP, stop)
        lost += run(cube, at, start, *rest)
    return int(lost)
