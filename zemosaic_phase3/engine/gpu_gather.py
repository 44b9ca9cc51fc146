"""Rows of frames into pinned buffers, batch after batch, ahead of the bus.

One door, :func:`gatherer_of`. Arrays and plain files are gathered by threads that stay in compiled code; frames that
have to be decoded, or are of several kinds, by threads that each fill a buffer. Either way batch ``k`` lies in buffer
``k % buffers`` and is offered in order, and a buffer is filled again only when it was released.
"""

from __future__ import annotations

import abc
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.engine.gpu_plan import Batch, Route, Slab
from zemosaic_phase3.runtime.threads import Crew

if TYPE_CHECKING:
    from zemosaic_phase3.engine.job import Job


PATIENCE: Final = 20_000  # looks at a counter before a thread comes out of compiled code
NAP_SECONDS: Final = 0.0005  # and sleeps there: the bus needs this for two buffers


Slabs = Callable[[], Iterator[Slab]]  # cuts a tile: once more where needed, since all slabs of many frames are large


class Filled(NamedTuple):
    """A batch that lies in its buffer."""

    number: int
    slab: Slab
    batch: Batch


class Gatherer(abc.ABC):
    """Fills buffers with batches; a context, which ends the work of its threads.

    Parameters
    ----------
    buffers : sequence of ndarray uint8
        Pinned memory, each as large as the largest batch.
    workers : int
        Threads.
    """

    def __init__(self, buffers: list[np.ndarray], workers: int) -> None:
        self._buffers = buffers
        self._workers = workers
        self._crew = Crew(workers)

    @abc.abstractmethod
    def filled(self) -> Iterator[Filled]:
        """Yield the batches of all slabs in order, each when it is in its buffer.

        Raises
        ------
        FrameError
            A frame can no longer be read.
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Say that the oldest batch not released yet has left its buffer."""

    def __enter__(self) -> Gatherer:
        """Return the gatherer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what has not started and wait for what has."""
        self._crew.__exit__(*error)


class FileGatherer(Gatherer):
    """Whatever the frames are: one thread fills one buffer, frame by frame, while the others fill theirs."""

    def __init__(self, job: Job, route: Route, slabs: Slabs, buffers: list[np.ndarray], workers: int) -> None:
        super().__init__(buffers, workers)
        self._sources, self._wires = job.sources, route.wires
        self._work = (Filled(-1, slab, batch) for slab in slabs() for batch in slab.batches)
        self._started = 0
        self._waiting: deque[tuple[Filled, Future[None]]] = deque()

    def filled(self) -> Iterator[Filled]:  # noqa: D102 - as in the base class
        for _ in self._buffers:
            self.release()
        while self._waiting:
            item, future = self._waiting.popleft()
            future.result()
            yield item

    def release(self) -> None:  # noqa: D102 - as in the base class
        item = next(self._work, None)
        if item is not None:
            item = item._replace(number=self._started)
            future = self._crew.submit(self._fill, item, self._buffers[item.number % len(self._buffers)])
            self._waiting.append((item, future))
            self._started += 1

    def _fill(self, item: Filled, buffer: np.ndarray) -> None:
        here = slice(item.batch.first, item.batch.last)
        rows = item.slab.frames[here]
        places, tops, heights = (rows[name].tolist() for name in ("raw_at", "raw_first", "raw_rows"))
        for k, size in enumerate(item.slab.sizes[here].tolist()):
            if size:
                target = buffer[places[k] : places[k] + size]
                self._read(item.batch.first + k, tops[k], tops[k] + heights[k], target)

    def _read(self, i: int, top: int, bottom: int, target: np.ndarray) -> None:
        source = self._sources[i]
        if self._wires[i].is_raw:
            source.read_raw(top, bottom, target)
        else:
            np.copyto(target, source.read_rows(top, bottom).reshape(-1).view(np.uint8))


