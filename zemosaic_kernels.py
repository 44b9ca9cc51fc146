"""How a numeric kernel is compiled: one decorator, so that every kernel obeys the same rules of arithmetic.

Compiled code is cached on disk. Where no cache folder can be written (a read-only installation without a home
folder) the kernel is compiled in memory instead, and the run goes on.

Kernels release the interpreter lock and are never parallel inside: the engines split the work over their own
threads, because tiles run in threads and not every Numba threading layer survives that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# Sorting only moves values, so "no NaN, no infinity, sign of zero does not matter" changes no bit there, and lets
# LLVM use SIMD minimum and maximum. Nothing that adds or multiplies is ever compiled with these.
_SORTING = {"nnan", "ninf", "nsz"}


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    if "." in function.__module__:
        # Loaded as a member of a package (zemosaic_attached). Numba names its cache files by source file and qualified
        # name, and cached code refers to its module: without this, one namespace would find the code of the other.
        function.__qualname__ = f"{function.__module__}.{function.__qualname__}"
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
