"""Compile what nearly all tests use, in one process for each core: tests side by side would all do it, and wait.

``make test`` runs it before the tests. Kernels go into the cache on disk, where every process finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rejection_case import run

from zemosaic_phase3.methods import KERNELS
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.runtime.limits import usable_cpus
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import StackSpec

CUBE = np.arange(14.0 * 32, dtype=np.float32).reshape(14, 32)
UNEQUAL = np.linspace(0.5, 1.0, 14)
TOLERANCE = np.ones(32, np.float32)


def compile_method(method: str) -> None:
    """Compile a method with every average that a test takes after it."""
    with np.errstate(all="ignore"):
        for combine, weights in (("mean", UNEQUAL), ("mean", None), ("median", None)):
            run(CUBE, method, combine, weights=weights)
            if KERNELS[method].replaces:
                run(CUBE, method, combine, weights=weights, rewinsor=True)
        run(CUBE, method, weights=UNEQUAL, tolerance=TOLERANCE)


def compile_job() -> None:
    """Compile what measures, registers, resamples and drizzles, of frames with a colour mosaic and without."""
    for drizzle, bayer in ((0.0, "GRBG"), (0.0, "none"), (1.0, "GRBG")):
        with TemporaryDirectory() as folder:
            simulate(SimulationSpec(n_frames=5, height=160, width=200, seed=2, n_stars=60, bayer=bayer), Path(folder))
            spec = StackSpec(flatten=True, drizzle=drizzle)
            stack_files([folder], stack=spec, device="cpu", maps=not drizzle)


def do(task: Callable[[], None]) -> None:
    """Do a task, in another process."""
    task()


def main() -> None:
    """Compile the shared parts, then the job and method by method, the slowest first."""
    run(CUBE, "none", "median")
    rest = sorted(KERNELS, key=lambda name: (not name.endswith("_line"), not name.startswith("winsorized")))
    tasks = [compile_job, *(partial(compile_method, name) for name in rest)]
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        list(pool.map(do, tasks))


if __name__ == "__main__":
    main()
