"""Mode C in the form that existing programs call: descriptors and dictionaries; see ``docs/zemosaic.md``.

The decisions are those of :mod:`pipeline.device_policy`. Every name that a program or a test may replace in the door
``zemosaic_worker`` is looked up there at each call.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from zemosaic_phase3.compat.descriptors import Metadata, checked, result_of
from zemosaic_phase3.compat.parallel_plan import forbids_gpu, tighter
from zemosaic_phase3.compat.parameters import params_from_stack_spec
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import Job, StackResult, make_job, result_shape
from zemosaic_phase3.engine.result_check import result_fault
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.pipeline.device_policy import DevicePolicy, DeviceRequest
from zemosaic_phase3.pipeline.self_check import checked_stack
from zemosaic_phase3.pipeline.tile import Stacker
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.records import DeviceUse
from zemosaic_phase3.runtime.python_parser import PARSER
from zemosaic_phase3.settings import as_bool
from zemosaic_phase3.spec import StackSpec

WINDOWS_PAGE_FILE: Final = 1455  # the error of a mapping that the page file is too small for


def load_cache(path: str | os.PathLike[str], *, pcb: Callback | None = None, tile_id: int | None = None) -> Any:
    """Return the array of a ``.npy`` cache, memory-mapped read-only.

    Windows refuses a mapping (error 1455) when its page file is too small; the cache is then read into memory, and
    ``pcb`` is told by the key ``stack_mem_fallback_memmap_to_ram``.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or is no ``.npy`` array of numbers.
    """
    try:
        with PARSER:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as exc:
        if getattr(exc, "winerror", None) != WINDOWS_PAGE_FILE and str(WINDOWS_PAGE_FILE) not in str(exc):
            raise
        reason = str(exc)
    notify(pcb, "stack_mem_fallback_memmap_to_ram", None, "WARN", path=os.fspath(path), tile_id=tile_id, error=reason)
    with PARSER:
        return np.load(path, allow_pickle=False)


def stack_auto(
    names: Mapping[str, Any],
    own_gpu_stacker: Callable[..., Any],
    descriptors: Sequence[Any] | np.ndarray,
    params: Mapping[str, Any],
    *,
    parallel_plan: object,
    logger: logging.Logger,
    progress_callback: Callback | None,
    tile_id: int | None,
    **keywords: Any,
) -> tuple[np.ndarray, dict[str, Any], bool]:
    """Do what ``_stack_master_tile_auto`` of a door does.

    Parameters
    ----------
    names : mapping
        Namespace of the door.
    own_gpu_stacker : callable
        What ``_p3_gpu_stack_from_paths`` is where nobody has replaced it: it is told progress, a replaced one knows
        the inherited keywords only.
    descriptors, params, parallel_plan, logger, progress_callback, tile_id, **keywords
        As the door was called.
    """
    frames, spec, reference = checked(descriptors, params, keywords.get("zconfig"))
    asked_for_cpu = str(params.get("device") or "auto").lower() == "cpu"

    def on_gpu(less_memory: bool) -> tuple[np.ndarray, Mapping[str, Any]]:
        gpu_stacker = names["_p3_gpu_stack_from_paths"]
        # Existing stack functions know four keywords; the tile's number goes along only when there is one.
        extra: dict[str, Any] = {} if tile_id is None else {"tile_id": tile_id}
        if progress_callback is not None and gpu_stacker is own_gpu_stacker:
            extra["progress_callback"] = progress_callback
        plan = tighter(parallel_plan) if less_memory else parallel_plan
        image, metadata = gpu_stacker(descriptors, params, parallel_plan=plan, logger=logger, **keywords, **extra)
        if not isinstance(metadata, Mapping):
            raise names["_P3GPUStackingError"](f"the GPU returned metadata of type {type(metadata).__name__}")
        counted = metadata.get("coverage")
        shape = result_shape(frames[0].source, spec)
        coverage = counted if getattr(counted, "shape", None) == shape else None
        fault = result_fault(image, shape, coverage, partial(_rows, frames, spec, reference))
        if fault:
            raise names["_P3GPUStackingError"](fault)
        return image, metadata

    def on_cpu() -> tuple[np.ndarray, Mapping[str, Any]]:
        image, metadata = names["_stack_master_tile_cpu"](
            descriptors, params, parallel_plan=parallel_plan, logger=logger, tile_id=tile_id,
            progress_callback=progress_callback, **keywords,
        )  # fmt: skip
        return image, {} if metadata is None else metadata

    request = DeviceRequest(
        wants_cpu=asked_for_cpu or names["_p3_gpu_stack_from_paths"] is None,
        plan_allows=not forbids_gpu(parallel_plan),
        require_gpu=as_bool(params.get("require_gpu"), False),
        logger=logger,
        candidate=partial(names["_phase3_gpu_candidate"], parallel_plan, logger),
    )
    (image, metadata), used = DevicePolicy(names).stack(on_gpu, on_cpu, request)
    told = {**metadata, **_device_keys(used)}
    return image, Metadata(metadata.result, told) if isinstance(metadata, Metadata) else told, used.used_gpu


def _rows(frames: list[Frame], spec: StackSpec, reference: int, rows: slice) -> np.ndarray:
    """Stack a few rows on the CPU, to compare them; frames are measured anew where they have not been."""
    job: Job = make_job(frames, spec, reference=reference)
    return cpu.stack_rows(job, rows)


def _device_keys(used: DeviceUse) -> dict[str, Any]:
    return {
        "phase3_used_gpu": used.used_gpu,
        "phase3_gpu_attempts": used.gpu_attempts,
        "phase3_device_reason": used.reason,
    }


def stacker_through(names: Mapping[str, Any], memory: Callable[[], int], **keywords: Any) -> Stacker:
    """Return what stacks registered frames through the door's own ``_stack_master_tile_auto``, and checks the result.

    A result of somebody else's function is theirs: it is not checked.

    Parameters
    ----------
    names : mapping
        Namespace of the door.
    memory : callable
        Bytes the stack may take, asked for when it starts.
    **keywords
        Handed to ``_stack_master_tile_auto``.
    """

    def stack(frames: list[Frame], spec: StackSpec, reference: int) -> StackResult:
        params = {**params_from_stack_spec(spec), "reference_index": reference, "memory_bytes": memory()}
        began = time.perf_counter()

        def once(**more: Any) -> tuple[StackResult, bool]:
            image, metadata, _ = names["_stack_master_tile_auto"](frames, {**params, **more}, **keywords)
            return result_of(image, metadata, frames, spec), isinstance(metadata, Metadata)

        result, is_ours = once()
        if not is_ours:
            return result
        return checked_stack(
            result, lambda: once(device="cpu")[0], distrust=DevicePolicy(names).distrust,
            run_seconds=time.perf_counter() - began,
        )  # fmt: skip

    return stack
