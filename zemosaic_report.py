"""What a run tells its user: progress and warnings while it works, a summary and JSON when it is done.

Two streams never mix: results go to the standard output, everything that only accompanies the work (progress, warnings,
errors) to the standard error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from parallel_utils import (
    ContainerLimits,
    ParallelPlan,
    available_memory,
    container_limits,
    memory_text,
    usable_cpus,
)
from zemosaic_pipeline import FrameRow, Tile, frames_columns
from zemosaic_spec import OutputError, TileReport, __version__
from zemosaic_stack import Callback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from cuda_utils import GpuProbe
    from zemosaic_align_stack_gpu import Usability

PLAIN_WIDTH: Final = 100  # characters of a line where the stream is a file or a pipe
PACKAGES: Final = ("numpy", "numba", "astropy", "scipy", "rich", "psutil")
UNITS: Final[Mapping[str, str]] = {
    "simulate": "frames",
    "measure": "frames",
    "register": "frames",
    "stack": "slabs",
    "make": "frames",
    "bench": "methods",
}
NO_KERNEL_CACHE: Final = "no folder can be written: kernels are compiled at every start; set NUMBA_CACHE_DIR"
CHANNEL_NAMES: Final[Mapping[int, Sequence[str]]] = {1: ("grey",), 3: ("red", "green", "blue")}


def make_console(stream: TextIO) -> Console:
    """Return a console that prints text as it is (a file name may look like markup), folded and never cut."""
    from rich.console import Console

    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


# --------------------------------------------------------------------------- progress

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


# --------------------------------------------------------------------------- warnings

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
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if self._verbose and record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        self._console.print(text, style="yellow" if record.levelno >= logging.WARNING else "dim", soft_wrap=True)


@contextmanager
def shown_log(console: Console, *, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show what the library logs: warnings; only errors when quiet; everything, and tracebacks, when verbose."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = _ConsoleHandler(console, verbose=verbose)
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


# --------------------------------------------------------------------------- tables


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Print labels and texts, one line each; an empty label continues the one above.

    Lines are left to the terminal to break, so that a path can be copied, or searched for, in one piece.
    """
    from rich.text import Text

    width = max((len(label) for label, _ in facts), default=0)
    for label, text in facts:
        console.print(Text.assemble((label.ljust(width), "bold"), "  ", text), soft_wrap=True)


