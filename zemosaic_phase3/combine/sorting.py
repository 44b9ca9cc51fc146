"""A block of pixels, from the frames into a small table whose columns are sorted, as LLVM vector instructions.

A comparison of two rows is one SIMD minimum and maximum for every 16 pixels. The samples are compared as integers whose
order is that of the numbers, which takes half the time. Runs of 32 rows are sorted in registers on their way from the
frames, then merged two by two: a bitonic merge whose passes hold 16 rows. Every comparison leaves the smaller value in
the lower row, so rows of padding at the end stay where they are. 16 pixels are finished before the next 16 begin: they
fit in the first-level cache. While a run is sorted, the same run of the next block is asked for, so that the memory has
something to do all the time.

A median alone needs no last merge: the lower half of two sorted runs is what is smaller in pairs of a rank of the one
and a rank of the other (:func:`sort_block`).

Source: K. E. Batcher, "Sorting networks and their applications", 1968 (the bitonic merge, and the network for 16 and 32
rows; Knuth, TAOCP vol. 3, 5.2.2, algorithm M, and 5.3.4).

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

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import LANES, SIMD

BIG: Final = float(np.finfo(np.float32).max)  # stands for what is not valid, and sorts behind what is

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


def first_of_a_merge(n: int) -> Pairs:
    """Return the first comparisons of the merge of two sorted runs, for n rows evenly spaced through both."""
    low, high = half_cleaners(n // 2), [(i + n // 2, k + n // 2) for i, k in half_cleaners(n // 2)]
    return [(i, n - 1 - i) for i in range(n // 2)] + low + high


I1, I32, I64, F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
KEYS, NUMBERS = ir.VectorType(I32, SIMD), ir.VectorType(F32, SIMD)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * SIMD)


def _smaller(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_signed("<", x, y), x, y)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_signed(">", x, y), x, y)


def _compare(builder: Any, held: list[Any], pairs: Pairs) -> None:
    for low, high in pairs:
        x, y = held[low], held[high]
        held[low], held[high] = _smaller(builder, x, y), _larger(builder, x, y)


def _key(builder: Any, bits: Any) -> Any:
    """Turn the bits of numbers into integers of the same order, or back; both are the same for what is not negative."""
    negative = builder.ashr(bits, _all(KEYS, 31))
    return builder.xor(bits, builder.and_(negative, _all(KEYS, 0x7FFFFFFF)))


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _row(builder: Any, data: Any, row: Any, lane: Any, kind: Any = KEYS) -> Any:
    """Address of 16 lanes of a row of a table."""
    at = builder.add(builder.mul(row, I64(LANES)), lane)
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


def _vector_pass(pairs: Pairs, mirrored: bool) -> Any:
    """Return a compiled pass: some rows of a table into registers, compared pair by pair, and written back.

    The n rows are ``start, start + step, ...``; or, ``mirrored``, n / 2 of those and n / 2 that end at ``end``.
    """
    n = 1 + max(high for _, high in pairs)

    @intrinsic
    def run(typingctx: Any, table: Any, start: Any, step: Any, end: Any, lane: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = _data(context, builder, signature.args[0], args[0])
            _, start, step, end, lane = args
            rows = [builder.add(start, builder.mul(step, I64(k))) for k in range(n)]
            if mirrored:
                rows[n // 2 :] = [builder.sub(end, builder.mul(step, I64(n - 1 - k))) for k in range(n // 2, n)]
            places = [_row(builder, data, row, lane) for row in rows]
            held = [builder.load(place, align=4) for place in places]
            _compare(builder, held, pairs)
            for value, place in zip(held, places, strict=True):
                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(table, types.int64, types.int64, types.int64, types.int64), generate

    return run


def _plain_pass(pairs: Pairs, mirrored: bool) -> Any:
    """Return the same pass in Python."""
    n = 1 + max(high for _, high in pairs)

    def run(table: np.ndarray, start: int, step: int, end: int, lane: int) -> None:
        rows = [start + k * step for k in range(n)]
        if mirrored:
            rows[n // 2 :] = [end - (n - 1 - k) * step for k in range(n // 2, n)]
        keys = table.view(np.int32)[:, lane : lane + SIMD]
        for low, high in pairs:
            x, y = keys[rows[low]].copy(), keys[rows[high]].copy()
            keys[rows[low]], keys[rows[high]] = np.minimum(x, y), np.maximum(x, y)

    return run


def _vector_run(n: int) -> Any:
    """Return the compiled sort of n rows on their way from the frames into a table.

    ``run(cube, at, stride, table, row, count, lane)``: 16 pixels, beginning with element ``at + lane`` of a frame, of
    the ``count`` frames from ``row`` on, as keys; what is not finite, and what is behind them, as the largest number.
    ``stride``: elements from a frame to the next.
    """
    pairs = batcher_network(n)

    @intrinsic
    def run(typingctx: Any, cube: Any, at: Any, stride: Any, table: Any, row: Any, count: Any, lane: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (_data(context, builder, signature.args[k], args[k]) for k in (0, 3))
            _, at, stride, _, row, count, lane = args
            byte = ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
            ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            padding = cgutils.global_constant(builder.module, "padding", _all(ir.ArrayType(F32, SIMD), BIG))
            padding = builder.gep(padding, [I32(0), I32(0)])
            first = builder.gep(source, [builder.add(builder.mul(row, stride), builder.add(at, lane))])
            held = []
            for k in range(n):
                place = builder.gep(first, [builder.mul(stride, I64(k))])
                soon = builder.bitcast(builder.gep(place, [I64(LANES + SIMD - 1)]), byte)  # the same of the next block
                builder.call(ask, [soon, I32(0), I32(2), I32(1)])  # to read, into the second-level cache
                place = builder.select(builder.icmp_signed("<", I64(k), count), place, padding)
                x = builder.load(builder.bitcast(place, NUMBERS.as_pointer()), align=4)
                x = builder.fadd(x, builder.fsub(x, x))  # -0 becomes +0, which equals it; not finite becomes NaN
                x = builder.select(builder.fcmp_ordered("<", x, _all(NUMBERS, BIG)), x, _all(NUMBERS, BIG))
                held.append(_key(builder, builder.bitcast(x, KEYS)))
            _compare(builder, held, pairs)
            for k, value in enumerate(held):
                builder.store(value, _row(builder, target, builder.add(row, I64(k)), lane), align=4)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(cube, i64, i64, table, i64, i64, i64), generate

    return run


def _plain_run(n: int) -> Any:
    """Return the same sort in Python."""

    def run(cube: np.ndarray, at: int, stride: int, table: np.ndarray, row: int, count: int, lane: int) -> None:
        x = np.full((n, SIMD), np.float32(BIG))
        x[:count] = cube[row : row + count, at + lane : at + lane + SIMD]
        x = np.where(np.isfinite(x), x + np.float32(0), np.float32(BIG))
        table.view(np.int32)[row : row + n, lane : lane + SIMD] = np.sort(_plain_key(x.view(np.int32)), axis=0)

    return run


def _plain_key(bits: np.ndarray) -> np.ndarray:
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@intrinsic
def _vector_middle(typingctx: Any, table: Any, half: Any, k: Any, lane: Any, low: Any, high: Any) -> Any:
    """Find the k-th smallest, and the next, of two sorted runs, from rows 0 and ``half`` on; see :func:`sort_block`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, below, above = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 5))
        _, half, k, lane = args[:4]
        final = builder.sub(k, I64(1))
        has_next = builder.icmp_signed("<", k, half)
        after = builder.select(has_next, k, final)
        a, b = (builder.load(_row(builder, data, r, lane), align=4) for r in (after, builder.add(half, after)))
        lower = cgutils.alloca_once_value(builder, _all(KEYS, -0x80000000))
        upper = cgutils.alloca_once_value(builder, _all(KEYS, 0x7FFFFFFF))
        with builder.if_then(has_next):
            builder.store(_smaller(builder, a, b), upper)
        with cgutils.for_range(builder, k, intp=I64) as loop:
            a = builder.load(_row(builder, data, loop.index, lane), align=4)
            b = builder.load(_row(builder, data, builder.add(half, builder.sub(final, loop.index)), lane), align=4)
            builder.store(_larger(builder, builder.load(lower), _smaller(builder, a, b)), lower)
            builder.store(_smaller(builder, builder.load(upper), _larger(builder, a, b)), upper)
        for found, out in ((lower, below), (upper, above)):
            builder.store(_key(builder, builder.load(found)), _row(builder, out, I64(0), lane), align=4)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(table, i64, i64, i64, low, high), generate


