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
import hashlib
import logging
import subprocess
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numba

from zemosaic_phase3.runtime.kernel_cache import PACKAGE, KernelCache, cached_files

logger = logging.getLogger("zemosaic.kernels")


COMPILER_PATIENCE_S: Final = 120.0  # waited for the other process; what it has not done by then is compiled here
KERNEL_WINGS: Final = (
    "runtime",
    "detection",
    "registration",
    "photometry",
    "resample",
    "rejection",
    "combine",
    "engine",
)
"""Folders whose files make compiled code, or hold constants that are compiled into it."""


def stamped_files() -> list[Path]:
    """List the files whose text compiled code may come from."""
    return [file for wing in KERNEL_WINGS for file in sorted((PACKAGE / wing).glob("*.py"))]


@cache
def stamp() -> str:
    """Return a short text that changes when any of the files of kernels does.

    Numba looks for a change only in the file of the function it is asked for, not in those of the functions that this
    one calls, and would run code compiled from their former text.
    """
    digest = hashlib.blake2b(digest_size=5)
    for file in stamped_files():
        with contextlib.suppress(OSError):  # frozen programs have no files, and no text that changes
            status = file.stat()
            digest.update(f"{file.parent.name}/{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    # Numba names its cache files by source file and qualified name.
    function.__qualname__ = f"{function.__module__}.{function.__qualname__}.{stamp()}"
    compiled: Any = numba.njit(**options)(function)
    if hasattr(compiled, "enable_caching"):  # a plain function when Numba is switched off
        with contextlib.suppress(RuntimeError):  # Numba found no folder for its cache
            # What cache=True does, with a class of its own.
            compiled._cache = KernelCache(function, saved=remove_stale)  # noqa: SLF001
    return compiled


def cache_folder(compiled: Any) -> Path | None:
    """Return the folder where a kernel's compiled code is kept; None if none can be written, or nothing is compiled."""
    statistics = getattr(compiled, "stats", None)  # a plain function when Numba is switched off
    folder = None if statistics is None else statistics.cache_path
    return None if folder is None else Path(folder)


def is_cold(folder: Path) -> bool:
    """Return True if a folder of compiled kernels holds none of ours as they are now."""
    return not any(folder.glob(f"*.{stamp()}-*.nbi"))


@cache
def remove_stale(folder: Path) -> None:
    """Remove the files of our kernels as they were before a file changed, once a process: nothing would read them.

    A process that still runs the former kernels, and finds its files gone, compiles what it lacks.
    """
    for file in cached_files([folder]):
        if f".{stamp()}-" not in file.name:
            with contextlib.suppress(OSError):  # removed by another process, or in use (Windows)
                file.unlink()


# Strict arithmetic; and nothing in C calls a kernel, so none gets an entry for it, which would have to be compiled too.
_STRICT: Final = {"nogil": True, "fastmath": False, "error_model": "numpy", "no_cfunc_wrapper": True}
# Numba's name for this is not a public one: where it is unknown, references are counted.
_UNCOUNTED: Final = {"_nrt": False} if hasattr(getattr(numba.core.options, "DefaultOptions", None), "_nrt") else {}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel with strict IEEE arithmetic: nothing contracted or reordered, x / 0 is inf or nan."""
    return _compile(function, **_STRICT)


def inner_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel that makes no arrays and returns none.

    It does not count references to its arrays, which its caller holds. The counters are atomic: where a kernel is
    called once a pixel they would take most of its time.
    """
    return _compile(function, **_STRICT, **_UNCOUNTED)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a part of an inner kernel into every kernel that calls it, as if it stood there.

    A function of its own takes two or three tenths of a second to compile, most of all where it is given tuples.
    """
    return _compile(function, inline="always", **_STRICT, **_UNCOUNTED)


def compiled_once(compiled: Any) -> Any:
    """Have numbers that stand in a call of a kernel, such as a first 0, be numbers like any other.

    To Numba a 0 in the text is a type of its own, and so is a count that begins with 0 until the whole of the caller
    has been looked at: the kernel would be compiled for each of them too, and that code is often never called.
    """
    if hasattr(compiled, "get_call_template"):  # a plain function when Numba is switched off
        types, ask = numba.core.types, compiled.get_call_template
        compiled.get_call_template = lambda args, kws: ask(
            tuple(types.unliteral(arg) for arg in args), {name: types.unliteral(arg) for name, arg in kws.items()}
        )
    return compiled


def kernel_with(template: Callable[..., Any], name: str, **parts: object) -> Any:
    """Compile an inner kernel from a function in which some global names are still to be bound.

    Numba's cache finds such a kernel again in another process, which it does not with one that encloses other kernels:
    their pickles differ from process to process.

    Parameters
    ----------
    template : function
        Undecorated, on the level of its module.
    name : str
        Says everything that the parts do: kernels of one name are one to the cache.
    **parts
        What the names mean in this kernel, other kernels and constants.
    """
    bound = types.FunctionType(template.__code__, {**template.__globals__, **parts}, template.__name__)
    bound.__doc__, bound.__qualname__ = template.__doc__, name
    return inner_kernel(bound)


running_compiler: list[subprocess.Popen[bytes]] = []
_compiler_lock = threading.Lock()


@contextlib.contextmanager
def compile_beside(command: Sequence[str]) -> Iterator[None]:
    """Run a command that compiles kernels into the cache beside what is done in this block; it ends with the block.

    Its standard input is a pipe that nothing is written into. The system closes it when this process ends, however it
    ends: by that the command learns that nobody waits for it any more.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; it ends when its standard input does. Where it cannot be started or fails, kernels are
        compiled here, when first called.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
            list(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as exc:
        logger.debug("kernels are compiled in this process alone: %s", exc)
        yield
        return
    with process:  # waits for its end
        with _compiler_lock:
            running_compiler.append(process)
        try:
            yield
        finally:
            with _compiler_lock:
                running_compiler.remove(process)
            process.kill()


def wait_for_compiler() -> None:
    """Wait until the process of :func:`compile_beside`, if there is one, has compiled everything."""
    with _compiler_lock:
        running = list(running_compiler)
    for process in running:
        try:
            status = process.wait(COMPILER_PATIENCE_S)
            logger.debug("the compiling process ended with status %d", status)
        except subprocess.TimeoutExpired:
            logger.debug("the compiling process is slow; compiling here too")
