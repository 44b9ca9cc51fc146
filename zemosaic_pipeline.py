"""From descriptors to a finished tile: open, scan, register, stack, finish. Shared by the command line and ZeMosaic.

Every frame is read twice: once whole, to find its stars and measure its levels, once by rows, when the stack needs them.
What can go wrong with one frame is kept with its name and its reason; the rest goes on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_utils import parallel_map, peak_rss_bytes
from zemosaic_register import StarList, choose_reference, detect_stars, register_stars, register_wcs, wcs_transform
from zemosaic_spec import (
    FrameError,
    FrameStats,
    NoFramesError,
    OutputError,
    RegisterSpec,
    Registration,
    StackSpec,
    TileReport,
    __version__,
    params_from_stack_spec,
)
from zemosaic_stack import Callback, notify
from zemosaic_tile import alpha_from_coverage, measure_noise
from zemosaic_utils import Frame, FrameSource, open_source, tile_hdus, write_fits_atomically
from zemosaic_weights import measure_levels, measuring_view, quanta

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")

Stacker = Callable[[list[Frame], dict[str, Any]], tuple[np.ndarray, dict[str, Any], bool]]
"""Stacks registered frames with parameters of existing runs: image, metadata, whether on the GPU."""

# --------------------------------------------------------------------------- one frame


@dataclass(frozen=True)
class Scan:
    """What one whole reading of a frame tells: levels, stars, and when and how long it was exposed."""

    stats: FrameStats
    stars: StarList
    date_obs: str = ""  # ISO 8601, start of the exposure
    exposure: float = float("nan")  # seconds


@dataclass
class FrameRow:
    """One input and what became of it."""

    name: str
    used: bool = False
    reason: str = ""
    scan: Scan | None = None
    registration: Registration | None = None
    scale: list[float] = field(default_factory=list)
    offset: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    rejected_percent: float = float("nan")

    def drop(self, reason: str) -> None:
        """Leave the frame out, and keep why."""
        self.used, self.reason = False, reason
        logger.warning("left out: %s: %s", self.name, reason)


def scan_frame(source: FrameSource, spec: RegisterSpec, *, find_stars: bool) -> Scan:
    """Read a frame once; measure its levels and find its stars.

    Stars of a Bayer mosaic are found on the mean of the two greens of each 2x2 cell, which is centred on the cell whatever
    the colour of the star; of a colour frame on the mean of its channels.

    Raises
    ------
    FrameError
        The frame cannot be read, has no valid pixel, or is blank.
    """
    view = measuring_view(source)
    stats = measure_levels(view, quantum=quanta(source))
    if not np.isfinite(stats.median).all():
        raise FrameError(source.name, "no valid pixel in at least one channel (all NaN); leave it out")
    low, high = float(np.nanmin(view)), float(np.nanmax(view))
    if low == high:
        raise FrameError(source.name, f"blank frame: every pixel is {low:g}; leave it out")
    header = source.read_header()
    exposure = header.get("EXPTIME", header.get("EXPOSURE"))
    return Scan(
        stats,
        _stars(source, view, spec) if find_stars else detect_stars(np.zeros((8, 8), np.float32), spec),
        str(header.get("DATE-OBS") or ""),
        float(exposure) if isinstance(exposure, (int, float)) else float("nan"),
    )


def _stars(source: FrameSource, view: np.ndarray, spec: RegisterSpec) -> StarList:
    if source.cfa is not None:
        return detect_stars(np.ascontiguousarray(view[:, :, 1]), spec, scale=2.0, offset=0.5)
    grey = view[:, :, 0] if view.shape[2] == 1 else view.mean(axis=2, dtype=np.float32)
    return detect_stars(np.ascontiguousarray(grey), spec)


# --------------------------------------------------------------------------- all frames


@dataclass
class Group:
    """The frames of one tile. ``rows`` has one entry per input, ``sources[i]`` is None where it could not be opened."""

    rows: list[FrameRow]
    sources: list[FrameSource | None]
    reference: int = -1
    entries: Sequence[Any] = ()  # what the caller handed over, one per row

    @property
    def usable(self) -> list[int]:
        """Positions of the inputs that are still in."""
        return [i for i, row in enumerate(self.rows) if row.used]

    def source(self, i: int) -> FrameSource:
        """Return an opened source."""
        found = self.sources[i]
        if found is None:
            raise FrameError(self.rows[i].name, "was not opened")
        return found

    def dropped(self) -> list[tuple[str, str]]:
        """Names and reasons of the inputs left out."""
        return [(row.name, row.reason) for row in self.rows if not row.used]

    def require_some(self, what: str) -> None:
        """Raise when nothing is left.

        Raises
        ------
        NoFramesError
            With the first reasons.
        """
        if not self.usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.dropped()[:3])
            raise NoFramesError(f"none of {len(self.rows)} frames could be {what}: {reasons}")


def open_group(descriptors: Sequence[Any], *, bayer: str = "auto", reference: str | None = None) -> Group:
    """Open every descriptor; those that are not images, or of another size than the rest, are left out with the reason.

    The size is that of ``reference`` where one is named, else the commonest.

    Raises
    ------
    NoFramesError
        Nothing could be opened.
    """
    rows: list[FrameRow] = []
    sources: list[FrameSource | None] = []
    for descriptor in descriptors:
        try:
            source = open_source(descriptor, bayer=bayer)
            rows.append(FrameRow(source.name, used=True))
            sources.append(source)
        except FrameError as exc:
            rows.append(FrameRow(exc.name))
            rows[-1].drop(exc.reason)
            sources.append(None)
    group = Group(rows, sources, entries=descriptors)
    group.require_some("opened")
    if reference is not None:
        group.reference = _named(group, reference)
        shape = group.source(group.reference).shape
    else:
        shape = Counter(group.source(i).shape for i in group.usable).most_common(1)[0][0]
    for i in group.usable:
        if group.source(i).shape != shape:
            rows[i].drop(f"shape {group.source(i).shape} is not the {shape} of the others; stack it on its own")
    return group


def _named(group: Group, reference: str) -> int:
    """Position of the reference that a user named, by path or by file name."""

    wanted = Path(reference)
    for test in (lambda name: Path(name) == wanted, lambda name: Path(name).name == wanted.name):
        for i in group.usable:
            if test(group.rows[i].name):
                return i
    raise NoFramesError(f"the reference {reference} is not among the {len(group.usable)} frames that could be opened")


def scan_group(
    group: Group, spec: RegisterSpec, *, find_stars: bool, workers: int = 1, progress: Callback | None = None
) -> None:
    """Read every frame once, in parallel; fills the rows' scans."""
    todo = group.usable
    done = iter(range(1, len(todo) + 1))

    def scan(i: int) -> Scan | FrameError:
        try:
            return scan_frame(group.source(i), spec, find_stars=find_stars)
        except FrameError as exc:
            return exc
        finally:
            notify(progress, "measure", next(done), len(todo))

    for i, found in zip(todo, parallel_map(scan, todo, workers), strict=True):
        if isinstance(found, FrameError):
            group.rows[i].drop(found.reason)
        else:
            group.rows[i].scan = found
    group.require_some("read")


