"""Time the rejection kernels alone, on samples that already lie on the card, and compare their bits.

Run ``python benchmarks/bench_gpu_kernels.py [--quick]`` on a machine with CuPy and g++. Samples are seeded noise with
0.2 % hits. A time is the median of three launches between events. The first pixels of every case are computed once more
on the processor from the same text built by g++, which the tests hold to Numba's bits.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cuda_host
import cupy as cp
import numpy as np

from zemosaic_phase3.combine import cuda
from zemosaic_phase3.methods import KERNELS

IMAGE = 1080 * 1920 * 3
PLANNED = cuda.SHARED_BLOCKS
CHECKED = 2000  # elements whose bits are compared
TYPES = (np.float32, np.int32, np.float32, np.int32, np.int32)  # image, coverage, weight, rejected low and high


@dataclass(frozen=True)
class Row:
    """A case: ``part`` of an image of 1080 x 1920 x 3; ``in_shared`` None: as planned."""

    n_frames: int
    part: int
    method: str
    combine: str = "mean"
    weighted: bool = False
    in_shared: bool | None = None


ROWS = (
    *(Row(n, 1, m) for n in (10, 50) for m in ("sigma_clip", "winsorized_huber")),
    *(Row(50, 8, m) for m in ("least_squares_line", "least_absolute_line")),
    *(Row(200, 1, m) for m in KERNELS if not m.endswith("_line")),
    Row(200, 1, "none", "median"),
    Row(200, 1, "sigma_clip", "median"),
    Row(200, 1, "winsorized_huber", weighted=True),
    Row(200, 1, "sigma_clip", in_shared=False),
    *(Row(200, 8, m) for m in ("least_squares_line", "least_absolute_line")),
    *(Row(n, 8, "sigma_clip", in_shared=s) for n in (300, 400, 600, 1000) for s in (True, False)),
    *(Row(n, 32, m) for n in (3000, 10_000) for m in ("none", "sigma_clip", "winsorized_huber")),
    *(Row(n, 32, "none", "median") for n in (3000, 10_000)),
)


def noise(n_frames: int, elements: int) -> cp.ndarray:
    """Return ``(n_frames, elements) float32`` on the card: sky 1000, noise 30, 0.2 % hits, some holes."""
    random = cp.random.RandomState(7)
    cube = cp.empty((n_frames, elements), np.float32)
    for frame in cube:
        frame[...] = random.normal(1000.0, 30.0, elements, dtype=cp.float32)
        frame += 2000.0 * (random.random_sample(elements, dtype=cp.float32) < 0.002)
    cube[:: max(n_frames // 5, 1), 1:64:3] = cp.nan
    return cube


def arguments_for(row: Row, cube: cp.ndarray, scratch_bytes: int) -> list:
    """Return the kernel's arguments; those from the 14th on are the maps, the hits, the lost and the scratch."""
    n, p = cube.shape
    weight = np.linspace(0.5, 1.0, 3 * n).reshape(n, 3) if row.weighted else np.ones((n, 3))
    par = np.array([3.0, 3.0, 0.05, 0.05, 0.3, 0.05])
    if KERNELS[row.method].unit != "sigma":
        par[:2] = KERNELS[row.method].limits
    numbers = [cp.asarray(a) for a in (par, np.full(n + 1, 3.5), weight)]
    maps = [cp.full(p, -77, t) for t in TYPES]
    counts = [cp.zeros((n, 3), np.uint64), cp.zeros(1, np.uint64)]
    return [
        cube, np.int64(p), np.int32(n), np.int64(p), np.int32(3), *numbers, np.uint64(0), np.int64(0), np.int32(1),
        np.int32(not row.weighted), np.uint64(0), *maps, *counts, cp.empty(max(scratch_bytes // 4, 1), np.float32),
    ]  # fmt: skip


def on_host(text: str, row: Row, arguments: list) -> list[np.ndarray]:
    """Compute the maps of the first elements on the processor, by the same text."""
    library = cuda_host.combine_library(text, cuda_host.STRICT)
    cuda_host.set_constants(library, text, PLACE=cuda.SHARED, RUN=32)
    cube = np.ascontiguousarray(arguments[0][:, :CHECKED].get())
    host = [a.get() if isinstance(a, cp.ndarray) else a for a in arguments[1:-1]]
    host = [cube, *host, np.empty(2 * row.n_frames, np.float32)]
    host[1] = host[3] = np.int64(cube.shape[1])
    library.set_grid(0, 0, 0, 1, 1, 1)
    library.combine_block(*(
        cuda_host.address(a) if isinstance(a, np.ndarray)
        else (ctypes.c_int(a) if isinstance(a, np.int32) else ctypes.c_longlong(int(a)))
        for a in host
    ))  # fmt: skip
    return host[13:18]


def measure(row: Row, cube: cp.ndarray) -> str:
    device = cp.cuda.Device()
    n, p = cube.shape
    cuda.SHARED_BLOCKS = {None: PLANNED, True: 1, False: 1 << 20}[row.in_shared]
    plan = cuda.launch_plan(
        n, p, shared_limit=device.attributes["MaxSharedMemoryPerBlockOptin"],
        multiprocessors=device.attributes["MultiProcessorCount"],
    )  # fmt: skip
    begin = time.perf_counter()
    text = cuda.source(row.method, row.combine, in_shared=plan.in_shared, n_frames=n)
    kernel = cp.RawModule(code=text, options=cuda.COMPILE_OPTIONS).get_function(cuda.KERNEL)
    if plan.shared_bytes > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    compiled = time.perf_counter() - begin
    arguments = arguments_for(row, cube, plan.scratch_bytes)
    times = []
    for _ in range(4):
        a, b = cp.cuda.Event(), cp.cuda.Event()
        a.record()
        kernel((plan.blocks,), (plan.threads,), tuple(arguments), shared_mem=plan.shared_bytes)
        b.record()
        b.synchronize()
        times.append(cp.cuda.get_elapsed_time(a, b))
    pairs = zip(arguments[13:18], on_host(text, row, arguments), strict=True)
    differ = sum(int((d[:CHECKED].get().view("i4") != h[:CHECKED].view("i4")).sum()) for d, h in pairs)
    ms = statistics.median(times[1:])
    return (
        f"{n:6d} {p:8d} {row.method:20s}{row.combine:7s}{'weighted' if row.weighted else 'uniform':9s}"
        f"{'shared' if plan.in_shared else 'scratch':8s}{kernel.num_regs:4d} regs {kernel.local_size_bytes:4d} local "
        f"compile {compiled:5.2f} s {ms:9.2f} ms {ms * 1e6 / (n * p):7.4f} ns/sample  "
        f"{ms * IMAGE / p:8.1f} ms/image  bits differ {differ}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the pixels")
    options = parser.parse_args()
    made, cube = None, None
    for row in sorted(ROWS, key=lambda r: (r.n_frames, r.part)):
        part = row.part * (8 if options.quick else 1)
        if made != (row.n_frames, part):
            cube = None
            cp.get_default_memory_pool().free_all_blocks()
            cube, made = noise(row.n_frames, IMAGE // part), (row.n_frames, part)
        print(measure(row, cube), flush=True)


if __name__ == "__main__":
    main()
