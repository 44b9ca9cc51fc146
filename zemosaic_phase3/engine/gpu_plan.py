"""How a tile travels to the card: which rows of which frames, in which batches, in how many bytes. Arithmetic only.

A tile is cut into slabs of rows, as on the CPU. The samples of one slab lie on the card as a whole, since rejection
looks at all frames of a pixel. They come in *batches*, the rows of some frames: a batch is what one pinned buffer
holds, what one copy carries over the bus, and what one launch opens and resamples. So the pinned memory depends neither
on the number of frames nor on the height of a slab, and copies are long however thin the slabs are.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from zemosaic_phase3.engine.slab import frame_reach
from zemosaic_phase3.engine.slab_plan import slabs_to_do
from zemosaic_phase3.errors import PlanError
from zemosaic_phase3.resample.cuda import (
    FLIPPED,
    FLOAT,
    FRAME_ROWS,
    IN_PLACE,
    MOSAIC,
    OUTSIDE,
    PLANAR,
    RESAMPLED,
    SIGNED,
    SWAPPED,
)
from zemosaic_phase3.runtime.limits import memory_text

if TYPE_CHECKING:
    from zemosaic_phase3.engine.job import Job
    from zemosaic_phase3.io.frame import FrameSource


BATCH_BYTES: Final = 16 << 20  # of one pinned buffer: 0.3 ms on the bus, so that overheads do not show
BLOCK_BYTES: Final = 256 << 20  # of the demosaiced rows of one batch, device memory
SHARED_BUFFERS: Final = 12  # pinned, where threads fill one together: so far the host may run ahead of the bus
STAGING_BUFFERS: Final = 4  # on the card, for batches that are opened there
SLAB_BYTES: Final = 384 << 20  # samples of a slab: the last one's rejection is not hidden behind a copy
MIN_ELEMENTS: Final = 1 << 17  # of a slab, so that every multiprocessor has work
MARGINS: Final = 8  # a slab is this many times as high as the rows that it shares with its neighbours
MAX_BATCH_FRAMES: Final = 32768  # a grid of blocks is at most 65,535 high
OUTPUT_BYTES: Final = 20  # per element: image, coverage, weight, rejected low and high
Where = Literal["memory", "files", "mixed"]
ALIGNMENT: Final = 256  # bytes; where the rows of a frame begin in a buffer


@dataclass(frozen=True)
class Wire:
    """How the rows of one frame travel.

    Attributes
    ----------
    stored : int
        Bits of :mod:`resample.cuda`.
    row_bytes : int
        Bytes of one row, all planes.
    is_raw : bool
        The bytes are those of the file or array; otherwise ``read_rows`` has to decode them on the host first.
    """

    stored: int
    row_bytes: int
    is_raw: bool


def wire_of(source: FrameSource) -> Wire:
    """Return how the rows of a frame travel: as they are stored where the card can read them."""
    layout = source.raw_layout
    dtype = source.dtype if layout is None else layout.dtype
    planes = 1 if source.cfa else source.channels
    stored = FLOAT if dtype.kind == "f" else 0
    stored |= 0 if dtype.isnative else SWAPPED
    if layout is not None:
        stored |= FLIPPED if layout.flipped else 0
        stored |= SIGNED if dtype.kind == "i" and not layout.flipped else 0
        stored |= PLANAR if layout.planar else 0
    return Wire(stored, source.width * planes * dtype.itemsize, layout is not None)


def source_spans(
    matrices: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    out_width: int,
    height: int,
    reach: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`resample.footprint.source_rows` of many frames and slabs at once.

    Parameters
    ----------
    matrices : ndarray (N, 3, 3) float64
        Reference pixel to frame pixel.
    starts, stops : ndarray (S,) int64
        Rows of the slabs.
    out_width, height : int
        Width of the reference grid, height of the frames.
    reach : ndarray (N,) float64
        Rows by which each frame's distortion field displaces a pixel at most.

    Returns
    -------
    first, last : ndarray (S, N) int64
        Rows of each frame that each slab needs; 0, 0 where it needs none.
    """
    from zemosaic_phase3.resample.interpolation import MARGIN

    lowest = np.full((len(starts), len(matrices)), np.inf)
    highest, behind = -lowest, np.zeros(lowest.shape, bool)
    for y in (starts[:, None].astype(np.float64), stops[:, None] - 1.0):
        for x in (0.0, out_width - 1.0):
            w = matrices[:, 2, 0] * x + matrices[:, 2, 1] * y + matrices[:, 2, 2]
            behind |= ~(w > 0)
            mapped = (matrices[:, 1, 0] * x + matrices[:, 1, 1] * y + matrices[:, 1, 2]) / np.where(w > 0, w, 1.0)
            lowest, highest = np.minimum(lowest, mapped), np.maximum(highest, mapped)
    lowest, highest = lowest - reach, highest + reach
    far = 4.0 * height + 16.0  # beyond it there is nothing, and whole numbers cannot overflow
    first = np.clip(np.floor(np.clip(lowest, -far, far)) - MARGIN, 0, None).astype(np.int64)
    last = np.clip(np.ceil(np.clip(highest, -far, far)) + MARGIN + 2, None, height).astype(np.int64)
    is_empty = (last <= first) & ~behind
    first[behind | is_empty] = 0
    last[behind] = height
    last[is_empty] = 0
    return first, last


