"""Sums over the samples up to each rank."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import I64, LANES, NUMBERS, SIMD, WIDE, all_lanes, data_of, load, store


@intrinsic
def _vector_running_sums(typingctx: Any, t: Any, n: Any, centre: Any, sum1: Any, sum2: Any, edge: Any) -> Any:
    """Do what :func:`running_sums` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, middle_value, first, second = (data_of(context, builder, signature, args, k) for k in (0, 2, 3, 4))
        n, edge = args[1], args[5]
        lanes, middle = I64(LANES), builder.ashr(n, I64(1))
        zero, low_rest = I64(0), builder.sub(middle, edge)
        low_rest = builder.select(builder.icmp_signed("<", low_rest, zero), zero, low_rest)
        high_rest = builder.sub(builder.sub(n, edge), middle)
        high_rest = builder.select(builder.icmp_signed("<", high_rest, zero), zero, high_rest)
        with cgutils.for_range_slice(builder, zero, lanes, I64(SIMD), I64) as (lane, _):
            m = load(builder, middle_value, lane)
            s = cgutils.alloca_once(builder, WIDE)
            q = cgutils.alloca_once(builder, WIDE)

            def put(row: Any) -> None:
                at = builder.add(builder.mul(row, lanes), lane)
                store(builder, builder.load(s), first, at)
                store(builder, builder.load(q), second, at)

            def walk(count: Any, start: Any, way: int, store_to: int | None) -> None:
                """Add ``count`` rows from ``start`` on; ``store_to``: how far off the row is that takes the sums."""
                with cgutils.for_range(builder, count, intp=I64) as loop:
                    row = builder.add(start, builder.mul(loop.index, I64(way)))
                    x = load(builder, table, builder.add(builder.mul(row, lanes), lane), NUMBERS)
                    d = builder.fsub(builder.fpext(x, WIDE), m)
                    add = builder.fadd if way > 0 else builder.fsub
                    builder.store(add(builder.load(s), d), s)
                    builder.store(add(builder.load(q), builder.fmul(d, d)), q)
                    if store_to is not None:
                        put(builder.add(row, I64(store_to)))

            for way, rest, count, start in (
                (1, high_rest, builder.sub(n, middle), middle),
                (-1, low_rest, middle, builder.sub(middle, I64(1))),
            ):
                builder.store(all_lanes(WIDE, 0.0), s)
                builder.store(all_lanes(WIDE, 0.0), q)
                walk(rest, start, way, None)
                near = builder.add(start, builder.mul(rest, I64(way)))
                put(near if way > 0 else builder.add(near, I64(1)))
                walk(builder.sub(count, rest), near, way, 1 if way > 0 else 0)
        return context.get_dummy_value()

    return types.void(t, types.int64, centre, sum1, sum2, types.int64), generate


def _plain_running_sums(
    t: np.ndarray, n: int, centre: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, edge: int
) -> None:
    """Do the same in Python."""
    for way, count in ((1, n - n // 2), (-1, n // 2)):
        s, q = np.zeros(LANES), np.zeros(LANES)
        for step in range(count + 1):
            row = n // 2 + way * step
            if row <= edge or row >= n - edge:
                sum1[row], sum2[row] = s, q
            if step < count:
                d = t[row if way > 0 else row - 1].astype(np.float64) - centre
                s, q = s + way * d, q + way * (d * d)


_running_sums = _plain_running_sums if numba.config.DISABLE_JIT else _vector_running_sums


@inner_kernel
def prefix_sums(t: np.ndarray, n: int, centre: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, edge: int) -> None:
    """Fill running sums of ``d = x - centre`` and of ``d * d`` where all n samples of every lane are valid.

    ``t (rows, LANES) float32``, sorted; ``centre (LANES,)``, ``sum1, sum2 (n + 1, LANES) float64``. They start at rank
    ``n // 2`` and grow outward, so that ``sum[last] - sum[first]`` adds ranks first .. last - 1. Only rows ``0 ..
    edge`` and ``n - edge .. n`` are filled: all of them where ``edge`` is n.
    """
    _running_sums(t, n, centre, sum1, sum2, edge)
