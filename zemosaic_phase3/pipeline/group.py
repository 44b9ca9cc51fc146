"""The frames of one tile before they are stacked: opened, measured, registered.

What can go wrong with one frame is kept with its name and its reason, and the rest goes on; only when nothing is left,
or the reference that was asked for, is that an error.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList, choose_reference
from zemosaic_phase3.detection.star_finder import find_stars as stars_of
from zemosaic_phase3.errors import FrameError, NoFramesError, SpecError, StackCancelled
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.frame_kind import FrameKind
from zemosaic_phase3.io.inputs import real_path
from zemosaic_phase3.io.mended_frame import Mend
from zemosaic_phase3.io.moments import MOMENT_KEYS, Exposure, exposure_of
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.photometry.measure import quanta, read_frame, shown, with_stars
from zemosaic_phase3.pipeline.blank_frames import middle_rows, refuse_blank, shows_something
from zemosaic_phase3.pipeline.samples import (
    as_stored,
    clip_levels,
    find_mend,
    may_have_filler,
    mended,
    refuse_clipped,
    refuse_rounded,
)
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.records import FrameStats, Registration
from zemosaic_phase3.registration.few_stars import check_by_stars, confirm_by_stars
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.wcs import register_stars_seeded, register_wcs
from zemosaic_phase3.runtime.limits import available_memory
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")


Opener = Callable[[Any], FrameSource]
"""Opens one descriptor, or raises FrameError."""

FEW_STARS: Final = 0.5  # of the stars that a typical frame shows; fewer are next to none
MOST_REFERENCES: Final = 3  # frames tried as reference before the run settles for the best of them


@dataclass(frozen=True)
class Scan:
    """What one reading of a frame tells: levels, stars, and when and how long it was exposed."""

    stats: FrameStats | None  # None: not measured, because nothing needs the levels
    stars: StarList | None  # None: not for registration, or they have served; 10,000 lists are 200 MB
    exposure: Exposure = Exposure()
    wcs: WCS | None = None  # celestial; None: it has none, or not for registration, or it has served
    has_wcs: bool = False  # for registration; where ``wcs`` is None all the same, the file tells it again
    mend: Mend = Mend()  # what is put right in its pixels

    @property
    def n_stars(self) -> int:
        """Stars found."""
        return 0 if self.stats is None else self.stats.n_stars

    @property
    def fwhm(self) -> float:
        """Median full width at half maximum of the stars, pixels; nan without stars."""
        return math.nan if self.stats is None else self.stats.fwhm


class Kept(Protocol):
    """What earlier runs measured of frames and of how they lie on each other: ``pipeline.kept_frames``."""

    def measured(self, source: FrameSource, spec: RegisterSpec, *, find_stars: bool, measure: bool) -> Scan | None:
        """Return what was measured of a frame as it is now; None: not known."""

    def keep_measured(
        self, source: FrameSource, spec: RegisterSpec, scan: Scan, *, find_stars: bool, measure: bool
    ) -> None:
        """Keep what was measured of a frame."""

    def registered(self, source: FrameSource, reference: FrameSource, spec: RegisterSpec) -> Registration | None:
        """Return how a frame lies on a reference; None: not known."""

    def keep_registered(
        self, source: FrameSource, reference: FrameSource, spec: RegisterSpec, verdict: Registration
    ) -> None:
        """Keep how a frame lies on a reference."""


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
    transparency: float = float("nan")  # of the air, the reference's being 1
    facts: FrameKind | None = None  # what its header says it is; None: not asked
    meant: bool = True  # False: left out because it is no frame of this stack, not because it failed

    def drop(self, reason: str) -> None:
        """Leave the frame out, and keep why."""
        self.used, self.reason = False, reason
        logger.warning("left out: %s: %s", self.name, reason)


def scan_frame(source: FrameSource, spec: RegisterSpec, *, find_stars: bool, measure: bool = True) -> Scan:
    """Read a frame once; measure its levels and find its stars.

    The stars' widths and number are part of the levels; the stars themselves are kept where ``spec`` registers by
    them, so that looking for them to weigh the frames changes nothing else. Where neither levels (``measure``) nor
    stars are wanted, a few rows are enough to see that the frame is not blank.

    Raises
    ------
    FrameError
        The frame cannot be read, has no valid pixel, or is blank.
    """
    stats, stars, mend = None, None, Mend()
    saturate, *moments = source.card_values("SATURATE", *MOMENT_KEYS)
    stored = as_stored(source)
    if measure or find_stars:
        pixels, view = read_frame(stored)
        refuse_blank(stored, view)
        mend = find_mend(stored, pixels)
        if stored is not source:
            refuse_clipped(source.name, mend.apply(pixels) if mend else pixels)
            source = mended(source, mend) if mend else source
            pixels, view = read_frame(source)
            refuse_blank(source, view)
        elif mend:
            source = mended(source, mend)
            pixels, view = shown(mend.apply(pixels), source.cfa)
        clip = clip_levels(pixels, saturate, source.cfa)
        refuse_clipped(source.name, pixels)
        stats = replace(measure_levels(view, quantum=quanta(source)), clip=clip)
        refuse_rounded(source, stats)
        if find_stars:
            stars = stars_of(pixels, spec, source.cfa)
            stats = with_stars(stats, stars, view, source.cfa)
    elif not shows_something(middle_rows(source)):
        refuse_blank(source, read_frame(source)[1])
    elif may_have_filler(stored):
        mend = find_mend(stored, stored.read_rows(0, stored.height))
    wcs = source.wcs() if spec.mode in ("auto", "wcs") else None
    return Scan(
        stats,
        stars if spec.mode in ("auto", "stars") else None,
        exposure_of(dict(zip(MOMENT_KEYS, moments, strict=True))),
        wcs,
        wcs is not None,
        mend,
    )


def scan_bytes(source: FrameSource) -> int:
    """Return the bytes that scanning a frame takes: its pixels, its 2x2 cells, and what finding stars needs."""
    cells = source.height * source.width // 4
    pixel = 4 * source.channels if source.cfa is None else source.dtype.itemsize + 4
    return cells * (4 * pixel + (50 if source.cfa is None else 36))


@dataclass
class Group:
    """The frames of one tile. ``rows`` has one entry per input, ``sources[i]`` is None where it could not be opened."""

    rows: list[FrameRow]
    sources: list[FrameSource | None]
    reference: int = -1
    notes: list[str] = field(default_factory=list)

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

    def wcs(self, i: int) -> WCS | None:
        """Return the celestial WCS of a frame, for registration; None: it has none, or it is not wanted."""
        scan = self.scan(i)
        return self.source(i).wcs() if scan.wcs is None and scan.has_wcs else scan.wcs

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


class Tools(NamedTuple):
    """What a review of verdicts may do: measure a frame as the others were, and register one on the reference.

    ``workers``: threads; ``scanning``: of them, that may measure a frame at a time.
    """

    scan: Callable[[FrameSource], Scan]
    register: Callable[[int], Registration]
    workers: int
    scanning: int


Review = Callable[[Group, RegisterSpec, dict[int, Registration], Tools], None]
"""Looks at the verdicts on the frames of a group, and may change them."""


def open_group(
    descriptors: Iterable[Any],
    opener: Opener = open_source,
    *,
    reference: str | Path | None = None,
    further: Callable[[Any, FrameSource], tuple[list[FrameSource], list[str]]] | None = None,
    choose: Callable[[Group], None] | None = None,
    any_shape: bool = False,
) -> Group:
    """Open every descriptor; those that are not images, or of another size than the rest, are left out with the reason.

    The size is that of ``reference`` where one is named, else the commonest. Every frame gets a name of its own.
    ``further`` returns all frames of the file that a frame is the first of, and notes; ``choose`` leaves out frames
    that do not belong to the stack, and may replace sources, before their sizes are compared; with ``any_shape`` they
    are not.

    Raises
    ------
    NoFramesError
        The reference that was named is not among the frames.
    """
    group = Group([], [])
    names: Counter[str] = Counter()
    for descriptor in descriptors:
        try:
            opened = opener(descriptor)
            sources, notes = ([opened], []) if further is None else further(descriptor, opened)
            for source in (_distinct(source, names) for source in sources):
                group.rows.append(FrameRow(source.name, used=True))
                group.sources.append(source)
            group.notes += notes
        except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
            fault = frame_fault(exc, str(descriptor) if isinstance(descriptor, str | Path) else "<frame>")
            group.rows.append(FrameRow(fault.name))
            group.rows[-1].drop(fault.reason)
            group.sources.append(None)
    if reference is not None:
        group.reference = _named(group, Path(reference))
    if choose is not None:
        choose(group)
    shapes = Counter(group.source(i).shape for i in group.usable)
    if len(shapes) > 1 and not any_shape:
        wanted = shapes.most_common(1)[0][0] if group.reference < 0 else group.source(group.reference).shape
        for i in group.usable:
            shape = group.source(i).shape
            if shape != wanted:
                group.rows[i].drop(f"shape {shape} is not the {wanted} of the others; stack it on its own")
    return group


def frame_fault(error: Exception, name: str) -> FrameError:
    """Turn whatever was raised while a frame was opened, measured or registered into that frame's error.

    Parameters
    ----------
    error : Exception
        A :class:`FrameError` stays as it is. What the caller asked for (to stop, an unknown option) and lack of memory,
        which is no fault of the frame, are raised again.
    name : str
        Of the frame.
    """
    if isinstance(error, StackCancelled | MemoryError | SpecError):
        raise error
    if isinstance(error, FrameError):
        return error
    logger.debug("%s: unforeseen", name, exc_info=error)
    return FrameError(name, f"it cannot be used ({type(error).__name__}: {error}); leave it out or save it again")


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
    same = [i for i, path in paths.items() if path == wanted or real_path(path) == real_path(wanted)]
    found = same or [i for i, path in paths.items() if path.name == str(wanted)]
    if found:
        return found[0]
    left_out = [f"{name}: {why}" for name, why in group.dropped() if Path(name).name == wanted.name]
    reason = "; ".join(left_out) or f"it is not among the {len(paths)} that could be opened"
    raise NoFramesError(f"the reference {wanted} cannot be used: {reason}")


def scan_group(
    group: Group,
    spec: RegisterSpec,
    *,
    find_stars: bool,
    measure: bool = True,
    workers: int = 1,
    allowed_bytes: int | None = None,
    progress: Callback | None = None,
    kept: Kept | None = None,
) -> None:
    """Read every frame once, in parallel; fills the rows' scans. See :func:`scan_frame` for what is wanted of them.

    ``allowed_bytes`` (half of what is available) limits how many frames are in memory at a time; one always may be.
    What is ``kept`` of a frame is not measured again.
    """
    todo = group.usable
    done = iter(range(1, len(todo) + 1))
    limit = available_memory() // 2 if allowed_bytes is None else allowed_bytes
    most = limit // max([scan_bytes(group.source(i)) for i in todo] + [1])

    def scan(i: int) -> Scan | FrameError:
        found: Scan | FrameError
        try:
            found = _known_or_scanned(group.source(i), spec, kept, find_stars=find_stars, measure=measure)
        except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
            found = frame_fault(exc, group.rows[i].name)
        notify(progress, "measure", next(done), len(todo))
        return found

    for i, found in zip(todo, parallel_map(scan, todo, min(workers, most)), strict=True):
        if isinstance(found, FrameError):
            group.rows[i].drop(found.reason)
        else:
            group.rows[i].scan = found
            if found.mend:
                group.sources[i] = mended(group.source(i), found.mend)


def _known_or_scanned(
    source: FrameSource, spec: RegisterSpec, kept: Kept | None, *, find_stars: bool, measure: bool
) -> Scan:
    known = None if kept is None else kept.measured(source, spec, find_stars=find_stars, measure=measure)
    found = scan_frame(source, spec, find_stars=find_stars, measure=measure) if known is None else known
    if kept is not None and known is None:
        kept.keep_measured(source, spec, found, find_stars=find_stars, measure=measure)
    return found


def drop_starless(group: Group, spec: RegisterSpec) -> None:
    """Leave out frames that show next to no stars where most of the others do: clouds, not a field without stars.

    Such a frame would be placed by its header's WCS alone, and stacked as if it showed the field. A field where nobody
    finds stars is registered by the WCS as before. The reference that was named stays.
    """
    if spec.mode != "auto":  # by stars alone it cannot be registered, by the WCS alone it is wanted
        return
    counts = {i: len(found) for i in group.usable if (found := group.scan(i).stars) is not None}
    if not counts:
        return
    typical = float(np.median(list(counts.values())))
    if typical < spec.min_matched:
        return
    for i, count in counts.items():
        if count < min(spec.min_matched, FEW_STARS * typical) and i != group.reference:
            reason = (
                f"{count} {'star' if count == 1 else 'stars'} in the frame, at least {spec.min_matched} are needed, "
                f"and the others show {typical:.0f}: clouds? Registration by the WCS would take it"
            )
            group.rows[i].registration = Registration(ok=False, method="stars", reason=reason)
            group.rows[i].drop(f"not registered: {reason}")


def register_group(
    group: Group,
    spec: RegisterSpec,
    *,
    workers: int = 1,
    progress: Callback | None = None,
    kept: Kept | None = None,
    review: Review | None = None,
) -> None:
    """Register every frame on the reference, choosing one where none was named; fills the rows' registrations.

    The star lists and the WCS have served then and are given up. A reference that was chosen here must bring in most of
    the frames: if it does not (it shows another field, or is the one spoilt frame), others are tried, and the one with
    the most frames is kept. ``review`` then sees the verdicts and may change them; see ``pipeline.failed_frames``.

    Raises
    ------
    NoFramesError
        The named reference could not be used, or registration by the WCS was asked for and the reference has none.
    """
    usable = group.usable
    if group.reference >= 0 and group.reference not in usable:
        row = group.rows[group.reference]
        raise NoFramesError(f"the reference {row.name} cannot be used: {row.reason}")
    if spec.mode == "wcs" and len(usable) > 1:  # a frame alone needs none
        _require_wcs(group)
    drop_starless(group, spec)
    if group.reference >= 0:
        verdicts = _register_on(group, group.reference, spec, workers, progress, kept)
    else:
        group.reference, verdicts = _best_reference(group, spec, workers, progress, kept)
    if review is not None:
        review(group, spec, verdicts, _tools(group, spec, workers, kept))
    _tell_distortion([verdict for verdict in verdicts.values() if verdict.ok])
    for i, verdict in verdicts.items():
        group.rows[i].registration = verdict
        group.rows[i].scan = replace(group.scan(i), stars=None, wcs=None)
        if not verdict.ok:
            group.rows[i].drop(f"not registered: {verdict.reason}")


def _tools(group: Group, spec: RegisterSpec, workers: int, kept: Kept | None) -> Tools:
    measure = group.scan(group.reference).stats is not None

    def register(i: int) -> Registration:
        return _known_or_registered(group, i, group.reference, group.wcs(group.reference), spec, kept)

    return Tools(
        lambda source: _known_or_scanned(source, spec, kept, find_stars=True, measure=measure),
        register,
        workers,
        max(1, min(workers, available_memory() // 2 // scan_bytes(group.source(group.reference)))),
    )


def _tell_distortion(verdicts: Sequence[Registration]) -> None:
    """Log what the distortion of the headers adds to the transforms."""
    largest = [float(np.abs(v.distortion).max()) for v in verdicts if v.distortion is not None]
    if largest:
        logger.info(
            "distortion (SIP) of the headers used for %d of %d frames, up to %.2f px beside the transform",
            len(largest), len(verdicts), max(largest),
        )  # fmt: skip


def _require_wcs(group: Group) -> None:
    """Raise NoFramesError where the reference has no WCS, so that every other frame would fail."""
    if group.reference >= 0:
        if not group.scan(group.reference).has_wcs:
            name = group.rows[group.reference].name
            raise NoFramesError(
                f"the reference {name} has no celestial WCS, so nothing can be registered on it by the WCS; "
                "use --register stars, or name a reference that is plate-solved"
            )
    elif not any(group.scan(i).has_wcs for i in group.usable):
        raise NoFramesError(
            f"none of {len(group.usable)} frames has a celestial WCS; use --register stars, or plate-solve the frames"
        )


def _best_reference(
    group: Group, spec: RegisterSpec, workers: int, progress: Callback | None, kept: Kept | None
) -> tuple[int, dict[int, Registration]]:
    """Return the first of a few references that half of the frames register on, else the best of them."""
    candidates = group.usable
    best, best_verdicts, most = -1, {}, 0
    for _ in range(MOST_REFERENCES):
        reference = _choose(group, candidates, spec)
        verdicts = _register_on(group, reference, spec, workers, progress, kept)
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
    group: Group, reference: int, spec: RegisterSpec, workers: int, progress: Callback | None, kept: Kept | None
) -> dict[int, Registration]:
    """Verdict on every usable frame against one reference."""
    usable = group.usable
    wcs = group.wcs(reference)
    done = iter(range(1, len(usable) + 1))

    def register(i: int) -> Registration:
        if i == reference:
            verdict = Registration(ok=True, method="reference", rms_px=0.0)
        elif spec.mode == "none":
            verdict = Registration(ok=True)
        else:
            try:
                verdict = _known_or_registered(group, i, reference, wcs, spec, kept)
            except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
                verdict = Registration(ok=False, reason=frame_fault(exc, group.rows[i].name).reason)
        notify(progress, "register", next(done), len(usable))
        return verdict

    return dict(zip(usable, parallel_map(register, usable, workers), strict=True))


def _known_or_registered(
    group: Group, i: int, reference: int, wcs: WCS | None, spec: RegisterSpec, kept: Kept | None
) -> Registration:
    if kept is None:
        return register_frame(group, i, reference, wcs, spec)
    pair = group.source(i), group.source(reference)
    verdict = kept.registered(*pair, spec)
    if verdict is None:
        verdict = register_frame(group, i, reference, wcs, spec)
        kept.keep_registered(*pair, spec, verdict)
    return verdict


def register_frame(group: Group, i: int, reference: int, reference_wcs: WCS | None, spec: RegisterSpec) -> Registration:
    """Register by the stars, seeded by the WCS; by the WCS alone where asked for, or where few stars do not deny it."""
    shape = group.source(i).shape
    wcs, by_wcs = group.wcs(i), None
    if reference_wcs is not None and wcs is not None:
        by_wcs = register_wcs(reference_wcs, wcs, shape, spec)
    known, stars = group.scan(reference).stars, group.scan(i).stars
    if known is None or stars is None:
        who = "the reference" if reference_wcs is None else "the frame"
        reason = f"{who} has no celestial WCS; use --register stars"
        return by_wcs or Registration(ok=False, method="wcs", reason=reason)
    seed = by_wcs if by_wcs is not None and by_wcs.ok else None
    if seed is None:
        return register_stars(known, stars, shape, spec)
    if min(len(known), len(stars)) < spec.min_matched:
        return check_by_stars(known, stars, shape, spec, seed)
    by_stars = register_stars_seeded(known, stars, shape, spec, seed)
    return by_stars if by_stars.ok else confirm_by_stars(known, stars, shape, seed) or by_stars
