"""The GPU engine on this machine: speed against the bus, against the disk's cache and against our own CPU engine.

Run ``python benchmarks/bench_gpu.py [SECTION ...]`` on a machine with CuPy and a device; without sections, all of them.
Every time is host to host: arrays or files in, the finished image and its maps in ordinary memory out. ``first`` is the
first tile of its kind in the process (compilation from CuPy's cache if it is there, pinned memory taken), the rest are
later ones. The limits are measured in the same run: ``bus`` copies the same bytes from one pinned buffer to the card.

Sections: speed (float32, 16-bit, files), pool (8, 4, 1 GB), methods (each against the CPU engine), big (``--frames``
raw mosaics on disk; only when named). The kernels alone: ``bench_gpu_kernels.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from zemosaic_phase3.compat import stack_cpu, stack_gpu
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.compat.parameters import params_from_stack_spec
from zemosaic_phase3.engine import cpu as cpu_module
from zemosaic_phase3.engine import gpu as gpu_module
from zemosaic_phase3.engine import gpu_check, gpu_plan
from zemosaic_phase3.engine.gpu_gather import gatherer_of
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime import cuda, limits
from zemosaic_phase3.spec import StackSpec

HEIGHT, WIDTH, CHANNELS = 1080, 1920, 3
SKY, NOISE, HIT_SHARE, HIT = 1000.0, 30.0, 0.002, 2000.0
FOLDER = os.environ.get("BENCH_DIR")  # of the files that are read; default: the system's for temporary files
CORES = limits.usable_cpus()
SIGMA = {"reject": "sigma_clip", "kappa_low": 3.0, "kappa_high": 3.0}
HUBER = {"reject": "winsorized_sigma_clip", "wsc_impl": "pixinsight", "kappa_low": 3.0, "kappa_high": 3.0}
METHODS = {
    "mean": {"reject": "none"},
    "median": {"reject": "none", "combine": "median"},
    "kappa_sigma": {"reject": "kappa_sigma"},
    "sigma_clip": SIGMA,
    "winsorized, legacy": {"reject": "winsorized_sigma_clip", "wsc_impl": "legacy_quantile"},
    "winsorized, Huber": HUBER,
    "averaged_sigma": {"reject": "averaged_sigma"},
    "percentile_clip": {"reject": "percentile_clip"},
    "gesd": {"reject": "gesd"},
    "linear_fit, ols": {"reject": "linear_fit_clip", "line_fit": "ols"},
    "linear_fit, lad": {"reject": "linear_fit_clip", "line_fit": "lad"},
}


def spec(**options: object) -> StackSpec:
    return StackSpec(**{"normalize": "none", "weight": "none", "equalize_rgb": False, **options})


def noise(count: int, dtype: type, shape: tuple[int, ...] = (HEIGHT, WIDTH, CHANNELS)) -> list[np.ndarray]:
    def one(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        frame = rng.standard_normal(shape, np.float32) * np.float32(NOISE) + np.float32(SKY)
        frame.reshape(-1)[rng.integers(0, frame.size, int(HIT_SHARE * frame.size))] += np.float32(HIT)
        return frame if dtype is np.float32 else np.rint(frame).astype(dtype)

    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(one, range(count)))


def timed(work: Callable[[], object], repeats: int = 5) -> tuple[float, float, float]:
    """First, best and median of the later ones, seconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[0], min(times[1:]), statistics.median(times[1:])