class _PieceGatherer(Gatherer):
    """Threads work on the same batch, each on a piece of it, in compiled code; see :mod:`engine.gpu_copy`."""

    def __init__(self, job: Job, route: Route, slabs: Slabs, buffers: list[np.ndarray], workers: int) -> None:
        self._slabs = slabs
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        parts, n_batches = [], 0
        for slab in slabs():
            counts = [batch.last - batch.first for batch in slab.batches]
            batch_of = n_batches + np.repeat(np.arange(len(counts)), counts)
            targets = addresses[batch_of % len(buffers)] + slab.frames["raw_at"].astype(np.uint64)
            parts.append(self._pieces_of(slab, targets, batch_of))
            n_batches += len(counts)
        sources, offsets, targets, sizes, batch_of = (np.concatenate(part) for part in zip(*parts, strict=True))
        self._sources, self._offsets, self._targets, self._sizes, self._batch_of = (
            sources.astype(np.uint64), offsets.astype(np.int64), targets, sizes.astype(np.uint64), batch_of,
        )  # fmt: skip
        self._wanted = np.bincount(batch_of, minlength=n_batches)
        self._counters = np.zeros(2 + n_batches, np.int64)
        self._counters[1] = len(buffers)
        super().__init__(buffers, workers)  # takes threads: last, so that nothing that fails keeps them

    @abc.abstractmethod
    def _pieces_of(self, slab: Slab, targets: np.ndarray, batch_of: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return sources, offsets, targets, sizes and batches of the pieces of a slab, in the order of its frames."""

    @abc.abstractmethod
    def _take(self, piece: int) -> int:
        """Work on pieces until a buffer is taken, see :func:`engine.gpu_copy.copy_pieces`."""

    def _work(self) -> None:
        piece = self._take(-1)
        while piece >= 0:
            time.sleep(NAP_SECONDS)
            piece = self._take(piece)

    def filled(self) -> Iterator[Filled]:
        from zemosaic_phase3.engine.gpu_copy import await_count

        threads = [self._crew.submit(self._work) for _ in range(self._workers)]
        items = ((slab, batch) for slab in self._slabs() for batch in slab.batches)
        for number, (slab, batch) in enumerate(items):
            while not await_count(self._counters, 2 + number, self._wanted[number], PATIENCE):
                for thread in threads:
                    if thread.done():
                        thread.result()  # raises what ended it
                time.sleep(NAP_SECONDS)
            self._check(number, slab, batch)
            yield Filled(number, slab, batch)

    def _check(self, number: int, slab: Slab, batch: Batch) -> None:
        """Look at a batch that is in."""

    def release(self) -> None:
        self._counters[1] += 1

    def __exit__(self, *error: object) -> None:
        self._counters[0] = len(self._sources)  # nothing more is taken
        self._counters[1] = len(self._counters)  # and nobody waits
        super().__exit__(*error)


class MemoryGatherer(_PieceGatherer):
    """Copies the rows of arrays."""

    def __init__(self, job: Job, route: Route, slabs: Slabs, buffers: list[np.ndarray], workers: int) -> None:
        arrays = [source.pixels_in_memory for source in job.sources]
        self._addresses = np.array([0 if a is None else a.__array_interface__["data"][0] for a in arrays], np.uint64)
        self._row_bytes = np.array([wire.row_bytes for wire in route.wires], np.int64)
        super().__init__(job, route, slabs, buffers, workers)

    def _pieces_of(self, slab: Slab, targets: np.ndarray, batch_of: np.ndarray) -> tuple[np.ndarray, ...]:
        sources = self._addresses + (slab.frames["raw_first"] * self._row_bytes).astype(np.uint64)
        kept = slab.sizes > 0
        return sources[kept], np.empty(0), targets[kept], slab.sizes[kept], batch_of[kept]

    def _take(self, piece: int) -> int:
        from zemosaic_phase3.engine.gpu_copy import copy_pieces

        return copy_pieces(
            self._sources, self._targets, self._sizes, self._batch_of, self._counters, piece, PATIENCE
        )  # fmt: skip


class PosixGatherer(_PieceGatherer):
    """Reads the rows of plain files; one that cannot be read so is read again in the ordinary way, which says why."""

    def __init__(self, job: Job, route: Route, slabs: Slabs, buffers: list[np.ndarray], workers: int) -> None:
        self._job = job
        files = [source.raw_file for source in job.sources]
        self._names = [os.fsencode(file.path) + b"\0" for file in files if file is not None]
        places = [np.frombuffer(name, np.uint8).__array_interface__["data"][0] for name in self._names]
        self._paths = np.array(places, np.uint64)
        fields = ("offset", "row_bytes", "planes", "plane_bytes")
        self._files = np.array([[getattr(file, field) for file in files] for field in fields], np.int64)
        self._flags = os.O_RDONLY | os.O_CLOEXEC
        super().__init__(job, route, slabs, buffers, workers)
        self._failed = np.zeros(len(self._sources), np.uint8)
        self._starts = np.concatenate([[0], np.cumsum(self._wanted)])

    def _pieces_of(self, slab: Slab, targets: np.ndarray, batch_of: np.ndarray) -> tuple[np.ndarray, ...]:
        offset, row_bytes, planes, plane_bytes = self._files
        kept = np.flatnonzero(slab.sizes > 0)
        frame = np.repeat(kept, planes[kept])  # one piece a plane
        plane = np.arange(len(frame)) - np.repeat(np.cumsum(planes[kept]) - planes[kept], planes[kept])
        sizes = slab.sizes[frame] // planes[frame]
        offsets = offset[frame] + slab.frames["raw_first"][frame] * row_bytes[frame] + plane * plane_bytes[frame]
        return self._paths[frame], offsets, targets[frame] + (plane * sizes).astype(np.uint64), sizes, batch_of[frame]

    def _take(self, piece: int) -> int:
        from zemosaic_phase3.engine.gpu_copy import read_pieces

        return read_pieces(
            self._sources, self._offsets, self._flags, self._targets, self._sizes, self._batch_of, self._failed,
            self._counters, piece, PATIENCE,
        )  # fmt: skip

    def _check(self, number: int, slab: Slab, batch: Batch) -> None:
        read = (batch.first + np.flatnonzero(slab.sizes[batch.first : batch.last])).tolist()
        if not self._failed[self._starts[number] : self._starts[number + 1]].any():
            for i in read:
                self._job.sources[i].require_unchanged()
            return
        buffer = self._buffers[number % len(self._buffers)]
        for i in read:
            row, size = slab.frames[i], int(slab.sizes[i])
            top, place = int(row["raw_first"]), int(row["raw_at"])
            self._job.sources[i].read_raw(top, top + int(row["raw_rows"]), buffer[place : place + size])


def gatherer_of(job: Job, route: Route, slabs: Slabs, buffers: list[np.ndarray], workers: int) -> Gatherer:
    """Return the gatherer that suits where the frames are."""
    if route.where == "memory":
        return MemoryGatherer(job, route, slabs, buffers, workers)
    kind = PosixGatherer if route.where == "files" else FileGatherer
    return kind(job, route, slabs, buffers, workers)
