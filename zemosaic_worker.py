"""One tile from front door to back, and the choice of the device that stacks it.

Chapters: caches; Mode C (which device stacks a tile, and what happens when it fails); the whole job from files to a
file; the call of existing ZeMosaic runs.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3.compat.center_out import center_out_spec
from zemosaic_phase3.compat.finish import _apply_lecropper_pipeline as _apply_lecropper_pipeline
from zemosaic_phase3.compat.finish import _evaluate_quality_gate_metrics as _evaluate_quality_gate_metrics
from zemosaic_phase3.compat.master_tile import EXTREME_GROUP_FRAMES, TileRequest, TileResult, make_master_tile, working
from zemosaic_phase3.compat.parallel_plan import ParallelPlan, tighter
from zemosaic_phase3.compat.parameters import wsc_impl_choice
from zemosaic_phase3.errors import (
    DeviceError,
    FrameError,
    NoFramesError,
    PlanError,
    SpecError,
    StackCancelled,
    ZeMosaicError,
)
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.inputs import expand_inputs
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import DeviceName, canonical
from zemosaic_phase3.pipeline.outputs import check_output, without_output, without_tiles, write_tile
from zemosaic_phase3.pipeline.tile import Tile, build_tile
from zemosaic_phase3.progress import Callback, notify, timed
from zemosaic_phase3.runtime import cuda, cuda_failure, limits
from zemosaic_phase3.settings import as_bool, plan_hint, positive, setting
from zemosaic_phase3.spec import CropSpec, GateSpec, RegisterSpec, SelectSpec, StackSpec

try:
    from zemosaic_phase3.compat.stack_descriptors import gpu_stack_from_paths as _p3_gpu_stack_from_paths
    from zemosaic_phase3.engine.gpu_check import _gpu_is_usable as _p3_gpu_is_usable
    from zemosaic_phase3.engine.gpu_check import why_unusable as _p3_why_unusable
    from zemosaic_phase3.errors import GPUStackingError as _P3GPUStackingError
except ImportError as _exc:
    _P3_GPU_HELPERS_AVAILABLE = False
    _P3_GPU_HELPERS_REASON = f"the GPU engine cannot be imported ({_exc})"

    class _P3GPUStackingError(RuntimeError):  # type: ignore[no-redef]
        """Stands in for the error of the GPU engine."""

    def _p3_gpu_is_usable(logger: logging.Logger | None = None) -> bool:
        return False

    def _p3_gpu_stack_from_paths(*_args: Any, **_keywords: Any) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[misc]
        raise _P3GPUStackingError(_P3_GPU_HELPERS_REASON)

    def _p3_why_unusable() -> str:
        return _P3_GPU_HELPERS_REASON
else:
    _P3_GPU_HELPERS_AVAILABLE = True
    _P3_GPU_HELPERS_REASON = ""

_OWN_GPU_STACKER: Final = _p3_gpu_stack_from_paths

LOGGER = logging.getLogger("ZeMosaicWorker")

Descriptors = Sequence[Any]

# =========================================================================== caches


def _safe_load_cache(path: str | os.PathLike[str], *, pcb: Callback | None = None, tile_id: int | None = None) -> Any:
    """Return the array of a ``.npy`` cache, memory-mapped read-only.

    Windows refuses a mapping (error 1455) when its page file is too small; the cache is then read into memory, and
    ``pcb`` is told by the key ``stack_mem_fallback_memmap_to_ram``.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or is no ``.npy`` array of numbers.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as exc:
        if getattr(exc, "winerror", None) != 1455 and "1455" not in str(exc):
            raise
        reason = str(exc)
    notify(pcb, "stack_mem_fallback_memmap_to_ram", None, "WARN", path=os.fspath(path), tile_id=tile_id, error=reason)
    return np.load(path, allow_pickle=False)


# =========================================================================== Mode C
#
# A tile goes to the GPU if there is one, and is recomputed whole on the CPU if the GPU fails twice; then the GPU is
# off for the rest of the run. CPU and GPU give the same bits, so nobody downstream can tell.

