"""What the compiler does not vectorise by itself, written as LLVM vector instructions (``numba.extending.intrinsic``).

Most of all, sorting a block of pixels: every column of a small table at once, by a network of comparisons. A comparison
of two rows is one SIMD minimum and maximum for every 16 pixels. The network is a bitonic merge sort in
which every comparison leaves the smaller value in the lower row, so rows of padding at the end stay where they are and
are skipped. Its passes work on 4, 8 or 16 rows held in registers, so that a sample travels to the cache and back a
dozen times, not once per comparison.

Source: K. E. Batcher, "Sorting networks and their applications", 1968 (both the bitonic merge and the network for 16
rows; Knuth, TAOCP vol. 3, 5.2.2, algorithm M).

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

from zemosaic_kernels import kernel

LANES: Final = 96  # pixels sorted at once; a multiple of 3 (colour) and of 16 (SIMD), sized for the L2 cache at N = 200
SIMD: Final = 16  # pixels per instruction; where the processor's registers are shorter the compiler splits them

Pairs = list[tuple[int, int]]


def batcher_network(n: int) -> Pairs:
    """Return Batcher's odd-even merge sort of n rows as pairs of rows to compare."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                pairs += [
                    (i + j, i + j + k) for i in range(min(k, n - j - k)) if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    return pairs


def half_cleaners(n: int) -> Pairs:
    """Return the comparisons that sort a bitonic sequence of n rows, n a power of two."""
    pairs = []
    k = n // 2
    while k:
        pairs += [(i, i + k) for i in range(n) if not i & k]
        k //= 2
    return pairs


