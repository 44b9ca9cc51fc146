"""Descriptors and dictionaries of parameters as ZeMosaic passes them: into a job, and a result into a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zemosaic_phase3.compat.parameters import stack_spec_from_params
from zemosaic_phase3.engine.job import SUMMED, Job, StackResult, channel_sums, make_job
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source


def as_frames(descriptors: Sequence[Any] | np.ndarray | None) -> list[Frame]:
    """Open what a caller hands over as a stack; see :func:`zemosaic_utils.open_source` for what a descriptor may be.

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


def check_descriptors(
    image_descriptors: Sequence[Any] | np.ndarray | None, stacking_params: Mapping[str, Any], zconfig: object = None
) -> None:
    """Raise now what would be raised on either device: no frames, unreadable or differing ones, an unknown method."""
    stack_spec_from_params(stacking_params, zconfig)
    as_frames(image_descriptors)


def prepare(
    image_descriptors: Sequence[Any] | np.ndarray | None, stacking_params: Mapping[str, Any], zconfig: object = None
) -> Job:
    """Turn descriptors and parameters of existing runs into a job; frames are measured where they have not been."""
    spec = stack_spec_from_params(stacking_params, zconfig)
    frames = as_frames(image_descriptors)
    reference = stacking_params.get("reference_index") or 0
    if not (isinstance(reference, (int, np.integer)) and 0 <= reference < len(frames)):
        raise SpecError(
            f"reference_index = {reference!r} is not one of the {len(frames)} frames, 0 .. {len(frames) - 1}"
        )
    return make_job(frames, spec, reference=int(reference))


def _percent(part: np.ndarray, whole: np.ndarray) -> list[float]:
    return [100.0 * p / w if w > 0 else 0.0 for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def describe(job: Job, result: StackResult) -> dict[str, Any]:
    """Return the metadata of a stack: methods as used, statistics, maps and the frame table."""
    table, spec = job.table, job.spec
    rejected = result.frame_hits[:, :2].sum(axis=1) / np.maximum(result.frame_hits[:, 2], 1)
    low, high, covered = (
        result.sums[name]
        if name in result.sums
        else channel_sums(getattr(result, name), len(table.names), job.channels)
        for name in SUMMED
    )
    return {
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
        "frames_dropped": list(job.dropped),
        "warnings": list(table.notes),
        "rejected_low_percent": _percent(low, covered),
        "rejected_high_percent": _percent(high, covered),
        "frame_rejected_percent": (100.0 * rejected).tolist(),
        "all_rejected_pixels": int(result.all_rejected),
        "rows_per_slab": int(result.rows_per_slab),
        "coverage": result.coverage,
        "weight_map": result.weight,
        "rejected_low": result.rejected_low,
        "rejected_high": result.rejected_high,
        "frame_table": table,
    }
