"""How fast frames are measured: frames a second for one thread and more, and what the work of one frame consists of.

Measuring is what a stack does with each frame before it is registered: the header, the pixels, levels, sky, stars and
their fluxes, filler and clipped samples. Its kernels leave the interpreter to other threads; what is left is done by
one thread at a time, and decides how far more cores help.

    python benchmarks/bench_measure.py --folder /dev/shm                 # raw subs of 1080 x 1920
    python benchmarks/bench_measure.py --folder /dev/shm --threads 1 2 4 8 16 --frames 480
    python benchmarks/bench_measure.py --kind rgb

"Held" is the CPU time of a frame outside kernels and reads: an upper bound of what other threads may have to wait for.
Frames are simulated once, a few, and linked under as many names as wanted.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.detection import find_kernels, list_kernels, look_kernels, mesh_kernels
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry import level_kernels
from zemosaic_phase3.pipeline.group import open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.scan import scan_frame
from zemosaic_phase3.resample import decode
from zemosaic_phase3.runtime.workspace import Workspace
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec

KINDS = {"raw": "GRBG", "gray": "none", "rgb": "rgb"}
STEPS: list[tuple[str, Any, str]] = [
    ("read", os, "preadv"),
    ("decode", decode, "open_words"),
    ("decode", decode, "open_floats"),
    ("look", look_kernels, "look"),
    ("levels", level_kernels, "frame_levels"),
    ("sky", mesh_kernels, "measure_mesh"),
    ("cells", find_kernels, "bin_frame"),
    ("filter", find_kernels, "significance"),
    ("filter", find_kernels, "pixel_noise"),
    ("maxima", find_kernels, "find_maxima"),
    ("stars", list_kernels, "measure_detections"),
    ("fluxes", list_kernels, "list_stars"),
]
"""Steps that leave the interpreter to other threads: name, and the function that does it."""


@contextmanager
def timed_steps(spent: dict[str, float]) -> Iterator[None]:
    """Add the CPU time of every call of a step to its name."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                spent[name] = spent.get(name, 0.0) + time.thread_time() - start

        return call

    with ExitStack() as patches:
        for name, module, function in STEPS:
            patches.enter_context(patch.object(module, function, timed(name, getattr(module, function))))
        yield


def shares(files: list[Path], rounds: int) -> None:
    """Print the CPU time of a frame by steps, one thread: the medians of several rounds."""
    spec, space = RegisterSpec(), Workspace()
    scan_frame(open_source(files[0]), spec, find_stars=True, workspace=space)
    tables = []
    for path in [*files] * rounds:
        spent: dict[str, float] = {}
        start = time.thread_time()
        source = open_source(path)
        spent["open"] = time.thread_time() - start
        with timed_steps(spent):
            scan_frame(source, spec, find_stars=True, workspace=space)
        spent["all"] = time.thread_time() - start
        tables.append(spent)
    names = [name for name in dict.fromkeys(["open", *(step[0] for step in STEPS)]) if name in tables[0]]
    middle = {name: 1e3 * statistics.median(t.get(name, 0.0) for t in tables) for name in [*names, "all"]}
    held = 1e3 * statistics.median(t["all"] - sum(t.get(n, 0.0) for n in names if n != "open") for t in tables)
    print("\n| step | CPU ms a frame | share |\n|---|---|---|")
    for name in names:
        print(f"| {name} | {middle[name]:.2f} | {100 * middle[name] / middle['all']:.0f} % |")
    print(f"| held (opening and all outside kernels and reads) | {held:.2f} | {100 * held / middle['all']:.0f} % |")
    print(f"| all | {middle['all']:.2f} | |")


def rates(files: list[Path], threads: list[int], rounds: int) -> None:
    """Print frames a second for several numbers of threads, and what each thread yields of what one alone does."""
    spec = RegisterSpec()
    print("\n| threads | ms a frame | frames/s | efficiency | CPU ms a frame |\n|---|---|---|---|---|")
    first = 0.0
    for n in threads:
        best, cpu = float("inf"), 0.0
        for _ in range(rounds):
            group = open_group(files)
            start, before = time.perf_counter(), time.process_time()
            scan_group(group, spec, find_stars=True, workers=n)
            took = time.perf_counter() - start
            if took < best:
                best, cpu = took, time.process_time() - before
            group.require_some("measured")
        rate = len(files) / best
        first = first or rate / n
        print(
            f"| {n} | {1e3 / rate:.2f} | {rate:.0f} | {100 * rate / (first * n):.0f} % | {1e3 * cpu / len(files):.1f} |"
        )
        sys.stdout.flush()


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description="measures how fast frames are measured")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=96, help="frames that are measured in each round")
    parser.add_argument("--kind", choices=KINDS, default="raw")
    parser.add_argument("--size", default="1080x1920", help="rows x columns")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--folder", type=Path, default=None, help="where frames are written, and removed")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    folder = Path(tempfile.mkdtemp(prefix="bench_measure_", dir=args.folder))
    try:
        few = min(8, args.frames)
        spec = SimulationSpec(n_frames=few, height=height, width=width, bayer=KINDS[args.kind])
        simulate(spec, folder, overwrite=True)
        some = sorted(folder.glob("*.fits"))
        files = list(some)
        for k in range(few, args.frames):
            files.append(folder / f"link_{k:05d}.fits")
            os.link(some[k % few], files[-1])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"{args.kind} {args.size}, {args.frames} frames, {cores} cores, {platform.machine()}, Python "
              f"{platform.python_version()}, {threading.active_count()} thread before")  # fmt: skip
        shares(some, args.rounds)
        rates(files, args.threads, args.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
