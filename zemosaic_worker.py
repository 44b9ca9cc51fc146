"""One tile from front door to back, and the choice of the device that stacks it: names that existing programs call.

Programs and tests replace some of these names (``_p3_gpu_stack_from_paths``, ``_P3_GPU_STATE``, ...); whatever stacks a
tile looks them up here at each call.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import ChainMap
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from zemosaic_phase3.compat.finish import _apply_lecropper_pipeline, _evaluate_quality_gate_metrics
from zemosaic_phase3.compat.master_tile import TileResult, make_master_tile, working
from zemosaic_phase3.compat.mode_c import load_cache as _safe_load_cache
from zemosaic_phase3.compat.mode_c import stack_auto, stacker_through
from zemosaic_phase3.compat.parallel_plan import forbids_gpu
from zemosaic_phase3.compat.stack_cpu import stack_descriptors
from zemosaic_phase3.compat.tile_request import request_of
from zemosaic_phase3.errors import GPUStackingError as _P3GPUStackingError
from zemosaic_phase3.pipeline.device_policy import LOCK as _P3_GPU_LOCK
from zemosaic_phase3.pipeline.device_policy import OWN, DevicePolicy
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.progress import Callback

_P3_GPU_HELPERS_AVAILABLE: bool = OWN["_P3_GPU_HELPERS_AVAILABLE"]
_P3_GPU_HELPERS_REASON: str = OWN["_P3_GPU_HELPERS_REASON"]
_p3_gpu_is_usable = OWN["_p3_gpu_is_usable"]
_p3_why_unusable = OWN["_p3_why_unusable"]
try:
    from zemosaic_phase3.compat.stack_gpu import gpu_stack_from_paths as _p3_gpu_stack_from_paths
except Exception as _exc:  # noqa: BLE001 - a broken CuPy or Numba may raise anything when it is imported
    _P3_GPU_HELPERS_AVAILABLE = False
    _P3_GPU_HELPERS_REASON = f"the GPU engine cannot be imported ({type(_exc).__name__}: {_exc})"

    def _p3_gpu_stack_from_paths(*_args: Any, **_keywords: Any) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[misc]
        raise _P3GPUStackingError(_P3_GPU_HELPERS_REASON)


__all__ = [
    "LOGGER",
    "_P3GPUStackingError",
    "_P3_GPU_HELPERS_AVAILABLE",
    "_P3_GPU_HELPERS_REASON",
    "_P3_GPU_LOCK",
    "_P3_GPU_STATE",
    "_PH3_CONCURRENCY_SEMAPHORE",
    "_apply_lecropper_pipeline",
    "_evaluate_quality_gate_metrics",
    "_hard_disable",
    "_p3_gpu_is_usable",
    "_p3_gpu_stack_from_paths",
    "_p3_why_unusable",
    "_phase3_gpu_candidate",
    "_phase3_gpu_refusal",
    "_safe_load_cache",
    "_stack_master_tile_auto",
    "_stack_master_tile_cpu",
    "create_master_tile",
    "reset_phase3_gpu_state",
    "stack_files",
]

LOGGER = logging.getLogger("ZeMosaicWorker")
Descriptors = Sequence[Any]

_P3_GPU_STATE: dict[str, Any] = OWN["_P3_GPU_STATE"]
"""What the tiles of one run know of the GPU; read and changed under ``_P3_GPU_LOCK``."""

_NAMES: ChainMap[str, Any] = ChainMap(globals())
"""Where replaced names are looked up; in an attached checkout those of its own module come first."""

_POLICY = DevicePolicy(_NAMES)
_OWN_GPU_STACKER, _OWN_LOAD_CACHE = _p3_gpu_stack_from_paths, _safe_load_cache


def reset_phase3_gpu_state() -> None:
    """Start a new run: the GPU is allowed, and its health is checked again with the first tile."""
    _POLICY.reset()


def _hard_disable(logger: logging.Logger) -> None:
    """Turn the GPU off for the rest of the run; says so once, whoever comes first."""
    _POLICY.hard_disable(logger)


def _phase3_gpu_refusal(parallel_plan: object) -> str:
    """Return why a tile cannot go to the GPU as far as is known, empty if nothing speaks against it."""
    return _POLICY.refusal(not forbids_gpu(parallel_plan))


def _phase3_gpu_candidate(parallel_plan: object, logger: logging.Logger | None = None) -> bool:
    """Return True if the next tile should try the GPU; the health check runs once a run.

    Parameters
    ----------
    parallel_plan : ParallelPlan, mapping, object or None
        Only a plan that says ``use_gpu`` false forbids the GPU.
    """
    return _POLICY.candidate(not forbids_gpu(parallel_plan), logger or LOGGER)


def _stack_master_tile_cpu(
    image_descriptors: Descriptors,
    stacking_params: Mapping[str, Any],
    parallel_plan: object = None,
    logger: logging.Logger | None = None,
    pcb_tile: Callback | None = None,
    zconfig: object = None,
    tile_id: int | None = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Stack a whole tile on the CPU.

    Parameters
    ----------
    image_descriptors, stacking_params, parallel_plan, logger, pcb_tile, zconfig, tile_id, progress_callback
        As in :func:`_stack_master_tile_auto`.

    Returns
    -------
    stacked : ndarray (H, W) or (H, W, C) float32, ADU
    stack_metadata : dict
    """
    return stack_descriptors(
        image_descriptors,
        stacking_params,
        parallel_plan=parallel_plan,
        logger=logger or LOGGER,
        pcb_tile=pcb_tile,
        zconfig=zconfig,
        tile_id=tile_id,
        progress_callback=progress_callback,
    )


