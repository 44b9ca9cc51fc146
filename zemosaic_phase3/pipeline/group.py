"""The frames of one tile before they are stacked, and what becomes of each.

What can go wrong with one frame is kept with its name and its reason, and the rest goes on; only when nothing is left,
or the reference that was asked for, is that an error.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zemosaic_phase3.errors import FrameError, NoFramesError, SpecError, StackCancelled
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.frame_kind import FrameKind
from zemosaic_phase3.io.inputs import real_path
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.records import Registration
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")

Opener = Callable[[Any], FrameSource]
"""Opens one descriptor, or raises FrameError."""


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

    def registrations(self, frames: Sequence[int]) -> list[Registration]:
        """Return how frames lie on the reference."""
        found = [self.rows[i].registration for i in frames]
        for i, verdict in zip(frames, found, strict=True):
            if verdict is None:
                raise FrameError(self.rows[i].name, "was not registered")
        return [verdict for verdict in found if verdict is not None]

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
