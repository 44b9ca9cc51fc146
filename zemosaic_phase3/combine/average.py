"""From the samples that a block of pixels keeps to its image: means, and samples of a rank.

Every way to do it is a kernel of the same signature, of which :mod:`combine.block` takes the one that is asked for::

    average(source, at, p0, width, samples, weights, lanes, maps, counts, n_rejected, halves) -> pixels without a sample

``source (N, ...) float32`` holds the samples of the block's pixels from column ``at`` on, ``LANES`` of them, of which
``width`` are pixels of the image, from ``p0`` on. ``counts (N, 3) int64`` grows by the samples of each frame that are
rejected low and high, where any is (``n_rejected``). ``halves`` is the rank that is taken, see
:class:`methods.Combination`. Filled are ``maps.image`` and ``maps.weight``; returned is how many pixels have valid
samples and keep none, which take their median.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.combine.frame_sums import sums_of_kept, weighted_sums_of_kept
from zemosaic_phase3.rejection.judge import Samples
from zemosaic_phase3.rejection.window import clipped
from zemosaic_phase3.runtime.jit import compiled_once, inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES

STRIP: Final = 1536  # pixels averaged at once where nothing is rejected: long runs of a frame


class Weights(NamedTuple):
    """What the samples weigh."""

    frame: np.ndarray  # (N, LANES) float64: each frame's, a column for every lane
    sample: np.ndarray  # (N, P / step) float32, multiplied by that of the frame; or (0, 0)
    step: int  # neighbouring elements that share a sample's weight


class Maps(NamedTuple):
    """What is known of the pixels in the end, ``(P,)`` each."""

    image: np.ndarray  # float32, ADU
    coverage: np.ndarray  # int32: valid samples
    weight: np.ndarray  # float32: sum of the weights of the mean, or number of samples
    rejected_low: np.ndarray  # int32
    rejected_high: np.ndarray
    kept_low: np.ndarray  # float32, ADU: the smallest and the largest value that is kept; or (0,)
    kept_high: np.ndarray


class Lanes(NamedTuple):
    """What is found of the block at hand, by lane, and memory to find it in."""

    low: np.ndarray  # (LANES,) float32: smallest and largest value that is kept; crossed if there is none
    high: np.ndarray
    total: np.ndarray  # (LANES,) float64
    weight: np.ndarray
    unused: np.ndarray
    place: np.ndarray  # (LANES,) int64: where the weights of the samples are
    products: np.ndarray  # (N, LANES) float64: weights of frames times those of samples; or no rows
    part: np.ndarray  # (N, LANES) float32: pixels of a block that is not whole
    ordered: np.ndarray  # (N or more,) float64: the samples of a pixel


@inner_kernel
def mean_strips(
    cube: np.ndarray, start: int, stop: int, total: np.ndarray, image: np.ndarray, coverage: np.ndarray,
    weight_map: np.ndarray, rejected_low: np.ndarray, rejected_high: np.ndarray, counts: np.ndarray,
) -> int:  # fmt: skip
    """Average pixels over all frames, in their order, strip by strip; returns the first pixel that was not done.

    That is ``stop``, or the start of a strip in which a sample is not finite. ``total (STRIP,) float64`` is scratch.
    """
    n = cube.shape[0]
    rows = n // 4 * 4
    for p0 in range(start, stop, STRIP):
        size = min(stop - p0, STRIP)
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
            counts[i, 2] += size
    return stop


@inlined
def _crossed(t: np.ndarray, j: int, n: int, centre: float, low: np.ndarray, high: np.ndarray) -> int:
    """Mark a pixel that keeps no sample: below ``low`` lies what was rejected low, the rest was rejected high.

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


@inlined
def mark_kept(samples: Samples, lanes: Lanes) -> None:
    """Fill the smallest and largest value each pixel keeps, ``lanes.low`` and ``high``; see :func:`_crossed`."""
    t, first, last, low, high = samples.table, samples.first, samples.last, lanes.low, lanes.high
    for j in range(LANES):
        if last[j] > first[j]:
            low[j] = t[first[j], j]
            high[j] = t[last[j] - 1, j]
        else:
            first[j] = _crossed(t, j, samples.n_valid[j], samples.centre[j], low, high)
            last[j] = first[j]