_P3_GPU_FRESH: Final[Mapping[str, Any]] = {
    "allowed": True,
    "hard_disabled": False,
    "health_checked": False,
    "healthy": False,
    "candidate_announced": False,
    "success_announced": False,
    "health_reason": "",
}
_P3_GPU_STATE: dict[str, Any] = dict(_P3_GPU_FRESH)
"""What the tiles of one run know of the GPU; read and changed under ``_P3_GPU_LOCK``."""

_P3_GPU_LOCK = threading.RLock()

# The data, not the device, is to blame: the CPU gives the final word on them and the GPU stays on.
_INPUT_ERRORS: Final = (FrameError, NoFramesError, SpecError)


@dataclass(frozen=True)
class _GpuTile:
    """A tile the GPU has stacked: float32 image (H, W) or (H, W, C), ADU, and the engine's metadata."""

    image: np.ndarray
    metadata: dict[str, Any]


@dataclass
class _GpuVerdict:
    """How the GPU fared with one tile: the tile, or the last error."""

    attempts: int
    tile: _GpuTile | None = None
    error: Exception | None = None


def reset_phase3_gpu_state() -> None:
    """Start a new run: the GPU is allowed, and its health is checked again with the first tile.

    A sticky CUDA error outlives the run. It is the health check that refuses then (``runtime.cuda_failure.is_poisoned``).
    """
    with _P3_GPU_LOCK:
        _P3_GPU_STATE.clear()
        _P3_GPU_STATE.update(_P3_GPU_FRESH)


def _once(key: str) -> bool:
    """Return True for the first caller of the run only."""
    with _P3_GPU_LOCK:
        first = not _P3_GPU_STATE.get(key, False)
        _P3_GPU_STATE[key] = True
    return first


def _phase3_gpu_refusal(parallel_plan: object) -> str:
    """Return why a tile cannot go to the GPU as far as is known, empty if nothing speaks against it."""
    with _P3_GPU_LOCK:
        if _is_hard_disabled():
            return "the GPU was disabled after failures earlier in this run"
        if not _P3_GPU_STATE.get("allowed", True):
            return "the GPU is not allowed in this run"
        if not _P3_GPU_HELPERS_AVAILABLE:
            return _P3_GPU_HELPERS_REASON or "the GPU engine cannot be imported"
        if not getattr(parallel_plan, "use_gpu", False):
            return "the plan does not use the GPU"
        if _P3_GPU_STATE.get("health_checked", False) and not _P3_GPU_STATE.get("healthy", False):
            return f"the GPU failed its health check: {_P3_GPU_STATE.get('health_reason') or 'no reason given'}"
    return ""


def _phase3_gpu_illness(logger: logging.Logger) -> str:
    """Check the health of the GPU; return why it cannot be used, empty if it can."""
    try:
        return "" if _p3_gpu_is_usable(logger) else _p3_why_unusable() or "it gives no reason"
    except Exception as exc:  # noqa: BLE001 - the check is a GPU attempt: whatever it raises means no
        if cuda_failure.classify_failure(exc) == "sticky":
            cuda_failure.mark_sticky()
        logger.warning("[P3][GPU] the health check failed: %s: %s", type(exc).__name__, exc)
        return f"{type(exc).__name__}: {exc}"


def _phase3_gpu_candidate(parallel_plan: object, logger: logging.Logger | None = None) -> bool:
    """Return True if the next tile should try the GPU.

    The health check runs once per run, with the first tile that asks; tiles in other threads wait for its answer.

    Parameters
    ----------
    parallel_plan : ParallelPlan or object
        Its ``use_gpu`` decides; None means no.
    """
    with _P3_GPU_LOCK:
        if _phase3_gpu_refusal(parallel_plan):
            return False
        if not _P3_GPU_STATE.get("health_checked", False):
            reason = _phase3_gpu_illness(logger or LOGGER)
            _P3_GPU_STATE["healthy"] = not reason
            _P3_GPU_STATE["health_reason"] = reason
            _P3_GPU_STATE["health_checked"] = True
        return bool(_P3_GPU_STATE.get("healthy", False))


def _inputs_hold(descriptors: Descriptors, wanted: Callable[[np.ndarray], np.ndarray], rows: int = 256) -> bool:
    """Return True if a sample of any frame is wanted; reads no further than the first."""
    for descriptor in descriptors:
        source = open_source(descriptor)
        for start in range(0, source.height, rows):
            if wanted(source.read_rows(start, min(start + rows, source.height))).any():
                return True
    return False


