"""The terminal: progress and messages."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO, cast

from zemosaic_phase3.app.doctor import kernel_cache
from zemosaic_phase3.app.printable import LosingStream, broken_lines, printable
from zemosaic_phase3.app.summary import UNITS
from zemosaic_phase3.progress import Callback
from zemosaic_phase3.report.sky_marks import duration

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
COMPILED_FIRST: Final = ("calibrate", "measure", "bench")  # stages that wait for kernels of their own
PACE_SECONDS: Final = 2.0  # of a stage before its pace says something
PACE_STEPS: Final = 3  # and steps, or a quarter of a short stage
WIDE_COLUMNS: Final = 100  # of a terminal with room for longer bars
BAR_COLUMNS: Final = (26, 40)


class Pace:
    """How fast a stage is, counted from its first step on: before that lie start, waiting and compiling."""

    def __init__(self) -> None:
        self._first_time = self._time = 0.0
        self._first = self.done = self.total = 0

    def note(self, done: int, total: int, now: float) -> bool:
        """Note that so many are done at a time, seconds; False where that was known: threads report out of order."""
        if done <= self.done:
            return False
        if not self.done:
            self._first_time, self._first = now, done
        self.done, self.total, self._time = done, total, now
        return True

    @property
    def rate(self) -> float | None:
        """Steps a second; None until that means something."""
        steps, seconds = self.done - self._first, self._time - self._first_time
        is_known = seconds >= PACE_SECONDS and steps >= min(PACE_STEPS, self.total / 4)
        return steps / seconds if is_known else None

    def told(self, stage: str) -> list[str]:
        """Return the pace and what is left, as far as that is known."""
        rate, left = self.rate, self.total - self.done
        if rate is None:
            return []
        pace = f"{rate:.3g} {UNITS.get(stage, 'steps')}/s"
        return [pace, f"{duration(max(round(left / rate), 1))} left"] if left > 0 else [pace]


class _Lines:
    """Progress as plain lines, few enough for a log file."""

    def __init__(self, console: Console) -> None:
        self._console, self._lock = console, threading.Lock()
        self._stage, self._pace = "", Pace()
        self._latest = self._line_time = time.monotonic()
        self._line_done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` are done; prints only when there is enough news."""
        with self._lock:
            now = time.monotonic()
            if stage != self._stage:
                self._stage, self._pace, self._line_time, self._line_done = stage, Pace(), self._latest, 0
            self._latest = now
            if not self._pace.note(done, total, now):
                return
            waited = now - self._line_time
            enough = done - self._line_done >= LINE_SHARE * total and waited >= LINE_SECONDS
            if done < total and not enough and waited < LINE_AT_LEAST_EVERY:
                return
            self._line_time, self._line_done = now, done
            told = [f"{stage}: {done} of {total} {UNITS.get(stage, 'steps')}", *self._pace.told(stage)]
            self._console.print(", ".join(told), soft_wrap=True)


class _Bars:
    """Progress as one bar a stage; the next stage's bar appears, waiting, when one is full."""

    def __init__(self, display: Progress, stages: Sequence[str], *, cold: bool) -> None:
        self._display, self._lock, self._cold = display, threading.Lock(), cold
        self._waiting = list(stages)
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}
        self._open_next()

    def _open_next(self) -> None:
        if self._waiting:
            self._open(self._waiting[0])

    def _open(self, stage: str) -> TaskID:
        self._waiting = [name for name in self._waiting if name != stage]
        if stage not in self._tasks:
            self._paces[stage] = Pace()
            self._tasks[stage] = self._display.add_task(stage, total=None, told=partial(self._told, stage))
        return self._tasks[stage]

    def _told(self, stage: str, seconds: float) -> str:
        """Say where a stage is, some seconds after its bar appeared."""
        pace = self._paces[stage]
        if pace.done:
            return " · ".join([f"{pace.done}/{pace.total}", *pace.told(stage)])
        if self._cold and (stage in COMPILED_FIRST or compiles_beside()):
            return f"compiling, first run only: {seconds:.0f} s"
        return "starting" if seconds < 1 else f"starting: {seconds:.0f} s"

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` are done."""
        with self._lock:
            task = self._open(stage)
            self._paces[stage].note(done, total, time.monotonic())
            self._display.update(task, completed=self._paces[stage].done, total=total)
            if done >= total:
                self._open_next()


def compiles_beside() -> bool:
    """Return whether the process that compiles kernels is still at it."""
    from zemosaic_phase3.runtime.jit import running_compiler

    return any(process.poll() is None for process in list(running_compiler))


def _bar_display(console: Console) -> Progress:
    from rich import progress
    from rich.text import Text

    class Told(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(task.fields["told"](task.elapsed or 0.0), no_wrap=True)

    return progress.Progress(
        progress.TextColumn("{task.description:<9}"),
        progress.BarColumn(BAR_COLUMNS[console.width >= WIDE_COLUMNS]),
        Told(),
        console=console,
        transient=True,
    )


@contextmanager
def shown_progress(
    console: Console, stages: Sequence[str], *, quiet: bool = False, cold: bool = False
) -> Iterator[Callback | None]:
    """Show the progress of a run: bars on a terminal, plain lines elsewhere, nothing when quiet.

    Parameters
    ----------
    console : Console
        Of the standard error.
    stages : sequence of str
        In the order in which they come; others may come too.
    quiet : bool
    cold : bool
        Kernels have to be compiled first; see :func:`announce_compilation`.

    Yields
    ------
    callable or None
        To be called as ``progress(stage, done, total)``, from any thread.
    """
    if quiet:
        yield None
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar_display(console) as display:
            yield _Bars(display, stages, cold=cold)
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


def announce_compilation(console: Console, *, quiet: bool) -> bool:
    """Say why a first run takes longer; return whether it is one."""
    from zemosaic_phase3.runtime.jit import is_cold

    folder = None if quiet else kernel_cache()
    if folder is None or not is_cold(folder):
        return False
    text = "compiling kernels, at the first run only (about half a minute)"
    console.print("\n".join(broken_lines(text, console)), soft_wrap=True)
    return True