@dataclass(frozen=True)
class Route:
    """What a tile's frames ask of the way to the card: the facts a plan is made of.

    ``height``, ``width``: of the result; ``frame_height``, ``frame_width``: of every frame.
    ``wires``: one per frame. ``in_place (N,) bool``: the frame lies on the reference grid already. ``is_direct``: the
    bytes of all frames are the samples themselves, and go straight to where rejection reads them. ``where``: "memory"
    if all are arrays, "files" if all are plain files, whose bytes travel as they are; else "mixed". ``margin``: rows of
    a frame that a slab needs beyond its own. ``stretch``: rows of a frame for each of a slab's own, 1 or more.
    ``field_elements``: of the distortion fields of all frames.
    """

    n_frames: int
    height: int
    width: int
    frame_height: int
    frame_width: int
    channels: int
    wires: tuple[Wire, ...]
    in_place: np.ndarray
    is_direct: bool
    where: Where
    margin: int
    stretch: float
    field_elements: int
    has_radial: bool
    has_sample_weights: bool
    has_tolerance: bool = False
    has_errors: bool = False

    @property
    def row_bytes(self) -> int:
        """Most bytes of one stored row."""
        return max(wire.row_bytes for wire in self.wires)

    @property
    def row_elements(self) -> int:
        """Samples of one frame in one row of the result's grid."""
        return self.width * self.channels

    @property
    def frame_row_elements(self) -> int:
        """Samples in one row of a frame."""
        return self.frame_width * self.channels

    def source_rows(self, rows: int) -> int:
        """Most rows of one frame that a slab of ``rows`` rows needs."""
        return min(math.ceil(rows * self.stretch) + self.margin, self.frame_height)


def route_of(job: Job) -> Route:
    """Look at the frames of a job: how each is stored, and whether it needs resampling."""
    from zemosaic_phase3.resample.footprint import slab_reach

    table, spec = job.table, job.spec
    height, width = job.shape[:2]
    wires = tuple(wire_of(source) for source in job.sources)
    has_radial = spec.radial_weight and job.sample_weight is None
    in_place = table.in_place & (not spec.radial_weight)
    is_plain = (table.scale == 1.0).all() and (table.offset == 0.0).all()
    is_direct = bool(in_place.all() and is_plain) and all(
        wire.stored == FLOAT and source.cfa is None for wire, source in zip(wires, job.sources, strict=True)
    )
    margin, stretch = 0, 1.0
    if not in_place.all():
        margin, stretch = slab_reach(
            table.transform[~in_place], width, height, reaches(job).max(), job.sources[0].height
        )
    margin += 2 * _cfa_margin() if any(source.cfa for source in job.sources) else 0
    return Route(
        n_frames=len(job.sources),
        height=height,
        width=width,
        frame_height=job.sources[0].height,
        frame_width=job.sources[0].width,
        channels=job.channels,
        wires=wires,
        in_place=in_place,
        is_direct=is_direct,
        where=_where(job, wires),
        margin=margin,
        stretch=stretch,
        field_elements=sum(field.size for field in table.distortion),
        has_radial=has_radial,
        has_sample_weights=job.sample_weight is not None or spec.drizzle > 0.0,
        has_tolerance=job.tolerance is not None,
        has_errors=job.errors,
    )


