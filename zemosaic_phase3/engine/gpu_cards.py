"""One tile on several cards of a host: bands of its rows, each on whichever card is free, merged by assignment.

Every row is made by one card, with the bits that any other, or the CPU, would give it. A card has two attempts at a
band, the second with less memory if that was the trouble; if both fail, the others take its band and go on without it.
A sticky error is no matter of one card: it ends CUDA for the process, so that no card is left.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from zemosaic_phase3.engine.finished_rows import FinishedRows
from zemosaic_phase3.engine.gpu_rows import Totals, result_bytes, stack_rows
from zemosaic_phase3.engine.job import SUMMED, GpuFigures, Job, StackResult
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab_plan import slabs_to_do
from zemosaic_phase3.errors import NoCardLeftError, StackCancelled
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.runtime.cuda_failure import Failure, failure_of, forget_frames

LOGGER = logging.getLogger("ZeMosaicWorker")

BAND_BYTES: Final = 16 << 30  # samples of a band, 0.3 s of a card: each begins with empty buffers, which costs 10 ms
MOST_BANDS: Final = 8  # of a card: the faster one does more, and finished ones are kept


def stack_on_cards(
    job: Job,
    resources: Resources,
    result: StackResult,
    known: Sequence[slice],
    progress: Callback | None,
    finished: FinishedRows | None,
) -> Totals:
    """Stack the rows of a job that are not known yet on ``resources.cards``; see :func:`gpu_rows.stack_rows`.

    ``progress`` counts rows. Finished bands are handed over one by one.

    Raises
    ------
    NoCardLeftError
        Each card has failed twice, or once so that it cannot be used again.
    UnsuitedTileError, FrameError, StackCancelled
        As on one card.
    """
    share = _share(job, resources)
    work = _Work(result, deque(_bands(job, resources, known)), progress, finished, job.shape[0])
    with ThreadPoolExecutor(len(resources.cards), thread_name_prefix="phase3-cards") as drivers:
        list(drivers.map(lambda card: _begin(card, job, share, work), resources.cards))
    return work.totals(job, resources.cards)


def _share(job: Job, resources: Resources) -> Resources:
    """Return what one of the cards may take of the host."""
    n = len(resources.cards)
    memory, own = resources.memory, result_bytes(job)
    if memory is not None:
        memory = own + max(1, (memory - own) // n)
    return replace(resources, workers=max(1, resources.workers // n), memory=memory)


def _bands(job: Job, resources: Resources, known: Sequence[slice]) -> list[slice]:
    """Return the rows to do in bands, one for each card, or several where there is much to do."""
    height, cards = job.shape[0], len(resources.cards)
    to_do = height - sum(rows.stop - rows.start for rows in known)
    samples = 4 * len(job.sources) * to_do * job.shape[1] * job.channels
    bands = cards * max(1, min(MOST_BANDS, samples // (BAND_BYTES * cards)))
    return list(slabs_to_do(height, max(1, math.ceil(to_do / bands)), known))


@dataclass
class _Work:
    """What the threads of all cards share: bands to be done, and what came of those that were."""

    result: StackResult
    bands: deque[slice]
    progress: Callback | None
    finished: FinishedRows | None
    height: int
    at_work: int = 0
    error: BaseException | None = None  # that ends the whole stack
    made: list[tuple[int, Totals]] = field(default_factory=list)
    lost: list[tuple[int, Failure]] = field(default_factory=list)
    rows_done: dict[int, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> slice | None:
        """Return the next band; None: none is left, and none comes back from a card that fails."""
        with self.changed:
            while not self.bands and self.at_work and self.error is None:
                self.changed.wait()
            if self.error is not None or not self.bands:
                return None
            self.at_work += 1
            return self.bands.popleft()

    def done(self, card: int, band: slice, made: Totals) -> None:
        """Count a band that is finished, and hand it over."""
        with self.changed:
            self.made.append((card, made))
            self.result.frame_counts = self.result.frame_counts + made.frame_counts
            self.result.all_rejected += made.all_rejected
            if self.finished is not None:
                self.finished.keep(band, self.result)
            self._leave()

    def give_back(self, card: int, band: slice, failure: Failure) -> None:
        """Leave a band to other cards: this one is given up."""
        with self.changed:
            self.lost.append((card, failure))
            self.bands.append(band)
            self._leave()

    def stop(self, error: BaseException) -> None:
        """End the whole stack: no other card would fare better."""
        with self.changed:
            self.error = self.error or error
            self._leave()

    def _leave(self) -> None:
        self.at_work -= 1
        self.changed.notify_all()

    def told(self, band: slice, done: int, total: int) -> None:
        """Tell how far the stack is, and end a band where the stack has ended."""
        with self.changed:
            if self.error is not None:
                raise StackCancelled("another card ended the stack")
            self.rows_done[band.start] = done / total * (band.stop - band.start)
            notify(self.progress, "stack", min(self.height, round(sum(self.rows_done.values()))), self.height)

    def totals(self, job: Job, cards: Sequence[int]) -> Totals:
        """Add up what all cards made; raises what ended the stack."""
        if self.error is not None:
            raise self.error
        if self.bands:
            told = "; ".join(f"card {card}: {failure}" for card, failure in self.lost)
            raise NoCardLeftError(f"no card is left: {told}") from self.lost[-1][1].error
        sums = {name: np.zeros(job.channels, np.int64) for name in SUMMED}
        for _, made in self.made:
            for name, part in made.sums.items():
                sums[name] += part
        figures = [made.figures for _, made in self.made]
        return Totals(
            sum((made.frame_counts for _, made in self.made), np.zeros((len(job.sources), 3), np.int64)),
            sum(made.all_rejected for _, made in self.made),
            sums,
            GpuFigures(
                slabs=sum(f.slabs for f in figures),
                rows_per_slab=max((f.rows_per_slab for f in figures), default=0),
                bytes_sent=sum(f.bytes_sent for f in figures),
                bytes_held=max((f.bytes_held for f in figures), default=0),
                seconds=0.0,
                cards=tuple(card for card in cards if any(card == other for other, _ in self.made)),
                lost=tuple(self.lost),
            ),
        )


def _begin(card: int, job: Job, resources: Resources, work: _Work) -> None:
    """Have a card work; one that does not even answer is lost."""
    try:
        cuda.on_card(card, lambda: _drive(card, job, resources, work))
    except Exception as exc:  # noqa: BLE001 - the one call before its first attempt: whatever it is, others go on
        work.lost.append((card, Failure("unavailable", exc)))


def _drive(card: int, job: Job, resources: Resources, work: _Work) -> None:
    """Stack bands on one card, whose thread this is, until none is left or the card is given up."""
    while (band := work.take()) is not None:
        try:
            made = _try_band(card, job, resources, work, band)
        except BaseException as exc:  # noqa: BLE001 - what asks to stop is raised again where the cards were sent off
            forget_frames(exc)
            work.stop(exc)
            return
        if isinstance(made, Totals):
            work.done(card, band, made)
        elif made.kind in ("frames", "unsuited"):
            forget_frames(made.error)
            work.stop(made.error)
            return
        else:
            LOGGER.warning("[P3][GPU] card %d is given up: %s", card, made)
            forget_frames(made.error)
            work.give_back(card, band, made)
            return


def _try_band(card: int, job: Job, resources: Resources, work: _Work, band: slice) -> Totals | Failure:
    """Try a band at most twice, the second time with less memory if that was the trouble."""
    first = _attempt(job, resources, work, band)
    if not isinstance(first, Failure) or first.kind in ("frames", "unsuited", "sticky"):
        return first
    LOGGER.warning("[P3][GPU] card %d: %s, retrying once", card, first)
    forget_frames(first.error)
    if first.kind == "out_of_memory":
        cuda.free_pools()
        resources = resources.tighter()
    return _attempt(job, resources, work, band)


def _attempt(job: Job, resources: Resources, work: _Work, band: slice) -> Totals | Failure:
    height = job.shape[0]
    others = [rows for rows in (slice(0, band.start), slice(band.stop, height)) if rows.stop > rows.start]
    try:
        return stack_rows(job, resources, work.result, others, lambda _, done, total: work.told(band, done, total))
    except StackCancelled:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever goes wrong on a card, another one or the CPU can redo
        return failure_of(exc)
