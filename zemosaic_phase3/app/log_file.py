"""``--log FILE``: everything that a run says, with times, for the next day or for a bug report."""

from __future__ import annotations

import io
import logging
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3 import __version__
from zemosaic_phase3.app.console import LOGGERS, make_console
from zemosaic_phase3.app.printable import printable
from zemosaic_phase3.app.summary import print_summary
from zemosaic_phase3.errors import OutputError

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.tile import Tile
    from zemosaic_phase3.progress import Callback

logger = logging.getLogger("ZeMosaicWorker")
NEWS_SECONDS: Final = 30.0  # between two lines on the progress of a stage


class _Printable(logging.Formatter):
    """Times in UTC; control characters of file names as escapes."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


@contextmanager
def logged_to(path: Path | None, command: Sequence[str]) -> Iterator[None]:
    """Write what the library logs, details too, to a file; it goes on behind what stands there. None: nowhere.

    Raises
    ------
    OutputError
        The file cannot be written; before anything else is done.
    """
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as exc:
        raise OutputError(f"{path}: the log cannot be written ({exc.strerror or exc}); choose another file") from exc
    handler.setFormatter(_Printable("%(asctime)sZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.DEBUG)
    logger.info("zemosaic-phase3 %s, Python %s, %s", __version__, sys.version.split()[0], platform.platform())
    logger.info("command: %s", " ".join(command))
    try:
        yield
    except BaseException as exc:
        logger.error("ended by %s: %s", type(exc).__name__, exc)
        raise
    finally:
        for one, old in zip(loggers, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(old)
        handler.close()


def with_log_of_progress(progress: Callback | None) -> Callback:
    """Return a callback that notes the stages of a run in the log too."""
    seen: dict[str, float] = {}

    def notify(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or stage not in seen or now - seen[stage] >= NEWS_SECONDS:
            seen[stage] = now
            logger.debug("%s: %d of %d", stage, done, total)
        if progress is not None:
            progress(stage, done, total)

    return notify


def log_summary(tile: Tile, files: Mapping[str, Path | None]) -> None:
    """Note the summary of a run in the log."""
    text = io.StringIO()
    print_summary(make_console(text), tile, files)
    logger.info("summary")
    for line in text.getvalue().splitlines():
        if line.strip():
            logger.info("%s", line.rstrip())
