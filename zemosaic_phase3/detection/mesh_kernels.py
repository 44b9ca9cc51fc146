"""The sky of one plane of a frame on a mesh of cells, compiled: what :mod:`detection.sky_mesh` defines."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.detection.normal_distribution import normal_quantile, normal_share
from zemosaic_phase3.detection.order_statistics import MOST_COUNTS, median, pairwise_sum, sort_float32
from zemosaic_phase3.runtime.array_views import flat
from zemosaic_phase3.runtime.jit import compiled_once, kernel

ENOUGH: Final = 0.25  # of a cell's samples, that must be valid
CLIP: Final = 3.0  # units of the noise, samples beyond are no sky
CROWDED: Final = 0.3  # units of the noise, between mean and median; beyond it the mode's formula fails
FINE: Final = 1.0 / 16.0  # of the noise: a step below it moves a median less than the noise does
COARSE: Final = 2.0  # units of the noise: the mean of numbers with a wider step depends on where the sky lies in it
CELLS_SEEN: Final = 4  # cells whose samples tell the step
REPEATS: Final = 8  # samples a level, on average, from which samples count as quantised
ROUNDING: Final = 5e-7  # of a number, by which equal ones may differ that float32 arithmetic made
FLOORED: Final = 0.05  # of the samples, that have the lowest number where what lay below was cut off

# Columns of a table of planes: pixels of the frame from one sample to the next along rows and columns, the channel, and
# the places (row, column) whose mean a sample is; -1: there is one place alone.
SPACING, CHANNEL, ROW, COLUMN, OTHER_ROW, OTHER_COLUMN = range(6)


@kernel
def load_row(frame: np.ndarray, plane: np.ndarray, y: int, out: np.ndarray) -> None:
    """Fill ``out (w,) float32`` with row y of a plane of a frame (H, W, C); ``plane``: a row of a table of planes."""
    spacing, left, other = plane[SPACING], plane[COLUMN], plane[OTHER_COLUMN]
    row = frame[y * spacing + plane[ROW], :, plane[CHANNEL]]
    for x in range(out.size):
        out[x] = row[np.uint64(x * spacing + left)]
    if plane[OTHER_ROW] >= 0:
        beside = frame[y * spacing + plane[OTHER_ROW], :, plane[CHANNEL]]
        for x in range(out.size):
            out[x] = (out[x] + beside[np.uint64(x * spacing + other)]) * np.float32(0.5)


@compiled_once
@kernel
def gather(
    frame: np.ndarray, plane: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], step: tuple[int, int],
    out: np.ndarray,
) -> int:  # fmt: skip
    """Copy the valid samples of some rows and columns (from, to) of a plane, every so many; return how many."""
    spacing, channel, left, other = plane[SPACING], plane[CHANNEL], plane[COLUMN], plane[OTHER_COLUMN]
    has_other = plane[OTHER_ROW] >= 0
    size = 0
    for y in range(rows[0], rows[1], step[0]):
        row = frame[y * spacing + plane[ROW], :, channel]
        beside = frame[y * spacing + max(plane[OTHER_ROW], 0), :, channel]
        for x in range(columns[0], columns[1], step[1]):
            at = np.uint64(x * spacing)
            value = row[at + np.uint64(left)]
            if has_other:
                value = (value + beside[at + np.uint64(other)]) * np.float32(0.5)
            if abs(value) < np.inf:
                out[np.uint64(size)] = value
                size += 1
    return size


@kernel
def above_floor(values: np.ndarray, size: int) -> tuple[bool, float, float]:
    """Whether ascending samples are those of a sky cut off at its lowest number; its level and noise.

    As :func:`robust.sky_above_floor`.
    """
    floor = np.float64(values[0])
    first, second = np.float64(values[int(0.6915 * (size - 1))]), np.float64(values[int(0.8413 * (size - 1))])
    third = np.float64(values[int(0.9332 * (size - 1))])
    if not first < second < third:
        return False, 0.0, 0.0
    if first > floor:
        noise = 2.0 * (second - first)
        return True, second - 1.0 * noise, noise
    if not second > floor:
        return False, 0.0, 0.0
    noise = 2.0 * (third - second)
    return True, third - 1.5 * noise, noise


@kernel
def sample_step(
    samples: np.ndarray, valid: np.ndarray, noise: np.ndarray, spare: np.ndarray, counts: np.ndarray
) -> float:
    """Step of which all differences of samples are multiples; 0 where there is none that matters.

    It is looked for in the samples themselves, in the middle two thirds of a few cells: what a file's type says is not
    what its camera did, and the mean of two greens has half of the step.

    ``samples (cells, n) float32`` ascending, ``valid (cells,)`` how many of each, 0 for a cell without a sky.
    """
    cells, n = samples.shape
    usable = 0
    noises = np.empty(cells)
    for k in range(cells):
        if valid[k] > 0:
            noises[usable] = noise[k]
            usable += 1
    if usable == 0:
        return 0.0
    seen, other = np.empty(CELLS_SEEN * n, np.float32), np.empty(CELLS_SEEN * n, np.float32)
    looked_at, size, at = min(CELLS_SEEN, usable), 0, 0
    for part in range(looked_at):
        wanted = int(part * ((usable - 1.0) / (looked_at - 1.0))) if looked_at > 1 else 0
        if looked_at > 1 and part == looked_at - 1:
            wanted = usable - 1
        rank = -1
        at = -1
        while rank < wanted:
            at += 1
            if valid[at] > 0:
                rank += 1
        last = valid[at] - 1
        for i in range(int(0.1587 * last), int(0.8413 * last) + 1):
            seen[size] = samples[at, i]
            size += 1
    sort_float32(seen[:size], other[:size], counts)
    least = ROUNDING * max(abs(np.float64(seen[0])), abs(np.float64(seen[size - 1])))
    jumps = np.empty(size)
    n_jumps, smallest = 0, np.inf
    for i in range(1, size):
        jump = np.float64(seen[i]) - np.float64(seen[i - 1])
        if jump > least:
            jumps[n_jumps] = jump
            n_jumps += 1
            smallest = min(smallest, jump)
    if n_jumps == 0 or n_jumps * REPEATS > size:
        return 0.0
    multiples = np.empty(n_jumps)
    for part in range(1, 4):  # a step of 1 may show as 2 and 3 only
        step = smallest / part
        worst = 0.0
        for i in range(n_jumps):
            multiple = jumps[i] / step
            multiples[i] = np.rint(multiple)
            worst = max(worst, abs(multiple - multiples[i]))
        if worst < 0.05:
            step = pairwise_sum(jumps, 0, n_jumps) / pairwise_sum(multiples, 0, n_jumps)
            return step if step >= FINE * median(noises, usable) else 0.0
    return 0.0


@kernel
def _place(sigmas: np.ndarray, first_edge: np.ndarray, m: int, step: float, wanted: float) -> float:
    """Place where a distribution, known at m edges, has so many sigmas."""
    k = 0
    for i in range(m):
        if sigmas[i] > wanted:
            k = i
            break
    k = min(max(k, 1), m - 1)
    low, high = sigmas[k - 1], sigmas[k]
    part = (wanted - low) / (high - low) if high > low else 0.5
    return first_edge[k - 1] + min(max(part, 0.0), 1.0) * step


@kernel
def grouped_cell(
    samples: np.ndarray, valid: int, step: float, reach: int, known: np.ndarray, work: np.ndarray
) -> tuple[float, float]:
    """Level and noise of the sky of one cell whose samples are multiples of a step apart.

    A number on the grid stands for all between the middles of its neighbours, so that how many samples lie below is
    known exactly at those middles, and nowhere else. In between it is interpolated as a normal distribution is, by its
    quantiles, which is exact where the sky's noise is Gaussian, however coarse the step. The median of the numbers
    themselves sits on the grid, wrong by up to half a step, and 2.5 times that in the mode.

    ``samples (n,) float32`` ascending, ``known (n + 1,)`` quantiles of shares of n that are known already, else NaN;
    ``work (6, m)`` scratch, m = 2 reach + 2 edges.
    """
    m = 2 * reach + 2
    edges, sigmas, share, inside, between, terms = work[0], work[1], work[2], work[3], work[4], work[5]
    middle = np.float64(samples[valid // 2])
    count = np.float64(valid)
    is_full = valid == known.size - 1
    below = 0
    for i in range(m):
        edges[i] = middle + (i - reach - 0.5) * step
        while below < valid and samples[below] < edges[i]:
            below += 1
        share[i] = min(max(below / count, 0.5 / count), 1.0 - 0.5 / count)
        if not is_full:
            sigmas[i] = normal_quantile(share[i])
            continue
        if math.isnan(known[below]):
            known[below] = normal_quantile(share[i])
        sigmas[i] = known[below]
    middle = _place(sigmas, edges, m, step, 0.0)
    low, high = _place(sigmas, edges, m, step, -1.0), _place(sigmas, edges, m, step, 1.0)
    noise = min(0.5 * (high - low), middle - low)
    cut_low = min(max(middle - CLIP * noise, edges[0]), edges[m - 1])
    cut_high = min(max(middle + CLIP * noise, edges[0]), edges[m - 1])
    k = min(int((cut_low - edges[0]) / step), m - 2)
    part = (cut_low - edges[k]) / step
    end_low = normal_share(sigmas[k] * (1.0 - part) + sigmas[k + 1] * part)
    k = min(int((cut_high - edges[0]) / step), m - 2)
    part = (cut_high - edges[k]) / step
    end_high = normal_share(sigmas[k] * (1.0 - part) + sigmas[k + 1] * part)
    for i in range(m):
        inside[i] = min(max(share[i], end_low), end_high)
        between[i] = min(max(edges[i], cut_low), cut_high)
    for i in range(m - 1):
        inside[i] = inside[i + 1] - inside[i]
        terms[i] = inside[i] * (0.5 * (between[i + 1] + between[i]) - middle)
    mean = middle + pairwise_sum(terms, 0, m - 1) / max(pairwise_sum(inside, 0, m - 1), 1e-12)
    middle = _place(sigmas, edges, m, step, normal_quantile(0.5 * (end_low + end_high)))
    is_plain = abs(mean - middle) < CROWDED * noise and step < COARSE * noise
    return (2.5 * middle - 1.5 * mean if is_plain else middle), noise


@kernel
def _plain_cell(samples: np.ndarray, valid: int, terms: np.ndarray) -> tuple[float, float]:
    """Level and noise of the sky of one cell from ascending samples that count as they are."""
    last = valid - 1
    low, high = np.float64(samples[int(np.rint(0.1587 * last))]), np.float64(samples[int(np.rint(0.8413 * last))])
    middle = np.float64(samples[int(np.rint(0.5 * last))])
    noise = min(0.5 * (high - low), middle - low)
    reach = CLIP * noise
    first, last = 0, valid
    while abs(np.float64(samples[first]) - middle) > reach:
        first += 1
    while abs(np.float64(samples[last - 1]) - middle) > reach:
        last -= 1
    count = last - first
    for i in range(first):
        terms[i] = 0.0
    for i in range(first, last):
        terms[i] = np.float64(samples[i]) - middle
    for i in range(last, samples.size):
        terms[i] = 0.0
    mean = middle + pairwise_sum(terms, 0, samples.size) / count
    middle = np.float64(samples[first + count // 2])
    return (2.5 * middle - 1.5 * mean if abs(mean - middle) < CROWDED * noise else middle), noise


@kernel
def measure_mesh(
    frame: np.ndarray, planes: np.ndarray, sides: tuple[int, int], cell: int, step: int, samples: np.ndarray,
    level: np.ndarray, noise: np.ndarray,
) -> None:  # fmt: skip
    """Measure level and noise of the sky in every cell of planes of a frame.

    Parameters
    ----------
    frame : ndarray (H, W, C) float32, ADU
        NaN = invalid.
    planes : ndarray (P, 6) int64
        Where their samples are, see the head of this module.
    sides : (int, int)
        Samples of a plane down and across.
    cell, step : int
        Side of a cell, and which of its samples count, as in :func:`detection.sky_mesh.sky_mesh`.
    samples : ndarray (rows * columns, n) float32
        Scratch, n the samples of a cell.
    level, noise : ndarray (P, rows, columns) float64, ADU
        Filled; NaN where less than a quarter of the samples is valid.
    """
    rows, columns = level.shape[1:]
    high, wide = min(cell, sides[0]), min(cell, sides[1])
    n = samples.shape[1]
    spare, terms, counts = np.empty(n, np.float32), np.empty(n), np.empty(MOST_COUNTS, np.int64)
    valid, is_floored = np.empty(rows * columns, np.int64), np.empty(rows * columns, np.bool_)
    known = np.full(n + 1, np.nan)
    for p in range(len(planes)):
        flat_level, flat_noise = flat(level[p]), flat(noise[p])
        for k in range(rows * columns):
            top, left = (k // columns) * high, (k % columns) * wide
            size = gather(frame, planes[p], (top, top + high), (left, left + wide), (step, step), samples[k])
            flat_level[k], flat_noise[k], is_floored[k], valid[k] = np.nan, np.nan, False, 0
            if size < max(1.0, ENOUGH * n):
                continue
            valid[k] = size
            own = samples[k]
            sort_float32(own[:size], spare[:size], counts)
            flat_level[k], flat_noise[k] = _plain_cell(own, size, terms)
            if size > 1 and own[0] == own[int(FLOORED * (size - 1))]:
                is_floored[k], above, spread = above_floor(own, size)
                if is_floored[k]:
                    flat_level[k], flat_noise[k] = above, spread
        width = sample_step(samples, valid, flat_noise, spare, counts)
        if width > 0.0:
            _regroup(samples, valid, is_floored, width, known, flat_level, flat_noise)


@kernel
def _regroup(
    samples: np.ndarray, valid: np.ndarray, is_floored: np.ndarray, step: float, known: np.ndarray, level: np.ndarray,
    noise: np.ndarray,
) -> None:  # fmt: skip
    """Measure again, between the steps, the cells whose step is wide beside their noise."""
    widest = -1.0
    for k in range(len(samples)):
        if valid[k] > 0 and not is_floored[k] and noise[k] * FINE <= step:
            widest = max(widest, noise[k])
    if widest < 0.0:
        return
    reach = int(math.ceil(CLIP * (widest / step + 1.0))) + 1
    work = np.empty((6, 2 * reach + 2))
    for k in range(len(samples)):
        if valid[k] > 0 and not is_floored[k] and noise[k] * FINE <= step:
            level[k], noise[k] = grouped_cell(samples[k], valid[k], step, reach, known, work)
