"""Sums over the frames of the samples that were kept, in vector registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from zemosaic_phase3.runtime.jit import inner_kernel
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import BOOL, F64, I64, INF, Array, Emitter, Value, Variable, any_of, count, where
from zemosaic_phase3.runtime.twin import Flag, Int, hand_written


def _make_sums(name: str, *, weighted: bool) -> Any:
    """Return the sums over the frames of :func:`weighted_sums_of_kept`, or those of :func:`sums_of_kept`."""

    def plain(
        cube: np.ndarray, at: int, stride: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray,
        total: np.ndarray, weight: np.ndarray, rejected: np.ndarray, counting: bool,
    ) -> None:  # fmt: skip
        total[:LANES] = 0.0
        if weighted:
            weight[:LANES] = 0.0
        for i in range(len(cube)):
            x = cube[i, at : at + LANES]
            keep = (x >= low) & (x <= high)
            with np.errstate(all="ignore"):
                value = weights[i] * x.astype(np.float64) if weighted else x.astype(np.float64)
                total[:LANES] += np.where(keep, value, 0.0)
                if weighted:
                    weight[:LANES] += np.where(keep, weights[i], 0.0)
            if counting:
                below = (x < low) & (x != -INF)
                above = (x > high) & ~(x < low) & (x != INF)  # limits may be crossed
                rejected[i, 0] += np.count_nonzero(below)
                rejected[i, 1] += np.count_nonzero(above)

    @hand_written(plain, name=name)
    def run(
        emit: Emitter, cube: Array, at: Int, stride: Int, weights: Array, low: Array, high: Array, total: Array,
        weight: Array, rejected: Array, counting: Flag,
    ) -> None:  # fmt: skip
        def sums_from(start: Value, groups: range) -> None:
            """Walk through the frames with some groups of 16 pixels, the first of which is ``start``."""
            places = [start + g for g in groups]
            limits = [(low.load(place), high.load(place)) for place in places]
            totals, sums = ([Variable(emit.constant(F64, 0.0, SIMD)) for _ in groups] for _ in range(2))
            with emit.range(0, cube.rows) as i:
                frame = at + i * stride
                samples = [cube.load(frame + place) for place in places]
                all_kept = emit.constant(BOOL, True, SIMD)
                for g, (x, (lo, hi)) in enumerate(zip(samples, limits, strict=True)):
                    keep = (x >= lo) & (x <= hi)
                    value = x.to(F64)
                    if weighted:
                        w = weights.load(i * LANES + places[g])
                        sums[g].now += where(keep, w, 0.0)
                        value = w * value
                    totals[g].now += where(keep, value, 0.0)
                    all_kept &= keep
                with emit.when(any_of(~all_kept) & counting):
                    count_rejected(i, samples, limits)
            for g, place in enumerate(places):
                total.store(place, totals[g].now)
                if weighted:
                    weight.store(place, sums[g].now)

        def count_rejected(i: Value, samples: list[Value], limits: list[tuple[Value, Value]]) -> None:
            n_below, n_above = emit.constant(I64, 0), emit.constant(I64, 0)
            for x, (lo, hi) in zip(samples, limits, strict=True):
                below = (x < lo) & (x != -INF)
                above = (x > hi) & ~(x < lo) & (x != INF)  # limits may be crossed
                n_below, n_above = n_below + count(below), n_above + count(above)
            rejected[i * 3] += n_below
            rejected[i * 3 + 1] += n_above

        at_once = LANES // 2 if weighted else LANES  # more totals than that do not fit into the registers
        with emit.range(0, LANES, at_once) as start:
            sums_from(start, range(0, at_once, SIMD))

    return run


_sums, _weighted_sums = _make_sums("_sums", weighted=False), _make_sums("_weighted_sums", weighted=True)


@inner_kernel
def sums_of_kept(
    cube: np.ndarray,
    at: int,
    low: np.ndarray,
    high: np.ndarray,
    total: np.ndarray,
    rejected: np.ndarray,
    counting: bool,
) -> None:
    """Sum what ``LANES`` pixels keep, over the frames in their order: ``total (LANES,) float64``.

    ``cube (N, P) float32``: pixels from ``at`` on. Kept is ``low <= x <= high``, ``(LANES,) float32``. If ``counting``,
    ``rejected (N, 3) int64`` grows by the finite samples of each frame below ``low``, and by the others above ``high``.
    """
    _sums(cube, at, np.int64(cube.strides[0] // 4), total, low, high, total, total, rejected, counting)


@inner_kernel
def weighted_sums_of_kept(
    cube: np.ndarray, at: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray, total: np.ndarray,
    weight: np.ndarray, rejected: np.ndarray, counting: bool,
) -> None:  # fmt: skip
    """Do the same with ``weights (N, LANES) float64``: ``total`` of w x and ``weight`` of w.

    With all weights 1 the total is that of :func:`sums_of_kept` to the bit.
    """
    _weighted_sums(cube, at, np.int64(cube.strides[0] // 4), weights, low, high, total, weight, rejected, counting)