def bus_seconds(total: int, piece: int = 64 << 20) -> float:
    """Return what copying so many bytes from pinned memory takes, in pieces, the best of five."""
    cupy = cuda.cupy_module()
    pinned = cupy.cuda.alloc_pinned_memory(piece)
    np.frombuffer(pinned, np.uint8, piece)[:] = 7
    target = cupy.empty(piece, np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    best = np.inf
    for _ in range(5):
        stream.synchronize()
        start = time.perf_counter()
        for _ in range(max(1, total // piece)):
            cupy.cuda.runtime.memcpyAsync(target.data.ptr, pinned.ptr, piece, 1, stream.ptr)
        stream.synchronize()
        best = min(best, time.perf_counter() - start)
    return best * total / (max(1, total // piece) * piece)


def gather_seconds(frames: list[Frame], repeats: int = 4) -> float:
    """Return what filling pinned memory with all rows takes, as the engine does it, without copies to the card."""
    job = make_job(frames, spec())
    route = gpu_plan.route_of(job)
    plan = gpu_plan.plan_gpu(route, allowed_bytes=1 << 36, workers=CORES)
    cupy = cuda.cupy_module()
    pinned = [cupy.cuda.alloc_pinned_memory(plan.batch_bytes) for _ in range(plan.pinned_buffers)]
    buffers = [np.frombuffer(memory, np.uint8, plan.batch_bytes) for memory in pinned]
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        threads = gpu_module.gathering_threads(CORES)
        with gatherer_of(job, route, partial(gpu_plan.cut, job, route, plan), buffers, threads) as gatherer:
            for _ in gatherer.filled():
                gatherer.release()
        best = min(best, time.perf_counter() - start)
    return best


def stack(descriptors: list, options: dict, *, workers: int = CORES, **plan: int) -> tuple[np.ndarray, dict]:
    params = params_from_stack_spec(spec(**options))
    plan = ParallelPlan(workers, False, 0, use_gpu=True, **plan)
    note = lambda *_, **figures: EVENTS.append(figures)  # noqa: E731
    return stack_gpu.gpu_stack_from_paths(descriptors, params, parallel_plan=plan, pcb_tile=note)


EVENTS: list[dict] = []


def line(label: str, times: tuple[float, float, float], limit: float) -> None:
    event = EVENTS[-1]
    print(
        f"{label:44s} first {times[0]:6.3f}  best {times[1]:6.3f}  median {times[2]:6.3f} s | limit {limit:.3f} "
        f"best/limit {times[1] / limit:.2f} median/limit {times[2] / limit:.2f} | {event['chunks']} x "
        f"{event['rows_per_chunk']} rows",
        flush=True,
    )


def check_bits(descriptors: list, options: dict, label: str) -> None:
    params = params_from_stack_spec(spec(**options))
    image, facts = stack(descriptors, options)
    start = time.perf_counter()
    expected, truth = stack_cpu.stack_descriptors(descriptors, params)
    took = time.perf_counter() - start
    differing = int((image.view(np.uint32) != expected.view(np.uint32)).sum())
    maps = sum(int((facts[k] != truth[k]).sum()) for k in ("coverage", "weight_map", "rejected_low", "rejected_high"))
    hits = facts["frame_rejected_percent"] == truth["frame_rejected_percent"]
    found = f"image differs at {differing}, maps at {maps}, hits equal {hits}"
    print(f"bits {label}: {found}; CPU {took:.2f} s", flush=True)


def speed(count: int) -> None:
    frames = noise(count, np.float32)
    total = sum(frame.nbytes for frame in frames)
    print(f"gather float32 {gather_seconds([Frame(open_source(f)) for f in frames]):.3f} s", flush=True)
    bus = bus_seconds(total)
    for name, options in (("sigma_clip", SIGMA), ("winsorized Huber", HUBER), ("mean", METHODS["mean"])):
        line(f"N={count} float32 {name}", timed(lambda o=options: stack(frames, o)), bus)
    check_bits(frames, SIGMA, "float32 sigma_clip")
    check_bits(frames, HUBER, "float32 Huber")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        from_files(frames, Path(folder), bus)
    words = [np.rint(frame).astype(np.uint16) for frame in frames]
    frames.clear()
    for name, options in (("sigma_clip", SIGMA), ("winsorized Huber", HUBER)):
        line(f"N={count} uint16 {name}", timed(lambda o=options: stack(words, o)), bus / 2)
    check_bits(words, SIGMA, "uint16 sigma_clip")


def from_files(frames: list[np.ndarray], folder: Path, bus: float) -> None:
    names = [folder / f"{i:04d}.npy" for i in range(len(frames))]
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda i: np.save(names[i], frames[i]), range(len(names))))
    read = gather_seconds([Frame(open_source(name)) for name in names])
    print(f"reading the files into pinned memory {read:.3f} s, bus {bus:.3f} s", flush=True)
    line(f"N={len(names)} .npy float32 sigma_clip", timed(lambda: stack(names, SIGMA)), max(read, bus))
    opened = [Frame(open_source(name)) for name in names]
    line(f"N={len(names)} same, headers read before", timed(lambda: stack(opened, SIGMA)), max(read, bus))


def pool(count: int) -> None:
    cupy = cuda.cupy_module()
    frames = noise(count, np.float32)
    bus = bus_seconds(sum(frame.nbytes for frame in frames))
    for limit in (0, 8 * 10**9, 4 * 10**9, 10**9):
        cuda.free_pools()
        cupy.get_default_memory_pool().set_limit(size=limit)
        line(f"pool limit {limit / 1e9:.0f} GB sigma_clip", timed(lambda: stack(frames, SIGMA)), bus)
        print(f"   pool holds {cupy.get_default_memory_pool().total_bytes() / 1e9:.2f} GB", flush=True)
    cupy.get_default_memory_pool().set_limit(size=0)


def methods(count: int) -> None:
    frames = noise(count, np.float32)
    params = {name: params_from_stack_spec(spec(**options)) for name, options in METHODS.items()}
    small = [frame[:96] for frame in frames]
    for name, options in METHODS.items():
        stack_cpu.stack_descriptors(small, params[name])  # compiles
        stack(small, options)
        gpu = timed(lambda o=options: stack(frames, o), 3)
        start = time.perf_counter()
        expected, _ = stack_cpu.stack_descriptors(frames, params[name])
        cpu = time.perf_counter() - start
        image, _ = stack(frames, options)
        differing = int((image.view(np.uint32) != expected.view(np.uint32)).sum())
        print(
            f"N={count} {name:20s} GPU {gpu[1]:.3f} s  CPU ({CORES} cores) {cpu:.3f} s  ratio {cpu / gpu[1]:5.1f}  "
            f"differing pixels {differing}",
            flush=True,
        )


def big(count: int) -> None:
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    try:
        _big(count, folder)
    finally:
        shutil.rmtree(folder)


def _big(count: int, folder: Path) -> None:
    from astropy.io import fits

    distinct = noise(32, np.uint16, (HEIGHT, WIDTH))
    header = fits.Header({"BAYERPAT": "GRBG"})
    names = [folder / f"{i:05d}.fits" for i in range(count)]
    for i, frame in enumerate(distinct):
        fits.writeto(names[i], frame, header)
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda i: shutil.copyfile(names[i % 32], names[i]), range(32, count)))
    rng = np.random.default_rng(1)
    frames = []
    for name in names:
        angle, dx, dy = np.deg2rad(rng.uniform(-0.5, 0.5)), *rng.uniform(-8, 8, 2)
        c, s = np.cos(angle), np.sin(angle)
        frames.append(Frame(open_source(name), np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]])))
    total = count * distinct[0].nbytes
    disk = gather_seconds(frames, repeats=1)
    bus = bus_seconds(total)
    print(f"{count} mosaics, {total / 1e9:.1f} GB; reading {disk:.2f} s, bus {bus:.2f} s", flush=True)
    for name, options in (("sigma_clip", SIGMA), ("mean", METHODS["mean"])):
        start = time.perf_counter()
        image, _ = stack(frames, options)
        took = time.perf_counter() - start
        rss = limits.peak_rss_bytes() / 1e9
        line(f"N={count} raw mosaics {name}", (took, took, took), max(bus, disk))
        print(f"   peak RSS {rss:.2f} GB, {EVENTS[-1]}", flush=True)
        if name == "sigma_clip":
            _check_rows(frames, options, image)


