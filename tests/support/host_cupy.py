"""A stand-in for CuPy that runs the real kernels on the processor, built by g++: the GPU engine without a GPU.

It knows what the engine uses of CuPy and nothing else. Device memory is ordinary memory that starts as rubbish, and is
counted; streams do everything at once; a kernel runs its blocks one by one, one thread to a block. So every copy,
offset and argument of the engine is the real one, only the order in which streams overtake each other is not.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import types
import weakref
from pathlib import Path

import numpy as np
from cuda_host import build, combine_library, set_constants, spread_library

from zemosaic_phase3.combine import cuda
from zemosaic_phase3.resample.cuda import drizzle_source


class Data:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class DeviceArray:
    """An array that NumPy's functions do not take for one of theirs."""

    def __init__(self, owner: HostCupy, array: np.ndarray) -> None:
        self.array = array
        self.data = Data(array.ctypes.data)
        owner.used += array.nbytes
        owner.peak = max(owner.peak, owner.used)
        weakref.finalize(self, owner.give_back, array.nbytes)


class Stream:
    ptr = 1

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def synchronize(self) -> None:
        return None


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.block, self.disable_timing = block, disable_timing

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def synchronize(self) -> None:
        return None


class Kernel:
    def __init__(self, owner: HostCupy, name: str, code: str) -> None:
        self.owner, self.name, self.code = owner, name, code
        self.library = combine_library(code) if name == cuda.KERNEL else owner.resample
        if name == cuda.SPREAD:
            self.library = spread_library(code)
        self.max_dynamic_shared_size_bytes = 48 << 10
        self.kernel = self

    def __call__(self, grid, block, arguments, *, shared_mem: int = 0) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert all(isinstance(a, np.generic) for a in arguments), "a Python number has no size"
        self.owner.launched.append(self.name)
        self.owner.launched_on.append(self.owner.card())
        with self.owner.one_at_a_time:
            self._run(grid, arguments)
        failure = self.owner.failures.pop(self.name, None)
        if self.owner.card() in self.owner.card_failures:
            failure = self.owner.card_failures[self.owner.card()]()
        if failure is not None:
            raise failure

    def _run(self, grid, arguments) -> None:
        if self.name == cuda.KERNEL:
            set_constants(self.library, self.code)
        values = [_C_TYPES[type(a)](a.item()) for a in arguments]
        rows = grid[1] if len(grid) > 1 else 1
        for y in range(rows):  # the kernels share their elements among however many blocks there are
            self.library.set_grid(0, y, 0, 1, rows, 1)
            getattr(self.library, self.name)(*values)


_C_TYPES = {np.uint64: ctypes.c_uint64, np.int64: ctypes.c_int64, np.int32: ctypes.c_int32, np.float64: ctypes.c_double}


class HostCupy(types.ModuleType):
    """The module; ``peak`` counts device memory, ``limit`` bounds it, ``failures`` maps a kernel to what it raises.

    There are ``cards`` of one memory; ``card_failures`` maps a card to what makes the error of all its kernels.
    """

    __version__ = "host"

    def __init__(self, folder: Path) -> None:
        super().__init__("cupy")
        self.resample = build(drizzle_source(), "host_resample", folder)
        self.one_at_a_time, self.thread = threading.Lock(), threading.local()
        self.reset()
        self.cuda = types.SimpleNamespace(
            Stream=Stream,
            Event=Event,
            Device=lambda number=0: types.SimpleNamespace(
                attributes={"MaxSharedMemoryPerBlockOptin": self.shared_limit, "MultiProcessorCount": 3},
                use=lambda: self.use(number),
            ),
            alloc_pinned_memory=bytearray,
            get_current_stream=lambda: Stream(non_blocking=True),
            runtime=types.SimpleNamespace(
                memcpyAsync=self._copy,
                driverGetVersion=lambda: 12040,
                runtimeGetVersion=lambda: 12040,
                getDeviceCount=lambda: self.cards,
                getDevice=self.card,
                getDeviceProperties=lambda number: {"name": b"host"},
                memGetInfo=lambda: (self.total - self.used, self.total),
            ),
        )

    def reset(self) -> None:
        self.used = self.peak = 0
        self.total, self.limit, self.shared_limit = 1 << 34, 0, 99 << 10
        self.launched: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.cards, self.card_failures, self.launched_on = 1, {}, []
        self.freed = 0

    def use(self, card: int) -> None:
        self.thread.card = card

    def card(self) -> int:
        return getattr(self.thread, "card", 0)

    def give_back(self, size: int) -> None:
        self.used -= size

    def _array(self, array: np.ndarray) -> DeviceArray:
        if self.limit and self.used + array.nbytes > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes} bytes")
        return DeviceArray(self, array)

    def empty(self, count: int, dtype: object) -> DeviceArray:
        array = np.empty(count, dtype)
        array.view(np.uint8)[:] = 0xAB
        return self._array(array)

    def zeros(self, count: int, dtype: object) -> DeviceArray:
        return self._array(np.zeros(count, dtype))

    def asarray(self, array: np.ndarray) -> DeviceArray:
        return self._array(np.array(array, order="C"))

    def asnumpy(self, array: DeviceArray) -> np.ndarray:
        return array.array.copy()

    def RawModule(self, code: str, options: tuple[str, ...]) -> types.SimpleNamespace:  # noqa: N802
        assert "--fmad=false" in options
        return types.SimpleNamespace(get_function=lambda name: Kernel(self, name, code))

    def get_default_memory_pool(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            free_bytes=lambda: 0,
            used_bytes=lambda: self.used,
            get_limit=lambda: self.limit,
            set_limit=lambda size: setattr(self, "limit", size),
            free_all_blocks=self._free_all_blocks,
        )

    def get_default_pinned_memory_pool(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(free_all_blocks=self._free_all_blocks)

    def _free_all_blocks(self) -> None:
        self.freed += 1

    @staticmethod
    def _copy(target: int, source: int, size: int, kind: int, stream: int) -> None:
        assert kind in (1, 2)
        assert stream == Stream.ptr
        ctypes.memmove(target, source, size)


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


@contextlib.contextmanager
def installed(cupy: HostCupy, monkeypatch):
    """Let :mod:`cuda_utils` find this module, and forget what was known of the real one."""
    import sys

    from zemosaic_phase3.engine import gpu_card
    from zemosaic_phase3.engine import gpu_check as engine
    from zemosaic_phase3.runtime import cuda, cuda_failure

    caches = (cuda.first_probe, gpu_card.compiled_kernel, gpu_card.limits_of)
    cupy.reset()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cuda_failure, "_POISONED", threading.Event())
    monkeypatch.setattr(engine, "_KNOWN", {})
    for cache in caches:
        cache.cache_clear()
    yield cupy
    for cache in caches:
        cache.cache_clear()