def _vector_pass(pairs: Pairs, row_of: Callable[..., list[Any]]) -> Any:
    """Return a compiled pass: some rows of a table into registers, compared pair by pair, and written back.

    ``row_of(builder, *args)`` gives the row numbers from the three integers the pass is called with.
    """

    @intrinsic
    def run(typingctx: Any, table: Any, a: Any, b: Any, c: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            vector = ir.VectorType(ir.FloatType(), SIMD).as_pointer()
            i64 = ir.IntType(64)
            starts = [builder.mul(row, i64(LANES)) for row in row_of(builder, i64, *args[1:])]
            with cgutils.for_range_slice(builder, i64(0), i64(LANES), i64(SIMD), i64) as (lane, _):
                places = [builder.bitcast(builder.gep(data, [builder.add(s, lane)]), vector) for s in starts]
                held = [builder.load(place, align=4) for place in places]
                for low, high in pairs:
                    x, y = held[low], held[high]
                    held[low] = builder.select(builder.fcmp_ordered("<", x, y), x, y)
                    held[high] = builder.select(builder.fcmp_ordered(">", x, y), x, y)
                for value, place in zip(held, places, strict=True):
                    builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(table, types.int64, types.int64, types.int64), generate

    return run


def _plain_pass(pairs: Pairs, row_of: Callable[..., list[Any]]) -> Any:
    """Return the same pass in Python."""

    def run(table: np.ndarray, a: int, b: int, c: int) -> None:
        rows = row_of(_PlainIntegers(), int, a, b, c)
        for low, high in pairs:
            x, y = table[rows[low]].copy(), table[rows[high]].copy()
            table[rows[low]] = np.minimum(x, y)
            table[rows[high]] = np.maximum(x, y)

    return run


class _PlainIntegers:
    """Arithmetic under the names of an LLVM builder."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def sub(self, a: int, b: int) -> int:
        return a - b

    def mul(self, a: int, b: int) -> int:
        return a * b


def _pass(pairs: Pairs, row_of: Callable[..., list[Any]]) -> Any:
    return (_plain_pass if numba.config.DISABLE_JIT else _vector_pass)(pairs, row_of)


def _strided(n: int) -> Callable[..., list[Any]]:
    """Rows ``a, a + b, a + 2 b, ...``."""
    return lambda builder, i64, a, b, c: [builder.add(a, builder.mul(b, i64(k))) for k in range(n)]


def _mirrored(builder: Any, i64: Any, a: Any, b: Any, c: Any) -> list[Any]:
    """Rows ``a, a + c, b - c, b``."""
    return [a, builder.add(a, c), builder.sub(b, c), b]


_sort16 = _pass(batcher_network(16), _strided(16))
_clean16 = _pass(half_cleaners(16), _strided(16))
_clean8 = _pass(half_cleaners(8), _strided(8))
_clean4 = _pass(half_cleaners(4), _strided(4))
_clean2 = _pass(half_cleaners(2), _strided(2))
_fold4 = _pass([(0, 3), (1, 2), (0, 1), (2, 3)], _mirrored)  # first comparison of a merge, and the one after it


@intrinsic
def _prefetch(typingctx: Any, row: Any, at: Any) -> Any:
    """Ask for the cache line of element ``at`` of a row of float32; past its end it does no harm."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(ask, [place, i32(0), i32(2), i32(1)])  # to read, into the second-level cache
        return context.get_dummy_value()

    return types.void(row, types.int64), generate


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


if numba.config.DISABLE_JIT:

    def _prefetch(row: np.ndarray, at: int) -> None:  # noqa: F811 - nothing to ask for
        """Do nothing."""

    def _census(slopes: np.ndarray, weights: np.ndarray, size: int, bound: float) -> tuple[int, float, float]:  # noqa: F811
        """Take the census of :func:`census` with NumPy."""
        x = slopes[:size]
        below = x < bound
        return (
            int(weights[:size][below].sum()),
            float(x[below].max(initial=-1e308)),
            float(x[~below].min(initial=1e308)),
        )


@kernel
def prefetch_row(row: np.ndarray, start: int, stop: int) -> None:
    """Ask for elements ``start .. stop - 1`` of a row of float32, which will be read soon."""
    for at in range(start, stop, 16):
        _prefetch(row, at)


@kernel
def census(slopes: np.ndarray, weights: np.ndarray, size: int, bound: float) -> tuple[int, float, float]:
    """Return the weight of the slopes below a bound, the largest of them, and the smallest of the others.

    ``slopes float64``, ``weights int64``; ``size`` is a multiple of 8. Where there is none: -1e308, 1e308.
    """
    return _census(slopes, weights, size, bound)


@kernel
def new_table(n: int) -> np.ndarray:
    """Return a table for n samples a pixel, ``(rows, LANES) float32``: a power of two of rows, at least 16.

    The rows behind the samples hold the largest number, and keep it.
    """
    rows = 16
    while rows < n:
        rows *= 2
    t = np.empty((rows, 96), np.float32)
    for i in range(n, rows):
        for j in range(96):
            t[i, j] = np.float32(3.4028235e38)
    return t


@kernel
def _clean_runs(t: np.ndarray, n: int, size: int) -> None:
    """Sort aligned bitonic runs of 16 or 8 rows, the last one only as far as it holds samples."""
    for row in range(0, n, size):
        held = n - row
        if held > 8:
            if size == 16:
                _clean16(t, row, 1, 0)
            else:
                _clean8(t, row, 1, 0)
        elif held > 4:
            _clean8(t, row, 1, 0)
        elif held > 2:
            _clean4(t, row, 1, 0)
        elif held == 2:
            _clean2(t, row, 1, 0)


@kernel
def sort_table(t: np.ndarray, n: int) -> None:
    """Sort every column of the first n rows of a :func:`new_table` ascending.

    Values are finite; the rows from n on hold the largest number and keep it.
    """
    for row in range(0, n, 16):
        _sort16(t, row, 1, 0)
    run = 16
    while run < n:
        half = run // 2
        for start in range(0, n - run, 2 * run):  # merge the runs at start and start + run
            for i in range(half):
                mirror = start + 2 * run - 1 - i
                if mirror - half < n:
                    _fold4(t, start + i, mirror, half)
        step = half // 2
        while step > 8:
            for start in range(0, n, 2 * step):
                for i in range(step // 2):
                    if start + i + step // 2 < n:
                        _clean4(t, start + i, step // 2, 0)
            step //= 4
        _clean_runs(t, n, 2 * step)
        run *= 2
