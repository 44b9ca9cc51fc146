"""Steps of a rejection that many lanes take at once, in vector registers.

How many samples of every lane lie outside its limits, row by row from either end of the sorted table; and one step of
Huber's winsorizing, for the lanes of a list, 8 at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.jit import compiled_once, inner_kernel
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import (
    BOOL,
    F64,
    I32,
    I64,
    Array,
    Emitter,
    Value,
    Variable,
    absolute,
    any_of,
    bit_mask,
    maximum,
    minimum,
    sqrt,
    where,
)
from zemosaic_phase3.runtime.twin import Flag, Int, hand_written

PART: Final = 8  # lanes of the list per instruction


def _plain_count_outside(
    t: np.ndarray, start: int, stop: int, limits: np.ndarray, ranks: np.ndarray
) -> tuple[int, int]:
    low, high = limits[:LANES], limits[LANES : 2 * LANES]
    below, above = ranks[:LANES], ranks[LANES : 2 * LANES]
    below[:], above[:] = start, stop
    first, last = start, stop
    while first < stop:
        outside = t[first] < low
        below += outside
        first += 1
        if not outside.any():
            break
    while last > start:
        outside = t[last - 1] > high
        above -= outside
        last -= 1
        if not outside.any():
            break
    return first, last


@hand_written(_plain_count_outside)
def _count_outside(emit: Emitter, t: Array, start: Int, stop: Int, limits: Array, ranks: Array) -> tuple[Int, Int]:
    groups = range(0, LANES, SIMD)
    low = [limits.load(g) for g in groups]
    below, first = [Variable(start.to(I32).spread(SIMD)) for _ in groups], Variable(start)
    with emit.loop() as leave_unless:
        row = first.now
        leave_unless(row < stop)
        some = emit.constant(BOOL, False, SIMD)
        for g, limit, number in zip(groups, low, below, strict=True):
            outside = t.load(row * LANES + g) < limit
            number.now += outside.to(I32)
            some |= outside
        first.now = row + 1
        leave_unless(any_of(some))
    for g, number in zip(groups, below, strict=True):
        ranks.store(g, number.now)
    high = [limits.load(LANES + g) for g in groups]
    above, last = [Variable(stop.to(I32).spread(SIMD)) for _ in groups], Variable(stop)
    with emit.loop() as leave_unless:
        row = last.now
        leave_unless(row > start)
        some = emit.constant(BOOL, False, SIMD)
        for g, limit, number in zip(groups, high, above, strict=True):
            outside = t.load((row - 1) * LANES + g) > limit
            number.now -= outside.to(I32)
            some |= outside
        last.now = row - 1
        leave_unless(any_of(some))
    for g, number in zip(groups, above, strict=True):
        ranks.store(LANES + g, number.now)
    return first.now, last.now


def _plain_huber_round(
    lane: np.ndarray, n_lanes: int, ranks: np.ndarray, first: np.ndarray, last: np.ndarray, sum1: np.ndarray,
    sum2: np.ndarray, work: np.ndarray,
) -> bool:  # fmt: skip
    listed = -(-n_lanes // PART) * PART
    j = lane[:listed]
    i0, i1, begin, end = ranks[j], ranks[LANES + j], first[j], last[j]
    m, s, low, high, c, done, excess = (work[row * LANES :][:listed] for row in range(7))
    below, above, k = (np.asarray(n, np.float64) for n in (i0 - begin, end - i1, end - begin))
    with np.errstate(all="ignore"):
        d_low, d_high = low - c, high - c
        t1 = (sum1[i1, j] - sum1[i0, j]) + (below * d_low + above * d_high)
        t2 = (sum2[i1, j] - sum2[i0, j]) + (below * (d_low * d_low) + above * (d_high * d_high))
        squares = t2 - t1 * (t1 / k)
        new = 1.134 * np.sqrt(np.where(squares > 0.0, squares, 0.0) / (k - 1.0))
        excess[:] = np.where(done > 0.0, np.abs(new - s) - 0.0005 * s, 1.0)
        excess[:] = np.where(done < 199.0, excess, -1.0)
        done += 1.0
        s[:] = new
        near, far = m - 1.5 * new, m + 1.5 * new
        low[:] = np.where(near > low, near, low)
        high[:] = np.where(far < high, far, high)
    return not (excess[:n_lanes] > 0.0).all()


@hand_written(_plain_huber_round)
def _huber_round(
    emit: Emitter, lane: Array, n_lanes: Int, ranks: Array, first: Array, last: Array, sum1: Array, sum2: Array,
    work: Array,
) -> Flag:  # fmt: skip
    some_end = Variable(emit.constant(I64, 0))
    with emit.range(0, n_lanes, PART) as q:
        js = [lane[q + k] for k in range(PART)]
        i0, i1 = [ranks[j].to(I64) for j in js], [ranks[j + LANES].to(I64) for j in js]
        begin, end = (emit.vector([array[j] for j in js]) for array in (first, last))
        below, above = (emit.vector(i0) - begin).to(F64), (end - emit.vector(i1)).to(F64)
        k = (end - begin).to(F64)

        def between(sums: Array) -> Value:
            """Subtract the sums up to rank i0 of each lane from those up to rank i1."""
            at0, at1 = ([row * LANES + j for row, j in zip(rows, js, strict=True)] for rows in (i0, i1))
            return emit.vector([sums[at] for at in at1]) - emit.vector([sums[at] for at in at0])

        m, s, low, high, c, done = (work.load(q + row * LANES, PART) for row in range(6))
        d_low, d_high = low - c, high - c
        t1 = between(sum1) + (below * d_low + above * d_high)
        t2 = between(sum2) + (below * (d_low * d_low) + above * (d_high * d_high))
        squares = t2 - t1 * (t1 / k)
        new = 1.134 * sqrt(maximum(squares, 0.0) / (k - 1.0))
        excess = where(done > 0.0, absolute(new - s) - 0.0005 * s, 1.0)
        excess = where(done < 199.0, excess, -1.0)
        listed = emit.constants(I64, range(PART)) < n_lanes - q
        some_end.now |= bit_mask(listed & ~(excess > 0.0))
        near, far = m - 1.5 * new, m + 1.5 * new
        for row, value in ((5, done + 1.0), (6, excess), (1, new), (2, maximum(near, low)), (3, minimum(far, high))):
            work.store(q + row * LANES, value)
    return some_end.now != 0


@compiled_once
@inner_kernel
def count_outside(t: np.ndarray, start: int, stop: int, limits: np.ndarray, ranks: np.ndarray) -> tuple[int, int]:
    """Fill the rank of the first sample of rows ``start .. stop - 1`` not below, and that behind the last not above.

    ``limits (2 LANES or more,) float32``: low and high of every lane; ``ranks (2 LANES or more,) int32``. Row by row
    from either end, as long as a sample of a row lies outside. Returns the row behind the last that was looked at from
    the low end, and the last from the high end: no rank is farther from its end.
    """
    return _count_outside(t, start, stop, limits, ranks)


@compiled_once
@inner_kernel
def huber_round(
    lane: np.ndarray, n_lanes: int, ranks: np.ndarray, first: np.ndarray, last: np.ndarray, sum1: np.ndarray,
    sum2: np.ndarray, work: np.ndarray,
) -> bool:  # fmt: skip
    """Do one inner round of Huber's winsorizing, :mod:`rejection.winsorized_huber`, for the lanes of a list.

    ``lane (LANES,) int64``: its first ``n_lanes`` are the list; what stands behind them are numbers of lanes too. By
    lane: ``ranks (2 LANES or more,) int32``, the rank of the first sample not below the low limit and the one behind
    the last not above the high limit; ``first, last (LANES,) int64``, the window. By place in the list, rows of ``work
    (7 LANES or more,) float64``: median, deviation, low and high limit, what the prefix sums ``sum1, sum2`` are
    relative to, and the number of rounds done. Deviation, limits and number become those of the next round; the seventh
    row becomes positive where the lane needs one. Returns whether some lane needs none. Places behind the list, up to a
    multiple of 8, are overwritten.
    """
    return _huber_round(lane, n_lanes, ranks, first, last, sum1, sum2, work)
