"""Finished rows of a stack in the journal, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from zemosaic_phase3.engine.job import Job, StackResult, maps_of
from zemosaic_phase3.io.value_bytes import digest, from_bytes, to_bytes
from zemosaic_phase3.pipeline.journal import Journal, version

if TYPE_CHECKING:
    from zemosaic_phase3.io.origin import Origin

logger = logging.getLogger("ZeMosaicWorker")

FIRST_SECONDS: Final = 15.0  # of a stack, before its rows are worth writing: those of a short one cost a sixth of it
NEXT_SECONDS: Final = 0.5  # between two pieces; a slab that takes longer is kept at once
COPIES: Final = 3  # of what is kept, that the disk may hold for a while: in the log, in the file, and one to spare


class KeptRows:
    """Rows that earlier runs finished of the same stack, and a place for those of this one.

    Finished rows never change again, so that they are written beside the stack.

    Parameters
    ----------
    journal : Journal

    Attributes
    ----------
    room : int
        Bytes on the disk that the journal leaves to the files of the run.
    n_restored : int
        Rows that were found.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self.room = journal, 0
        self._job = ""  # what stands for it; "": it cannot be known again
        self._jobs: set[str] = set()  # of this run: a frame that can no longer be read makes a new one
        self._next = 0.0  # when rows are due
        self._waiting = slice(0, 0)  # rows that are not written yet
        self._written = self._seen = _Counts.of_none(0)  # of the rows that are written, and of those that wait too
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="zemosaic-journal")
        self._writing: Future[None] | None = None
        self.n_restored = 0

    def restore(self, job: Job, result: StackResult) -> list[slice]:
        """Fill a new result with the rows that are kept of its job, counts included; return them."""
        self._job, self._next = _job_key(job), time.monotonic() + FIRST_SECONDS
        self._jobs.add(self._job)
        found: list[slice] = []
        for first, last, data in self._journal.bands(self._job) if self._job else ():
            if first < (found[-1].stop if found else 0) or last > job.shape[0]:
                continue  # of two runs at once
            try:
                *maps, counts, lost = from_bytes(data, ())
                for name, rows in zip(maps_of(job), maps, strict=True):
                    getattr(result, name)[first:last] = rows
            except ValueError as exc:
                logger.debug("rows %d to %d in the journal are %s", first, last, exc)
                continue
            result.frame_counts += counts
            result.all_rejected += lost
            found.append(slice(first, last))
        self._waiting, self._written = slice(0, 0), _Counts.of(result)
        self._seen = self._written
        self.n_restored = sum(rows.stop - rows.start for rows in found)
        return found

    def is_due(self) -> bool:
        """Return whether enough time has gone by, and what was handed over before is written."""
        is_free = self._writing is None or self._writing.done()
        return bool(self._job) and is_free and time.monotonic() >= self._next

    def keep(self, rows: slice, result: StackResult) -> None:
        """Keep finished rows, together with those before them that waited."""
        if not self._job or self._journal.fault:
            return
        if self._waiting.stop != rows.start:  # restored ones lie between
            self._hand_over(result)
            self._waiting = slice(rows.start, rows.start)
        self._waiting, self._seen = slice(self._waiting.start, rows.stop), _Counts.of(result)
        if self.is_due():
            self._hand_over(result)

    def discard(self) -> None:
        """Give up the rows of this stack: what made them is not trusted."""
        self.finish()
        if self._job:
            self._journal.forget_bands(self._job)

    def forget(self) -> None:
        """Give up all rows of this run: its result is written."""
        self.finish()
        self._journal.forget_bands(*self._jobs)

    def finish(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Wait, and end the thread that writes."""
        self._beside.shutdown()

    def _hand_over(self, result: StackResult) -> None:
        """Have the waiting rows written."""
        first, last = self._waiting.start, self._waiting.stop
        if first == last:
            return
        self.finish()
        small = np.uint16 if len(result.job.sources) <= np.iinfo(np.uint16).max else np.int32
        maps = [getattr(result, name)[first:last] for name in maps_of(result.job)]
        maps = [part if part.dtype == np.float32 else part.astype(small) for part in maps]
        counts = [self._seen.frames - self._written.frames, self._seen.lost - self._written.lost]
        self._waiting, self._written = slice(last, last), self._seen
        self._next = time.monotonic() + NEXT_SECONDS
        self._writing = self._beside.submit(self._write, self._job, first, last, [*maps, *counts])

    def _write(self, job: str, first: int, last: int, content: list[Any]) -> None:
        n_bytes = sum(part.nbytes for part in content if isinstance(part, np.ndarray))
        try:
            free = shutil.disk_usage(self._journal.path.parent).free
        except OSError as exc:
            logger.debug("rows are not kept: %s", exc)
            return
        if free < self.room + COPIES * n_bytes:
            logger.debug("no room to keep rows %d to %d", first, last)
            return
        self._journal.keep_band(job, first, last, to_bytes(content))


class _Counts(NamedTuple):
    """Counts of a stack so far: of each frame, ``(N, 3) int64``, and of pixels that lost all samples."""

    frames: np.ndarray
    lost: int

    @classmethod
    def of(cls, result: StackResult) -> _Counts:
        return cls(result.frame_counts.copy(), result.all_rejected)

    @classmethod
    def of_none(cls, n_frames: int) -> _Counts:
        return cls(np.zeros((n_frames, 3), np.int64), 0)


def _job_key(job: Job) -> str:
    """Return what stands for a stack: its frames as they are, its numbers, its methods; "": a frame has no file."""
    origins: list[Origin] = [origin for source in job.sources if (origin := source.origin) is not None]
    if len(origins) < len(job.sources) or job.sample_weight is not None:
        return ""
    table = job.table
    numbers = [table.transform, table.scale, table.offset, table.weight, *table.distortion]
    return digest(
        version(), str(job.spec), str(job.shape), str(job.clipped_kappa), str(job.errors), str(table.own_grid),
        *[f"{origin.path} {origin.identity.size} {origin.identity.modified_ns} {origin.recipe}" for origin in origins],
        *[np.ascontiguousarray(array).tobytes() for array in numbers],
        "" if job.tolerance is None else digest(np.ascontiguousarray(job.tolerance).tobytes()),
    )  # fmt: skip
