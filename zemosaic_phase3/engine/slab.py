"""One slab of every frame: read, resampled where it must be, held until it is combined.

A slab holds rows of the result. Frames that must be resampled go into it as samples (:class:`SampleSlab`). Frames that
lie on the reference grid already stay as they are stored, half as large, and become samples a tile at a time
(:class:`StoredSlab`): the samples are then combined before they have left the processor's caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.engine.slab_plan import tile_elements
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.registration.distortion import NO_DISTORTION, reach

if TYPE_CHECKING:
    from zemosaic_phase3.io.codec import RawLayout


def weights_per_pixel(job: Job) -> int:
    """Return how many weights a pixel of a frame has besides the frame's: none, one, or one for each channel."""
    return job.channels if job.sample_weight is not None else own_weights(job)


def own_weights(job: Job) -> int:
    """Return how many weights a pixel of a frame is given when its samples are made."""
    return job.channels if job.spec.drizzle > 0.0 else int(job.spec.radial_weight)


def frame_block(source: FrameSource, first: int, last: int, columns: np.ndarray | None = None) -> np.ndarray:
    """Read rows of a frame, demosaiced: ``((last - first) * W * C + PAD,) float32``, channels interleaved, ADU.

    Of a mosaic only ``columns (last - first, 2) int64`` of each row, from the first to one before the second, need be
    demosaiced, and other pixels may hold anything; None: all.
    """
    from zemosaic_phase3.resample.decode import read_samples
    from zemosaic_phase3.resample.demosaic import CFA_MARGIN, demosaic_rows, red_position

    if source.cfa is None:
        return _block_as_stored(source, first, last)
    block = _empty_block((last - first) * source.width * source.channels)
    top, bottom = max(first - CFA_MARGIN, 0), min(last + CFA_MARGIN, source.height)
    raw = np.empty((bottom - top) * source.width, np.float32)
    read_samples(source, top, bottom, np.ones(1), np.zeros(1), raw)
    red_row, red_column = red_position(source.cfa)
    wanted = np.tile(np.array([0, source.width]), (last - first, 1)) if columns is None else columns
    demosaic_rows(
        raw.reshape(-1, source.width), top, source.height, source.width, first, last, red_row, red_column, wanted, block
    )
    return block


def _empty_block(size: int) -> np.ndarray:
    """Return memory for samples of a frame, with what kernels read behind them."""
    from zemosaic_phase3.resample.interpolation import PAD

    block = np.empty(size + PAD, np.float32)
    block[size:] = 0.0
    return block


def _block_as_stored(source: FrameSource, first: int, last: int) -> np.ndarray:
    """Read rows of a frame as samples; a mosaic stays one: ``((last - first) * W * planes + PAD,) float32``, ADU."""
    from zemosaic_phase3.resample.decode import read_samples

    planes = 1 if source.cfa else source.channels
    size = (last - first) * source.width * planes
    block = _empty_block(size)
    read_samples(source, first, last, np.ones(planes), np.zeros(planes), block[:size])
    return block


def fill_samples(job: Job, i: int, rows: slice, samples: np.ndarray, weights: np.ndarray) -> None:
    """Fill ``samples (rows * W * C,)`` with frame i on the grid of the result, normalised; NaN outside its footprint.

    ``weights``: filled with what they weigh, as many for a pixel as :func:`own_weights` says.
    """
    source, table = job.sources[i], job.table
    if job.spec.drizzle > 0.0:
        _fill_drizzled(job, i, rows, samples, weights)
    elif weights.size == 0 and table.in_place[i]:
        _fill_in_place(source, rows, table.scale[i], table.offset[i], samples)
    else:
        _fill_resampled(job, i, rows, samples, weights)


def _fill_in_place(
    source: FrameSource, rows: slice, scale: np.ndarray, offset: np.ndarray, samples: np.ndarray
) -> None:
    """Fill the samples of a frame that lies on the reference grid already."""
    from zemosaic_phase3.resample.decode import read_samples, scale_samples

    if source.cfa is None:
        read_samples(source, rows.start, rows.stop, scale, offset, samples)
        return
    block = frame_block(source, rows.start, rows.stop)[: samples.size]
    scale_samples(block.reshape(-1, source.channels), scale, offset, samples)