def _stack_master_tile_auto(
    image_descriptors: Descriptors,
    stacking_params: Mapping[str, Any],
    parallel_plan: object = None,
    logger: logging.Logger | None = None,
    pcb_tile: Callback | None = None,
    zconfig: object = None,
    tile_id: int | None = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, dict[str, Any], bool]:
    """Stack a tile on the GPU if there is a healthy one, else, or if that fails, the whole tile on the CPU.

    Parameters
    ----------
    image_descriptors : sequence
        Frames: arrays, paths, dictionaries or frame objects; the first gives the shape.
    stacking_params : Mapping
        Keys of existing runs; ``device`` "cpu" keeps the tile off the GPU, ``require_gpu`` forbids the CPU.
    parallel_plan : ParallelPlan, mapping or object, optional
        Never changed. Only one that says ``use_gpu`` false keeps the tile off the GPU.
    logger : logging.Logger, optional
        Default ``ZeMosaicWorker``.
    pcb_tile, progress_callback : callable, optional
        Told of events of this tile, and of progress.
    zconfig : object, optional
        Configuration of existing runs.
    tile_id : int, optional
        For events and messages.

    Returns
    -------
    stacked : ndarray (H, W) or (H, W, C) float32, ADU
    stack_metadata : dict
        What the engine reports, ``phase3_used_gpu``, ``phase3_gpu_attempts`` and ``phase3_device_reason``.
    used_gpu : bool

    Raises
    ------
    ZeMosaicError
        Bad input, found before a device is chosen; or ``require_gpu`` and the GPU did not stack the tile.
    """
    return stack_auto(
        _NAMES,
        _OWN_GPU_STACKER,
        image_descriptors,
        stacking_params,
        parallel_plan=parallel_plan,
        logger=logger or LOGGER,
        pcb_tile=pcb_tile,
        zconfig=zconfig,
        tile_id=tile_id,
        progress_callback=progress_callback,
    )


_PH3_CONCURRENCY_SEMAPHORE: Any = threading.Semaphore(2 if os.name == "nt" else 4)
"""How many tiles of this process are read, aligned and stacked at a time; a run may assign another one."""