@inner_kernel
def plain_mean(
    source: np.ndarray, at: int, p0: int, width: int, samples: Samples, weights: Weights, lanes: Lanes, maps: Maps,
    counts: np.ndarray, n_rejected: int, halves: int,
) -> int:  # fmt: skip
    """Take the mean of what is kept, all weights 1."""
    sums_of_kept(source, at, lanes.low, lanes.high, lanes.total, counts, n_rejected > 0)
    first, last, n_valid, total = samples.first, samples.last, samples.n_valid, lanes.total
    n_empty = 0
    for j in range(width):
        kept = last[j] - first[j]
        n_empty += 1 if kept == 0 and n_valid[j] > 0 else 0
        without = samples.centre[j] if n_valid[j] > 0 else np.nan
        maps.image[p0 + j] = np.float32(total[j] / np.float64(kept) if kept > 0 else without)
        maps.weight[p0 + j] = np.float32(kept)
    return n_empty


@inlined
def _find_places(p0: int, step: int, place: np.ndarray) -> None:
    for j in range(LANES):
        place[j] = (p0 + j) // step


@inlined
def _multiply_weights(p0: int, width: int, weights: Weights, lanes: Lanes) -> None:
    """Fill ``lanes.products``: each frame's weight times what its sample weighs."""
    _find_places(p0, weights.step, lanes.place)
    place = lanes.place
    for i in range(weights.frame.shape[0]):
        w = weights.frame[i]
        r = weights.sample[i]
        out = lanes.products[i]
        for j in range(width):
            out[j] = w[j] * np.float64(r[place[j]])


@inlined
def _divide_by_weights(
    p0: int, width: int, replaced: bool, samples: Samples, lanes: Lanes, maps: Maps
) -> tuple[int, bool]:
    """Fill image and weights from the sums; with rejected samples ``replaced`` all valid ones count.

    Returns how many pixels keep no sample, and whether there is one whose samples all weigh 0.
    """
    first, last, n_valid, total, weight = samples.first, samples.last, samples.n_valid, lanes.total, lanes.weight
    n_empty = 0
    unweighted = False
    for j in range(width):
        n = n_valid[j]
        kept = last[j] - first[j]
        counted = n if replaced else kept
        p = p0 + j
        maps.weight[p] = np.float32(counted)
        if n == 0:
            maps.image[p] = np.float32(np.nan)
            continue
        n_empty += 1 if kept == 0 else 0
        if counted == 0:
            maps.image[p] = np.float32(samples.centre[j])
        else:
            maps.weight[p] = np.float32(weight[j])
            unweighted = unweighted or not weight[j] > 0.0
            maps.image[p] = np.float32(total[j] / weight[j]) if weight[j] > 0.0 else np.float32(0.0)
    return n_empty, unweighted


@inlined
def _divide_unweighted(p0: int, width: int, replaced: bool, samples: Samples, lanes: Lanes, maps: Maps) -> None:
    """Fill the image of pixels whose samples all weigh 0 with their plain mean."""
    for j in range(width):
        counted = samples.n_valid[j] if replaced else samples.last[j] - samples.first[j]
        if counted > 0 and not lanes.weight[j] > 0.0:
            maps.image[p0 + j] = np.float32(lanes.total[j] / counted)


@compiled_once
@inner_kernel
def weighted_mean(
    source: np.ndarray, at: int, p0: int, width: int, samples: Samples, weights: Weights, lanes: Lanes, maps: Maps,
    counts: np.ndarray, n_rejected: int, halves: int,
) -> int:  # fmt: skip
    """Take the weighted mean of what is kept; the plain one where all weights are 0."""
    low, high, total = lanes.low, lanes.high, lanes.total
    its = weights.frame
    if weights.sample.shape[0] > 0:
        _multiply_weights(p0, width, weights, lanes)
        its = lanes.products
    weighted_sums_of_kept(source, at, its, low, high, total, lanes.weight, counts, n_rejected > 0)
    n_empty, unweighted = _divide_by_weights(p0, width, False, samples, lanes, maps)
    if unweighted:
        sums_of_kept(source, at, low, high, total, counts, n_rejected < 0)  # what is rejected has been counted
        _divide_unweighted(p0, width, False, samples, lanes, maps)
    return n_empty


