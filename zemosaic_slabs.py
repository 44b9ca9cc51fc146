"""The CPU slab engine.

``stack_job`` is the engine: for every slab of rows it fills a cube with the registered, normalised samples of all
frames, then rejects and combines. Frames are read where the slab needs them, by several threads; the sources stay on
disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel_utils import SlabPlan, available_memory, parallel_map, plan_slabs, row_slabs, usable_cpus
from zemosaic_spec import FrameError
from zemosaic_stack import (
    Callback,
    Job,
    StackResult,
    describe,
    empty_result,
    notify,
    plan_hint,
    prepare,
    without_unreadable,
)
from zemosaic_tile import poststack_rgb_equalization
from zemosaic_utils import FrameSource

__all__ = ["combine_slab", "fill_samples", "frame_block", "run_job", "stack_descriptors", "stack_job"]

logger = logging.getLogger("ZeMosaicWorker")

NO_TABLE = np.empty(0)
NO_TABLE.flags.writeable = False  # like the table, so that the kernel is compiled once for both
CHUNKS_PER_WORKER = 4  # pieces of a slab each worker gets, so that none waits long for the slowest
SLAB_BYTES = 256 << 20  # samples in one slab; more memory than this does not make a stack faster
AT_ONCE = 1 << 16  # pixels scaled at a time
MIN_ROWS = 8  # but a slab is not cut thinner than this for it: a rotated frame is read again for every slab it crosses


def frame_block(source: FrameSource, first: int, last: int) -> np.ndarray:
    """Read rows of a frame, demosaiced: ``((last - first) * W * C + PAD,) float32``, channels interleaved, ADU."""
    from zemosaic_resample import CFA_MARGIN, PAD, demosaic_rows, red_position

    size = (last - first) * source.width * source.channels
    block = np.empty(size + PAD, np.float32)
    block[size:] = 0.0
    if source.cfa is None:
        block[:size] = source.read_rows(first, last).ravel()
        return block
    top, bottom = max(first - CFA_MARGIN, 0), min(last + CFA_MARGIN, source.height)
    raw = source.read_rows(top, bottom).astype(np.float32, copy=False)
    red_row, red_column = red_position(source.cfa)
    demosaic_rows(raw, top, source.height, source.width, first, last, red_row, red_column, block)
    return block


def fill_samples(job: Job, i: int, rows: slice, samples: np.ndarray, radial: np.ndarray) -> None:
    """Fill ``samples (rows * W * C,)`` with frame i on the reference grid, normalised; NaN outside its footprint."""
    from zemosaic_resample import needs_clamp, radial_weight_table, resample_rows, source_rows, weight_table

    source, spec, table = job.sources[i], job.spec, job.table
    matrix = table.transform[i]
    width = job.shape[1]
    if radial.size == 0 and np.array_equal(matrix, np.eye(3)):
        pixels = source.width * (rows.stop - rows.start)
        block = frame_block(source, rows.start, rows.stop)[: pixels * job.channels].reshape(pixels, job.channels)
        out = samples.reshape(block.shape)
        if (table.scale[i] == 1.0).all() and (table.offset[i] == 0.0).all():
            out[:] = block
            return
        for start in range(0, pixels, AT_ONCE):  # the product is float64, and twice as large
            part = slice(start, start + AT_ONCE)
            out[part] = block[part] * table.scale[i] + table.offset[i]
        return
    first, last = source_rows(matrix, rows.start, rows.stop, width, source.height)
    if last <= first:
        samples.fill(np.nan)
        radial.fill(0.0)
        return
    resample_rows(
        frame_block(source, first, last),
        first,
        source.height,
        source.width,
        job.channels,
        matrix,
        weight_table(spec.interpolation),
        needs_clamp(spec.interpolation),
        table.scale[i],
        table.offset[i],
        rows.start,
        rows.stop,
        width,
        samples,
        radial,
        radial_weight_table(spec.radial_feather, spec.radial_power, spec.radial_floor),
    )


def _source_margin(job: Job) -> int:
    """Source rows that the most rotated frame needs beyond the rows of a slab."""
    from zemosaic_resample import CFA_MARGIN, source_rows

    middle = job.shape[0] // 2
    spans = [
        last - first - 1
        for first, last in (
            source_rows(m, middle, middle + 1, job.shape[1], s.height)
            for m, s in zip(job.table.transform, job.sources, strict=True)
        )
    ]
    return max([*spans, 0]) + 2 * CFA_MARGIN


def _sample_weights(job: Job, rows: slice, radial: np.ndarray) -> tuple[np.ndarray, int]:
    """Weights per sample of a slab and how many neighbouring elements share one; empty when there are none."""
    if job.sample_weight is None:
        return radial, job.channels
    weights = np.ascontiguousarray(job.sample_weight[:, rows], dtype=np.float32)
    return weights.reshape(weights.shape[0], -1), 1


@dataclass(frozen=True)
class _Recipe:
    """What the rejection kernel needs to know besides the samples."""

    method: int
    combine: int
    parameters: np.ndarray
    critical: np.ndarray  # of GESD; empty for the others
    rewinsor: bool
    uniform: bool  # all frame weights are 1
    lanes: np.ndarray  # frame weights spread over the kernel's lanes


def recipe_of(job: Job) -> _Recipe:
    from zemosaic_rejection import (
        COMBINE_CODES,
        METHOD_CODES,
        gesd_table,
        method_code,
        method_parameters,
    )
    from zemosaic_simd import LANES

    spec, weight = job.spec, job.table.weight
    method = METHOD_CODES["kappa_sigma_clipped"] if job.clipped_kappa else method_code(spec)
    return _Recipe(
        method=method,
        combine=COMBINE_CODES[spec.combine],
        parameters=method_parameters(spec),
        critical=gesd_table(len(job.sources), spec.gesd_alpha) if spec.reject == "gesd" else NO_TABLE,
        rewinsor=spec.is_legacy_winsor and spec.apply_rewinsor,
        uniform=bool((weight == 1.0).all()),
        lanes=np.ascontiguousarray(np.tile(weight, (1, LANES // weight.shape[1]))),
    )


def slab_plan(job: Job, workers: int, allowed_bytes: int | None, max_rows: int | None) -> SlabPlan:
    height, width = job.shape[:2]
    n_frames, channels = len(job.sources), job.channels
    return plan_slabs(
        height,
        allowed_bytes=available_memory() // 2 if allowed_bytes is None else allowed_bytes,
        n_frames=n_frames,
        width=width,
        channels=channels,
        workers=workers,
        sample_weights=job.spec.radial_weight or job.sample_weight is not None,
        source_margin=_source_margin(job),
        raw_bytes=max(s.dtype.itemsize for s in job.sources) * (1 if job.sources[0].cfa else channels),
        max_rows=max_rows or max(MIN_ROWS, SLAB_BYTES // (4 * n_frames * width * channels)),
    )


class _SlabMemory:
    """The cube of one slab, used again for the next: samples (N, rows * W * C) and radial weights (N, rows * W)."""

    def __init__(self, job: Job, plan: SlabPlan) -> None:
        self._frames = len(job.sources)
        self._pixels = job.shape[1]
        self._channels = job.channels
        size = self._frames * plan.rows_per_slab * self._pixels
        self._samples = np.empty(size * self._channels, np.float32)
        self._radial = np.empty(size if job.spec.radial_weight else 0, np.float32)

    def views(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples and radial weights of a slab; the weights (N, 0) where there are none."""
        pixels = (rows.stop - rows.start) * self._pixels
        samples = self._samples[: self._frames * pixels * self._channels]
        radial = self._radial[: self._frames * pixels]
        return samples.reshape(self._frames, -1), radial.reshape(self._frames, pixels if radial.size else 0)


