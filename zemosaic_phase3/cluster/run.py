"""All tiles of a plan over the workers of a cluster: who gets what when, and what happens when one is lost.

The cluster may lose anything: a worker in the middle of a tile, its connection, the scheduler with all it knew. What
was finished stands in the folder of the tiles, so that nothing else need be remembered: a tile is ordered until its
record is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.cluster.order import TileOptions, TileOrder, TileRecord
from zemosaic_phase3.cluster.pool import ClusterError, connect, workers_known
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.cluster.worker import beginnings, make_tile
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.pipeline.journal import version
from zemosaic_phase3.progress import Callback, notify

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger("ZeMosaicWorker")

AHEAD: Final = 2  # tiles ordered for each worker: the one it makes, and the next, so that it never waits
MOST_TRIES: Final = 2  # of a tile that fails for reasons that may be its worker's
MOST_FAULTS: Final = 2  # of a worker, for such reasons: then others get the tiles, if there are any
NEWS_SECONDS: Final = 0.25  # at most between looks at the futures, which tell by themselves when they are finished
LIST_SECONDS: Final = 0.5  # for which a list of the workers is good: of a thousand it is a long one
LOOK_SECONDS: Final = 1.0  # between looks at who has begun what
BAND_SAMPLES: Final = 4e9  # pixels of all frames of a tile; less is not worth cutting
LOST: Final = ("lost", "cancelled")


@dataclass(frozen=True)
class Patience:
    """How long is waited, seconds."""

    scheduler: float = 600.0  # for one that is gone to come back
    workers: float = 300.0  # for the first one, or for another when all are gone
    straggler: float = 120.0  # a tile may take at least this long, whatever others took
    straggler_factor: float = 4.0  # and this many times what others of its size took


@dataclass
class _Tile:
    """One tile and what is known of it on this side."""

    order: TileOrder
    weight: int
    tries: int = 0
    futures: list[Future] = field(default_factory=list)
    seen_begun: int = 0
    running_since: float = 0.0  # 0: nobody has begun, as far as is known
    workers: set[str] = field(default_factory=set)  # addresses that failed
    only: frozenset[str] = frozenset()  # workers that may make it; none: all
    is_doubled: bool = False


@dataclass
class TilesResult:
    """What became of all tiles, in the order of the plan."""

    records: list[TileRecord]
    seconds: float = 0.0
    dashboard: str = ""
    doubled: list[str] = field(default_factory=list)  # given to a second worker, because the first took too long
    reconnected: int = 0  # times a scheduler was gone for so long that it was connected to anew
    orders_lost: int = 0  # tiles that a scheduler had been told of when it was lost

    @property
    def failed(self) -> list[TileRecord]:
        """Those that are not there."""
        return [record for record in self.records if record.state not in ("made", "kept")]


def orders_of(plan: TilePlan, folder: Path, options: TileOptions, *, n_workers: int, per_host: int) -> list[TileOrder]:
    """Return what is to be done, tile by tile; ``folder`` is absolute."""
    code, whole = version(), sum(tile.pixels for tile in plan.tiles)
    return [
        TileOrder(tile.name, tile.frames, str(folder), options, code, per_host, _bands(tile, whole, options, n_workers))
        for tile in plan.tiles
    ]


def _bands(tile: PlannedTile, whole: int, options: TileOptions, n_workers: int) -> int:
    """Return into how many bands of rows a tile is cut: as many as its part of the work is workers' parts."""
    if options.bands:
        return options.bands
    if n_workers < 2 or tile.pixels < BAND_SAMPLES:
        return 1
    return max(1, min(n_workers, round(tile.pixels * n_workers / whole)))


