"""Stacking of descriptors by dictionaries of parameters, on the GPU; the twin of ``compat.stack_cpu``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zemosaic_phase3.compat.descriptors import describe, prepare
from zemosaic_phase3.compat.parallel_plan import resources_of
from zemosaic_phase3.engine.gpu import stack
from zemosaic_phase3.engine.job import StackResult
from zemosaic_phase3.errors import GPUStackingError
from zemosaic_phase3.finish.equalize import equalize_if
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda, cuda_failure

LOGGER = logging.getLogger("ZeMosaicWorker")


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
    """Stack descriptors on the GPU: the twin of :func:`compat.stack_cpu.stack_descriptors`, with the same bits.

    Parameters
    ----------
    image_descriptors : sequence
        Arrays, paths, dictionaries or :class:`io.frame.Frame` objects, of one shape.
    stacking_params : mapping
        See :func:`compat.parameters.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others
        are normalised to), ``memory_bytes`` (of the host).
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
    if cuda_failure.is_poisoned():
        raise GPUStackingError(cuda.probe().reason)
    descriptors = image_descriptors
    if array_loader is not None:
        descriptors = [array_loader(d) if isinstance(d, (str, os.PathLike)) else d for d in image_descriptors]
    job = prepare(descriptors, stacking_params, zconfig)
    result = stack(job, resources_of(parallel_plan, stacking_params.get("memory_bytes")), progress_callback)
    result.equalization = equalize_if(job.spec.equalize_rgb, result.image)
    _tell_summary(result, tile_id, pcb_tile, logger or LOGGER)
    return result.image, describe(result)


def _tell_summary(result: StackResult, tile_id: object, pcb_tile: Callback | None, logger: logging.Logger) -> None:
    """Tell of the event ``phase3_gpu_chunk_summary``, through the logger when nobody listens."""
    assert result.gpu is not None  # noqa: S101 - the GPU engine always fills it
    figures = {
        "rows_per_chunk": result.gpu.rows_per_slab,
        "total_rows": result.job.shape[0],
        "chunks": result.gpu.slabs,
        "frames": len(result.job.sources),
        "duration_s": round(result.gpu.seconds, 4),
        "bytes_h2d": result.gpu.bytes_sent,
        "tile_id": tile_id,
    }
    if pcb_tile is None:
        told = ", ".join(f"{key}={value}" for key, value in figures.items())
        logger.info("[P3][GPU] phase3_gpu_chunk_summary: %s", told)
    else:
        notify(pcb_tile, "phase3_gpu_chunk_summary", None, "INFO_DETAIL", **figures)


def gpu_stack_from_arrays(
    aligned_images: Sequence[np.ndarray] | np.ndarray,
    stacking_params: Mapping[str, Any],
    *,
    parallel_plan: object = None,
    logger: logging.Logger | None = None,
    pcb_tile: Callback | None = None,
    tile_id: object = None,
    zconfig: object = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stack arrays on the GPU; parameters, returns and errors of :func:`gpu_stack_from_paths`.

    Parameters
    ----------
    aligned_images : sequence of ndarray (H, W) or (H, W, 3), or ndarray (N, ...)
        ADU; float32 and 16-bit ones travel as they are.
    stacking_params, parallel_plan, logger, pcb_tile, tile_id, zconfig, progress_callback
        See there.
    """
    return gpu_stack_from_paths(
        aligned_images,
        stacking_params,
        parallel_plan=parallel_plan,
        logger=logger,
        pcb_tile=pcb_tile,
        tile_id=tile_id,
        zconfig=zconfig,
        progress_callback=progress_callback,
    )
