"""What the rounds of a rejection do for many lanes at once, as LLVM vector instructions.

How many samples of every lane lie outside its limits, row by row from either end of the sorted table; and one round of
Huber's winsorising, for the lanes of a list, 8 at a time.

Without compilation (NUMBA_DISABLE_JIT) the same runs in plain Python.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import LANES, SIMD, data_of

I32, I64, F32, F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
BITS = ir.IntType(SIMD)
NUMBERS, COUNTS = ir.VectorType(F32, SIMD), ir.VectorType(I32, SIMD)
PART: Final = 8  # float64 per instruction
MANY, MANY_WHOLE = ir.VectorType(F64, PART), ir.VectorType(I64, PART)


def _place(builder: Any, data: Any, at: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


@intrinsic
def _count_outside(typingctx: Any, t: Any, start: Any, stop: Any, limits: Any, ranks: Any) -> Any:
    """Do what :func:`count_outside` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, limits, ranks = (data_of(context, builder, signature, args, k) for k in (0, 3, 4))
        start, stop = args[1], args[2]
        groups = range(0, LANES, SIMD)
        ends = []
        for side, beyond, way in ((0, "<", 1), (LANES, ">", -1)):
            bounds = [builder.load(_place(builder, limits, I64(side + g), NUMBERS), align=4) for g in groups]
            value = builder.trunc(start if way > 0 else stop, I32)
            single = builder.insert_element(ir.Constant(COUNTS, ir.Undefined), value, I32(0))
            begin = builder.shuffle_vector(single, single, ir.Constant(COUNTS, [0] * SIMD))
            counts = [cgutils.alloca_once(builder, COUNTS) for _ in groups]
            for count in counts:
                builder.store(begin, count)
            row = cgutils.alloca_once(builder, I64)
            builder.store(start if way > 0 else stop, row)
            here, body, after = (builder.append_basic_block(name) for name in ("rows", "row", "done"))
            builder.branch(here)
            builder.position_at_end(here)
            at = builder.load(row)
            within = builder.icmp_signed("<", at, stop) if way > 0 else builder.icmp_signed(">", at, start)
            builder.cbranch(within, body, after)
            builder.position_at_end(body)
            first = builder.mul(at if way > 0 else builder.sub(at, I64(1)), I64(LANES))
            some = None
            for g, bound, count in zip(groups, bounds, counts, strict=True):
                x = builder.load(_place(builder, table, builder.add(first, I64(g)), NUMBERS), align=4)
                out = builder.fcmp_ordered(beyond, x, bound)
                step = builder.sext(out, COUNTS)
                add = builder.sub if way > 0 else builder.add
                builder.store(add(builder.load(count), step), count)
                some = out if some is None else builder.or_(some, out)
            builder.store(builder.add(at, I64(way)), row)
            builder.cbranch(builder.icmp_signed("!=", builder.bitcast(some, BITS), BITS(0)), here, after)
            builder.position_at_end(after)
            for g, count in zip(groups, counts, strict=True):
                builder.store(builder.load(count), _place(builder, ranks, I64(side + g), COUNTS), align=4)
            ends.append(builder.load(row))
        return context.make_tuple(builder, signature.return_type, ends)

    return types.UniTuple(types.int64, 2)(t, types.int64, types.int64, limits, ranks), generate