def print_columns(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is text, folded where there is no room; the others are right-justified."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, title in enumerate(head):
        table.add_column(title, justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


DROPPED_LINES: Final = 12  # of the summary, at most; --json has all
DROPPED_ALONE: Final = 3  # frames with one reason that are still listed one by one


def dropped_lines(dropped: Sequence[tuple[str, str]]) -> list[str]:
    """Say which frames were left out and why; many with the same reason, but for its numbers, share a line.

    Parameters
    ----------
    dropped : sequence of (name, reason)

    Returns
    -------
    list of str
        At most ``DROPPED_LINES`` and one that counts the rest.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in dropped:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), []).append((name, reason))
    lines: list[str] = []
    told = 0
    for members in sorted(groups.values(), key=len, reverse=True):
        for name, reason in members if len(members) <= DROPPED_ALONE else members[:1]:
            if len(lines) == DROPPED_LINES:
                return [*lines, f"... and {len(dropped) - told} more; --json lists all"]
            alone = len(members) <= DROPPED_ALONE
            lines.append(
                f"{Path(name).name}: {reason}"
                if alone
                else f"{len(members)} frames, such as {Path(name).name}: {reason}"
            )
            told += 1 if alone else len(members)
    return lines


def _number(value: float, digits: int = 3) -> str:
    return f"{value:#.{digits}g}" if math.isfinite(value) else "-"


def _noise_factor(report: TileReport) -> list[float]:
    pairs = zip(report.noise_before, report.noise_after, strict=True)
    return [before / after if after > 0 else math.nan for before, after in pairs]


def print_summary(console: Console, tile: Tile, files: Mapping[str, Path | None]) -> None:
    """Print what became of a run.

    Parameters
    ----------
    console : Console
    tile : Tile
    files : mapping of str to Path or None
        What was written, by label ("output", "preview"); None is left out.
    """
    report = tile.report
    channels = CHANNEL_NAMES.get(len(report.noise_after), [str(c) for c in range(len(report.noise_after))])
    ideal = f"factor (sqrt of {report.n_used} is {_number(math.sqrt(report.n_used))})"
    rows = {
        "noise of one frame, ADU": report.noise_before,
        "noise of the stack, ADU": report.noise_after,
        ideal: _noise_factor(report),
        "rejected low, %": report.rejected_low_percent,
        "rejected high, %": report.rejected_high_percent,
    }
    print_columns(console, ["", *channels], [[label, *map(_number, values)] for label, values in rows.items()])
    facts = [("frames", f"{report.n_used} of {report.n_input} used; reference {Path(report.reference).name}")]
    facts += _labelled("left out", dropped_lines(report.dropped))
    if report.all_rejected_pixels:
        facts.append(("rejected", f"{report.all_rejected_pixels} pixels lost every sample and show their median"))
    facts += _labelled("note", report.warnings)
    facts.append(("device", report.device + (f" ({report.device_reason})" if report.device_reason else "")))
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items() if seconds >= 0.05)
    facts.append(("time", f"{sum(report.seconds.values()):.1f} s" + (f": {stages}" if stages else "")))
    facts.append(("memory", f"peak {memory_text(report.peak_rss_bytes)}, slabs of {report.rows_per_slab} rows"))
    facts += [(label, str(path)) for label, path in files.items() if path is not None]
    print_facts(console, facts)


def _labelled(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(label if k == 0 else "", line) for k, line in enumerate(lines)]


# --------------------------------------------------------------------------- the picture


def write_preview(tile: Tile, path: Path) -> None:
    """Write a stretched picture of a tile, the way up its camera means."""
    from zemosaic_preview import save_png

    # Cameras store from the top down unless they say otherwise.
    is_bottom_up = str(tile.header.get("ROWORDER", "")).strip().upper() == "BOTTOM-UP"
    save_png(tile.image, path, flip_vertical=is_bottom_up)


# --------------------------------------------------------------------------- the machine


def kernel_cache() -> Path | None:
    """Return the folder where compiled kernels are kept; None if none can be written (or nothing is compiled)."""
    from zemosaic_resample import demosaic_rows

    statistics = getattr(demosaic_rows, "stats", None)  # a plain function when Numba is switched off
    folder = None if statistics is None else statistics.cache_path
    return None if folder is None else Path(folder)


def announce_compilation(console: Console, *, quiet: bool) -> None:
    """Say why a first run takes longer."""
    from zemosaic_kernels import is_cold

    folder = None if quiet else kernel_cache()
    if folder is not None and is_cold(folder):
        console.print("compiling kernels (first run only)", soft_wrap=True)


def machine_facts() -> list[tuple[str, str]]:
    """Return what ``doctor`` prints: labels and texts on versions, cores, memory, GPU, and what a stack would use."""
    import cuda_utils
    import zemosaic_worker
    from zemosaic_align_stack_gpu import usability

    limits = container_limits()
    cpus, available = usable_cpus(limits), available_memory(limits)
    cache = kernel_cache()
    plan = ParallelPlan(cpu_workers=cpus, use_memmap=False, max_chunk_bytes=0, use_gpu=True)
    takes_gpu = zemosaic_worker._phase3_gpu_candidate(plan)
    why = "" if takes_gpu else f" ({zemosaic_worker._phase3_gpu_refusal(plan)})"
    return [
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("python", f"{sys.executable} on {platform.platform()}"),
        ("cores", f"{cpus} of {os.cpu_count()} may be used" + (f"; quota {limits.cpus:g}" if limits.cpus else "")),
        ("memory", _memory_fact(limits, available)),
        ("kernel cache", f"{cache} (writable)" if cache else NO_KERNEL_CACHE),
        *_gpu_facts(cuda_utils.probe(), usability()),
        ("stack would", f"use the {'GPU' if takes_gpu else 'CPU'}{why},"),
        ("", f"{cpus} workers, {memory_text(available // 2)} of memory (half of what is available)"),
    ]


def _memory_fact(limits: ContainerLimits, available: int) -> str:
    import psutil

    text = f"{memory_text(available)} available of {memory_text(int(psutil.virtual_memory().total))}"
    return text if limits.memory_limit is None else f"{text}; container limit {memory_text(limits.memory_limit)}"


def _gpu_facts(gpu: GpuProbe, check: Usability) -> list[tuple[str, str]]:
    if not gpu.usable_hint:
        return [("GPU", f"none: {gpu.reason}"), ("", f"remedy: {gpu.remedy}")]
    free = f"{memory_text(gpu.vram_free)} free of {memory_text(gpu.vram_total)}"
    cuda = f"CuPy {gpu.cupy_version}, CUDA runtime {gpu.runtime_version}, driver {gpu.driver_version}"
    told = "a test tile came out right" if check.usable else f"cannot be used: {check.reason}; remedy: {check.remedy}"
    return [("GPU", f"{gpu.name}, {free}; {cuda}"), ("", told)]


# --------------------------------------------------------------------------- JSON


def versions() -> dict[str, str]:
    """Return the versions of this program, of Python and of the packages it rests on; "missing" where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"zemosaic-phase3": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def json_ready(value: Any) -> Any:
    """Return a value made of what JSON knows: NaN and infinities become None, arrays lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _frame_documents(rows: Sequence[FrameRow]) -> list[dict[str, Any]]:
    """Return the table FRAMES row by row; what is not known of a frame is None."""
    columns = frames_columns(rows)
    columns["TRANSFORM"] = np.reshape(columns["TRANSFORM"], (-1, 3, 3))
    table = []
    for k in range(len(rows)):
        row = {name.lower(): json_ready(values[k]) for name, values in columns.items()}
        table.append({name: None if _is_unknown(value) else value for name, value in row.items()})
    return table


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_unknown, value)))


def report_document(tile: Tile, files: Mapping[str, Path | None]) -> dict[str, Any]:
    """Return everything a run reports, ready for JSON: the report, files written, versions, one entry per input."""
    document = {
        **{label: None if path is None else os.fspath(path) for label, path in files.items()},
        **tile.report.as_dict(),
        "dropped": [{"name": name, "reason": reason} for name, reason in tile.report.dropped],
        "noise_factor": _noise_factor(tile.report),
        "frames": _frame_documents(tile.rows),
        "versions": versions(),
    }
    return dict(json_ready(document))


def json_text(document: Mapping[str, Any]) -> str:
    """Return strictly valid JSON, ASCII only, one line break at its end."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_text(text: str, path: Path) -> None:
    """Write a text file that appears complete or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    temporary = path.parent / f".zemosaic-{os.getpid()}-{os.urandom(6).hex()}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        raise OutputError(f"cannot write {path}: {exc}; choose a folder you may write to, with room") from exc
    finally:
        temporary.unlink(missing_ok=True)
