"""Stacking of descriptors by dictionaries of parameters, on the CPU; the twin of ``compat.stack_gpu``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zemosaic_phase3.compat.descriptors import describe, prepare
from zemosaic_phase3.compat.parallel_plan import resources_of
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.finish.equalize import equalize_if
from zemosaic_phase3.progress import Callback


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
    """Stack descriptors on the CPU: the twin of :func:`compat.stack_gpu.gpu_stack_from_paths`.

    Parameters
    ----------
    image_descriptors : sequence
        Arrays, paths, dictionaries or :class:`io.frame.Frame` objects, of one shape.
    stacking_params : mapping
        See :func:`compat.parameters.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others
        are normalised to), ``memory_bytes`` (of the host).
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
    result = stack(job, resources_of(parallel_plan, stacking_params.get("memory_bytes")), progress_callback)
    result.equalization = equalize_if(job.spec.equalize_rgb, result.image)
    return result.image, describe(result)
