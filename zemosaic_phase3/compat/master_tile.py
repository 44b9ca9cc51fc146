"""``create_master_tile`` as ZeMosaic calls it: group entries in, ``master_tile_%03d.fits`` and retry groups out.

The pipeline does the work; this room translates: entries to descriptors, stages to progress keys, failures to the
return values those runs expect. Whatever happens to one tile, the caller gets a return value and the run goes on.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.compat.center_out import CenterOutSpec, Context, Correction, center_out_spec, match_tile
from zemosaic_phase3.compat.parallel_plan import plan_hint
from zemosaic_phase3.compat.parameters import wsc_impl_choice
from zemosaic_phase3.errors import FrameError, NoFramesError, StackCancelled, ZeMosaicError
from zemosaic_phase3.finish.alpha import alpha_from_coverage
from zemosaic_phase3.finish.crop import apply_crop_pipeline, shift_wcs
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.open_frame import npy_header, open_source
from zemosaic_phase3.io.tile_file import tile_hdus
from zemosaic_phase3.pipeline.group import FrameRow, Group, open_group, register_group, scan_group
from zemosaic_phase3.pipeline.outputs import FRAMES_UNITS, frames_columns
from zemosaic_phase3.pipeline.tile import Stacker, Tile, stack_group
from zemosaic_phase3.pipeline.tile_header import wcs_cards
from zemosaic_phase3.progress import Callback, notify, timed
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.runtime.limits import available_memory, usable_cpus
from zemosaic_phase3.settings import as_bool, positive, setting
from zemosaic_phase3.spec import CropSpec, GateSpec, RegisterSpec, StackSpec

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")


Entry = Mapping[str, Any]
RetryGroups = list[list[dict[str, Any]]]
TileResult = tuple[tuple[str | None, "WCS | None"], RetryGroups]
Box = tuple[int, int, int, int]

EXTREME_GROUP_FRAMES: Final = 1000  # from here on the run is told that the group is extreme
SLOT_POLL_S: Final = 0.5  # a tile that waits for its turn looks this often whether the run was stopped
REJECTS_FOLDER: Final = "rejected_by_quality"
# What may go wrong with one tile and must not end the run; anything else is a fault of this program.
_FAILURES: Final = (ZeMosaicError, MemoryError, OSError, ValueError)


@dataclass
class TileRequest:
    """One call of ``create_master_tile``, checked and named."""

    entries: Sequence[Entry]
    tile_id: int
    folder: Path
    stack: StackSpec
    crop: CropSpec = field(default_factory=CropSpec)
    gate: GateSpec = field(default_factory=GateSpec)
    workers: int = 0  # 0: as many as this process may use
    progress: Callback | None = None
    abort: Any = None  # an event with is_set()
    heartbeat: Callback | None = None
    extreme_group_frames: int = EXTREME_GROUP_FRAMES
    strategy: object = None  # hints of the run, a mapping or an object with attributes
    center_out: CenterOutSpec | None = None
    context: Context | None = None  # of the centre-out normalisation
    slots: Any = None  # a semaphore: how many tiles are read, aligned and stacked at a time

    def __post_init__(self) -> None:
        """Accept heartbeats of either form."""
        self.heartbeat = _beat_without_tile(self.heartbeat)

    def tell(self, key: str, level: str = "INFO", **details: Any) -> None:
        """Send one progress key of this tile, and beat; a request to stop is answered here."""
        self.check_abort()
        notify(self.heartbeat, self.tile_id)
        notify(self.progress, f"mastertile_{key}", None, level, tile_id=self.tile_id, **details)

    def fail(self, key: str, exc: BaseException) -> None:
        """Log and tell why the tile is lost; a request to stop is no failure and goes on its way."""
        if isinstance(exc, StackCancelled):
            raise exc
        logger.error("tile %d: %s: %s", self.tile_id, key, exc, exc_info=exc)
        self.tell(key, "ERROR", error=str(exc) or type(exc).__name__)

    def check_abort(self) -> None:
        """Raise when the run was asked to stop.

        Raises
        ------
        StackCancelled
            The abort event is set.
        """
        if self.abort is not None and self.abort.is_set():
            raise StackCancelled(f"tile {self.tile_id}: stopped on request")

    def step(self, stage: str, done: int, total: int) -> None:
        """Pass on a step of a stage, and beat. Called from several threads."""
        self.check_abort()
        notify(self.heartbeat, self.tile_id)
        notify(self.progress, stage, done, total)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the run's slots; given back whatever happens. Waiting for one ends when the run is stopped."""
        slots = self.slots
        if slots is None:
            yield
            return
        while not slots.acquire(timeout=SLOT_POLL_S):
            self.check_abort()
        try:
            yield
        finally:
            slots.release()


