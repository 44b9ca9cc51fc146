"""Sums of a block of pixels as LLVM vector instructions: running sums of sorted samples, sums over the frames.

Both hold their totals in registers. Frames lie far apart in memory, so the sums over them take all ``LANES`` pixels of
one frame before they turn to the next; the table of sorted samples is small, so running sums take 16 lanes at a time.

Without compilation (NUMBA_DISABLE_JIT) the same runs in plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_kernels import inner_kernel
from zemosaic_simd import LANES, SIMD, data_of

I32, I64, F32, F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
BITS = ir.IntType(SIMD)
NUMBERS, WIDE = ir.VectorType(F32, SIMD), ir.VectorType(F64, SIMD)
GROUPS: Final = range(0, LANES, SIMD)
INF: Final = float("inf")


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * SIMD)


def _load(builder: Any, data: Any, at: Any, kind: Any = WIDE) -> Any:
    """16 neighbouring numbers of an array."""
    return builder.load(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()), align=4)


def _store(builder: Any, value: Any, data: Any, at: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(data, [at]), value.type.as_pointer()), align=4)


def _kept(builder: Any, value: Any, place: Any, wanted: Any) -> Any:
    """``value`` where it is wanted, 0 elsewhere, added to what a place holds."""
    builder.store(builder.fadd(builder.load(place), builder.select(wanted, value, _all(WIDE, 0.0))), place)


# --------------------------------------------------------------------------- running sums


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
            m = _load(builder, middle_value, lane)
            s = cgutils.alloca_once(builder, WIDE)
            q = cgutils.alloca_once(builder, WIDE)

            def put(row: Any) -> None:
                at = builder.add(builder.mul(row, lanes), lane)
                _store(builder, builder.load(s), first, at)
                _store(builder, builder.load(q), second, at)

            def walk(count: Any, start: Any, way: int, store_to: int | None) -> None:
                """Add ``count`` rows from ``start`` on; ``store_to``: how far off the row is that takes the sums."""
                with cgutils.for_range(builder, count, intp=I64) as loop:
                    row = builder.add(start, builder.mul(loop.index, I64(way)))
                    x = _load(builder, table, builder.add(builder.mul(row, lanes), lane), NUMBERS)
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
                builder.store(_all(WIDE, 0.0), s)
                builder.store(_all(WIDE, 0.0), q)
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


# --------------------------------------------------------------------------- sums over the frames


def _vector_sums(weighted: bool) -> Any:
    """Return the compiled sums over the frames; see :func:`weighted_sums_of_kept`."""

    @intrinsic
    def run(
        typingctx: Any, cube: Any, at: Any, stride: Any, weights: Any, low: Any, high: Any, total: Any, weight: Any,
        hits: Any, counting: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = {k: data_of(context, builder, signature, args, k) for k in (0, 3, 4, 5, 6, 7, 8)}
            n = cgutils.unpack_tuple(builder, context.make_array(signature.args[8])(context, builder, args[8]).shape)[0]
            counting = context.cast(builder, args[9], signature.args[9], types.boolean)
            count_bits = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(SIMD)])
            zero = _all(WIDE, 0.0)

            def take(start: Any, groups: range) -> None:
                """Walk through the frames with some groups of 16 pixels, the first of which is ``start``."""
                places = [builder.add(start, I64(g)) for g in groups]
                lows, highs = ([_load(builder, arrays[k], place, NUMBERS) for place in places] for k in (4, 5))
                totals, sums = ([cgutils.alloca_once(builder, WIDE) for _ in groups] for _ in range(2))
                for total in totals + sums:
                    builder.store(zero, total)
                with cgutils.for_range(builder, n, intp=I64) as loop:
                    frame = builder.add(args[1], builder.mul(loop.index, args[2]))
                    samples = [_load(builder, arrays[0], builder.add(frame, place), NUMBERS) for place in places]
                    fallen = None
                    for place, x, lo, hi, total, total_weight in zip(
                        places, samples, lows, highs, totals, sums, strict=True
                    ):
                        keep = builder.and_(builder.fcmp_ordered(">=", x, lo), builder.fcmp_ordered("<=", x, hi))
                        value = builder.fpext(x, WIDE)
                        if weighted:
                            w = _load(builder, arrays[3], builder.add(builder.mul(loop.index, I64(LANES)), place))
                            _kept(builder, w, total_weight, keep)
                            value = builder.fmul(w, value)
                        _kept(builder, value, total, keep)
                        fallen = keep if fallen is None else builder.and_(fallen, keep)
                    some = builder.icmp_signed("!=", builder.bitcast(fallen, BITS), BITS(-1))
                    with builder.if_then(builder.and_(some, counting)):
                        count(loop.index, samples, lows, highs)
                for place, total, total_weight in zip(places, totals, sums, strict=True):
                    _store(builder, builder.load(total), arrays[6], place)
                    if weighted:
                        _store(builder, builder.load(total_weight), arrays[7], place)

            def count(frame: Any, samples: list[Any], lows: list[Any], highs: list[Any]) -> None:
                numbers = [I64(0), I64(0)]
                for x, lo, hi in zip(samples, lows, highs, strict=True):
                    below, above = builder.fcmp_ordered("<", x, lo), builder.fcmp_ordered(">", x, hi)
                    above = builder.and_(above, builder.not_(below))  # limits may be crossed
                    for k, out in enumerate((below, above)):
                        infinite = _all(NUMBERS, (-INF, INF)[k])
                        out = builder.and_(out, builder.fcmp_ordered("!=", x, infinite))
                        number = builder.call(count_bits, [builder.bitcast(out, BITS)])
                        numbers[k] = builder.add(numbers[k], builder.zext(number, I64))
                for k, number in enumerate(numbers):
                    cell = builder.gep(arrays[8], [builder.add(builder.mul(frame, I64(3)), I64(k))])
                    builder.store(builder.add(builder.load(cell), number), cell)

            at_once = LANES // 2 if weighted else LANES  # more totals than that do not fit into the registers
            with cgutils.for_range_slice(builder, I64(0), I64(LANES), I64(at_once), I64) as (start, _):
                take(start, range(0, at_once, SIMD))
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(cube, i64, i64, weights, low, high, total, weight, hits, types.boolean), generate

    return run


def _plain_sums(weighted: bool) -> Any:
    """Return the same sums in Python."""

    def run(
        cube: np.ndarray, at: int, stride: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray,
        total: np.ndarray, weight: np.ndarray, hits: np.ndarray, counting: bool,
    ) -> None:  # fmt: skip
        total[:LANES] = 0.0
        if weighted:
            weight[:LANES] = 0.0
        for i in range(len(cube)):
            x = cube[i, at : at + LANES]
            keep = (x >= low) & (x <= high)
            with np.errstate(invalid="ignore"):
                value = weights[i] * x.astype(np.float64) if weighted else x.astype(np.float64)
            total[:LANES] += np.where(keep, value, 0.0)
            if weighted:
                weight[:LANES] += np.where(keep, weights[i], 0.0)
            if counting:
                below = (x < low) & np.isfinite(x)
                hits[i, 0] += np.count_nonzero(below)
                hits[i, 1] += np.count_nonzero((x > high) & np.isfinite(x) & ~below)

    return run


_make_sums: Callable[[bool], Any] = _plain_sums if numba.config.DISABLE_JIT else _vector_sums
_sums, _weighted_sums = _make_sums(False), _make_sums(True)
_running_sums = _plain_running_sums if numba.config.DISABLE_JIT else _vector_running_sums


@inner_kernel
def running_sums(t: np.ndarray, n: int, centre: np.ndarray, sum1: np.ndarray, sum2: np.ndarray, edge: int) -> None:
    """Fill running sums of ``d = x - centre`` and of ``d * d`` where all n samples of every lane are valid.

    ``t (rows, LANES) float32``, sorted; ``centre (LANES,)``, ``sum1, sum2 (n + 1, LANES) float64``. They start at rank
    ``n // 2`` and grow outward, so that ``sum[last] - sum[first]`` adds ranks first .. last - 1. Only rows ``0 ..
    edge`` and ``n - edge .. n`` are filled: all of them where ``edge`` is n.
    """
    _running_sums(t, n, centre, sum1, sum2, edge)


@inner_kernel
def sums_of_kept(
    cube: np.ndarray, at: int, low: np.ndarray, high: np.ndarray, total: np.ndarray, hits: np.ndarray, counting: bool
) -> None:
    """Sum what ``LANES`` pixels keep, over the frames in their order: ``total (LANES,) float64``.

    ``cube (N, P) float32``: pixels from ``at`` on. Kept is ``low <= x <= high``, ``(LANES,) float32``. If ``counting``,
    ``hits (N, 3) int64`` grows by the finite samples of each frame below ``low``, and by the others above ``high``.
    """
    _sums(cube, at, np.int64(cube.strides[0] // 4), total, low, high, total, total, hits, counting)


@inner_kernel
def weighted_sums_of_kept(
    cube: np.ndarray, at: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray, total: np.ndarray,
    weight: np.ndarray, hits: np.ndarray, counting: bool,
) -> None:  # fmt: skip
    """Do the same with ``weights (N, LANES) float64``: ``total`` of w x and ``weight`` of w.

    With all weights 1 the total is that of :func:`sums_of_kept` to the bit.
    """
    _weighted_sums(cube, at, np.int64(cube.strides[0] // 4), weights, low, high, total, weight, hits, counting)
