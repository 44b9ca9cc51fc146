"""What is seen of a frame before it is measured, in one compiled look at its pixels.

Nearly every frame is in order, and this says so. Where it does not, what was noticed is looked at again, closely, by
:mod:`detection.filler`, :mod:`detection.floor` and others.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.runtime.array_views import flat
from zemosaic_phase3.runtime.jit import compiled_once, kernel

RUN: Final = 16  # px, of one number along the border
BLOCK: Final = 8  # px, side of a block of one number
FLOORED: Final = 0.05  # of the samples, that have the lowest number where what lay below was cut off
FLOOR_SAMPLES: Final = 16_384  # samples of a colour that tell it
CLIP_SAMPLES: Final = 65_536  # samples that tell whether a quarter of a frame is clipped
MOST_CLIPPED: Final = 0.25  # of a frame's samples: it shows no sky to be matched by
MIN_CLIPPED: Final = 8  # pixels of the highest number, from which on it is the level that clips
MOST_COMPARED: Final = 4096  # clipped pixels that tell whether they lie together


@kernel
def _has_run(line: np.ndarray) -> bool:
    """Whether a line (n, C) has a long run of equal pixels, all valid."""
    n, channels = line.shape
    length = 1
    for i in range(1, n + 1):
        same = i < n
        if same:
            for c in range(channels):
                same = same and line[i, c] == line[i - 1, c]
        if same:
            length += 1
            continue
        if length >= min(RUN, n):
            valid = True
            for c in range(channels):
                valid = valid and abs(line[i - 1, c]) < np.inf
            if valid:
                return True
        length = 1
    return False


@kernel
def _has_block(frame: np.ndarray) -> bool:
    """Whether a block of 8 x 8 pixels is constant in every channel."""
    height, width, channels = frame.shape
    for y in range(0, height - BLOCK + 1, BLOCK):
        first, second, third, fourth = frame[y], frame[y + 3], frame[y + 5], frame[y + 7]
        for x in range(0, width - BLOCK + 1, BLOCK):
            value = first[x, 0]
            if not (value == second[x + 5, 0] and value == third[x + 2, 0] and value == fourth[x + 7, 0]):
                continue
            same = True
            for v in range(y, y + BLOCK):
                for u in range(x, x + BLOCK):
                    for c in range(channels):
                        same = same and frame[v, u, c] == frame[y, x, c]
            if same:
                return True
    return False


@kernel
def _may_be_floored(frame: np.ndarray, spacing: int) -> bool:
    """Whether many samples of a channel, or of a place of a mosaic's cells (``spacing`` 2), have its lowest number."""
    height, width, channels = frame.shape
    for place in range(spacing * spacing):
        top, left = place // spacing, place % spacing
        rows, columns = (height - top + spacing - 1) // spacing, (width - left + spacing - 1) // spacing
        step = spacing * max(1, int(np.sqrt(rows * columns / FLOOR_SAMPLES)))
        for c in range(channels):
            lowest, count, total = np.float32(np.inf), 0, 0
            for y in range(top, height, step):
                for x in range(left, width, step):
                    value = frame[y, x, c]
                    total += 1
                    if value < lowest:
                        lowest, count = value, 0
                    if value == lowest:
                        count += 1
            if count >= FLOORED * total:
                return True
    return False


@kernel
def _may_be_clipped(frame: np.ndarray) -> bool:
    """Whether about a quarter of the samples have the highest number."""
    height, width, channels = frame.shape
    step = max(1, int(np.sqrt(frame.size / CLIP_SAMPLES))) | 1
    highest, count, total = np.float32(-np.inf), 0, 0
    for y in range(0, height, step):
        for x in range(0, width, step):
            for c in range(channels):
                value = frame[y, x, c]
                if not abs(value) < np.inf:
                    continue
                total += 1
                if value > highest:
                    highest, count = value, 0
                if value == highest:
                    count += 1
    return total > 0 and count >= MOST_CLIPPED * total