def create_master_tile(
    seestar_stack_group_info: Sequence[Mapping[str, Any]],
    tile_id: int,
    output_temp_dir: str | os.PathLike[str],
    stack_norm_method: str,
    stack_weight_method: str,
    stack_reject_algo: str,
    stack_kappa_low: float,
    stack_kappa_high: float,
    parsed_winsor_limits: tuple[float, float] | None,
    stack_final_combine: str,
    poststack_equalize_rgb: bool = True,
    apply_radial_weight: bool = False,
    radial_feather_fraction: float = 0.8,
    radial_shape_power: float = 2.0,
    min_radial_weight_floor: float = 0.05,
    quality_crop_enabled: bool = False,
    quality_crop_band_px: int = 32,
    quality_crop_k_sigma: float = 2.0,
    quality_crop_margin_px: int = 8,
    quality_crop_min_run: int = 2,
    altaz_cleanup_enabled: bool = False,
    altaz_margin_percent: float = 5.0,
    altaz_decay: float = 0.15,
    altaz_nanize: bool = True,
    quality_gate_enabled: bool = False,
    quality_gate_threshold: float = 0.48,
    quality_gate_edge_band_px: int = 64,
    quality_gate_k_sigma: float = 2.5,
    quality_gate_erode_px: int = 3,
    quality_gate_move_rejects: bool = True,
    astap_exe_path_global: str = "",
    astap_data_dir_global: str = "",
    astap_search_radius_global: float = 0.0,
    astap_downsample_global: int = 0,
    astap_sensitivity_global: int = 0,
    astap_timeout_seconds_global: int = 0,
    winsor_pool_workers: int = 1,
    winsor_max_frames_per_pass: int = 0,
    progress_callback: Callback | None = None,
    resource_strategy: Mapping[str, Any] | None = None,
    center_out_context: object = None,
    center_out_settings: Mapping[str, Any] | None = None,
    center_out_rank: int | None = None,
    parallel_plan: object = None,
    allow_batch_duplication: bool = False,
    target_stack_size: int | None = None,
    min_safe_stack_size: int | None = None,
    dbg_tile_ids: object = None,
    abort_event: object = None,
    heartbeat_callback: Callback | None = None,
    zconfig: object = None,
    pad_canvas: bool = False,
) -> TileResult:
    """Make one master tile from a group of cached frames, as ZeMosaic's Phase 3 calls it.

    Parameters
    ----------
    seestar_stack_group_info : sequence of mapping
        Group entries: ``path_preprocessed_cache`` (``.npy`` float32 (H, W, 3), ADU), ``path_raw``, ``wcs``, ``header``
        and more. None of them is changed.
    tile_id, output_temp_dir
        Number of the tile, folder of ``master_tile_%03d.fits`` (made if absent).
    stack_norm_method ... quality_gate_move_rejects
        Methods and finishing, under the names of ZeMosaic's configuration.
    astap_*, winsor_pool_workers, winsor_max_frames_per_pass, allow_batch_duplication, target_stack_size,
    min_safe_stack_size, dbg_tile_ids, center_out_rank
        Accepted; none changes a value. No frame is ever counted twice to reach a target.
    progress_callback, heartbeat_callback : callable, optional
        ``progress_callback(key, progress, level, **details)``, and ``progress_callback(stage, done, total)`` at every
        step, from several threads; raising :class:`StackCancelled` stops the tile. The heartbeat is called at every
        step with the number of the tile, or without argument if it takes none.
    resource_strategy : mapping or object, optional
        ``extreme_group_threshold``: frames from which a group is announced as extreme (1000). ``cap``, ``memmap`` and
        ``gpu_batch_hint`` are told and change nothing.
    center_out_context, center_out_settings : compat.center_out.Context, mapping
        With both, and ``enabled`` not off, the tile is brought to the levels of the run's anchor tile.
    parallel_plan : object, optional
        ``cpu_workers``, ``rows_per_chunk``, ``use_gpu`` are honoured.
    abort_event : object, optional
        With ``is_set()``; stops the tile cleanly.
    zconfig : object, optional
        Configuration, a mapping or by attribute: ``wsc_impl``, ``extreme_group_threshold``.
    pad_canvas : bool
        The tile goes on around its reference, by a quarter of a side at most, where other frames show more; its WCS
        follows. Off, it has the reference's size.

    Returns
    -------
    ((path or None, wcs or None), retry_groups)
        At most one retry group: copies of the entries that failed to register. ((None, None), []) when the tile was
        stopped or nothing could be used.

    Raises
    ------
    SpecError
        A method name or a limit is not allowed; before anything is read. All other failures but the next are the tile's
        alone: a progress key tells them, and no path is returned.
    SelfCheckError
        The tile was made and is not what its frames make: a failure of this machine. Nothing is written.
    """
    request = request_of(SimpleNamespace(**locals()), _PH3_CONCURRENCY_SEMAPHORE)
    load_cache = _NAMES["_safe_load_cache"]
    request.load_cache = None if load_cache is _OWN_LOAD_CACHE else load_cache
    stacker = stacker_through(
        _NAMES, working.memory_share, parallel_plan=parallel_plan, logger=LOGGER, pcb_tile=progress_callback,
        zconfig=zconfig, tile_id=tile_id, progress_callback=request.step,
    )  # fmt: skip
    return make_master_tile(request, stacker)