def _fill_resampled(job: Job, i: int, rows: slice, samples: np.ndarray, radial: np.ndarray) -> None:
    from zemosaic_phase3.resample.footprint import source_columns, source_rows
    from zemosaic_phase3.resample.interpolation import needs_clamp, weight_table
    from zemosaic_phase3.resample.warp import radial_weight_table, resample_rows

    source, spec, table = job.sources[i], job.spec, job.table
    matrix = table.transform[i]
    width = job.shape[1]
    field = table.distortion[i] if table.distortion else NO_DISTORTION
    first, last = source_rows(matrix, rows.start, rows.stop, width, source.height, frame_reach(job, i))
    if last <= first:
        samples.fill(np.nan)
        radial.fill(0.0)
        return
    far = float(np.abs(field).max(initial=0.0))
    columns = source_columns(matrix, rows.start, rows.stop, width, first, last, source.width, far)
    resample_rows(
        frame_block(source, first, last, columns),
        first,
        source.height,
        source.width,
        job.channels,
        matrix,
        field if field.size else None,
        weight_table(spec.interpolation),
        needs_clamp(spec.interpolation),
        table.scale[i],
        table.offset[i],
        rows.start,
        rows.stop,
        width,
        samples,
        radial,
        radial_weight_table(spec.radial_feather, spec.radial_power, spec.radial_floor),
    )


def _fill_drizzled(job: Job, i: int, rows: slice, samples: np.ndarray, weights: np.ndarray) -> None:
    from zemosaic_phase3.resample.demosaic import red_position
    from zemosaic_phase3.resample.drizzle import drizzle_rows
    from zemosaic_phase3.resample.footprint import source_rows

    source, table = job.sources[i], job.table
    matrix = table.transform[i]
    field = table.distortion[i] if table.distortion else NO_DISTORTION
    first, last = source_rows(matrix, rows.start, rows.stop, job.shape[1], source.height, frame_reach(job, i))
    if last <= first:
        samples.fill(np.nan)
        weights.fill(0.0)
        return
    red_row, red_column = (-1, -1) if source.cfa is None else red_position(source.cfa)
    drizzle_rows(
        _block_as_stored(source, first, last), first, source.height, source.width, red_row, red_column, matrix, field,
        job.spec.pixfrac, table.scale[i], table.offset[i], rows.start, rows.stop, job.shape[1], samples, weights,
    )  # fmt: skip


def frame_reach(job: Job, i: int) -> float:
    """Return how many rows of frame i may be needed beyond those that the pixels' centres are mapped to.

    By its distortion field; and of a drizzle by half of the pixel of the result and half of a drop.
    """
    displaced = reach(job.table.distortion[i]) if job.table.distortion else 0.0
    if job.spec.drizzle == 0.0:
        return displaced
    return displaced + 0.5 * (float(np.abs(job.table.transform[i][1, :2]).sum()) + job.spec.pixfrac)


def expect_slab(job: Job, rows: slice) -> None:
    """Have the system fetch what these rows of the result need of every frame, while other work goes on."""
    from zemosaic_phase3.resample.demosaic import CFA_MARGIN
    from zemosaic_phase3.resample.footprint import source_rows

    table = job.table
    in_place = table.in_place
    for i, source in enumerate(job.sources):
        first, last = rows.start, rows.stop
        if not in_place[i]:
            matrix = table.transform[i]
            first, last = source_rows(matrix, first, last, job.shape[1], source.height, frame_reach(job, i))
        if last > first:
            margin = CFA_MARGIN if source.cfa else 0
            source.expect_rows(max(first - margin, 0), min(last + margin, source.height))


def source_reach(job: Job) -> tuple[int, float]:
    """Return (margin, stretch): a slab needs at most ``rows * stretch + margin`` rows of any frame."""
    from zemosaic_phase3.resample.demosaic import CFA_MARGIN
    from zemosaic_phase3.resample.footprint import slab_reach

    table, (height, width) = job.table, job.shape[:2]
    moved = ~table.in_place | job.spec.radial_weight
    displaced = max(frame_reach(job, i) for i in range(len(job.sources)))
    tallest = max(source.height for source in job.sources)
    margin, stretch = slab_reach(table.transform[moved], width, height, displaced, tallest) if moved.any() else (0, 1.0)
    return margin + (2 * CFA_MARGIN if any(source.cfa for source in job.sources) else 0), stretch


def source_pixel_bytes(source: FrameSource) -> int:
    """Return the bytes of one pixel of a frame until it is demosaiced: as stored, and a mosaic as samples too."""
    return source.dtype.itemsize + 4 if source.cfa else source.dtype.itemsize * source.channels


