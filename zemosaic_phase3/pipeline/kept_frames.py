"""What a journal keeps of frames: their measurements, and how they lie on a reference."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.io.mended_frame import Mend
from zemosaic_phase3.io.moments import Exposure
from zemosaic_phase3.io.value_bytes import digest, from_bytes, to_bytes
from zemosaic_phase3.pipeline.journal import Journal, version
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.records import FrameStats, Registration, SkySolution

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.spec import RegisterSpec

logger = logging.getLogger("ZeMosaicWorker")

MEASURED: Final = (Scan, FrameStats, StarList, Exposure, Mend, datetime)
DETECTION: Final = ("detection_sigma", "min_area", "max_stars")  # what of a registration the stars depend on


class KeptFrames:
    """Measurements and registrations of earlier runs, and a place for new ones.

    ``n_measured`` and ``n_registered`` count what was found.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._seals: dict[str, str] = {}  # of each frame's measurements, by its name
        self.n_measured = 0
        self.n_registered = 0

    def measured(self, source: FrameSource, spec: RegisterSpec, *, find_stars: bool, measure: bool) -> Scan | None:
        """Return what was measured of a frame as it is now; None: nothing, or it cannot be known again."""
        origin = source.origin
        if origin is None:
            return None
        data = self._journal.find("measured", origin, _measuring(origin.recipe, spec, find_stars, measure))
        if data is None:
            return None
        try:
            scan = from_bytes(data, MEASURED)
        except ValueError as exc:
            logger.debug("%s: what the journal has of it is %s", source.name, exc)
            return None
        self._seals[source.name] = digest(data)
        self.n_measured += 1
        return scan if isinstance(scan, Scan) else None

    def keep_measured(
        self, source: FrameSource, spec: RegisterSpec, scan: Scan, *, find_stars: bool, measure: bool
    ) -> None:
        """Keep what was measured of a frame, but for its WCS, which its file tells again."""
        origin = source.origin
        if origin is None:
            return
        data = to_bytes(replace(scan, wcs=None))
        self._seals[source.name] = digest(data)
        self._journal.keep("measured", origin, _measuring(origin.recipe, spec, find_stars, measure), data)

    def registered(self, source: FrameSource, reference: FrameSource, spec: RegisterSpec) -> Registration | None:
        """Return how a frame lies on a reference; None: not known."""
        origin, key = source.origin, self._registering(source, reference, spec)
        data = None if origin is None or key is None else self._journal.find("registered", origin, key)
        if data is None:
            return None
        try:
            verdict = from_bytes(data, (Registration, SkySolution))
        except ValueError as exc:
            logger.debug("%s: what the journal has of it is %s", source.name, exc)
            return None
        self.n_registered += 1
        return verdict if isinstance(verdict, Registration) else None

    def keep_registered(
        self, source: FrameSource, reference: FrameSource, spec: RegisterSpec, verdict: Registration
    ) -> None:
        """Keep how a frame lies on a reference, or why it does not."""
        origin, key = source.origin, self._registering(source, reference, spec)
        if origin is not None and key is not None:
            self._journal.keep("registered", origin, key, to_bytes(verdict))

    def _registering(self, source: FrameSource, reference: FrameSource, spec: RegisterSpec) -> str | None:
        """Return what a registration depends on: the stars of both, the files their WCS are in, and the options."""
        seals = [self._seals.get(found.name) for found in (source, reference)]
        other = reference.origin
        if other is None or None in seals:
            return None
        return digest(
            version(), *map(str, seals), other.path, str(other.identity.size), str(other.identity.modified_ns),
            str(sorted(asdict(spec).items())),
        )  # fmt: skip


def _measuring(recipe: str, spec: RegisterSpec, find_stars: bool, measure: bool) -> str:
    """Return what measurements depend on beside the file."""
    chosen = [f"{name} {getattr(spec, name)}" for name in DETECTION]
    keeps_stars, keeps_wcs = spec.mode in ("auto", "stars"), spec.mode in ("auto", "wcs")
    return digest(version(), recipe, *chosen, str((keeps_stars, keeps_wcs, find_stars, measure)))