def _check_gpu_result(image: object, metadata: object, descriptors: Descriptors) -> _GpuTile:
    """Return what the GPU engine returned if it can be a stack of these frames.

    Raises
    ------
    GPUStackingError
        Another type, shape or dtype; no valid pixel, or zeros only, although the frames hold more.
    """
    expected = open_source(descriptors[0]).shape
    if not isinstance(image, np.ndarray) or image.shape != expected or image.dtype != np.float32:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise _P3GPUStackingError(f"the GPU returned {found} where float32 {expected} was due")
    if not isinstance(metadata, Mapping):
        raise _P3GPUStackingError(f"the GPU returned metadata of type {type(metadata).__name__}, not a mapping")
    finite = np.isfinite(image)
    if not finite.any() and _inputs_hold(descriptors, np.isfinite):
        raise _P3GPUStackingError("the GPU returned no valid pixel, although the frames hold some")
    only_zeros = finite.any() and not np.any(image, where=finite)
    if only_zeros and _inputs_hold(descriptors, lambda block: np.isfinite(block) & (block != 0)):
        raise _P3GPUStackingError("the GPU returned zeros only, although the frames hold more")
    return _GpuTile(image, dict(metadata))


def _gpu_attempt(
    descriptors: Descriptors, params: Mapping[str, Any], *, free_first: bool, **keywords: Any
) -> _GpuTile | Exception:
    """Try the GPU once; an error is returned, so that recovery runs outside of its ``except`` block."""
    try:
        if free_first:
            cuda.free_pools()
        image, metadata = _p3_gpu_stack_from_paths(descriptors, params, **keywords)
        return _check_gpu_result(image, metadata, descriptors)
    except StackCancelled:
        raise
    except Exception as exc:  # noqa: BLE001 - the one per attempt: whatever goes wrong on the GPU, the CPU can redo
        return exc


def _forget_frames(error: BaseException) -> None:
    """Drop the local variables an exception keeps alive: they hold the arrays whose memory the retry needs."""
    for link in cuda_failure.exception_chain(error):
        traceback.clear_frames(link.__traceback__)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _is_hard_disabled() -> bool:
    with _P3_GPU_LOCK:
        return bool(_P3_GPU_STATE.get("hard_disabled", False))


def _hard_disable(logger: logging.Logger) -> None:
    """Turn the GPU off for the rest of the run; says so once, whoever comes first."""
    if _once("hard_disabled"):
        logger.warning("[P3][GPU] GPU disabled for remaining Phase 3 tiles after repeated failures.")


def _give_up(error: Exception, logger: logging.Logger, *, second: bool) -> None:
    """Judge a failure after which there is no further attempt: log it, disable the GPU if it is to blame."""
    kind = cuda_failure.classify_failure(error)
    if kind == "sticky":
        cuda_failure.mark_sticky()
    elif isinstance(error, _INPUT_ERRORS):
        logger.warning("[P3][GPU] %s; this concerns the frames, the CPU decides", _text(error))
        return
    elif isinstance(error, DeviceError) and not second:  # a second attempt was made with less memory
        logger.warning("[P3][GPU] %s; the CPU stacks this tile, the GPU stays on", _text(error))
        return
    if second:
        logger.error(
            "[P3][GPU] Second GPU attempt failed; disabling Phase 3 GPU for this run: %s", _text(error), exc_info=error
        )
    else:
        logger.error(
            "[P3][GPU] CUDA cannot be used again in this process; disabling Phase 3 GPU for this run: %s",
            _text(error),
            exc_info=error,
        )
    _hard_disable(logger)


def _release_pools(logger: logging.Logger) -> None:
    """Give pooled device and pinned host memory back before the CPU recomputes the tile."""
    try:
        cuda.free_pools()
    except RuntimeError as exc:  # CuPy's CUDARuntimeError
        if cuda_failure.classify_failure(exc) == "sticky":
            cuda_failure.mark_sticky()
        logger.warning("[P3][GPU] the memory pools could not be freed: %s", _text(exc))