@inlined
def _sum_replaced(
    source: np.ndarray, at: int, p0: int, width: int, plain: bool, samples: Samples, weights: Weights, lanes: Lanes,
    total: np.ndarray, weight: np.ndarray,
) -> None:  # fmt: skip
    """Sum with rejected samples counting with their clipped values; weights are 1 if ``plain``."""
    clip, low, high, place = samples.clip, lanes.low, lanes.high, lanes.place
    per_sample = weights.sample.shape[0] > 0
    if per_sample:
        _find_places(p0, weights.step, place)
    for j in range(LANES):
        total[j] = 0.0
        weight[j] = 0.0
    for i in range(source.shape[0]):
        s = source[i, at : at + width]
        w = weights.frame[i]
        for j in range(width):
            x = np.float64(s[j])
            if x - x != 0.0:
                continue
            if s[j] < low[j] or s[j] > high[j]:
                x = clipped(x, clip[j], clip[LANES + j])
            wj = 1.0 if plain else w[j]
            if per_sample and not plain:
                wj = wj * np.float64(weights.sample[i, place[j]])
            total[j] += wj * x
            weight[j] += wj


@inner_kernel
def replaced_mean(
    source: np.ndarray, at: int, p0: int, width: int, samples: Samples, weights: Weights, lanes: Lanes, maps: Maps,
    counts: np.ndarray, n_rejected: int, halves: int,
) -> int:  # fmt: skip
    """Take the weighted mean of all valid samples, rejected ones replaced; the plain one where all weights are 0."""
    total, weight = lanes.total, lanes.weight
    if n_rejected > 0:
        sums_of_kept(source, at, lanes.low, lanes.high, total, counts, n_rejected > 0)  # for the counts
    _sum_replaced(source, at, p0, width, n_rejected < 0, samples, weights, lanes, total, weight)
    n_empty, unweighted = _divide_by_weights(p0, width, True, samples, lanes, maps)
    if unweighted:
        _sum_replaced(source, at, p0, width, n_rejected >= 0, samples, weights, lanes, total, lanes.unused)
        _divide_unweighted(p0, width, True, samples, lanes, maps)
    return n_empty


@inner_kernel
def sample_of_rank(
    source: np.ndarray, at: int, p0: int, width: int, samples: Samples, weights: Weights, lanes: Lanes, maps: Maps,
    counts: np.ndarray, n_rejected: int, halves: int,
) -> int:  # fmt: skip
    """Take the middle, the lowest or the highest sample of what is kept."""
    if n_rejected > 0:
        sums_of_kept(source, at, lanes.low, lanes.high, lanes.total, counts, n_rejected > 0)  # for the counts
    t, first = samples.table, samples.first
    n_empty = 0
    for j in range(width):
        p = p0 + j
        kept = samples.last[j] - first[j]
        maps.weight[p] = np.float32(kept)
        if samples.n_valid[j] == 0:
            maps.image[p] = np.float32(np.nan)
        elif kept == 0:
            n_empty += 1
            maps.image[p] = np.float32(samples.centre[j])
        else:
            rank = halves * (kept - 1)
            below, above = np.float64(t[first[j] + rank // 2, j]), np.float64(t[first[j] + (rank + 1) // 2, j])
            maps.image[p] = np.float32(0.5 * (below + above))
    return n_empty


@inlined
def _sort_replaced(samples: Samples, j: int, ordered: np.ndarray) -> None:
    """Fill ``ordered (n,)``: the samples with the rejected ones replaced by their clipped values, sorted again."""
    t, clip = samples.table, samples.clip
    for i in range(samples.n_valid[j]):
        x = np.float64(t[i, j])
        if i < samples.first[j] or i >= samples.last[j]:
            x = clipped(x, clip[j], clip[LANES + j])
        k = i
        while k > 0 and ordered[k - 1] > x:
            ordered[k] = ordered[k - 1]
            k -= 1
        ordered[k] = x


@inner_kernel
def replaced_of_rank(
    source: np.ndarray, at: int, p0: int, width: int, samples: Samples, weights: Weights, lanes: Lanes, maps: Maps,
    counts: np.ndarray, n_rejected: int, halves: int,
) -> int:  # fmt: skip
    """Take the middle, the lowest or the highest of all valid samples, rejected ones replaced."""
    if n_rejected > 0:
        sums_of_kept(source, at, lanes.low, lanes.high, lanes.total, counts, n_rejected > 0)  # for the counts
    ordered = lanes.ordered
    n_empty = 0
    for j in range(width):
        p = p0 + j
        n = samples.n_valid[j]
        maps.weight[p] = np.float32(n)
        if n == 0:
            maps.image[p] = np.float32(np.nan)
            continue
        n_empty += 1 if samples.last[j] == samples.first[j] else 0
        _sort_replaced(samples, j, ordered)
        rank = halves * (n - 1)
        maps.image[p] = np.float32(0.5 * (ordered[rank // 2] + ordered[(rank + 1) // 2]))
    return n_empty
