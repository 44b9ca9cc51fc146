"""Compile what rejects and combines, in one process for each core: tests side by side would all do it, and wait.

``make test`` runs it before the tests. Kernels go into the cache on disk, where every process finds them.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rejection_case import run

from zemosaic_phase3.methods import KERNELS
from zemosaic_phase3.runtime.limits import usable_cpus

CUBE = np.arange(14.0 * 32, dtype=np.float32).reshape(14, 32)
UNEQUAL = np.linspace(0.5, 1.0, 14)


def compile_method(method: str) -> None:
    """Compile a method with every average that a test takes after it."""
    for combine, weights in (("mean", UNEQUAL), ("mean", None), ("median", None)):
        run(CUBE, method, combine, weights=weights)
        if KERNELS[method].replaces:
            run(CUBE, method, combine, weights=weights, rewinsor=True)


def main() -> None:
    """Compile the shared parts, then method by method, the slowest first."""
    with np.errstate(all="ignore"):
        run(CUBE, "none", "median")
        rest = sorted(KERNELS, key=lambda name: (not name.endswith("_line"), not name.startswith("winsorized")))
        with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
            list(pool.map(compile_method, rest))


if __name__ == "__main__":
    main()
