"""Tests of ``app.console``."""

from __future__ import annotations

import io
import logging
import re

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
        "measure: 2 of 1000 frames",  # a pace and an end of it would mean nothing yet
        "measure: 4 of 1000 frames, 0.333 frames/s, 50 min left",
    ]


def test_waiting_before_the_first_step_does_not_count():
    pace = console_module.Pace()
    assert pace.note(1, 50, 100.0)  # after a minute of compiling, say
    assert pace.told("measure") == []
    for k in range(2, 11):
        pace.note(k, 50, 100.0 + 0.5 * (k - 1))
    assert not pace.note(5, 50, 105.0)
    assert pace.told("measure") == ["2 frames/s", "20 s left"]
    pace.note(50, 50, 124.5)
    assert pace.told("measure") == ["2 frames/s"]
    slabs = console_module.Pace()
    slabs.note(1, 4, 0.0)
    slabs.note(2, 4, 3.0)
    assert slabs.told("stack") == ["0.333 slabs/s", "6 s left"]


def test_a_terminal_gets_bars():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    with console_module.shown_progress(console, ("measure", "register"), cold=True) as progress:
        progress("measure", 2, 4)
        progress("measure", 4, 4)
        progress("other", 1, 1)
    drawn = console.file.getvalue()
    for text in ("measure", "4/4", "register", "other"):
        assert text in drawn
    assert "compiling, first run only: 0 s" in drawn
    assert "starting" in drawn  # nothing is compiled while the second waits
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", drawn)
    assert "?" not in plain
    assert max(map(len, re.split(r"[\r\n]", plain))) <= 80


def test_the_fullest_bar_fits_eighty_columns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    with console_module._bar_display(console) as display:  # noqa: SLF001 - time stands still for its own threads
        bars = console_module._Bars(display, ("calibrate",), cold=False)  # noqa: SLF001
        bars("calibrate", 1, 50_000)
        clock[0] = 600.0
        bars("calibrate", 12_345, 50_000)
        display.refresh()
    assert "12345/50000 · 20.6 frames/s · 30 min left" in console.file.getvalue()


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
