"""What both engines share: the job, a stack that is ready to run, and the result.

Everything here is decided before a device is chosen, so that bad input raises the same error wherever the tile is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from zemosaic_phase3.combine.kernel_arguments import KernelArguments, kernel_arguments
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.methods import COMBINATIONS, SMOOTHING
from zemosaic_phase3.photometry.clipped import saturation_level, unclipped_sources
from zemosaic_phase3.photometry.flatten import flattened_sources
from zemosaic_phase3.photometry.frame_table import build_frame_table
from zemosaic_phase3.photometry.levels import no_levels
from zemosaic_phase3.photometry.measure import measure_frame
from zemosaic_phase3.photometry.mosaic_sky import mosaic_sources
from zemosaic_phase3.records import DeviceUse, Equalization, FrameTable, SelfCheck
from zemosaic_phase3.registration.distortion import checked_fields, moved_field
from zemosaic_phase3.runtime.cuda_failure import Failure
from zemosaic_phase3.spec import StackSpec

logger = logging.getLogger("ZeMosaicWorker")


@dataclass(frozen=True)
class Job:
    """A stack that is ready to run: which pixels, which numbers, which methods."""

    sources: list[FrameSource]
    table: FrameTable
    spec: StackSpec
    shape: tuple[int, ...]  # of the result: (H, W) or (H, W, 3)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    sample_weight: np.ndarray | None = None  # (N, *shape), multiplies the frame weights
    tolerance: np.ndarray | None = None  # of the shape, float32, ADU: samples so near the median of a pixel are kept
    errors: bool = False  # the error of each pixel is wanted too
    saturation: float = float("inf")  # lowest level of the result at which samples that count are clipped, ADU
    clipped_kappa: bool = False  # kappa_sigma with sigma-clipped statistics, as stack_aligned_images has it

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.shape[2] if len(self.shape) == 3 else 1

    def kernel_arguments(self) -> KernelArguments:
        """Return what the kernels of rejection and combination are called with."""
        return kernel_arguments(
            self.spec,
            self.table.weight,
            sample_weights=self.sample_weight is not None or self.spec.radial_weight or self.spec.drizzle > 0.0,
            clipped_kappa=self.clipped_kappa,
        )


MAPS: Final = ("image", "coverage", "weight", "rejected_low", "rejected_high")  # of each result
ERROR_MAP: Final = "error"  # beside them, where it is wanted


def maps_of(job: Job) -> tuple[str, ...]:
    """Return the names of the arrays that a stack fills."""
    return (*MAPS, ERROR_MAP) if job.errors else MAPS


SUMMED: Final = ("rejected_low", "rejected_high", "coverage")  # maps whose sums a report needs


@dataclass(frozen=True)
class GpuFigures:
    """What stacking on the GPU took: slabs, rows in each, bytes sent to the card, bytes held there, and seconds.

    Where several cards shared it: ``cards`` that did, and what happened to those that were ``lost``.
    """

    slabs: int
    rows_per_slab: int
    bytes_sent: int
    bytes_held: int
    seconds: float
    cards: tuple[int, ...] = ()
    lost: tuple[tuple[int, Failure], ...] = ()


@dataclass
class StackResult:
    """One stacked image and its evidence. Arrays ``(H, W)`` or ``(H, W, 3)``; image float32, ADU, NaN where nothing is.

    ``coverage``, ``rejected_low``, ``rejected_high`` int32 (samples); ``weight`` float32 (sum of weights);
    ``error`` float32, ADU, what the image may be off (one standard deviation); None: not wanted.
    ``frame_counts (N, 3)`` int64, samples of each frame rejected low, rejected high, and valid. ``job`` is what was
    stacked at the end, without the frames that could no longer be read.
    """

    job: Job
    image: np.ndarray
    coverage: np.ndarray
    weight: np.ndarray
    rejected_low: np.ndarray
    rejected_high: np.ndarray
    frame_counts: np.ndarray
    error: np.ndarray | None = None
    all_rejected: int = 0  # pixels all of whose samples were rejected, so that their median stands
    rows_per_slab: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # of maps, by name, (C,) int64; if the engine knows
    equalization: Equalization = Equalization()
    device: DeviceUse = DeviceUse()
    gpu: GpuFigures | None = None
    self_check: SelfCheck | None = None

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps by the name of their FITS extension."""
        errors = {} if self.error is None else {"ERR": self.error}
        return {
            "COVERAGE": self.coverage,
            "WEIGHT": self.weight,
            "REJ_LOW": self.rejected_low,
            "REJ_HIGH": self.rejected_high,
            **errors,
        }

    def total(self, name: str) -> np.ndarray:
        """Sum of one of the maps ``SUMMED`` per channel, ``(C,) int64``."""
        if name not in self.sums:
            self.sums[name] = channel_sums(getattr(self, name), len(self.job.sources), self.job.channels)
        return self.sums[name]

    def rejected_percent(self, name: str) -> list[float]:
        """Percent of the valid samples per channel that ``rejected_low`` or ``rejected_high`` counts."""
        pairs = zip(self.total(name).tolist(), self.total("coverage").tolist(), strict=True)
        return [100.0 * part / whole if whole > 0 else 0.0 for part, whole in pairs]

    def frame_rejected_percent(self) -> list[float]:
        """Percent of each frame's valid samples that were rejected."""
        rejected = self.frame_counts[:, :2].sum(axis=1) / np.maximum(self.frame_counts[:, 2], 1)
        return (100.0 * rejected).tolist()


