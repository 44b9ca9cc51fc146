"""One run at a time in a folder of tiles: a second one would make the same tiles a second time.

A file says who is at work, and is touched as long as that run lives. One that nobody touches any more is no run's.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.cluster.order import WORK_FOLDER
from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import machine

LOCK: Final = "run.lock"
TOUCH_SECONDS: Final = 10.0
GONE_SECONDS: Final = 60.0  # since the last touch: a run of another machine, whose processes cannot be seen from here


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Be the only run in a folder of tiles while the block lasts.

    Raises
    ------
    OutputError
        Another one is at work there, or the folder may not be written.
    """
    path = folder / WORK_FOLDER / LOCK
    me = {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "token": os.urandom(8).hex()}
    try:
        _take(path, json.dumps(me))
    except OSError as exc:
        raise OutputError(f"{folder}: may not be written ({exc.strerror}); choose another folder") from exc
    stop = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, stop), name="zemosaic-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _holder(path).get("token") == me["token"]:
            path.unlink(missing_ok=True)


def _take(path: Path, text: str) -> None:
    """Write the file; raises OutputError where a run that lives has written it, OSError where nobody can."""
    for _ in range(2):
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            holder = _holder(path)
            if _lives(path, holder):
                who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
                raise OutputError(
                    f"{path.parents[1]}: another run ({who}) makes tiles there; wait for it, or choose another folder; "
                    f"if there is no such run any more, as after a restart of the machine, delete {path}"
                ) from None
            path.unlink(missing_ok=True)
        else:
            return
    raise OutputError(f"{path.parents[1]}: another run has just begun there; wait for it, or choose another folder")


def _holder(path: Path) -> dict[str, Any]:
    """Return what a run said of itself; nothing where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _lives(path: Path, holder: dict[str, Any]) -> bool:
    """Return whether the run that wrote a file is at work, by its process, or from afar by when it touched it last.

    Times are those of the disk, which may have a clock of its own.
    """
    import psutil

    if holder.get("machine") == machine():
        pid = holder.get("pid")
        return isinstance(pid, int) and psutil.pid_exists(pid)
    probe = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < GONE_SECONDS
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            path.touch(exist_ok=True)
