"""Stacking of descriptors by dictionaries of parameters, on the CPU and on the GPU."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zemosaic_phase3.compat.descriptors import describe, prepare
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.errors import GPUStackingError
from zemosaic_phase3.finish.equalize import poststack_rgb_equalization
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda, cuda_failure

LOGGER = logging.getLogger("ZeMosaicWorker")


def stack_descriptors(
    image_descriptors: Sequence[Any] | np.ndarray,
    stacking_params: Mapping[str, Any],
    *,
    parallel_plan: object = None,
    logger: logging.Logger | None = None,
    pcb_tile: Callback | None = None,
    zconfig: object = None,
    tile_id: object = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stack descriptors on the CPU: the twin of ``gpu_stack_from_paths``.

    Parameters
    ----------
    image_descriptors : sequence
        Arrays, paths, dictionaries or :class:`zemosaic_utils.Frame` objects, of one shape.
    stacking_params : mapping
        See :func:`compat.parameters.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others are
        normalised to), ``memory_bytes``.
    parallel_plan, zconfig : object
        Hints and configuration by attribute.
    logger, pcb_tile, tile_id : object
        Not needed here; the same for every engine.
    progress_callback : callable or None
        Called as ``progress_callback("stack", slabs_done, slabs)``.

    Returns
    -------
    image : ndarray (H, W) or (H, W, 3) float32, ADU
        NaN where no frame has a valid sample.
    metadata : dict
        Methods, statistics, maps; see :func:`compat.descriptors.describe`.
    """
    job = prepare(image_descriptors, stacking_params, zconfig)
    job, result = cpu.run_job(
        job,
        parallel_plan=parallel_plan,
        allowed_bytes=stacking_params.get("memory_bytes"),
        progress=progress_callback,
    )
    metadata = describe(job, result)
    metadata["rgb_equalization"] = poststack_rgb_equalization(result.image, job.spec.equalize_rgb)
    return result.image, metadata


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
    """Stack descriptors on the GPU: the twin of ``compat.stack_descriptors.stack_descriptors``, with the same bits.

    Parameters
    ----------
    image_descriptors : sequence
        Arrays, paths, dictionaries or :class:`zemosaic_utils.Frame` objects, of one shape.
    stacking_params : mapping
        See :func:`compat.parameters.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others are
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
        Methods, statistics, maps; see :func:`compat.descriptors.describe`.

    Raises
    ------
    GPUStackingError
        CUDA is lost to this process; or, as an :class:`UnsuitedTileError`, the tile is none for this card.
    Exception
        Whatever CuPy raises; :func:`runtime.cuda_failure.classify_failure` tells what it means.
    """
    began = time.perf_counter()
    if cuda_failure.is_poisoned():
        raise GPUStackingError(cuda.probe().reason)
    descriptors = image_descriptors
    if array_loader is not None:
        descriptors = [array_loader(d) if isinstance(d, (str, os.PathLike)) else d for d in image_descriptors]
    job = prepare(descriptors, stacking_params, zconfig)
    job, result, plan, sent = gpu.run_job(job, parallel_plan, stacking_params.get("memory_bytes"), progress_callback)
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
