"""The program's way in: signals at any moment, streams that nobody reads."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from zemosaic_phase3.app import cli, signals
from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app.printable import LosingStream, printable

posix = pytest.mark.skipif(os.name != "posix", reason="a POSIX matter")
PROGRAM = [sys.executable, "-m", "zemosaic_phase3"]


class ProcessEnd(BaseException):
    """In the place of ``os._exit``."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses the process would have ended with."""
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise ProcessEnd

    monkeypatch.setattr(signals.os, "_exit", leave)
    monkeypatch.setattr(signals, "say_interrupted", lambda: None)
    return statuses


def strike(stops: signals.Stops, number: int = signal.SIGINT) -> None:
    stops._stop(number, sys._getframe())  # noqa: SLF001 - what the system calls


def test_before_the_work_a_signal_ends_the_process_at_once(ends: list[int]) -> None:
    with pytest.raises(ProcessEnd):
        strike(signals.Stops(), signal.SIGTERM)
    assert ends == [128 + signal.SIGTERM]


def test_the_first_signal_unwinds_and_the_next_ones_let_it(ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    stops = signals.Stops()
    stops.begin_work()
    with pytest.raises(KeyboardInterrupt) as raised:
        strike(stops)
    assert raised.value.args == (signal.SIGINT,)
    for _ in range(20):
        strike(stops)
    clock[0] += signals.PATIENCE_S
    with pytest.raises(ProcessEnd):
        strike(stops)
    assert ends == [130]


def test_once_the_command_is_done_its_status_stands(ends: list[int]) -> None:
    stops = signals.Stops()
    stops.begin_work()
    stops.finish()
    strike(stops)
    assert not ends


def test_an_import_is_not_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that turns whatever happens in it into another error, as compiled ones do."""
    again: list[int] = []
    monkeypatch.setattr(signals._thread, "interrupt_main", again.append)  # noqa: SLF001 - its name
    stops = signals.Stops()
    stops.begin_work()
    monkeypatch.setitem(sys.modules, "struck_here", None)
    (tmp_path / "struck.py").write_text("import builtins\nbuiltins.strike_now()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.strike_now", lambda: strike(stops), raising=False)
    __import__("struck")
    for _ in range(100):
        if again:
            break
        time.sleep(0.02)
    assert again == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        strike(stops)


def test_the_library_touches_no_signal() -> None:
    code = (
        "import signal; kinds = [getattr(signal, n) for n in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, n)]\n"
        "before = [signal.getsignal(kind) for kind in kinds]\n"
        "import zemosaic_phase3, zemosaic_phase3.api, zemosaic_phase3.app.program, zemosaic_worker\n"
        "assert zemosaic_phase3.stack and [signal.getsignal(kind) for kind in kinds] == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_it_imports_is_one_line(number: str) -> None:
    """The moment is the import of NumPy, which stands for all: it is found by its file being looked at."""
    code = (
        "import os, signal, sys\n"
        "class Find:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'numpy':\n            [os.kill(os.getpid(), signal.{number}) for _ in range(20)]\n"
        "sys.meta_path.insert(0, Find())\n"
        "from zemosaic_phase3.app.program import run_program\nrun_program()"
    )
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, number), "zemosaic-phase3: interrupted\n")


@posix
def test_what_the_starter_wants_ignored_is_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from zemosaic_phase3.app.signals import Stops; Stops().install()\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN; assert callable(signal.getsignal(signal.SIGTERM))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(1)
    for k in range(3):
        np.save(folder / f"{k}.npy", rng.normal(1000.0, 20.0, (32, 48)).astype(np.float32))
    return folder


def command(frames: Path, out: Path, *more: str) -> str:
    """As a shell has it; nothing measured, no kernel that other tests do not need."""
    options = ("--register", "none", "--normalize", "none", "--weight", "none", "--reject", "none", "--preview", "none")
    return " ".join(f"'{part}'" for part in (*PROGRAM, "stack", frames, "-o", out, *options, *more))


@posix
@pytest.mark.parametrize(
    "streams", ["2>&1 | true", ">&- 2>&-", "<&- >&- 2>&-", pytest.param("> /dev/full 2> /dev/full", id="full")]
)
def test_lost_messages_cost_no_stack(streams: str, frames: Path, tmp_path: Path) -> None:
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    script = f"{{ {command(frames, tmp_path / 'a.fits')}; echo $? > '{tmp_path}/status'; }} {streams}"
    subprocess.run(["/bin/sh", "-c", script], cwd=ROOT)
    assert (tmp_path / "status").read_text() == "0\n"
    assert (tmp_path / "a.fits").read_bytes().startswith(b"SIMPLE")


@posix
def test_a_lost_report_is_an_error_and_says_what_is_safe(frames: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    script = command(frames, tmp_path / "a.fits", "--json", "-", "--quiet") + " > /dev/full"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"the stack is written to {tmp_path / 'a.fits'}" in done.stderr


@posix
def test_a_missing_stream_is_not_the_first_file() -> None:
    code = (
        "import os, sys; from zemosaic_phase3.app.program import hold_standard_streams; hold_standard_streams()\n"
        "file = open(sys.argv[1], 'wb'); os.write(2, b'noise of a library'); sys.stderr.write('more')\n"
        "assert file.fileno() > 2"
    )
    script = f"'{sys.executable}' -c \"{code}\" '{os.devnull}' 2>&-"
    assert subprocess.run(["/bin/sh", "-c", script], cwd=ROOT).returncode == 0


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise ValueError("closed")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Broken(), None])
def test_a_console_loses_what_cannot_be_written(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = console_module.make_console(stream)
    with console_module.shown_progress(console, ("measure",)) as progress:
        assert progress is not None
        progress("measure", 1, 2)
        progress("measure", 2, 2)
    console.print("text")
    assert LosingStream(stream).isatty() is (stream is not None)


def test_a_terminal_that_says_it_has_no_columns_is_written_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "0")
    stream = Terminal()
    console_module.make_console(stream).print("text")
    assert "text" in stream.getvalue()


def test_control_characters_are_shown_and_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b]0;x\x07\x9b\n\u202eb é 星") == "a\\x1b]0;x\\x07\\x9b\\x0a\\u202eb é 星"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    name = "no\x1b]0;owned\x07.fits"
    for more in ([], ["--verbose"], ["--quiet"]):
        assert cli.main(["stack", str(tmp_path / name), "-o", str(tmp_path / "a.fits"), *more]) == 1
    with pytest.raises(SystemExit):
        cli.main(["stack", "a", "-o", "b.fits", f"--{name}"])
    shown = "".join(capsys.readouterr())
    assert "\\x1b]0;owned\\x07" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def test_no_thread_is_left_waiting() -> None:
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
