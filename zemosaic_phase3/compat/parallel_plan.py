"""The plans and capabilities that ZeMosaic runs pass around; see ``docs/zemosaic.md``."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zemosaic_phase3.engine.resources import GPU_BYTES, Resources
from zemosaic_phase3.engine.slab_plan import rows_that_fit, stack_bytes
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.runtime.limits import available_memory, container_limits, usable_cpus
from zemosaic_phase3.settings import as_bool, positive, setting

LOGGER = logging.getLogger("parallel_utils")


@dataclass
class ParallelCapabilities:
    """What this process may use; sizes in bytes, container limits applied."""

    cpu_cores: int
    cpu_logical_cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    gpu_available: bool = False
    gpu_name: str | None = None
    gpu_vram_total_bytes: int | None = None
    gpu_vram_free_bytes: int | None = None


def detect_parallel_capabilities() -> ParallelCapabilities:
    """Look at this machine: cores, memory (container limits applied) and GPU.

    Imports CuPy if it is installed; a GPU that does not answer is reported as none.
    """
    import psutil

    limits = container_limits()
    logical = usable_cpus(limits)
    total = int(psutil.virtual_memory().total)
    gpu = cuda.probe()
    return ParallelCapabilities(
        cpu_cores=min(logical, psutil.cpu_count(logical=False) or logical),
        cpu_logical_cores=logical,
        ram_total_bytes=total if limits.memory_limit is None else min(total, limits.memory_limit),
        ram_available_bytes=available_memory(limits),
        gpu_available=gpu.usable_hint,
        gpu_name=gpu.name or None,
        gpu_vram_total_bytes=gpu.vram_total if gpu.usable_hint else None,
        gpu_vram_free_bytes=gpu.vram_free if gpu.usable_hint else None,
    )


@dataclass
class ParallelPlan:
    """Hints for one stack; absent or non-positive means no hint. Sizes in bytes, heights in rows."""

    cpu_workers: int
    use_memmap: bool
    max_chunk_bytes: int
    rows_per_chunk: int | None = None
    tiles_per_chunk: int | None = None
    use_gpu: bool = False
    gpu_rows_per_chunk: int | None = None
    gpu_max_chunk_bytes: int | None = None


def _number(config: object, key: str, default: float, low: float, high: float) -> float:
    """Read a number from a configuration, clamped; what cannot be read is the default."""
    value: Any = setting(config, key)
    try:
        number = float(default if value is None else value)
    except (TypeError, ValueError):
        number = default
    return min(max(number if math.isfinite(number) else default, low), high)


def auto_tune_parallel_plan(
    kind: str,
    frame_shape: Sequence[int],
    n_frames: int,
    bytes_per_pixel: int,
    config: object = None,
    caps: ParallelCapabilities | None = None,
) -> ParallelPlan:
    """Choose workers and chunk sizes for a stack.

    Parameters
    ----------
    kind : str
        What is stacked ("master_tile", ...), for the log.
    frame_shape : sequence of int
        (H, W) or (H, W, C).
    n_frames : int
        Frames in the stack.
    bytes_per_pixel : int
        Bytes of one pixel of one frame, all channels; never counted as less than float32 takes.
    config : Mapping or object, optional
        Keys or attributes, all optional, clamped, unreadable means the default: ``parallel_autotune_enabled`` (True;
        False: all cores, and no hint on sizes), ``parallel_target_cpu_load`` (0.95), ``parallel_target_ram_fraction``
        (0.9), ``parallel_gpu_vram_fraction`` (0.8), ``parallel_max_cpu_workers`` (0 = no limit).
    caps : ParallelCapabilities, optional
        Default: :func:`detect_parallel_capabilities`.

    Raises
    ------
    ValueError
        The shape is not that of a frame, or there is no frame.
    """
    if len(frame_shape) not in (2, 3) or min(frame_shape) < 1 or n_frames < 1:
        raise ValueError(f"{n_frames} frame(s) of shape {tuple(frame_shape)} are not a stack of (H, W) or (H, W, C)")
    caps = detect_parallel_capabilities() if caps is None else caps
    height, width, channels = (*(int(n) for n in frame_shape), 1)[:3]
    pixel_bytes = max(int(bytes_per_pixel), 4 * channels)
    most_workers = int(_number(config, "parallel_max_cpu_workers", 0, 0, 4096)) or caps.cpu_logical_cores
    if not as_bool(setting(config, "parallel_autotune_enabled"), True):
        workers = max(1, min(caps.cpu_logical_cores, most_workers))
        return ParallelPlan(workers, use_memmap=False, max_chunk_bytes=0, use_gpu=caps.gpu_available)

    load = _number(config, "parallel_target_cpu_load", 0.95, 0.05, 1.0)
    workers = max(1, min(round(caps.cpu_logical_cores * load), most_workers))
    allowed = int(caps.ram_available_bytes * _number(config, "parallel_target_ram_fraction", 0.9, 0.05, 1.0))
    rows = rows_that_fit(
        height,
        allowed,
        lambda count: stack_bytes(
            count,
            n_frames=n_frames,
            height=height,
            width=width,
            channels=channels,
            workers=workers,
            raw_bytes=pixel_bytes,
        ),
    )
    plan = ParallelPlan(
        cpu_workers=workers,
        use_memmap=n_frames * height * width * pixel_bytes > allowed,
        max_chunk_bytes=allowed,
        rows_per_chunk=max(1, rows),  # the engine refuses, with the numbers, if not even one row fits
    )
    if caps.gpu_available:
        vram = int((caps.gpu_vram_free_bytes or 0) * _number(config, "parallel_gpu_vram_fraction", 0.8, 0.05, 0.95))
        # Registered samples, and as much again for the upload that overlaps with the kernel.
        gpu_rows = min(height, vram // (2 * n_frames * width * pixel_bytes))
        plan.use_gpu = gpu_rows >= 1
        if plan.use_gpu:
            plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes = gpu_rows, vram
    LOGGER.debug("plan for %s, %d frames of %s: %s", kind, n_frames, tuple(frame_shape), plan)
    return plan


def plan_hint(plan: object, *names: str) -> int | None:
    """Return the first of some hints that a plan gives as a positive number, else None.

    Parameters
    ----------
    plan : object
        A :class:`ParallelPlan`, a mapping, or anything with such attributes; None gives no hint.
    *names : str
        Spellings of one hint: ``rows_per_chunk`` of older, ``cpu_rows_per_chunk`` of newer ZeMosaic.
    """
    return next((found for name in names if (found := positive(setting(plan, name)))), None)


def forbids_gpu(plan: object) -> bool:
    """Return True if a plan says that the GPU is not to be used; one that says nothing allows it."""
    return not as_bool(setting(plan, "use_gpu"), True)


def resources_of(plan: object, memory: int | None = None) -> Resources:
    """Return what a plan allows a stack to take.

    Parameters
    ----------
    plan : object
        See :func:`plan_hint`.
    memory : int or None
        Bytes of the host's memory; None: half of what is available.
    """
    return Resources(
        workers=plan_hint(plan, "cpu_workers") or usable_cpus(),
        memory=memory,
        rows=plan_hint(plan, "rows_per_chunk", "cpu_rows_per_chunk"),
        gpu_memory=_gpu_bytes(plan),
        gpu_rows=plan_hint(plan, "gpu_rows_per_chunk"),
    )


def _gpu_bytes(plan: object) -> int | None:
    megabytes = plan_hint(plan, "gpu_max_chunk_mb")
    return plan_hint(plan, "gpu_max_chunk_bytes") or (megabytes << 20 if megabytes else None)


def tighter(plan: object) -> ParallelPlan:
    """Return a copy of a plan with half the GPU chunk: half the bytes and half the rows, at least one row.

    A hint on GPU bytes that is absent is derived from ``max_chunk_bytes`` (never above 512 MiB, which is the value
    without either); an absent hint on GPU rows from ``rows_per_chunk``, and stays absent without it, since the bytes
    bind already. The original is not changed.

    Parameters
    ----------
    plan : ParallelPlan, mapping or object
        See :func:`plan_hint`.
    """
    megabytes = plan_hint(plan, "max_chunk_mb")
    chunk = plan_hint(plan, "max_chunk_bytes") or (megabytes << 20 if megabytes else 0)
    gpu_bytes = _gpu_bytes(plan) or min(chunk or GPU_BYTES, GPU_BYTES)
    gpu_rows = plan_hint(plan, "gpu_rows_per_chunk", "rows_per_chunk", "cpu_rows_per_chunk")
    half_bytes = max(1, gpu_bytes // 2)
    half_rows = max(1, gpu_rows // 2) if gpu_rows else None
    if isinstance(plan, ParallelPlan):
        return dataclasses.replace(plan, gpu_max_chunk_bytes=half_bytes, gpu_rows_per_chunk=half_rows)
    return ParallelPlan(
        cpu_workers=plan_hint(plan, "cpu_workers") or 0,
        use_memmap=as_bool(setting(plan, "use_memmap"), False),
        max_chunk_bytes=chunk,
        rows_per_chunk=plan_hint(plan, "rows_per_chunk", "cpu_rows_per_chunk"),
        tiles_per_chunk=plan_hint(plan, "tiles_per_chunk"),
        use_gpu=not forbids_gpu(plan),
        gpu_rows_per_chunk=half_rows,
        gpu_max_chunk_bytes=half_bytes,
    )
