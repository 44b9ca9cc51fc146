"""The GPU slab engine: the twin of ``engine.cpu``, with the same arguments, results and bits.

``stack_job`` is the engine. Host threads gather rows of frames in pinned buffers; whatever one has filled is sent,
opened, resampled, rejected and combined on the card while the others gather on. No frame is on the card as a whole, and
nothing grows with the number of frames but what one slab of rows needs.

Equal bits rest on three things: the kernels' texts add in the order of their Numba twins, they are compiled without
contraction, and one thread owns a pixel. So a tile that falls back to the CPU cannot be told from its neighbours.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from concurrent.futures import Future
from typing import Final

import numpy as np

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
from zemosaic_phase3.engine.job import SUMMED, Job, StackResult, empty_result, without_unreadable
from zemosaic_phase3.errors import FrameError, PlanError, UnsuitedTileError
from zemosaic_phase3.methods import REJECTIONS, Rejection
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.limits import usable_cpus
from zemosaic_phase3.runtime.threads import Crew
from zemosaic_phase3.settings import plan_hint

LOGGER = logging.getLogger("ZeMosaicWorker")

SCRATCH_SHARE: Final = 3  # the rejection kernel may take one part in so many of a tile's device memory
COPIES_AHEAD: Final = 3  # batches on the bus or waiting for it, so that it never does
MAPS_IN_FLIGHT: Final = 2  # slabs whose maps are on their way back


def _stack_slabs(
    job: Job, route: Route, plan: GpuPlan, scratch_limit: int, workers: int, progress: Callback | None
) -> tuple[StackResult, int]:
    """Stack a job by a plan; returns the result and the bytes sent.

    The batches of all slabs go through the pinned buffers in turn, so the next slab is gathered while this one is
    rejected.
    """
    result, slabs = empty_result(job, plan.rows_per_slab), functools.partial(cut, job, route, plan)
    ahead = min(COPIES_AHEAD, plan.pinned_buffers - 1)
    collecting: deque[list[Future[tuple[str, np.ndarray]]]] = deque()  # one list per slab, its maps
    result.sums = {name: np.zeros(job.channels, np.int64) for name in SUMMED}

    def collect_oldest() -> None:
        for collected in collecting.popleft():
            name, sums = collected.result()
            if name in result.sums:
                result.sums[name] += sums

    with (
        Card(job, route, plan, scratch_limit) as card,
        gatherer_of(job, route, slabs, card.pinned, _gathering_threads(workers)) as gatherer,
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
                if len(collecting) == MAPS_IN_FLIGHT:
                    collect_oldest()
                card.combine(slab)
                collecting.append([collectors.submit(card.collect, slab, name, result) for name in MAPS])
                notify(progress, "stack", slab.number + 1, plan.n_slabs)
        while collecting:
            collect_oldest()
        result.frame_hits, result.all_rejected = card.counts()
        return result, card.bytes_h2d


def _gathering_threads(workers: int) -> int:
    """Return how many threads gather: one core is the driver's, one collects, where there are enough."""
    return max(1, workers - 2) if workers > 4 else workers


def stack_job(
    job: Job,
    *,
    workers: int = 1,
    allowed_bytes: int | None = None,
    host_bytes: int | None = None,
    max_rows: int | None = None,
    progress: Callback | None = None,
) -> tuple[StackResult, GpuPlan, int]:
    """Stack a job on the GPU.

    Parameters
    ----------
    job : Job
        From :func:`engine.job.make_job`.
    workers : int
        Host threads that gather.
    allowed_bytes : int or None
        Device memory it may take; None: what it has a use for, if the card has it free.
    host_bytes : int or None
        Host memory it may take, the result included.
    max_rows : int or None
        No slab is higher. Slabs never change a value.
    progress : callable or None
        Called as ``progress("stack", slabs_done, slabs)``.

    Returns
    -------
    result : StackResult
    plan : GpuPlan
    bytes_h2d : int
        Bytes that went over the bus to the card.

    Raises
    ------
    UnsuitedTileError
        Not even one row fits in the bytes it may take, or there are more frames than the kernels can count.
    MemoryError
        Not even one row fits on the card.
    FrameError
        A frame can no longer be read.
    """
    _check_suited(job)
    route = route_of(job)
    rows = preferred_rows(route, max_rows)
    smallest = launch_plan(route.n_frames, route.row_elements, 0).scratch_bytes
    largest = launch_plan(route.n_frames, rows * route.row_elements, 1 << 62).scratch_bytes
    least, wanted = device_bytes(route, 1, smallest), device_bytes(route, rows, largest)
    if allowed_bytes is not None:
        wanted = max(1, min(wanted, allowed_bytes))
    with cuda.reserve_vram(min(least, wanted), wanted) as granted:
        scratch_limit = min(granted // SCRATCH_SHARE, granted - device_bytes(route, 1, 0))
        try:
            plan = plan_gpu(
                route,
                allowed_bytes=granted,
                scratch_bytes=launch_plan(route.n_frames, rows * route.row_elements, scratch_limit).scratch_bytes,
                workers=workers,
                max_rows=max_rows,
                host_bytes=None if host_bytes is None else host_bytes - _result_bytes(job),
            )
            LOGGER.debug("GPU stack: %s", plan)
            result, sent = _stack_slabs(job, route, plan, scratch_limit, workers, progress)
        except PlanError as exc:
            raise UnsuitedTileError(str(exc)) from exc
    return result, plan, sent


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


def run_job(
    job: Job, parallel_plan: object, host_bytes: int | None, progress: Callback | None
) -> tuple[Job, StackResult, GpuPlan, int]:
    """Stack a job within the hints of a plan; if a frame can no longer be read, drop it and start anew without it."""
    while True:
        try:
            return job, *stack_job(
                job,
                workers=plan_hint(parallel_plan, "cpu_workers") or usable_cpus(),
                allowed_bytes=plan_hint(parallel_plan, "gpu_max_chunk_bytes"),
                host_bytes=host_bytes,
                max_rows=plan_hint(parallel_plan, "gpu_rows_per_chunk"),
                progress=progress,
            )
        except FrameError as exc:
            job = without_unreadable(job, exc)
