"""Kernels compiled by a second process while a first run measures, registers and opens its frames.

The one compiles what brings frames onto the reference, the other what rejects and combines. On a machine with two cores
that is nearly half of the waiting, and the memory the compiler takes is not the stack's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Final

import numpy as np

from zemosaic_phase3.engine.cpu import stack as stack_on_cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime.limits import usable_cpus
from zemosaic_phase3.spec import StackSpec

SIDE: Final = 16  # pixels of the frames that are stacked for the sake of compiling
FRAMES: Final = 12  # the fewest that every rejection judges
ENDS_WITH_PARENT: Final = (
    "import os, sys, threading; threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start(); "
)
"""How a program begins that must not outlive its parent, not even where that was killed: its standard input is a pipe
of the parent's, which the system closes. The same on all systems."""


@contextlib.contextmanager
def kernels_compiled_beside(stack: StackSpec) -> Iterator[None]:
    """Have another process compile what the stack will call, if nothing is in the cache and a core is free for it.

    Parameters
    ----------
    stack : StackSpec
        What will be done in the block.
    """
    from zemosaic_phase3.combine.average import mean_strips
    from zemosaic_phase3.rejection.judge import compile_judge
    from zemosaic_phase3.runtime.jit import PACKAGE, cache_folder, compile_beside, is_cold

    cache = cache_folder(mean_strips)
    if cache is None or usable_cpus() < 2 or getattr(sys, "frozen", False) or not is_cold(cache):
        yield
        return
    # Not by `-m`, which would look for every module in the current folder first, which is the user's; nor by its path,
    # which would look in this folder first.
    program = f"sys.path[0] = {str(PACKAGE.parent)!r}; from {__name__} import main; main(sys.argv[1:])"
    with compile_beside([sys.executable, "-c", ENDS_WITH_PARENT + program, json.dumps(asdict(stack))]):
        compile_judge(stack.rejection)  # the other process has the longer way, and needs it later than this takes
        yield


def warm_up(stack: StackSpec) -> None:
    """Stack a few small frames, so that the kernels are compiled that reject and combine.

    Those that open, demosaic and resample frames are left to the process that works with the frames: it needs them
    first.
    """
    spec = replace(stack, normalize="none", weight="none", radial_weight=False, drizzle=0.0)
    frames = np.random.default_rng(0).normal(1000.0, 30.0, (FRAMES, SIDE, SIDE, 3))  # float64: read without a kernel
    job = make_job([Frame(open_source(frame)) for frame in frames], spec)
    # Weights that are all 1 have a kernel of their own.
    if stack.radial_weight or stack.drizzle or stack.frame_weight != "none":
        job.table.weight[:] = 0.5
    if stack.spares:  # with a tolerance, too
        job = replace(job, tolerance=np.zeros(job.shape, np.float32))
    stack_on_cpu(job, Resources())


def main(arguments: Sequence[str]) -> None:
    """Compile for the StackSpec that the parent process has written as JSON."""
    gc.disable()  # a compiler makes many objects and keeps most of them, and this process ends soon
    warm_up(StackSpec(**json.loads(arguments[0])))
