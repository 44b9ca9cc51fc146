"""Sums over the frames of the samples that were kept, in vector registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.llvm import BITS, I64, INF, LANES, NUMBERS, SIMD, WIDE, all_lanes, data_of, load, store

GROUPS: Final = range(0, LANES, SIMD)


def _kept(builder: Any, value: Any, place: Any, wanted: Any) -> Any:
    """``value`` where it is wanted, 0 elsewhere, added to what a place holds."""
    builder.store(builder.fadd(builder.load(place), builder.select(wanted, value, all_lanes(WIDE, 0.0))), place)


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
            zero = all_lanes(WIDE, 0.0)

            def take(start: Any, groups: range) -> None:
                """Walk through the frames with some groups of 16 pixels, the first of which is ``start``."""
                places = [builder.add(start, I64(g)) for g in groups]
                lows, highs = ([load(builder, arrays[k], place, NUMBERS) for place in places] for k in (4, 5))
                totals, sums = ([cgutils.alloca_once(builder, WIDE) for _ in groups] for _ in range(2))
                for total in totals + sums:
                    builder.store(zero, total)
                with cgutils.for_range(builder, n, intp=I64) as loop:
                    frame = builder.add(args[1], builder.mul(loop.index, args[2]))
                    samples = [load(builder, arrays[0], builder.add(frame, place), NUMBERS) for place in places]
                    fallen = None
                    for place, x, lo, hi, total, total_weight in zip(
                        places, samples, lows, highs, totals, sums, strict=True
                    ):
                        keep = builder.and_(builder.fcmp_ordered(">=", x, lo), builder.fcmp_ordered("<=", x, hi))
                        value = builder.fpext(x, WIDE)
                        if weighted:
                            w = load(builder, arrays[3], builder.add(builder.mul(loop.index, I64(LANES)), place))
                            _kept(builder, w, total_weight, keep)
                            value = builder.fmul(w, value)
                        _kept(builder, value, total, keep)
                        fallen = keep if fallen is None else builder.and_(fallen, keep)
                    some = builder.icmp_signed("!=", builder.bitcast(fallen, BITS), BITS(-1))
                    with builder.if_then(builder.and_(some, counting)):
                        count(loop.index, samples, lows, highs)
                for place, total, total_weight in zip(places, totals, sums, strict=True):
                    store(builder, builder.load(total), arrays[6], place)
                    if weighted:
                        store(builder, builder.load(total_weight), arrays[7], place)

            def count(frame: Any, samples: list[Any], lows: list[Any], highs: list[Any]) -> None:
                numbers = [I64(0), I64(0)]
                for x, lo, hi in zip(samples, lows, highs, strict=True):
                    below, above = builder.fcmp_ordered("<", x, lo), builder.fcmp_ordered(">", x, hi)
                    above = builder.and_(above, builder.not_(below))  # limits may be crossed
                    for k, out in enumerate((below, above)):
                        infinite = all_lanes(NUMBERS, (-INF, INF)[k])
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
