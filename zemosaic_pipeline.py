"""From descriptors to a finished tile: open, scan, register, stack, finish. Shared by the command line and ZeMosaic.

Every frame is read twice: once whole, to find its stars and measure its levels, and by rows when the stack needs them.
What can go wrong with one frame is kept with its name and its reason; the rest goes on.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from parallel_utils import available_memory, parallel_map, peak_rss_bytes
from zemosaic_headers import FITS_CARD
from zemosaic_register import StarList, choose_reference, detect_stars, register_stars, register_wcs
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

Opener = Callable[[Any], FrameSource]
"""Opens one descriptor, or raises FrameError."""

MOST_REFERENCES: Final = 3  # frames tried as reference before the run settles for the best of them

# --------------------------------------------------------------------------- one frame


@dataclass(frozen=True)
class Scan:
    """What one whole reading of a frame tells: levels, stars, and when and how long it was exposed."""

    stats: FrameStats
    stars: StarList | None  # None: nobody looked
    start: datetime | None = None  # of the exposure, UTC
    exposure: float = math.nan  # seconds
    has_wcs: bool = False


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

    Stars of a Bayer mosaic are found on the mean of the two greens of each 2x2 cell, which is centred on the cell
    whatever the colour of the star; of a colour frame on the mean of its channels.

    Raises
    ------
    FrameError
        The frame cannot be read, has no valid pixel, or is blank.
    """
    view = measuring_view(source)
    stats = measure_levels(view, quantum=quanta(source))
    if not np.isfinite(stats.median).all():
        raise FrameError(source.name, "no valid pixel in at least one channel (all NaN); leave it out")
    low, high = np.nanmin(view, axis=(0, 1)), np.nanmax(view, axis=(0, 1))
    if (low == high).all():
        levels = ", ".join(f"{level:g}" for level in low)
        raise FrameError(source.name, f"blank frame: every pixel is {levels}; leave it out")
    header = source.read_header()
    return Scan(
        stats,
        _stars(source, view, spec) if find_stars else None,
        _moment(card_value(header, "DATE-OBS")),
        _seconds(card_value(header, "EXPTIME"), card_value(header, "EXPOSURE")),
        source.wcs() is not None,
    )


def _stars(source: FrameSource, view: np.ndarray, spec: RegisterSpec) -> StarList:
    if source.cfa is not None:
        return detect_stars(np.ascontiguousarray(view[:, :, 1]), spec, scale=2.0, offset=0.5)
    grey = view[:, :, 0] if view.shape[2] == 1 else view.mean(axis=2, dtype=np.float32)
    return detect_stars(np.ascontiguousarray(grey), spec)


def scan_bytes(source: FrameSource) -> int:
    """Return the bytes that scanning a frame takes: two copies of what is measured, and four planes to find stars."""
    cells = source.height * source.width // (1 if source.cfa is None else 4)
    return cells * (8 * source.channels + 16)


def card_value(header: Header, key: str) -> Any:
    """Return the value of a card; None where it is absent, empty, or breaks the standard."""
    from astropy.io.fits import VerifyError
    from astropy.io.fits.card import Undefined

    try:
        value = header.get(key)
    except VerifyError as exc:
        logger.debug("card %s is not used: %s", key, exc)
        return None
    return None if isinstance(value, Undefined) or str(value).strip() == "" else value


def _moment(text: object) -> datetime | None:
    """Time of an ISO 8601 text, UTC; None where it is none."""
    try:
        moment = datetime.fromisoformat(str(text).strip())
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def _seconds(*values: object) -> float:
    """First of the values that is a length of time, seconds; nan where none is."""
    for value in values:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if math.isfinite(number) and number >= 0:
            return number
    return math.nan


# --------------------------------------------------------------------------- all frames