class Piece(NamedTuple):
    """Samples to combine: columns ``start`` to ``stop - 1`` of ``cube (N, P) float32``.

    Column 0 is element ``offset`` of the slab.
    """

    cube: np.ndarray
    start: int
    stop: int
    offset: int


class SampleSlab:
    """Samples of one slab, ``(N, rows * W * C) float32``, and their own weights, as many as they have.

    The memory is used again for the next slab. ``samples``: the whole of it, where it is filled in already.
    """

    def __init__(self, job: Job, max_rows: int, samples: np.ndarray | None = None) -> None:
        self._job = job
        size = len(job.sources) * max_rows * job.shape[1]
        self._samples = np.empty(size * job.channels, np.float32) if samples is None else samples.reshape(-1)
        self._per_pixel = own_weights(job)
        self._weights = np.empty(size * self._per_pixel, np.float32)
        self.take(slice(0, max_rows))

    def take(self, rows: slice) -> None:
        """Make room for these rows of the result."""
        frames, pixels = len(self._job.sources), (rows.stop - rows.start) * self._job.shape[1]
        self.rows = rows
        self.cube = self._samples[: frames * pixels * self._job.channels].reshape(frames, -1)
        self.own_weights = self._weights[: frames * pixels * self._per_pixel].reshape(frames, -1)

    def fill(self, i: int) -> None:
        """Fill in frame i."""
        fill_samples(self._job, i, self.rows, self.cube[i], self.own_weights[i])

    def weights(self) -> tuple[np.ndarray, int]:
        """Weights per sample and how many neighbouring elements share one; (0, 0) float32 when there are none."""
        if self._job.sample_weight is not None:
            weights = np.ascontiguousarray(self._job.sample_weight[:, self.rows], dtype=np.float32)
            return weights.reshape(weights.shape[0], -1), 1
        if self._per_pixel == 0:
            return np.empty((0, 0), np.float32), self._job.channels
        return self.own_weights, self._job.channels // self._per_pixel

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield elements start .. stop - 1, all at once."""
        yield Piece(self.cube, start, stop, 0)


class StoredSlab:
    """Rows of one slab as they are stored, ``(N, bytes) uint8``; ``layout`` from :func:`stored_layout`."""

    def __init__(self, job: Job, max_rows: int, layout: RawLayout) -> None:
        self._job, self._layout = job, layout
        self._line = job.shape[1] * job.channels * layout.dtype.itemsize
        self._bytes = np.empty(len(job.sources) * max_rows * self._line, np.uint8)
        self.take(slice(0, max_rows))

    def take(self, rows: slice) -> None:
        """Make room for these rows of the result."""
        frames, size = len(self._job.sources), (rows.stop - rows.start) * self._line
        self.rows = rows
        self.stored = self._bytes[: frames * size].reshape(frames, size)

    def fill(self, i: int) -> None:
        """Read frame i."""
        self._job.sources[i].read_raw(self.rows.start, self.rows.stop, self.stored[i])

    def weights(self) -> tuple[np.ndarray, int]:
        """No sample has a weight of its own."""
        return np.empty((0, 0), np.float32), self._job.channels

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield elements start .. stop - 1, a tile at a time in the same memory. No element may be asked for twice."""
        from zemosaic_phase3.resample.decode import open_raw

        frames, table = len(self._job.sources), self._job.table
        most = min(tile_elements(frames), stop - start)
        memory = np.empty(frames * most, np.float32)
        for first in range(start, stop, most):
            count = min(most, stop - first)
            tile = memory[: frames * count].reshape(frames, count)
            open_raw(self.stored, self._layout, first // self._job.channels, table.scale, table.offset, tile)
            yield Piece(tile, 0, count, first)


Slab = SampleSlab | StoredSlab


def slab_for(job: Job, max_rows: int) -> Slab:
    """Return the memory for slabs of at most ``max_rows`` rows."""
    layout = stored_layout(job)
    return SampleSlab(job, max_rows) if layout is None else StoredSlab(job, max_rows, layout)


def stored_layout(job: Job) -> RawLayout | None:
    """Return how all frames are stored if slabs can hold them so: none needs resampling, none is stored otherwise."""
    if weights_per_pixel(job) or not job.table.in_place.all():
        return None
    if any(source.cfa for source in job.sources):
        return None
    layouts = {source.raw_layout for source in job.sources}
    return layouts.pop() if len(layouts) == 1 else None