def _check_rows(frames: list[Frame], options: dict, image: np.ndarray) -> None:
    from dataclasses import replace

    rows, job = 2, make_job(frames, spec(**options))
    for first in (0, 500):
        moved = job.table.transform @ np.array([[1.0, 0, 0], [0, 1, first], [0, 0, 1]])
        part = replace(job, table=replace(job.table, transform=moved), shape=(rows, *job.shape[1:]))
        expected = cpu_module.stack(part, Resources(workers=CORES)).image
        print(f"   rows {first}..: differing {int((image[first : first + rows] != expected).sum())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"speed": speed, "pool": pool, "methods": methods, "big": big}
    parser.add_argument("sections", nargs="*", choices=[*sections, []], default=["speed", "pool", "methods"])
    parser.add_argument("--frames", type=int, default=0, help="frames (default: 200; methods 50; big 1000)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    usable = gpu_check.usability()
    print(f"probe {time.perf_counter() - start:.2f} s: {usable}")
    print(cuda.probe(), f"{CORES} cores", flush=True)
    if not usable.usable:
        sys.exit(1)
    for name in arguments.sections:
        print(f"--- {name}", flush=True)
        sections[name](arguments.frames or {"methods": 50, "big": 1000}.get(name, 200))


if __name__ == "__main__":
    main()
