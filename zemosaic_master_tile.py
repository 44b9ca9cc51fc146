"""``create_master_tile`` as existing ZeMosaic runs call it: group entries in, ``master_tile_%03d.fits`` and retry groups out.

The pipeline does the work; this room translates: entries to descriptors, stages to progress keys, failures to the return
values those runs expect. Whatever happens to one tile, the caller gets a return value and the run goes on.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_utils import usable_cpus
from zemosaic_pipeline import (
    Group,
    Stacker,
    Tile,
    frames_columns,
    open_group,
    register_group,
    scan_group,
    stack_group,
    timed,
    wcs_cards,
)
from zemosaic_spec import (
    CropSpec,
    GateSpec,
    NoFramesError,
    OutputError,
    RegisterSpec,
    StackCancelled,
    StackSpec,
    TileReport,
    ZeMosaicError,
)
from zemosaic_stack import Callback, notify
from zemosaic_tile import alpha_from_coverage, apply_crop_pipeline, evaluate_quality_gate_metrics, shift_wcs
from zemosaic_utils import tile_hdus, write_fits_atomically

if TYPE_CHECKING:
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")

Entry = Mapping[str, Any]
TileResult = tuple[tuple[str | None, "WCS | None"], list[list[dict[str, Any]]]]

EXTREME_GROUP_FRAMES = 1000  # from here on the run is told that the group is extreme
NOTHING: TileResult = ((None, None), [])


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
    wants_center_out: bool = False

    def tell(self, key: str, progress: float | None = None, level: str = "INFO", **details: Any) -> None:
        """Send one progress key of this tile; an abort request is answered here."""
        self.check_abort()
        notify(self.progress, f"mastertile_{key}", progress, level, **details)

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
        """Pass on a step of a stage, and beat."""
        self.check_abort()
        notify(self.heartbeat, stage)
        notify(self.progress, stage, done, total)


def make_master_tile(request: TileRequest, stacker: Stacker) -> TileResult:
    """Make one tile; every failure of the tile becomes a progress key and ``((None, None), retry_groups)``."""
    try:
        return _make(request, stacker)
    except StackCancelled as exc:
        logger.warning("tile %s stopped: %s", request.tile_id, exc)
        return NOTHING


def _make(request: TileRequest, stacker: Stacker) -> TileResult:
    tell, n = request.tell, len(request.entries)
    if n == 0:
        tell("error_no_images_provided", None, "ERROR", tile_id=request.tile_id)
        return NOTHING
    tell("info_creation_started_from_cache", None, "INFO", num_raw=n, tile_id=request.tile_id)
    if n >= request.extreme_group_frames:
        tell("extreme_group", None, "WARN", raw_count=n, threshold=request.extreme_group_frames)
    report = TileReport(n_input=n)
    tell("info_loading_from_cache_started", None, "DEBUG_DETAIL", num_images=n, tile_id=request.tile_id)
    group = _load(request, report)
    if group is None:
        return NOTHING
    tell("info_reference_set", None, "DEBUG_DETAIL", ref_index=group.reference, tile_id=request.tile_id)
    register = RegisterSpec()
    try:
        retry = _align(request, group, register, report)
    except NoFramesError as exc:
        tell("error_no_valid_images_from_cache", None, "ERROR", tile_id=request.tile_id, error=str(exc))
        return NOTHING
    tell("info_stacking_started", None, "DEBUG_DETAIL", num_to_stack=len(group.usable), tile_id=request.tile_id)
    try:
        tile = stack_group(group, stacker, request.stack, report)
    except (ZeMosaicError, MemoryError, ValueError) as exc:
        logger.exception("tile %s: stacking failed", request.tile_id)
        tell("error_stacking_failed", None, "ERROR", tile_id=request.tile_id, error=str(exc))
        return (None, None), retry
    tell("info_stacking_finished", None, "DEBUG_DETAIL", tile_id=request.tile_id, shape=str(tile.image.shape))
    _log_equalisation(request, tile)
    return _finish(request, group, tile), retry


# --------------------------------------------------------------------------- load and align


def _load(request: TileRequest, report: TileReport) -> Group | None:
    """Open the caches; the reference is the first that loads, and must have a celestial WCS."""
    usable, missing = [], 0
    for entry in request.entries:
        cache = entry.get("path_preprocessed_cache")
        if not cache or not Path(cache).is_file():
            missing += 1
            request.tell("warn_cache_file_missing", None, "WARN", filename=_label(entry), tile_id=request.tile_id)
            continue
        usable.append(entry)
    if not usable:
        request.tell("error_no_valid_images_from_cache", None, "ERROR", tile_id=request.tile_id, missing=missing)
        return None
    descriptors = [
        {"path": str(e["path_preprocessed_cache"]), "header": e.get("header"), "wcs": e.get("wcs")} for e in usable
    ]
    try:
        with timed(report, "open"):
            group = open_group(descriptors, bayer="none")
    except NoFramesError as exc:
        request.tell("error_no_valid_images_from_cache", None, "ERROR", tile_id=request.tile_id, error=str(exc))
        return None
    for i in group.usable:
        if group.source(i).channels != 3:
            group.rows[i].drop(f"a cache must be (H, W, 3), this one is {group.source(i).shape}")
    for i, row in enumerate(group.rows):
        if not row.used:
            request.tell(
                "warn_invalid_cached_data", None, "WARN",
                filename=_label(usable[i]), reason=row.reason, tile_id=request.tile_id,
            )  # fmt: skip
    if not group.usable:
        request.tell("error_no_valid_images_from_cache", None, "ERROR", tile_id=request.tile_id)
        return None
    group.reference = group.usable[0]
    if group.source(group.reference).wcs() is None:
        request.tell("error_invalid_ref_wcs_header", None, "ERROR", tile_id=request.tile_id)
        return None
    group.entries = usable
    return group


def _label(entry: Entry) -> str:
    return Path(str(entry.get("path_raw") or entry.get("path_preprocessed_cache") or "?")).name


def _align(request: TileRequest, group: Group, register: RegisterSpec, report: TileReport) -> list[list[dict[str, Any]]]:
    """Measure and register; returns the retry groups: at most one, of the entries that failed to register."""
    workers = request.workers or usable_cpus()
    request.tell("info_intra_tile_alignment_started", None, "DEBUG_DETAIL", tile_id=request.tile_id)
    with timed(report, "measure"):
        scan_group(group, register, find_stars=True, workers=workers, progress=request.step)
    if group.reference not in group.usable:
        group.reference = group.usable[0]
    before = group.usable
    with timed(report, "register"):
        register_group(group, register, workers=workers, progress=request.step)
    failed = [i for i in before if not group.rows[i].used]
    request.tell(
        "info_intra_tile_alignment_finished", None, "DEBUG_DETAIL",
        num_aligned=len(group.usable), num_failed=len(failed), tile_id=request.tile_id,
    )  # fmt: skip
    return [[_retry(group.entries[i], request.tile_id) for i in failed]] if failed else []


def _retry(entry: Entry, tile_id: int) -> dict[str, Any]:
    """Shallow copy of an entry for another attempt in another group."""
    chain = entry.get("retry_origin_chain") or []
    return {
        **entry,
        "retry_attempt": int(entry.get("retry_attempt") or 0) + 1,
        "retry_origin_chain": [*chain, tile_id],
    }


# --------------------------------------------------------------------------- finish and write


def _log_equalisation(request: TileRequest, tile: Tile) -> None:
    info = tile.metadata.get("rgb_equalization") or {}
    if info.get("applied"):
        notify(
            request.progress,
            f"[RGB-EQ] gains ({info['gain_r']:.6f}, {info['gain_g']:.6f}, {info['gain_b']:.6f}), "
            f"target {info['target_median']:.6g}",
            None,
            "INFO_DETAIL",
        )


def _finish(request: TileRequest, group: Group, tile: Tile) -> tuple[str | None, WCS | None]:
    """Crop, mask, judge, write; returns path and WCS, or (None, None)."""
    coverage = tile.maps.get("COVERAGE")
    per_pixel = None if coverage is None else coverage.max(axis=-1) if coverage.ndim == 3 else coverage
    image, mask, box = apply_crop_pipeline(tile.image, request.crop, coverage=per_pixel)
    wcs = tile.wcs
    if box is not None:
        y0, x0, y1, x1 = box
        wcs = None if wcs is None else shift_wcs(wcs, y0, x0, (y1 - y0, x1 - x0))
        coverage = None if coverage is None else coverage[y0:y1, x0:x1]
        notify(request.progress, f"MT_CROP: {y0},{x0},{y1},{x1}", None, "INFO_DETAIL")
    if coverage is None:
        coverage = np.isfinite(image).astype(np.int32)
    alpha = alpha_from_coverage(coverage, mask)
    if request.wants_center_out:
        request.tell("center_out_skipped", None, "INFO_DETAIL", tile_id=request.tile_id, reason="not applied")
    metrics = _judge(request, image, alpha)
    header = _cards(request, group, tile, wcs, box, metrics)
    path = request.folder / f"master_tile_{request.tile_id:03d}.fits"
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        hdus = tile_hdus(image, header, alpha=alpha, frames_table=frames_columns(tile.rows))
        write_fits_atomically(hdus, path, overwrite=True)
    except (OutputError, OSError) as exc:
        logger.error("tile %s not saved: %s", request.tile_id, exc)  # noqa: TRY400 - the message says it all
        request.tell("error_saving", None, "ERROR", tile_id=request.tile_id, error=str(exc))
        return None, None
    if metrics is not None and not metrics["accepted"]:
        _move_reject(request, path)
        return None, None
    request.tell("info_saved", None, "INFO_DETAIL", tile_id=request.tile_id, format_type="float32", filename=path.name)
    return str(path), wcs


def _judge(request: TileRequest, image: np.ndarray, alpha: np.ndarray) -> dict[str, Any] | None:
    gate = request.gate
    if not gate.enabled:
        return None
    metrics = evaluate_quality_gate_metrics(
        image, edge_band_px=gate.edge_band_px, k_sigma=gate.k_sigma, erode_px=gate.erode_px,
        threshold=gate.threshold, alpha=alpha,
    )  # fmt: skip
    notify(
        request.progress, "mt_quality_gate_result", None, "INFO",
        tile_id=request.tile_id, accepted=metrics["accepted"], score=metrics["score"], threshold=gate.threshold,
    )  # fmt: skip
    return metrics


def _move_reject(request: TileRequest, path: Path) -> None:
    if not request.gate.move_rejects:
        return
    target = request.folder / "rejected_by_quality" / path.name
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.move(path, target)
    except OSError as exc:
        logger.warning("tile %s: the rejected file stays at %s: %s", request.tile_id, path, exc)
        return
    notify(request.progress, "mt_quality_gate_moved", None, "INFO", tile_id=request.tile_id, dest=str(target))


def _cards(
    request: TileRequest,
    group: Group,
    tile: Tile,
    wcs: WCS | None,
    box: tuple[int, int, int, int] | None,
    metrics: Mapping[str, Any] | None,
) -> Any:
    """Complete the tile's header with the cards that later phases read."""
    header = tile.header
    if wcs is not None and box is not None:
        header.extend(wcs_cards(wcs), update=True)
    header["ZMT_TYPE"] = ("Master Tile", "")
    header["ZMT_ID"] = (request.tile_id, "tile")
    header["ZMT_NRAW"] = (len(request.entries), "frames in the group")
    header["ZMT_NALGN"] = (len(group.usable), "frames registered and stacked")
    header["HIERARCH MT_NFRAMES"] = (len(group.usable), "frames stacked")
    info = tile.metadata.get("rgb_equalization") or {}
    for key, name in (("RGBGAINR", "gain_r"), ("RGBGAING", "gain_g"), ("RGBGAINB", "gain_b"), ("RGBEQMED", "target_median")):
        value = float(info.get(name, math.nan))
        if math.isfinite(value):
            header[key] = (value, "RGB equalisation")
    header.add_history(f"RGB equalisation {'applied' if info.get('applied') else 'not applied'}")
    header["ZMT_P3CO"] = (False, "centre-out normalisation applied")
    header["ZMT_AGAIN"] = (1.0, "gain to the anchor")
    header["ZMT_AOFF"] = (0.0, "offset to the anchor, adu")
    header["ZMT_ANCH"] = (-1, "anchor tile")
    header["ZMT_QCRO"] = (box is not None, "quality crop applied")
    if box is not None:
        header["ZMT_QBOX"] = (",".join(str(v) for v in box), "y0,x0,y1,x1")
    for key, name in (("ZMT_QS", "score"), ("ZMT_QBD", "NBR"), ("ZMT_EOC", "EOC"), ("ZMT_TRL", "TRL"), ("ZMT_CER", "CER")):
        value = float((metrics or {}).get(name, math.nan))
        if math.isfinite(value):
            header[key] = (value, "quality gate")
    return header

