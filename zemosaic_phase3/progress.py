"""Telling a caller how far the work is, and a report how long it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    """Add what a stage takes to the report: wall seconds, CPU seconds of all threads, and bytes read from files."""
    start, cpu, read = time.perf_counter(), time.process_time(), bytes_read()
    try:
        yield
    finally:
        for totals, more in (
            (report.seconds, time.perf_counter() - start),
            (report.cpu_seconds, time.process_time() - cpu),
            (report.bytes_read, float(bytes_read() - read)),
        ):
            totals[stage] = totals.get(stage, 0.0) + more


def bytes_read() -> int:
    """Return the bytes this process has read so far, from the system's cache too; 0 where the system does not tell.

    Source: ``rchar`` of ``/proc/self/io`` on Linux; macOS does not count, and Windows is not asked.
    """
    try:
        return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