class TilesRun:
    """One run over a cluster.

    Parameters
    ----------
    client : Client
        Of Dask; replaced by a new one where its scheduler is lost and ``address`` is given.
    orders : sequence of TileOrder
    address : str, optional
        Of the scheduler, where it is not ours.
    patience : Patience
    progress : callable, optional
        Called as ``progress("tiles", frames_done, frames)``: time left by frames, for tiles differ in size.
    finished : callable, optional
        Called with each record when it is there, in any order.
    """

    def __init__(
        self,
        client: Client,
        orders: Sequence[TileOrder],
        *,
        address: str | None = None,
        patience: Patience | None = None,
        progress: Callback | None = None,
        finished: Callable[[TileRecord], None] | None = None,
    ) -> None:
        self._client, self._address, self._patience = client, address, patience or Patience()
        self._first_client = client
        self._progress, self._finished = progress, finished
        self._all = [_Tile(order, len(order.frames)) for order in orders]
        # Large ones first: a large one at the end keeps one worker busy and the others idle.
        self._waiting = deque(sorted(self._all, key=lambda tile: -tile.weight))
        self._running: list[_Tile] = []
        self._records: dict[str, TileRecord] = {}
        self._rates: list[float] = []  # seconds for a frame, of tiles that were made
        self._run = uuid.uuid4().hex[:8]
        self._next_look = 0.0
        self._news = threading.Event()
        self._faults: Counter[str] = Counter()  # by the addresses of workers
        self._listed: list[str] = []
        self._listed_until = 0.0
        self._alone_since: float | None = None
        self._result = TilesResult([])

    def run(self) -> TilesResult:
        """Have all tiles made; returns when each is there or has failed for good.

        Raises
        ------
        ClusterError
            The scheduler, or all workers, are gone for longer than is waited; a worker has other code.
        """
        began = time.monotonic()
        self._result.dashboard = str(getattr(self._client, "dashboard_link", "") or "")
        self._tell()
        try:
            while True:
                if self._client.status not in ("running", "connecting"):
                    self._find_scheduler()
                self._collect()
                self._order_some()
                self._look_around()
                if not self._waiting and not self._running:
                    break
                self._news.wait(NEWS_SECONDS)
                self._news.clear()
        finally:
            with contextlib.suppress(Exception):  # whatever a cluster that is gone may raise
                self._client.cancel([future for tile in self._running for future in tile.futures])
                if self._client is not self._first_client:
                    self._client.close(timeout=1)
        self._result.records = [self._records[tile.order.name] for tile in self._all]
        self._result.seconds = time.monotonic() - began
        return self._result

    # ----------------------------------------------------------------------- giving out

    def _workers(self) -> list[str]:
        """Return the addresses of the workers, as the scheduler told within half a second."""
        now = time.monotonic()
        if now >= self._listed_until:
            self._listed_until = now + LIST_SECONDS
            try:
                self._listed = list(workers_known(self._client))
            except Exception as exc:  # noqa: BLE001 - a scheduler that is gone; that is seen to elsewhere
                logger.debug("workers are not known: %s", exc)
                self._listed = []
        return self._listed

    def _order_some(self) -> None:
        """Order the next tiles, no more than workers are near to: what waits, waits here, where it takes no memory."""
        workers = self._workers() if self._waiting else []
        most = max(1, AHEAD * len(workers))
        while self._waiting and len(self._running) < most:
            tile = self._waiting.popleft()
            if self._submit(tile, workers):
                self._running.append(tile)
            else:
                self._waiting.appendleft(tile)
                return

    def _submit(self, tile: _Tile, workers: Sequence[str], avoided: Iterable[str] = ()) -> bool:
        """Order one tile; False where the scheduler cannot be reached."""
        bad = {address for address, faults in self._faults.items() if faults >= MOST_FAULTS}
        avoided = {*tile.workers, *avoided, *(bad & set(workers))}
        others = [address for address in workers if address not in avoided]
        tile.seen_begun = beginnings(tile.order)
        tile.running_since = 0.0
        # Not as a wish: whoever has nothing to do steals what others were only preferred for.
        choice = {"workers": others} if others and avoided else {}
        tile.only = frozenset(others if choice else ())
        key = f"tile-{tile.order.name}-{self._run}-{uuid.uuid4().hex[:6]}"
        try:
            future = self._client.submit(make_tile, tile.order, key=key, pure=False, **choice)
            tile.futures.append(future)
            future.add_done_callback(lambda _: self._news.set())
        except Exception as exc:  # noqa: BLE001 - a connection that breaks just now
            logger.debug("%s could not be ordered: %s", tile.order.name, exc)
            return False
        return True

    # ----------------------------------------------------------------------- taking in

    def _collect(self) -> None:
        """Take what is finished."""
        for tile in list(self._running):
            for future in list(tile.futures):
                status = future.status
                if status == "pending":
                    continue
                tile.futures.remove(future)
                if status == "finished":
                    self._take(tile, future)
                elif status == "error":
                    self._failed(tile, self._why(future))
                else:  # lost with its scheduler
                    self._result.orders_lost += 1
                    logger.debug("%s is %s", tile.order.name, status)
                if tile not in self._running:
                    break
            if tile in self._running and not tile.futures:  # nobody makes it
                self._running.remove(tile)
                self._waiting.appendleft(tile)

    def _take(self, tile: _Tile, future: Future) -> None:
        try:
            record: TileRecord = future.result(timeout=60)
        except Exception as exc:  # noqa: BLE001 - the result went with its worker: it is there, and the next one finds it
            logger.debug("%s: its record was lost on the way: %s", tile.order.name, exc)
            return
        if record.state == "other code":
            raise ClusterError(f"worker {record.worker} on {record.host} {record.reason}; install the same on both")
        if record.state == "failed" and record.may_retry and tile.tries + 1 < MOST_TRIES:
            tile.tries += 1
            address = self._address_of(future)
            tile.workers.add(address)
            self._faults[address] += 1
            logger.warning("%s failed on %s, and is tried elsewhere: %s", tile.order.name, record.worker, record.reason)
            return
        self._settle(tile, record)

    def _failed(self, tile: _Tile, why: str) -> None:
        """Note a tile whose task itself failed: its workers died, again and again."""
        tile.tries += 1
        if tile.tries < MOST_TRIES and not tile.futures:
            logger.warning("%s: %s; it is tried once more", tile.order.name, why)
            return
        if not tile.futures:
            order = tile.order
            self._settle(tile, TileRecord(
                order.name, "failed", output=order.output.name, n_frames=len(order.frames), reason=why,
                attempts=beginnings(order),
            ))  # fmt: skip

    def _why(self, future: Future) -> str:
        error: Any = None
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            error = future.exception(timeout=10)
        if type(error).__name__ == "KilledWorker":
            return "every worker that began it died; it may need more memory than they have (--memory)"
        return f"{type(error).__name__}: {error}" if error is not None else "its task failed"

    def _address_of(self, future: Future) -> str:
        with contextlib.suppress(Exception):
            return next(iter(self._client.who_has([future]).values()))[0]
        return ""

    def _settle(self, tile: _Tile, record: TileRecord) -> None:
        """Note that a tile is there, or will never be."""
        self._running.remove(tile)
        self._drop(tile)
        self._records[tile.order.name] = record
        if record.state == "made":
            self._rates.append(record.seconds / max(1, tile.weight))
        if self._finished is not None:
            self._finished(record)
        self._tell()

    def _drop(self, tile: _Tile) -> None:
        """Take back what was ordered of a tile."""
        if tile.futures:
            with contextlib.suppress(Exception):
                self._client.cancel(tile.futures)
        tile.futures, tile.is_doubled = [], False

    def _tell(self) -> None:
        done = sum(tile.weight for tile in self._all if tile.order.name in self._records)
        notify(self._progress, "tiles", done, sum(tile.weight for tile in self._all))

    # ----------------------------------------------------------------------- when something is lost

    def _find_scheduler(self) -> None:
        """Connect to the scheduler again; everything that it had is ordered anew.

        Raises
        ------
        ClusterError
            It was ours, or does not come back.
        """
        if self._address is None:
            raise ClusterError("the scheduler of this machine's workers ended; run the same command again")
        logger.warning(
            "the scheduler at %s is gone; waiting for it up to %.0f s", self._address, self._patience.scheduler
        )
        with contextlib.suppress(Exception):
            self._client.close(timeout=1)
        self._client = connect(self._address, patience_s=self._patience.scheduler)
        self._listed_until = 0.0
        self._result.reconnected += 1
        for tile in self._running:
            self._result.orders_lost += len(tile.futures)
            tile.futures, tile.is_doubled = [], False
        self._waiting.extendleft(reversed(self._running))
        self._running = []

    def _look_around(self) -> None:
        """Look for tiles that take too long, and for a cluster without workers."""
        now = time.monotonic()
        if now < self._next_look or self._client.status != "running":
            return
        self._next_look = now + LOOK_SECONDS
        workers = self._workers()
        if workers:
            self._alone_since = None
        else:
            self._alone_since = self._alone_since or now
            if now - self._alone_since > self._patience.workers:
                waited = f"{self._patience.workers:.0f} s"
                raise ClusterError(f"no worker has come for {waited}; start some: dask worker {self._address or ''}")
        for tile in list(self._running):
            if tile.only and workers and tile.only.isdisjoint(workers):  # nobody is left who may make it
                self._running.remove(tile)
                self._drop(tile)
                self._waiting.appendleft(tile)
                continue
            begun = beginnings(tile.order)
            if begun > tile.seen_begun:
                tile.seen_begun, tile.running_since = begun, now
        if self._waiting or not self._rates or len(self._running) >= len(workers):
            return  # everybody has something to do
        usual = sorted(self._rates)[len(self._rates) // 2]
        for tile in self._running:
            most = max(self._patience.straggler, self._patience.straggler_factor * usual * tile.weight)
            if tile.running_since and not tile.is_doubled and now - tile.running_since > most:
                self._double(tile, workers)

    def _double(self, tile: _Tile, workers: Sequence[str]) -> None:
        """Order a tile once more elsewhere: whoever is first has made it, and both would make the same."""
        name, at_work = tile.order.name, set(workers)
        with contextlib.suppress(Exception):
            busy = self._client.processing()
            at_work = {address for address, keys in busy.items() if any(str(key).startswith("tile-") for key in keys)}
        logger.warning("%s takes much longer than others; another worker makes it too", name)
        tile.is_doubled = True
        self._result.doubled.append(name)
        self._submit(tile, workers, sorted(at_work))


def hosts_of(client: Client) -> Iterator[tuple[str, int]]:
    """Yield each machine of a cluster and how many tiles are made there at once."""
    counts: dict[str, int] = {}
    for told in workers_known(client).values():
        host = str(told.get("host", ""))
        counts[host] = counts.get(host, 0) + int(told.get("nthreads", 1))
    yield from counts.items()


def chosen_tiles(plan: TilePlan, names: Sequence[str]) -> TilePlan:
    """Return the plan with some of its tiles alone.

    Raises
    ------
    SpecError
        One of them is not in it.
    """
    if not names:
        return plan
    known = {tile.name: tile for tile in plan.tiles}
    wrong = [name for name in names if name not in known]
    if wrong:
        more = " ..." if len(known) > 5 else ""
        raise SpecError(f"the plan has no tile {wrong[0]!r}; it has: {', '.join(list(known)[:5])}{more}")
    return dataclasses.replace(plan, tiles=tuple(known[name] for name in names))