@dataclass
class Group:
    """The frames of one tile. ``rows`` has one entry per input, ``sources[i]`` is None where it could not be opened."""

    rows: list[FrameRow]
    sources: list[FrameSource | None]
    reference: int = -1

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

    def scan(self, i: int) -> Scan:
        """Return what was measured of a frame."""
        found = self.rows[i].scan
        if found is None:
            raise FrameError(self.rows[i].name, "was not scanned")
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
        if self.usable:
            return
        if not self.rows:
            raise NoFramesError("no frames were given; name files, folders or globs")
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.dropped()[:3])
        raise NoFramesError(f"none of {len(self.rows)} frames could be {what}: {reasons}")


def open_group(
    descriptors: Iterable[Any], opener: Opener = open_source, *, reference: str | Path | None = None
) -> Group:
    """Open every descriptor; those that are not images, or of another size than the rest, are left out with the reason.

    The size is that of ``reference`` where one is named, else the commonest. Every frame gets a name of its own.

    Raises
    ------
    NoFramesError
        The reference that was named is not among the frames.
    """
    group = Group([], [])
    names: Counter[str] = Counter()
    for descriptor in descriptors:
        try:
            source = _distinct(opener(descriptor), names)
            group.rows.append(FrameRow(source.name, used=True))
            group.sources.append(source)
        except FrameError as exc:
            group.rows.append(FrameRow(exc.name))
            group.rows[-1].drop(exc.reason)
            group.sources.append(None)
    if reference is not None:
        group.reference = _named(group, Path(reference))
    shapes = Counter(group.source(i).shape for i in group.usable)
    if len(shapes) > 1:
        wanted = shapes.most_common(1)[0][0] if group.reference < 0 else group.source(group.reference).shape
        for i in group.usable:
            shape = group.source(i).shape
            if shape != wanted:
                group.rows[i].drop(f"shape {shape} is not the {wanted} of the others; stack it on its own")
    return group


def _distinct(source: FrameSource, names: Counter[str]) -> FrameSource:
    """Rename a source whose name is taken: the stack tells by name what became of each frame."""
    name = source.name
    while names[name]:
        names[source.name] += 1
        name = f"{source.name} ({names[source.name]})"
    names[name] += 1
    if name != source.name:
        source = copy.copy(source)
        source.name = name
    return source


def _named(group: Group, wanted: Path) -> int:
    """Position of the reference that a user named, by path or by file name."""
    paths = {i: Path(group.rows[i].name) for i in group.usable}
    same = [i for i, path in paths.items() if path == wanted or path.resolve() == wanted.resolve()]
    found = same or [i for i, path in paths.items() if path.name == str(wanted)]
    if found:
        return found[0]
    left_out = [f"{row.name}: {row.reason}" for row in group.rows if Path(row.name).name == wanted.name]
    reason = "; ".join(left_out) or f"it is not among the {len(paths)} that could be opened"
    raise NoFramesError(f"the reference {wanted} cannot be used: {reason}")


def scan_group(
    group: Group,
    spec: RegisterSpec,
    *,
    find_stars: bool,
    workers: int = 1,
    allowed_bytes: int | None = None,
    progress: Callback | None = None,
) -> None:
    """Read every frame once, in parallel; fills the rows' scans.

    ``allowed_bytes`` (half of what is available) limits how many frames are in memory at a time; one always may be.
    """
    todo = group.usable
    done = iter(range(1, len(todo) + 1))
    limit = available_memory() // 2 if allowed_bytes is None else allowed_bytes
    most = limit // max((scan_bytes(group.source(i)) for i in todo), default=1)

    def scan(i: int) -> Scan | FrameError:
        found: Scan | FrameError
        try:
            found = scan_frame(group.source(i), spec, find_stars=find_stars)
        except FrameError as exc:
            found = exc
        notify(progress, "measure", next(done), len(todo))
        return found

    for i, found in zip(todo, parallel_map(scan, todo, min(workers, most)), strict=True):
        if isinstance(found, FrameError):
            group.rows[i].drop(found.reason)
        else:
            group.rows[i].scan = found


