"""Bit masks and limits for rejections: what the compiler does not make vector instructions of by itself, and its kin.

A *bit mask* is an int64 that says something about 64 samples, sample i of them in bit i.
"""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import (
    F32,
    I64,
    INF,
    Array,
    Emitter,
    Value,
    absolute,
    bit_mask,
    count,
    first_of,
    fold,
    minimum,
    where,
)
from zemosaic_phase3.runtime.twin import Int, Single, hand_written


def _plain_slopes_within(x: np.ndarray, start: int, own: int, low: float, high: float) -> int:
    with np.errstate(all="ignore"):
        rise = np.abs(x[start : start + 64] - x[own])
        run = np.abs(np.arange(start - own, start - own + 64)).astype(np.float32)
        inside = (rise >= low * run) & (rise <= high * run)
    return int.from_bytes(np.packbits(inside, bitorder="little").tobytes(), "little", signed=True)


@hand_written(_plain_slopes_within)
def _slopes_within(emit: Emitter, x: Array, start: Int, own: Int, low: Single, high: Single) -> Int:
    distance = (start - own).to(F32)
    found = emit.constant(I64, 0)
    for at in range(0, 64, SIMD):
        rise = absolute(x.load(start + at) - x[own])
        run = absolute(distance + emit.constants(F32, range(at, at + SIMD)))
        inside = (rise >= low * run) & (rise <= high * run)
        found = found | bit_mask(inside) << at
    return found


def _plain_first_to_reach(value: np.ndarray, place: np.ndarray, own: int, need: int) -> tuple[int, int, int, int]:
    v, at = value[:8], place[:8]
    reached = ((v[:, None] <= v) * np.abs(at - own)[:, None]).sum(axis=0)
    found = v[2 * reached >= need].min(initial=np.inf)
    times = np.where(v < found, 2, v == found) * np.where(at > own, 1, -1)
    met = np.flatnonzero(v == found)
    return int(met[0]) if met.size else 8, met.size, int(times.sum()), int((times * at).sum())


@hand_written(_plain_first_to_reach)
def _first_to_reach(emit: Emitter, value: Array, place: Array, own: Int, need: Int) -> tuple[Int, Int, Int, Int]:
    v, at = value.load(0, 8), place.load(0, 8)
    after = at > own
    weight = where(after, at - own, -(at - own))
    reached = emit.constant(I64, 0, 8)
    for k in range(8):
        reached += where(v.lane(k) <= v, weight.lane(k), 0)
    found = fold(where(reached * 2 >= need, v, INF), minimum)
    passed, met = v < found, v == found
    signed = where(after, at, -at)
    terms = where(passed, signed * 2, where(met, signed, 0))

    def signs(mask: Value) -> Value:
        return count(mask & after) * 2 - count(mask)

    return first_of(met), count(met), signs(passed) * 2 + signs(met), fold(terms, lambda a, b: a + b)


@inner_kernel
def slopes_within(x: np.ndarray, start: int, own: int, low: float, high: float) -> int:
    """Return a bit mask of those of the samples ``start .. start + 63`` whose slope from another is within limits.

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
    behind the last is infinity, of weight 0; none is NaN.
    """
    return _first_to_reach(value, place, own, need)


@inner_kernel
def ones(mask: int) -> int:
    """Return how many of the 64 bits of a bit mask are 1.

    The compiler makes one instruction of this, and of :func:`lowest_one`.
    """
    pairs = mask - ((mask >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bytes_ * 0x0101010101010101 >> 56) & 0x7F


@inner_kernel
def lowest_one(mask: int) -> int:
    """Return the place of the lowest bit that is 1; 64 if there is none."""
    return ones((mask - 1) & ~mask)


@inner_kernel
def without_lowest(mask: int) -> int:
    """Return a bit mask with its lowest bit that is 1 made 0."""
    # Numbers of Python have no last bit: there the smallest int64 would lose none. Compiled, nothing is compared.
    return mask & (mask - 1) if mask != -(1 << 63) else 0


@inner_kernel
def nearest_inside(low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> None:
    """Fill the smallest float32 not below each ``low``, and behind them the largest not above each ``high``.

    ``low, high (LANES,) float64``, ``limits (2 LANES or more,) float32``.
    """
    # The next number up has the next integer up, or, below 0, the next down.
    for j in range(LANES):
        near = np.float32(low[j])
        bits = near.view(np.int32)
        up = np.int32(-1) if bits < 0 else np.int32(1)
        limits[j] = np.int32(bits + up).view(np.float32) if np.float64(near) < low[j] else near
    for j in range(LANES):
        near = np.float32(high[j])
        bits = near.view(np.int32)
        down = np.int32(1) if bits < 0 else np.int32(-1)
        limits[LANES + j] = np.int32(bits + down).view(np.float32) if np.float64(near) > high[j] else near