def combine_slab(
    job: Job, recipe: _Recipe, rows: slice, cube: np.ndarray, radial: np.ndarray, result: StackResult, workers: int
) -> None:
    """Reject and combine the samples of one slab into the rows of the result."""
    from zemosaic_combine import combine_block
    from zemosaic_simd import LANES

    n_frames, size = cube.shape
    line = job.shape[1] * job.channels
    sample_weight, step = _sample_weights(job, rows, radial)
    if sample_weight.size == 0:
        sample_weight = np.empty((0, 0), np.float32)
    maps = (result.image, result.coverage, result.weight, result.rejected_low, result.rejected_high)
    out = [a.reshape(-1)[rows.start * line : rows.stop * line] for a in maps]
    piece = -(-size // (workers * CHUNKS_PER_WORKER * LANES)) * LANES

    def combine(start: int) -> tuple[int, np.ndarray]:
        hits = np.zeros((n_frames, 3), np.int64)
        stop = min(start + piece, size)
        lost = combine_block(
            cube, start, stop, recipe.method, recipe.parameters, recipe.critical, recipe.rewinsor, recipe.combine,
            recipe.uniform and sample_weight.size == 0, recipe.lanes, sample_weight, step, *out, hits,
        )  # fmt: skip
        return int(lost), hits

    for lost, hits in parallel_map(combine, range(0, size, piece), workers):
        result.all_rejected += lost
        result.frame_hits += hits


def stack_job(
    job: Job,
    *,
    workers: int = 1,
    allowed_bytes: int | None = None,
    max_rows: int | None = None,
    progress: Callback | None = None,
) -> StackResult:
    """Stack a job on the CPU.

    Parameters
    ----------
    job : Job
        From :func:`zemosaic_stack.make_job`.
    workers : int
        Threads.
    allowed_bytes : int or None
        Memory it may take; None: half of what is available.
    max_rows : int or None
        No slab is higher. Slabs never change a value.
    progress : callable or None
        Called as ``progress("stack", slabs_done, slabs)``.

    Raises
    ------
    PlanError
        Not even one row fits; raised before a frame is read.
    FrameError
        A frame can no longer be read.
    """
    plan = slab_plan(job, workers, allowed_bytes, max_rows)
    logger.debug("CPU stack: %s", plan)
    recipe, memory = recipe_of(job), _SlabMemory(job, plan)
    result = empty_result(job, plan.rows_per_slab)
    for done, rows in enumerate(row_slabs(job.shape[0], plan.rows_per_slab)):
        cube, radial = memory.views(rows)

        def fill(i: int, rows: slice = rows, cube: np.ndarray = cube, radial: np.ndarray = radial) -> None:
            fill_samples(job, i, rows, cube[i], radial[i])

        parallel_map(fill, range(len(job.sources)), workers)
        combine_slab(job, recipe, rows, cube, radial, result, workers)
        notify(progress, "stack", done + 1, plan.n_slabs)
    return result


def run_job(
    job: Job, *, parallel_plan: object = None, allowed_bytes: int | None = None, progress: Callback | None = None
) -> tuple[Job, StackResult]:
    """Stack a job within the hints of a plan; if a frame can no longer be read, drop it and start anew without it."""
    while True:
        try:
            return job, stack_job(
                job,
                workers=plan_hint(parallel_plan, "cpu_workers") or usable_cpus(),
                allowed_bytes=allowed_bytes,
                max_rows=plan_hint(parallel_plan, "rows_per_chunk"),
                progress=progress,
            )
        except FrameError as exc:
            job = without_unreadable(job, exc)


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
        See :func:`zemosaic_spec.stack_spec_from_params`; of ours, optional: ``reference_index`` (frame the others are
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
        Methods, statistics, maps; see :func:`zemosaic_stack.describe`.
    """
    job = prepare(image_descriptors, stacking_params, zconfig)
    job, result = run_job(
        job,
        parallel_plan=parallel_plan,
        allowed_bytes=stacking_params.get("memory_bytes"),
        progress=progress_callback,
    )
    metadata = describe(job, result)
    metadata["rgb_equalization"] = poststack_rgb_equalization(result.image, job.spec.equalize_rgb)
    return result.image, metadata
