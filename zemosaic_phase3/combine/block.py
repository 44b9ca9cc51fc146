"""A block of pixels from samples to result: loaded, sorted, rejected, combined.

``LANES`` neighbouring pixels are taken at once. Their samples are sorted (:mod:`combine.sorting`), each pixel's window
is found (:mod:`rejection.window`, :mod:`rejection.least_absolute_line`), and the average comes last, over the frames in their
own order, of the samples inside the window's values: it adds ``w * x`` and ``w`` in frame order in float64.

Every combination of methods is a kernel of its own, compiled when it is first used (:func:`_block_kernel`): nobody
waits for the compilation of what they do not use. The cache on disk keeps them apart by the numbers they enclose.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from zemosaic_phase3.combine.average import (
    STRIP,
    mark_kept,
    mean_of_kept,
    mean_strips,
    multiplied_weights,
    rewinsorized_sums,
    sort_rewinsorized,
)
from zemosaic_phase3.combine.frame_sums import sums_of_kept, weighted_sums_of_kept
from zemosaic_phase3.combine.sorting import new_table, sort_block
from zemosaic_phase3.rejection.averaged_sigma import window_averaged_sigma
from zemosaic_phase3.rejection.gesd import window_gesd
from zemosaic_phase3.rejection.kappa_sigma import window_kappa_sigma, window_kappa_sigma_clipped
from zemosaic_phase3.rejection.least_absolute_line import windows_least_absolute
from zemosaic_phase3.rejection.least_squares_line import windows_least_squares
from zemosaic_phase3.rejection.percentile_clip import window_percentile_clip
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.rejection.sigma_clip import windows_sigma_clip
from zemosaic_phase3.rejection.window import median_of
from zemosaic_phase3.rejection.winsorized_huber import windows_pixinsight
from zemosaic_phase3.rejection.winsorized_quantile import window_legacy_quantile
from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import LANES

NOWHERE: Final = (np.empty(0, np.float32), np.empty(0, np.float32))
_BUILDING = threading.Lock()  # a cache lets two threads build what neither has, and then compile it twice


@inner_kernel
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


@inner_kernel
def _fill_block(cube, p0, width, block) -> None:
    """Fill ``block (N, LANES) float32``: pixels ``p0 .. p0 + width - 1``, and zeros behind them."""
    for i in range(cube.shape[0]):
        for j in range(width):
            block[i, j] = cube[i, p0 + j]
        for j in range(width, 96):
            block[i, j] = np.float32(0.0)


@inner_kernel
def _centre(t, n_frames, full, n_valid, centre) -> None:
    """Median of the valid samples of every pixel, float64; 0 where there is none. ``full``: all are valid."""
    if full:
        a, b = t[(n_frames - 1) // 2], t[n_frames // 2]
        for j in range(96):
            centre[j] = 0.5 * (np.float64(a[j]) + np.float64(b[j]))
        return
    for j in range(96):
        n = n_valid[j]
        centre[j] = 0.5 * (np.float64(t[(n - 1) // 2, j]) + np.float64(t[n // 2, j])) if n > 0 else 0.0


@inner_kernel
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


@inner_kernel
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


class _Scratch(NamedTuple):
    """Memory the kernels work in; made outside of them, because compiling what makes an array takes time."""

    table: np.ndarray  # new_table of N samples
    sum1: np.ndarray  # (N + 1, LANES) float64, running sums
    sum2: np.ndarray
    last_block: np.ndarray  # (N, LANES) float32, pixels of a block that is not whole
    products: np.ndarray  # (N, LANES) float64, weights of frames times those of samples; or no rows
    columns: np.ndarray  # (LANES, 64 k) float32; this and the next three for lines of least absolute deviations
    words: np.ndarray  # (k,) int64
    column: np.ndarray  # (N + 8,) float64
    places: np.ndarray  # (N + 8,) int64
    work: np.ndarray  # (12 LANES,) float64
    state: np.ndarray  # (9 LANES,) int64
    limits: np.ndarray  # (4 LANES,) float32
    ranks: np.ndarray  # (4 LANES,) int32
    float64: np.ndarray  # (5 LANES,)
    int64: np.ndarray  # (4 LANES,)
    float32: np.ndarray  # (2 LANES,)


def _scratch(n: int, *, lines: bool, weigh_samples: bool) -> _Scratch:
    """Return the memory for a block of N samples a pixel."""
    words = (n + 63) // 64
    limits = np.full(4 * LANES, np.inf, np.float32)
    limits[2 * LANES : 3 * LANES] = -np.inf
    return _Scratch(
        table=new_table(n),
        sum1=np.empty((n + 1, LANES)),
        sum2=np.empty((n + 1, LANES)),
        last_block=np.empty((n, LANES), np.float32),
        products=np.empty((n if weigh_samples else 0, LANES)),
        columns=np.empty((LANES, 64 * words if lines else 0), np.float32),
        words=np.empty(words, np.int64),
        column=np.empty(n + 8),
        places=np.empty(n + 8, np.int64),
        work=np.zeros(12 * LANES),
        state=np.zeros(9 * LANES, np.int64),
        limits=limits,
        ranks=np.zeros(4 * LANES, np.int32),
        float64=np.zeros(5 * LANES),
        int64=np.zeros(4 * LANES, np.int64),
        float32=np.zeros(2 * LANES, np.float32),
    )


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

    @inner_kernel
    def block(
        cube, start, stop, par, critical, combine, frame_weight, sample_weight, sample_step,
        image, coverage, weight_map, rejected_low, rejected_high, hits, kept_low, kept_high,
        scratch,
    ):  # fmt: skip
        n_frames = cube.shape[0]
        zero = np.int64(0)
        unity = 1.0  # its sign makes True and False one type, and one compilation of what takes them
        t, sum1, sum2, limits, ranks = scratch.table, scratch.sum1, scratch.sum2, scratch.limits, scratch.ranks
        work, state, last_block, products = scratch.work, scratch.state, scratch.last_block, scratch.products
        columns, column, words, places = scratch.columns, scratch.column, scratch.words, scratch.places
        real, whole_numbers, single = scratch.float64, scratch.int64, scratch.float32
        centre, total, weight, clip = real[0:96], real[96:192], real[192:288], real[288:480]
        first, last, n_valid, place = (
            whole_numbers[0:96], whole_numbers[96:192], whole_numbers[192:288], whole_numbers[288:384],
        )  # fmt: skip
        low, high = single[0:96], single[96:192]
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
            source, at = cube, p0
            if width < 96:
                _fill_block(cube, p0, width, last_block)
                source, at = last_block, zero
            if sorts:
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
                _centre(t, n_frames, full, n_valid, centre)
                edge = n_frames
                if sums_of_squares:
                    if full:
                        edge = n_frames // 4 if method == 4 or method == 5 else n_frames
                        prefix_sums(t, n_frames, centre, sum1, sum2, edge)
                    else:
                        _running_sums(t, n_frames, n_valid, centre, sum1, sum2)
                if sums_of_ranks:
                    _running_sums_of_ranks(t.reshape(-1), n_frames, n_valid, centre, sum1.reshape(-1), sum2.reshape(-1))
                    windows_least_squares(t, n_frames, sum1, sum2, centre, first, last, par[0], par[1], work, state)
                if method == 10:
                    windows_least_absolute(
                        t, n_frames, centre, first, last, par[0], par[1], work, state, columns, words, column, places
                    )
                if method == 4:
                    windows_pixinsight(
                        t, n_frames, sum1, sum2, edge, centre, first, last, par[0], par[1], work, state, limits, ranks
                    )
                if method == 5:
                    windows_sigma_clip(
                        t, n_frames, sum1, sum2, edge, centre, first, last, par[0], par[1], work, state, limits, ranks
                    )
                if singly:
                    for j in range(96):
                        n = n_valid[j]
                        f = zero
                        g = n
                        if method == 1 and n >= 3:
                            f, g = window_kappa_sigma(t, sum1, sum2, j, n, par[0], par[1])
                        if method == 2 and n >= 3:
                            f, g = window_kappa_sigma_clipped(t, sum1, sum2, j, n, par[0], par[1])
                        if method == 3:
                            clip[j] = np.nan
                            clip[96 + j] = np.nan
                            if n >= 3:
                                f, g = window_legacy_quantile(
                                    t, sum1, sum2, centre, j, n, par[0], par[1], par[2], par[3], clip
                                )
                        if method == 6 and n >= 3:
                            f, g = window_averaged_sigma(t, sum2, j, n, par[0], par[1])
                        if method == 7 and n >= 2:
                            f, g = window_percentile_clip(t, j, n, par[0], par[1])
                        if method == 8 and n >= 10:
                            f, g = window_gesd(t, sum1, sum2, centre, j, n, par[4], critical)
                        first[j] = f
                        last[j] = g
                mark_kept(t, n_valid, centre, first, last, low, high)
            rejected = zero
            if method != 0:
                for j in range(width):
                    rejected += n_valid[j] - (last[j] - first[j])
            if weighted:
                weights_now = frame_weight
                if sample_weight.shape[0] > 0:
                    multiplied_weights(width, frame_weight, sample_weight, place, products)
                    weights_now = products
                weighted_sums_of_kept(source, at, weights_now, low, high, total, weight, hits, rejected > 0)
            elif sums_and_hits or rejected > 0:
                sums_of_kept(source, at, low, high, total, hits, rejected > 0)
            if rewinsorized:
                rewinsorized_sums(
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
                lost += mean_of_kept(p0, width, n_valid, first, last, centre, total, image, weight_map)
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
                        sort_rewinsorized(t, j, n, first[j], last[j], clip[j], clip[96 + j], column)
                        at = zero if combine == 2 else n - 1
                        middle = 0.5 * (column[(n - 1) // 2] + column[n // 2])
                        image[p] = np.float32(middle if combine == 1 else column[at])
                    elif combine == 1:
                        image[p] = np.float32(median_of(t, j, first[j], last[j]))
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
                    sums_of_kept(source, at, low, high, total, hits, unity < 0.0)
                if rewinsorized:
                    rewinsorized_sums(
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
        From ``METHOD_CODES`` and ``COMBINE_CODES`` of :mod:`combine.kernel_arguments`.
    par : ndarray (6,) float64
        From :func:`combine.kernel_arguments.method_parameters`.
    critical : ndarray (N + 1,) float64
        From :func:`combine.kernel_arguments.gesd_table`; empty for other methods.
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
    hits : ndarray (N, 3) int64, row by row
        Grows by the samples of each frame rejected low, rejected high, and valid.
    kept : two ndarrays (P,) float32, optional
        Filled with the smallest and the largest value each pixel keeps; crossed where it keeps none.
    """
    with _BUILDING:
        run = _block_kernel(int(method), combine == 0, bool(rewinsor), bool(uniform) and combine == 0)
    weights = np.ascontiguousarray(frame_weight)
    scratch = _scratch(len(cube), lines=method == 10, weigh_samples=sample_weight.size > 0)
    rest = (par, critical, combine, weights, sample_weight, sample_step, *maps, hits, *kept, scratch)
    if method != 0 or combine != 0 or not uniform or kept is not NOWHERE:
        return int(run(cube, start, stop, *rest))
    lost, total = 0, np.empty(STRIP)
    while (at := mean_strips(cube, start, stop, total, *maps, hits)) < stop:
        start = min(at + STRIP, stop)
        lost += run(cube, at, start, *rest)
    return int(lost)