def register_group(group: Group, spec: RegisterSpec, *, workers: int = 1, progress: Callback | None = None) -> None:
    """Register every frame on the reference, choosing one where none was named; fills the rows' registrations.

    Raises
    ------
    NoFramesError
        The named reference could not be used.
    """
    usable = group.usable
    if group.reference < 0:
        stars = [_scan(group, i).stars for i in usable]
        group.reference = usable[choose_reference(stars, group.source(usable[0]).shape)] if stars else usable[0]
    reference = group.reference
    if reference not in usable:
        raise NoFramesError(f"the reference {group.rows[reference].name} cannot be used: {group.rows[reference].reason}")
    known = None if spec.mode in ("stars", "none") else group.source(reference).wcs()
    done = iter(range(1, len(usable) + 1))

    def register(i: int) -> Registration:
        if i == reference:
            verdict = Registration(ok=True, method="reference", rms_px=0.0)
        elif spec.mode == "none":
            verdict = Registration(ok=True)
        else:
            verdict = _register(group, i, known, spec)
        notify(progress, "register", next(done), len(usable))
        return verdict

    for i, verdict in zip(usable, parallel_map(register, usable, workers), strict=True):
        group.rows[i].registration = verdict
        if not verdict.ok:
            group.rows[i].drop(f"not registered: {verdict.reason}")


def _scan(group: Group, i: int) -> Scan:
    found = group.rows[i].scan
    if found is None:
        raise FrameError(group.rows[i].name, "was not scanned")
    return found