def result_shape(source: FrameSource, spec: StackSpec) -> tuple[int, ...]:
    """Return the shape of a result: (H, W) or (H, W, 3)."""
    return source.shape if spec.grid is None else (*spec.grid, *source.shape[2:])


def make_job(frames: Sequence[Frame], spec: StackSpec, *, reference: int = 0) -> Job:
    """Measure what has not been measured and compute the frame table."""
    unmeasured = no_levels(frames[0].source.channels)
    stats = [
        f.stats or (measure_frame(f.source, with_its_stars=spec.needs_stars) if spec.needs_levels else unmeasured)
        for f in frames
    ]
    table, used, dropped = build_frame_table(
        [f.source.name for f in frames], [f.transform for f in frames], stats, spec, reference,
        [f.distortion for f in frames],
    )  # fmt: skip
    sources = [frames[i].source for i in used]
    shape = result_shape(frames[0].source, spec)
    fields = checked_fields([frames[i].distortion for i in used], *shape[:2])
    resampled = shape != frames[0].source.shape or spec.drizzle > 0.0 or spec.interpolation in SMOOTHING
    table = replace(table, distortion=fields, own_grid=resampled)
    used_stats = [stats[i] for i in used]
    sources, notes = unclipped_sources(sources, used_stats, table)
    table = replace(table, notes=[*table.notes, *notes])
    saturation = saturation_level(sources, used_stats, table)
    wandering = None
    if spec.framing == "union" and spec.flatten != "off" and table.normalize_method == "photometric":
        wandering = mosaic_sources(sources, used_stats, table, used.index(reference))
    if wandering is not None:
        sources = wandering[0]
        table.notes.extend(wandering[1])
    elif reference in used:
        sources, notes = flattened_sources(sources, used_stats, table, used.index(reference), spec.flatten)
        table.notes.extend(notes)
    table = _moved(table, [frames[i].motion for i in used], shape)
    return Job(sources, table, spec, shape, dropped, saturation=saturation)


def with_errors(job: Job) -> Job:
    """Return the job with the errors of its pixels wanted; where there are none to be found, a note says so."""
    if COMBINATIONS[job.spec.combine].has_error:
        return replace(job, errors=True)
    note = f"no errors of pixels (ERR) are found for combine = {job.spec.combine}, only for mean and median"
    return replace(job, table=replace(job.table, notes=[*job.table.notes, note]))


def _moved(table: FrameTable, motions: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> FrameTable:
    """Shift frames to where a moving target stands still; all they were measured and matched by is done."""
    if all(motion is None for motion in motions):
        return table
    shifts = [np.zeros(2) if motion is None else motion for motion in motions]
    transform = table.transform.copy()
    for matrix, shift in zip(transform, shifts, strict=True):  # H(p + shift)
        matrix[:, 2] += matrix[:, :2] @ shift
        matrix /= matrix[2, 2]
    fields = [moved_field(f, shift, *shape[:2]) for f, shift in zip(table.distortion, shifts, strict=False)]
    return replace(table, transform=transform, distortion=fields)


def empty_result(job: Job, rows_per_slab: int) -> StackResult:
    """Return a result whose arrays are still to be filled."""
    return StackResult(
        job=job,
        image=np.empty(job.shape, np.float32),
        coverage=np.empty(job.shape, np.int32),
        weight=np.empty(job.shape, np.float32),
        rejected_low=np.empty(job.shape, np.int32),
        rejected_high=np.empty(job.shape, np.int32),
        frame_counts=np.zeros((len(job.sources), 3), np.int64),
        error=np.empty(job.shape, np.float32) if job.errors else None,
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


def stack_what_can_be_read(job: Job, once: Callable[[Job], StackResult]) -> StackResult:
    """Stack a job; if a frame can no longer be read, or is another one now, drop it and start anew without it.

    Nothing of it is then in the result, however far the stack was. Whoever writes over one file writes over others:
    all that changed are dropped together.

    Raises
    ------
    FrameError
        No frame is left.
    """
    while True:
        try:
            return once(job)
        except FrameError as exc:
            changed = [error for error in map(_change_of, job.sources) if error is not None and error.name != exc.name]
            for error in (exc, *changed):
                job = without_unreadable(job, error)


def _change_of(source: FrameSource) -> FrameError | None:
    """Return what is wrong with the file of a frame that could be opened once; None: nothing, or it has none."""
    try:
        source.require_unchanged()
    except FrameError as exc:
        return exc
    return None


def channel_sums(image: np.ndarray, n_frames: int, channels: int) -> np.ndarray:
    """Sum whole numbers from 0 to ``n_frames`` per channel: rows (h, W) or (h, W, C) to ``(C,) int64``."""
    lines = image.reshape(image.shape[0], -1)
    # Down the columns first: neighbours in memory are added at once, in the type they have unless it is too small.
    fits = n_frames * len(lines) < 2**31
    columns = lines.sum(axis=0, dtype=image.dtype if fits else np.int64)
    return columns.reshape(-1, channels).sum(axis=0, dtype=np.int64)
