"""What this process may use: processors and memory, a container's limits included."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zemosaic_phase3.errors import SpecError


@dataclass(frozen=True)
class ContainerLimits:
    """Limits of the control groups this process is in; None means no limit.

    ``memory_limit`` and ``memory_available`` in bytes, ``cpus`` in cores (a quota of 150 % is 1.5).
    """

    memory_limit: int | None = None
    memory_available: int | None = None
    cpus: float | None = None


M_TRIM_THRESHOLD: Final = -1  # names of glibc's malloc.h
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 32 << 20  # arrays up to here come from memory that is kept; glibc allows no more
_NO_LIMIT: Final = 1 << 60  # version 1 writes "none" as a number just below 2**63


def _read_text(path: Path) -> str:
    """Return a control file's text, empty if there is none: which files exist depends on the kernel's setup."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _levels(mount: Path, group: str) -> list[Path]:
    """Return the folders of a group and of its ancestors: the tightest limit on the way up binds.

    A container that sees the host's group path but only its own folder still finds its limits at ``mount``.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _group_folders(proc_cgroup: Path, cgroup_root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the folders of version 2, of version 1 memory and of version 1 cpu, own group first."""
    unified: list[Path] = []
    memory: list[Path] = []
    cpu: list[Path] = []
    for line in _read_text(proc_cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        names = controllers.split(",")
        if not controllers:
            unified = _levels(cgroup_root, group)
        elif "memory" in names:
            memory = _levels(cgroup_root / controllers, group)
        elif "cpu" in names:
            cpu = _levels(cgroup_root / controllers, group) + _levels(cgroup_root / "cpu", group)
    return unified, memory, cpu


def _reclaimable(folder: Path, prefix: str) -> int:
    """Return the bytes of page cache the kernel gives back when asked: files just read are not used memory."""
    wanted = (f"{prefix}inactive_file", f"{prefix}active_file")
    fields = (line.split() for line in _read_text(folder / "memory.stat").splitlines())
    return sum(int(pair[1]) for pair in fields if len(pair) == 2 and pair[0] in wanted and pair[1].isdigit())


def _memory_of(folder: Path, limit_file: str, usage_file: str, prefix: str) -> tuple[int, int] | None:
    """Return (limit, available) bytes of one group, or None if it sets no limit."""
    limit = _read_number(folder / limit_file)
    if limit is None or not 0 < limit < _NO_LIMIT:
        return None
    used = (_read_number(folder / usage_file) or 0) - _reclaimable(folder, prefix)
    return limit, max(0, limit - max(0, used))


def _quota(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit()) or int(quota) <= 0 or int(period) <= 0:
        return None  # "max", "-1" or no such file
    return int(quota) / int(period)


def container_limits(
    proc_cgroup: Path = Path("/proc/self/cgroup"), cgroup_root: Path = Path("/sys/fs/cgroup")
) -> ContainerLimits:
    """Read memory limit and CPU quota of the control groups, version 1 and 2, ancestors included.

    Parameters
    ----------
    proc_cgroup, cgroup_root : pathlib.Path
        Where the kernel shows the groups of this process and their folders. A system without them has no limits.
    """
    unified, memory, cpu = _group_folders(proc_cgroup, cgroup_root)
    found = [_memory_of(folder, "memory.max", "memory.current", "") for folder in unified]
    found += [_memory_of(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_") for folder in memory]
    limits = [pair for pair in found if pair is not None]
    quotas = [_quota(*(_read_text(folder / "cpu.max").split() or ["", ""])[:2]) for folder in unified]
    quotas += [
        _quota(_read_text(folder / "cpu.cfs_quota_us"), _read_text(folder / "cpu.cfs_period_us")) for folder in cpu
    ]
    return ContainerLimits(
        memory_limit=min((limit for limit, _ in limits), default=None),
        memory_available=min((available for _, available in limits), default=None),
        cpus=min((quota for quota in quotas if quota is not None), default=None),
    )


def usable_cpus(limits: ContainerLimits | None = None) -> int:
    """Return the logical cores this process may run on: affinity and container quota (rounded up), at least 1."""
    limits = container_limits() if limits is None else limits
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, cores if limits.cpus is None else min(cores, math.ceil(limits.cpus)))


def available_memory(limits: ContainerLimits | None = None) -> int:
    """Return the bytes this process can still take without swapping: the host's or the container's, whichever is less.

    Parameters
    ----------
    limits : ContainerLimits, optional
        Default: those of this process.
    """
    import psutil

    limits = container_limits() if limits is None else limits
    available = int(psutil.virtual_memory().available)
    return available if limits.memory_available is None else min(available, limits.memory_available)


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process ever had, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform.startswith("linux"):  # getrusage would begin with the peak of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", _read_text(Path("/proc/self/status")))
        if found is not None:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # Linux counts in KiB, macOS in bytes


PROCESS_BYTES: Final = 270 * 10**6  # of Python and all packages of a run; measured, 64-bit Linux


def process_bytes() -> int:
    """Return what a run takes besides frames, slabs and the tile: now, or once all packages are loaded.

    Compiling, which only a first run does, takes up to 100 MB more.
    """
    return max(current_rss_bytes(), PROCESS_BYTES)


def current_rss_bytes() -> int:
    """Return the resident memory of this process now, bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


SMALL_LIMIT: Final = 10**9  # bytes that a run takes by default if it can have them without more than 4/5 of all


def default_limit() -> int:
    """Return the bytes a run takes by default: half of what there is for it, or up to 1 GB of four fifths of that.

    What the process has already counts as being there. The second rule is for small containers, in which half would
    leave next to nothing beside Python and its packages.
    """
    available = available_memory() + current_rss_bytes()
    return max(available // 2, min(available * 4 // 5, SMALL_LIMIT))


def give_back_freed_memory() -> None:
    """Return memory that was freed to the system, where the C library would keep it (glibc).

    After threads have read large frames it keeps some 100 MB, which count as used when the next stage needs its own.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # musl has none
        trim(0)


def keep_freed_memory() -> bool:
    """Have the C library (glibc) keep what arrays free for the next ones, as it does by itself unless told otherwise.

    Dask tells its workers otherwise (``MALLOC_TRIM_THRESHOLD_=65536`` in their environment): each array of a frame is
    then asked of the system anew and filled with zeros by it, which doubled the CPU time of a tile. The limits set here
    are those that glibc reaches by itself after an array of 32 MB was freed. What is kept for good is given back by
    :func:`give_back_freed_memory`.

    Returns
    -------
    bool
        Whether that could be set.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES))


_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**n for n, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}{suffix}": 1024**n for n, prefix in enumerate("KMGT", 1) for suffix in ("", "IB")},
}


def parse_memory(value: str | int, available: int | None = None) -> int:
    """Read an amount of memory.

    Parameters
    ----------
    value : str or int
        Bytes, or a number with a unit: "4GB" is 4 * 1000**3, "4GiB" and "4G" are 4 * 1024**3; or "50%" of
        ``available``.
    available : int, optional
        What a percentage refers to, bytes; default :func:`available_memory`.

    Raises
    ------
    SpecError
        Not such an amount, less than one byte, or more than 100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Z]*|%)", str(value).strip().upper())
    if match is None or isinstance(value, bool):
        raise SpecError(f"memory {value!r} is not an amount; write for example 4GB, 512MiB or 50%")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if number > 100:
            raise SpecError(f"memory {value!r} is more than there is; write at most 100%")
        size = int(number / 100 * (available_memory() if available is None else available))
    elif unit in _UNITS:
        size = int(number * _UNITS[unit])
    else:
        raise SpecError(f"memory {value!r} has an unknown unit; use KB, MB, GB, TB, KiB, MiB, GiB, TiB or %")
    if size < 1:
        raise SpecError(f"memory {value!r} is less than one byte; write for example 4GB")
    return size


def memory_text(size: int) -> str:
    """Return bytes as people write them ("1.50 GB", powers of 1000)."""
    for unit, scale in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"
