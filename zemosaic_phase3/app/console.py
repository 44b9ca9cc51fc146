"""The terminal: progress and messages."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO, cast

from zemosaic_phase3.app.doctor import kernel_cache
from zemosaic_phase3.app.printable import LosingStream, broken_lines, printable
from zemosaic_phase3.app.summary import UNITS
from zemosaic_phase3.progress import Callback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


PLAIN_WIDTH: Final = 100  # characters of a line where the stream is a file or a pipe


def make_console(stream: TextIO | None) -> Console:
    """Return a console that prints text as it is (a file name may look like markup), folded and never cut.

    What cannot be written is lost: no reader of messages is worth a stack. None: nobody reads at all.
    """
    from rich.console import Console

    losing = LosingStream(stream)
    width = None if losing.isatty() else PLAIN_WIDTH
    console = Console(file=cast(TextIO, losing), markup=False, emoji=False, highlight=False, width=width)
    if console.width < 1:  # COLUMNS=0: rich would print nothing
        console.width = PLAIN_WIDTH
    return console


LINE_SHARE: Final = 0.1  # of a stage between two plain lines ...
LINE_SECONDS: Final = 1.0  # ... that are at least this far apart, seconds
LINE_AT_LEAST_EVERY: Final = 5.0  # seconds; a slow stage shows that it lives


class _Lines:
    """Progress as plain lines, few enough for a log file."""

    def __init__(self, console: Console) -> None:
        self._console, self._lock = console, threading.Lock()
        self._stage = ""
        self._stage_start = self._latest = self._line_time = time.monotonic()
        self._seen = self._line_done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` are done; prints only when there is enough news."""
        with self._lock:
            now = time.monotonic()
            if stage != self._stage:
                self._stage, self._stage_start, self._line_time = stage, self._latest, self._latest
                self._seen = self._line_done = 0
            self._latest = now
            if done <= self._seen:  # threads report out of order
                return
            self._seen = done
            waited = now - self._line_time
            enough = done - self._line_done >= LINE_SHARE * total and waited >= LINE_SECONDS
            if done < total and not enough and waited < LINE_AT_LEAST_EVERY:
                return
            self._line_time, self._line_done = now, done
            rate = done / max(now - self._stage_start, 1e-3)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            unit = UNITS.get(stage, "steps")
            self._console.print(f"{stage}: {done} of {total} {unit}, {rate:.3g} {unit}/s{left}", soft_wrap=True)


class _Bars:
    """Progress as one bar a stage; the next stage's bar appears, waiting, when one is full."""

    def __init__(self, display: Progress, stages: Sequence[str]) -> None:
        self._display, self._lock = display, threading.Lock()
        self._waiting = list(stages)
        self._tasks: dict[str, TaskID] = {}
        self._seen: dict[str, int] = {}
        self._open_next()

    def _open_next(self) -> None:
        if self._waiting:
            self._open(self._waiting[0])

    def _open(self, stage: str) -> TaskID:
        self._waiting = [name for name in self._waiting if name != stage]
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(stage, total=None, unit=UNITS.get(stage, "steps"))
        return self._tasks[stage]

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` are done."""
        with self._lock:
            self._seen[stage] = max(done, self._seen.get(stage, 0))  # threads report out of order
            self._display.update(self._open(stage), completed=self._seen[stage], total=total)
            if done >= total:
                self._open_next()


def _bar_display(console: Console) -> Progress:
    from rich import progress
    from rich.text import Text

    class RateColumn(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.3g} {task.fields['unit']}/s")

    return progress.Progress(
        progress.TextColumn("{task.description:<9}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        RateColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def shown_progress(console: Console, stages: Sequence[str], *, quiet: bool = False) -> Iterator[Callback | None]:
    """Show the progress of a run: bars on a terminal, plain lines elsewhere, nothing when quiet.

    Parameters
    ----------
    console : Console
        Of the standard error.
    stages : sequence of str
        In the order in which they come; others may come too.
    quiet : bool

    Yields
    ------
    callable or None
        To be called as ``progress(stage, done, total)``, from any thread.
    """
    if quiet:
        yield None
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar_display(console) as display:
            yield _Bars(display, stages)
    else:
        yield _Lines(console)


LOGGERS: Final = ("ZeMosaicWorker", "zemosaic", "parallel_utils", "cuda_utils")


class _ConsoleHandler(logging.Handler):
    """Prints log records one line each, above a progress bar if there is one."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        super().__init__()
        self._console, self._verbose = console, verbose

    def emit(self, record: logging.LogRecord) -> None:
        # A frame that is left out is listed, with its reason, at the end of the run.
        if not self._verbose and str(record.msg).startswith("left out"):
            return
        text = f"{record.levelname.lower()}: {printable(record.getMessage())}"
        if self._verbose and record.exc_info:
            text += "\n" + printable("".join(traceback.format_exception(*record.exc_info)).rstrip(), lines=True)
        text = "\n".join(broken_lines(text, self._console))
        self._console.print(text, style="yellow" if record.levelno >= logging.WARNING else "dim", soft_wrap=True)


@contextmanager
def shown_log(console: Console, *, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show what the library logs: warnings; only errors when quiet; everything, and tracebacks, when verbose."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = _ConsoleHandler(console, verbose=verbose)
    handler.setLevel(level)  # a log file may want more than the console
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


def announce_compilation(console: Console, *, quiet: bool) -> None:
    """Say why a first run takes longer."""
    from zemosaic_phase3.runtime.jit import is_cold

    folder = None if quiet else kernel_cache()
    if folder is not None and is_cold(folder):
        console.print("compiling kernels (first run only)", soft_wrap=True)
