"""The whole job from files to a file: what ``zemosaic-phase3 stack`` does."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import Job, StackResult, make_job, with_errors
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.result_check import result_fault
from zemosaic_phase3.engine.slab_plan import OUTPUT_MAPS
from zemosaic_phase3.engine.star_tolerance import with_star_tolerance
from zemosaic_phase3.errors import GPUStackingError, NoCardLeftError, PlanError, SpecError, StackCancelled
from zemosaic_phase3.finish.equalize import equalize_if
from zemosaic_phase3.io.atomic_write import remove_strays
from zemosaic_phase3.io.foreign_file import SPARE_BYTES, Decoded, whole_bytes
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.wrapped_frame import held_bytes
from zemosaic_phase3.methods import DeviceName, canonical
from zemosaic_phase3.pipeline.cards import cards_left, cards_of, cards_text, give_up_cards, may_use_cards
from zemosaic_phase3.pipeline.comet import comet_of
from zemosaic_phase3.pipeline.device_policy import POLICY, DevicePolicy, DeviceRequest
from zemosaic_phase3.pipeline.elsewhere import Elsewhere
from zemosaic_phase3.pipeline.frame_choice import Choice
from zemosaic_phase3.pipeline.frame_count import LeastFrames
from zemosaic_phase3.pipeline.input_list import Inputs, list_inputs
from zemosaic_phase3.pipeline.kept import Kept, kept_for
from zemosaic_phase3.pipeline.kept_rows import KeptRows
from zemosaic_phase3.pipeline.outputs import Wanted, check_output, check_room, check_tile_name, write_tile
from zemosaic_phase3.pipeline.self_check import checked_stack
from zemosaic_phase3.pipeline.series import Series, SeriesSpec, targets_of
from zemosaic_phase3.pipeline.tile import Stacker, Tile, build_tile
from zemosaic_phase3.pipeline.tile_facts import star_width
from zemosaic_phase3.progress import Callback, timed
from zemosaic_phase3.runtime import limits
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

logger = logging.getLogger("ZeMosaicWorker")

DECODING_SHARE: Final = 4  # of the memory, at most this part is for frames that are decoded whole


def stack_files(
    inputs: Sequence[Any] | Inputs,
    output: str | os.PathLike[str] | None = None,
    *,
    stack: StackSpec | None = None,
    register: RegisterSpec | None = None,
    select: SelectSpec | None = None,
    bayer: str = "auto",
    calibration: CalibrationSpec | None = None,
    reference: str | None = None,
    device: str = "auto",
    require_gpu: bool = False,
    gpus: str | int | Sequence[int] | None = None,
    memory: str | int | None = None,
    workers: int | None = None,
    maps: bool = False,
    overwrite: bool = False,
    preview: Path | None = None,
    report: Path | None = None,
    self_check: bool = True,
    filter: str | None = None,  # noqa: A002 - as the option and the header card are called
    recursive: bool = False,
    min_frames: LeastFrames | int | str | None = None,
    comet: str | Sequence[str] | None = None,
    series: SeriesSpec | str | int | None = None,
    targets: str | os.PathLike[str] | None = None,
    resume: bool = True,
    fresh: bool = False,
    cache: str | os.PathLike[str] | None = None,
    command: Sequence[str] = (),
    progress: Callback | None = None,
    policy: DevicePolicy = POLICY,
    elsewhere: Elsewhere | None = None,
) -> Tile:
    """Register and stack frames into one tile, and write it.

    Parameters
    ----------
    inputs : sequence
        Files, folders, globs, each file once; or arrays and other descriptors (:func:`io.open_frame.open_source`); or
        what :func:`pipeline.input_list.list_inputs` made of them.
    output : path, optional
        FITS file to write; None only returns the tile. An earlier one in a folder of inputs is not stacked.
    stack, register, select : StackSpec, RegisterSpec, SelectSpec, optional
        Methods; the defaults of the command line.
    bayer : str
        "auto" (header), "none", or a pattern such as "GRBG".
    calibration : CalibrationSpec, optional
        Calibration frames and cosmetic correction; the default learns defective photosites from the frames.
    reference : str, optional
        File the others are registered on; None chooses the best.
    device : {"auto", "cpu", "gpu"}
        "gpu" is "auto" with ``require_gpu``.
    require_gpu : bool
        Turn every fall back to the CPU into an error.
    gpus : str, int or sequence of int, optional
        Cards that share the stack: "all", how many, or which ones; see :func:`pipeline.cards.cards_of`.
    memory : int or str, optional
        Bytes, or text such as "4GB" or "50%"; default: see :func:`runtime.limits.default_limit`.
    workers : int, optional
        Threads; as many as this process may use.
    maps : bool
        Write COVERAGE, WEIGHT, REJ_LOW and REJ_HIGH too.
    overwrite : bool
        Replace an existing output; a symbolic link is replaced, not followed.
    preview, report : path, optional
        Files that the caller will write beside; they count where room on the disk is looked for before the work.
    self_check : bool
        Make some pixels of the result again from the files, by plain definitions, and compare them.
    filter : str, optional
        Stack only frames of this filter; None: of that of most frames.
    recursive : bool
        A folder stands for the folders below it too.
    min_frames : LeastFrames, int or str, optional
        Number or share ("80%") of frames below which nothing is stacked; None: fewer than half are a warning.
    comet : str or sequence of str, optional
        A moving target that the stack holds still for, see :func:`pipeline.comet.comet_of`; None: the sky.
    series : SeriesSpec, str or int, optional
        Many stacks in time beside the whole one: "5min", "90s", or so many frames each; see :mod:`pipeline.series`.
    targets : path, optional
        Table of positions, whose light curve is measured in the series; see :mod:`pipeline.light_curve`.
    resume : bool
        Go on where an earlier run was, and let a later one: keep a journal, see :mod:`pipeline.journal`.
    fresh : bool
        Forget what the journal holds.
    cache : path, optional
        Folder of the journal; default: beside the output. Without either there is none.
    command : sequence of str
        The command line, for the record.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; may raise :class:`StackCancelled`.
    policy : DevicePolicy, optional
        Chooses the device and remembers how the GPU fared.
    elsewhere : Elsewhere, optional
        Others who measure frames and stack rows.

    Returns
    -------
    Tile
        Image, masks, maps, header and report.

    Raises
    ------
    NoFramesError
        Nothing could be stacked, or fewer frames than ``min_frames``.
    OutputError
        The output exists, is itself an input, or cannot be written; its name does not end in .fits, .fit or .fts; the
        disk has no room for it.
    PlanError
        The memory is less than this process uses already, or too small for one row.
    SelfCheckError
        A pixel of the result is not what its frames make; nothing is written.
    SpecError
        An option is not allowed.
    """
    choice, began = canonical("device", device, DeviceName), datetime.now(UTC)
    if output is not None:
        check_output(output, overwrite=overwrite)
        check_tile_name(output)
        remove_strays(Path(output).parent)
    target = comet_of(comet)
    wanted_series = _series_of(
        series, targets, output, overwrite=overwrite, maps=maps, follows=target is not None
    )  # fmt: skip
    least = min_frames if isinstance(min_frames, LeastFrames) else LeastFrames.of(min_frames)
    if isinstance(inputs, Inputs):
        listed = inputs
    else:
        given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        listed = list_inputs(given, output, recursive=recursive)
    allowed = _allowed_bytes(limits.default_limit() if memory is None else memory)
    copied = OUTPUT_MAPS + 1 if maps and output is not None else 1
    resources = Resources(workers=workers or limits.usable_cpus(), memory=allowed, copied_maps=copied)
    cards = () if choice == "cpu" else cards_of(gpus)
    resources = replace(resources, cards=cards)
    request = DeviceRequest(
        wants_cpu=choice == "cpu",
        require_gpu=require_gpu or choice == "gpu",
        candidate=(lambda: may_use_cards(cards, policy, logger)) if cards else None,
    )
    policy.require_candidate(request)
    wanted = None if output is None else Wanted(Path(output), maps, preview, report)
    has_files = any(isinstance(frame, str | os.PathLike) for frame in listed.frames)
    with (
        kept_for(output, cache, resume=resume and has_files, fresh=fresh and has_files) as kept,
        contextlib.closing(
            Decoded(Path(output).parent if output is not None else Path(tempfile.gettempdir()))
        ) as decoded,
    ):
        tile = build_tile(
            listed.frames,
            stacker_of(
                policy, request, resources, progress, kept.rows, self_check=self_check, errors=maps, elsewhere=elsewhere
            ),
            stack=stack, register=register, select=select, bayer=bayer, calibration=calibration or CalibrationSpec(),
            reference=reference, workers=resources.workers, allowed_bytes=allowed, copied_maps=copied,
            progress=progress, kept=kept.frames,
            opened=None if wanted is None else partial(_look_for_room, wanted, kept, decoded),
            choice=Choice(listed.named, filter), least=least, comet=target, decoded=decoded,
            series=None if wanted_series is None else wanted_series.make, elsewhere=elsewhere,
        )  # fmt: skip
        tile.report.warnings[:0] = listed.notes
        tile.report.command, tile.report.started = list(command), began.strftime("%Y-%m-%dT%H:%M:%SZ")
        if any(row.scan is not None and row.scan.n_stars for row in tile.rows):
            with timed(tile.report, "finish"):
                tile.report.fwhm_px = star_width(tile.image)
        if output is not None:
            with timed(tile.report, "write"):
                write_tile(tile, output, maps=maps, overwrite=overwrite)
        kept.tell(tile.report)
    return tile


def _series_of(
    series: SeriesSpec | str | int | None,
    targets: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None,
    *,
    overwrite: bool,
    maps: bool,
    follows: bool,
) -> Series | None:
    """Return the series that is asked for, its targets read and its files looked for; None: no series."""
    chosen = targets_of(series, targets, follows=follows)
    if series is None:
        return None
    if output is None:
        raise SpecError("a series is written beside the stack; name an output")
    return Series(SeriesSpec.of(series), Path(output), chosen, overwrite=overwrite, maps=maps)


def _look_for_room(wanted: Wanted, kept: Kept, decoded: Decoded, shape: tuple[int, ...], n_frames: int) -> None:
    """Refuse what the disks have no room for, and have the journal leave that room alone."""
    sizes = wanted.sizes(shape, n_frames)
    check_room(sizes)
    decoded.spare = SPARE_BYTES + sum(sizes.values())
    if kept.rows is not None:
        kept.rows.room = sum(sizes.values())


def stacker_of(
    policy: DevicePolicy,
    request: DeviceRequest,
    resources: Resources,
    progress: Callback | None,
    finished: KeptRows | None = None,
    *,
    self_check: bool = True,
    errors: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Stacker:
    """Return what stacks registered frames on the device that a policy chooses, and checks a few of its pixels.

    ``errors``: the error of each pixel is wanted too.
    """
    began = time.perf_counter()

    def stack(frames: list[Frame], spec: StackSpec, reference: int) -> StackResult:
        job = make_job(frames, spec, reference=reference)
        left = _left_for_slabs(resources, [frame.source for frame in frames])
        fwhm = {frame.source.name: frame.stats.fwhm for frame in frames if frame.stats is not None}
        job = with_star_tolerance(job, fwhm, left)
        job = with_errors(job) if errors else job
        made = None if elsewhere is None else elsewhere.stack(job)
        if made is not None:
            result = made
        else:
            result, used = policy.stack(
                lambda tighter: stack_on_gpu(job, left.tighter() if tighter else left, progress, finished, policy),
                lambda: cpu.stack(job, left, progress, finished),
                request,
            )
            told = cards_text(result.gpu)
            result.device = replace(used, reason=f"{used.reason}, {told}") if told else used
        if self_check:
            result = checked_stack(
                result, lambda: cpu.stack(job, left, progress), distrust=policy.distrust, finished=finished,
                require_gpu=request.require_gpu, run_seconds=time.perf_counter() - began, workers=resources.workers,
            )  # fmt: skip
        result.equalization = equalize_if(spec.equalize_rgb, result.image, result.error)
        return result

    return stack


def _left_for_slabs(resources: Resources, sources: list[FrameSource]) -> Resources:
    """Return what is left for the slabs, of memory and threads, beside what frames hold and what decoding takes."""
    held, whole = held_bytes(sources), max(map(whole_bytes, sources), default=0)
    if resources.memory is None or not (held or whole):
        return resources
    workers = resources.workers
    if whole:  # a quarter of the memory at most for frames that are decoded side by side
        workers = max(1, min(workers, resources.memory // DECODING_SHARE // whole))
    return replace(resources, memory=max(1, resources.memory - held - workers * whole), workers=workers)


def stack_on_gpu(
    job: Job,
    resources: Resources,
    progress: Callback | None,
    finished: KeptRows | None,
    policy: DevicePolicy = POLICY,
) -> StackResult:
    """Stack on the GPU; rows of one that failed are not kept for the CPU, nor for a later run.

    Where several cards share the work, those that fail are given up for the rest of the run.
    """
    from zemosaic_phase3.engine import gpu

    try:
        if resources.cards:
            resources = replace(resources, cards=cards_left(resources.cards, policy, logger))
            if not resources.cards:
                raise NoCardLeftError("no card is left; see the log for what happened to each")
        result = gpu.stack(job, resources, progress, finished)
        if result.gpu is not None:
            give_up_cards(result.gpu.lost, policy, logger)
        fault = result_fault(result.image, job.shape, result.coverage, partial(cpu.stack_rows, result.job))
        if fault:
            raise GPUStackingError(fault)
    except StackCancelled:
        raise
    except Exception:
        if finished is not None:
            finished.discard()
        raise
    return result


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