def reaches(job: Job) -> np.ndarray:
    """Return :func:`engine.slab.frame_reach` of all frames, ``(N,) float64``."""
    return np.array([frame_reach(job, i) for i in range(len(job.sources))])


def _where(job: Job, wires: tuple[Wire, ...]) -> Where:
    if not all(wire.is_raw for wire in wires):
        return "mixed"
    if all(source.pixels_in_memory is not None for source in job.sources):
        return "memory"
    is_posix = hasattr(os, "preadv")
    return "files" if is_posix and all(source.raw_file is not None for source in job.sources) else "mixed"


def _cfa_margin() -> int:
    from zemosaic_phase3.resample.demosaic import CFA_MARGIN

    return CFA_MARGIN


@dataclass(frozen=True)
class GpuPlan:
    """How a tile is cut for the card, and what that needs of what it may take (bytes)."""

    rows_per_slab: int
    n_slabs: int
    batch_bytes: int  # of one pinned buffer, and of one staging buffer on the card
    block_bytes: int  # of the demosaiced rows of one batch; 0 where no frame is resampled
    pinned_buffers: int
    needed_bytes: int
    allowed_bytes: int

    def __str__(self) -> str:
        """Return the plan as one line."""
        return (
            f"{self.n_slabs} slab(s) of {self.rows_per_slab} rows, {memory_text(self.needed_bytes)} of "
            f"{memory_text(self.allowed_bytes)} on the card, {self.pinned_buffers} pinned buffers of "
            f"{memory_text(self.batch_bytes)}"
        )


def device_bytes(route: Route, rows: int, scratch_bytes: int) -> int:
    """Return the device memory a tile takes with slabs of ``rows`` rows.

    The sum of

    * the samples of two slabs (one when a slab is the whole tile), and their radial or sample weights;
    * unless the frames travel directly: ``STAGING_BUFFERS`` batches as stored, and one batch demosaiced;
    * the maps of two slabs, ``OUTPUT_BYTES`` per element, and the tolerance of their pixels, 4 bytes;
    * where errors are wanted, those of two slabs, 4 bytes, and the bounds of what one keeps, 8 bytes;
    * the scratch of the rejection kernel, the distortion fields, and per frame its numbers, twice.
    """
    rows = min(rows, route.height)
    in_flight = 2 if rows < route.height else 1
    elements = rows * route.row_elements
    samples = 4 * route.n_frames * elements
    weights = samples if route.has_sample_weights else samples // route.channels if route.has_radial else 0
    staging = 0 if route.is_direct else STAGING_BUFFERS * _batch_bytes(route, rows)
    fields = 4 * route.field_elements
    per_frame = 2 * FRAME_ROWS.itemsize + 128
    return (
        in_flight * (samples + weights + (OUTPUT_BYTES + 4 * route.has_tolerance + 4 * route.has_errors) * elements)
        + 8 * elements * route.has_errors
        + staging
        + _block_bytes(route, rows)
        + scratch_bytes
        + fields
        + per_frame * route.n_frames
    )


def _batch_bytes(route: Route, rows: int) -> int:
    """Return the bytes of a batch buffer: at least the rows of one frame, no more than the tile has."""
    frame = _aligned(route.source_rows(rows) * route.row_bytes)
    return max(frame, min(BATCH_BYTES, frame * route.n_frames))


