"""From descriptors to a finished tile: open, scan, register, stack, finish. Shared by the command line and ZeMosaic.

Every frame is read twice: once whole, to find its stars and measure its levels, and by rows when the stack needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np

from zemosaic_phase3.engine.cpu import ERROR_MAPS
from zemosaic_phase3.engine.job import StackResult
from zemosaic_phase3.engine.slab import source_pixel_bytes
from zemosaic_phase3.engine.slab_plan import OUTPUT_MAPS, SlabPlan, plan_slabs
from zemosaic_phase3.errors import PlanError
from zemosaic_phase3.finish.alpha import alpha_from_coverage
from zemosaic_phase3.finish.noise import measure_noise, typical_noise
from zemosaic_phase3.io.foreign_file import Decoded, decoded_files, whole_bytes
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.calibration import calibrate_group
from zemosaic_phase3.pipeline.canvas import canvas_wcs, finer_canvas
from zemosaic_phase3.pipeline.chaining import chain_frames
from zemosaic_phase3.pipeline.colour_check import check_rows_and_colours
from zemosaic_phase3.pipeline.comet import Comet, find_motion, note_motion
from zemosaic_phase3.pipeline.elsewhere import Elsewhere
from zemosaic_phase3.pipeline.failed_frames import review_failures
from zemosaic_phase3.pipeline.frame_choice import Choice, all_images, choose_frames, remarks_on_result
from zemosaic_phase3.pipeline.frame_count import LeastFrames, meant_frames
from zemosaic_phase3.pipeline.framing import choose_framing, fields_on
from zemosaic_phase3.pipeline.group import FrameRow, Group, Kept, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.observation_cards import complete_exposures
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.pipeline.sample_report import hole_notes, note_saturation, sample_notes
from zemosaic_phase3.pipeline.selection import apply_limits, drop_worst, rate_frames
from zemosaic_phase3.pipeline.stack_noise import (
    factor_expected,
    measure_noise_of_stacks,
    noise_bands,
    noise_once_moved,
    typical_noise_of_frame,
)
from zemosaic_phase3.pipeline.tile_header import cards_of_reference, tile_header, wcs_cards
from zemosaic_phase3.pipeline.tile_wcs import Solutions, known_solutions, wcs_of_tile
from zemosaic_phase3.progress import Callback, timed
from zemosaic_phase3.records import Canvas, Equalization, TileReport
from zemosaic_phase3.runtime.limits import give_back_freed_memory, peak_rss_bytes
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS


logger = logging.getLogger("ZeMosaicWorker")

NO_SHIFTS: Final[Mapping[int, np.ndarray]] = {}


Measured = TypeVar("Measured")


Stacker = Callable[[list[Frame], StackSpec, int], StackResult]
"""Stacks registered frames; the number is that of the reference among them, whose levels the result has."""


OneStack = Callable[[Group, Mapping[int, int]], "Tile"]
"""Stacks a part of a group; the numbers are the positions of its frames in the whole."""


class Grid(NamedTuple):
    """The frame whose grid a tile lies on, and the solutions whose mean is its WCS; None: its own."""

    source: FrameSource
    solutions: Solutions | None


@dataclass
class Tile:
    """A finished tile, ready to be written.

    ``image`` float32, ADU, ``(H, W)`` or ``(H, W, 3)``, on the grid of the reference frame; ``alpha (H, W)`` uint8, 0
    or 255; ``maps`` by extension name; ``wcs`` celestial, with the pixel shape set: a copy of the reference's, or the
    mean of those of the frames on its grid; None where the reference has none.
    """

    image: np.ndarray
    alpha: np.ndarray
    maps: dict[str, np.ndarray]
    header: Header
    wcs: WCS | None
    report: TileReport
    rows: list[FrameRow]
    equalization: Equalization = Equalization()
    canvas: Canvas | None = None  # None: the grid is the reference's


def build_tile(
    descriptors: Sequence[Any],
    stacker: Stacker,
    *,
    stack: StackSpec | None = None,
    register: RegisterSpec | None = None,
    select: SelectSpec | None = None,
    bayer: str = "auto",
    calibration: CalibrationSpec | None = None,
    reference: str | None = None,
    workers: int = 1,
    allowed_bytes: int | None = None,
    copied_maps: int = OUTPUT_MAPS,
    progress: Callback | None = None,
    opened: Callable[[tuple[int, ...], int], None] | None = None,
    choice: Choice | None = None,
    least: LeastFrames | None = None,
    kept: Kept | None = None,
    decoded: Decoded | None = None,
    comet: Comet | None = None,
    series: Callable[[Group, OneStack, float], list[str]] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Tile:
    """Open, scan, register, stack and finish: the whole way from descriptors to a tile in memory.

    Parameters
    ----------
    descriptors : sequence
        See :func:`io.open_frame.open_source`.
    stacker : callable
        The engine with its policy, see :mod:`pipeline.device_policy`.
    stack, register, select : StackSpec, RegisterSpec, SelectSpec
    bayer : str
        "auto", "none" or a pattern.
    calibration : CalibrationSpec or None
        Calibration frames and cosmetic correction; None: frames are taken as they are.
    reference : str or None
        Path or name of the reference frame; None chooses one.
    workers : int
        Threads.
    allowed_bytes : int or None
        Memory the frames and the stack may take; None: half of what is available.
    copied_maps : int
        Maps of the tile, the image among them, that will be written to a file.
    progress : callable or None
        Called as ``progress(stage, done, total)``.
    opened : callable or None
        Called before a frame is read as ``opened(shape, n_frames)``, with the shape of the tile; what it raises ends
        the run.
    choice : Choice or None
        What a user said of which frames belong to the stack.
    least : LeastFrames or None
        How many of them must be used.
    kept : Kept or None
        What earlier runs measured, and where this one leaves it.
    decoded : Decoded or None
        Keeps frames that their library decodes whole; None: they are decoded each time.
    comet : Comet or None
        A moving target that the stack holds still for; None: the sky.
    elsewhere : Elsewhere or None
        Others who measure frames.

    Raises
    ------
    NoFramesError
        Nothing is left to stack, or too little; the message says why.
    PlanError
        Not one row of the stack fits into the memory; before a frame is read.
    """
    stack, register, select = stack or StackSpec(), register or RegisterSpec(), select or SelectSpec()
    choice, least = choice or Choice(), least or LeastFrames()
    spec = {**asdict(stack), "register": asdict(register), "select": asdict(select)}
    if calibration is not None:
        spec["calibration"] = asdict(calibration)
    opener = partial(open_source, bayer=bayer)
    report = TileReport(spec=spec)
    with timed(report, "open"):
        group = open_group(
            descriptors, opener, reference=reference, further=partial(all_images, opener=opener),
            choose=partial(_settle, choice=choice, bayer=bayer),
        )  # fmt: skip
        report.n_input = len(group.rows)
        group.require_some("opened")
        for source in decoded_files(group.sources):
            source.decoded = decoded
        if allowed_bytes is not None:
            plan_of_group(group, stack, register, workers, allowed_bytes, copied_maps)
        if opened is not None:
            opened(tile_shape(group.source(group.usable[0]), stack), len(group.rows))
    if calibration is not None:
        with timed(report, "calibrate"):
            calibrate_group(
                group, calibration, report, raw=register.mode != "none", workers=workers, allowed_bytes=allowed_bytes,
                progress=progress,
            )  # fmt: skip
    with timed(report, "measure"):
        find_stars = stack.needs_stars or select.needs_stars or register.mode in ("auto", "stars")
        scan_group(
            group, register, find_stars=find_stars, measure=stack.needs_levels or select.needs_levels, workers=workers,
            allowed_bytes=allowed_bytes, progress=progress, kept=kept, elsewhere=elsewhere,
        )  # fmt: skip
        group.require_some("read")
        apply_limits(group, select)
        group.require_some("kept")
        complete_exposures(group)
        if stack.needs_levels:
            measure_noise_of_stacks(group, workers)
    with timed(report, "register"):
        chain = chain_frames if stack.framing == "union" else None
        register_group(
            group, register, workers=workers, progress=progress, kept=kept, review=review_failures, chain=chain
        )
        rate_frames(group)
        least.check(group)
        for i in drop_worst(group, select):
            group.rows[i].meant = False  # that was asked for
        shape = group.source(group.reference).shape
        shifts = _follow(group, comet)
        canvas = finer_canvas(choose_framing(group, stack.framing), shape, stack.drizzle or 1.0)
        if canvas is not None:
            report.canvas = canvas
            if allowed_bytes is not None:
                _check_canvas(group, canvas, stack, workers, allowed_bytes, copied_maps)
            if opened is not None:
                opened((*canvas.shape, *shape[2:]), len(group.rows))
    said = []
    if series is not None:
        with timed(report, "series"):
            one = partial(
                _stack_part, whole=group, stacker=stacker, stack=stack, spec=spec, workers=workers, canvas=canvas,
                shifts=shifts,
            )  # fmt: skip
            said = series(group, one, stack.drizzle or 1.0)
    tile = stack_group(group, stacker, stack, report, workers=workers, canvas=canvas, mean_wcs=True, shifts=shifts)
    report.warnings += said
    report.n_meant, report.n_needed = meant_frames(group), least.needed(meant_frames(group))
    remark = least.remark(report.n_used, report.n_meant)
    report.warnings[:0] = [*([remark] if remark else []), *group.notes, *remarks_on_result(tile.rows)]
    return tile


def _stack_part(
    part: Group,
    positions: Mapping[int, int],
    *,
    whole: Group,
    stacker: Stacker,
    stack: StackSpec,
    spec: dict[str, Any],
    workers: int,
    canvas: Canvas | None,
    shifts: Mapping[int, np.ndarray],
) -> Tile:
    """Stack some frames of a group on the grid of the whole; ``positions``: of its frames in the whole."""
    grid = Grid(whole.source(whole.reference), known_solutions(whole))
    moved = {k: shifts[i] for k, i in positions.items() if i in shifts}
    return stack_group(
        part, stacker, stack, TileReport(spec=spec), workers=workers, canvas=canvas, shifts=moved, grid=grid
    )


def _settle(group: Group, choice: Choice, bayer: str) -> None:
    """Leave out what is no frame of this stack, then see to the rows and colours of what is."""
    choose_frames(group, choice=choice)
    check_rows_and_colours(group, bayer)


def tile_shape(source: FrameSource, stack: StackSpec) -> tuple[int, ...]:
    """Return the shape of a tile on the grid of this frame."""
    canvas = finer_canvas(None, source.shape, stack.drizzle or 1.0)
    return source.shape if canvas is None else (*canvas.shape, *source.shape[2:])


def _weights_per_pixel(source: FrameSource, stack: StackSpec) -> int:
    return source.channels if stack.drizzle else int(stack.radial_weight)


def _follow(group: Group, comet: Comet | None) -> dict[int, np.ndarray]:
    """Return by how much a moving target has moved in each frame, reference pixels; nothing where there is none."""
    if comet is None:
        return {}
    motion = find_motion(group, comet)
    group.notes.append(motion.note)
    return motion.shifts


def own_maps(stack: StackSpec, copied_maps: int) -> int:
    """Return how many maps a stack holds beside its result: tolerances, and what the errors of pixels take."""
    return int(stack.spares) + (ERROR_MAPS if copied_maps > OUTPUT_MAPS else 0)


def plan_of_group(
    group: Group, stack: StackSpec, register: RegisterSpec, workers: int, allowed_bytes: int, copied_maps: int
) -> SlabPlan:
    """Return how the stack could be cut, from the headers alone.

    How far frames are turned is not known yet, so that frames to be registered count with source blocks of their whole
    height, which is as much as any rotation can take.

    Raises
    ------
    PlanError
        The stack could not run for lack of memory.
    """
    some = group.source(group.usable[0])
    allowed_bytes = max(1, allowed_bytes - whole_bytes(some))
    height, width = tile_shape(some, stack)[:2]
    return plan_slabs(
        height, allowed_bytes=allowed_bytes, n_frames=len(group.usable), width=width, channels=some.channels,
        workers=workers, weights_per_pixel=_weights_per_pixel(some, stack),
        source_margin=0 if register.mode == "none" else some.height,
        raw_bytes=source_pixel_bytes(some), own_maps=own_maps(stack, copied_maps), copied_maps=copied_maps,
    )  # fmt: skip


def _check_canvas(
    group: Group, canvas: Canvas, stack: StackSpec, workers: int, allowed_bytes: int, copied_maps: int
) -> None:
    """Raise PlanError where the stack could not run on a canvas for lack of memory, with what helps."""
    some = group.source(group.reference)
    try:
        plan_slabs(
            canvas.height, allowed_bytes=allowed_bytes, n_frames=len(group.usable), width=canvas.width,
            channels=some.channels, workers=workers, weights_per_pixel=_weights_per_pixel(some, stack),
            source_margin=some.height, source_height=some.height, source_width=some.width,
            raw_bytes=source_pixel_bytes(some), own_maps=own_maps(stack, copied_maps), copied_maps=copied_maps,
        )  # fmt: skip
    except PlanError as exc:
        raise PlanError(
            f"framing {stack.framing}{f' with drizzle {stack.drizzle:g}' if stack.drizzle else ''} makes a result of "
            f"{canvas.width} x {canvas.height} pixels, for which the memory does not suffice: {exc}; or use --framing "
            "reference or intersection, or no drizzle"
        ) from exc


def stack_group(
    group: Group,
    stacker: Stacker,
    stack: StackSpec,
    report: TileReport,
    *,
    workers: int = 1,
    canvas: Canvas | None = None,
    mean_wcs: bool = False,
    shifts: Mapping[int, np.ndarray] = NO_SHIFTS,
    grid: Grid | None = None,
) -> Tile:
    """Stack the registered frames of a group and finish the tile, on a canvas, or on the grid of the reference.

    With ``mean_wcs`` the tile's WCS is the mean of those of its frames, else the reference's. ``shifts``: by how much a
    moving target has moved in each frame, reference pixels. ``grid``: of a part of a group, the frame that the whole is
    registered on, which the tile's WCS is of.

    What is wanted of the reference's file is read before the stack, so that a reference that vanishes meanwhile is one
    frame lost and not the tile. What the tile's header takes from it is made and tried out then too, so that no header
    can lose a finished stack. Its noise is measured beside the stack where there are threads for both.
    """
    give_back_freed_memory()  # of measuring and registering, before the slabs take theirs
    usable = group.usable
    reference = group.source(group.reference)
    frames = _frames_on(group, usable, canvas, shifts)
    if canvas is not None:
        stack = replace(stack, grid=canvas.shape)
    with ThreadPoolExecutor(1, thread_name_prefix="zemosaic") as beside:
        with timed(report, "finish"):
            bands = noise_bands(reference)
            measured = partial(_later, beside if workers > 1 else None)
            noise_before = measured(typical_noise, bands)
            noise_moved = measured(noise_once_moved, bands, stack.interpolation)
            if grid is None:
                grid = Grid(reference, known_solutions(group) if mean_wcs else None)
            cards, wcs, notes = _describe_reference(reference, canvas, grid, report)
            for note in notes:
                logger.warning("%s: %s", reference.name, note)
        with timed(report, "stack"):
            result = stacker(frames, stack, usable.index(group.reference))
    with timed(report, "finish"):
        report.noise_before = noise_before()
        _note_in_rows(group, result)
        table = result.job.table
        noise_in_stack = report.noise_before if table.in_place.all() else noise_moved()
        report.noise_typical = typical_noise_of_frame(noise_in_stack, group, table)
        report.factor_expected = factor_expected(group, table)
        _fill_report(report, group, result, workers)
        report.warnings[:0] = [*notes, *sample_notes(group, result), *hole_notes(result)]
        tile = Tile(
            image=result.image,
            alpha=alpha_from_coverage(result.coverage),
            maps=result.maps,
            header=note_motion(
                note_saturation(tile_header(cards, group, result.job, report, result.equalization), result, report),
                shifts,
            ),
            wcs=wcs,
            report=report,
            rows=group.rows,
            equalization=result.equalization,
            canvas=canvas,
        )
    report.peak_rss_bytes = peak_rss_bytes()
    return tile


def _later(beside: ThreadPoolExecutor | None, fn: Callable[..., Measured], *arguments: Any) -> Callable[[], Measured]:
    """Have a thread call a function now, or nobody until its result is asked for; returns what gives the result."""
    return partial(fn, *arguments) if beside is None else beside.submit(fn, *arguments).result


def _frames_on(group: Group, usable: list[int], canvas: Canvas | None, shifts: Mapping[int, np.ndarray]) -> list[Frame]:
    """Return the frames of a stack as they lie on its grid."""
    registered = group.registrations(usable)
    fields = [r.distortion for r in registered]
    if canvas is not None and any(field is not None for field in fields):
        fields = fields_on(group, usable, registered, canvas)
    return [
        Frame(
            group.source(i),
            r.transform if canvas is None else canvas.to_frame(r.transform),
            group.scan(i).stats,
            field,
            shifts[i] * (1.0 if canvas is None else canvas.scale) if i in shifts else None,
        )
        for i, r, field in zip(usable, registered, fields, strict=True)
    ]


def _describe_reference(
    reference: FrameSource, canvas: Canvas | None, grid: Grid, report: TileReport
) -> tuple[Header, WCS | None, list[str]]:
    """Return what the tile's header takes from the reference, the tile's WCS, and notes on what had to be left out.

    The WCS is a copy, so that the caller's own stays as it is.
    """
    header = reference.read_header()
    wcs, notes = None, list[str]()
    try:
        found = reference.wcs(header) if grid.source is reference else grid.source.wcs()
        if found is not None:
            mean, notes = wcs_of_tile(found, grid.solutions, (reference.height, reference.width), report)
            wcs = mean.deepcopy()
            wcs.pixel_shape = (reference.width, reference.height)
            if canvas is not None:
                wcs = canvas_wcs(wcs, canvas)
            wcs_cards(wcs)
    except Exception as exc:  # noqa: BLE001 - a caller's WCS may be anything, and wcslib fails in many ways
        wcs, report.wcs_mean = None, None
        notes.append(f"the WCS of the reference is left out: {' '.join(str(exc).split())}")
    shape = reference.shape if canvas is None else (*canvas.shape[:2], *reference.shape[2:])
    cards, more = cards_of_reference(header, wcs, shape)
    return cards, wcs, [*notes, *more]


def _note_in_rows(group: Group, result: StackResult) -> None:
    """Write into the rows what the stack found out about each frame; names are distinct, see :func:`open_group`."""
    by_name = {group.rows[i].name: group.rows[i] for i in group.usable}
    for name, reason in result.job.dropped:
        by_name[name].drop(reason)
    table = result.job.table
    for k, (name, percent) in enumerate(zip(table.names, result.frame_rejected_percent(), strict=True)):
        row = by_name[name]
        row.scale, row.offset, row.weight = table.scale[k].tolist(), table.offset[k].tolist(), table.weight[k].tolist()
        row.rejected_percent = float(percent)


def _fill_report(report: TileReport, group: Group, result: StackResult, workers: int) -> None:
    report.n_used = len(group.usable)
    report.dropped = group.dropped()
    report.reference = group.rows[group.reference].name
    report.device = "gpu" if result.device.used_gpu else "cpu"
    report.gpu_attempts = result.device.gpu_attempts
    report.device_reason = result.device.reason
    report.noise_after = measure_noise(result.image, workers)
    report.rejected_low_percent = result.rejected_percent("rejected_low")
    report.rejected_high_percent = result.rejected_percent("rejected_high")
    report.all_rejected_pixels = int(result.all_rejected)
    report.rows_per_slab = int(result.rows_per_slab)
    report.warnings += result.job.table.notes
    report.self_check = result.self_check
    if result.self_check is not None and result.self_check.note:
        report.warnings.append(f"self-check: {result.self_check.note}")