@intrinsic
def _huber_round(
    typingctx: Any, lane: Any, n_lanes: Any, ranks: Any, first: Any, last: Any, sum1: Any, sum2: Any, work: Any
) -> Any:
    """Do what :func:`huber_round` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, ranks, first, last, sum1, sum2, work = (
            data_of(context, builder, signature, args, k) for k in (0, 2, 3, 4, 5, 6, 7)
        )
        root = builder.module.declare_intrinsic(f"llvm.sqrt.v{PART}f64", (), ir.FunctionType(MANY, [MANY]))

        def constant(value: float) -> Any:
            return ir.Constant(MANY, [value] * PART)

        def number(data: Any, at: Any) -> Any:
            return builder.load(builder.gep(data, [at]))

        def gathered(items: list[Any], kind: Any) -> Any:
            vector = ir.Constant(kind, ir.Undefined)
            for k, item in enumerate(items):
                vector = builder.insert_element(vector, item, I32(k))
            return vector

        order = ir.Constant(MANY_WHOLE, list(range(PART)))
        some = cgutils.alloca_once_value(builder, ir.IntType(PART)(0))
        with cgutils.for_range_slice(builder, I64(0), args[1], I64(PART), I64) as (q, _):
            js = [number(lanes, builder.add(q, I64(k))) for k in range(PART)]
            i0 = [builder.sext(number(ranks, j), I64) for j in js]
            i1 = [builder.sext(number(ranks, builder.add(j, I64(LANES))), I64) for j in js]
            begin, end = (gathered([number(data, j) for j in js], MANY_WHOLE) for data in (first, last))
            below = builder.sitofp(builder.sub(gathered(i0, MANY_WHOLE), begin), MANY)
            above = builder.sitofp(builder.sub(end, gathered(i1, MANY_WHOLE)), MANY)
            k = builder.sitofp(builder.sub(end, begin), MANY)
            places = [
                [builder.add(builder.mul(row, I64(LANES)), j) for row, j in zip(rows, js, strict=True)]
                for rows in (i0, i1)
            ]
            s1, s2 = (
                builder.fsub(*(gathered([number(data, at) for at in places[end]], MANY) for end in (1, 0)))
                for data in (sum1, sum2)
            )

            def held(row: int) -> Any:
                return _place(builder, work, builder.add(q, I64(row * LANES)), MANY)  # noqa: B023 - used at once

            m, s, low, high, c, rounds = (builder.load(held(row), align=8) for row in range(6))
            d_low, d_high = builder.fsub(low, c), builder.fsub(high, c)
            outer = builder.fadd(builder.fmul(below, d_low), builder.fmul(above, d_high))
            t1 = builder.fadd(s1, outer)
            squares = [builder.fmul(n, builder.fmul(d, d)) for n, d in ((below, d_low), (above, d_high))]
            t2 = builder.fadd(s2, builder.fadd(*squares))
            ss = builder.fsub(t2, builder.fmul(t1, builder.fdiv(t1, k)))
            ss = builder.select(builder.fcmp_ordered(">", ss, constant(0.0)), ss, constant(0.0))
            variance = builder.fdiv(ss, builder.fsub(k, constant(1.0)))
            new = builder.fmul(constant(1.134), builder.call(root, [variance]))
            change = builder.fsub(new, s)
            change = builder.select(builder.fcmp_ordered("<", change, constant(0.0)), builder.fneg(change), change)
            excess = builder.fsub(change, builder.fmul(constant(0.0005), s))
            excess = builder.select(builder.fcmp_ordered(">", rounds, constant(0.0)), excess, constant(1.0))
            excess = builder.select(builder.fcmp_ordered("<", rounds, constant(199.0)), excess, constant(-1.0))
            goes_on = builder.fcmp_ordered(">", excess, constant(0.0))
            listed = builder.icmp_signed("<", order, gathered([builder.sub(args[1], q)] * PART, MANY_WHOLE))
            done = builder.bitcast(builder.and_(listed, builder.not_(goes_on)), ir.IntType(PART))
            builder.store(builder.or_(builder.load(some), done), some)
            builder.store(builder.fadd(rounds, constant(1.0)), held(5), align=8)
            builder.store(excess, held(6), align=8)
            builder.store(new, held(1), align=8)
            reach = builder.fmul(constant(1.5), new)
            near, far = builder.fsub(m, reach), builder.fadd(m, reach)
            builder.store(builder.select(builder.fcmp_ordered(">", near, low), near, low), held(2), align=8)
            builder.store(builder.select(builder.fcmp_ordered("<", far, high), far, high), held(3), align=8)
        return builder.icmp_signed("!=", builder.load(some), ir.IntType(PART)(0))

    return types.boolean(lane, types.int64, ranks, first, last, sum1, sum2, work), generate


if numba.config.DISABLE_JIT:

    def _count_outside(  # noqa: F811
        t: np.ndarray, start: int, stop: int, limits: np.ndarray, ranks: np.ndarray
    ) -> tuple[int, int]:
        """Do what :func:`count_outside` does with NumPy."""
        rows = t[start:stop]
        below, above = rows < limits[:LANES], rows > limits[LANES : 2 * LANES]
        ranks[:LANES] = start + below.sum(axis=0)
        ranks[LANES : 2 * LANES] = stop - above.sum(axis=0)
        low, high = (int(np.count_nonzero(out.any(axis=1))) for out in (below, above))
        return min(start + low + 1, stop), max(stop - high - 1, start)

    def _huber_round(  # noqa: F811
        lane: np.ndarray, n_lanes: int, ranks: np.ndarray, first: np.ndarray, last: np.ndarray, sum1: np.ndarray,
        sum2: np.ndarray, work: np.ndarray,
    ) -> bool:  # fmt: skip
        """Do what :func:`huber_round` does with NumPy."""
        j = lane[:n_lanes]
        i0, i1, begin, end = ranks[j], ranks[LANES + j], first[j], last[j]
        m, s, low, high, c, rounds, excess = (work[row * LANES :][:n_lanes] for row in range(7))
        below, above, k = (np.asarray(n, np.float64) for n in (i0 - begin, end - i1, end - begin))
        d_low, d_high = low - c, high - c
        t1 = (sum1[i1, j] - sum1[i0, j]) + (below * d_low + above * d_high)
        t2 = (sum2[i1, j] - sum2[i0, j]) + (below * (d_low * d_low) + above * (d_high * d_high))
        new = 1.134 * np.sqrt(np.maximum(t2 - t1 * (t1 / k), 0.0) / (k - 1))
        excess[:] = np.where(rounds > 0.0, np.abs(new - s) - 0.0005 * s, 1.0)
        excess[rounds >= 199.0] = -1.0
        rounds += 1.0
        s[:] = new
        low[:] = np.maximum(low, m - 1.5 * s)
        high[:] = np.minimum(high, m + 1.5 * s)
        return bool((excess <= 0.0).any())


@inner_kernel
def count_outside(t: np.ndarray, start: int, stop: int, limits: np.ndarray, ranks: np.ndarray) -> tuple[int, int]:
    """Fill the rank of the first sample of rows ``start .. stop - 1`` not below, and that behind the last not above.

    ``limits (2 LANES or more,) float32``: low and high of every lane; ``ranks (2 LANES or more,) int32``. Row by row
    from either end, as long as a sample of a row lies outside. Returns the row behind the last that was looked at from
    the low end, and the last from the high end: no rank is farther from its end.
    """
    return _count_outside(t, start, stop, limits, ranks)


@inner_kernel
def huber_round(
    lane: np.ndarray, n_lanes: int, ranks: np.ndarray, first: np.ndarray, last: np.ndarray, sum1: np.ndarray,
    sum2: np.ndarray, work: np.ndarray,
) -> bool:  # fmt: skip
    """Do an inner round of ``rejection.winsorized_huber._window_pixinsight`` for the lanes of a list.

    ``lane (LANES,) int64``: the first ``n_lanes`` are meant; behind them stand lanes too, any. By lane: ``ranks (2
    LANES or more,) int32``, that of the first sample not below and behind the last not above, rows of the sums for any
    lane; ``first, last (LANES,) int64``, the window. By place in the list, rows of ``work (7 LANES or more,) float64``:
    median, deviation, low and high limit, what the running sums ``sum1, sum2`` are relative to, and the number of
    rounds done. Deviation, limits and number become those of the next round; the seventh row is above 0 where there is
    a next one. Returns whether there is a lane without. Places behind the list, up to a multiple of 8, are overwritten.
    """
    return _huber_round(lane, n_lanes, ranks, first, last, sum1, sum2, work)
