"""A block of pixels from samples to result: loaded and sorted, judged, marked, averaged.

``LANES`` neighbouring pixels are taken at once. Their samples are sorted (:mod:`combine.sorting`), the judge of the
rejection finds each pixel's window of ranks (:mod:`rejection.judge`), and the average comes last
(:mod:`combine.average`), over the frames in their own order, of the samples inside the window's values: it adds ``w *
x`` and ``w`` in float64.

Every combination of methods is a kernel of its own, compiled when it is first used: nobody waits for the compilation of
what they do not use. :func:`_block` is the text of them all, and which judge, sums and average its names mean is bound
when a kernel is made of it (:func:`_block_kernel`). The cache on disk keeps the kernels apart by their names.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from zemosaic_phase3.combine.average import (
    STRIP,
    Lanes,
    Maps,
    Weights,
    mark_kept,
    mean_strips,
    plain_mean,
    replaced_mean,
    replaced_of_rank,
    sample_of_rank,
    weighted_mean,
)
from zemosaic_phase3.combine.kernel_arguments import KernelArguments
from zemosaic_phase3.combine.sorting import new_table, sort_block
from zemosaic_phase3.methods import COMBINATIONS, KERNELS, Rejection
from zemosaic_phase3.rejection.judge import (
    Limits,
    Samples,
    Scratch,
    fill_nothing,
    fill_ranks,
    fill_squares,
    judge_of,
    new_limits,
    new_samples,
    new_scratch,
    spare,
)
from zemosaic_phase3.runtime.jit import inlined, kernel_with
from zemosaic_phase3.runtime.lanes import LANES

NOWHERE: Final = (np.empty(0, np.float32), np.empty(0, np.float32))
NO_TOLERANCE: Final = np.empty(0, np.float32)
LARGEST: Final = np.finfo(np.float32).max
_BUILDING = threading.Lock()  # a cache lets two threads build what neither has, and then compile it twice

# The parts of :func:`_block`, as they are for a plain mean of all samples; other kernels are bound to others. Branches
# on the constants are decided, and pruned, before anything is compiled.
REJECTS: bool = False  # there is a method
SORTS: bool = False  # it, or the combination, needs sorted samples
BY_MIDDLE: bool = False  # only a sample of some rank is asked for: the middle is found without sorting to the end
IN_LOCKSTEP: bool = False  # the judge takes all lanes at once
SPARES: bool = False  # samples within a pixel's tolerance are kept, whatever the judge says
FEWEST: int = 1  # valid samples of a pixel that can be judged
fill_sums: Any = fill_nothing  # what the judge needs
judge: Any = None
average: Any = plain_mean


@inlined
def _count_valid(source: np.ndarray, at: int, width: int, n_valid: np.ndarray, counts: np.ndarray) -> None:
    """Count the valid samples of ``width`` pixels, ``n_valid (LANES,) int64``; pixels behind them count as valid.

    ``counts[:, 2]`` grows by those of each frame.
    """
    n_frames = source.shape[0]
    for j in range(LANES):
        n_valid[j] = n_frames
    for i in range(n_frames):
        s = source[i, at : at + width]
        invalid = np.int32(0)
        for j in range(width):
            invalid += np.int32(0) if s[j] - s[j] == np.float32(0.0) else np.int32(1)  # NaN and infinity
        counts[i, 2] += width - invalid
        if invalid > 0:
            for j in range(width):
                n_valid[j] -= 0 if s[j] - s[j] == np.float32(0.0) else 1


@inlined
def _copy_part(cube: np.ndarray, p0: int, width: int, part: np.ndarray) -> None:
    """Fill ``part (N, LANES) float32``: pixels ``p0 .. p0 + width - 1``, and zeros behind them."""
    for i in range(cube.shape[0]):
        for j in range(width):
            part[i, j] = cube[i, p0 + j]
        for j in range(width, LANES):
            part[i, j] = np.float32(0.0)


@inlined
def _keep_all(middle_known: bool, samples: Samples, lanes: Lanes) -> None:
    """Open the windows of all valid samples; the median is the mean of ``lanes.low`` and ``high`` if it is known."""
    centre, first, last, low, high = samples.centre, samples.first, samples.last, lanes.low, lanes.high
    for j in range(LANES):
        centre[j] = 0.5 * (np.float64(low[j]) + np.float64(high[j])) if middle_known else 0.0
        first[j] = 0
        last[j] = samples.n_valid[j]
        low[j] = -LARGEST
        high[j] = LARGEST


@inlined
def _find_centres(full: bool, samples: Samples) -> None:
    """Fill the median of the valid samples of every pixel; 0 where there is none. ``full``: all are valid."""
    t, n_frames, n_valid, centre = samples.table, samples.n_frames, samples.n_valid, samples.centre
    if full:
        a, b = t[(n_frames - 1) // 2], t[n_frames // 2]
        for j in range(LANES):
            centre[j] = 0.5 * (np.float64(a[j]) + np.float64(b[j]))
        return
    for j in range(LANES):
        n = n_valid[j]
        centre[j] = 0.5 * (np.float64(t[(n - 1) // 2, j]) + np.float64(t[n // 2, j])) if n > 0 else 0.0


@inlined
def _write_maps(p0: int, width: int, samples: Samples, lanes: Lanes, maps: Maps) -> None:
    """Fill what the windows say of each pixel."""
    for j in range(width):
        maps.coverage[p0 + j] = samples.n_valid[j]
        maps.rejected_low[p0 + j] = samples.first[j]
        maps.rejected_high[p0 + j] = samples.n_valid[j] - samples.last[j]
    if maps.kept_low.size > 0:
        for j in range(width):
            maps.kept_low[p0 + j] = lanes.low[j]
            maps.kept_high[p0 + j] = lanes.high[j]


def _block(
    cube: np.ndarray, start: int, stop: int, limits: Limits, halves: int, weights: Weights, maps: Maps,
    counts: np.ndarray, samples: Samples, lanes: Lanes, scratch: Scratch, tolerance: np.ndarray,
) -> int:  # fmt: skip
    """Reject and combine pixels ``start .. stop - 1``; see :func:`combine_block`."""
    n_frames, n_valid, first, last = cube.shape[0], samples.n_valid, samples.first, samples.last
    zero = 0
    n_empty = zero
    n_whole = zero  # pixels of the blocks in which all samples are valid
    for p0 in range(start, stop, LANES):
        width = min(LANES, stop - p0)
        source, at = cube, p0
        if width < LANES:
            _copy_part(cube, p0, width, lanes.part)
            source, at = lanes.part, zero
        full = False
        middle_known = False
        if SORTS:
            full, middle_known = sort_block(source, at, samples.table, BY_MIDDLE and halves == 1, lanes.low, lanes.high)
        if full:
            n_whole += width
            for j in range(LANES):
                n_valid[j] = n_frames
        else:
            _count_valid(source, at, width, n_valid, counts)
        _keep_all(middle_known, samples, lanes)
        n_rejected = zero
        if REJECTS:
            _find_centres(full, samples)
            filled = fill_sums(samples, full, n_frames // 4 if IN_LOCKSTEP else n_frames)
            if IN_LOCKSTEP:
                judge(samples, limits, scratch, filled)
            else:
                for j in range(LANES):
                    if n_valid[j] >= FEWEST:
                        first[j], last[j] = judge(samples, limits, j)
            if SPARES:
                spare(samples, tolerance, p0, width)
            mark_kept(samples, lanes)
            for j in range(width):
                n_rejected += n_valid[j] - (last[j] - first[j])
        _write_maps(p0, width, samples, lanes, maps)
        if middle_known:
            for j in range(width):
                maps.weight[p0 + j] = np.float32(n_frames)
                maps.image[p0 + j] = np.float32(samples.centre[j])
        else:
            n_empty += average(source, at, p0, width, samples, weights, lanes, maps, counts, n_rejected, halves)
    for i in range(n_frames):
        counts[i, 2] += n_whole
    return n_empty


def _average(by_mean: bool, rewinsor: bool, uniform: bool) -> Any:
    if rewinsor:
        return replaced_mean if by_mean else replaced_of_rank
    if by_mean:
        return plain_mean if uniform else weighted_mean
    return sample_of_rank


def _sums(rejection: Rejection) -> Any:
    if "squares" in rejection.needs:
        return fill_squares
    return fill_ranks if "ranks" in rejection.needs else fill_nothing


@lru_cache(maxsize=64)
def _block_kernel(method: str, by_mean: bool, rewinsor: bool, uniform: bool, spares: bool) -> Any:
    """Return the kernel that rejects by ``method`` and then averages, or takes a sample; see :func:`combine_block`."""
    rejection, rejects, combine = KERNELS[method], method != "none", _average(by_mean, rewinsor, uniform)
    method_judge, in_lockstep = judge_of(rejection) if rejects else (None, False)
    return kernel_with(
        _block,
        f"block.{method}.{combine.__name__}{'.sparing' if spares else ''}",
        REJECTS=rejects,
        SORTS=rejects or not by_mean,
        BY_MIDDLE=not rejects and not by_mean,
        IN_LOCKSTEP=in_lockstep,
        SPARES=spares,
        FEWEST=rejection.fewest,
        fill_sums=_sums(rejection),
        judge=method_judge,
        average=combine,
    )


def _lanes(n_frames: int, scratch: Scratch, *, weigh_samples: bool) -> Lanes:
    return Lanes(
        low=np.zeros(LANES, np.float32),
        high=np.zeros(LANES, np.float32),
        total=np.zeros(LANES),
        weight=np.zeros(LANES),
        unused=np.zeros(LANES),
        place=np.zeros(LANES, np.int64),
        products=np.empty((n_frames if weigh_samples else 0, LANES)),
        part=np.empty((n_frames, LANES), np.float32),
        ordered=scratch.slopes,  # no judge is at work while samples are averaged
    )


def combine_block(
    cube: np.ndarray,
    start: int,
    stop: int,
    arguments: KernelArguments,
    frame_weight: np.ndarray,
    sample_weight: np.ndarray,
    sample_step: int,
    maps: Sequence[np.ndarray],
    counts: np.ndarray,
    *,
    kept: tuple[np.ndarray, np.ndarray] = NOWHERE,
    tolerance: np.ndarray = NO_TOLERANCE,
) -> int:
    """Reject and combine pixels ``start .. stop - 1``; returns how many had every sample rejected.

    Parameters
    ----------
    cube : ndarray (N, P) float32, ADU
        Samples of P pixels (or pixel-channels) of N frames; NaN and infinities are invalid.
    start, stop : int
        Pixels to do; ``start`` is a multiple of ``LANES``.
    arguments : KernelArguments
        How to reject and combine.
    frame_weight : ndarray (N, LANES) float64
        Weight of each frame, one column per lane so that channels may differ; lane = pixel mod LANES.
    sample_weight : ndarray (N, P / sample_step) float32, or (0, 0)
        Multiplies the frame weight, where given.
    sample_step : int
        Neighbouring elements that share a sample weight (the channels of a pixel, or 1).
    maps : five ndarrays (P,)
        Filled: the image, float32, ADU; the coverage, int32, valid samples; the sum of the weights that entered the
        mean (the number of samples for other combinations), float32; the samples rejected low and high, int32.
    counts : ndarray (N, 3) int64, row by row
        Grows by the samples of each frame rejected low, rejected high, and valid.
    kept : two ndarrays (P,) float32, optional
        Filled with the smallest and the largest value each pixel keeps; crossed where it keeps none.
    tolerance : ndarray (P,) float32, ADU, optional
        Samples no farther from the median of their pixel's are kept in any case; 0 and NaN change nothing.
    """
    rejection, combination = KERNELS[arguments.method], COMBINATIONS[arguments.combine]
    uniform = arguments.uniform and combination.is_mean
    spares = tolerance.size > 0 and arguments.may_spare
    with _BUILDING:
        run = _block_kernel(arguments.method, combination.is_mean, arguments.rewinsor, uniform, spares)
    n_frames = len(cube)
    image, coverage, weight, rejected_low, rejected_high = maps
    scratch = new_scratch(n_frames, columns="columns" in rejection.needs)
    rest = (
        new_limits(arguments.parameters, arguments.critical),
        combination.halves or 0,
        Weights(np.ascontiguousarray(frame_weight), sample_weight, sample_step),
        Maps(image, coverage, weight, rejected_low, rejected_high, kept[0], kept[1]),
        counts,
        new_samples(new_table(n_frames), n_frames),
        _lanes(n_frames, scratch, weigh_samples=sample_weight.size > 0),
        scratch,
        tolerance,
    )
    if arguments.method != "none" or not uniform or kept is not NOWHERE:
        return int(run(cube, start, stop, *rest))
    n_empty, total = 0, np.empty(STRIP)
    while (at := mean_strips(cube, start, stop, total, *maps, counts)) < stop:
        start = min(at + STRIP, stop)
        n_empty += run(cube, at, start, *rest)
    return int(n_empty)
