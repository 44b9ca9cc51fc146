"""What both engines share: descriptors become frames and a table, a result becomes an image and its metadata.

Everything here is decided before a device is chosen, so that bad input raises the same error wherever the tile is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from zemosaic_distortion import checked_fields
from zemosaic_flatten import flattened_sources
from zemosaic_levels import measure_levels
from zemosaic_spec import (
    FrameError,
    FrameTable,
    NoFramesError,
    SpecError,
    StackCancelled,
    StackSpec,
    stack_spec_from_params,
)
from zemosaic_utils import Frame, FrameSource, open_source
from zemosaic_weights import build_frame_table, measure_frame

logger = logging.getLogger("ZeMosaicWorker")

Callback = Callable[..., Any]


def notify(callback: Callback | None, *args: Any, **keywords: Any) -> None:
    """Call a progress callback; one that raises never breaks a stack, unless it raises ``StackCancelled``."""
    if callback is None:
        return
    try:
        callback(*args, **keywords)
    except StackCancelled:
        raise
    except Exception as exc:  # noqa: BLE001 - the callback is the caller's code; its faults are not the tile's
        logger.debug("progress callback raised %s: %s", type(exc).__name__, exc)


@dataclass(frozen=True)
class Job:
    """A stack that is ready to run: which pixels, which numbers, which methods."""

    sources: list[FrameSource]
    table: FrameTable
    spec: StackSpec
    shape: tuple[int, ...]  # of the result: (H, W) or (H, W, 3)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    sample_weight: np.ndarray | None = None  # (N, *shape), multiplies the frame weights
    clipped_kappa: bool = False  # kappa_sigma with sigma-clipped statistics, as stack_aligned_images has it

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.shape[2] if len(self.shape) == 3 else 1


SUMMED: Final = ("rejected_low", "rejected_high", "coverage")  # maps whose sums the metadata need


@dataclass
class StackResult:
    """One stacked image and its evidence. Arrays ``(H, W)`` or ``(H, W, 3)``; image float32, ADU, NaN where nothing is.

    ``coverage``, ``rejected_low``, ``rejected_high`` int32 (samples); ``weight`` float32 (sum of weights);
    ``frame_hits (N, 3)`` int64, samples of each frame rejected low, rejected high, and valid.
    """

    image: np.ndarray
    coverage: np.ndarray
    weight: np.ndarray
    rejected_low: np.ndarray
    rejected_high: np.ndarray
    frame_hits: np.ndarray
    all_rejected: int = 0
    rows_per_slab: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # of maps, by name, (C,) int64; if the engine knows


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


def make_job(frames: Sequence[Frame], spec: StackSpec, *, reference: int = 0) -> Job:
    """Measure what has not been measured and compute the frame table."""
    unmeasured = measure_levels(np.zeros((1, 1, frames[0].source.channels), np.float32))
    stats = [
        f.stats or (measure_frame(f.source, with_its_stars=spec.needs_stars) if spec.needs_levels else unmeasured)
        for f in frames
    ]
    table, used, dropped = build_frame_table(
        [f.source.name for f in frames], [f.transform for f in frames], stats, spec, reference,
        [f.distortion for f in frames],
    )  # fmt: skip
    sources = [frames[i].source for i in used]
    height, width = frames[0].source.shape[:2]
    table = replace(table, distortion=checked_fields([frames[i].distortion for i in used], height, width))
    if spec.flatten:
        sources = flattened_sources(sources, [stats[i] for i in used], table, used.index(reference))
    return Job(sources, table, spec, frames[0].source.shape, dropped)


def empty_result(job: Job, rows_per_slab: int) -> StackResult:
    """Return a result whose arrays are still to be filled."""
    return StackResult(
        image=np.empty(job.shape, np.float32),
        coverage=np.empty(job.shape, np.int32),
        weight=np.empty(job.shape, np.float32),
        rejected_low=np.empty(job.shape, np.int32),
        rejected_high=np.empty(job.shape, np.int32),
        frame_hits=np.zeros((len(job.sources), 3), np.int64),
        rows_per_slab=rows_per_slab,
    )


def without_unreadable(job: Job, error: FrameError) -> Job:
    """Return the job without the frame that can no longer be read, which is listed as dropped.

    Raises
    ------
    FrameError
        ``error`` itself, if no other frame is left or none bears its name.
    """
    keep = [k for k, source in enumerate(job.sources) if source.name != error.name]
    if len(keep) in (0, len(job.sources)):
        raise error
    logger.warning("left out while stacking: %s", error)
    table = job.table
    return replace(
        job,
        sources=[job.sources[k] for k in keep],
        table=replace(
            table,
            names=[table.names[k] for k in keep],
            transform=table.transform[keep],
            scale=table.scale[keep],
            offset=table.offset[keep],
            weight=table.weight[keep],
            distortion=[table.distortion[k] for k in keep] if table.distortion else [],
        ),
        sample_weight=None if job.sample_weight is None else job.sample_weight[keep],
        dropped=[*job.dropped, (error.name, error.reason)],
    )


def channel_sums(image: np.ndarray, n_frames: int, channels: int) -> np.ndarray:
    """Sum whole numbers from 0 to ``n_frames`` per channel: rows (h, W) or (h, W, C) to ``(C,) int64``."""
    lines = image.reshape(image.shape[0], -1)
    # Down the columns first: neighbours in memory are added at once, in the type they have unless it is too small.
    fits = n_frames * len(lines) < 2**31
    columns = lines.sum(axis=0, dtype=image.dtype if fits else np.int64)
    return columns.reshape(-1, channels).sum(axis=0, dtype=np.int64)


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
