"""``create_master_tile`` as ZeMosaic calls it: group entries in, ``master_tile_%03d.fits`` and retry groups out.

The pipeline does the work; this room translates: entries to descriptors, stages to progress keys, failures to the
return values those runs expect. Whatever happens to one tile, the caller gets a return value and the run goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.compat.center_out import Correction, match_tile, matching
from zemosaic_phase3.compat.tile_cards import center_out_cards, complete_header
from zemosaic_phase3.compat.tile_request import Entry, TileRequest
from zemosaic_phase3.errors import FrameError, NoFramesError, SelfCheckError, StackCancelled, ZeMosaicError
from zemosaic_phase3.finish.alpha import alpha_from_coverage
from zemosaic_phase3.finish.crop import apply_crop_pipeline, shift_wcs
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.open_frame import npy_header, open_source
from zemosaic_phase3.io.tile_file import tile_hdus
from zemosaic_phase3.pipeline.canvas import canvas_around
from zemosaic_phase3.pipeline.failed_frames import review_wcs
from zemosaic_phase3.pipeline.group import FrameRow, Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.outputs import FRAMES_UNITS, frames_columns
from zemosaic_phase3.pipeline.registering import drop_starless, register_group
from zemosaic_phase3.pipeline.tile import Stacker, Tile, stack_group
from zemosaic_phase3.progress import notify, timed
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.registration.few_stars import FEW
from zemosaic_phase3.runtime.limits import available_memory, usable_cpus
from zemosaic_phase3.settings import positive, setting
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")


RetryGroups = list[list[dict[str, Any]]]
TileResult = tuple[tuple[str | None, "WCS | None"], RetryGroups]

REJECTS_FOLDER: Final = "rejected_by_quality"
MOST_BEYOND: Final = 0.25  # of a side, that a tile may go on around its reference
NAMED_FAILURES: Final = 10  # frames that failed to register, named in one message
FEW_STARS: Final = FEW
# What may go wrong with one tile and must not end the run; anything else is a fault of this program.
_FAILURES: Final = (ZeMosaicError, MemoryError, OSError, ValueError)


class _Working:
    """How many tiles are worked on in this process: they share what memory there is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1

    def memory_share(self) -> int:
        """Bytes that one tile may take: half of what is available, divided by the tiles in work."""
        return available_memory() // 2 // max(self._count, 1)


working: Final = _Working()


