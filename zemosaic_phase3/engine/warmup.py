"""Kernels compiled by a second process while a first run measures, registers and opens its frames.

The one compiles what opens frames, measures levels and sky and finds stars. The other begins with what comes next, how
stars are measured and frames registered and resampled, and goes on to what rejects and combines. On a machine with two
cores that is nearly half of the waiting, and the memory the compiler takes is not the stack's.
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

from zemosaic_phase3.engine.cpu import fill_slab
from zemosaic_phase3.engine.cpu import stack as stack_on_cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab import slab_for
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime.limits import usable_cpus
from zemosaic_phase3.spec import RegisterSpec, StackSpec

STARS_SIDE: Final = 128  # pixels of a frame whose stars are measured
SIDE: Final = 16  # pixels of the frames that are stacked for the sake of compiling
FRAMES: Final = 12  # the fewest that every rejection judges
ENDS_WITH_PARENT: Final = (
    "import os, sys, threading; threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start(); "
)
"""How a program begins that must not outlive its parent, not even where that was killed: its standard input is a pipe
of the parent's, which the system closes. The same on all systems."""


@contextlib.contextmanager
def kernels_compiled_beside(stack: StackSpec, *, registers: bool = False) -> Iterator[None]:
    """Have another process compile what the stack will call, if nothing is in the cache and a core is free for it.

    Parameters
    ----------
    stack : StackSpec
        What will be done in the block.
    registers : bool
        Before that the frames are registered by their stars.
    """
    from zemosaic_phase3.combine.average import mean_strips
    from zemosaic_phase3.rejection.judge import compile_judge
    from zemosaic_phase3.runtime.jit import PACKAGE, cache_folder, compile_beside, is_cold

    cache = cache_folder(mean_strips)
    if cache is None or usable_cpus() < 2 or getattr(sys, "frozen", False) or not is_cold(cache):
        yield
        return
    # Not by `-m`, which would look for every module in the current folder first, which is the user's; nor by its path,
    # which would look in this folder first. `-P` keeps the current folder out from the first import on.
    program = f"sys.path.insert(0, {str(PACKAGE.parent)!r}); from {__name__} import main; main(sys.argv[1:])"
    with compile_beside(
        [sys.executable, "-P", "-c", ENDS_WITH_PARENT + program, json.dumps(asdict(stack)), str(int(registers))]
    ):
        compile_judge(stack.rejection)  # the other process has the longer way, and needs it later than this takes
        yield


def warm_up_stars() -> None:
    """Measure and register a few stars, so that the kernels are compiled that come after those that find them."""
    from zemosaic_phase3.detection.star_finder import StarList, measured_stars
    from zemosaic_phase3.registration.match import register_stars

    y, x = np.mgrid[:STARS_SIDE, :STARS_SIDE]
    places = np.zeros((6, 9))  # of the cells of 2x2 pixels
    places[:2] = np.array([(u, v) for u in (12.0, 32.0, 52.0) for v in (12.0, 32.0, 52.0)]).T
    places[5] = 100.0
    pixels = np.full((STARS_SIDE, STARS_SIDE, 1), 100.0, np.float32)
    for u, v in 2.0 * places[:2].T + 0.5:
        pixels[:, :, 0] += 1000.0 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 4.5)
    measured_stars(pixels, "GRBG", (np.full((1, 1), 100.0), np.full((1, 1), 5.0)), places, 1.0)
    at, ones = np.random.default_rng(0).random((2, 40)) * STARS_SIDE, np.ones(40)
    stars = StarList(at[0], at[1], np.arange(40.0, 0.0, -1.0), ones, ones, 0.05 * ones)
    register_stars(stars, stars, (STARS_SIDE, STARS_SIDE), RegisterSpec(), np.eye(3))


def warm_up_resampling(stack: StackSpec) -> None:
    """Bring a small mosaic onto a grid between its pixels, so that the kernels for that are compiled."""
    spec = replace(stack, normalize="none", weight="none", radial_weight=False, drizzle=0.0)
    mosaic = np.full((SIDE, SIDE), 1000, np.uint16)
    shift = np.array([[1.0, 0.0, 0.3], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    job = make_job([Frame(open_source({"data": mosaic, "name": "small"}, bayer="GRBG"), shift)], spec)
    fill_slab(job, slab_for(job, SIDE), slice(0, SIDE), 1)


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
    """Compile for the StackSpec that the parent process has written as JSON, and "1" where frames are registered."""
    gc.disable()  # a compiler makes many objects and keeps most of them, and this process ends soon
    stack = StackSpec(**json.loads(arguments[0]))
    if arguments[1:] == ["1"]:
        warm_up_stars()
        warm_up_resampling(stack)
    warm_up(stack)