def _plain_middle(table: np.ndarray, half: int, k: int, lane: int, low: np.ndarray, high: np.ndarray) -> None:
    """Do the same in Python."""
    keys = np.sort(table.view(np.int32)[:, lane : lane + SIMD], axis=0)
    for rank, out in ((k - 1, low), (min(k, len(keys) - 1), high)):
        out.view(np.int32)[lane : lane + SIMD] = _plain_key(keys[rank])


@intrinsic
def _vector_restore(typingctx: Any, table: Any, n: Any, lane: Any) -> Any:
    """Turn 16 lanes of n rows of sorted keys into numbers again; they differ only where a number is negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data(context, builder, signature.args[0], args[0])
        signs = builder.icmp_signed("<", builder.load(_row(builder, data, I64(0), args[2]), align=4), _all(KEYS, 0))
        with (
            builder.if_then(builder.icmp_signed("!=", builder.bitcast(signs, ir.IntType(SIMD)), ir.IntType(SIMD)(0))),
            cgutils.for_range(builder, args[1], intp=I64) as loop,
        ):
            place = _row(builder, data, loop.index, args[2])
            builder.store(_key(builder, builder.load(place, align=4)), place, align=4)
        return context.get_dummy_value()

    return types.void(table, types.int64, types.int64), generate


def _plain_restore(table: np.ndarray, n: int, lane: int) -> None:
    """Do the same in Python."""
    keys = table.view(np.int32)[:n, lane : lane + SIMD]
    keys[:] = _plain_key(keys)


def _pass(pairs: Pairs, *, mirrored: bool = False) -> Any:
    return (_plain_pass if numba.config.DISABLE_JIT else _vector_pass)(pairs, mirrored)


def _run(n: int) -> Any:
    return (_plain_run if numba.config.DISABLE_JIT else _vector_run)(n)


_run16, _run32 = _run(16), _run(32)
_fold16 = _pass(first_of_a_merge(16), mirrored=True)
_clean16, _clean8, _clean4, _clean2 = (_pass(half_cleaners(n)) for n in (16, 8, 4, 2))
_middle_of: Callable[..., None] = _plain_middle if numba.config.DISABLE_JIT else _vector_middle
_restore: Callable[..., None] = _plain_restore if numba.config.DISABLE_JIT else _vector_restore


def new_table(n: int) -> np.ndarray:
    """Return a table for n samples a pixel, ``(rows, LANES) float32``: a power of two of rows, 16 or at least 32.

    The rows behind the samples hold the largest number, and keep it.
    """
    rows = 16 if n <= 16 else max(32, 1 << (n - 1).bit_length())
    t = np.empty((rows, LANES), np.float32)
    t[n:] = BIG
    return t


@inner_kernel
def _merge_runs(t: np.ndarray, n: int, run: int, rows: int, lane: int) -> None:
    """Merge sorted runs of ``run`` rows of 16 lanes, at least 32, to runs of ``rows``; n rows hold samples."""
    while run < rows:
        step = run // 8
        for start in range(0, n - run, 2 * run):
            end = start + 2 * run
            for i in range(step):
                _fold16(t, start + i, step, end - 1 - i, lane)
            stop = min(end, n)
            size = step  # of the bitonic sequences that are left, each above the one before
            while size >= 16:
                apart = size // 16
                for first in range(start, stop, size):
                    for i in range(first, min(first + apart, stop)):
                        _clean16(t, i, apart, 0, lane)
                size = apart
            if size == 8:
                for first in range(start, stop, 8):
                    _clean8(t, first, 1, 0, lane)
            elif size == 4:
                for first in range(start, stop, 4):
                    _clean4(t, first, 1, 0, lane)
            elif size == 2:
                for first in range(start, stop, 2):
                    _clean2(t, first, 1, 0, lane)
        run *= 2


@inner_kernel
def sort_block(
    cube: np.ndarray, p0: int, t: np.ndarray, by_middle: bool, low: np.ndarray, high: np.ndarray
) -> tuple[bool, bool]:
    """Sort the samples of pixels ``p0 .. p0 + LANES - 1`` into a :func:`new_table`.

    Those that are not valid come last, as the largest number; -0 becomes +0: the two must not be told apart by their
    order. Returns whether all are valid, and whether only the middle was found.

    With ``by_middle`` the last merge is left out where all samples are valid; then ``low, high (LANES,) float32`` are
    the middle samples of each pixel, the same one twice where their number is odd, and the table is of no use. The k
    smallest of two sorted runs a and b are the smaller ones of the pairs ``a[i], b[k - 1 - i]``, so the k-th smallest
    is the largest of those. The next is the smallest of the larger ones of the pairs, of ``a[k]`` and of ``b[k]``.
    """
    n = cube.shape[0]
    stride = np.int64(cube.strides[0] // 4)
    rows = np.int64(t.shape[0])
    half = rows // 2 if by_middle and rows > 32 else rows
    k = np.int64((n + 1) // 2)
    invalid = np.int64(0)
    run = np.int64(32)
    until = half
    taken = False
    while True:
        for lane in range(0, 96, 16):
            if not taken:
                for row in range(0, n, 32):
                    count = min(n - row, 32)
                    if count > 16:
                        _run32(cube, p0, stride, t, row, count, lane)
                    else:
                        _run16(cube, p0, stride, t, row, count, lane)
                    end = t[row + count - 1]
                    for j in range(lane, lane + 16):
                        invalid += 1 if end[j] == np.float32(3.4028235e38) else 0
            _merge_runs(t, n, run, until, lane)
            if until == rows:
                _restore(t, n, lane)
            else:
                _middle_of(t, half, k, lane, low, high)
        if until == rows:
            return invalid == 0, False
        if invalid == 0:
            for j in range(96):
                high[j] = low[j] if n % 2 else high[j]
            return True, True
        taken = True
        run = half
        until = rows