class _Once:
    """True for the first who asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def first(self) -> bool:
        """Return True once."""
        return self._lock.acquire(blocking=False)


announced: Final = _Once()


def make_master_tile(request: TileRequest, stacker: Stacker) -> TileResult:
    """Make one tile; every failure of the tile becomes a progress key and ``((None, None), retry_groups)``.

    Raises
    ------
    SelfCheckError
        The tile was made and is wrong: a failure of this machine.
    """
    result: TileResult = (None, None), []
    context = None if request.center_out is None else request.context
    with matching(context, request.tile_id):
        try:
            result = _make(request, stacker)
        except StackCancelled as exc:
            logger.warning("tile %d stopped: %s", request.tile_id, exc)
    return result


def _announce_compilation(request: TileRequest) -> None:
    """Say why the first tile on a machine takes longer."""
    from zemosaic_phase3.combine.block import combine_block
    from zemosaic_phase3.runtime.jit import cache_folder, is_cold

    folder = cache_folder(combine_block)
    if folder is not None and is_cold(folder) and announced.first():
        request.say("[P3] compiling for this machine, once: the first tile takes 10 to 30 s longer")


def _make(request: TileRequest, stacker: Stacker) -> TileResult:
    tell, n = request.tell, len(request.entries)
    lost: TileResult = (None, None), []
    if n == 0:
        tell("error_no_images_provided", "ERROR")
        return lost
    tell("info_creation_started_from_cache", num_raw=n)
    if request.strategy:
        hints = {"cap": "cap", "memmap": "memmap", "gpu_hint": "gpu_batch_hint"}
        tell("autocaps_hint", "INFO_DETAIL", **{name: setting(request.strategy, key) for name, key in hints.items()})
    if n >= request.extreme_group_frames:
        tell("extreme_group", "WARN", num_frames=n, threshold=request.extreme_group_frames, reason="[EXTREME_GROUP]")
    report = TileReport(n_input=n)
    key = "error_saving"
    _announce_compilation(request)
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        key = "error_loading_cache"
        with request.slot(), working:
            group = _load(request, report)
            loaded = group.usable
            drop_starless(group, RegisterSpec())
            if not _has_reference(request, group):
                return lost
            lost = (None, None), _align(request, group, loaded, report)
            key = "error_stacking_failed"
            tile = _stack(request, group, stacker, report)
        tile, correction = _match_to_anchor(request, tile)
        finished = _finish(request, group, tile, correction)
        key = "error_saving"
        return _save(request, tile, finished), lost[1]
    except MemoryError as exc:
        request.fail("error_memory_loading_cache" if key == "error_loading_cache" else key, exc)
    except NoFramesError as exc:
        request.fail("error_no_valid_images_from_cache" if key == "error_loading_cache" else key, exc)
    except SelfCheckError as exc:  # of the computation, not of the tile: whoever else can make it is to try
        request.fail(key, exc)
        raise
    except _FAILURES as exc:
        request.fail(key, exc)
    return lost


def _load(request: TileRequest, report: TileReport) -> Group:
    """Open and measure the caches; row i of the group is entry i, and what cannot be used is told and left out."""
    request.tell("info_loading_from_cache_started", "DEBUG_DETAIL", num_images=len(request.entries))
    with timed(report, "open"):
        group = open_group(request.entries, partial(_open_cache, request=request))
    with timed(report, "measure"):
        scan_group(
            group, RegisterSpec(), find_stars=True, workers=_workers(request), allowed_bytes=working.memory_share(),
            progress=request.step,
        )  # fmt: skip
    for entry, row in zip(request.entries, group.rows, strict=True):
        if not row.used:
            _tell_of_lost_cache(request, entry, row)
    group.require_some("loaded")
    return group


def _tell_of_lost_cache(request: TileRequest, entry: Entry, row: FrameRow) -> None:
    path = _cache_path(entry)
    details = {"filename": Path(row.name).name, "cache_path": str(path or ""), "reason": row.reason}
    if path is None or not Path(path).is_file():
        request.tell("warn_cache_file_missing", "WARN", **details)
        return
    try:
        shape, dtype = (str(found) for found in _stored_array(path, row.name))
    except FrameError:
        shape = dtype = "N/A"
    request.tell("warn_invalid_cached_data", "WARN", shape=shape, dtype=dtype, **details)


def _workers(request: TileRequest) -> int:
    return request.workers if request.workers > 0 else usable_cpus()


def _cache_path(entry: Entry) -> str | os.PathLike[str] | None:
    path = entry.get("path_preprocessed_cache") if isinstance(entry, Mapping) else None
    return path if isinstance(path, str | os.PathLike) and os.fspath(path) else None


def _open_cache(entry: Entry, request: TileRequest) -> FrameSource:
    """Open the cache of a group entry, under the name of its raw file; through the run's own reader if it has one.

    Raises
    ------
    FrameError
        It is missing, or is not what Phase 1 writes: an ``.npy`` array, float32, (H, W, 3).
    """
    path = _cache_path(entry)
    name = str((entry.get("path_raw") if isinstance(entry, Mapping) else None) or path or "<entry>")
    if path is None:
        raise FrameError(name, "the entry names no path_preprocessed_cache; run the preprocessing again")
    if not Path(path).is_file():
        raise FrameError(name, f"its cache {path} is missing; run the preprocessing again")
    array = None if request.load_cache is None else _read_by_the_run(request, path, name)
    shape, dtype = _stored_array(path, name) if array is None else (array.shape, array.dtype)
    if len(shape) != 3 or shape[2] != 3 or (dtype.kind, dtype.itemsize) != ("f", 4):
        raise FrameError(name, f"its cache holds {dtype} {shape}, not float32 (H, W, 3); run the preprocessing again")
    header = entry.get("header")
    pixels = {"path": path} if array is None else {"array": array}
    descriptor = {**pixels, "name": name, "header": header if hasattr(header, "keys") else None}
    return open_source({**descriptor, "wcs": _celestial(entry.get("wcs"))}, bayer="none")


def _read_by_the_run(request: TileRequest, path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Return what the run's own ``_safe_load_cache`` makes of a cache."""
    assert request.load_cache is not None  # noqa: S101 - asked for only where there is one
    try:
        return np.asarray(request.load_cache(path, pcb=request.progress, tile_id=request.tile_id))
    except (OSError, ValueError) as exc:
        raise FrameError(name, f"its cache {path} cannot be read ({exc}); run the preprocessing again") from exc


def _celestial(wcs: Any) -> WCS | None:
    """Return a WCS if it is one and places pixels on the sky; without one the header is asked."""
    try:
        return wcs if wcs.has_celestial else None
    except (AttributeError, ValueError) as exc:  # wcslib's errors are ValueErrors: a singular matrix, bad axes
        if wcs is not None:
            logger.warning("a WCS cannot be used (%s)", exc)
        return None


