"""The one file that imports CuPy: is there a GPU, how much memory has it, and who takes how much of it.

CuPy is imported inside functions only, so that everything else loads without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess  # noqa: S404 - nvidia-smi is the one program this room starts
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from zemosaic_phase3.extras import EXTRAS, install
from zemosaic_phase3.runtime.cuda_failure import (
    card_of_thread,
    classify_failure,
    is_poisoned,
    mark_sticky,
    work_for_card,
)

LOGGER = logging.getLogger("cuda_utils")
Result = TypeVar("Result")


SYSTEM_NAME: Final = platform.system()
IS_WINDOWS: Final = SYSTEM_NAME == "Windows"


def _cupy_is_found() -> bool:
    if "cupy" in sys.modules:  # loaded already, or blocked by None; find_spec refuses modules without a spec
        return sys.modules["cupy"] is not None
    return importlib.util.find_spec("cupy") is not None


CUPY_AVAILABLE: Final = _cupy_is_found()
"""CuPy was found on the path. It has not been imported: it may still be broken, or be without a device."""

INSTALL_REMEDY: Final = f"{install('cuda12')} (or {EXTRAS['cuda13']['cupy']}, to match the driver)"


@dataclass(frozen=True)
class GpuProbe:
    """What is known of the GPU without running a kernel on it.

    Attributes
    ----------
    usable_hint : bool
        CuPy, driver and a device are there and answer. Only a kernel that ran proves more.
    name : str
        Device name; empty if none.
    vram_total, vram_free : int
        Bytes. Free includes what CuPy's pool holds but does not use.
    driver_version, runtime_version : int
        CUDA versions as 1000 * major + 10 * minor (12040 = 12.4); 0 if unknown.
    cupy_version : str
        Empty if CuPy cannot be imported.
    reason, remedy : str
        Why there is no usable GPU, and what helps; empty if there is one.
    """

    usable_hint: bool
    name: str = ""
    vram_total: int = 0
    vram_free: int = 0
    driver_version: int = 0
    runtime_version: int = 0
    cupy_version: str = ""
    reason: str = ""
    remedy: str = ""


def _version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _free_and_total(cupy: Any) -> tuple[int, int]:
    free, total = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes()), int(total)


def _missing_part(cupy: Any) -> tuple[str, str]:
    """Return (reason, remedy) if driver or device is missing, else two empty strings."""
    runtime = cupy.cuda.runtime
    driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    if driver == 0:
        return "there is no NVIDIA driver", "install the NVIDIA driver, or use the CPU"
    if driver // 1000 < needed // 1000:  # within one major version an older driver serves a newer runtime
        return (
            f"the NVIDIA driver is too old: it knows CUDA {_version_text(driver)}, CuPy needs {_version_text(needed)}",
            f"update the NVIDIA driver, or install the CuPy for CUDA {driver // 1000}",
        )
    try:
        count = int(runtime.getDeviceCount())
    except RuntimeError as exc:
        if getattr(exc, "status", None) != 100:
            raise
        count = 0
    if count == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = "use the CPU" if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden!r} may hide it"
        return "the driver shows no CUDA device", remedy
    return "", ""


def _describe_device(cupy: Any) -> GpuProbe:
    runtime = cupy.cuda.runtime
    versions = GpuProbe(
        False,
        driver_version=int(runtime.driverGetVersion()),
        runtime_version=int(runtime.runtimeGetVersion()),
        cupy_version=str(getattr(cupy, "__version__", "")),
    )
    reason, remedy = _missing_part(cupy)
    if reason:
        return replace(versions, reason=reason, remedy=remedy)
    name = _name_of(cupy, runtime.getDevice())
    free, total = _free_and_total(cupy)
    return replace(
        versions,
        usable_hint=True,
        name=name,
        vram_total=total,
        vram_free=free,
    )


def _name_of(cupy: Any, card: int) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(card)["name"]
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


@functools.cache
def first_probe() -> GpuProbe:
    """Look once; a CuPy that failed is never touched again."""
    if not _cupy_is_found():
        return GpuProbe(False, reason="CuPy is not installed", remedy=INSTALL_REMEDY)
    try:
        cupy = importlib.import_module("cupy")
    except Exception as exc:  # noqa: BLE001 - a broken third-party package may raise anything while it loads
        reason = f"CuPy cannot be imported: {type(exc).__name__}: {exc}"
        return GpuProbe(False, reason=reason, remedy=f"reinstall it: {INSTALL_REMEDY}")
    try:
        return _describe_device(cupy)
    except RuntimeError as exc:  # CUDARuntimeError and CUDADriverError
        if classify_failure(exc) == "sticky":
            mark_sticky()
        reason = f"CUDA does not answer: {type(exc).__name__}: {exc}"
        remedy = "check that nvidia-smi works, and that its driver fits the installed CuPy"
        return GpuProbe(False, cupy_version=str(getattr(cupy, "__version__", "")), reason=reason, remedy=remedy)


def probe() -> GpuProbe:
    """Look for a GPU: CuPy, driver, device, memory. Imports CuPy if there is one.

    Everything but the free memory, and the name of a card other than the first, is looked up once per process.

    Returns
    -------
    GpuProbe
        With reason and remedy when no GPU can be used.
    """
    if is_poisoned():
        return GpuProbe(
            False, reason="an earlier CUDA error cannot be undone in this process", remedy="start a new process"
        )
    first = first_probe()
    if not first.usable_hint:
        return first
    info = memory_info()
    if info is None:
        return replace(first, usable_hint=False, reason="the GPU no longer answers", remedy="start a new process")
    card = card_of_thread()
    name = _name_of(importlib.import_module("cupy"), card) if card else first.name
    return replace(first, name=name, vram_free=info[0], vram_total=info[1])


def gpu_supported() -> bool:
    """Return True if a CUDA device can be expected to work here, on any platform (imports CuPy if found)."""
    return probe().usable_hint


def enforce_nvidia_gpu() -> bool:
    """Make CUDA use the first GPU that ``nvidia-smi`` lists, unless the user has chosen already.

    Sets ``CUDA_VISIBLE_DEVICES`` if it is unset, and ``CUDA_DEVICE_ORDER`` if that is unset, because the index of
    ``nvidia-smi`` counts in bus order while CUDA's default order is by speed. Has no effect on a CUDA context that
    exists already.

    Returns
    -------
    bool
        True if ``CUDA_VISIBLE_DEVICES`` is set after the call.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError) as exc:
        LOGGER.info("nvidia-smi gives no list of GPUs: %s", exc)
        return False
    indices = [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]
    if not indices:
        return False
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = indices[0]
    return True


