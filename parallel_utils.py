"""How much of this machine a stack may use: capabilities, plans, bytes and row slabs.

A plan is a value: numbers in, numbers out. Only :func:`detect_parallel_capabilities`, :func:`available_memory`,
:func:`container_limits`, :func:`usable_cpus` and :func:`peak_rss_bytes` look at the machine. Inside a container the
limits of the container count, not the totals of the host.
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import cuda_utils
from zemosaic_spec import PlanError, SpecError, as_bool, positive, setting

LOGGER = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# --------------------------------------------------------------------------- what the machine has


@dataclass
class ParallelCapabilities:
    """What this process may use; sizes in bytes, container limits applied."""

    cpu_cores: int
    cpu_logical_cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    gpu_available: bool = False
    gpu_name: str | None = None
    gpu_vram_total_bytes: int | None = None
    gpu_vram_free_bytes: int | None = None


@dataclass(frozen=True)
class ContainerLimits:
    """Limits of the control groups this process is in; None means no limit.

    ``memory_limit`` and ``memory_available`` in bytes, ``cpus`` in cores (a quota of 150 % is 1.5).
    """

    memory_limit: int | None = None
    memory_available: int | None = None
    cpus: float | None = None


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


def detect_parallel_capabilities() -> ParallelCapabilities:
    """Look at this machine: cores, memory (container limits applied) and GPU.

    Imports CuPy if it is installed; a GPU that does not answer is reported as none.
    """
    import psutil

    limits = container_limits()
    logical = usable_cpus(limits)
    total = int(psutil.virtual_memory().total)
    gpu = cuda_utils.probe()
    return ParallelCapabilities(
        cpu_cores=min(logical, psutil.cpu_count(logical=False) or logical),
        cpu_logical_cores=logical,
        ram_total_bytes=total if limits.memory_limit is None else min(total, limits.memory_limit),
        ram_available_bytes=available_memory(limits),
        gpu_available=gpu.usable_hint,
        gpu_name=gpu.name or None,
        gpu_vram_total_bytes=gpu.vram_total if gpu.usable_hint else None,
        gpu_vram_free_bytes=gpu.vram_free if gpu.usable_hint else None,
    )


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


# --------------------------------------------------------------------------- bytes and slabs

KERNEL_PIXELS: Final = 96  # pixels one worker rejects at a time
# Per sample of those: a sorted copy (float32, up to twice the rows), two running sums and a product of weights (float64),
# the samples of a block that is not whole and of a lane side by side (float32), columns.
KERNEL_SAMPLE_BYTES: Final = 41
FRAME_BYTES: Final = 96 * 8 + 64  # per frame: its weight for every lane, counts
TILE_BYTES: Final = 4 << 20  # samples opened at a time: few enough for the processor's caches, enough for a call
OUTPUT_MAPS: Final = 5  # image, coverage, weight, rejected low, rejected high; four bytes each


def tile_elements(n_frames: int) -> int:
    """Return how many elements (pixel times channel) of all frames are opened at a time; a multiple of 96."""
    return max(1, TILE_BYTES // (4 * n_frames * KERNEL_PIXELS)) * KERNEL_PIXELS


def stack_bytes(
    rows: int,
    *,
    n_frames: int,
    height: int,
    width: int,
    channels: int,
    workers: int = 1,
    weights_per_pixel: int = 0,
    source_margin: int = 0,
    source_stretch: float = 1.0,
    raw_bytes: int = 4,
    stored_bytes: int = 0,
    field_bytes: int = 0,
) -> int:
    """Return the bytes the CPU engine needs at its peak, with slabs of ``rows`` output rows.

    The sum of

    * one slab, ``(n_frames, rows, width, channels)``: registered samples, float32, or pixels as they are stored;
    * ``weights_per_pixel`` weights of each, ``(n_frames, rows, width, ...) float32``;
    * per worker one source block, ``(rows * source_stretch + source_margin, width)``, as stored and debayered to
      float32; or, where the slab holds stored pixels, one tile of samples of every frame;
    * per worker the scratch of the rejection kernel, ``KERNEL_PIXELS`` pixels of ``n_frames`` samples;
    * per frame ``FRAME_BYTES``, for weights and counts, and all frames' distortion fields;
    * the finished tile: ``OUTPUT_MAPS`` maps of ``(height, width, channels)``, 4 bytes each;

    or, where that is more, of the tile and its copy in the byte order of the file, when all else is given back.

    It never decreases with ``rows``.

    Parameters
    ----------
    rows : int
        Output rows in a slab; more than ``height`` counts as ``height``.
    n_frames, height, width, channels : int
        Frames that are stacked, and the shape of the result.
    workers : int
        Frames resampled, or pixel groups rejected, at the same time.
    weights_per_pixel : int
        Weights of a pixel of a frame: none, one (radial weighting) or one for each channel.
    source_margin : int
        Source rows read beyond ``rows``: the reach of the interpolation, and ``width * sin(rotation)``.
    source_stretch : float
        Source rows for each of ``rows``, 1 or more.
    raw_bytes : int
        Bytes of one source pixel, all its channels, before it is demosaiced (2 for a 16-bit mosaic as stored, and 4 as
        samples).
    stored_bytes : int
        Bytes of one stored sample where slabs hold frames as they are stored; 0 where they hold float32 samples.
    field_bytes : int
        Bytes of the distortion fields of all frames.
    """
    rows = min(rows, height)
    slab = (stored_bytes or 4) * n_frames * rows * width * channels
    weights = 4 * n_frames * rows * width * weights_per_pixel
    if stored_bytes:
        source = 4 * n_frames * tile_elements(n_frames)
    else:
        source = min(math.ceil(rows * source_stretch) + source_margin, height) * width * (raw_bytes + 4 * channels)
    scratch = KERNEL_PIXELS * KERNEL_SAMPLE_BYTES * n_frames
    outputs = 4 * OUTPUT_MAPS * height * width * channels
    frames = FRAME_BYTES * n_frames + field_bytes
    return outputs + max(slab + weights + workers * (source + scratch) + frames, outputs)


@dataclass(frozen=True)
class SlabPlan:
    """How a tile is cut into slabs of rows, and what one slab needs of what it may take (bytes)."""

    rows_per_slab: int
    n_slabs: int
    needed_bytes: int
    allowed_bytes: int

    def __str__(self) -> str:
        """Return the plan as one line."""
        return (
            f"{self.n_slabs} slab(s) of {self.rows_per_slab} rows, "
            f"{memory_text(self.needed_bytes)} of {memory_text(self.allowed_bytes)}"
        )


def _rows_that_fit(height: int, allowed_bytes: int, bytes_of: Callable[[int], int]) -> int:
    """Return the most rows (0 to ``height``) whose bytes are allowed; ``bytes_of`` must not decrease."""
    return bisect.bisect_right(range(1, height + 1), allowed_bytes, key=bytes_of)


def plan_slabs(
    height: int,
    *,
    allowed_bytes: int,
    n_frames: int,
    width: int,
    channels: int,
    workers: int = 1,
    weights_per_pixel: int = 0,
    source_margin: int = 0,
    source_stretch: float = 1.0,
    raw_bytes: int = 4,
    stored_bytes: int = 0,
    field_bytes: int = 0,
    max_rows: int | None = None,
) -> SlabPlan:
    """Choose the slab height: as few slabs as the memory allows, all of nearly the same height.

    Parameters
    ----------
    height : int
        Rows of the result.
    allowed_bytes : int
        Memory the stack may take, bytes.
    max_rows : int, optional
        A hint: no slab is higher than this. None or not positive: no hint.
    n_frames, width, channels, workers, weights_per_pixel, source_margin, source_stretch, raw_bytes
        As in :func:`stack_bytes`.
    stored_bytes, field_bytes
        As in :func:`stack_bytes`.

    Raises
    ------
    PlanError
        Not even one row fits; the message gives needed and allowed bytes and the remedy.
    """

    def bytes_of(rows: int) -> int:
        return stack_bytes(
            rows,
            n_frames=n_frames,
            height=height,
            width=width,
            channels=channels,
            workers=workers,
            weights_per_pixel=weights_per_pixel,
            source_margin=source_margin,
            source_stretch=source_stretch,
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            field_bytes=field_bytes,
        )

    if height < 1:
        raise PlanError(f"a tile of {height} rows cannot be stacked; frames need at least one row")
    most = _rows_that_fit(height, allowed_bytes, bytes_of)
    if most < 1:
        raise PlanError(
            f"one row of {n_frames} frames, {width} pixels wide, needs {bytes_of(1)} bytes ({memory_text(bytes_of(1))})"
            f" with {workers} worker(s), allowed are {allowed_bytes} ({memory_text(allowed_bytes)}); "
            "allow more memory (--memory), use fewer workers (--workers) or stack fewer frames at a time"
        )
    if max_rows is not None and max_rows > 0:
        most = min(most, max_rows)
    n_slabs = math.ceil(height / most)
    rows = math.ceil(height / n_slabs)
    return SlabPlan(rows, math.ceil(height / rows), bytes_of(rows), allowed_bytes)


def row_slabs(height: int, rows_per_slab: int) -> Iterator[slice]:
    """Yield the destination rows of each slab, top to bottom; the last is cut to fit.

    Raises
    ------
    ValueError
        ``rows_per_slab`` is less than 1, or ``height`` is negative.
    """
    if rows_per_slab < 1 or height < 0:
        raise ValueError(f"cannot cut {height} rows into slabs of {rows_per_slab}; use slabs of at least one row")
    for start in range(0, height, rows_per_slab):
        yield slice(start, min(start + rows_per_slab, height))


# --------------------------------------------------------------------------- plans


@dataclass
class ParallelPlan:
    """Hints for one stack; absent or non-positive means no hint. Sizes in bytes, heights in rows."""

    cpu_workers: int
    use_memmap: bool
    max_chunk_bytes: int
    rows_per_chunk: int | None = None
    tiles_per_chunk: int | None = None
    use_gpu: bool = False
    gpu_rows_per_chunk: int | None = None
    gpu_max_chunk_bytes: int | None = None


def _number(config: object, key: str, default: float, low: float, high: float) -> float:
    """Read a number from a configuration, clamped; what cannot be read is the default."""
    value: Any = setting(config, key)
    try:
        number = float(default if value is None else value)
    except (TypeError, ValueError):
        number = default
    return min(max(number if math.isfinite(number) else default, low), high)


def auto_tune_parallel_plan(
    kind: str,
    frame_shape: Sequence[int],
    n_frames: int,
    bytes_per_pixel: int,
    config: object = None,
    caps: ParallelCapabilities | None = None,
) -> ParallelPlan:
    """Choose workers and chunk sizes for a stack.

    Parameters
    ----------
    kind : str
        What is stacked ("master_tile", ...), for the log.
    frame_shape : sequence of int
        (H, W) or (H, W, C).
    n_frames : int
        Frames in the stack.
    bytes_per_pixel : int
        Bytes of one pixel of one frame, all channels; never counted as less than float32 takes.
    config : Mapping or object, optional
        Keys or attributes, all optional, clamped, unreadable means the default: ``parallel_autotune_enabled`` (True;
        False: all cores, and no hint on sizes), ``parallel_target_cpu_load`` (0.95), ``parallel_target_ram_fraction``
        (0.9), ``parallel_gpu_vram_fraction`` (0.8), ``parallel_max_cpu_workers`` (0 = no limit).
    caps : ParallelCapabilities, optional
        Default: :func:`detect_parallel_capabilities`.

    Raises
    ------
    ValueError
        The shape is not that of a frame, or there is no frame.
    """
    if len(frame_shape) not in (2, 3) or min(frame_shape) < 1 or n_frames < 1:
        raise ValueError(f"{n_frames} frame(s) of shape {tuple(frame_shape)} are not a stack of (H, W) or (H, W, C)")
    caps = detect_parallel_capabilities() if caps is None else caps
    height, width, channels = (*(int(n) for n in frame_shape), 1)[:3]
    pixel_bytes = max(int(bytes_per_pixel), 4 * channels)
    most_workers = int(_number(config, "parallel_max_cpu_workers", 0, 0, 4096)) or caps.cpu_logical_cores
    if not as_bool(setting(config, "parallel_autotune_enabled"), True):
        workers = max(1, min(caps.cpu_logical_cores, most_workers))
        return ParallelPlan(workers, use_memmap=False, max_chunk_bytes=0, use_gpu=caps.gpu_available)

    load = _number(config, "parallel_target_cpu_load", 0.95, 0.05, 1.0)
    workers = max(1, min(round(caps.cpu_logical_cores * load), most_workers))
    allowed = int(caps.ram_available_bytes * _number(config, "parallel_target_ram_fraction", 0.9, 0.05, 1.0))
    rows = _rows_that_fit(
        height,
        allowed,
        lambda count: stack_bytes(
            count,
            n_frames=n_frames,
            height=height,
            width=width,
            channels=channels,
            workers=workers,
            raw_bytes=pixel_bytes,
        ),
    )
    plan = ParallelPlan(
        cpu_workers=workers,
        use_memmap=n_frames * height * width * pixel_bytes > allowed,
        max_chunk_bytes=allowed,
        rows_per_chunk=max(1, rows),  # the engine refuses, with the numbers, if not even one row fits
    )
    if caps.gpu_available:
        vram = int((caps.gpu_vram_free_bytes or 0) * _number(config, "parallel_gpu_vram_fraction", 0.8, 0.05, 0.95))
        # Registered samples, and as much again for the upload that overlaps with the kernel.
        gpu_rows = min(height, vram // (2 * n_frames * width * pixel_bytes))
        plan.use_gpu = gpu_rows >= 1
        if plan.use_gpu:
            plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes = gpu_rows, vram
    LOGGER.debug("plan for %s, %d frames of %s: %s", kind, n_frames, tuple(frame_shape), plan)
    return plan


FALLBACK_GPU_CHUNK_BYTES: Final = 512 * 1024**2  # a chunk every card that runs CUDA 12 can hold


def plan_hint(plan: object, name: str) -> int | None:
    """Return a positive hint of a duck-typed plan, else None."""
    return positive(getattr(plan, name, None))


def tighter(plan: object) -> ParallelPlan:
    """Return a copy of a plan with half the GPU chunk: half the bytes and half the rows, at least one row.

    A hint on GPU bytes that is absent is derived from ``max_chunk_bytes`` (never above 512 MiB, which is the value
    without either); an absent hint on GPU rows from ``rows_per_chunk``, and stays absent without it, since the bytes
    bind already. The original is not changed.

    Parameters
    ----------
    plan : ParallelPlan or object
        Anything with (some of) the attributes of :class:`ParallelPlan`.
    """
    chunk = plan_hint(plan, "max_chunk_bytes") or 0
    largest = min(chunk or FALLBACK_GPU_CHUNK_BYTES, FALLBACK_GPU_CHUNK_BYTES)
    gpu_bytes = plan_hint(plan, "gpu_max_chunk_bytes") or largest
    gpu_rows = plan_hint(plan, "gpu_rows_per_chunk") or plan_hint(plan, "rows_per_chunk")
    half_bytes = max(1, gpu_bytes // 2)
    half_rows = max(1, gpu_rows // 2) if gpu_rows else None
    if isinstance(plan, ParallelPlan):
        return dataclasses.replace(plan, gpu_max_chunk_bytes=half_bytes, gpu_rows_per_chunk=half_rows)
    return ParallelPlan(
        cpu_workers=plan_hint(plan, "cpu_workers") or 0,
        use_memmap=bool(getattr(plan, "use_memmap", False)),
        max_chunk_bytes=chunk,
        rows_per_chunk=plan_hint(plan, "rows_per_chunk"),
        tiles_per_chunk=plan_hint(plan, "tiles_per_chunk"),
        use_gpu=bool(getattr(plan, "use_gpu", False)),
        gpu_rows_per_chunk=half_rows,
        gpu_max_chunk_bytes=half_bytes,
    )


# --------------------------------------------------------------------------- threads


MOST_IDLE: Final = 8  # crews that stay after their work; a tile on the GPU has two


class Crew:
    """Threads for one piece of work, a context: they stay for the next one, which need not wait for them to start.

    Leaving it cancels what has not begun and waits for what has. A crew belongs to one caller until then, so that the
    work of one tile never queues behind another's.

    Parameters
    ----------
    workers : int
        Threads.
    """

    _idle: ClassVar[list[tuple[int, ThreadPoolExecutor]]] = []
    _at_work: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._futures: set[Future[Any]] = set()
        with self._lock:
            free = next((k for k, (size, _) in enumerate(self._idle) if size == workers), None)
            pool = None if free is None else self._idle.pop(free)[1]
            Crew._at_work += 1
        self._pool = pool or ThreadPoolExecutor(max_workers=workers, thread_name_prefix="phase3-crew")

    def submit(self, fn: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a thread call ``fn(*arguments)``."""
        future = self._pool.submit(fn, *arguments)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def __enter__(self) -> Crew:
        """Return the crew."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let the threads go."""
        left = list(self._futures)
        for future in left:
            future.cancel()
        wait(left)
        with self._lock:
            Crew._at_work -= 1
            if len(self._idle) < MOST_IDLE:
                self._idle.append((self._workers, self._pool))
                return
        self._pool.shutdown()

    @classmethod
    def at_work(cls) -> int:
        """Return how many crews have not been left yet."""
        return cls._at_work

    @classmethod
    def forget_idle(cls) -> None:
        """Forget the crews that wait: in a forked process their threads are not there."""
        cls._idle.clear()
        cls._at_work = 0
        cls._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Crew.forget_idle)


def parallel_map(fn: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """Apply ``fn`` to every item in threads; results in the order of the items.

    The first exception (``KeyboardInterrupt`` too) cancels what has not started, waits for what has, and propagates.

    Parameters
    ----------
    fn : callable
        Called in several threads at once; useful when it releases the interpreter lock.
    items : iterable
        Read completely before the first result.
    workers : int
        Threads; 1 or less runs in this thread.
    """
    if workers <= 1:
        return [fn(item) for item in items]
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="zemosaic")
    try:
        futures = [pool.submit(fn, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future in done and future.exception() is not None]
        return [future.result() for future in failed or futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