def _register(group: Group, i: int, known: WCS | None, spec: RegisterSpec) -> Registration:
    """One frame: by its stars, seeded by its WCS; by its WCS alone where asked for, or where there are too few stars."""
    shape = group.source(i).shape
    own = None if known is None else group.source(i).wcs()
    if spec.mode == "wcs":
        if known is None or own is None:
            who = "the reference" if known is None else "the frame"
            return Registration(ok=False, method="wcs", reason=f"{who} has no celestial WCS; use --register stars")
        return register_wcs(known, own, shape, spec)
    reference, stars = _scan(group, group.reference).stars, _scan(group, i).stars
    seed = None
    if known is not None and own is not None and register_wcs(known, own, shape, spec).ok:
        seed = wcs_transform(known, own, shape)
    verdict = register_stars(reference, stars, shape, spec, seed)
    too_few = min(len(reference), len(stars)) < spec.min_matched
    if not verdict.ok and too_few and seed is not None and known is not None and own is not None:
        return register_wcs(known, own, shape, spec)
    return verdict


# --------------------------------------------------------------------------- the tile


@dataclass
class Tile:
    """A finished tile, ready to be written.

    ``image`` float32, ADU, ``(H, W)`` or ``(H, W, 3)``; ``alpha (H, W)`` uint8, 0 or 255; ``maps`` by extension name;
    ``reference`` the name of the frame whose grid it is; ``wcs`` celestial or None.
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
    bayer: str = "auto",
    reference: str | None = None,
    workers: int = 1,
    progress: Callback | None = None,
) -> Tile:
    """Open, scan, register, stack and finish: the whole way from descriptors to a tile in memory.

    Parameters
    ----------
    descriptors : sequence
        See :func:`zemosaic_utils.open_source`.
    stacker : callable
        The engine with its policy, normally ``zemosaic_worker._stack_master_tile_auto``.
    stack, register : StackSpec, RegisterSpec
    bayer : str
        "auto", "none" or a pattern.
    reference : str or None
        Path or name of the reference frame; None chooses one.
    workers : int
        Threads.
    progress : callable or None
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    NoFramesError
        Nothing is left to stack; the message says why.
    """
    stack, register = stack or StackSpec(), register or RegisterSpec()
    report = TileReport(n_input=len(descriptors), spec={**asdict(stack), "register": asdict(register)})
    with timed(report, "open"):
        group = open_group(descriptors, bayer=bayer, reference=reference)
    with timed(report, "measure"):
        scan_group(group, register, find_stars=register.mode in ("auto", "stars"), workers=workers, progress=progress)
    with timed(report, "register"):
        register_group(group, register, workers=workers, progress=progress)
    return stack_group(group, stacker, stack, report)


def stack_group(
    group: Group,
    stacker: Stacker,
    stack: StackSpec,
    report: TileReport,
    extra_params: Mapping[str, Any] | None = None,
) -> Tile:
    """Stack the registered frames of a group and finish the tile; the reference is always among them."""
    usable = group.usable
    frames = [
        Frame(group.source(i), _registration(group, i).transform, _scan(group, i).stats) for i in usable
    ]
    params = {**params_from_stack_spec(stack), "reference_index": usable.index(group.reference), **(extra_params or {})}
    with timed(report, "stack"):
        image, metadata, used_gpu = stacker(frames, params)
    with timed(report, "finish"):
        _take_metadata(group, metadata)
        _fill_report(report, group, metadata, image, used_gpu)
        source = group.source(group.reference)
        wcs = source.wcs()
        coverage = metadata.get("coverage")
        if coverage is None:  # an engine without maps: what is finite is covered
            coverage = np.isfinite(image).astype(np.int32)
        tile = Tile(
            image=image,
            alpha=alpha_from_coverage(coverage),
            maps=_maps(metadata),
            header=tile_header(source.read_header(), wcs, group, stack, report),
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


def _maps(metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = {"COVERAGE": "coverage", "WEIGHT": "weight_map", "REJ_LOW": "rejected_low", "REJ_HIGH": "rejected_high"}
    return {name: metadata[key] for name, key in names.items() if metadata.get(key) is not None}


def _take_metadata(group: Group, metadata: Mapping[str, Any]) -> None:
    """Write into the rows what the stack found out about each frame."""
    by_name: dict[str, list[int]] = {}
    for i in group.usable:
        by_name.setdefault(group.rows[i].name, []).append(i)
    for name, reason in metadata.get("frames_dropped") or []:
        group.rows[by_name[name].pop(0)].drop(reason)
    table = metadata.get("frame_table")
    if table is None:
        return
    for k, name in enumerate(table.names):
        row = group.rows[by_name[name].pop(0)]
        row.scale, row.offset, row.weight = table.scale[k].tolist(), table.offset[k].tolist(), table.weight[k].tolist()
        row.rejected_percent = float(metadata["frame_rejected_percent"][k])


def _fill_report(
    report: TileReport, group: Group, metadata: Mapping[str, Any], image: np.ndarray, used_gpu: bool
) -> None:
    report.n_used = len(group.usable)
    report.dropped = group.dropped()
    report.reference = group.rows[group.reference].name
    report.device = "gpu" if used_gpu else "cpu"
    report.gpu_attempts = int(metadata.get("phase3_gpu_attempts") or 0)
    report.device_reason = str(metadata.get("phase3_device_reason") or "")
    report.noise_before = measure_noise(_whole(group.source(group.reference)))
    report.noise_after = measure_noise(image)
    report.rejected_low_percent = list(metadata.get("rejected_low_percent") or [])
    report.rejected_high_percent = list(metadata.get("rejected_high_percent") or [])
    report.all_rejected_pixels = int(metadata.get("all_rejected_pixels") or 0)
    report.rows_per_slab = int(metadata.get("rows_per_slab") or 0)
    report.warnings = list(metadata.get("warnings") or [])


def _whole(source: FrameSource) -> np.ndarray:
    """A frame as an image, demosaiced."""
    from zemosaic_align_stack import frame_block

    size = source.height * source.width * source.channels
    return frame_block(source, 0, source.height)[:size].reshape(source.shape)


# --------------------------------------------------------------------------- header

KEPT_CARDS = (
    "OBJECT", "DATE-AVG", "FILTER", "INSTRUME", "TELESCOP", "FOCALLEN", "XPIXSZ", "YPIXSZ", "GAIN", "OFFSET",
    "CCD-TEMP", "OBSERVER", "SITELAT", "SITELONG", "RA", "DEC", "EQUINOX", "ROWORDER",
)  # fmt: skip


def tile_header(
    reference: Header, wcs: WCS | None, group: Group, stack: StackSpec, report: TileReport
) -> Header:
    """Return the tile's header: WCS and observation of the reference, exposures of the frames stacked, what was done.

    Times are those of the frames that were stacked: EXPTIME one exposure (median), EXPTOTAL and LIVETIME their sum,
    seconds; DATE-OBS the first start, DATE-END the last end, UTC.
    """
    from astropy.io.fits import Header

    header = Header()
    for key in KEPT_CARDS:
        if key in reference and str(reference[key]).strip() != "":
            header[key] = (reference[key], reference.comments[key])
    if wcs is not None:
        header.extend(wcs_cards(wcs), update=True)
    _exposure_cards(header, [s for i in group.usable if (s := group.rows[i].scan) is not None])
    n = report.n_used
    for key in ("NCOMBINE", "STACKCNT", "NEXP_SUM"):
        header[key] = (n, "frames stacked")
    header["BUNIT"] = ("adu", "level of the reference frame")
    header["ZMT_NORM"] = (stack.normalize, "normalisation")
    header["ZMT_WGHT"] = (stack.weight, "frame weights")
    header["ZMT_RADW"] = (stack.radial_weight, "radial weighting")
    if stack.radial_weight:
        header["ZMT_RADF"] = (stack.radial_feather, "radial feather, half diagonals")
        header["ZMT_RADP"] = (stack.radial_power, "radial shape power")
    header["ZMT_REJ"] = (stack.reject, "rejection")
    if stack.reject == "winsorized_sigma_clip":
        header["ZMT_WSC"] = (stack.wsc_impl, "winsorizing")
        if stack.is_legacy_winsor:
            header["HIERARCH ZMT_WINLO"] = (stack.winsor_limits[0], "winsorizing limit, fraction")
            header["HIERARCH ZMT_WINHI"] = (stack.winsor_limits[1], "winsorizing limit, fraction")
    if stack.reject != "none":
        header["HIERARCH ZMT_KAPLO"] = (stack.kappas[0], "rejection limit, sigma")
        header["HIERARCH ZMT_KAPHI"] = (stack.kappas[1], "rejection limit, sigma")
    header["ZMT_COMB"] = (stack.combine, "combination")
    header["ZMT_INTP"] = (stack.interpolation, "interpolation")
    header["ZMT_REF"] = (_short(report.reference), "reference frame")
    header["ZMT_DEV"] = (report.device, "device that stacked")
    header["ALPHAEXT"] = (1, "alpha mask in extension ALPHA")
    for c, name in enumerate("RGB" if len(report.noise_after) == 3 else "L"):
        header[f"ZMT_NOI{name}"] = (_card_number(report.noise_after[c]), "sky noise, adu")
    header.add_history(f"zemosaic-phase3 {__version__}: {n} of {report.n_input} frames, device {report.device}")
    return header


def wcs_cards(wcs: WCS) -> Header:
    """Return the cards of a WCS, SIP included, without the times astropy adds: a tile has its own."""
    header = wcs.to_header(relax=True)
    for key in ("MJDREF", "MJD-OBS", "MJD-AVG", "MJD-BEG", "MJD-END", "DATE-OBS", "DATE-AVG", "DATE-BEG", "DATE-END"):
        header.remove(key, ignore_missing=True)
    return header


def _short(name: str) -> str:

    return Path(name).name.encode("ascii", "replace").decode()[:60]


def _card_number(value: float) -> float | str:
    """FITS cards hold no NaN; an unknown number is written as such."""
    return float(f"{value:.7g}") if np.isfinite(value) else "unknown"


def _exposure_cards(header: Header, scans: Sequence[Scan]) -> None:
    exposures = np.array([s.exposure for s in scans])
    known = exposures[np.isfinite(exposures)]
    if known.size:
        header["EXPTIME"] = (float(np.median(known)), "one exposure, s")
        header["EXPTOTAL"] = (float(known.sum()), "all exposures stacked, s")
        header["LIVETIME"] = (float(known.sum()), "all exposures stacked, s")
    dated = sorted((s.date_obs, s.exposure) for s in scans if s.date_obs)
    if dated:
        header["DATE-OBS"] = (dated[0][0], "start of the first exposure")
        end = _later(*dated[-1])
        if end:
            header["DATE-END"] = (end, "end of the last exposure")


def _later(date: str, seconds: float) -> str:
    """ISO time ``seconds`` after another; empty where that cannot be told."""
    from datetime import datetime, timedelta

    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return ""
    return (moment + timedelta(seconds=seconds)).isoformat(timespec="milliseconds") if np.isfinite(seconds) else ""


def frames_columns(rows: Sequence[FrameRow]) -> dict[str, Any]:
    """Return the FRAMES table by column: one row per input."""
    channels = max((len(row.scale) for row in rows), default=1) or 1

    def per_channel(name: str) -> np.ndarray:
        return np.array([getattr(row, name) or [np.nan] * channels for row in rows], np.float64)

    registrations = [row.registration or Registration(ok=False) for row in rows]
    stars = [row.scan.stars if row.scan else None for row in rows]
    nowhere = np.full((3, 3), np.nan)
    return {
        "NAME": [row.name for row in rows],
        "USED": np.array([row.used for row in rows]),
        "REASON": [row.reason for row in rows],
        "METHOD": [r.method for r in registrations],
        "TRANSFORM": np.stack([(r.transform if r.ok else nowhere).ravel() for r in registrations]),
        "MATCHED": np.array([r.matched for r in registrations], np.int32),
        "RMS_PX": np.array([r.rms_px for r in registrations], np.float64),
        "SCALE": per_channel("scale"),
        "OFFSET": per_channel("offset"),
        "WEIGHT": per_channel("weight"),
        "FWHM": np.array([float(np.median(s.fwhm)) if s is not None and len(s) else np.nan for s in stars]),
        "STARS": np.array([len(s) if s is not None else 0 for s in stars], np.int32),
        "REJECTED": np.array([row.rejected_percent for row in rows], np.float64),
    }



# --------------------------------------------------------------------------- writing


def check_output(output: str | Path, *, overwrite: bool) -> None:
    """Refuse before the work starts what could not be written at its end.

    Raises
    ------
    OutputError
        The file exists and ``overwrite`` is False, it is a folder, or its folder does not exist.
    """
    path = Path(output)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: folder {path.parent} does not exist; create it first")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name, or allow --overwrite")


def write_tile(tile: Tile, output: str | Path, *, maps: bool = False, overwrite: bool = False) -> Path:
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
    )
    write_fits_atomically(hdus, output, overwrite=overwrite)
    return Path(output)