def _try_gpu(
    descriptors: Descriptors, params: Mapping[str, Any], logger: logging.Logger, parallel_plan: object, **keywords: Any
) -> _GpuVerdict:
    """Stack one tile on the GPU: at most two attempts, the second with less memory if that was the trouble."""
    keywords["logger"] = logger
    outcome = _gpu_attempt(descriptors, params, free_first=False, parallel_plan=parallel_plan, **keywords)
    if isinstance(outcome, _GpuTile):
        return _GpuVerdict(1, tile=outcome)
    first = outcome
    kind = cuda_failure.classify_failure(first)
    if kind == "sticky" or isinstance(first, (*_INPUT_ERRORS, DeviceError)):
        _give_up(first, logger, second=False)
        _forget_frames(first)
        return _GpuVerdict(1, error=first)
    _forget_frames(first)
    if _is_hard_disabled():  # by another tile, meanwhile
        logger.warning("[P3][GPU] %s; the GPU is disabled by now, no retry", _text(first))
        return _GpuVerdict(1, error=first)

    out_of_memory = kind == "out_of_memory"
    plan = tighter(parallel_plan) if out_of_memory else parallel_plan
    remedy = " with freed pools and a tighter plan" if out_of_memory else ""
    logger.warning("[P3][GPU] %s, retrying once%s: %s", type(first).__name__, remedy, first)
    outcome = _gpu_attempt(descriptors, params, free_first=out_of_memory, parallel_plan=plan, **keywords)
    if isinstance(outcome, _GpuTile):
        return _GpuVerdict(2, tile=outcome, error=first)
    _give_up(outcome, logger, second=True)
    _forget_frames(outcome)
    if cuda_failure.is_oom_error(outcome):
        _release_pools(logger)
    return _GpuVerdict(2, error=outcome)


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
    from zemosaic_phase3.compat.stack_descriptors import stack_descriptors

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
    parallel_plan : ParallelPlan or object, optional
        Never changed. Without ``use_gpu`` the tile is stacked on the CPU.
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
    from zemosaic_phase3.compat.descriptors import check_descriptors

    check_descriptors(image_descriptors, stacking_params, zconfig)
    log = logger or LOGGER
    verdict = _GpuVerdict(0)
    wants_cpu = str(stacking_params.get("device") or "auto").lower() == "cpu"
    if not wants_cpu and _phase3_gpu_candidate(parallel_plan, log):
        if _once("candidate_announced"):
            log.info("[P3][GPU] Phase 3 GPU auto mode enabled (mode=C, candidate=True)")
        # Existing stack functions know four keywords; the tile's number goes along only when there is one.
        extra: dict[str, Any] = {} if tile_id is None else {"tile_id": tile_id}
        if progress_callback is not None and _p3_gpu_stack_from_paths is _OWN_GPU_STACKER:
            extra["progress_callback"] = progress_callback
        verdict = _try_gpu(
            image_descriptors, stacking_params, log, parallel_plan, pcb_tile=pcb_tile, zconfig=zconfig, **extra
        )
    if verdict.tile is not None:
        if _once("success_announced"):
            log.info("[P3][GPU] Using GPU stacker for Phase 3 (mode=auto)")
        reason = "GPU" if verdict.error is None else f"GPU, second attempt after {_text(verdict.error)}"
        return verdict.tile.image, _with_device(verdict.tile.metadata, True, verdict.attempts, reason), True

    reason = _cpu_reason(verdict, wants_cpu, parallel_plan)
    if stacking_params.get("require_gpu"):
        if isinstance(verdict.error, _INPUT_ERRORS):
            raise verdict.error
        raise ZeMosaicError(
            f"the GPU is required, but {reason}; see `zemosaic-phase3 doctor`, or allow the CPU"
        ) from verdict.error
    stacked, metadata = _stack_master_tile_cpu(
        image_descriptors,
        stacking_params,
        parallel_plan=parallel_plan,
        logger=log,
        pcb_tile=pcb_tile,
        zconfig=zconfig,
        tile_id=tile_id,
        progress_callback=progress_callback,
    )
    return stacked, _with_device(metadata, False, verdict.attempts, reason), False


