"""How a rejection is asked, and what it answers: the same for every method.

A method is a file ``rejection/NAME.py`` with one or both of

``judge(samples, limits, j) -> (first, last)``
    The definition. What pixel ``j`` keeps of its sorted samples: ranks ``first .. last - 1``. It is called for pixels
    with at least as many valid samples as the table of methods says (``fewest``).
``judge_block(samples, limits, scratch, filled) -> None``
    The same for all ``LANES`` pixels in lockstep, where that is faster: it narrows ``samples.first`` and
    ``samples.last``, in which all valid samples are kept at first, pixels with too few of them included. Of the prefix
    sums only rows ``0 .. filled`` and ``n_frames - filled .. n_frames`` are filled; a method that reads rows of squares
    farther inside calls :func:`rejection.prefix_sums.prefix_sums` before. Where there is a ``judge_block`` it is used,
    and ``judge`` is what the tests compare it with.

Both are ``inner_kernel``s. The CUDA text ``rejection/NAME.cu`` holds ``judge_NAME(samples, limits)``, the twin of
``judge``, with the same float operations in the same order (``rejection/judge.cu``). :mod:`combine.block` and
:mod:`combine.cuda` find both by the name in the table (:mod:`zemosaic_phase3.methods`); nothing else knows them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zemosaic_phase3.methods import Rejection
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.runtime.jit import inlined, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES


class Samples(NamedTuple):
    """The sorted samples of a block of ``LANES`` pixels, what is known of them, and the window that is kept."""

    table: np.ndarray  # (rows, LANES) float32, ADU: of each pixel the valid samples, ascending, and the largest number
    n_frames: int  # rows of the table that hold samples
    n_valid: np.ndarray  # (LANES,) int64
    centre: np.ndarray  # (LANES,) float64, ADU: median of the valid samples
    sum1: np.ndarray  # (n_frames + 1, LANES) float64, prefix sums of d = x - centre: see fill_squares, fill_ranks
    sum2: np.ndarray  # the same of d * d, or of rank * d
    first: np.ndarray  # (LANES,) int64: ranks first .. last - 1 are kept
    last: np.ndarray
    clip: np.ndarray  # (2 LANES,) float64, ADU: low and high value that rejected samples are replaced by, if they are


class Limits(NamedTuple):
    """What a rejection is asked with."""

    low: float  # units of the method
    high: float
    winsor_low: float  # fractions
    winsor_high: float
    gesd_fraction: float
    critical: np.ndarray  # (n_frames + 1,) float64 by the number of samples that remain, for GESD; else empty


class Scratch(NamedTuple):
    """Memory that a ``judge_block`` may use as it likes, but for what is said of ``bounds``.

    It is made outside of the kernels, because compiling what makes an array takes time.
    """

    numbers: np.ndarray  # (12 LANES,) float64
    counters: np.ndarray  # (9 LANES,) int64
    bounds: np.ndarray  # (4 LANES,) float32; the upper half is -inf, inf at first, and is as its judge leaves it
    ranks: np.ndarray  # (4 LANES,) int32
    columns: np.ndarray  # (LANES, 64 k) float32, k = n_frames / 64 rounded up; no columns where they are not needed
    masks: np.ndarray  # (k,) int64, a bit for each rank
    slopes: np.ndarray  # (n_frames + 8,) float64
    places: np.ndarray  # (n_frames + 8,) int64


def new_scratch(n_frames: int, *, columns: bool) -> Scratch:
    """Return memory for judges of ``n_frames`` samples a pixel, with ``columns`` or without."""
    masks = (n_frames + 63) // 64
    bounds = np.full(4 * LANES, np.inf, np.float32)
    bounds[2 * LANES : 3 * LANES] = -np.inf
    return Scratch(
        numbers=np.zeros(12 * LANES),
        counters=np.zeros(9 * LANES, np.int64),
        bounds=bounds,
        ranks=np.zeros(4 * LANES, np.int32),
        columns=np.empty((LANES, 64 * masks if columns else 0), np.float32),
        masks=np.empty(masks, np.int64),
        slopes=np.empty(n_frames + 8),
        places=np.empty(n_frames + 8, np.int64),
    )


def new_samples(table: np.ndarray, n_frames: int) -> Samples:
    """Return what is known of a table of samples before anything is: nothing.

    ``table (rows, LANES) float32`` has ``n_frames`` rows of samples or more.
    """
    return Samples(
        table=table,
        n_frames=n_frames,
        n_valid=np.zeros(LANES, np.int64),
        centre=np.zeros(LANES),
        sum1=np.empty((n_frames + 1, LANES)),
        sum2=np.empty((n_frames + 1, LANES)),
        first=np.zeros(LANES, np.int64),
        last=np.zeros(LANES, np.int64),
        clip=np.zeros(2 * LANES),
    )


def new_limits(parameters: np.ndarray, critical: np.ndarray) -> Limits:
    """Return the limits of a rejection from its numbers, see :class:`combine.kernel_arguments.KernelArguments`."""
    low, high, winsor_low, winsor_high, fraction = (float(number) for number in parameters[:5])
    return Limits(low, high, winsor_low, winsor_high, fraction, critical)


def judge_of(rejection: Rejection) -> tuple[Callable[..., Any], bool]:
    """Return a method's kernel, and whether it is a ``judge_block``; only that method's file is imported."""
    method = importlib.import_module(f"zemosaic_phase3.rejection.{rejection.kernel}")
    in_lockstep = hasattr(method, "judge_block")
    return (method.judge_block if in_lockstep else method.judge), in_lockstep


def compile_judge(rejection: Rejection) -> None:
    """Compile a method's ``judge_block``, if it has one, by itself: for a block in which nothing is to be judged.

    It takes longest of what a kernel is made of, and is needed last: in a first run another process finds it in the
    cache, see :mod:`engine.warmup`.
    """
    judge, in_lockstep = (None, False) if rejection.kernel == "none" else judge_of(rejection)
    if judge is not None and in_lockstep:
        samples = new_samples(np.zeros((1, LANES), np.float32), 1)
        limits = Limits(3.0, 3.0, 0.0, 0.0, 0.0, no_critical_values())
        judge(samples, limits, new_scratch(1, columns=True), np.int64(1))


def no_critical_values() -> np.ndarray:
    """Return what stands for the table of GESD in other methods: read-only like it, so that types are the same."""
    nothing = np.empty(0)
    nothing.flags.writeable = False
    return nothing


@inlined
def spare(samples: Samples, tolerance: np.ndarray, p0: int, width: int) -> None:
    """Widen the windows to all samples within ``tolerance (P,) float32``, ADU, of the median of their pixel.

    What a judge does not know: by how much the frames may differ there for good reason, because seeing changes what a
    slope or a peak looks like; see :mod:`engine.star_tolerance`. A window that is empty grows from the median; one
    whose pixel has the tolerance 0 or NaN stays as it is. Pixels ``p0 .. p0 + width - 1`` are those of the block.
    """
    t, n_valid, centre, first, last = samples.table, samples.n_valid, samples.centre, samples.first, samples.last
    for j in range(width):
        allowed = np.float64(tolerance[p0 + j])
        n = n_valid[j]
        if not allowed > 0.0 or last[j] - first[j] == n:
            continue
        f = first[j]
        g = last[j]
        if g <= f:
            f = 0
            while np.float64(t[f, j]) < centre[j]:
                f += 1
            g = f
        while f > 0 and centre[j] - np.float64(t[f - 1, j]) <= allowed:
            f -= 1
        while g < n and np.float64(t[g, j]) - centre[j] <= allowed:
            g += 1
        first[j] = f
        last[j] = g


@inlined
def fill_nothing(samples: Samples, full: bool, depth: int) -> int:
    """Fill no sums."""
    return depth


@inlined
def fill_squares(samples: Samples, full: bool, depth: int) -> int:
    """Fill prefix sums of ``d = x - centre`` and of ``d * d``.

    They start at rank ``n_frames // 2`` and grow outward, so that ``sum[last] - sum[first]`` adds ranks first .. last -
    1. Only valid samples are added. Returns the rows that are filled from either end: at least ``depth``, and all of
    them where not all samples are valid (``full``).
    """
    n_frames = samples.n_frames
    if full:
        prefix_sums(samples.table, n_frames, samples.centre, samples.sum1, samples.sum2, depth)
        return depth
    t, n_valid, centre, sum1, sum2 = samples.table, samples.n_valid, samples.centre, samples.sum1, samples.sum2
    middle = n_frames // 2
    for j in range(LANES):
        sum1[middle, j] = 0.0
        sum2[middle, j] = 0.0
    for i in range(middle, n_frames):
        for j in range(LANES):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i + 1, j] = sum1[i, j] + d
            sum2[i + 1, j] = sum2[i, j] + d * d
    for i in range(middle - 1, -1, -1):
        for j in range(LANES):
            d = np.float64(t[i, j]) - centre[j] if i < n_valid[j] else 0.0
            sum1[i, j] = sum1[i + 1, j] - d
            sum2[i, j] = sum2[i + 1, j] - d * d
    return n_frames


@inner_kernel
def fill_ranks(samples: Samples, full: bool, depth: int) -> int:
    """Fill prefix sums of d and of ``rank * d``, in the same order, all rows of them."""
    n_frames, n_valid, centre = samples.n_frames, samples.n_valid, samples.centre
    flat, sum1, sum2 = samples.table.reshape(-1), samples.sum1.reshape(-1), samples.sum2.reshape(-1)
    middle = n_frames // 2
    for j in range(LANES):
        sum1[middle * LANES + j] = 0.0
        sum2[middle * LANES + j] = 0.0
    for i in range(middle, n_frames):
        x = flat[i * LANES : (i + 1) * LANES]
        a = sum1[i * LANES : (i + 2) * LANES]
        b = sum2[i * LANES : (i + 2) * LANES]
        rank = np.float64(i)
        for j in range(LANES):
            d = np.float64(x[j]) - centre[j] if i < n_valid[j] else 0.0
            a[LANES + j] = a[j] + d
            b[LANES + j] = b[j] + rank * d
    for i in range(middle - 1, -1, -1):
        x = flat[i * LANES : (i + 1) * LANES]
        a = sum1[i * LANES : (i + 2) * LANES]
        b = sum2[i * LANES : (i + 2) * LANES]
        rank = np.float64(i)
        for j in range(LANES):
            d = np.float64(x[j]) - centre[j] if i < n_valid[j] else 0.0
            a[j] = a[LANES + j] - d
            b[j] = b[LANES + j] - rank * d
    return n_frames