@compiled_once
@kernel
def _shows_something(frame: np.ndarray, first: int, last: int, spacing: int) -> bool:
    """Whether every plane has a valid sample in some rows, and the valid ones of any differ.

    Of a mosaic (``spacing`` 2) the places of its cells are looked at instead: the mean of two greens is valid where
    both are.
    """
    channels = frame.shape[2]
    differs = False
    for place in range(spacing * spacing):
        top, left = place // spacing, place % spacing
        for c in range(channels):
            lowest, highest = np.float32(np.inf), np.float32(-np.inf)
            for y in range(first + top, last, spacing):
                for x in range(left, frame.shape[1], spacing):
                    value = frame[y, x, c]
                    if abs(value) < np.inf:
                        lowest, highest = min(lowest, value), max(highest, value)
            if lowest > highest:
                return False
            differs = differs or bool(lowest < highest)
    return differs


@kernel
def _column_maxima(frame: np.ndarray, out: np.ndarray) -> None:
    """Highest number of every column and channel, ``out (W * C,) float32``; NaN are passed over."""
    out[:] = -np.inf
    for y in range(frame.shape[0]):
        row = flat(frame[y])
        for x in range(row.size):
            out[x] = row[x] if row[x] > out[x] else out[x]


@kernel
def _lie_together(frame: np.ndarray, c: int, columns: np.ndarray, highest: float) -> bool:
    """Whether enough pixels of a channel have its highest number, and a third of them a neighbour that has it too.

    Looked at are the columns that reach it; of a mosaic the next of the same colour is two pixels away.
    """
    height, width, channels = frame.shape
    reaching, n = np.empty(width, np.int64), 0
    for x in range(width):
        if columns[x * channels + c] == highest:
            reaching[n] = x
            n += 1
    place, count = np.empty(MOST_COMPARED, np.int64), 0
    for y in range(height):
        for k in range(n):
            if frame[y, reaching[k], c] == highest and count < MOST_COMPARED:
                place[count] = y * width + reaching[k]
                count += 1
    if count < MIN_CLIPPED:
        return False
    together = 0
    for k in range(count):
        near = False
        for distance in (1, 2, width, 2 * width):
            low, high = 0, count
            while low < high:
                middle = (low + high) // 2
                if place[middle] < place[k] + distance:
                    low = middle + 1
                else:
                    high = middle
            near = near or (low < count and place[low] == place[k] + distance)
        together += 1 if near else 0
    return 3 * together >= count


@kernel
def look(frame: np.ndarray, spacing: int, highest: np.ndarray, together: np.ndarray) -> tuple[bool, bool, bool, bool]:
    """Fill ``highest`` and ``together (C,)``, and return the other facts of :class:`detection.look.Look`, in its order.

    ``spacing``: 2 for a mosaic, else 1.
    """
    height, width, channels = frame.shape
    # From the first row of a cell on, where it is a mosaic; as many rows as are nearly always enough.
    first = (height // spacing // 2) * spacing
    shows = _shows_something(frame, first, min(first + 16 * spacing, height // spacing * spacing), spacing)
    shows = shows or _shows_something(frame, 0, height // spacing * spacing, spacing)
    filler = (
        _has_run(frame[0]) or _has_run(frame[height - 1]) or _has_run(frame[:, 0]) or _has_run(frame[:, width - 1])
        or _has_block(frame)
    )  # fmt: skip
    columns = np.empty(width * channels, np.float32)
    _column_maxima(frame, columns)
    for c in range(channels):
        highest[c] = -np.inf
        for x in range(width):
            highest[c] = max(highest[c], columns[x * channels + c])
        together[c] = highest[c] > -np.inf and _lie_together(frame, c, columns, highest[c])
    return shows, filler, _may_be_floored(frame, spacing), _may_be_clipped(frame)