def register_group(group: Group, spec: RegisterSpec, *, workers: int = 1, progress: Callback | None = None) -> None:
    """Register every frame on the reference, choosing one where none was named; fills the rows' registrations.

    A reference that was chosen here must bring in most of the frames: if it does not (it shows another field, or is
    the one spoilt frame), others are tried, and the one with the most frames is kept.

    Raises
    ------
    NoFramesError
        The named reference could not be used.
    """
    usable = group.usable
    if group.reference >= 0:
        if group.reference not in usable:
            row = group.rows[group.reference]
            raise NoFramesError(f"the reference {row.name} cannot be used: {row.reason}")
        verdicts = _register_on(group, group.reference, spec, workers, progress)
    else:
        group.reference, verdicts = _best_reference(group, spec, workers, progress)
    for i, verdict in verdicts.items():
        group.rows[i].registration = verdict
        if not verdict.ok:
            group.rows[i].drop(f"not registered: {verdict.reason}")


def _best_reference(
    group: Group, spec: RegisterSpec, workers: int, progress: Callback | None
) -> tuple[int, dict[int, Registration]]:
    """Return the first of a few references that half of the frames register on, else the best of them."""
    candidates = group.usable
    best, best_verdicts, most = -1, {}, 0
    for _ in range(MOST_REFERENCES):
        reference = _choose(group, candidates, spec)
        verdicts = _register_on(group, reference, spec, workers, progress)
        count = sum(verdict.ok for verdict in verdicts.values())
        if count > most:
            best, best_verdicts, most = reference, verdicts, count
        # What did register shows the same field, and would fare no better.
        candidates = [i for i in candidates if not verdicts[i].ok]
        if 2 * count >= len(verdicts) or not candidates:
            break
        logger.info("%d of %d frames register on %s", count, len(verdicts), group.rows[reference].name)
    return best, best_verdicts


def _choose(group: Group, candidates: list[int], spec: RegisterSpec) -> int:
    """Sharp, well populated, and with a WCS where any frame has one: the tile gets the reference's."""
    if spec.mode in ("auto", "wcs"):
        candidates = [i for i in candidates if group.scan(i).has_wcs] or candidates
    stars = [found for i in candidates if (found := group.scan(i).stars) is not None]
    return candidates[choose_reference(stars, group.source(candidates[0]).shape)] if stars else candidates[0]


def _register_on(
    group: Group, reference: int, spec: RegisterSpec, workers: int, progress: Callback | None
) -> dict[int, Registration]:
    """Verdict on every usable frame against one reference."""
    usable = group.usable
    wcs = group.source(reference).wcs() if spec.mode in ("auto", "wcs") else None
    done = iter(range(1, len(usable) + 1))

    def register(i: int) -> Registration:
        if i == reference:
            verdict = Registration(ok=True, method="reference", rms_px=0.0)
        elif spec.mode == "none":
            verdict = Registration(ok=True)
        else:
            verdict = _register(group, i, reference, wcs, spec)
        notify(progress, "register", next(done), len(usable))
        return verdict

    return dict(zip(usable, parallel_map(register, usable, workers), strict=True))


