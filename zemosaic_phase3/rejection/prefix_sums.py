"""Sums over the samples up to each rank."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import F64, Array, Emitter, Value, Variable, maximum
from zemosaic_phase3.runtime.twin import Int, hand_written


def _plain_prefix_sums(
    t: np.ndarray, n: int, centre: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, edge: int
) -> None:
    for way, count in ((1, n - n // 2), (-1, n // 2)):
        s, q = np.zeros(LANES), np.zeros(LANES)
        for step in range(count + 1):
            row = n // 2 + way * step
            if row <= edge or row >= n - edge:
                sum1[row], sum2[row] = s, q
            if step < count:
                d = t[row if way > 0 else row - 1].astype(np.float64) - centre
                s, q = s + way * d, q + way * (d * d)


@hand_written(_plain_prefix_sums)
def _prefix_sums(emit: Emitter, t: Array, n: Int, centre: Array, sum1: Array, sum2: Array, edge: Int) -> None:
    middle = n >> 1
    skipped_below, skipped_above = maximum(middle - edge, 0), maximum(n - edge - middle, 0)  # rows not to be filled
    with emit.range(0, LANES, SIMD) as lane:
        c = centre.load(lane)
        s, q = (Variable(emit.constant(F64, 0.0, SIMD)) for _ in range(2))

        def store(row: Value) -> None:
            sum1.store(row * LANES + lane, s.now)
            sum2.store(row * LANES + lane, q.now)

        def add_rows(start: Value, count: Value, way: int, *, stored: bool) -> None:
            """Add rows from ``start`` on, upward or downward; ``stored``: the sums after each of them are kept."""
            with emit.range(0, count) as step:
                row = start + step * way
                d = t.load(row * LANES + lane).to(F64) - c
                s.now = s.now + d if way > 0 else s.now - d
                q.now = q.now + d * d if way > 0 else q.now - d * d
                if stored:
                    store(row + 1 if way > 0 else row)

        for way, start, count, skipped in (
            (1, middle, n - middle, skipped_above),
            (-1, middle - 1, middle, skipped_below),
        ):
            s.now, q.now = emit.constant(F64, 0.0, SIMD), emit.constant(F64, 0.0, SIMD)
            add_rows(start, skipped, way, stored=False)
            near = start + skipped * way
            store(near if way > 0 else near + 1)
            add_rows(near, count - skipped, way, stored=True)


@inner_kernel
def prefix_sums(t: np.ndarray, n: int, centre: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, edge: int) -> None:
    """Fill prefix sums of ``d = x - centre`` and of ``d * d`` where all n samples of every lane are valid.

    ``t (rows, LANES) float32``, sorted; ``centre (LANES,)``, ``sum1, sum2 (n + 1, LANES) float64``. They start at rank
    ``n // 2`` and grow outward, so that ``sum[last] - sum[first]`` adds ranks first .. last - 1. Only rows ``0 ..
    edge`` and ``n - edge .. n`` are filled: all of them where ``edge`` is n.
    """
    _prefix_sums(t, n, centre, sum1, sum2, edge)
