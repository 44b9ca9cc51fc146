"""How a numeric kernel is compiled: one decorator, so that every kernel obeys the same rules of arithmetic.

Compiled code is cached on disk. Where no cache folder can be written (a read-only installation without a home
folder) the kernel is compiled in memory instead, and the run goes on.

Kernels release the interpreter lock and are never parallel inside: the engines split the work over their own
threads, because tiles run in threads and not every Numba threading layer survives that.

Compiling holds the interpreter lock, so threads cannot share it. A first run may have a second process compile what it
will need last, while it does its own work: :func:`compile_beside` and :func:`wait_for_compiler`.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numba

logger = logging.getLogger("zemosaic.kernels")

COMPILER_PATIENCE_S: Final = 120.0  # waited for the other process; what it has not done by then is compiled here

# Sorting only moves values, so "no NaN, no infinity, sign of zero does not matter" changes no bit there, and lets
# LLVM use SIMD minimum and maximum. Nothing that adds or multiplies is ever compiled with these.
_SORTING = {"nnan", "ninf", "nsz"}


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder for its cache
        return numba.njit(cache=False, **options)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel with strict IEEE arithmetic: nothing contracted or reordered, x / 0 is inf or nan."""
    return _compile(function, nogil=True, fastmath=False, error_model="numpy")


def sorting_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel that only compares and moves finite values."""
    return _compile(function, nogil=True, fastmath=_SORTING, error_model="numpy")


# --------------------------------------------------------------------------- a second process

_compiler: list[subprocess.Popen[bytes]] = []
_compiler_lock = threading.Lock()


@contextlib.contextmanager
def compile_beside(command: Sequence[str]) -> Iterator[None]:
    """Run a command that compiles kernels into the cache beside what is done in this block; it ends with the block.

    Parameters
    ----------
    command : sequence of str
        Program and arguments. Where it cannot be started or fails, kernels are compiled here, when first called.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as exc:
        logger.debug("kernels are compiled in this process alone: %s", exc)
        yield
        return
    with process:  # waits for its end
        with _compiler_lock:
            _compiler.append(process)
        try:
            yield
        finally:
            with _compiler_lock:
                _compiler.remove(process)
            process.kill()


def wait_for_compiler() -> None:
    """Wait until the process of :func:`compile_beside`, if there is one, has compiled everything."""
    with _compiler_lock:
        running = list(_compiler)
    for process in running:
        try:
            status = process.wait(COMPILER_PATIENCE_S)
            logger.debug("the compiling process ended with status %d", status)
        except subprocess.TimeoutExpired:
            logger.debug("the compiling process is slow; compiling here too")
