"""From descriptors to a finished tile: open, scan, register, stack, finish. Shared by the command line and ZeMosaic.

Every frame is read twice: once whole, to find its stars and measure its levels, and by rows when the stack needs them.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from parallel_utils import give_back_freed_memory, peak_rss_bytes, plan_slabs
from zemosaic_fill import frame_block
from zemosaic_group import FrameRow, Group, Scan, open_group, register_group, scan_group
from zemosaic_headers import FITS_CARD, card_value
from zemosaic_select import apply_limits, drop_worst, rate_frames
from zemosaic_spec import (
    FrameError,
    OutputError,
    RegisterSpec,
    Registration,
    SelectSpec,
    StackSpec,
    TileReport,
    __version__,
    params_from_stack_spec,
)
from zemosaic_stack import Callback
from zemosaic_tile import alpha_from_coverage, measure_noise, noise_rows, typical_noise
from zemosaic_utils import (
    COMPRESSED_SUFFIXES,
    Frame,
    FrameSource,
    open_source,
    real_paths,
    tile_hdus,
    write_fits_atomically,
)

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")

Stacker = Callable[[list[Frame], dict[str, Any]], tuple[np.ndarray, dict[str, Any], bool]]
"""Stacks registered frames with parameters of existing runs: image, metadata, whether on the GPU."""

# --------------------------------------------------------------------------- the tile


@dataclass
class Tile:
    """A finished tile, ready to be written.

    ``image`` float32, ADU, ``(H, W)`` or ``(H, W, 3)``, on the grid of the reference frame; ``alpha (H, W)`` uint8, 0
    or 255; ``maps`` by extension name; ``wcs`` celestial, a copy of the reference's with the pixel shape set, or None.
    """

    image: np.ndarray
    alpha: np.ndarray
    maps: dict[str, np.ndarray]
    header: Header
    wcs: WCS | None
    report: TileReport
    rows: list[FrameRow]
    metadata: dict[str, Any]


@contextmanager
def timed(report: TileReport, stage: str) -> Iterator[None]:
    """Add the wall time of a stage to the report, seconds."""
    start = time.perf_counter()
    try:
        yield
    finally:
        report.seconds[stage] = report.seconds.get(stage, 0.0) + time.perf_counter() - start


def build_tile(
    descriptors: Sequence[Any],
    stacker: Stacker,
    *,
    stack: StackSpec | None = None,
    register: RegisterSpec | None = None,
    select: SelectSpec | None = None,
    bayer: str = "auto",
    reference: str | None = None,
    workers: int = 1,
    allowed_bytes: int | None = None,
    progress: Callback | None = None,
) -> Tile:
    """Open, scan, register, stack and finish: the whole way from descriptors to a tile in memory.

    Parameters
    ----------
    descriptors : sequence
        See :func:`zemosaic_utils.open_source`.
    stacker : callable
        The engine with its policy, normally ``zemosaic_worker._stack_master_tile_auto``.
    stack, register, select : StackSpec, RegisterSpec, SelectSpec
    bayer : str
        "auto", "none" or a pattern.
    reference : str or None
        Path or name of the reference frame; None chooses one.
    workers : int
        Threads.
    allowed_bytes : int or None
        Memory the frames and the stack may take; None: half of what is available.
    progress : callable or None
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    NoFramesError
        Nothing is left to stack; the message says why.
    PlanError
        Not one row of the stack fits into the memory; before a frame is read.
    """
    stack, register, select = stack or StackSpec(), register or RegisterSpec(), select or SelectSpec()
    spec = {**asdict(stack), "register": asdict(register), "select": asdict(select)}
    report = TileReport(n_input=len(descriptors), spec=spec)
    with timed(report, "open"):
        group = open_group(descriptors, partial(open_source, bayer=bayer), reference=reference)
        group.require_some("opened")
        if allowed_bytes is not None:
            _check_memory(group, stack, register, workers, allowed_bytes)
    with timed(report, "measure"):
        find_stars = stack.needs_stars or select.needs_stars or register.mode in ("auto", "stars")
        scan_group(
            group, register, find_stars=find_stars, measure=stack.needs_levels, workers=workers,
            allowed_bytes=allowed_bytes, progress=progress,
        )  # fmt: skip
        group.require_some("read")
        apply_limits(group, select)
        group.require_some("kept")
    with timed(report, "register"):
        register_group(group, register, workers=workers, progress=progress)
        rate_frames(group)
        drop_worst(group, select)
    return stack_group(group, stacker, stack, report, workers=workers)


def _check_memory(group: Group, stack: StackSpec, register: RegisterSpec, workers: int, allowed_bytes: int) -> None:
    """Raise PlanError where the stack could not run for lack of memory, from the headers alone.

    How far frames are turned is not known yet, so that frames to be registered count with source blocks of their whole
    height, which is as much as any rotation can take.
    """
    some = group.source(group.usable[0])
    plan_slabs(
        some.height, allowed_bytes=allowed_bytes, n_frames=len(group.usable), width=some.width,
        channels=some.channels, workers=workers, weights_per_pixel=int(stack.radial_weight),
        source_margin=0 if register.mode == "none" else some.height,
        raw_bytes=some.dtype.itemsize * (1 if some.cfa else some.channels),
    )  # fmt: skip


def stack_group(group: Group, stacker: Stacker, stack: StackSpec, report: TileReport, *, workers: int = 1) -> Tile:
    """Stack the registered frames of a group and finish the tile, on the grid of the reference.

    What is wanted of the reference's file is read before the stack, so that a reference that vanishes meanwhile is one
    frame lost and not the tile. What it tells is found out beside the stack, which for the most part is done by threads
    that leave the interpreter alone.
    """
    give_back_freed_memory()  # of measuring and registering, before the slabs take theirs
    usable = group.usable
    reference = group.source(group.reference)
    frames = [Frame(group.source(i), _registration(group, i).transform, group.scan(i).stats) for i in usable]
    params = {**params_from_stack_spec(stack), "reference_index": usable.index(group.reference)}
    with ThreadPoolExecutor(1, thread_name_prefix="zemosaic") as beside:
        with timed(report, "finish"):
            about_reference = beside.submit(_describe_reference, *_read_reference(reference))
        with timed(report, "stack"):
            image, metadata, used_gpu = stacker(frames, params)
    with timed(report, "finish"):
        header, wcs, report.noise_before = about_reference.result()
        _take_metadata(group, metadata)
        _fill_report(report, group, metadata, image, used_gpu, workers)
        coverage = metadata.get("coverage")
        if coverage is None:  # an engine without maps: what is finite is covered
            coverage = np.isfinite(image).astype(np.int32)
        tile = Tile(
            image=image,
            alpha=alpha_from_coverage(coverage),
            maps=_maps(metadata),
            header=tile_header(header, wcs, group, stack, report, metadata),
            wcs=wcs,
            report=report,
            rows=group.rows,
            metadata=metadata,
        )
    report.peak_rss_bytes = peak_rss_bytes()
    return tile


def _registration(group: Group, i: int) -> Registration:
    found = group.rows[i].registration
    if found is None:
        raise FrameError(group.rows[i].name, "was not registered")
    return found


def _read_reference(reference: FrameSource) -> tuple[FrameSource, Callable[[], Header], list[np.ndarray]]:
    """Read what is told of the reference: its header, and the bands of it that its noise is measured on, demosaiced."""

    def band(rows: slice) -> np.ndarray:
        shape = (rows.stop - rows.start, *reference.shape[1:])
        return frame_block(reference, rows.start, rows.stop)[: math.prod(shape)].reshape(shape)

    rows = noise_rows(reference.height, reference.width)
    return reference, reference.deferred_header(), [band(some) for some in rows]


def _describe_reference(
    reference: FrameSource, header: Callable[[], Header], bands: list[np.ndarray]
) -> tuple[Header, WCS | None, list[float]]:
    """Return header, WCS and noise of the reference; its WCS as a copy, so that the caller's own stays as it is."""
    cards = header()
    wcs = reference.wcs(cards)
    if wcs is not None:
        wcs = wcs.deepcopy()
        wcs.pixel_shape = (reference.width, reference.height)
    return cards, wcs, typical_noise(bands)


