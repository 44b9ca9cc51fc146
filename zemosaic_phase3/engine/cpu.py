"""The CPU slab engine.

``stack`` is the engine: for every slab of rows it fills a cube with the registered, normalised samples of all
frames, then rejects and combines. Frames are read where the slab needs them, by several threads; the sources stay on
disk.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from zemosaic_phase3.combine.kernel_arguments import KernelArguments
from zemosaic_phase3.engine.finished_rows import FinishedRows
from zemosaic_phase3.engine.job import MAPS, Job, StackResult, empty_result, stack_what_can_be_read
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab import (
    Slab,
    expect_slab,
    slab_for,
    source_pixel_bytes,
    source_reach,
    stored_layout,
    weights_per_pixel,
)
from zemosaic_phase3.engine.slab_plan import FEW_ROWS, SlabPlan, plan_slabs, slabs_to_do
from zemosaic_phase3.methods import COMBINATIONS
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime.limits import available_memory
from zemosaic_phase3.runtime.threads import parallel_map

ERROR_MAPS: Final = 3  # the error of each pixel, and the bounds of what it keeps, of one slab

logger = logging.getLogger("ZeMosaicWorker")


SHARES_PER_WORKER = 4  # pieces of a slab, or of the frames, each worker gets, so that none waits long for the slowest
SLAB_BYTES = 96 << 20  # samples in one slab; more memory than this does not make a stack faster
WAITING_SHARE = 0.5  # of the workers' time that filling a slab computed; with less it waited for the disk


def slab_plan(job: Job, resources: Resources) -> SlabPlan:
    """Choose the slab height of a job within the memory it may take, see :func:`engine.slab_plan.plan_slabs`."""
    height, width = job.shape[:2]
    n_frames, channels, layout = len(job.sources), job.channels, stored_layout(job)
    stored_bytes = 0 if layout is None else layout.dtype.itemsize
    margin, stretch = source_reach(job) if layout is None else (0, 1.0)
    most = SLAB_BYTES // ((stored_bytes or 4) * n_frames * width * channels)
    return plan_slabs(
        height,
        allowed_bytes=available_memory() // 2 if resources.memory is None else resources.memory,
        n_frames=n_frames,
        width=width,
        channels=channels,
        workers=resources.workers,
        weights_per_pixel=weights_per_pixel(job),
        source_margin=margin,
        source_stretch=stretch,
        source_height=max(source.height for source in job.sources),
        source_width=max(source.width for source in job.sources),
        raw_bytes=max(source_pixel_bytes(source) for source in job.sources),
        stored_bytes=stored_bytes,
        field_bytes=sum(field.nbytes for field in job.table.distortion),
        own_maps=int(job.tolerance is not None) + ERROR_MAPS * job.errors,
        copied_maps=resources.copied_maps,
        max_rows=resources.rows or max(FEW_ROWS, most),
    )


def combine_slab(job: Job, arguments: KernelArguments, slab: Slab, result: StackResult, workers: int) -> None:
    """Reject and combine the samples of one slab into the rows of the result."""
    from zemosaic_phase3.combine.block import NO_TOLERANCE, NOWHERE, combine_block
    from zemosaic_phase3.combine.spread import spread_block
    from zemosaic_phase3.runtime.jit import wait_for_compiler
    from zemosaic_phase3.runtime.lanes import LANES

    wait_for_compiler()
    n_frames, line = len(job.sources), job.shape[1] * job.channels
    size = (slab.rows.stop - slab.rows.start) * line
    sample_weight, step = slab.weights()
    here = slice(slab.rows.start * line, slab.rows.stop * line)
    out = [getattr(result, name).reshape(-1)[here] for name in MAPS]
    errors = None if result.error is None else result.error.reshape(-1)[here]
    kept = NOWHERE if errors is None else (np.empty(size, np.float32), np.empty(size, np.float32))
    allowed = NO_TOLERANCE if job.tolerance is None else job.tolerance.reshape(-1)[here]
    lanes = np.tile(arguments.weights, (1, LANES // job.channels))  # one column per lane of the kernel

    def combine(share: range) -> tuple[int, np.ndarray]:
        hits, lost = np.zeros((n_frames, 3), np.int64), 0
        for cube, start, stop, offset in slab.pieces(LANES * share.start, min(LANES * share.stop, size)):
            lost += combine_block(
                cube, start, stop, arguments, lanes, sample_weight, step, [a[offset:] for a in out], hits,
                kept=kept if kept is NOWHERE else (kept[0][offset:], kept[1][offset:]), tolerance=allowed[offset:],
            )  # fmt: skip
            if errors is not None:
                combination = COMBINATIONS[arguments.combine]
                spread_block(
                    cube, start, stop, lanes, sample_weight, step, combination.is_mean, kept[0][offset:],
                    kept[1][offset:], errors[offset:],
                )  # fmt: skip
        return int(lost), hits

    for lost, hits in parallel_map(combine, shares(-(-size // LANES), workers * SHARES_PER_WORKER), workers):
        result.all_rejected += lost
        result.frame_counts += hits


def shares(count: int, pieces: int) -> list[range]:
    """Cut 0 .. count - 1 into at most ``pieces`` runs of nearly the same length."""
    edges = [k * count // pieces for k in range(pieces + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges) if b > a]


def stack(
    job: Job, resources: Resources, progress: Callback | None = None, finished: FinishedRows | None = None
) -> StackResult:
    """Stack a job on the CPU; a frame that can no longer be read is dropped, and the stack starts anew without it.

    Parameters
    ----------
    job : Job
        From :func:`engine.job.make_job`.
    resources : Resources
        What it may take of the machine; slabs never change a value.
    progress : callable or None
        Called as ``progress("stack", slabs_done, slabs)``.
    finished : FinishedRows, optional
        Rows of an earlier run, which are not stacked again, and where those of this run are kept.

    Raises
    ------
    PlanError
        Not even one row fits; raised before a frame is read.
    MemoryError
        Not even one row fits, in spite of the plan.
    FrameError
        No frame can be read.
    """
    return stack_what_can_be_read(job, lambda readable: _stack_in_memory(readable, resources, progress, finished))


def _stack_in_memory(
    job: Job, resources: Resources, progress: Callback | None, finished: FinishedRows | None
) -> StackResult:
    """Stack with smaller slabs and fewer workers where the system gives less memory than it said it had."""
    while True:
        plan = slab_plan(job, resources)
        logger.debug("CPU stack: %s", plan)
        try:
            return _stack_once(job, plan, progress, finished)
        except MemoryError as exc:
            if plan.rows_per_slab == plan.workers == 1:
                raise
            traceback.clear_frames(exc.__traceback__)  # which hold the slabs
        resources = replace(resources, rows=max(1, plan.rows_per_slab // 2), workers=max(1, plan.workers // 2))
        logger.warning(
            "not enough memory for slabs of %d rows; going on with %d rows and %d worker(s)",
            plan.rows_per_slab, resources.rows, resources.workers,
        )  # fmt: skip


def _stack_once(job: Job, plan: SlabPlan, progress: Callback | None, finished: FinishedRows | None) -> StackResult:
    arguments, result = job.kernel_arguments(), empty_result(job, plan.rows_per_slab)
    known = [] if finished is None else finished.restore(job, result)
    slab, slabs = slab_for(job, plan.rows_per_slab), list(slabs_to_do(job.shape[0], plan.rows_per_slab, known))
    for done, rows in enumerate(slabs, 1):
        waited = fill_slab(job, slab, rows, plan.workers)
        with _reading_ahead(job, slabs[done] if waited and done < len(slabs) else None):
            combine_slab(job, arguments, slab, result, plan.workers)
        if finished is not None:
            finished.keep(rows, result)
        notify(progress, "stack", done, len(slabs))
    return result


def fill_slab(job: Job, slab: Slab, rows: slice, workers: int) -> bool:
    """Fill a slab with rows of all frames; returns whether the workers waited for the disk more than they computed."""

    def fill(some: range) -> None:
        for i in some:
            slab.fill(i)

    slab.take(rows)
    wall, cpu = time.perf_counter(), time.process_time()
    parallel_map(fill, shares(len(job.sources), workers * SHARES_PER_WORKER), workers)
    busy = (time.process_time() - cpu) / (workers * (time.perf_counter() - wall))
    return busy < WAITING_SHARE


def stack_rows(job: Job, rows: slice) -> np.ndarray:
    """Stack a few rows of a job on this thread alone, to compare them with what another device made of them.

    Returns
    -------
    ndarray (h, W) or (h, W, 3) float32, ADU
    """
    height = rows.stop - rows.start
    slab, result = slab_for(job, height), empty_result(job, height)
    fill_slab(job, slab, rows, 1)
    combine_slab(job, job.kernel_arguments(), slab, result, 1)
    return result.image[rows]


@contextlib.contextmanager
def _reading_ahead(job: Job, rows: slice | None) -> Iterator[None]:
    """Meanwhile have the system fetch the rows of the next slab; None: they are at hand."""
    if rows is None:
        yield
        return
    import numba  # noqa: F401 - two threads that import it at once fail, and both need it from here on

    thread = threading.Thread(target=expect_slab, args=(job, rows), name="zemosaic-ahead")
    thread.start()
    try:
        yield
    finally:
        thread.join()
