"""How a numeric kernel is compiled: one decorator, so that every kernel obeys the same rules of arithmetic.

Compiled code is cached on disk. Where no cache folder can be written (a read-only installation without a home
folder) the kernel is compiled in memory instead, and the run goes on.

Kernels release the interpreter lock and are never parallel inside: the engines split the work over their own
threads, because tiles run in threads and not every Numba threading layer survives that.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numba

ROOMS: Final = ("combine", "kernels", "rejection", "resample", "samples", "simd", "star_kernels")


@cache
def _stamp() -> str:
    """Return a short text that changes when any of the kernels' rooms does.

    Numba looks for a change only in the file of the function it is asked for, not in those of the functions that this
    one calls, and would run code compiled from their former text.
    """
    digest = hashlib.blake2b(digest_size=5)
    for room in ROOMS:
        file = Path(__file__).with_name(f"zemosaic_{room}.py")
        with contextlib.suppress(OSError):  # frozen programs have no files, and no text that changes
            status = file.stat()
            digest.update(f"{room} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    # Numba names its cache files by source file and qualified name. The module is part of it because a room may also be
    # loaded as a member of a package (zemosaic_attached): cached code refers to its module.
    function.__qualname__ = f"{function.__module__}.{function.__qualname__}.{_stamp()}"
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder for its cache
        return numba.njit(cache=False, **options)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel with strict IEEE arithmetic: nothing contracted or reordered, x / 0 is inf or nan."""
    return _compile(function, nogil=True, fastmath=False, error_model="numpy")