def _stored_array(path: str | os.PathLike[str], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that the head of an ``.npy`` file states."""
    try:
        with Path(path).open("rb") as stream:
            shape, _, dtype = npy_header(stream)
    except (OSError, ValueError) as exc:
        raise FrameError(name, f"its cache {path} is no .npy array ({exc}); run the preprocessing again") from exc
    return shape, dtype


def _has_reference(request: TileRequest, group: Group) -> bool:
    """Make the first frame that loaded the reference: pixels, WCS and header are all its own."""
    group.reference = group.usable[0]
    if group.source(group.reference).wcs() is None:
        request.tell("error_invalid_ref_wcs_header", "ERROR", filename=Path(group.rows[group.reference].name).name)
        return False
    name = Path(group.rows[group.reference].name).name
    request.tell("info_reference_set", "DEBUG_DETAIL", ref_index=group.reference, ref_filename=name)
    return True


def _align(request: TileRequest, group: Group, loaded: Sequence[int], report: TileReport) -> RetryGroups:
    """Register on the reference; returns the retry groups: at most one, of the loaded entries that failed."""
    request.tell("info_intra_tile_alignment_started", "DEBUG_DETAIL", num_to_align=len(loaded))
    with timed(report, "register"):
        register_group(group, RegisterSpec(), workers=_workers(request), progress=request.step, review=review_wcs)
    failed = [i for i in loaded if not group.rows[i].used]
    _tell_of_failed(request, [group.rows[i] for i in failed], len(loaded))
    request.tell(
        "info_intra_tile_alignment_finished", "DEBUG_DETAIL", num_aligned=len(group.usable), num_failed=len(failed)
    )
    return [[_retry(request.entries[i], request.tile_id) for i in failed]] if failed else []


def _tell_of_failed(request: TileRequest, rows: Sequence[FrameRow], n_loaded: int) -> None:
    """Name the frames that failed to register, under the keys that a run counts, and say why each did."""
    for row in rows:
        found = row.registration
        if found is None or found.method == "wcs" or (row.scan is not None and row.scan.n_stars < FEW_STARS):
            key = "aligngroup_warn_value_error"
        else:  # nothing fits; or something does and is not believed
            key = "aligngroup_warn_register_returned_none" if found.matched else "aligngroup_warn_max_iter_error"
        name = Path(row.name).name
        notify(request.progress, key, None, "WARN", tile_id=request.tile_id, img_idx=name, error=row.reason)
    if rows:
        some = "; ".join(f"{Path(row.name).name}: {row.reason}" for row in rows[:NAMED_FAILURES])
        more = f"; and {len(rows) - NAMED_FAILURES} more" if len(rows) > NAMED_FAILURES else ""
        request.say(
            f"[ALIGN] tile {request.tile_id}: {len(rows)} of {n_loaded} frames are not stacked here: {some}{more}",
            "WARN",
        )


def _retry(entry: Entry, tile_id: int) -> dict[str, Any]:
    """Shallow copy of an entry for another attempt in another group."""
    chain = entry.get("retry_origin_chain")
    return {
        **entry,
        "retry_attempt": (positive(entry.get("retry_attempt")) or 0) + 1,
        "retry_origin_chain": [*(chain if isinstance(chain, list | tuple) else []), tile_id],
    }


def _stack(request: TileRequest, group: Group, stacker: Stacker, report: TileReport) -> Tile:
    request.tell("info_stacking_started", "DEBUG_DETAIL", num_to_stack=len(group.usable))
    beyond = MOST_BEYOND if request.pad_canvas else 0.0
    shape = group.source(group.reference).shape
    canvas = canvas_around(group.registrations(group.usable), shape, beyond, request.cut_later)
    tile = stack_group(
        group,
        stacker,
        request.stack,
        report,
        workers=_workers(request),
        canvas=canvas,
    )
    if tile.canvas is not None:
        frame = shape[:2]
        dx, dy = -round(tile.canvas.origin_x), -round(tile.canvas.origin_y)
        request.say(f"MT_WCS_PAD: applied dx={dx}, dy={dy}, orig_hw={frame}, padded_hw={tile.canvas.shape}")
    request.tell("info_stacking_finished", "DEBUG_DETAIL", shape=str(tile.image.shape))
    done = tile.equalization
    gains = ",".join(f"{gain:.6f}" for gain in (done.gain_r, done.gain_g, done.gain_b))
    request.say(
        f"[RGB-EQ] poststack_equalize_rgb enabled={request.stack.equalize_rgb}, applied={done.applied}, "
        f"gains=({gains}), target={done.target_median:.6g}",
        "INFO" if request.stack.equalize_rgb else "DEBUG_DETAIL",
    )
    for note in report.warnings:
        request.say(f"[P3] tile {request.tile_id}: {note}")
    return tile


def _match_to_anchor(request: TileRequest, tile: Tile) -> tuple[Tile, Correction | None]:
    """Centre-out normalisation, where the run asks for it."""
    if request.center_out is None or request.context is None:
        return tile, None
    request.check_abort()
    image, found = match_tile(
        tile.image, tile.wcs, request.tile_id, request.context, request.center_out, pulse=request.pulse
    )
    if found.is_applied:
        request.tell(
            "center_out_applied", "INFO_DETAIL", gain=f"{found.gain:.6f}", offset=f"{found.offset:.6f}",
            mode=found.mode, samples=found.samples,
        )  # fmt: skip
    else:
        request.tell("center_out_skipped", "DEBUG_DETAIL", reason=found.mode)
    return replace(tile, image=image), found


@dataclass
class _Finished:
    """What is saved of a tile: cropped, masked and judged."""

    image: np.ndarray
    alpha: np.ndarray
    wcs: WCS | None
    header: Header
    accepted: bool


def _finish(request: TileRequest, group: Group, tile: Tile, correction: Correction | None) -> _Finished:
    coverage = tile.maps.get("COVERAGE")
    if coverage is None:
        coverage = np.isfinite(tile.image).astype(np.int32)
    image, mask, box = apply_crop_pipeline(tile.image, request.crop, coverage=coverage)
    wcs = tile.wcs
    if box is not None:
        y0, x0, y1, x1 = box
        wcs = shift_wcs(wcs, y0, x0, (y1 - y0, x1 - x0))
        coverage = coverage[y0:y1, x0:x1]
        request.say(f"MT_CROP: quality-based rect=({y0}, {x0}, {y1}, {x1})", "INFO_DETAIL")
    elif request.crop.quality_crop:
        request.say("MT_CROP: quality crop skipped (the whole tile is kept)", "INFO_DETAIL")
    alpha = alpha_from_coverage(coverage, mask)
    metrics = _judge(request, image, alpha)
    header = complete_header(request, group, tile, wcs, box, metrics)
    header.extend(center_out_cards(request, correction), update=True)
    return _Finished(image, alpha, wcs, header, accepted=bool(metrics.get("accepted", True)))


def _judge(request: TileRequest, image: np.ndarray, alpha: np.ndarray) -> Mapping[str, Any]:
    """Metrics of the quality gate; none where it is off."""
    gate = request.gate
    if not gate.enabled:
        return {}
    metrics = evaluate_quality_gate_metrics(
        image, edge_band_px=gate.edge_band_px, k_sigma=gate.k_sigma, erode_px=gate.erode_px,
        threshold=gate.threshold, alpha=alpha,
    )  # fmt: skip
    notify(
        request.progress, "mt_quality_gate_result", None, "INFO",
        tile_id=request.tile_id, path=_file_name(request), score=f"{metrics['score']:.3f}",
        threshold=f"{gate.threshold:.3f}", status="ACCEPT" if metrics["accepted"] else "REJECT",
        reason=metrics["hard_reject_reason"],
    )  # fmt: skip
    return metrics


def _file_name(request: TileRequest) -> str:
    return f"master_tile_{request.tile_id:03d}.fits"


def _save(request: TileRequest, tile: Tile, finished: _Finished) -> tuple[str | None, WCS | None]:
    """Write the tile and return path and WCS; (None, None) for one that the quality gate rejected."""
    folder, is_moved = request.folder, not finished.accepted and request.gate.move_rejects
    if is_moved:
        folder = folder / REJECTS_FOLDER
        folder.mkdir(exist_ok=True)
    path = folder / _file_name(request)
    hdus = tile_hdus(
        finished.image, finished.header, alpha=finished.alpha,
        frames_table=frames_columns(tile.rows), frames_units=FRAMES_UNITS,
    )  # fmt: skip
    request.check_abort()
    write_fits_atomically(hdus, path, overwrite=True)
    with contextlib.suppress(StackCancelled):  # too late for this tile, which is complete
        if is_moved:
            notify(request.progress, "mt_quality_gate_moved", None, "WARN", tile_id=request.tile_id, dst=str(path))
        elif finished.accepted:
            notify(
                request.progress, "mastertile_info_saved", None, "INFO_DETAIL",
                tile_id=request.tile_id, format_type="float32", filename=path.name,
            )  # fmt: skip
    if not finished.accepted:
        return None, None
    from zemosaic_phase3.compat.own_wcs import owned

    return str(path), owned(finished.wcs)
