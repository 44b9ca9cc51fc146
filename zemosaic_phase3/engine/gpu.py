"""The GPU slab engine: the twin of ``engine.cpu``, with the same arguments, results and bits.

``stack`` is the engine: ``gpu_rows`` on one card, ``gpu_cards`` on several.

Equal bits rest on three things: the kernels' texts add in the order of their Numba twins, they are compiled without
contraction, and one thread owns a pixel. So a tile that falls back to the CPU cannot be told from its neighbours.
"""

from __future__ import annotations

import time
from dataclasses import replace

from zemosaic_phase3.engine.finished_rows import FinishedRows
from zemosaic_phase3.engine.gpu_cards import stack_on_cards
from zemosaic_phase3.engine.gpu_rows import stack_rows
from zemosaic_phase3.engine.job import Job, StackResult, empty_result, stack_what_can_be_read
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import UnsuitedTileError
from zemosaic_phase3.methods import REJECTIONS, Rejection
from zemosaic_phase3.progress import Callback


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
        Called as ``progress("stack", slabs_done, slabs)``; on several cards it counts rows.
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
    NoCardLeftError
        Several cards were asked for, and each of them failed.
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
    result = empty_result(job, 0)
    known = [] if finished is None else finished.restore(job, result)
    counts, lost = result.frame_counts, result.all_rejected
    on_cards = stack_on_cards if resources.cards else stack_rows
    made = on_cards(job, resources, result, known, progress, finished)
    result.frame_counts, result.all_rejected = counts + made.frame_counts, lost + made.all_rejected
    result.sums = {} if known else made.sums  # of the rows stacked now alone
    result.rows_per_slab, result.gpu = made.figures.rows_per_slab, made.figures
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
