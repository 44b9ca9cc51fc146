"""Every frame of a group read once, side by side, and what earlier runs know of it not read again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.pipeline.elsewhere import Elsewhere, Wanted
from zemosaic_phase3.pipeline.group import Group, Kept, frame_fault
from zemosaic_phase3.pipeline.samples import mended
from zemosaic_phase3.pipeline.scan import Scan, scan_bytes, scan_frame
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime.limits import available_memory
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.runtime.workspace import Workspace
from zemosaic_phase3.spec import RegisterSpec


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
    elsewhere: Elsewhere | None = None,
) -> None:
    """Read every frame once, in parallel; fills the rows' scans. See :func:`scan_frame` for what is wanted of them.

    ``allowed_bytes`` (half of what is available) limits how many frames are in memory at a time; one always may be.
    What is ``kept`` of a frame is not measured again. What others have measured (``elsewhere``) is as if it were
    measured here; what they could not read is tried here, so that a disk that one of them lacks leaves no frame out.
    """
    todo = group.usable
    done = iter(range(1, len(todo) + 1))
    wanted = Wanted(spec, find_stars, measure)
    scans: dict[int, Scan] = {}
    if elsewhere is not None:
        if kept is not None:
            for i in todo:
                known = kept.measured(group.source(i), spec, find_stars=find_stars, measure=measure)
                if known is not None:
                    scans[i] = known
                    notify(progress, "measure", next(done), len(todo))
        others = [i for i in todo if i not in scans]
        for k, scan in elsewhere.measure([group.source(i) for i in others], wanted):
            scans[others[k]] = scan
            if kept is not None:
                kept.keep_measured(group.source(others[k]), spec, scan, find_stars=find_stars, measure=measure)
            notify(progress, "measure", next(done), len(todo))
    here = [i for i in todo if i not in scans]
    found = scan_sources(
        [group.source(i) for i in here], wanted, workers=workers, allowed_bytes=allowed_bytes, kept=kept,
        told=lambda: notify(progress, "measure", next(done), len(todo)),
    )  # fmt: skip
    verdicts: dict[int, Scan | FrameError] = {**scans, **dict(zip(here, found, strict=True))}
    for i in todo:
        verdict = verdicts[i]
        if isinstance(verdict, FrameError):
            group.rows[i].drop(verdict.reason)
        else:
            group.rows[i].scan = verdict
            if verdict.mend:
                group.sources[i] = mended(group.source(i), verdict.mend)


def scan_sources(
    sources: Sequence[FrameSource],
    wanted: Wanted,
    *,
    workers: int = 1,
    allowed_bytes: int | None = None,
    kept: Kept | None = None,
    told: Callable[[], None] | None = None,
) -> list[Scan | FrameError]:
    """Measure frames side by side, as many at a time as memory allows; what is wrong with one is that one's result."""
    limit = available_memory() // 2 if allowed_bytes is None else allowed_bytes
    most = limit // max([scan_bytes(source) for source in sources] + [1])
    own = threading.local()  # of each thread, for as long as it measures

    def scan(source: FrameSource) -> Scan | FrameError:
        found: Scan | FrameError
        space = own.__dict__.setdefault("space", Workspace())
        try:
            found = known_or_scanned(
                source, wanted.spec, kept, find_stars=wanted.find_stars, measure=wanted.measure, workspace=space
            )
        except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
            found = frame_fault(exc, source.name)
        if told is not None:
            told()
        return found

    return parallel_map(scan, sources, min(workers, most))


def known_or_scanned(
    source: FrameSource,
    spec: RegisterSpec,
    kept: Kept | None,
    *,
    find_stars: bool,
    measure: bool,
    workspace: Workspace | None = None,
) -> Scan:
    """Measure a frame, unless an earlier run did and kept it."""
    known = None if kept is None else kept.measured(source, spec, find_stars=find_stars, measure=measure)
    if known is not None:
        return known
    found = scan_frame(source, spec, find_stars=find_stars, measure=measure, workspace=workspace)
    if kept is not None:
        kept.keep_measured(source, spec, found, find_stars=find_stars, measure=measure)
    return found