def memory_info() -> tuple[int, int] | None:
    """Return (free, total) bytes of the current device, or None if no GPU answers.

    Free counts what CuPy's pool holds but does not use: the next allocation can have it.
    """
    if is_poisoned() or not first_probe().usable_hint:
        return None
    try:
        return _free_and_total(importlib.import_module("cupy"))
    except RuntimeError as exc:
        if classify_failure(exc) == "sticky":
            mark_sticky()
        LOGGER.warning("[GPU] the memory of the device cannot be read: %s: %s", type(exc).__name__, exc)
        return None


def cupy_module() -> Any:
    """Return CuPy, for the rooms that may use it but not import it.

    Raises
    ------
    RuntimeError
        CUDA is lost to this process, or no GPU can be used; with reason and remedy.
    """
    state = probe() if is_poisoned() else first_probe()
    if not state.usable_hint:
        raise RuntimeError(f"no GPU can be used: {state.reason}; {state.remedy}")
    return importlib.import_module("cupy")


def card_count() -> int:
    """Return how many cards CUDA shows to this process; 0 if no GPU can be used."""
    if not first_probe().usable_hint:
        return 0
    return int(importlib.import_module("cupy").cuda.runtime.getDeviceCount())


def on_card(card: int, work: Callable[[], Result]) -> Result:
    """Do a piece of work with a card as CUDA's current device; in a thread of its own, since that is a thread's matter.

    Whatever the work raises is raised again.
    """

    def begin() -> Result:
        work_for_card(card)
        cupy_module().cuda.Device(card).use()
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix=f"phase3-card-{card}") as thread:
        return thread.submit(begin).result()


