"""Rows of a tile on one card: the loop over its slabs.

Host threads gather rows of frames in pinned buffers; whatever one has filled is sent, opened, resampled, rejected and
combined on the card while the others gather on. No frame is on the card as a whole, and nothing grows with the number
of frames but what one slab of rows needs.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zemosaic_phase3.engine.finished_rows import FinishedRows
from zemosaic_phase3.engine.gpu_card import Card, launch_plan
from zemosaic_phase3.engine.gpu_gather import gatherer_of
from zemosaic_phase3.engine.gpu_plan import (
    GpuPlan,
    Route,
    cut,
    device_bytes,
    plan_gpu,
    preferred_rows,
    route_of,
)
from zemosaic_phase3.engine.job import SUMMED, GpuFigures, Job, StackResult, maps_of
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab_plan import slabs_to_do
from zemosaic_phase3.errors import PlanError, UnsuitedTileError
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.threads import Crew

LOGGER = logging.getLogger("ZeMosaicWorker")

SCRATCH_SHARE: Final = 3  # the rejection kernel may take one part in so many of a tile's device memory
COPIES_AHEAD: Final = 3  # batches on the bus or waiting for it, so that it never does
MAPS_IN_FLIGHT: Final = 2  # slabs whose maps are on their way back


@dataclass(frozen=True)
class Totals:
    """What some rows add up to beside what stands in them.

    ``frame_counts (N, 3)`` int64 and ``all_rejected`` as in :class:`StackResult`, of these rows alone; ``sums`` of the
    maps ``SUMMED``, per channel; ``figures`` of the card.
    """

    frame_counts: np.ndarray
    all_rejected: int
    sums: dict[str, np.ndarray]
    figures: GpuFigures


def stack_rows(
    job: Job,
    resources: Resources,
    result: StackResult,
    known: Sequence[slice],
    progress: Callback | None = None,
    finished: FinishedRows | None = None,
) -> Totals:
    """Stack the rows of a job that are not known yet, on the card of this thread, into the arrays of a result.

    Parameters
    ----------
    job : Job
    resources : Resources
        What these rows may take of the machine.
    result : StackResult
        Of all rows; its counts are changed only where finished rows are handed over.
    known : sequence of slice
        Rows that are not to be stacked: disjoint, ascending.
    progress : callable or None
        Called as ``progress("stack", slabs_done, slabs)``.
    finished : FinishedRows, optional
        Where finished rows are kept.

    Raises
    ------
    UnsuitedTileError
        Not even one row fits into the host's memory.
    MemoryError
        Not even one row fits on the card.
    FrameError
        A frame can no longer be read.
    """
    route = route_of(job)
    rows = preferred_rows(route, resources.gpu_rows)
    smallest = launch_plan(route.n_frames, route.row_elements, 0).scratch_bytes
    largest = launch_plan(route.n_frames, rows * route.row_elements, 1 << 62).scratch_bytes
    least, wanted = device_bytes(route, 1, smallest), device_bytes(route, rows, largest)
    if resources.gpu_memory is not None:
        wanted = max(least, min(wanted, resources.gpu_memory))
    with cuda.reserve_vram(least, wanted) as granted:
        scratch_limit = min(granted // SCRATCH_SHARE, granted - device_bytes(route, 1, 0))
        try:
            plan = plan_gpu(
                route,
                allowed_bytes=granted,
                scratch_bytes=launch_plan(route.n_frames, rows * route.row_elements, scratch_limit).scratch_bytes,
                workers=resources.workers,
                max_rows=resources.gpu_rows,
                host_bytes=None if resources.memory is None else resources.memory - result_bytes(job),
            )
            LOGGER.debug("GPU stack: %s", plan)
            result.rows_per_slab = plan.rows_per_slab
            return _stack_slabs(job, route, plan, scratch_limit, resources.workers, result, known, progress, finished)
        except PlanError as exc:
            raise UnsuitedTileError(str(exc)) from exc


def _stack_slabs(
    job: Job,
    route: Route,
    plan: GpuPlan,
    scratch_limit: int,
    workers: int,
    result: StackResult,
    known: Sequence[slice],
    progress: Callback | None,
    finished: FinishedRows | None,
) -> Totals:
    """Stack rows by a plan.

    The batches of all slabs go through the pinned buffers in turn, so the next slab is gathered while this one is
    rejected. Counts stay on the card; finished rows are handed over when it is due, and wait for it until then.
    """
    figures = GpuFigures(plan.n_slabs, plan.rows_per_slab, bytes_sent=0, bytes_held=plan.needed_bytes, seconds=0.0)
    sums = {name: np.zeros(job.channels, np.int64) for name in SUMMED}
    todo = list(slabs_to_do(job.shape[0], plan.rows_per_slab, known))
    if not todo:
        return Totals(np.zeros((route.n_frames, 3), np.int64), 0, sums, figures)
    slabs = functools.partial(cut, job, route, plan, todo)
    counts_before, lost_before = result.frame_counts, result.all_rejected
    waiting: list[slice] = []
    ahead = min(COPIES_AHEAD, plan.pinned_buffers - 1)
    collecting: deque[list[Future[tuple[str, np.ndarray]]]] = deque()  # one list per slab, its maps

    def collect_oldest() -> None:
        for collected in collecting.popleft():
            name, of_rows = collected.result()
            if name in sums:
                sums[name] += of_rows

    def collect_all(card: Card) -> tuple[np.ndarray, int]:
        while collecting:
            collect_oldest()
        return card.counts()

    def hand_over(card: Card, finished: FinishedRows) -> None:
        counts, lost = collect_all(card)
        result.frame_counts, result.all_rejected = counts_before + counts, lost_before + lost
        finished.keep(slice(waiting[0].start, waiting[-1].stop), result)
        waiting.clear()

    with (
        Card(job, route, plan, scratch_limit) as card,
        gatherer_of(job, route, slabs, card.pinned, gathering_threads(workers)) as gatherer,
        Crew(len(maps_of(job))) as collectors,
        cuda_failure.noticing_sticky_errors(),  # before collectors that still wait call CUDA
    ):
        for number, slab, batch in gatherer.filled():
            cuda_failure.check_not_lost()
            if batch.first == 0:
                card.begin(slab)
            card.send(slab, batch, number % plan.pinned_buffers)
            if number >= ahead:
                card.wait_for_buffer((number - ahead) % plan.pinned_buffers)
                gatherer.release()
            if batch.last == route.n_frames:
                if finished is not None and waiting and (finished.is_due() or waiting[-1].stop != slab.rows.start):
                    hand_over(card, finished)
                if len(collecting) == MAPS_IN_FLIGHT:
                    collect_oldest()
                card.combine(slab)
                collecting.append([collectors.submit(card.collect, slab, name, result) for name in card.maps])
                waiting.append(slab.rows)
                notify(progress, "stack", slab.number + 1, len(todo))
        counts, lost = collect_all(card)
        return Totals(counts, lost, sums, replace(figures, bytes_sent=card.bytes_h2d))


def gathering_threads(workers: int) -> int:
    """Return how many threads gather: one core is the driver's, one collects, where there are enough."""
    return max(1, workers - 2) if workers > 4 else workers


def result_bytes(job: Job) -> int:
    """Return the host's memory that a result takes, bytes."""
    return 4 * len(maps_of(job)) * int(np.prod(job.shape))