def _block_bytes(route: Route, rows: int) -> int:
    if route.in_place.all():
        return 0
    frame = 4 * route.source_rows(rows) * route.frame_row_elements
    return max(frame, min(BLOCK_BYTES, frame * route.n_frames))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def preferred_rows(route: Route, max_rows: int | None = None) -> int:
    """Return the height of slabs that suits the card if memory does not matter."""
    by_bytes = SLAB_BYTES // (4 * route.n_frames * route.row_elements)
    rows = max(by_bytes, -(-MIN_ELEMENTS // route.row_elements), MARGINS * route.margin, 1)
    return min(rows, route.height, max_rows or route.height)


def plan_gpu(
    route: Route,
    *,
    allowed_bytes: int,
    scratch_bytes: int = 0,
    workers: int = 1,
    max_rows: int | None = None,
    host_bytes: int | None = None,
) -> GpuPlan:
    """Choose the height of slabs and the buffers.

    Parameters
    ----------
    route : Route
        From :func:`route_of`.
    allowed_bytes : int
        Device memory the tile may take.
    scratch_bytes : int
        What the rejection kernel needs besides.
    workers : int
        Host threads that gather.
    max_rows : int, optional
        A hint: no slab is higher.
    host_bytes : int, optional
        Host memory the pinned buffers may take; two are the least.

    Raises
    ------
    PlanError
        Not even one row fits on the card; the message gives needed and allowed bytes and the remedy.
    """
    least = device_bytes(route, 1, scratch_bytes)
    if least > allowed_bytes:
        raise PlanError(
            f"one row of {route.n_frames} frames, {route.width} pixels wide, needs {least} bytes on the GPU "
            f"({memory_text(least)}), allowed are {allowed_bytes} ({memory_text(allowed_bytes)}); "
            "stack fewer frames at a time, or on the CPU"
        )
    rows = preferred_rows(route, max_rows)
    while device_bytes(route, rows, scratch_bytes) > allowed_bytes:  # it grows with the rows, but for the whole tile
        rows = max(1, min(rows - 1, int(rows * 0.9)))
    n_slabs = math.ceil(route.height / rows)
    rows = math.ceil(route.height / n_slabs)
    batch = _batch_bytes(route, rows)
    n_batches = n_slabs * max(1, math.ceil(route.n_frames * route.source_rows(rows) * route.row_bytes / batch))
    buffers = min(workers + STAGING_BUFFERS if route.where == "mixed" else SHARED_BUFFERS, n_batches)
    if host_bytes is not None:
        buffers = min(buffers, host_bytes // batch)
    return GpuPlan(
        rows_per_slab=rows,
        n_slabs=math.ceil(route.height / rows),
        batch_bytes=batch,
        block_bytes=_block_bytes(route, rows),
        pinned_buffers=max(2, buffers),
        needed_bytes=device_bytes(route, rows, scratch_bytes),
        allowed_bytes=allowed_bytes,
    )


@dataclass(frozen=True)
class Batch:
    """Rows of the frames ``first .. last - 1`` for one slab; ``size`` bytes in one buffer."""

    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Slab:
    """One slab: its rows of the reference grid, what every frame contributes, and in which batches.

    ``frames (N,)`` of type ``FRAME_ROWS``; ``sizes (N,) int64``, bytes of each frame.
    """

    number: int
    rows: slice
    frames: np.ndarray
    sizes: np.ndarray
    batches: tuple[Batch, ...]


def frame_table(job: Job, route: Route) -> np.ndarray:
    """Return the part of ``FRAME_ROWS`` that no slab changes, ``(N,)``."""
    from zemosaic_phase3.resample.demosaic import red_position

    frames = np.zeros(route.n_frames, FRAME_ROWS)
    frames["stored"] = [wire.stored for wire in route.wires]
    red = [(-1, -1) if source.cfa is None else red_position(source.cfa) for source in job.sources]
    frames["red_row"], frames["red_col"] = np.array(red).T
    if job.spec.drizzle > 0.0:
        frames["stored"] |= np.where(frames["red_row"] >= 0, MOSAIC, 0).astype(np.int32)
    sizes = [field.size for field in job.table.distortion] or [0] * route.n_frames
    frames["field_at"] = np.where(np.array(sizes) > 0, np.cumsum([0, *sizes[:-1]]), -1)
    frames["matrix"] = job.table.transform.reshape(-1, 9)
    frames["scale"][:, : route.channels] = job.table.scale
    frames["offset"][:, : route.channels] = job.table.offset
    return frames


def cut(job: Job, route: Route, plan: GpuPlan, slabs: Sequence[slice] | None = None) -> Iterator[Slab]:
    """Yield the slabs of a tile, top to bottom; ``slabs``: of these rows alone.

    Raises
    ------
    PlanError
        The rows of one frame do not fit in a buffer: its map bends more than the plan foresaw.
    """
    common = frame_table(job, route)
    row_bytes = np.array([wire.row_bytes for wire in route.wires], np.int64)
    is_demosaiced = (common["red_row"] >= 0) & (common["stored"] & MOSAIC == 0)
    reach_px = reaches(job)
    packed: tuple[np.ndarray, np.ndarray, tuple[Batch, ...], np.ndarray, np.ndarray] | None = None  # of the last slab
    for number, rows in enumerate(slabs_to_do(route.height, plan.rows_per_slab, ()) if slabs is None else slabs):
        frames = common.copy()
        first = np.full(route.n_frames, rows.start, np.int64)
        last = np.full(route.n_frames, rows.stop, np.int64)
        moved = ~route.in_place
        if moved.any():
            edges = np.array([rows.start]), np.array([rows.stop])
            spans = source_spans(job.table.transform[moved], *edges, route.width, route.frame_height, reach_px[moved])
            first[moved], last[moved] = spans[0][0], spans[1][0]
        margin = np.where(is_demosaiced & (last > first), _cfa_margin(), 0)
        top, bottom = np.maximum(first - margin, 0), np.minimum(last + margin, route.frame_height)
        frames["first"], frames["last"] = first, last
        frames["raw_first"], frames["raw_rows"] = top, bottom - top
        frames["place"] = np.where(route.in_place, IN_PLACE, np.where(last > first, RESAMPLED, OUTSIDE))
        sizes = (bottom - top) * row_bytes
        blocks = np.where(moved, 4 * (last - first) * route.frame_row_elements, 0)
        if packed is None or not (np.array_equal(sizes, packed[0]) and np.array_equal(blocks, packed[1])):
            packed = sizes, blocks, *_pack(sizes, blocks, plan, is_direct=route.is_direct)
        _, _, batches, frames["raw_at"], frames["block_at"] = packed
        yield Slab(number, rows, frames, sizes, batches)


def _pack(
    sizes: np.ndarray, blocks: np.ndarray, plan: GpuPlan, *, is_direct: bool
) -> tuple[tuple[Batch, ...], np.ndarray, np.ndarray]:
    """Fill batches with frames in their order; returns them and each frame's place in the pinned and block buffers."""
    padded = sizes if is_direct else -(-sizes // ALIGNMENT) * ALIGNMENT  # direct rows follow each other without a gap
    places, block_places = (np.concatenate([[0], np.cumsum(part)]) for part in (padded, blocks))
    ends, block_ends = places.tolist(), block_places.tolist()
    batches: list[Batch] = []
    first = 0
    while first < len(sizes):
        last = bisect.bisect_right(ends, ends[first] + plan.batch_bytes) - 1
        if block_ends[-1]:
            last = min(last, bisect.bisect_right(block_ends, block_ends[first] + plan.block_bytes) - 1)
        last = min(last, first + MAX_BATCH_FRAMES)
        if last <= first:
            raise PlanError(
                f"the rows of one frame take {padded[first]} bytes, and {blocks[first]} demosaiced, more than the "
                f"buffers of {plan.batch_bytes} and {plan.block_bytes} bytes that were planned; stack on the CPU"
            )
        batches.append(Batch(first, last, ends[last] - ends[first]))
        first = last
    firsts = np.repeat([batch.first for batch in batches], [batch.last - batch.first for batch in batches])
    return tuple(batches), places[:-1] - places[firsts], (block_places[:-1] - block_places[firsts]) // 4