def leave_alone(owner: object) -> None:
    """Never destroy an object that owns device memory, streams, events or modules, not even when the process ends.

    After a sticky error a destructor may not call CUDA either; what is never destroyed does not.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


VRAM_SHARE: Final = 0.9  # of the free memory that tiles may plan with; the rest is for what the driver takes itself
_FAIR_SHARE: Final = 4  # a tile that shares the card waits rather than take less than this part of what it wants

_RESERVATIONS = threading.Condition()
RESERVED: dict[tuple[int, int], int] = {}  # bytes of the tiles that are on a card now, by card and a number
_CAPACITY: dict[int, int] = {}  # what all tiles of a card may have, looked up when it was empty


def vram_capacity() -> int:
    """Return the bytes that tiles may take on the current card: what is free, and what CuPy's pool holds unused."""
    cupy = cupy_module()
    pool = cupy.get_default_memory_pool()
    free, _ = _free_and_total(cupy)
    capacity, limit = int(free * VRAM_SHARE), int(pool.get_limit())
    return min(capacity, max(0, limit - int(pool.used_bytes()))) if limit else capacity


@contextlib.contextmanager
def reserve_vram(least: int, wanted: int) -> Iterator[int]:
    """Reserve device memory for one tile, so that tiles in other threads do not count on the same bytes.

    Waits while other tiles hold so much that less than ``least``, or less than a quarter of ``wanted``, is left.

    Parameters
    ----------
    least, wanted : int
        Bytes without which the tile cannot run, and beyond which it has no use for more.

    Yields
    ------
    int
        Bytes that are the tile's until the block ends; ``least`` or more, at most ``wanted``.

    Raises
    ------
    MemoryError
        The card cannot give ``least`` even when no other tile is on it.
    """
    card = card_of_thread()
    with _RESERVATIONS:
        while True:
            others = [size for (where, _), size in RESERVED.items() if where == card]
            if not others:
                _CAPACITY[card] = vram_capacity()
            left = _CAPACITY[card] - sum(others)
            if left >= max(least, min(wanted, _CAPACITY[card]) // _FAIR_SHARE) or (not others and left >= least):
                break
            if not others:
                raise MemoryError(f"the tile needs {least} bytes of device memory, {left} can be had")
            _RESERVATIONS.wait()
        granted = min(left, wanted)
        key = card, max((number for _, number in RESERVED), default=0) + 1
        RESERVED[key] = granted
    try:
        yield granted
    finally:
        with _RESERVATIONS:
            del RESERVED[key]
            _RESERVATIONS.notify_all()


def initialize_pools(limit_bytes: int | None = None) -> bool:
    """Make CuPy's device and pinned memory pools ready for use.

    Parameters
    ----------
    limit_bytes : int, optional
        Most that the device pool may hold, bytes; beyond it CuPy raises its OutOfMemoryError instead of taking
        memory that the display or another process needs. None leaves the limit as it is.

    Returns
    -------
    bool
        False if no GPU can be used.
    """
    if is_poisoned() or not first_probe().usable_hint:
        return False
    cupy = importlib.import_module("cupy")
    pool = cupy.get_default_memory_pool()
    if limit_bytes is not None:
        pool.set_limit(size=int(limit_bytes))
    cupy.get_default_pinned_memory_pool()
    return True


def free_pools() -> bool:
    """Give the unused blocks of CuPy's device and pinned pools back.

    Blocks in use, by other threads too, are not touched. Nothing is done, and CuPy is not imported, if it is not
    loaded yet or after a sticky error.

    Returns
    -------
    bool
        True if the pools were freed.

    Raises
    ------
    RuntimeError
        CUDA reports an error (CuPy's ``CUDARuntimeError``): an earlier launch failed and shows only now.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None or is_poisoned():
        return False
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    return True
