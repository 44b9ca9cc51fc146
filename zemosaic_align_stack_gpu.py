"""The GPU slab engine: the twin of ``zemosaic_slabs``, with the same arguments, results and bits.

``stack_job`` is the engine. Host threads gather rows of frames in pinned buffers; whatever one has filled is sent,
opened, resampled, rejected and combined on the card while the others gather on. No frame is on the card as a whole, and
nothing grows with the number of frames but what one slab of rows needs.

Equal bits rest on three things: the kernels' texts add in the order of their Numba twins, they are compiled without
contraction, and one thread owns a pixel. So a tile that falls back to the CPU cannot be told from its neighbours.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import cuda_utils
from parallel_utils import Crew, memory_text, plan_hint, usable_cpus
from zemosaic_gpu_card import MAPS, Card, launch_plan
from zemosaic_gpu_gather import gatherer_of
from zemosaic_gpu_plan import (
    OUTPUT_BYTES,
    GpuPlan,
    Route,
    cut,
    device_bytes,
    plan_gpu,
    preferred_rows,
    route_of,
)
from zemosaic_spec import FrameError, PlanError, StackSpec
from zemosaic_stack import (
    SUMMED,
    Callback,
    Job,
    StackResult,
    describe,
    empty_result,
    make_job,
    notify,
    prepare,
    without_unreadable,
)
from zemosaic_tile import poststack_rgb_equalization

__all__ = [
    "GPUStackingError",
    "gpu_stack_from_arrays",
    "gpu_stack_from_paths",
    "stack_job",
    "usability",
    "why_unusable",
]

LOGGER = logging.getLogger("ZeMosaicWorker")
SCRATCH_SHARE: Final = 3  # the rejection kernel may take one part in so many of a tile's device memory
COPIES_AHEAD: Final = 3  # batches on the bus or waiting for it, so that it never does
MAPS_IN_FLIGHT: Final = 2  # slabs whose maps are on their way back
PROBE_BYTES: Final = 256 << 20  # a card with less free memory is left to whoever uses it


class GPUStackingError(RuntimeError):
    """The GPU engine found that it cannot stack a tile, or that its result is wrong."""


# --------------------------------------------------------------------------- one tile


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
        cuda_utils.noticing_sticky_errors(),  # before collectors that still wait call CUDA
    ):
        for number, slab, batch in gatherer.filled():
            cuda_utils.check_not_lost()
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
        From :func:`zemosaic_stack.make_job`.
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
    GPUStackingError
        Not even one row fits on the card, or in the bytes it may take there.
    FrameError
        A frame can no longer be read.
    """
    route = route_of(job)
    rows = preferred_rows(route, max_rows)
    smallest = launch_plan(route.n_frames, route.row_elements, 0).scratch_bytes
    largest = launch_plan(route.n_frames, rows * route.row_elements, 1 << 62).scratch_bytes
    least, wanted = device_bytes(route, 1, smallest), device_bytes(route, rows, largest)
    if allowed_bytes is not None:
        wanted = max(1, min(wanted, allowed_bytes))
    with cuda_utils.reserve_vram(min(least, wanted), wanted) as granted:
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
            raise GPUStackingError(str(exc)) from exc
    return result, plan, sent


def _result_bytes(job: Job) -> int:
    return OUTPUT_BYTES * int(np.prod(job.shape))