def _maps(metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = {"COVERAGE": "coverage", "WEIGHT": "weight_map", "REJ_LOW": "rejected_low", "REJ_HIGH": "rejected_high"}
    return {name: metadata[key] for name, key in names.items() if metadata.get(key) is not None}


def _take_metadata(group: Group, metadata: Mapping[str, Any]) -> None:
    """Write into the rows what the stack found out about each frame; names are distinct, see :func:`open_group`."""
    by_name = {group.rows[i].name: group.rows[i] for i in group.usable}
    for name, reason in metadata.get("frames_dropped") or []:
        by_name[name].drop(reason)
    table = metadata.get("frame_table")
    if table is None:
        return
    for k, name in enumerate(table.names):
        row = by_name[name]
        row.scale, row.offset, row.weight = table.scale[k].tolist(), table.offset[k].tolist(), table.weight[k].tolist()
        row.rejected_percent = float(metadata["frame_rejected_percent"][k])


def _fill_report(
    report: TileReport, group: Group, metadata: Mapping[str, Any], image: np.ndarray, used_gpu: bool, workers: int
) -> None:
    report.n_used = len(group.usable)
    report.dropped = group.dropped()
    report.reference = group.rows[group.reference].name
    report.device = "gpu" if used_gpu else "cpu"
    report.gpu_attempts = int(metadata.get("phase3_gpu_attempts") or 0)
    report.device_reason = str(metadata.get("phase3_device_reason") or "")
    report.noise_after = measure_noise(image, workers)
    report.rejected_low_percent = list(metadata.get("rejected_low_percent") or [])
    report.rejected_high_percent = list(metadata.get("rejected_high_percent") or [])
    report.all_rejected_pixels = int(metadata.get("all_rejected_pixels") or 0)
    report.rows_per_slab = int(metadata.get("rows_per_slab") or 0)
    report.warnings = list(metadata.get("warnings") or [])


# --------------------------------------------------------------------------- header

KEPT_CARDS = (
    "OBJECT", "DATE-AVG", "FILTER", "INSTRUME", "TELESCOP", "FOCALLEN", "XPIXSZ", "YPIXSZ", "GAIN", "OFFSET",
    "CCD-TEMP", "OBSERVER", "SITELAT", "SITELONG", "RA", "DEC", "EQUINOX", "ROWORDER",
)  # fmt: skip


def tile_header(
    reference: Header,
    wcs: WCS | None,
    group: Group,
    stack: StackSpec,
    report: TileReport,
    metadata: Mapping[str, Any],
) -> Header:
    """Return the tile's header: WCS and observation of the reference, exposures of the frames stacked, what was done.

    Times are those of the frames that were stacked: EXPTIME one exposure (median), EXPTOTAL and LIVETIME their sum,
    seconds; DATE-OBS the first start, DATE-END the last end, UTC.
    """
    from astropy.io.fits import Header

    header = Header()
    for key in KEPT_CARDS:
        value = card_value(reference, key)
        if value is not None:
            header[key] = (value, _short_comment(value, reference.comments[key]))
    if wcs is not None:
        header.extend(wcs_cards(wcs), update=True)
    _exposure_cards(header, [group.scan(i) for i in group.usable])
    n = report.n_used
    for key in ("NCOMBINE", "STACKCNT", "NEXP_SUM"):
        header[key] = (n, "frames stacked")
    header["BUNIT"] = ("adu", "level of the reference frame")
    header.extend(_method_cards(stack, metadata))
    header["ZMT_REF"] = (_short(report.reference), "reference frame")
    header["ZMT_DEV"] = (report.device, "device that stacked")
    header["ALPHAEXT"] = (1, "alpha mask in extension ALPHA")
    for name, noise in zip("RGB" if len(report.noise_after) == 3 else "L", report.noise_after, strict=True):
        header[f"ZMT_NOI{name}"] = (_card_number(noise), "sky noise, adu")
    header.add_history(f"zemosaic-phase3 {__version__}: {n} of {report.n_input} frames, device {report.device}")
    return header


def _method_cards(stack: StackSpec, metadata: Mapping[str, Any]) -> Header:
    """Say what was applied, which may be less than what was asked for: only a mean is weighted."""
    from astropy.io.fits import Header

    cards = Header()
    cards["ZMT_NORM"] = (metadata.get("normalize_method", stack.normalize), "normalisation")
    cards["ZMT_WGHT"] = (metadata.get("weight_method", stack.weight), "frame weights")
    cards["ZMT_FLAT"] = (stack.flatten, "backgrounds made alike")
    is_radial = stack.radial_weight and stack.combine == "mean"
    cards["ZMT_RADW"] = (is_radial, "radial weighting")
    if is_radial:
        cards["ZMT_RADF"] = (stack.radial_feather, "radial feather, half diagonals")
        cards["ZMT_RADP"] = (stack.radial_power, "radial shape power")
    cards["ZMT_REJ"] = (stack.reject, "rejection")
    if stack.reject == "winsorized_sigma_clip":
        cards["ZMT_WSC"] = (stack.wsc_impl, "winsorizing")
    if stack.is_legacy_winsor:
        cards["HIERARCH ZMT_WINLO"] = (stack.winsor_limits[0], "winsorizing limit, fraction")
        cards["HIERARCH ZMT_WINHI"] = (stack.winsor_limits[1], "winsorizing limit, fraction")
    if stack.reject != "none":
        cards["HIERARCH ZMT_KAPLO"] = (stack.kappas[0], "rejection limit, sigma")
        cards["HIERARCH ZMT_KAPHI"] = (stack.kappas[1], "rejection limit, sigma")
    cards["ZMT_COMB"] = (stack.combine, "combination")
    cards["ZMT_INTP"] = (stack.interpolation, "interpolation")
    return cards


def wcs_cards(wcs: WCS) -> Header:
    """Return the cards of a WCS, SIP included, without the times astropy adds: a tile has its own."""
    header = wcs.to_header(relax=True)
    for key in ("MJDREF", "MJD-OBS", "MJD-AVG", "MJD-BEG", "MJD-END", "DATE-OBS", "DATE-AVG", "DATE-BEG", "DATE-END"):
        header.remove(key, ignore_missing=True)
    return header


def _short(name: str) -> str:
    """Name of a file as a FITS card can hold it: other characters than printable ASCII become question marks."""
    return "".join(c if " " <= c <= "~" else "?" for c in Path(name).name)[:60]


def _short_comment(value: object, comment: str) -> str:
    """Cut a comment to what fits beside the value; astropy cuts it too, with a warning."""
    text = str(value).replace("'", "''")
    room = FITS_CARD - len("KEYWORD = ''") - max(len(text), 18) - len(" / ")
    return comment[: max(room, 0)]


def _card_number(value: float) -> float | str:
    """FITS cards hold no NaN; an unknown number is written as such."""
    return float(f"{value:.7g}") if np.isfinite(value) else "unknown"


def _exposure_cards(header: Header, scans: Sequence[Scan]) -> None:
    known = [scan.exposure for scan in scans if math.isfinite(scan.exposure)]
    if known:
        header["EXPTIME"] = (float(np.median(known)), "one exposure, s")
        header["EXPTOTAL"] = (math.fsum(known), "all exposures stacked, s")
        header["LIVETIME"] = (math.fsum(known), "all exposures stacked, s")
    starts = [scan.start for scan in scans if scan.start is not None]
    ends = [end for scan in scans if (end := _end(scan)) is not None]
    if starts:
        header["DATE-OBS"] = (_iso(min(starts)), "start of the first exposure")
    if ends:
        header["DATE-END"] = (_iso(max(ends)), "end of the last exposure")


def _end(scan: Scan) -> datetime | None:
    if scan.start is None or not math.isfinite(scan.exposure):
        return None
    try:
        return scan.start + timedelta(seconds=scan.exposure)
    except OverflowError:  # beyond the year 9999
        return None


def _iso(moment: datetime) -> str:
    """ISO 8601, with a fraction where there is one."""
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")


FRAMES_UNITS: Final = {
    "RMS_PX": "pixel",
    "FWHM": "pixel",
    "OFFSET": "adu",
    "SKY": "adu",
    "NOISE": "adu",
    "REJECTED": "%",
}


def frames_columns(rows: Sequence[FrameRow]) -> dict[str, Any]:
    """Return the FRAMES table by column: one row per input."""
    channels = max((len(row.scale) for row in rows), default=1) or 1

    def per_channel(name: str) -> np.ndarray:
        return np.array([getattr(row, name) or [np.nan] * channels for row in rows], np.float64)

    stats = [row.scan.stats if row.scan is not None else None for row in rows]

    def of_stars(name: str) -> np.ndarray:
        return np.array([math.nan if found is None else getattr(found, name) for found in stats], np.float64)

    def measured(name: str) -> np.ndarray:
        unknown = np.full(channels, np.nan)
        levels = [unknown if found is None else getattr(found, name) for found in stats]
        return np.array([found if found.size == channels else unknown for found in levels], np.float64)

    registrations = [row.registration or Registration(ok=False) for row in rows]
    nowhere = np.full((3, 3), np.nan)
    return {
        "NAME": [row.name for row in rows],
        "USED": np.array([row.used for row in rows]),
        "REASON": [row.reason for row in rows],
        "METHOD": [r.method for r in registrations],
        "MODEL": [r.model for r in registrations],
        "TRANSFORM": np.stack([(r.transform if r.ok else nowhere).ravel() for r in registrations]),
        "MATCHED": np.array([r.matched for r in registrations], np.int32),
        "RMS_PX": np.array([r.rms_px for r in registrations], np.float64),
        "SCALE": per_channel("scale"),
        "OFFSET": per_channel("offset"),
        "WEIGHT": per_channel("weight"),
        "FWHM": of_stars("fwhm"),
        "ECCENTR": of_stars("eccentricity"),
        "STARS": np.array([0 if row.scan is None else row.scan.n_stars for row in rows], np.int32),
        "SKY": measured("median"),
        "NOISE": np.sqrt(measured("variance")),
        "TRANSPAR": np.array([row.transparency for row in rows], np.float64),
        "REJECTED": np.array([row.rejected_percent for row in rows], np.float64),
    }


# --------------------------------------------------------------------------- writing


def check_output(output: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse before the work starts what could not be written at its end.

    Raises
    ------
    OutputError
        The file exists and ``overwrite`` is False, it is a folder, its folder does not exist or may not be written,
        or its name asks for compression.
    """
    path = Path(output)
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise OutputError(f"{path}: tiles are written uncompressed; choose a name that ends in .fits")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: folder {path.parent} may not be written; choose another one")
    if (path.exists() or path.is_symlink()) and not overwrite:  # a link to nothing would be replaced all the same
        raise OutputError(f"{path}: exists already; choose another name, or allow --overwrite")


def without_output(paths: Sequence[Path], inputs: Iterable[str | Path], output: str | os.PathLike[str]) -> list[Path]:
    """Return the frames to stack: an earlier tile in the place of the output is none of them.

    Parameters
    ----------
    paths : sequence of Path
        The files that ``inputs`` stand for.
    inputs : iterable of path
        Files, folders and patterns as they were given.
    output : path
        The file that will be written.

    Raises
    ------
    OutputError
        The output is an input: named as one, or a file of a folder or a pattern that is no tile of ours.
    """
    target = Path(output).resolve()
    kept = [path for path, real in zip(paths, real_paths(paths), strict=True) if real != target]
    is_named = target in real_paths(map(Path, inputs))
    if is_named or (len(kept) < len(paths) and not is_own_tile(target)):
        raise OutputError(f"{output}: is itself an input, and inputs are never overwritten; choose another name")
    return kept


def without_tiles(paths: Sequence[Path], inputs: Iterable[str | Path]) -> list[Path]:
    """Leave out tiles of ours that merely lie in a folder or match a pattern; one that is named is a frame like any.

    A finished stack among its own subs would be taken for the best of them.
    """
    named = set(real_paths(map(Path, inputs)))
    kept = [
        path
        for path, real in zip(paths, real_paths(paths), strict=True)
        if real in named or not (_mentions_tile(path) and is_own_tile(path))
    ]
    for path in sorted(set(paths) - set(kept)):
        logger.warning("left out: %s: it is a finished stack, not a frame; name it to stack it all the same", path)
    return kept


def _mentions_tile(path: Path) -> bool:
    """Look for our card in the first header, without parsing it: folders can hold ten thousand files."""
    try:
        with path.open("rb") as stream:
            return b"ZMT_REF" in stream.read(1 << 16)
    except OSError:  # opening it as a frame will say what is wrong
        return False


def is_own_tile(path: Path) -> bool:
    """Tell by its header whether a file is a tile that this library wrote, see :func:`tile_header`."""
    try:
        header = open_source(path).read_header()
    except FrameError as exc:
        logger.debug("no tile of ours: %s", exc)
        return False
    return "ZMT_REF" in header and "ALPHAEXT" in header


def write_tile(tile: Tile, output: str | os.PathLike[str], *, maps: bool = False, overwrite: bool = False) -> Path:
    """Write a tile as FITS, atomically; with ``maps`` also COVERAGE, WEIGHT, REJ_LOW, REJ_HIGH and the FRAMES table.

    Raises
    ------
    OutputError
        The file exists and ``overwrite`` is False, or it cannot be written.
    """
    hdus = tile_hdus(
        tile.image,
        tile.header,
        alpha=tile.alpha,
        maps=tile.maps if maps else None,
        frames_table=frames_columns(tile.rows) if maps else None,
        frames_units=FRAMES_UNITS if maps else None,
    )
    write_fits_atomically(hdus, output, overwrite=overwrite)
    return Path(output)