def request_of(call: SimpleNamespace, slots: Any) -> TileRequest:
    """Check a call of ``create_master_tile`` and name what it asks for.

    Parameters
    ----------
    call : SimpleNamespace
        The arguments by name.
    slots : semaphore or None
        See :class:`TileRequest`.

    Raises
    ------
    SpecError
        A method name or a limit is not allowed.
    """
    stack = StackSpec(
        normalize=call.stack_norm_method,
        weight=call.stack_weight_method,
        reject=call.stack_reject_algo,
        wsc_impl=wsc_impl_choice(call.zconfig),  # type: ignore[arg-type]
        kappa_low=call.stack_kappa_low,
        kappa_high=call.stack_kappa_high,
        winsor_limits=call.parsed_winsor_limits,
        combine=call.stack_final_combine or "mean",
        equalize_rgb=as_bool(call.poststack_equalize_rgb, True),
        radial_weight=as_bool(call.apply_radial_weight, False),
        radial_feather=call.radial_feather_fraction,
        radial_power=call.radial_shape_power,
        radial_floor=call.min_radial_weight_floor,
    )
    crop = CropSpec(
        quality_crop=as_bool(call.quality_crop_enabled, False),
        band_px=call.quality_crop_band_px,
        k_sigma=call.quality_crop_k_sigma,
        margin_px=call.quality_crop_margin_px,
        min_run=call.quality_crop_min_run,
        altaz_cleanup=as_bool(call.altaz_cleanup_enabled, False),
        altaz_margin_percent=call.altaz_margin_percent,
        altaz_decay=call.altaz_decay,
        altaz_nanize=as_bool(call.altaz_nanize, True),
    )
    gate = GateSpec(
        enabled=as_bool(call.quality_gate_enabled, False),
        threshold=call.quality_gate_threshold,
        edge_band_px=call.quality_gate_edge_band_px,
        k_sigma=call.quality_gate_k_sigma,
        erode_px=call.quality_gate_erode_px,
        move_rejects=as_bool(call.quality_gate_move_rejects, True),
    )
    thresholds = [
        positive(setting(source, "extreme_group_threshold")) for source in (call.resource_strategy, call.zconfig)
    ]
    return TileRequest(
        entries=list(call.seestar_stack_group_info or []),
        tile_id=int(call.tile_id),
        folder=Path(call.output_temp_dir),
        stack=stack,
        crop=crop,
        gate=gate,
        workers=plan_hint(call.parallel_plan, "cpu_workers") or 0,
        progress=call.progress_callback,
        abort=call.abort_event,
        heartbeat=call.heartbeat_callback,
        extreme_group_frames=thresholds[0] or thresholds[1] or EXTREME_GROUP_FRAMES,
        strategy=call.resource_strategy,
        center_out=center_out_spec(call.center_out_settings),
        context=call.center_out_context,
        slots=slots,
    )


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


def _beat_without_tile(heartbeat: Callback | None) -> Callback | None:
    """Let a heartbeat that takes no argument be called with the number of the tile."""
    if heartbeat is None:
        return None
    try:
        inspect.signature(heartbeat).bind(0)
    except TypeError:
        return lambda _tile_id: heartbeat()
    except ValueError:  # built in, without a signature to look at
        return heartbeat
    return heartbeat


def make_master_tile(request: TileRequest, stacker: Stacker) -> TileResult:
    """Make one tile; every failure of the tile becomes a progress key and ``((None, None), retry_groups)``."""
    result: TileResult = (None, None), []
    try:
        result = _make(request, stacker)
    except StackCancelled as exc:
        logger.warning("tile %d stopped: %s", request.tile_id, exc)
    finally:
        if result[0][0] is None:
            _release_waiting_tiles(request)
    return result


def _release_waiting_tiles(request: TileRequest) -> None:
    """Let no tile wait for an anchor that will not come."""
    context = request.context
    if request.center_out is not None and context is not None and context.anchor_original_id == request.tile_id:
        context.register_tile(request.tile_id, None, None, None, 1.0, 0.0, "failed")


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
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        key = "error_loading_cache"
        with request.slot(), working:
            group = _load(request, report)
            if not _has_reference(request, group):
                return lost
            lost = (None, None), _align(request, group, report)
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
    except _FAILURES as exc:
        request.fail(key, exc)
    return lost


def _load(request: TileRequest, report: TileReport) -> Group:
    """Open and measure the caches; row i of the group is entry i, and what cannot be used is told and left out."""
    request.tell("info_loading_from_cache_started", "DEBUG_DETAIL", num_images=len(request.entries))
    with timed(report, "open"):
        group = open_group(request.entries, _open_cache)
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


