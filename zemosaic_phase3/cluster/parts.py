"""A tile's work in parts: other workers do some, the one that has the tile does the rest, and nobody waits for long.

The one that has the tile keeps its place on its worker, so that no other tile begins there meanwhile. It does parts
too, from the last, while others begin from the first; so a tile is made even where all others are busy or gone.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zemosaic_phase3.cluster.pool import workers_known

if TYPE_CHECKING:
    from distributed import Future

logger = logging.getLogger("ZeMosaicWorker")

FIRST: Final = 10  # priority of a part: before tiles that have not begun, because a tile waits for it
RETRIES: Final = 2  # of a part whose worker dies
LATE: Final = 2.0  # times what a part took here: one that another has for longer is done here too
LATE_SECONDS: Final = 5.0  # but not before
NAP_SECONDS: Final = 0.05
Part = TypeVar("Part")


def done_together(common: Any, parts: Sequence[tuple[Any, ...]], fn: Callable[..., Part]) -> Iterator[tuple[int, Part]]:
    """Have parts done by workers of the cluster, this one among them; yields the position and result of each.

    Parameters
    ----------
    common : object
        What all parts need; sent to a worker once.
    parts : sequence of tuple
        The other arguments of each part.
    fn : callable
        Called as ``fn(common, *part)``; of a module, so that others find it.

    Yields
    ------
    tuple of int and result
        In any order. Where the cluster is lost the rest is done here.
    """
    topic = f"parts-{uuid.uuid4().hex}"
    left = set(range(len(parts)))
    futures = _asked(common, parts, fn, topic)
    longest, waiting_since = 0.0, None
    try:
        while left:
            for k, result in _finished(futures):
                left.discard(k)
                waiting_since = None
                yield k, result
            free = sorted(left - (_begun(topic) & futures.keys() if futures else set()))
            if left and not free:  # others do what is left
                now = time.monotonic()
                waiting_since = waiting_since or now
                if now - waiting_since < max(LATE_SECONDS, LATE * longest):
                    time.sleep(NAP_SECONDS)
                    continue
                free = sorted(left)
            for k in free[-1:]:
                _cancel(futures.pop(k, None))
                began = time.monotonic()
                result = fn(common, *parts[k])
                longest = max(longest, time.monotonic() - began)
                left.discard(k)
                yield k, result
    finally:
        for future in futures.values():  # of parts that were done here too
            _cancel(future)


def _asked(common: Any, parts: Sequence[tuple[Any, ...]], fn: Callable[..., Part], topic: str) -> dict[int, Future]:
    """Ask other workers to do parts; nothing is asked where there are none."""
    from distributed import get_client, get_worker

    try:
        own, client = get_worker().address, get_client()
        others = [address for address in workers_known(client) if address != own]
        if not others or len(parts) < 2:
            return {}
        there = client.scatter(common, workers=[own], hash=False)
        return {
            k: client.submit(
                _begin, topic, k, fn, there, *part, pure=False, priority=FIRST, retries=RETRIES, workers=others
            )
            for k, part in enumerate(parts)
        }
    except Exception as exc:  # noqa: BLE001 - a cluster fails in many ways; a tile can be made without
        logger.warning("no other worker can be asked (%s: %s)", type(exc).__name__, exc)
        return {}


def _begin(topic: str, k: int, fn: Callable[..., Part], common: Any, *part: Any) -> Part:
    """Do a part for another worker, after telling that it is begun."""
    from distributed import get_worker

    get_worker().log_event(topic, k)
    return fn(common, *part)


def _cancel(future: Future | None) -> None:
    if future is not None:
        with contextlib.suppress(Exception):  # of a cluster that is gone
            future.cancel()


def _finished(futures: dict[int, Future]) -> Iterator[tuple[int, Any]]:
    """Take what others have finished; what they could not do is forgotten, and done here."""
    for k, future in list(futures.items()):
        if future.status == "pending":
            continue
        del futures[k]
        try:
            result = future.result(timeout=60)
        except Exception as exc:  # noqa: BLE001 - workers that died, memory they lack, a scheduler that is gone
            logger.warning("a part of a tile was lost (%s: %s); this worker does it", type(exc).__name__, exc)
        else:
            yield k, result


def _begun(topic: str) -> set[int]:
    """Return which parts others have begun."""
    from distributed import get_client

    try:
        return {int(k) for _, k in get_client().get_events(topic) or ()}
    except Exception as exc:  # noqa: BLE001 - a scheduler that is gone: nobody does anything
        logger.debug("what others do is not known: %s", exc)
        return set()