def _run_job(
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


def gpu_stack_from_paths(
    image_descriptors: Sequence[Any] | np.ndarray,
    stacking_params: Mapping[str, Any],
    *,
    parallel_plan: object = None,
    logger: logging.Logger | None = None,
    pcb_tile: Callback | None = None,
    zconfig: object = None,
    tile_id: object = None,
    progress_callback: Callback | None = None,
    array_loader: Callable[[Any], np.ndarray] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stack descriptors on the GPU: the twin of ``zemosaic_slabs.stack_descriptors``, with the same bits.

    Parameters
    ----------
    image_descriptors : sequence
        Arrays, paths, dictionaries or :class:`zemosaic_utils.Frame` objects, of one shape.
    stacking_params : mapping
        See :func:`zemosaic_spec.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others are
        normalised to), ``memory_bytes`` (of the host).
    parallel_plan, zconfig : object
        Hints (``cpu_workers``, ``gpu_max_chunk_bytes``, ``gpu_rows_per_chunk``) and configuration by attribute.
    logger : logging.Logger, optional
        Where the summary goes when there is no ``pcb_tile``; default ``ZeMosaicWorker``.
    pcb_tile : callable, optional
        Told of the event ``phase3_gpu_chunk_summary``, as ``pcb_tile(key, None, "INFO_DETAIL", **figures)``.
    tile_id : object, optional
        For the event.
    progress_callback : callable or None
        Called as ``progress_callback("stack", slabs_done, slabs)``.
    array_loader : callable, optional
        Turns a path into an array; without it files are read by rows, which takes less memory.

    Returns
    -------
    image : ndarray (H, W) or (H, W, 3) float32, ADU
        NaN where no frame has a valid sample.
    metadata : dict
        Methods, statistics, maps; see :func:`zemosaic_stack.describe`.

    Raises
    ------
    GPUStackingError
        The tile does not fit on the card, or CUDA is lost to this process.
    Exception
        Whatever CuPy raises; :func:`cuda_utils.classify_failure` tells what it means.
    """
    began = time.perf_counter()
    if cuda_utils.is_poisoned():
        raise GPUStackingError(cuda_utils.probe().reason)
    descriptors = image_descriptors
    if array_loader is not None:
        descriptors = [array_loader(d) if isinstance(d, (str, os.PathLike)) else d for d in image_descriptors]
    job = prepare(descriptors, stacking_params, zconfig)
    job, result, plan, sent = _run_job(job, parallel_plan, stacking_params.get("memory_bytes"), progress_callback)
    metadata = describe(job, result)
    metadata["rgb_equalization"] = poststack_rgb_equalization(result.image, job.spec.equalize_rgb)
    figures = {
        "rows_per_chunk": plan.rows_per_slab,
        "total_rows": job.shape[0],
        "chunks": plan.n_slabs,
        "frames": len(job.sources),
        "duration_s": round(time.perf_counter() - began, 4),
        "bytes_h2d": sent,
        "tile_id": tile_id,
    }
    if pcb_tile is None:
        told = ", ".join(f"{key}={value}" for key, value in figures.items())
        (logger or LOGGER).info("[P3][GPU] phase3_gpu_chunk_summary: %s", told)
    else:
        notify(pcb_tile, "phase3_gpu_chunk_summary", None, "INFO_DETAIL", **figures)
    return result.image, metadata


def gpu_stack_from_arrays(
    aligned_images: Sequence[np.ndarray] | np.ndarray, stacking_params: Mapping[str, Any], **keywords: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stack arrays on the GPU; parameters, returns and errors of :func:`gpu_stack_from_paths`.

    Parameters
    ----------
    aligned_images : sequence of ndarray (H, W) or (H, W, 3), or ndarray (N, ...)
        ADU; float32 and 16-bit ones travel as they are.
    stacking_params, **keywords
        See there.
    """
    return gpu_stack_from_paths(aligned_images, stacking_params, **keywords)


# --------------------------------------------------------------------------- can it be used


@dataclass(frozen=True)
class Usability:
    """Whether the GPU gives right answers here; if not, why, and what helps."""

    usable: bool
    reason: str = ""
    remedy: str = ""


_CHECKING = threading.Lock()
_KNOWN: list[Usability] = []

NVRTC_REMEDY: Final = (
    'pip install "cupy-cuda12x[ctk]" (or cupy-cuda13x[ctk]), which brings the compiler of CUDA kernels, '
    "or install the CUDA toolkit"
)


def usability() -> Usability:
    """Return whether a kernel can be compiled, run and trusted here.

    Looked into once per process: a small tile with an outlier and an invalid sample is stacked, and every value
    compared with the known answer. Later calls only look whether CUDA has been lost since.
    """
    if cuda_utils.is_poisoned():
        lost = cuda_utils.probe()
        return Usability(False, lost.reason, lost.remedy)
    with _CHECKING:
        if not _KNOWN:
            _KNOWN.append(_look_into_it())
        return _KNOWN[0]


def why_unusable() -> str:
    """Return the reason of :func:`usability` and what helps, in one line; empty if the GPU can be used."""
    found = usability()
    return "" if found.usable else f"{found.reason}; {found.remedy}"


def _look_into_it() -> Usability:
    seen = cuda_utils.probe()
    if not seen.usable_hint:
        return Usability(False, seen.reason, seen.remedy)
    if seen.vram_free < PROBE_BYTES:
        free, needed = memory_text(seen.vram_free), memory_text(PROBE_BYTES)
        return Usability(False, f"the GPU has {free} of free memory, {needed} are needed", "close what else uses it")
    try:
        fault = _known_answer_fault()
    except Exception as exc:  # noqa: BLE001 - the check is a GPU attempt: whatever it raises means no
        return _failed_check(exc)
    if fault:
        return Usability(False, f"the GPU computes wrongly: {fault}", "update the NVIDIA driver and CuPy")
    return Usability(True)


def _failed_check(exc: Exception) -> Usability:
    if cuda_utils.classify_failure(exc) == "sticky":
        cuda_utils.mark_sticky()
    text = f"{type(exc).__name__}: {exc}"
    if "nvrtc" in text.lower():
        return Usability(False, f"CUDA kernels cannot be compiled ({text})", NVRTC_REMEDY)
    return Usability(False, f"a test kernel failed ({text})", "check that nvidia-smi works, update the driver and CuPy")


def _known_answer_fault() -> str:
    """Stack a tile whose answer is known; returns what is wrong with the result, or nothing.

    Ten samples a pixel: seven about the mean, two on it, one far out; one of them NaN at every third pixel. Two rounds
    of clipping at two deviations leave samples that are symmetric about a whole number.
    """
    level = np.arange(24 * 32, dtype=np.float32).reshape(24, 32)
    steps = (0, 1, -1, 0, 2, -2, 1, -1, 5000, 0)
    frames = [level + np.float32(step) for step in steps]
    frames[-1].reshape(-1)[::3] = np.nan
    spec = StackSpec(normalize="none", weight="none", reject="sigma_clip", kappa_low=2.5, kappa_high=2.5)
    result, _, _ = stack_job(make_job(frames_of(frames), spec), workers=1)
    coverage = np.full(level.shape, 10)
    coverage.reshape(-1)[::3] = 9
    for name, found, expected in (
        ("mean", result.image, level),
        ("coverage", result.coverage, coverage),
        ("rejected high", result.rejected_high, np.ones(level.shape)),
        ("rejected low", result.rejected_low, np.zeros(level.shape)),
    ):
        wrong = int((found != expected).sum())
        if wrong:
            return f"{name} differs at {wrong} of {level.size} pixels"
    return ""


def frames_of(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Return arrays as frames that lie on the reference grid."""
    from zemosaic_stack import as_frames

    return as_frames(arrays)


def _gpu_is_usable(logger: logging.Logger | None = None) -> bool:
    """Return True if a kernel was compiled and run here, and gave the right answer; looked into once per process.

    Parameters
    ----------
    logger : logging.Logger, optional
        Told why not, and what helps.
    """
    reason = why_unusable()
    if reason:
        (logger or LOGGER).info("[P3][GPU] no GPU is used: %s", reason)
    return not reason
