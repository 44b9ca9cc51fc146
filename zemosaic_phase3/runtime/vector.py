"""What the compiler does not vectorise by itself, written as LLVM vector instructions (``numba.extending.intrinsic``).

Slopes within limits, bits of words, limits rounded to float32. What sorts a block of pixels is in
:mod:`combine.sorting`, what works on a run of pixels of a row in :mod:`resample.vector`.

Without compilation (NUMBA_DISABLE_JIT) the same runs in plain Python.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import LANES, SIMD


@intrinsic
def _slopes_within(typingctx: Any, x: Any, start: Any, own: Any, low: Any, high: Any) -> Any:
    """Do what :func:`slopes_within` does, 16 samples at a time."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, i32, single = ir.IntType(64), ir.IntType(32), ir.FloatType()
        many, whole = ir.VectorType(single, SIMD), ir.VectorType(i32, SIMD)

        def spread(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(many, ir.Undefined), value, i32(0))
            return builder.shuffle_vector(first, first, ir.Constant(whole, [0] * SIMD))

        def size(numbers: Any) -> Any:
            bits = builder.and_(builder.bitcast(numbers, whole), ir.Constant(whole, [0x7FFFFFFF] * SIMD))
            return builder.bitcast(bits, many)

        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        here = spread(builder.load(builder.gep(data, [args[2]])))
        least, most = spread(args[3]), spread(args[4])
        far = spread(builder.sitofp(builder.sub(args[1], args[2]), single))
        word = i64(0)
        for at in range(0, 64, SIMD):
            place = builder.gep(data, [builder.add(args[1], i64(at))])
            rise = size(builder.fsub(builder.load(builder.bitcast(place, many.as_pointer()), align=4), here))
            run = size(builder.fadd(far, ir.Constant(many, [float(at + k) for k in range(SIMD)])))
            inside = builder.and_(
                builder.fcmp_ordered(">=", rise, builder.fmul(least, run)),
                builder.fcmp_ordered("<=", rise, builder.fmul(most, run)),
            )
            bits = builder.zext(builder.bitcast(inside, ir.IntType(SIMD)), i64)
            word = builder.or_(word, builder.shl(bits, i64(at)))
        return word

    return types.int64(x, types.int64, types.int64, types.float32, types.float32), generate


