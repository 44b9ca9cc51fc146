"""What the compiler does not vectorise by itself, written as LLVM vector instructions (``numba.extending.intrinsic``).

The census of slopes, limits rounded to float32. What sorts a block of pixels is in :mod:`zemosaic_sorting`, what works
on a run of pixels of a row in :mod:`zemosaic_lines`.

Without compilation (NUMBA_DISABLE_JIT) the same runs in plain Python.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_kernels import kernel

LANES: Final = 96  # pixels sorted at once; a multiple of 3 (colour) and of 16 (SIMD), sized for the L2 cache at N = 200
SIMD: Final = 16  # pixels per instruction; where the processor's registers are shorter the compiler splits them


@intrinsic
def _census(typingctx: Any, slopes: Any, weights: Any, size: Any, bound: Any) -> Any:
    """Take the census of :func:`census`, 8 slopes at a time."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, double = ir.IntType(64), ir.DoubleType()
        many, whole = ir.VectorType(double, 8), ir.VectorType(i64, 8)

        def spread(value: Any, kind: Any) -> Any:
            single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
            return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))

        pairs = zip(signature.args[:2], args[:2], strict=True)
        data = [context.make_array(kind)(context, builder, array).data for kind, array in pairs]
        limit = spread(args[3], many)
        lowest, highest = spread(double(-1e308), many), spread(double(1e308), many)
        zero = ir.Constant(whole, [0] * 8)
        sums = cgutils.alloca_once_value(builder, zero)
        under = cgutils.alloca_once_value(builder, lowest)
        over = cgutils.alloca_once_value(builder, highest)
        with cgutils.for_range_slice(builder, i64(0), args[2], i64(8), i64) as (at, _):
            x, w = (
                builder.load(builder.bitcast(builder.gep(d, [at]), kind.as_pointer()), align=8)
                for d, kind in zip(data, (many, whole), strict=True)
            )
            below = builder.fcmp_ordered("<", x, limit)
            builder.store(builder.add(builder.load(sums), builder.select(below, w, zero)), sums)
            near = builder.select(below, x, lowest)
            held = builder.load(under)
            builder.store(builder.select(builder.fcmp_ordered(">", near, held), near, held), under)
            near = builder.select(below, highest, x)
            held = builder.load(over)
            builder.store(builder.select(builder.fcmp_ordered("<", near, held), near, held), over)

        def reduce(place: Any, combine: Any) -> Any:
            vector = builder.load(place)
            items = [builder.extract_element(vector, ir.IntType(32)(i)) for i in range(8)]
            while len(items) > 1:
                items = [combine(a, b) for a, b in zip(items[::2], items[1::2], strict=True)]
            return items[0]

        results = [
            reduce(sums, builder.add),
            reduce(under, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)),
            reduce(over, lambda a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b)),
        ]
        return context.make_tuple(builder, signature.return_type, results)

    kinds = types.Tuple((types.int64, types.float64, types.float64))
    return kinds(slopes, weights, types.int64, types.float64), generate


@intrinsic
def _nearest_inside(typingctx: Any, low: Any, high: Any, limits: Any) -> Any:
    """Do what :func:`nearest_inside` does, 16 limits at a time."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, i32 = ir.IntType(64), ir.IntType(32)
        wide, narrow, whole = (ir.VectorType(kind, SIMD) for kind in (ir.DoubleType(), ir.FloatType(), i32))
        zero, up, down = (ir.Constant(whole, [step] * SIMD) for step in (0, 1, -1))
        pairs = zip(signature.args, args, strict=True)
        *given, out = (context.make_array(kind)(context, builder, array).data for kind, array in pairs)
        with cgutils.for_range_slice(builder, i64(0), i64(LANES), i64(SIMD), i64) as (at, _):
            # The next number up has the next integer up, or, below 0, the next down.
            ways = ((given[0], "<", up, down), (given[1], ">", down, up))
            for k, (data, beyond, positive, negative) in enumerate(ways):
                limit = builder.load(builder.bitcast(builder.gep(data, [at]), wide.as_pointer()), align=8)
                rounded = builder.fptrunc(limit, narrow)
                bits = builder.bitcast(rounded, whole)
                step = builder.select(builder.icmp_signed("<", bits, zero), negative, positive)
                outside = builder.fcmp_ordered(beyond, builder.fpext(rounded, wide), limit)
                bits = builder.add(bits, builder.select(outside, step, zero))
                place = builder.gep(out, [builder.add(at, i64(k * LANES))])
                builder.store(bits, builder.bitcast(place, whole.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(low, high, limits), generate


if numba.config.DISABLE_JIT:

    def _census(slopes: np.ndarray, weights: np.ndarray, size: int, bound: float) -> tuple[int, float, float]:  # noqa: F811
        """Take the census of :func:`census` with NumPy."""
        x = slopes[:size]
        below = x < bound
        return (
            int(weights[:size][below].sum()),
            float(x[below].max(initial=-1e308)),
            float(x[~below].min(initial=1e308)),
        )

    def _nearest_inside(low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> None:  # noqa: F811
        """Do what :func:`nearest_inside` does with NumPy."""
        inf = np.float32(np.inf)
        with np.errstate(all="ignore"):
            small, large = low[:LANES].astype(np.float32), high[:LANES].astype(np.float32)
            limits[:LANES] = np.where(small < low[:LANES], np.nextafter(small, inf), small)
            limits[LANES : 2 * LANES] = np.where(large > high[:LANES], np.nextafter(large, -inf), large)


@kernel
def census(slopes: np.ndarray, weights: np.ndarray, size: int, bound: float) -> tuple[int, float, float]:
    """Return the weight of the slopes below a bound, the largest of them, and the smallest of the others.

    ``slopes float64``, ``weights int64``; ``size`` is a multiple of 8. Where there is none: -1e308, 1e308.
    """
    return _census(slopes, weights, size, bound)


@kernel
def nearest_inside(low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> None:
    """Fill the smallest float32 not below each ``low``, and behind them the largest not above each ``high``.

    ``low, high (LANES,) float64``, ``limits (2 LANES or more,) float32``.
    """
    _nearest_inside(low, high, limits)
