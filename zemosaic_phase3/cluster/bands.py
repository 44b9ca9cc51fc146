"""A large tile in bands of rows: several workers stack some of its rows each, one puts them together.

What a band needs is the job: frames as they are opened, and one table of numbers, a few kilobytes a frame. It is made
once, by the worker that has the tile, and travels as it is; so all bands have the same numbers, and rows never depend
on each other. What comes back is put into its place; nothing is added up but counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaic_phase3.cluster.order import TileOptions
from zemosaic_phase3.cluster.share import share_of_machine
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import Job, StackResult, empty_result, maps_of
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.result_check import result_fault
from zemosaic_phase3.errors import GPUStackingError
from zemosaic_phase3.io.wrapped_frame import held_bytes
from zemosaic_phase3.pipeline.device_policy import POLICY, DeviceRequest
from zemosaic_phase3.records import DeviceUse
from zemosaic_phase3.runtime import limits


@dataclass(frozen=True)
class Band:
    """Rows of a stack as one worker made them; ``maps`` in the order of ``maps_of``, counts as small as they fit."""

    first: int
    last: int
    maps: tuple[np.ndarray, ...]
    frame_counts: np.ndarray
    all_rejected: int
    is_whole: bool  # False: frames could no longer be read, so that others' bands may be of other frames
    device: DeviceUse
    rows_per_slab: int


class _OnlyRows:
    """Finished rows are those that others make: an engine stacks what is left. See ``engine.finished_rows``."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last

    def restore(self, job: Job, result: StackResult) -> list[slice]:  # noqa: ARG002 - as the engines call it
        """Say that all rows but those of the band are done; what stands there does not matter."""
        others = [slice(0, self._first), slice(self._last, job.shape[0])]
        return [rows for rows in others if rows.stop > rows.start]

    def is_due(self) -> bool:
        """Return False: nothing is kept."""
        return False

    def keep(self, rows: slice, result: StackResult) -> None:
        """Do nothing."""


def stack_band(job: Job, first: int, last: int, options: TileOptions, per_host: int) -> Band:
    """Stack rows first .. last - 1 of a job on this worker, on the device that it has."""
    memory, threads = share_of_machine(options, per_host)
    left = max(
        1, (limits.default_limit() if memory is None else memory) - limits.process_bytes() - held_bytes(job.sources)
    )
    resources = Resources(workers=threads, memory=left)
    rows = _OnlyRows(first, last)
    result, used = POLICY.stack(
        lambda less_memory: _on_gpu(job, resources.tighter() if less_memory else resources, rows, first, last),
        lambda: cpu.stack(job, resources, None, rows),
        DeviceRequest(wants_cpu=options.device == "cpu", require_gpu=options.require_gpu or options.device == "gpu"),
    )
    small = np.uint16 if len(job.sources) <= np.iinfo(np.uint16).max else np.int32
    maps = [getattr(result, name)[first:last] for name in maps_of(job)]
    return Band(
        first, last, tuple(part if part.dtype == np.float32 else part.astype(small) for part in maps),
        result.frame_counts, result.all_rejected, len(result.job.sources) == len(job.sources), used,
        result.rows_per_slab,
    )  # fmt: skip


def _on_gpu(job: Job, resources: Resources, rows: _OnlyRows, first: int, last: int) -> StackResult:
    """Stack a band on the GPU; what is no stack of the frames is an error."""
    from zemosaic_phase3.engine import gpu

    result = gpu.stack(job, resources, None, rows)
    image, coverage = result.image[first:last], result.coverage[first:last]
    fault = result_fault(
        image, (last - first, *job.shape[1:]), coverage,
        lambda few: cpu.stack_rows(result.job, slice(first + few.start, first + few.stop)),
    )  # fmt: skip
    if fault:
        raise GPUStackingError(fault)
    return result


def band_edges(height: int, bands: int) -> list[tuple[int, int]]:
    """Return the first row of each band and the one behind its last, as equal as they can be."""
    edges = [k * height // bands for k in range(bands + 1)]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def put_together(job: Job, bands: Sequence[Band]) -> StackResult | None:
    """Return the result that the bands are parts of; None: a frame was lost on the way."""
    if not all(band.is_whole for band in bands):
        return None
    result = empty_result(job, min(band.rows_per_slab for band in bands))
    for band in bands:
        for name, rows in zip(maps_of(job), band.maps, strict=True):
            getattr(result, name)[band.first : band.last] = rows
        result.frame_counts += band.frame_counts
        result.all_rejected += band.all_rejected
    with_gpu = [band for band in bands if band.device.used_gpu]
    some = (with_gpu or list(bands))[0].device
    reason = f"{some.reason}; {len(bands)} bands of rows" + (f", {len(with_gpu)} on GPUs" if with_gpu else "")
    result.device = replace(some, reason=reason.removeprefix("; "))
    return result
