"""Accidents at an exact moment of a worker's work: it kills itself, or a file goes, when it calls a function."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

WAIT_SECONDS = 30.0


def has_a_tile() -> bool:
    """Return whether this thread makes a tile, and not a part of one for another worker."""
    from distributed import get_worker

    try:
        return str(get_worker().get_current_task()).startswith("tile-")
    except (ValueError, AttributeError):
        return False


def arm(
    where: str, marker: str, who: Literal["owner", "helper"], *, other_waits: bool = False, unlink: str = ""
) -> None:
    """Have the first worker that calls ``module:function`` die before it does; run by ``client.run``.

    Parameters
    ----------
    where : str
    marker : str
        A file that only the first can make, so that it happens once.
    who : str
        The one that has the tile, or another one that does a part.
    other_waits : bool
        The other one does not go on before it has happened.
    unlink : str
        Nobody dies, but this file goes.
    """
    name, _, attribute = where.partition(":")
    module = importlib.import_module(name)
    real = getattr(module, attribute)

    @functools.wraps(real)
    def armed(*arguments: Any, **keywords: Any) -> Any:
        if ("owner" if has_a_tile() else "helper") == who:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                if unlink:
                    Path(unlink).unlink()
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        elif other_waits:
            until = time.monotonic() + WAIT_SECONDS
            while not Path(marker).exists() and time.monotonic() < until:
                time.sleep(0.01)
        return real(*arguments, **keywords)

    setattr(module, attribute, armed)


def limit_files(size: int) -> None:
    """Let this process write no file that is longer, as if its disk were full; -1: any."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))


def faults_of_arrays() -> int:
    """Return how many pages the system had to hand out for 20 arrays of 8 MB, one after the other."""
    import resource

    import numpy as np

    np.zeros(1 << 20).fill(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.empty(1 << 20).fill(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