def _register(group: Group, i: int, reference: int, reference_wcs: WCS | None, spec: RegisterSpec) -> Registration:
    """Register by the stars, seeded by the WCS; by the WCS alone where asked for, or where there are too few stars."""
    shape = group.source(i).shape
    by_wcs = None
    if reference_wcs is not None and group.scan(i).has_wcs:
        try:
            wcs = group.source(i).wcs()
        except FrameError as exc:
            return Registration(ok=False, reason=exc.reason)
        by_wcs = None if wcs is None else register_wcs(reference_wcs, wcs, shape, spec)
    known, stars = group.scan(reference).stars, group.scan(i).stars
    if known is None or stars is None:
        who = "the reference" if reference_wcs is None else "the frame"
        reason = f"{who} has no celestial WCS; use --register stars"
        return by_wcs or Registration(ok=False, method="wcs", reason=reason)
    seed = by_wcs if by_wcs is not None and by_wcs.ok else None
    if seed is not None and min(len(known), len(stars)) < spec.min_matched:
        return seed
    return register_stars(known, stars, shape, spec, None if seed is None else seed.transform)


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
    stack, register : StackSpec, RegisterSpec
    bayer : str
        "auto", "none" or a pattern.
    reference : str or None
        Path or name of the reference frame; None chooses one.
    workers : int
        Threads.
    allowed_bytes : int or None
        Memory for the frames that are scanned at a time; None: half of what is available.
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
        group = open_group(descriptors, partial(open_source, bayer=bayer), reference=reference)
        group.require_some("opened")
    with timed(report, "measure"):
        scan_group(
            group, register, find_stars=register.mode in ("auto", "stars"), workers=workers,
            allowed_bytes=allowed_bytes, progress=progress,
        )  # fmt: skip
        group.require_some("read")
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
    """Stack the registered frames of a group and finish the tile, on the grid of the reference.

    What is wanted of the reference's file is read before the stack, so that a reference that vanishes meanwhile is one
    frame lost and not the tile.
    """
    usable = group.usable
    reference = group.source(group.reference)
    frames = [Frame(group.source(i), _registration(group, i).transform, group.scan(i).stats) for i in usable]
    params = {**params_from_stack_spec(stack), "reference_index": usable.index(group.reference), **(extra_params or {})}
    with timed(report, "finish"):
        header, wcs = reference.read_header(), _tile_wcs(reference)
        report.noise_before = measure_noise(_whole(reference))
    with timed(report, "stack"):
        image, metadata, used_gpu = stacker(frames, params)
    with timed(report, "finish"):
        _take_metadata(group, metadata)
        _fill_report(report, group, metadata, image, used_gpu)
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


def _tile_wcs(reference: FrameSource) -> WCS | None:
    """Copy of the reference's WCS; the caller's own object stays as it is."""
    wcs = reference.wcs()
    if wcs is None:
        return None
    wcs = wcs.deepcopy()
    wcs.pixel_shape = (reference.width, reference.height)
    return wcs


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
    report: TileReport, group: Group, metadata: Mapping[str, Any], image: np.ndarray, used_gpu: bool
) -> None:
    report.n_used = len(group.usable)
    report.dropped = group.dropped()
    report.reference = group.rows[group.reference].name
    report.device = "gpu" if used_gpu else "cpu"
    report.gpu_attempts = int(metadata.get("phase3_gpu_attempts") or 0)
    report.device_reason = str(metadata.get("phase3_device_reason") or "")
    report.noise_after = measure_noise(image)
    report.rejected_low_percent = list(metadata.get("rejected_low_percent") or [])
    report.rejected_high_percent = list(metadata.get("rejected_high_percent") or [])
    report.all_rejected_pixels = int(metadata.get("all_rejected_pixels") or 0)
    report.rows_per_slab = int(metadata.get("rows_per_slab") or 0)
    report.warnings = list(metadata.get("warnings") or [])


def _whole(source: FrameSource) -> np.ndarray:
    """Read a frame as an image, demosaiced."""
    from zemosaic_align_stack import frame_block

    size = source.height * source.width * source.channels
    return frame_block(source, 0, source.height)[:size].reshape(source.shape)


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
    cards["ZMT_NORM"] = (stack.normalize, "normalisation")
    cards["ZMT_WGHT"] = (metadata.get("weight_method", stack.weight), "frame weights")
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
    return Path(name).name.encode("ascii", "replace").decode()[:60]


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


FRAMES_UNITS: Final = {"RMS_PX": "pixel", "FWHM": "pixel", "OFFSET": "adu", "REJECTED": "%"}


def frames_columns(rows: Sequence[FrameRow]) -> dict[str, Any]:
    """Return the FRAMES table by column: one row per input."""
    channels = max((len(row.scale) for row in rows), default=1) or 1

    def per_channel(name: str) -> np.ndarray:
        return np.array([getattr(row, name) or [np.nan] * channels for row in rows], np.float64)

    registrations = [row.registration or Registration(ok=False) for row in rows]
    stars = [row.scan.stars if row.scan is not None else None for row in rows]
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
        frames_units=FRAMES_UNITS if maps else None,
    )
    write_fits_atomically(hdus, output, overwrite=overwrite)
    return Path(output)
