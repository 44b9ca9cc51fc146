"""Time the rejection kernels alone, on samples that already lie on the card, and compare their bits.

Run ``python benchmarks/bench_gpu_kernels.py [--quick]`` on a machine with CuPy and g++. Samples are seeded noise with
0.2 % hits. A time is the median of five launches between events. The first pixels of every case are computed once more
on the processor from the same text built by g++, which the tests hold to Numba's bits.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

import cuda_host
import cupy as cp
import numpy as np

import zemosaic_combine_cuda as cuda

METHODS = {  # METHOD_CODES of zemosaic_rejection, which would load Numba
    "none": 0, "kappa_sigma": 1, "kappa_sigma_clipped": 2, "legacy_quantile": 3, "pixinsight": 4, "sigma_clip": 5,
    "averaged_sigma": 6, "percentile_clip": 7, "linear_fit_ols": 9, "linear_fit_lad": 10,
}  # fmt: skip
COMBINES = {"mean": 0, "median": 1, "min": 2, "max": 3}
IMAGE = 1080 * 1920 * 3
CONSTANTS = ("METHOD", "COMBINE", "REWINSOR", "SAMPLE", "SCALED", "IN_SHARED", "RUN")
CHECKED = 2000  # elements whose bits are compared


@dataclass(frozen=True)
class Row:
    n_frames: int
    elements: int
    method: str
    combine: str = "mean"
    sample: str = "float32"
    weighted: bool = False
    in_shared: bool | None = None  # None: as planned


ROWS = (
    *(Row(200, IMAGE, m) for m in METHODS if not m.startswith("linear")),
    *(Row(200, IMAGE, m, sample=s) for m in ("sigma_clip", "pixinsight") for s in ("uint16", "fits_uint16")),
    Row(200, IMAGE, "none", "median"),
    Row(200, IMAGE, "sigma_clip", "median"),
    Row(200, IMAGE, "pixinsight", weighted=True),
    Row(200, IMAGE, "sigma_clip", in_shared=False),
    *(Row(n, IMAGE, m) for n in (10, 50) for m in ("sigma_clip", "pixinsight")),
    *(Row(n, IMAGE // 8, "sigma_clip", in_shared=s) for n in (400, 600, 1000) for s in (True, False)),
    Row(10000, 200_000, "sigma_clip"),
    Row(10000, 200_000, "pixinsight"),
    Row(200, IMAGE // 8, "linear_fit_ols"),
    Row(200, IMAGE // 8, "linear_fit_lad"),
)


def noise(n_frames: int, elements: int, dtype: str) -> cp.ndarray:
    """Return ``(n_frames, elements)`` samples on the card: sky 1000, noise 30, 0.2 % hits, some holes if float."""
    random = cp.random.RandomState(7)
    cube = cp.empty((n_frames, elements), np.float32 if dtype == "float32" else np.uint16)
    for frame in cube:
        values = random.normal(1000.0, 30.0, elements, dtype=cp.float32)
        values += 2000.0 * (random.random_sample(elements, dtype=cp.float32) < 0.002)
        frame[...] = values if dtype == "float32" else (values + 0.5).astype(cp.uint16)
    if dtype == "float32":
        cube[:: max(n_frames // 5, 1), 1:64:3] = cp.nan
    if dtype == "fits_uint16":
        cube ^= np.uint16(0x8000)
        cube = ((cube >> 8) | (cube << 8)).astype(cp.uint16)
    return cube


def device_arguments(row: Row, cube: cp.ndarray, plan: cuda.LaunchPlan) -> tuple[list, list]:
    n, p = cube.shape
    weight = np.linspace(0.5, 1.0, 3 * n).reshape(n, 3) if row.weighted else np.ones((n, 3))
    scaled = row.sample != "float32"
    scale, offset = np.full((n, 3), 1.01), np.full((n, 3), -3.5)
    par = np.array([4.0, 3.0, 0.05, 0.05, 0.3, 0.05])
    if row.method == "percentile_clip":
        par[:2] = 0.2, 0.1
    elif row.method != "pixinsight":
        par[:2] = 3.0
    types = (np.float32, np.int32, np.float32, np.int32, np.int32)
    maps = [cp.full(p, -77, t) for t in types] + [cp.zeros((n, 3), np.uint64), cp.zeros(1, np.uint64)]
    scratch = cp.empty(max(plan.scratch_bytes // 4, 1), np.float32)
    inputs = [cp.asarray(a) for a in (par, np.full(n + 1, np.inf), weight)]
    arguments = [
        cube, np.int64(p), np.int32(n), np.int64(p), np.int32(3), *inputs, np.uint64(0), np.int64(0), np.int32(1),
        np.int32(not row.weighted), *maps, scratch,
        *((cp.asarray(scale), cp.asarray(offset)) if scaled else (np.uint64(0), np.uint64(0))),
    ]  # fmt: skip
    return arguments, maps


def on_host(library: ctypes.CDLL, row: Row, arguments: list) -> list[np.ndarray]:
    """Compute the first elements on the processor; returns image, coverage, weight, low and high."""
    host = [a[..., :CHECKED].get() if i == 0 else (a.get() if isinstance(a, cp.ndarray) else a)
            for i, a in enumerate(arguments)]  # fmt: skip
    host[0] = np.ascontiguousarray(host[0])
    host[1] = np.int64(host[0].shape[1])
    host[3] = host[1]
    host[19] = np.empty(row.n_frames, np.float32)
    values = (METHODS[row.method], COMBINES[row.combine], 0, cuda.SAMPLE_CODES[row.sample], row.sample != "float32", 1, 32)
    for name, value in zip(CONSTANTS, values, strict=True):
        getattr(library, f"set_{name}")(int(value))
    library.set_grid(0, 0, 0, 1, 1, 1)
    library.combine_block(*(
        cuda_host.address(a) if isinstance(a, np.ndarray)
        else (ctypes.c_int(a) if isinstance(a, np.int32) else ctypes.c_longlong(int(a)))
        for a in host
    ))  # fmt: skip
    return host[12:17]


def measure(row: Row, cube: cp.ndarray, library: ctypes.CDLL) -> str:
    device = cp.cuda.Device()
    limit = device.attributes["MaxSharedMemoryPerBlockOptin"]
    n, p = cube.shape
    processors = device.attributes["MultiProcessorCount"]
    plan = cuda.launch_plan(n, p, shared_limit=0 if row.in_shared is False else limit, multiprocessors=processors)
    if row.in_shared and not plan.in_shared:
        plan = cuda.LaunchPlan(cuda.LANES, -(-p // cuda.LANES), n * cuda.LANES * 4, 0)
    begin = time.perf_counter()
    text = cuda.source(
        METHODS[row.method], COMBINES[row.combine], sample=row.sample, scaled=row.sample != "float32",
        in_shared=plan.in_shared, n_frames=n,
    )  # fmt: skip
    kernel = cp.RawModule(code=text, options=cuda.COMPILE_OPTIONS).get_function(cuda.KERNEL)
    if plan.shared_bytes > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    compiled = time.perf_counter() - begin
    arguments, maps = device_arguments(row, cube, plan)
    times = []
    for _ in range(4):
        a, b = cp.cuda.Event(), cp.cuda.Event()
        a.record()
        kernel((plan.blocks,), (plan.threads,), tuple(arguments), shared_mem=plan.shared_bytes)
        b.record()
        b.synchronize()
        times.append(cp.cuda.get_elapsed_time(a, b))
    wanted = on_host(library, row, arguments)
    differ = sum(int((m[:CHECKED].get().view(np.uint32) != w[:CHECKED].view(np.uint32)).sum())
                 for m, w in zip(maps, wanted, strict=False))  # fmt: skip
    ms = statistics.median(times[1:])
    return (
        f"{n:6d} {p:8d} {row.method:20s} {row.combine:7s} {row.sample:12s} "
        f"{'weighted' if row.weighted else 'uniform':9s}{'shared' if plan.in_shared else 'scratch':8s}{kernel.num_regs:4d} regs {kernel.local_size_bytes:4d} local "
        f"compile {compiled:5.2f} s {ms:9.2f} ms {ms * 1e6 / (n * p):7.4f} ns/sample  "
        f"{ms * IMAGE / p:8.1f} ms/image  bits differ {differ}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the pixels")
    options = parser.parse_args()
    constants = "".join(
        f'static int {name};\nextern "C" void set_{name}(int value) {{ {name} = value; }}\n' for name in CONSTANTS
    )
    host = f"constexpr int LANES = 1;\n{constants}{cuda.TEXT}\nfloat tile_memory[{1 << 16}];\n"
    library = cuda_host.build(host, "kernels", Path(tempfile.mkdtemp()))
    made, cube = None, None
    for row in sorted(ROWS, key=lambda r: (r.n_frames, r.sample)):
        elements = row.elements // 8 if options.quick else row.elements
        if made != (row.n_frames, elements, row.sample):
            cube = None
            cp.get_default_memory_pool().free_all_blocks()
            cube = noise(row.n_frames, elements, row.sample)
            made = (row.n_frames, elements, row.sample)
        print(measure(row, cube, library), flush=True)


if __name__ == "__main__":
    main()
