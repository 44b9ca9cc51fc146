"""The program's way in: signals and streams are seen to before anything slow is imported."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

from zemosaic_phase3.app.signals import Stops, say_interrupted, stopped_status

STANDARD_STREAMS: Final = 3


def hold_standard_streams() -> None:
    """Open what the program was started without, as ``2>&-`` does: into nothing.

    Otherwise the first file that is opened would get the number of the missing stream, and whatever a library prints
    there would be written into it.
    """
    for number in range(STANDARD_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:  # somebody was faster; the stream stays closed
                break
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a program without a console (pythonw)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


def run_program() -> NoReturn:
    """Run the command line as a program of its own, and end the process at once.

    All files are closed when :func:`app.cli.main` returns, and the system takes back the memory faster than Python
    gives up every object of every package, which takes 0.03 s, and 0.3 s where it looks for garbage among them.
    """
    stops = Stops()
    stops.install()
    hold_standard_streams()
    from zemosaic_phase3.app.cli import main

    try:
        try:
            stops.begin_work()
            status = main()
        finally:
            stops.finish()
    except KeyboardInterrupt as exc:  # where main() cannot catch it: before its first line or after its last
        say_interrupted()
        status = stopped_status(exc.args[0] if exc.args else signal.SIGINT)
    except SystemExit as exc:  # argparse, which has said why
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe, a full disk: nobody reads what is lost, the result is written
            continue
    os._exit(status)
