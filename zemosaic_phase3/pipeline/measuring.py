"""Every frame of a group read once, side by side, and what earlier runs know of it not read again."""

from __future__ import annotations

import threading

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import FrameSource
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
) -> None:
    """Read every frame once, in parallel; fills the rows' scans. See :func:`scan_frame` for what is wanted of them.

    ``allowed_bytes`` (half of what is available) limits how many frames are in memory at a time; one always may be.
    What is ``kept`` of a frame is not measured again.
    """
    todo = group.usable
    done = iter(range(1, len(todo) + 1))
    limit = available_memory() // 2 if allowed_bytes is None else allowed_bytes
    most = limit // max([scan_bytes(group.source(i)) for i in todo] + [1])

    own = threading.local()  # of each thread, for as long as it measures

    def scan(i: int) -> Scan | FrameError:
        found: Scan | FrameError
        space = own.__dict__.setdefault("space", Workspace())
        try:
            found = known_or_scanned(
                group.source(i), spec, kept, find_stars=find_stars, measure=measure, workspace=space
            )
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
