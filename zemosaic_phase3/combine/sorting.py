"""A block of pixels, from the frames into a small table whose columns are sorted, in vector registers.

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
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import (
    F32,
    I32,
    Array,
    Emitter,
    Value,
    Variable,
    any_of,
    chosen,
    maximum,
    minimum,
    where,
)
from zemosaic_phase3.runtime.twin import Int, hand_written

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


def _key(bits: Any) -> Any:
    """Turn the bits of numbers into integers of the same order, or back; both are the same for what is not negative.

    ``bits``: an int32 array, or vector of hand-written code.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _compare(rows: list[Value], pairs: Pairs) -> None:
    """Compare rows pair by pair: the smaller of each two goes into the lower row."""
    for low, high in pairs:
        x, y = rows[low], rows[high]
        rows[low], rows[high] = minimum(x, y), maximum(x, y)


def _pass(name: str, pairs: Pairs, *, mirrored: bool = False) -> Any:
    """Return a pass: 16 lanes of some rows of a table, as keys, compared pair by pair and written back.

    The n rows are ``start, start + step, ...``; or, ``mirrored``, n / 2 of those and n / 2 that end at ``end``.
    """
    n = 1 + max(high for _, high in pairs)

    def rows_of(start: Any, step: Any, end: Any) -> list[Any]:
        last = [end - step * (n - 1 - k) for k in range(n // 2, n)] if mirrored else []
        return [start + step * k for k in range(n - len(last))] + last

    def plain(table: np.ndarray, start: int, step: int, end: int, lane: int) -> None:
        rows = rows_of(start, step, end)
        keys = table.view(np.int32)[:, lane : lane + SIMD]
        for low, high in pairs:
            x, y = keys[rows[low]].copy(), keys[rows[high]].copy()
            keys[rows[low]], keys[rows[high]] = np.minimum(x, y), np.maximum(x, y)

    @hand_written(plain, name=name)
    def run(_emit: Emitter, table: Array, start: Int, step: Int, end: Int, lane: Int) -> None:
        keys = table.view(I32)
        places = [row * LANES + lane for row in rows_of(start, step, end)]
        held = [keys.load(place) for place in places]
        _compare(held, pairs)
        for place, key in zip(places, held, strict=True):
            keys.store(place, key)

    return run


def _run(name: str, n: int) -> Any:
    """Return the sort of n rows on their way from the frames into a table.

    ``run(cube, at, stride, table, row, count, lane)``: 16 pixels, beginning with element ``at + lane`` of a frame, of
    the ``count`` frames from ``row`` on, as keys; what is not finite, and what is behind them, as the largest number.
    ``stride``: elements from a frame to the next.
    """
    pairs = batcher_network(n)

    def plain(cube: np.ndarray, at: int, stride: int, table: np.ndarray, row: int, count: int, lane: int) -> None:
        x = np.full((n, SIMD), np.float32(BIG))
        x[:count] = cube[row : row + count, at + lane : at + lane + SIMD]
        x = np.where(np.isfinite(x), x + np.float32(0), np.float32(BIG))
        table.view(np.int32)[row : row + n, lane : lane + SIMD] = np.sort(_key(x.view(np.int32)), axis=0)

    @hand_written(plain, name=name)
    def run(emit: Emitter, cube: Array, at: Int, stride: Int, table: Array, row: Int, count: Int, lane: Int) -> None:
        first = cube.behind(row * stride + (at + lane))
        padding = emit.table(F32, [BIG] * SIMD)
        held = []
        for k in range(n):
            samples = first.behind(stride * k)
            samples.prefetch(LANES + SIMD - 1)  # the same of the next block
            x = chosen(count > k, samples, padding).load(0)
            x = x + (x - x)  # -0 becomes +0, which equals it; not finite becomes NaN
            held.append(_key(where(x < BIG, x, BIG).view(I32)))
        _compare(held, pairs)
        for k, key in enumerate(held):
            table.view(I32).store((row + k) * LANES + lane, key)

    return run


def _plain_middle(table: np.ndarray, half: int, k: int, lane: int, low: np.ndarray, high: np.ndarray) -> None:
    """Find the k-th smallest, and the next, of two sorted runs, from rows 0 and ``half`` on; see :func:`sort_block`."""
    keys = np.sort(table.view(np.int32)[:, lane : lane + SIMD], axis=0)
    for rank, out in ((k - 1, low), (min(k, len(keys) - 1), high)):
        out.view(np.int32)[lane : lane + SIMD] = _key(keys[rank])


@hand_written(_plain_middle)
def _middle(emit: Emitter, table: Array, half: Int, k: Int, lane: Int, low: Array, high: Array) -> None:
    keys = table.view(I32)

    def pair(rank: Value, other: Value) -> tuple[Value, Value]:
        return keys.load(rank * LANES + lane), keys.load((half + other) * LANES + lane)

    final = k - 1
    has_next = k < half
    after = where(has_next, k, final)
    lower = Variable(emit.constant(I32, -0x80000000, SIMD))
    upper = Variable(emit.constant(I32, 0x7FFFFFFF, SIMD))
    with emit.when(has_next):
        upper.now = minimum(*pair(after, after))
    with emit.range(0, k) as rank:
        a, b = pair(rank, final - rank)
        lower.now = maximum(lower.now, minimum(a, b))
        upper.now = minimum(upper.now, maximum(a, b))
    low.view(I32).store(lane, _key(lower.now))
    high.view(I32).store(lane, _key(upper.now))


def _plain_restore(table: np.ndarray, n: int, lane: int) -> None:
    """Turn 16 lanes of n rows of sorted keys into numbers again."""
    keys = table.view(np.int32)[:n, lane : lane + SIMD]
    keys[:] = _key(keys)


@hand_written(_plain_restore)
def _restore(emit: Emitter, table: Array, n: Int, lane: Int) -> None:
    keys = table.view(I32)
    with emit.when(any_of(keys.load(lane) < 0)), emit.range(0, n) as row:  # sorted: else none is negative
        place = row * LANES + lane
        keys.store(place, _key(keys.load(place)))


_run16, _run32 = _run("_run16", 16), _run("_run32", 32)
_fold16 = _pass("_fold16", first_of_a_merge(16), mirrored=True)
_clean16, _clean8, _clean4, _clean2 = (_pass(f"_clean{n}", half_cleaners(n)) for n in (16, 8, 4, 2))


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
        for lane in range(0, LANES, SIMD):
            if not taken:
                for row in range(0, n, 32):
                    count = min(n - row, 32)
                    if count > 16:
                        _run32(cube, p0, stride, t, row, count, lane)
                    else:
                        _run16(cube, p0, stride, t, row, count, lane)
                    end = t[row + count - 1]
                    for j in range(lane, lane + SIMD):
                        invalid += 1 if end[j] == np.float32(3.4028235e38) else 0
            _merge_runs(t, n, run, until, lane)
            if until == rows:
                _restore(t, n, lane)
            else:
                _middle(t, half, k, lane, low, high)
        if until == rows:
            return invalid == 0, False
        if invalid == 0:
            for j in range(LANES):
                high[j] = low[j] if n % 2 else high[j]
            return True, True
        taken = True
        run = half
        until = rows
