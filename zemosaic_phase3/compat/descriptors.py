"""Descriptors and dictionaries of parameters as ZeMosaic passes them: into a job, and a result into a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zemosaic_phase3.compat.finish import equalization_info
from zemosaic_phase3.compat.parameters import stack_spec_from_params
from zemosaic_phase3.engine.job import Job, StackResult, empty_result, make_job, result_shape
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.records import DeviceUse, FrameTable
from zemosaic_phase3.spec import StackSpec


class Metadata(dict[str, Any]):
    """Metadata of a stack as existing programs read it, with the typed result they are made from."""

    def __init__(self, result: StackResult, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.result = result


def as_frames(descriptors: Sequence[Any] | np.ndarray | None) -> list[Frame]:
    """Open what a caller hands over as a stack; see :func:`io.open_frame.open_source` for what a descriptor may be.

    Raises
    ------
    NoFramesError
        None or an empty list.
    FrameError
        A descriptor cannot be opened.
    SpecError
        Frames of different shape.
    """
    if descriptors is None or len(descriptors) == 0:
        raise NoFramesError("no frames to stack: the list of image descriptors is empty")
    frames = [d if isinstance(d, Frame) else Frame(open_source(d)) for d in descriptors]
    first = frames[0].source
    for frame in frames:
        if frame.source.shape != first.shape:
            raise SpecError(
                f"{frame.source.name} has shape {frame.source.shape}, but {first.name} has {first.shape}: "
                "frames of one stack must have one shape"
            )
    return frames


def prepare(
    image_descriptors: Sequence[Any] | np.ndarray | None, stacking_params: Mapping[str, Any], zconfig: object = None
) -> Job:
    """Turn descriptors and parameters of existing runs into a job; frames are measured where they have not been.

    Raises
    ------
    NoFramesError, FrameError, SpecError
        See :func:`checked`.
    """
    frames, spec, reference = checked(image_descriptors, stacking_params, zconfig)
    return make_job(frames, spec, reference=reference)


def checked(
    image_descriptors: Sequence[Any] | np.ndarray | None, stacking_params: Mapping[str, Any], zconfig: object = None
) -> tuple[list[Frame], StackSpec, int]:
    """Return frames, specification and the number of the reference; raises now what is wrong on either device.

    Raises
    ------
    NoFramesError, FrameError, SpecError
        No frames, unreadable or differing ones, an unknown method, a reference that is none of the frames.
    """
    spec = stack_spec_from_params(stacking_params, zconfig)
    frames = as_frames(image_descriptors)
    reference = stacking_params.get("reference_index") or 0
    if not (isinstance(reference, (int, np.integer)) and 0 <= reference < len(frames)):
        raise SpecError(
            f"reference_index = {reference!r} is not one of the {len(frames)} frames, 0 .. {len(frames) - 1}"
        )
    return frames, spec, int(reference)


def describe(result: StackResult) -> Metadata:
    """Return the metadata of a stack: methods as used, statistics, maps and the frame table."""
    table, spec = result.job.table, result.job.spec
    found = {
        "normalize_method": table.normalize_method or spec.normalize,
        "weight_method": table.weight_method,
        "weight_stats": {
            "min": float(table.weight.min()),
            "max": float(table.weight.max()),
            "frames": len(table.names),
        },
        "rejection_method": spec.reject,
        "wsc_impl": spec.wsc_impl if spec.reject == "winsorized_sigma_clip" else None,
        "combine_method": spec.combine,
        "frames_used": len(table.names),
        "frames_dropped": list(result.job.dropped),
        "warnings": list(table.notes),
        "rejected_low_percent": result.rejected_percent("rejected_low"),
        "rejected_high_percent": result.rejected_percent("rejected_high"),
        "frame_rejected_percent": result.frame_rejected_percent(),
        "all_rejected_pixels": int(result.all_rejected),
        "rows_per_slab": int(result.rows_per_slab),
        "coverage": result.coverage,
        "weight_map": result.weight,
        "rejected_low": result.rejected_low,
        "rejected_high": result.rejected_high,
        "frame_table": table,
        "rgb_equalization": equalization_info(result.equalization),
    }
    return Metadata(result, found)


def result_of(image: np.ndarray, metadata: Mapping[str, Any], frames: Sequence[Frame], spec: StackSpec) -> StackResult:
    """Return the typed result behind an image and its metadata; built from what there is for a stacker that has none.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3) float32, ADU
    metadata : mapping
        From :func:`describe`, or from somebody else's stacker: then, without ``coverage``, what is finite is covered.
    frames : sequence of Frame
        What was stacked.
    spec : StackSpec
        How.
    """
    if isinstance(metadata, Metadata):
        result = replace(metadata.result, image=image)
    else:
        ones = np.ones((len(frames), frames[0].source.channels))
        table = FrameTable(
            names=[f.source.name for f in frames], transform=np.stack([f.transform for f in frames]),
            scale=ones, offset=0 * ones, weight=ones,
            weight_method=str(metadata.get("weight_method") or spec.weight),
            normalize_method=str(metadata.get("normalize_method") or spec.normalize),
        )  # fmt: skip
        job = Job([f.source for f in frames], table, spec, result_shape(frames[0].source, spec))
        result = empty_result(job, 0)
        result.image = image
        result.coverage[...] = metadata.get("coverage", np.isfinite(image))
        result.weight[...] = metadata.get("weight_map", result.coverage)
        result.rejected_low[...] = metadata.get("rejected_low", 0)
        result.rejected_high[...] = metadata.get("rejected_high", 0)
    result.device = DeviceUse(
        bool(metadata.get("phase3_used_gpu")),
        int(metadata.get("phase3_gpu_attempts") or 0),
        str(metadata.get("phase3_device_reason") or ""),
    )
    return result