def _cpu_reason(verdict: _GpuVerdict, wants_cpu: bool, parallel_plan: object) -> str:
    """Say in a few words why the CPU stacks a tile."""
    if wants_cpu:
        return "the CPU was asked for"
    if isinstance(verdict.error, DeviceError) and verdict.attempts == 1:
        return f"the tile is none for the GPU: {verdict.error}"
    if verdict.error is not None:
        return f"the GPU failed: {_text(verdict.error)}"
    return _phase3_gpu_refusal(parallel_plan) or "the tile is no GPU candidate"


def _with_device(metadata: Mapping[str, Any] | None, used_gpu: bool, attempts: int, reason: str) -> dict[str, Any]:
    return {
        **(metadata or {}),
        "phase3_used_gpu": used_gpu,
        "phase3_gpu_attempts": attempts,
        "phase3_device_reason": reason,
    }


# =========================================================================== the whole job


def stack_files(
    inputs: Sequence[Any],
    output: str | os.PathLike[str] | None = None,
    *,
    stack: StackSpec | None = None,
    register: RegisterSpec | None = None,
    select: SelectSpec | None = None,
    bayer: str = "auto",
    reference: str | None = None,
    device: str = "auto",
    require_gpu: bool = False,
    memory: str | int | None = None,
    workers: int | None = None,
    maps: bool = False,
    overwrite: bool = False,
    progress: Callback | None = None,
) -> Tile:
    """Register and stack frames into one tile, and write it: what ``zemosaic-phase3 stack`` does.

    Parameters
    ----------
    inputs : sequence
        Files, folders, globs, each file once; or arrays and other descriptors (:func:`io.open_frame.open_source`).
    output : path, optional
        FITS file to write; None only returns the tile. An earlier one in a folder of inputs is not stacked.
    stack, register, select : StackSpec, RegisterSpec, SelectSpec, optional
        Methods; the defaults of the command line.
    bayer : str
        "auto" (header), "none", or a pattern such as "GRBG".
    reference : str, optional
        File the others are registered on; None chooses the best.
    device : {"auto", "cpu", "gpu"}
        "gpu" is "auto" with ``require_gpu``.
    require_gpu : bool
        Turn every fall back to the CPU into an error.
    memory : int or str, optional
        Bytes, or text such as "4GB" or "50%"; half of what is available.
    workers : int, optional
        Threads; as many as this process may use.
    maps : bool
        Write COVERAGE, WEIGHT, REJ_LOW, REJ_HIGH and FRAMES too.
    overwrite : bool
        Replace an existing output.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; may raise :class:`StackCancelled`.

    Returns
    -------
    Tile
        Image, masks, maps, header and report.

    Raises
    ------
    NoFramesError
        Nothing could be stacked.
    OutputError
        The output exists, is itself an input, or cannot be written.
    PlanError
        The memory is less than this process uses already, or too small for one row.
    SpecError
        An option is not allowed.
    """
    choice = canonical("device", device, DeviceName)
    if output is not None:
        check_output(output, overwrite=overwrite)
    descriptors = _descriptors([inputs] if _is_path(inputs) else list(inputs), output)
    allowed = _allowed_bytes("50%" if memory is None else memory)
    n_workers = workers or limits.usable_cpus()
    plan = ParallelPlan(
        cpu_workers=n_workers, use_memmap=False, max_chunk_bytes=allowed, use_gpu=choice != "cpu"
    )

    def stacker(frames: list[Frame], params: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], bool]:
        params = {**params, "memory_bytes": allowed, "device": choice, "require_gpu": require_gpu or choice == "gpu"}
        return _stack_master_tile_auto(frames, params, parallel_plan=plan, progress_callback=progress)

    tile = build_tile(
        descriptors, stacker, stack=stack, register=register, select=select, bayer=bayer, reference=reference,
        workers=n_workers, allowed_bytes=allowed, progress=progress,
    )  # fmt: skip
    if output is not None:
        with timed(tile.report, "write"):
            write_tile(tile, output, maps=maps, overwrite=overwrite)
    return tile


def _allowed_bytes(memory: str | int) -> int:
    """Return what a limit on the whole process leaves for frames and stack, bytes.

    Raises
    ------
    PlanError
        The limit is below what the process needs for itself.
    """
    limit, used = limits.parse_memory(memory), limits.process_bytes()
    if limit <= used:
        raise PlanError(
            f"the memory limit of {limit} bytes ({limits.memory_text(limit)}) leaves nothing for frames: "
            f"the process alone needs {used} ({limits.memory_text(used)}); allow more, e.g. --memory 4GB"
        )
    return limit - used


