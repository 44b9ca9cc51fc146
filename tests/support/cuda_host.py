"""The CUDA text of the kernels, built by g++ and run on the processor: one thread to a block, blocks one by one.

What differs from a device is the instruction set, not the arithmetic: with ``-ffp-contract=off`` every ``+ - * /`` and
square root is the IEEE one, as ``nvcc --fmad=false`` has it. So the bits can be compared where there is no device.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from zemosaic_phase3.combine import cuda

STRICT = ("-O2", "-ffp-contract=off")
CONTRACTED = ("-O2", "-ffp-contract=fast", "-mfma")

SHIM = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
struct dim3 { unsigned x, y, z; };
static thread_local dim3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0}, blockDim = {1, 1, 1}, gridDim = {1, 1, 1};
extern "C" void set_grid(unsigned bx, unsigned by, unsigned bz, unsigned gx, unsigned gy, unsigned gz) {
    blockIdx = {bx, by, bz};
    gridDim = {gx, gy, gz};
}
static inline void __syncthreads() {}
static inline void __syncwarp(unsigned = 0) {}
static inline unsigned __ballot_sync(unsigned, int predicate) { return predicate ? 1u : 0u; }
static inline int __any_sync(unsigned, int predicate) { return predicate; }
static inline int __all_sync(unsigned, int predicate) { return predicate; }
static inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
template <class T> static inline T __shfl_sync(unsigned, T value, int) { return value; }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int) { return value; }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class T> static inline T __ldg(const T* place) { return *place; }
template <class T> static inline T atomicAdd(T* place, T value) { T old = *place; *place = old + value; return old; }
static inline float __int_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline int __float_as_int(float x) { int bits; std::memcpy(&bits, &x, 4); return bits; }
using std::max;
using std::min;
"""


def compiler() -> str:
    """Return g++, or skip the test with the reason."""
    found = shutil.which("g++")
    if found is None:
        import pytest

        pytest.skip("no g++ to build the CUDA text with")
    return found


def has_fma() -> bool:
    """True when this processor multiplies and adds with one rounding, and g++ has the x86 flag for it."""
    flags = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and flags.exists() and " fma " in flags.read_text()


def build(text: str, name: str, folder: Path, flags: tuple[str, ...] = STRICT) -> ctypes.CDLL:
    """Compile CUDA text into ``folder/name.so`` and load it; a kernel becomes a plain function of one thread.

    ``set_grid(bx, by, bz, gx, gy, gz)`` sets ``blockIdx`` and ``gridDim``; ``threadIdx`` is 0 and ``blockDim`` 1. A
    shared array declared ``extern __shared__`` must be defined by the text that the caller adds.
    """
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(SHIM + text, encoding="utf-8")
    command = [compiler(), "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", *flags]
    done = subprocess.run([*command, str(source), "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


VARIED = (
    "BY_MEAN",
    "HALVES",
    "REWINSOR",
    "SPARES",
    "PLACE",
    "RUN",
)  # set before each call; a device has a text for each
_CONSTANT = re.compile(r"^constexpr int (\w+) = (\d+);$", re.MULTILINE)


def combine_library(text: str, flags: tuple[str, ...] = STRICT) -> ctypes.CDLL:
    """Build what :func:`combine.cuda.source` returns, once for each rejection: one thread to a block.

    What is ``VARIED`` of the constants is a variable here, which :func:`set_constants` sets.
    """

    def host_constant(found: re.Match[str]) -> str:
        name = found[1]
        if name in VARIED:
            return f'static int {name};\nextern "C" void set_{name}(int value) {{ {name} = value; }}'
        return f"constexpr int {name} = 1;" if name in ("LANES", "ROW") else found[0]

    return _built(_CONSTANT.sub(host_constant, text) + f"\nfloat tile_memory[{cuda.MERGED_FRAMES}];\n", flags)


def set_constants(library: ctypes.CDLL, text: str, **others: int) -> None:
    """Set what varies to what a text for a device says, or to other values."""
    values = {name: int(value) for name, value in _CONSTANT.findall(text) if name in VARIED}
    for name, value in (values | others).items():
        getattr(library, f"set_{name}")(value)


def spread_library(text: str) -> ctypes.CDLL:
    """Build what :func:`combine.cuda.spread_source` returns: one thread to a block."""
    return _built(re.sub(r"(?m)^constexpr int THREADS = .*$", "constexpr int THREADS = 1;", text), STRICT)


@functools.cache
def _built(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="cuda-host-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(text, "combine", folder, flags)


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    """Return where an array lies, as a kernel argument; None is a null pointer."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)
