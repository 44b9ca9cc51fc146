"""The GPU slab engine: the twin of ``engine.cpu``, with the same arguments, results and bits.

``stack`` is the engine. Host threads gather rows of frames in pinned buffers; whatever one has filled is sent,
opened, resampled, rejected and combined on the card while the others gather on. No frame is on the card as a whole, and
nothing grows with the number of frames but what one slab of rows needs.

Equal bits rest on three things: the kernels' texts add in the order of their Numba twins, they are compiled without
contraction, and one thread owns a pixel. So a tile that falls back to the CPU cannot be told from its neighbours.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

import numpy as np

from zemosaic_phase3.engine.finished_rows import FinishedRows
from zemosaic_phase3.engine.gpu_card import MAPS, Card, launch_plan
from zemosaic_phase3.engine.gpu_gather import gatherer_of
from zemosaic_phase3.engine.gpu_plan import (
    OUTPUT_BYTES,
    GpuPlan,
    Route,
    cut,
    device_bytes,
    plan_gpu,
    preferred_rows,
    route_of,
)
from zemosaic_phase3.engine.job import SUMMED, GpuFigures, Job, StackResult, empty_result, stack_what_can_be_read
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab_plan import slabs_to_do
from zemosaic_phase3.errors import PlanError, UnsuitedTileError
from zemosaic_phase3.methods import REJECTIONS, Rejection
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.threads import Crew

LOGGER = logging.getLogger("ZeMosaicWorker")

SCRATCH_SHARE: Final = 3  # the rejection kernel may take one part in so many of a tile's device memory
COPIES_AHEAD: Final = 3  # batches on the bus or waiting for it, so that it never does
MAPS_IN_FLIGHT: Final = 2  # slabs whose maps are on their way back


def _stack_slabs(
    job: Job,
    route: Route,
    plan: GpuPlan,
    scratch_limit: int,
    workers: int,
    progress: Callback | None,
    finished: FinishedRows | None,
) -> tuple[StackResult, int]:
    """Stack a job by a plan; returns the result and the bytes sent.

    The batches of all slabs go through the pinned buffers in turn, so the next slab is gathered while this one is
    rejected. Counts stay on the card; finished rows are handed over when it is due, and wait for it until then.
    """
    result = empty_result(job, plan.rows_per_slab)
    known = [] if finished is None else finished.restore(job, result)
    todo = list(slabs_to_do(job.shape[0], plan.rows_per_slab, known))
    if not todo:
        return result, 0
    slabs = functools.partial(cut, job, route, plan, todo)
    counts_before, lost_before = result.frame_counts, result.all_rejected
    waiting: list[slice] = []
    ahead = min(COPIES_AHEAD, plan.pinned_buffers - 1)
    collecting: deque[list[Future[tuple[str, np.ndarray]]]] = deque()  # one list per slab, its maps
    result.sums = {name: np.zeros(job.channels, np.int64) for name in SUMMED}

    def collect_oldest() -> None:
        for collected in collecting.popleft():
            name, sums = collected.result()
            if name in result.sums:
                result.sums[name] += sums

    def collect_all(card: Card) -> None:
        while collecting:
            collect_oldest()
        counts, lost = card.counts()
        result.frame_counts, result.all_rejected = counts_before + counts, lost_before + lost

    with (
        Card(job, route, plan, scratch_limit) as card,
        gatherer_of(job, route, slabs, card.pinned, gathering_threads(workers)) as gatherer,
        Crew(len(MAPS)) as collectors,
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
                    collect_all(card)
                    finished.keep(slice(waiting[0].start, waiting[-1].stop), result)
                    waiting.clear()
                if len(collecting) == MAPS_IN_FLIGHT:
                    collect_oldest()
                card.combine(slab)
                collecting.append([collectors.submit(card.collect, slab, name, result) for name in MAPS])
                waiting.append(slab.rows)
                notify(progress, "stack", slab.number + 1, len(todo))
        collect_all(card)
        if known:
            result.sums = {}  # of the rows stacked now alone
        return result, card.bytes_h2d


def gathering_threads(workers: int) -> int:
    """Return how many threads gather: one core is the driver's, one collects, where there are enough."""
    return max(1, workers - 2) if workers > 4 else workers


def stack(
    job: Job, resources: Resources, progress: Callback | None = None, finished: FinishedRows | None = None
) -> StackResult:
    """Stack a job on the GPU; a frame that can no longer be read is dropped, and the stack starts anew without it.

    Parameters
    ----------
    job : Job
        From :func:`engine.job.make_job`.
    resources : Resources
        What it may take of the machine; slabs never change a value. One row is always tried if the card has room.
    progress : callable or None
        Called as ``progress("stack", slabs_done, slabs)``.
    finished : FinishedRows, optional
        Rows of an earlier run, which are not stacked again, and where those of this run are kept.

    Returns
    -------
    StackResult
        With ``gpu``.

    Raises
    ------
    UnsuitedTileError
        Not even one row fits into the host's memory, or there are more frames than the kernels can count.
    MemoryError
        Not even one row fits on the card.
    FrameError
        No frame can be read.
    """
    began = time.perf_counter()
    result = stack_what_can_be_read(job, lambda readable: _stack_once(readable, resources, progress, finished))
    if result.gpu is not None:
        result.gpu = replace(result.gpu, seconds=time.perf_counter() - began)
    return result


def _stack_once(
    job: Job, resources: Resources, progress: Callback | None, finished: FinishedRows | None
) -> StackResult:
    _check_suited(job)
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
                host_bytes=None if resources.memory is None else resources.memory - _result_bytes(job),
            )
            LOGGER.debug("GPU stack: %s", plan)
            result, sent = _stack_slabs(job, route, plan, scratch_limit, resources.workers, progress, finished)
        except PlanError as exc:
            raise UnsuitedTileError(str(exc)) from exc
    result.gpu = GpuFigures(
        slabs=plan.n_slabs, rows_per_slab=plan.rows_per_slab, bytes_sent=sent, bytes_held=plan.needed_bytes, seconds=0.0
    )
    return result


def _check_suited(job: Job) -> None:
    """Raise UnsuitedTileError if the kernels could not give the CPU's result, whatever the card."""
    n_frames, rejection = len(job.sources), job.spec.rejection
    if rejection.most_on_gpu is not None and n_frames > rejection.most_on_gpu:
        others = [row for row in REJECTIONS if row.name == rejection.name and row.most_on_gpu is None]
        remedy = "".join(f", and so does {row.name}{_chosen(row)} on either" for row in others)
        raise UnsuitedTileError(
            f"{rejection.name}{_chosen(rejection)} takes at most {rejection.most_on_gpu} frames on the GPU, these are "
            f"{n_frames}; the CPU takes any number{remedy}"
        )


def _chosen(rejection: Rejection) -> str:
    return "" if rejection.choice is None else f" with {rejection.choice[0]} {rejection.choice[1]!r}"


def _result_bytes(job: Job) -> int:
    return OUTPUT_BYTES * int(np.prod(job.shape))
