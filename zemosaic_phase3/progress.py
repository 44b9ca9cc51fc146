"""Telling a caller how far the work is, and a report how long it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from zemosaic_phase3.errors import StackCancelled
from zemosaic_phase3.records import TileReport

logger = logging.getLogger("ZeMosaicWorker")


Callback = Callable[..., Any]


def notify(callback: Callback | None, *args: Any, **keywords: Any) -> None:
    """Call a progress callback; one that raises never breaks a stack, unless it raises ``StackCancelled``."""
    if callback is None:
        return
    try:
        callback(*args, **keywords)
    except StackCancelled:
        raise
    except Exception as exc:  # noqa: BLE001 - the callback is the caller's code; its faults are not the tile's
        logger.debug("progress callback raised %s: %s", type(exc).__name__, exc)


@contextmanager
def timed(report: TileReport, stage: str) -> Iterator[None]:
    """Add the wall time of a stage to the report, seconds."""
    start = time.perf_counter()
    try:
        yield
    finally:
        report.seconds[stage] = report.seconds.get(stage, 0.0) + time.perf_counter() - start
