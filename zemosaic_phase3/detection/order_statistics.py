"""Sorting, selecting and adding up a few hundred to a hundred thousand numbers, inside kernels.

What NumPy does in one call for a large array costs more than its work for small ones, and holds the interpreter lock
meanwhile, so that frames would be measured one after the other however many threads there are.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.array_views import bits32
from zemosaic_phase3.runtime.jit import compiled_once, kernel

SMALL_DIGIT: Final = 10  # most bits that are sorted by in one pass, of few numbers
LARGE_DIGIT: Final = 11  # and of at least
LARGE: Final = 4096  # numbers
FEW: Final = 512  # of many, that tell where one of a certain rank lies
MARGIN: Final = 48  # of them on either side: five standard deviations of the rank of a quartile
MOST_COUNTS: Final = 1 << LARGE_DIGIT
SERIES: Final = 128  # numbers that are added in eight series; more of them are halved first
DEEPEST: Final = 128  # halves that can wait for their other half, two each


@kernel
def sort_float32(values: np.ndarray, spare: np.ndarray, counts: np.ndarray) -> None:
    """Sort ``values (n,) float32`` in place, without NaN: digit by digit of the bits that differ.

    ``spare (n,) float32`` and ``counts (2048,) int64`` are scratch. A camera's numbers differ in ten bits of 32, which
    is one pass.
    """
    n = values.size
    if n < 2:
        return
    keys, other = bits32(values), bits32(spare)
    top = np.uint32(0x80000000)
    differ, first = np.uint32(0), keys[0]
    for i in range(n):
        # Bits of floats compare as integers do, but that negative ones run backwards and below.
        differ |= keys[i] ^ first
    is_negative = first & top or differ & top
    if is_negative:
        differ, first = np.uint32(0), ~first if first & top else first | top
        for i in range(n):
            key = keys[i]
            key = ~key if key & top else key | top
            keys[i] = key
            differ |= key ^ first
    if differ == 0:
        if is_negative:
            _restore(keys, keys)
        return
    lowest = 0
    while (differ >> np.uint32(lowest)) & np.uint32(1) == 0:
        lowest += 1
    bits = 32 - lowest
    while (differ >> np.uint32(lowest + bits - 1)) & np.uint32(1) == 0:
        bits -= 1
    most = SMALL_DIGIT if n < LARGE else LARGE_DIGIT
    passes = (bits + most - 1) // most
    digit = (bits + passes - 1) // passes
    mask = np.uint32((1 << digit) - 1)
    source, target = keys, other
    for k in range(passes):
        shift = np.uint32(lowest + k * digit)
        for value in range(1 << digit):
            counts[value] = 0
        for i in range(n):
            counts[(source[i] >> shift) & mask] += 1
        start = 0
        for value in range(1 << digit):
            here = counts[value]
            counts[value] = start
            start += here
        for i in range(n):
            key = source[i]
            value = (key >> shift) & mask
            target[counts[value]] = key
            counts[value] += 1
        source, target = target, source
    if is_negative:
        _restore(source, keys)
    elif passes % 2 == 1:
        keys[:] = other


@kernel
def _restore(source: np.ndarray, keys: np.ndarray) -> None:
    """Make bits of floats of keys in which negative numbers were turned round."""
    top = np.uint32(0x80000000)
    for i in range(keys.size):
        key = source[i]
        keys[i] = key ^ top if key & top else ~key


@kernel
def two_of_sorted(
    values: np.ndarray, first: int, second: int, spare: np.ndarray, counts: np.ndarray
) -> tuple[np.float32, np.float32]:
    """Return what would stand at two neighbouring places, first <= second, if values (n,) float32 were sorted.

    A few hundred of them tell between which two numbers that is, and only those in between are sorted. ``values``, none
    NaN, are used up; ``spare (n,) float32`` and ``counts (2048,)`` are scratch.
    """
    n = values.size
    if n < LARGE:
        sort_float32(values, spare[:n], counts)
        return values[first], values[second]
    some, spacing = spare[:FEW], n // FEW
    for i in range(FEW):
        some[i] = values[i * spacing]
    sort_float32(some, spare[FEW : 2 * FEW], counts)
    at = int(first / n * FEW)
    low = some[at - MARGIN] if at >= MARGIN else np.float32(-np.inf)
    high = some[at + MARGIN] if at + MARGIN < FEW else np.float32(np.inf)
    below, count = 0, 0
    for i in range(n):
        value = values[i]
        if value < low:
            below += 1
        elif value <= high:
            spare[count] = value
            count += 1
    if below <= first and second < below + count:
        sort_float32(spare[:count], values[:count], counts)
        return spare[first - below], spare[second - below]
    sort_float32(values, spare[:n], counts)
    return values[first], values[second]


@compiled_once
@kernel
def _short_sum(values: np.ndarray, first: int, last: int) -> float:
    """Sum of at most 128 numbers: in eight series, and what is left over after them."""
    if last - first < 8:
        total = 0.0
        for i in range(first, last):
            total += values[i]
        return total
    a, b, c, d = values[first], values[first + 1], values[first + 2], values[first + 3]
    e, f, g, h = values[first + 4], values[first + 5], values[first + 6], values[first + 7]
    i = first + 8
    while i + 8 <= last:
        a, b, c, d = a + values[i], b + values[i + 1], c + values[i + 2], d + values[i + 3]
        e, f, g, h = e + values[i + 4], f + values[i + 5], g + values[i + 6], h + values[i + 7]
        i += 8
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    while i < last:
        total += values[i]
        i += 1
    return total


@compiled_once
@kernel
def pairwise_sum(values: np.ndarray, first: int, last: int) -> float:
    """Sum of ``values[first:last]``, in the order in which NumPy adds contiguous float64: halves of halves.

    Halves begin at multiples of eight. Those that wait for their other half are on a stack: a function that called
    itself could not be kept compiled.
    """
    if last - first <= SERIES:
        return _short_sum(values, first, last)
    starts, ends, sums = np.empty(DEEPEST, np.int64), np.empty(DEEPEST, np.int64), np.empty(DEEPEST)
    has_sum = np.empty(DEEPEST, np.bool_)
    depth = 1
    starts[0], ends[0], has_sum[0] = first, last, False
    total = 0.0
    while True:
        n = ends[depth - 1] - starts[depth - 1]
        if n > SERIES:
            half = n // 2
            half -= half % 8
            middle = starts[depth - 1] + half
            starts[depth], ends[depth], has_sum[depth] = middle, ends[depth - 1], False
            starts[depth + 1], ends[depth + 1], has_sum[depth + 1] = starts[depth - 1], middle, False
            depth += 2
            continue
        total = _short_sum(values, starts[depth - 1], ends[depth - 1])
        depth -= 1
        # On top is now the other half, or the sum of the first half below the whole that it belongs to.
        while depth > 1 and has_sum[depth - 1]:
            total = sums[depth - 1] + total
            depth -= 2
        if depth <= 1:
            return total
        other_start, other_end = starts[depth - 1], ends[depth - 1]
        sums[depth - 1], has_sum[depth - 1] = total, True
        starts[depth], ends[depth], has_sum[depth] = other_start, other_end, False
        depth += 1


@compiled_once
@kernel
def select(values: np.ndarray, n: int, k: int) -> float:
    """Return the k-th smallest, from 0, of the first n values (float32 or float64), which are put in another order."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            return values[k]
    return values[k]


@compiled_once
@kernel
def median(values: np.ndarray, n: int) -> float:
    """Median of the first n values, at least one and none NaN, which are put in another order: as NumPy's."""
    upper = select(values, n, n // 2)
    if n % 2 == 1:
        return upper
    lower = values[0]
    for i in range(1, n // 2):  # what lies before the upper one is not above it
        lower = max(lower, values[i])
    return (lower + upper) / values.dtype.type(2)


@kernel
def ascending(values: np.ndarray) -> np.ndarray:
    """Order ``(n,) int64`` in which values (n,) float64, none NaN, ascend; equal ones stay in theirs: a merge sort."""
    n = values.size
    order, other = np.arange(n), np.empty(n, np.int64)
    width = 1
    while width < n:
        for start in range(0, n, 2 * width):
            middle, end = min(start + width, n), min(start + 2 * width, n)
            i, j = start, middle
            for k in range(start, end):
                if i < middle and (j >= end or values[order[i]] <= values[order[j]]):
                    other[k] = order[i]
                    i += 1
                else:
                    other[k] = order[j]
                    j += 1
        order, other = other, order
        width *= 2
    return order
