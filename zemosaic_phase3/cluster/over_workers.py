"""One tile by several workers: its frames are measured in parts, its rows are stacked in bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from zemosaic_phase3.cluster.bands import Band, band_edges, put_together, stack_band
from zemosaic_phase3.cluster.order import TileOptions
from zemosaic_phase3.cluster.parts import done_together
from zemosaic_phase3.cluster.share import share_of_machine
from zemosaic_phase3.engine.job import Job, StackResult
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.pipeline.elsewhere import Wanted
from zemosaic_phase3.pipeline.measuring import scan_sources
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.runtime import limits

PARTS_EACH: Final = 4  # of the frames, for each worker: whoever is faster does more
MOST_FRAMES: Final = 32  # of a part


def measure_part(
    sources: Sequence[FrameSource], first: int, last: int, wanted: Wanted, options: TileOptions, per_host: int
) -> list[Scan | None]:
    """Measure frames first .. last - 1; None: one could not be measured here. Their WCS are not sent, files have them.

    A WCS in a scan is an object of astropy; whoever has the frame reads it again, as with what a journal keeps.
    """
    memory, threads = share_of_machine(options, per_host)
    left = (limits.default_limit() if memory is None else memory) - limits.process_bytes()
    found = scan_sources(sources[first:last], wanted, workers=threads, allowed_bytes=max(1, left))
    return [replace(one, wcs=None) if isinstance(one, Scan) else None for one in found]


def frame_parts(n_frames: int, workers: int) -> list[tuple[int, int]]:
    """Return the first frame of each part that is measured by one worker, and the one behind its last."""
    size = max(1, min(MOST_FRAMES, n_frames // (PARTS_EACH * workers)))
    return [(first, min(first + size, n_frames)) for first in range(0, n_frames, size)]


@dataclass(frozen=True)
class OverWorkers:
    """Has the workers of the cluster do parts of a tile; see :class:`pipeline.elsewhere.Elsewhere`.

    ``bands``: how many workers, about, and into how many bands of rows the tile is cut.
    """

    bands: int
    options: TileOptions
    per_host: int

    def measure(self, sources: Sequence[FrameSource], wanted: Wanted) -> Iterator[tuple[int, Scan]]:
        """Yield the position and the measurements of each frame, in any order, without those that nobody could read."""
        parts = frame_parts(len(sources), self.bands)
        calls = [(first, last, wanted, self.options, self.per_host) for first, last in parts]
        for k, scans in done_together(list(sources), calls, measure_part):
            for i, scan in enumerate(scans, parts[k][0]):
                if scan is not None:
                    yield i, scan

    def stack(self, job: Job) -> StackResult | None:
        """Stack a job in bands; None: frames were lost meanwhile, or its weights differ from pixel to pixel."""
        if job.sample_weight is not None:
            return None
        calls = [(first, last, self.options, self.per_host) for first, last in band_edges(job.shape[0], self.bands)]
        made: dict[int, Band] = dict(done_together(job, calls, stack_band))
        return put_together(job, [made[k] for k in sorted(made)])