def _open_cache(entry: Entry) -> FrameSource:
    """Open the cache of a group entry, under the name of its raw file.

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
    shape, dtype = _stored_array(path, name)
    if len(shape) != 3 or shape[2] != 3 or (dtype.kind, dtype.itemsize) != ("f", 4):
        raise FrameError(name, f"its cache holds {dtype} {shape}, not float32 (H, W, 3); run the preprocessing again")
    header = entry.get("header")
    descriptor = {"path": path, "name": name, "header": header if hasattr(header, "keys") else None}
    return open_source({**descriptor, "wcs": _celestial(entry.get("wcs"))}, bayer="none")


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


def _align(request: TileRequest, group: Group, report: TileReport) -> RetryGroups:
    """Register on the reference; returns the retry groups: at most one, of the entries that failed to register."""
    request.tell("info_intra_tile_alignment_started", "DEBUG_DETAIL", num_to_align=len(group.usable))
    before = group.usable
    with timed(report, "register"):
        register_group(group, RegisterSpec(), workers=_workers(request), progress=request.step)
    failed = [i for i in before if not group.rows[i].used]
    request.tell(
        "info_intra_tile_alignment_finished", "DEBUG_DETAIL", num_aligned=len(group.usable), num_failed=len(failed)
    )
    return [[_retry(request.entries[i], request.tile_id) for i in failed]] if failed else []


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
    tile = stack_group(group, stacker, request.stack, report, workers=_workers(request))
    request.tell("info_stacking_finished", "DEBUG_DETAIL", shape=str(tile.image.shape))
    done = tile.equalization
    if done.applied:
        gains = ", ".join(f"{gain:.6f}" for gain in (done.gain_r, done.gain_g, done.gain_b))
        text = f"[RGB-EQ] gains ({gains}), target {done.target_median:.6g}"
        notify(request.progress, text, None, "INFO_DETAIL")
    return tile


def _match_to_anchor(request: TileRequest, tile: Tile) -> tuple[Tile, Correction | None]:
    """Centre-out normalisation, where the run asks for it."""
    if request.center_out is None or request.context is None:
        return tile, None
    request.check_abort()
    image, found = match_tile(tile.image, tile.wcs, request.tile_id, request.context, request.center_out)
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
        notify(request.progress, f"MT_CROP: quality-based rect=({y0}, {x0}, {y1}, {x1})", None, "INFO_DETAIL")
    elif request.crop.quality_crop:
        notify(request.progress, "MT_CROP: quality crop skipped (the whole tile is kept)", None, "INFO_DETAIL")
    alpha = alpha_from_coverage(coverage, mask)
    metrics = _judge(request, image, alpha)
    header = _complete_header(request, group, tile, wcs, box, metrics)
    header.extend(_center_out_cards(request, correction), update=True)
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
    return (str(path), finished.wcs) if finished.accepted else (None, None)


def _complete_header(
    request: TileRequest, group: Group, tile: Tile, wcs: WCS | None, box: Box | None, metrics: Mapping[str, Any]
) -> Header:
    """Return the tile's header with the cards that later phases read."""
    header = tile.header.copy()
    if wcs is not None and box is not None:
        header.extend(wcs_cards(wcs), update=True)
    registered = sum(1 for row in group.rows if row.registration is not None and row.registration.ok)
    header["ZMT_TYPE"] = ("Master Tile", "")
    header["ZMT_ID"] = (request.tile_id, "tile")
    header["ZMT_NRAW"] = (len(request.entries), "frames in the group")
    header["HIERARCH ZMT_NALGN"] = (registered, "frames registered")
    header["HIERARCH MT_NFRAMES"] = (tile.report.n_used, "frames stacked")
    _put_finite(header, asdict(tile.equalization), "RGB equalisation", _GAIN_CARDS)
    header.add_history(f"RGB equalisation {'applied' if tile.equalization.applied else 'not applied'}")
    header["ZMT_QCRO"] = (box is not None, "quality crop applied")
    if box is not None:
        header["ZMT_QBOX"] = (",".join(str(v) for v in box), "y0,x0,y1,x1")
    _put_finite(header, metrics, "quality gate, 0 = good", _GATE_CARDS)
    if metrics:
        header["ZMT_QBD"] = (int(not metrics["accepted"]), "1: rejected by the quality gate")
    return header


def _center_out_cards(request: TileRequest, correction: Correction | None) -> Header:
    """Gain and offset to the anchor; the anchor's number also for a tile that could not be matched to it."""
    from astropy.io.fits import Header

    found = correction or Correction(1.0, 0.0, "unmatched")
    anchor = -1 if correction is None or request.context is None else int(request.context.anchor_original_id)
    cards = Header()
    cards["ZMT_P3CO"] = (int(found.is_applied), "1: centre-out normalisation applied")
    cards["HIERARCH ZMT_AGAIN"] = (found.gain, "gain to the anchor")
    cards["ZMT_AOFF"] = (found.offset, "offset to the anchor, adu")
    cards["ZMT_ANCH"] = (anchor, "anchor tile, -1: none")
    return cards


_GAIN_CARDS: Final = {"RGBGAINR": "gain_r", "RGBGAING": "gain_g", "RGBGAINB": "gain_b", "RGBEQMED": "target_median"}
_GATE_CARDS: Final = {"ZMT_QS": "score", "ZMT_NBR": "NBR", "ZMT_EOC": "EOC", "ZMT_TRL": "TRL", "ZMT_CER": "CER"}


def _put_finite(header: Header, values: Mapping[str, Any], comment: str, cards: Mapping[str, str]) -> None:
    """Write the numbers there are; FITS cards hold no NaN."""
    for key, name in cards.items():
        number = float(values.get(name, math.nan))
        if math.isfinite(number):
            header[key] = (number, comment)
