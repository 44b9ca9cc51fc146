"""``watch``: a stack that grows while the telescope works.

Each pass stacks all frames that lie in the folder, exactly as ``stack`` would; the journal keeps what was measured and
registered, so that only new frames are. From ten frames on the reference stays, and with it the grid. A pass that
is interrupted leaves the image of the pass before, whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.app.live_page import LivePage, State
from zemosaic_phase3.app.printable import printable
from zemosaic_phase3.app.signals import PROGRAM
from zemosaic_phase3.app.together import check_watch
from zemosaic_phase3.errors import NoFramesError, OutputError, ZeMosaicError
from zemosaic_phase3.io.inputs import find_inputs, real_path
from zemosaic_phase3.io.open_frame import open_source

if TYPE_CHECKING:
    from rich.console import Console

    from zemosaic_phase3.pipeline.tile import Tile

Look = dict[Path, tuple[int, int]]  # size and time of each frame

SETTLED_SECONDS: Final = 1.5  # since the last byte of a frame: it is whole
LOOK_SECONDS: Final = 5.0  # between two looks where the system tells of no change, as on network folders
IDLE_SECONDS: Final = 30.0  # without a new frame, after which fewer than --every are stacked too
PINNED_FRAMES: Final = 10  # from so many on the reference stays, and with it the grid
FAILED: Final = 1


@dataclass(frozen=True)
class Rhythm:
    """When a pass begins: with so many new frames, or fewer after a pause; when to end, seconds; None: never."""

    every: int = 1
    until_idle: float | None = None

    def is_due(self, n_new: int, idle: float, since_pass: float, pass_seconds: float) -> bool:
        """Tell whether to stack again.

        Parameters
        ----------
        n_new : int
            Frames that are new or changed since the last pass.
        idle, since_pass : float
            Seconds since the last frame, and since the last pass ended.
        pass_seconds : float
            Length of that pass: half of the time at most goes into stacking.
        """
        if n_new < 1 or since_pass < pass_seconds:
            return False
        return n_new >= self.every or idle >= IDLE_SECONDS


def look_at(folder: Path, output: Path, *, recursive: bool) -> Look:
    """Return the frames in a folder, with size and time of each; the output is none."""
    try:
        paths = find_inputs([folder], recursive=recursive).paths
    except NoFramesError:
        return {}
    target, found = real_path(output), {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # removed meanwhile
            continue
        if real_path(path) != target:
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def settled(look: Look, earlier: Look, now: float) -> Look:
    """Return the frames that nobody writes any more: old enough, or as they were when last looked at."""
    return {
        path: (size, modified)
        for path, (size, modified) in look.items()
        if size and (now - modified / 1e9 >= SETTLED_SECONDS or earlier.get(path) == (size, modified))
    }


def first_reference(output: Path, folder: Path) -> str | None:
    """Return the reference of an earlier run, by the image that it wrote; None: there is none that is still there."""
    if not output.is_file():
        return None
    try:
        name = str(open_source(output).read_header().get("ZMT_REF", ""))
    except ZeMosaicError:
        return None
    found = sorted(folder.rglob(name)) if name and "/" not in name and not set(name) & set("*?[") else []
    return str(found[0]) if found else None


def run_watch(args: argparse.Namespace, console: Console, stack_once: Callable[..., Tile]) -> int:
    """Watch a folder until interrupted, or until nothing has come for a while; returns the exit status."""
    folder = check_watch(args)
    rhythm = Rhythm(args.every, args.until_idle)
    args.overwrite = True  # its own image of the pass before
    if args.reference == "auto":
        args.reference = first_reference(args.output, folder) or "auto"
    state = State(str(folder), str(args.output))
    preview = args.output.with_suffix(".png") if args.preview is None else args.preview
    page = None if args.no_page else LivePage(state, None if str(preview) == "none" else preview, args.port)
    try:
        if page is not None:
            console.print(f"the stack grows at {page.start()}", soft_wrap=True)
        console.print(f"watching {printable(str(folder))}; Ctrl-C ends it, and it can be started again", soft_wrap=True)
        return _loop(args, folder, rhythm, state, console, stack_once)
    finally:
        if page is not None:
            page.stop()


def _loop(
    args: argparse.Namespace,
    folder: Path,
    rhythm: Rhythm,
    state: State,
    console: Console,
    stack_once: Callable[..., Tile],
) -> int:
    stacked: Look = {}
    earlier: Look = {}
    began = last_news = last_pass = time.monotonic()
    pass_seconds, status = 0.0, FAILED
    while True:
        look = look_at(folder, args.output, recursive=args.recursive)
        ready = settled(look, earlier, time.time())
        now = time.monotonic()
        last_news = now if look != earlier else last_news
        earlier = look
        news = [path for path, seen in ready.items() if stacked.get(path) != seen]
        gone = stacked.keys() - look.keys()
        is_first = not stacked and bool(ready)
        if rhythm.is_due(len(news) + len(gone), now - last_news, now - last_pass, pass_seconds) or (
            is_first and now - began >= SETTLED_SECONDS and now - last_news >= SETTLED_SECONDS
        ):
            status = _pass(args, state, console, stack_once)
            stacked, last_pass = look, time.monotonic()
            pass_seconds = last_pass - now
            continue
        if rhythm.until_idle is not None and now - max(last_news, last_pass) >= rhythm.until_idle:
            if not news or not args.output.exists():
                return status
            status = _pass(args, state, console, stack_once)
            stacked, last_pass = look, time.monotonic()
            continue
        _wait(folder, 0.3 if look != ready or news else LOOK_SECONDS, rhythm)


def _pass(args: argparse.Namespace, state: State, console: Console, stack_once: Callable[..., Tile]) -> int:
    """Stack what is there, and say in one line what came out; an error is told, and the next pass tries again."""
    try:
        tile = stack_once(args, args.inputs, console)
    except (OutputError, NoFramesError, ZeMosaicError) as exc:
        state.fault = str(exc)
        console.print(f"{PROGRAM}: {printable(str(exc))}", style="yellow", soft_wrap=True)
        return FAILED
    report = tile.report
    args.fresh = False  # the journal was emptied once
    if report.n_used >= PINNED_FRAMES:
        args.reference = report.reference
    state.take(tile)
    console.print(printable(state.line()), soft_wrap=True)
    return 0


def _wait(folder: Path, seconds: float, rhythm: Rhythm) -> None:
    """Wait until something changes in a folder, or some seconds at most."""
    if rhythm.until_idle is not None:
        seconds = min(seconds, max(0.1, rhythm.until_idle / 4))
    try:
        from watchfiles import watch

        for _changes in watch(
            folder, rust_timeout=int(1000 * seconds), yield_on_timeout=True, debounce=200, step=50, raise_interrupt=True
        ):
            return
    except (ImportError, OSError, UnicodeEncodeError):  # too many are watched; the folder's name is no text
        time.sleep(seconds)
