"""Tests of ``app.console``."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from zemosaic_phase3.app import console as console_module


def test_plain_progress_is_brief_and_ends_with_the_end():
    stream = io.StringIO()
    with console_module.shown_progress(console_module.make_console(stream), ("measure",)) as progress:
        for done in (*range(1, 999), 1000, 999):  # threads finish out of order
            progress("measure", done, 1000)
        progress("stack", 1, 2)
        progress("stack", 2, 2)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["measure: 1000 of 1000 frames", "stack: 2 of 2 slabs"]


def test_a_slow_stage_shows_that_it_lives(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with console_module.shown_progress(console_module.make_console(stream), ("measure",)) as progress:
        for done in range(1, 6):
            clock[0] += 3.0
            progress("measure", done, 1000)
    assert stream.getvalue().splitlines() == [
        "measure: 2 of 1000 frames, 0.333 frames/s, 2994 s left",
        "measure: 4 of 1000 frames, 0.333 frames/s, 2988 s left",
    ]


def test_a_terminal_gets_bars():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)
    with console_module.shown_progress(console, ("measure", "register")) as progress:
        progress("measure", 2, 4)
        progress("measure", 4, 4)
        progress("other", 1, 1)
    drawn = console.file.getvalue()
    for text in ("measure", "4/4", "register", "other"):
        assert text in drawn


def test_warnings_are_shown_once_and_details_only_when_asked_for():
    logger = logging.getLogger("ZeMosaicWorker")
    streams = {}
    for name, options in {"quiet": {"quiet": True}, "normal": {}, "verbose": {"verbose": True}}.items():
        streams[name] = io.StringIO()
        with console_module.shown_log(console_module.make_console(streams[name]), **options):
            logger.debug("detail")
            logger.warning("[P3][GPU] [red]odd[/red]")
            logger.warning("left out: %s: %s", "a.fits", "blank")
            logger.error("bad")
    logger.warning("after the run")
    shown = {name: stream.getvalue().splitlines() for name, stream in streams.items()}
    assert shown["quiet"] == ["error: bad"]
    assert shown["normal"] == ["warning: [P3][GPU] [red]odd[/red]", "error: bad"]
    assert shown["verbose"][0] == "debug: detail"
    assert "warning: left out: a.fits: blank" in shown["verbose"]