def _descriptors(inputs: Sequence[Any], output: str | os.PathLike[str] | None) -> list[Any]:
    """List the frames: files first, in natural order and each once, then what did not come as a path.

    Raises
    ------
    NoFramesError
        Folders and patterns hold no frame.
    OutputError
        The output is an input, and no earlier tile in a folder or a pattern.
    """
    named = [Path(item) for item in inputs if _is_path(item)]
    paths = expand_inputs(named) if named else []
    if output is not None:
        paths = without_output(paths, named, output)
    paths = without_tiles(paths, named)
    return [*paths, *(item for item in inputs if not _is_path(item))]


def _is_path(item: object) -> bool:
    return isinstance(item, (str, os.PathLike))


# =========================================================================== as existing ZeMosaic runs call it

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

    Returns
    -------
    ((path or None, wcs or None), retry_groups)
        At most one retry group: copies of the entries that failed to register. ((None, None), []) when the tile was
        stopped or nothing could be used.

    Raises
    ------
    SpecError
        A method name or a limit is not allowed; before anything is read. All other failures are the tile's alone:
        a progress key tells them, and no path is returned.
    """
    stack = StackSpec(
        normalize=stack_norm_method,  # type: ignore[arg-type]
        weight=stack_weight_method,  # type: ignore[arg-type]
        reject=stack_reject_algo,  # type: ignore[arg-type]
        wsc_impl=wsc_impl_choice(zconfig),  # type: ignore[arg-type]
        kappa_low=stack_kappa_low,
        kappa_high=stack_kappa_high,
        winsor_limits=parsed_winsor_limits,  # type: ignore[arg-type]
        combine=stack_final_combine or "mean",  # type: ignore[arg-type]
        equalize_rgb=as_bool(poststack_equalize_rgb, True),
        radial_weight=as_bool(apply_radial_weight, False),
        radial_feather=radial_feather_fraction,
        radial_power=radial_shape_power,
        radial_floor=min_radial_weight_floor,
    )
    crop = CropSpec(
        quality_crop=as_bool(quality_crop_enabled, False),
        band_px=quality_crop_band_px,
        k_sigma=quality_crop_k_sigma,
        margin_px=quality_crop_margin_px,
        min_run=quality_crop_min_run,
        altaz_cleanup=as_bool(altaz_cleanup_enabled, False),
        altaz_margin_percent=altaz_margin_percent,
        altaz_decay=altaz_decay,
        altaz_nanize=as_bool(altaz_nanize, True),
    )
    gate = GateSpec(
        enabled=as_bool(quality_gate_enabled, False),
        threshold=quality_gate_threshold,
        edge_band_px=quality_gate_edge_band_px,
        k_sigma=quality_gate_k_sigma,
        erode_px=quality_gate_erode_px,
        move_rejects=as_bool(quality_gate_move_rejects, True),
    )
    thresholds = [positive(setting(source, "extreme_group_threshold")) for source in (resource_strategy, zconfig)]
    request = TileRequest(
        entries=list(seestar_stack_group_info or []),
        tile_id=int(tile_id),
        folder=Path(output_temp_dir),
        stack=stack,
        crop=crop,
        gate=gate,
        workers=plan_hint(parallel_plan, "cpu_workers") or 0,
        progress=progress_callback,
        abort=abort_event,
        heartbeat=heartbeat_callback,
        extreme_group_frames=thresholds[0] or thresholds[1] or EXTREME_GROUP_FRAMES,
        strategy=resource_strategy,
        center_out=center_out_spec(center_out_settings),
        context=center_out_context,  # type: ignore[arg-type]
        slots=_PH3_CONCURRENCY_SEMAPHORE,
    )

    def stacker(frames: list[Frame], params: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], bool]:
        params = {**params, "memory_bytes": working.memory_share()}
        return _stack_master_tile_auto(
            frames, params, parallel_plan=parallel_plan, pcb_tile=progress_callback, zconfig=zconfig, tile_id=tile_id,
            progress_callback=request.step,
        )  # fmt: skip

    return make_master_tile(request, stacker)