@intrinsic
def _first_to_reach(typingctx: Any, value: Any, place: Any, own: Any, need: Any) -> Any:
    """Do what :func:`first_to_reach` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, i32, double = ir.IntType(64), ir.IntType(32), ir.DoubleType()
        numbers, whole, choice = ir.VectorType(double, 8), ir.VectorType(i64, 8), ir.VectorType(i32, 8)
        zero = ir.Constant(whole, [0] * 8)

        def spread(one: Any, kind: Any) -> Any:
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), one, i32(0))
            return builder.shuffle_vector(first, first, ir.Constant(choice, [0] * 8))

        def folded(vector: Any, combine: Any) -> Any:
            for half in (4, 2, 1):
                turned = ir.Constant(choice, [(k + half) % 8 for k in range(8)])
                vector = combine(vector, builder.shuffle_vector(vector, vector, turned))
            return builder.extract_element(vector, i32(0))

        def smaller(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def count(mask: Any) -> Any:
            return builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(8))), i64)

        def twice(number: Any) -> Any:
            return builder.add(number, number)

        v, at = (
            builder.load(
                builder.bitcast(context.make_array(kind)(context, builder, array).data, vector.as_pointer()), align=8
            )
            for kind, array, vector in zip(signature.args[:2], args[:2], (numbers, whole), strict=True)
        )
        here = spread(args[2], whole)
        after = builder.icmp_signed(">", at, here)
        offset = builder.sub(at, here)
        weight = builder.select(after, offset, builder.neg(offset))
        reached = zero
        for k in range(8):
            one = spread(builder.extract_element(v, i32(k)), numbers)
            its = spread(builder.extract_element(weight, i32(k)), whole)
            reached = builder.add(reached, builder.select(builder.fcmp_ordered("<=", one, v), its, zero))
        enough = builder.icmp_signed(">=", twice(reached), spread(args[3], whole))
        beyond = ir.Constant(numbers, [float("inf")] * 8)
        found = spread(folded(builder.select(enough, v, beyond), smaller), numbers)
        passed, met = builder.fcmp_ordered("<", v, found), builder.fcmp_ordered("==", v, found)
        signed = builder.select(after, at, builder.neg(at))
        terms = builder.select(passed, twice(signed), builder.select(met, signed, zero))
        signs = [builder.sub(twice(count(builder.and_(mask, after))), count(mask)) for mask in (passed, met)]
        first = builder.zext(builder.cttz(builder.bitcast(met, ir.IntType(8)), ir.Constant(ir.IntType(1), 0)), i64)
        results = [first, count(met), builder.add(twice(signs[0]), signs[1]), folded(terms, builder.add)]
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(types.int64, 4)(value, place, types.int64, types.int64), generate


@intrinsic
def _ones(typingctx: Any, word: Any) -> Any:
    """Do what :func:`ones` does."""
    return types.int64(types.int64), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def _lowest_one(typingctx: Any, word: Any) -> Any:
    """Do what :func:`lowest_one` does."""
    nothing = ir.Constant(ir.IntType(1), 1)  # what there is in a word of zeros is not asked
    return types.int64(types.int64), lambda context, builder, signature, args: builder.cttz(args[0], nothing)


@intrinsic
def _without_lowest(typingctx: Any, word: Any) -> Any:
    """Do what :func:`without_lowest` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.and_(args[0], builder.sub(args[0], ir.IntType(64)(1)))

    return types.int64(types.int64), generate


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

    def _slopes_within(x: np.ndarray, start: int, own: int, low: float, high: float) -> int:  # noqa: F811
        """Do what :func:`slopes_within` does with NumPy."""
        with np.errstate(all="ignore"):
            rise = np.abs(x[start : start + 64] - x[own])
            run = np.abs(np.arange(start - own, start - own + 64)).astype(np.float32)
            inside = (rise >= low * run) & (rise <= high * run)
        return int.from_bytes(np.packbits(inside, bitorder="little").tobytes(), "little", signed=True)

    def _first_to_reach(value: np.ndarray, place: np.ndarray, own: int, need: int) -> tuple[int, int, int, int]:  # noqa: F811
        """Do what :func:`first_to_reach` does with NumPy."""
        v, at = value[:8], place[:8]
        enough = 2 * ((v[:, None] <= v) * np.abs(at - own)[:, None]).sum(axis=0) >= need
        found = v[enough].min(initial=np.inf)
        times = np.where(v < found, 2, v == found) * np.where(at > own, 1, -1)
        met = np.flatnonzero(v == found)
        return int(met[0]) if met.size else 8, met.size, int(times.sum()), int((times * at).sum())

    def _ones(word: int) -> int:  # noqa: F811
        """Do what :func:`ones` does."""
        return (int(word) & (1 << 64) - 1).bit_count()

    def _lowest_one(word: int) -> int:  # noqa: F811
        """Do what :func:`lowest_one` does."""
        return (int(word) & -int(word)).bit_length() - 1

    def _without_lowest(word: int) -> int:  # noqa: F811
        """Do what :func:`without_lowest` does."""
        rest = int(word) & (int(word) - 1)
        return rest if rest >= -(1 << 63) else 0  # Python's integers have more than 64 bits

    def _nearest_inside(low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> None:  # noqa: F811
        """Do what :func:`nearest_inside` does with NumPy."""
        inf = np.float32(np.inf)
        with np.errstate(all="ignore"):
            small, large = low[:LANES].astype(np.float32), high[:LANES].astype(np.float32)
            limits[:LANES] = np.where(small < low[:LANES], np.nextafter(small, inf), small)
            limits[LANES : 2 * LANES] = np.where(large > high[:LANES], np.nextafter(large, -inf), large)


@inner_kernel
def slopes_within(x: np.ndarray, start: int, own: int, low: float, high: float) -> int:
    """Return a word that says which of the samples ``start .. start + 63`` have a slope within limits from another.

    Bit i is 1 where ``low r <= abs(x[start + i] - x[own]) <= high r``, r the distance of the ranks, all in float32:
    what lies within a rounding of a limit may count or not. ``x (start + 64 or more,) float32``.
    """
    return _slopes_within(x, start, own, np.float32(low), np.float32(high))


@inner_kernel
def first_to_reach(value: np.ndarray, place: np.ndarray, own: int, need: int) -> tuple[int, int, int, int]:
    """Return which of 8 values is the smallest up to which half of weight ``need`` is reached, and what lies up to it.

    The weight of a value is the distance of its place from ``own``. Returned are the first of the values equal to the
    one found; how many they are; and of the values below, counted twice, and of these, counted once, the sum of the
    signs of place - own, and of these signs times the place. ``value (8 or more,) float64``, ``place int64``. A number
    behind the last is infinity, of weight 0.
    """
    return _first_to_reach(value, place, own, need)


@inner_kernel
def ones(word: int) -> int:
    """Return how many of the 64 bits of a word are 1."""
    return _ones(word)


@inner_kernel
def lowest_one(word: int) -> int:
    """Return the place of the lowest bit that is 1; there must be one."""
    return _lowest_one(word)


@inner_kernel
def without_lowest(word: int) -> int:
    """Return a word with its lowest bit that is 1 made 0."""
    return _without_lowest(word)


@inner_kernel
def nearest_inside(low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> None:
    """Fill the smallest float32 not below each ``low``, and behind them the largest not above each ``high``.

    ``low, high (LANES,) float64``, ``limits (2 LANES or more,) float32``.
    """
    _nearest_inside(low, high, limits)
