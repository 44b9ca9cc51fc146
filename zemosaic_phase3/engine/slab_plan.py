"""How many rows of a stack are in memory at a time: bytes per row, and the height of a slab that fits."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from zemosaic_phase3.errors import PlanError
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.runtime.limits import memory_text

KERNEL_PIXELS: Final = LANES  # pixels one worker rejects at a time
# Per sample of those: a sorted copy (float32, up to twice the rows), two prefix sums and a product of weights
# (float64), the samples of a block that is not whole and those of a lane side by side (float32), columns.
KERNEL_SAMPLE_BYTES: Final = 41
FRAME_BYTES: Final = 8 * KERNEL_PIXELS + 64  # per frame: its weight for every lane, counts
TILE_BYTES: Final = 4 << 20  # samples opened at a time: few enough for the processor's caches, enough for a call
# Rows of a slab. A rotated frame is read again for every slab it crosses: with fewer rows than these, fewer workers and
# higher slabs are better, and no slab is cut thinner only because more memory would not make a stack faster.
FEW_ROWS: Final = 8
OUTPUT_MAPS: Final = 5  # image, coverage, weight, rejected low, rejected high; four bytes each


def tile_elements(n_frames: int) -> int:
    """Return how many elements (pixel times channel) of all frames are opened at a time; a multiple of ``LANES``."""
    return max(1, TILE_BYTES // (4 * n_frames * KERNEL_PIXELS)) * KERNEL_PIXELS


def stack_bytes(
    rows: int,
    *,
    n_frames: int,
    height: int,
    width: int,
    channels: int,
    workers: int = 1,
    weights_per_pixel: int = 0,
    source_margin: int = 0,
    source_stretch: float = 1.0,
    source_height: int | None = None,
    source_width: int | None = None,
    raw_bytes: int = 4,
    stored_bytes: int = 0,
    field_bytes: int = 0,
    own_maps: int = 0,
    copied_maps: int = OUTPUT_MAPS,
) -> int:
    """Return the bytes the CPU engine needs at its peak, with slabs of ``rows`` output rows.

    The sum of

    * one slab, ``(n_frames, rows, width, channels)``: registered samples, float32, or pixels as they are stored;
    * ``weights_per_pixel`` weights of each, ``(n_frames, rows, width, ...) float32``;
    * per worker one source block, ``(rows * source_stretch + source_margin, source_width)``, as stored and debayered to
      float32; or, where the slab holds stored pixels, one tile of samples of every frame;
    * per worker the scratch of the rejection kernel, ``KERNEL_PIXELS`` pixels of ``n_frames`` samples;
    * ``own_maps`` maps of the result's shape that the stack is given (the tolerance of its pixels);
    * per frame ``FRAME_BYTES``, for weights and counts, and all frames' distortion fields;
    * the finished tile: ``OUTPUT_MAPS`` maps of ``(height, width, channels)``, 4 bytes each;

    or, where that is more, of the tile and the copy of ``copied_maps`` of its maps in the byte order of the file, when
    all else is given back.

    It never decreases with ``rows``.

    Parameters
    ----------
    rows : int
        Output rows in a slab; more than ``height`` counts as ``height``.
    n_frames, height, width, channels : int
        Frames that are stacked, and the shape of the result.
    workers : int
        Frames resampled, or pixel groups rejected, at the same time.
    weights_per_pixel : int
        Weights of a pixel of a frame: none, one (radial weighting) or one for each channel.
    source_margin : int
        Source rows read beyond ``rows``: the reach of the interpolation, and ``width * sin(rotation)``.
    source_stretch : float
        Source rows for each of ``rows``, 1 or more.
    source_height, source_width : int, optional
        Of a frame, where the result has another size.
    raw_bytes : int
        Bytes of one source pixel, all its channels, before it is demosaiced (2 for a 16-bit mosaic as stored, and 4 as
        samples).
    stored_bytes : int
        Bytes of one stored sample where slabs hold frames as they are stored; 0 where they hold float32 samples.
    field_bytes : int
        Bytes of the distortion fields of all frames.
    own_maps : int
        Maps, float32, that the stack reads.
    copied_maps : int
        Maps, the image among them, that are written to a file.
    """
    rows = min(rows, height)
    slab = (stored_bytes or 4) * n_frames * rows * width * channels
    weights = 4 * n_frames * rows * width * weights_per_pixel
    if stored_bytes:
        source = 4 * n_frames * tile_elements(n_frames)
    else:
        held = min(math.ceil(rows * source_stretch) + source_margin, source_height or height)
        source = held * (source_width or width) * (raw_bytes + 4 * channels)
    scratch = KERNEL_PIXELS * KERNEL_SAMPLE_BYTES * n_frames
    one_map = 4 * height * width * channels
    frames = FRAME_BYTES * n_frames + field_bytes + own_maps * one_map
    return OUTPUT_MAPS * one_map + max(slab + weights + workers * (source + scratch) + frames, copied_maps * one_map)


@dataclass(frozen=True)
class SlabPlan:
    """How a tile is cut into slabs of rows, by how many workers they are made, and the bytes needed and allowed."""

    rows_per_slab: int
    n_slabs: int
    workers: int
    needed_bytes: int
    allowed_bytes: int

    def __str__(self) -> str:
        """Return the plan as one line."""
        return (
            f"{self.n_slabs} slab(s) of {self.rows_per_slab} rows, {self.workers} worker(s), "
            f"{memory_text(self.needed_bytes)} of {memory_text(self.allowed_bytes)}"
        )


def rows_that_fit(height: int, allowed_bytes: int, bytes_of: Callable[[int], int]) -> int:
    """Return the most rows (0 to ``height``) whose bytes are allowed; ``bytes_of`` must not decrease."""
    return bisect.bisect_right(range(1, height + 1), allowed_bytes, key=bytes_of)


def plan_slabs(
    height: int,
    *,
    allowed_bytes: int,
    n_frames: int,
    width: int,
    channels: int,
    workers: int = 1,
    weights_per_pixel: int = 0,
    source_margin: int = 0,
    source_stretch: float = 1.0,
    source_height: int | None = None,
    source_width: int | None = None,
    raw_bytes: int = 4,
    stored_bytes: int = 0,
    field_bytes: int = 0,
    own_maps: int = 0,
    copied_maps: int = OUTPUT_MAPS,
    max_rows: int | None = None,
) -> SlabPlan:
    """Choose the slab height: as few slabs as the memory allows, all of nearly the same height.

    Where slabs would be lower than ``FEW_ROWS``, or no row would fit, fewer workers are taken: each has a source block.

    Parameters
    ----------
    height : int
        Rows of the result.
    allowed_bytes : int
        Memory the stack may take, bytes.
    max_rows : int, optional
        A hint: no slab is higher than this. None or not positive: no hint.
    workers : int
        As many as there may be.
    n_frames, width, channels, weights_per_pixel, source_margin, source_stretch, raw_bytes
        As in :func:`stack_bytes`.
    source_height, source_width, stored_bytes, field_bytes, own_maps, copied_maps
        As in :func:`stack_bytes`.

    Raises
    ------
    PlanError
        Not even one row fits with one worker; the message gives needed and allowed bytes and the remedy.
    """

    def bytes_of(rows: int, workers: int) -> int:
        return stack_bytes(
            rows,
            n_frames=n_frames,
            height=height,
            width=width,
            channels=channels,
            workers=workers,
            weights_per_pixel=weights_per_pixel,
            source_margin=source_margin,
            source_stretch=source_stretch,
            source_height=source_height,
            source_width=source_width,
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            field_bytes=field_bytes,
            own_maps=own_maps,
            copied_maps=copied_maps,
        )

    if height < 1:
        raise PlanError(f"a tile of {height} rows cannot be stacked; frames need at least one row")
    fitting = {n: rows_that_fit(height, allowed_bytes, partial(bytes_of, workers=n)) for n in range(1, workers + 1)}
    enough = [n for n, rows in fitting.items() if rows >= min(FEW_ROWS, height)]
    workers = max(enough or [n for n, rows in fitting.items() if rows >= 1], default=1)
    most = fitting[workers]
    if most < 1:
        needed = bytes_of(1, 1)
        raise PlanError(
            f"one row of {n_frames} frames, {width} pixels wide, needs {needed} bytes ({memory_text(needed)}) with one "
            f"worker, allowed are {allowed_bytes} ({memory_text(allowed_bytes)}); "
            "allow more memory (--memory) or stack fewer frames at a time"
        )
    if max_rows is not None and max_rows > 0:
        most = min(most, max_rows)
    n_slabs = math.ceil(height / most)
    rows = math.ceil(height / n_slabs)
    return SlabPlan(rows, math.ceil(height / rows), workers, bytes_of(rows, workers), allowed_bytes)


def row_slabs(height: int, rows_per_slab: int) -> Iterator[slice]:
    """Yield the destination rows of each slab, top to bottom; the last is cut to fit.

    Raises
    ------
    ValueError
        ``rows_per_slab`` is less than 1, or ``height`` is negative.
    """
    if rows_per_slab < 1 or height < 0:
        raise ValueError(f"cannot cut {height} rows into slabs of {rows_per_slab}; use slabs of at least one row")
    for start in range(0, height, rows_per_slab):
        yield slice(start, min(start + rows_per_slab, height))


def slabs_to_do(height: int, rows_per_slab: int, finished: Sequence[slice]) -> Iterator[slice]:
    """Yield the slabs of the rows that are not finished, top to bottom.

    Parameters
    ----------
    height, rows_per_slab : int
        Rows of the result, and of a slab at most.
    finished : sequence of slice
        Disjoint, ascending.
    """
    first = 0
    for done in (*finished, slice(height, height)):
        for rows in row_slabs(max(0, done.start - first), rows_per_slab):
            yield slice(first + rows.start, first + rows.stop)
        first = done.stop
