"""What a signal means to the program, at any moment.

Ctrl-C, SIGTERM, SIGHUP (the terminal is gone) and Windows' Ctrl-Break all mean the same: stop, leave nothing behind,
and say so in one line. While modules are imported there is nothing to clean up and the process ends at once: an
exception could come up inside of an import, which would report it as something else. Afterwards the first signal raises
``KeyboardInterrupt`` in the main thread, once no import is under way there, and those that follow do not disturb the
cleaning up; only a signal that comes much later ends the process as it is. Once the command is done no signal changes
its exit status.

Importing this library never touches a signal; only the program does.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from types import FrameType
from typing import Final

PROGRAM: Final = "zemosaic-phase3"
SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # as far as the system has them
PATIENCE_S: Final = 5.0  # for cleaning up, before another signal ends the process as it is
NAP_S: Final = 0.02  # until a signal that struck during an import is tried again


class Stops:
    """What a signal does, by how far the program is."""

    def __init__(self) -> None:
        self._unwinds = False  # there is something to clean up
        self._is_done = False
        self._first: float | None = None  # time of the signal that was raised, seconds

    def install(self) -> None:
        """Take over the signals that end a program, but for those that whoever started it wants ignored (``nohup``)."""
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)

    def begin_work(self) -> None:
        """From now on a signal raises KeyboardInterrupt, whose argument is its number."""
        self._unwinds = True

    def finish(self) -> None:
        """From now on signals are ignored."""
        self._is_done = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._is_done or (self._first is not None and now - self._first < PATIENCE_S):
            return
        if not self._unwinds or self._first is not None:
            say_interrupted()
            os._exit(stopped_status(number))
        if _cannot_be_left(frame):
            again = threading.Timer(NAP_S, _thread.interrupt_main, [number])
            again.daemon = True
            again.start()
            return
        self._first = now
        raise KeyboardInterrupt(number)


def _cannot_be_left(frame: FrameType | None) -> bool:
    """Return whether an exception raised here might be lost or turn into another: in an import, in a finaliser."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def stopped_status(number: int) -> int:
    """Return the exit status after a signal, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


def say_interrupted() -> None:
    """Write the line past Python's streams, which may be in use where the signal struck."""
    try:
        os.write(2, f"{PROGRAM}: interrupted\n".encode())
    except OSError:
        return
