"""What several tests share: made for the tests of ``cuda_utils``."""

from __future__ import annotations

import sys
import types


class CUDARuntimeError(RuntimeError):
    """As CuPy's: the class is known by its name, the error by its status."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"status {status}")
        self.status = status


class Pool:
    def __init__(self, free: int = 0) -> None:
        self.free, self.freed, self.limit = free, 0, None

    def free_bytes(self) -> int:
        return self.free

    def free_all_blocks(self) -> None:
        self.freed += 1

    def set_limit(self, *, size: int) -> None:
        self.limit = size


def install_fake_cupy(monkeypatch, *, driver=12040, runtime=12020, count=1, memory=(6, 10), failure=None):
    """A module that answers as CuPy does, or raises ``failure`` when asked for the memory."""

    def mem_get_info():
        if failure is not None:
            raise failure
        return memory

    def device_count():
        if count == 0:
            raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
        return count

    fake = types.ModuleType("cupy")
    fake.__version__ = "13.4.0"
    device, pinned = Pool(free=1), Pool()
    fake.get_default_memory_pool = lambda: device
    fake.get_default_pinned_memory_pool = lambda: pinned
    fake.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: runtime,
            getDeviceCount=device_count,
            getDevice=lambda: 0,
            getDeviceProperties=lambda index: {"name": b"NVIDIA Test"},
            memGetInfo=mem_get_info,
        )
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake, device, pinned
