"""Measure how many frames a second are registered by 1 .. n threads, each on one reference, from star lists.

Run ``python benchmarks/bench_register_cores.py [--frames N] [--threads 1,2,4]`` on a machine with many cores. Frames
are dithered and turned by a few degrees, with and without a WCS in each header; lists are seeded. CPU is process time a
frame; efficiency is frames a second over threads times those of one.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.wcs import WCS

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.registration.wcs import register_stars_seeded, register_wcs
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.spec import RegisterSpec

SHAPE = (1080, 1920)
SPEC = RegisterSpec()
SCALE = 2.4 / 3600.0  # degrees a pixel


def lists(frames: int, stars: int) -> tuple[list[StarList], list[WCS]]:
    """Return star lists of dithered, turned frames, the reference first, and their WCS, off by 1 px."""
    rng = np.random.default_rng(1)
    sky = (rng.random((4 * stars, 2)) * 2.0 - 0.5) * [SHAPE[1], SHAPE[0]]
    flux = 1e3 / (1.0 - rng.random(len(sky)))
    middle = np.array([SHAPE[1] / 2, SHAPE[0] / 2])
    found, headers = [], []
    for k in range(frames + 1):
        angle = np.radians(0.0 if k == 0 else rng.uniform(-3, 3))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.eye(3)
        matrix[:2, :2] = turn
        matrix[:2, 2] = middle - turn @ middle + (0.0 if k == 0 else rng.uniform(-15, 15, 2))
        error = np.hypot(0.015, 0.2 / np.sqrt(flux / flux.min()))
        xy = transform_points(matrix, sky) + error[:, None] * rng.standard_normal(sky.shape)
        seen = np.flatnonzero(np.all((xy > 5) & (xy < [SHAPE[1] - 6, SHAPE[0] - 6]), axis=1))
        order = seen[np.argsort(-flux[seen] * np.exp(0.05 * rng.standard_normal(len(seen))))][:400]
        ones = np.ones(len(order))
        found.append(StarList(*xy[order].T, flux[order], 3.0 * ones, 0.1 * ones, error[order]))
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], [83.8, -5.4], "ICRS"
        wcs.wcs.crpix = transform_points(matrix, middle[None])[0] + 1.0 + rng.normal(0.0, 1.0, 2)
        wcs.wcs.cd = SCALE * np.diag([-1.0, 1.0]) @ turn.T
        wcs.wcs.set()
        headers.append(wcs)
    return found, headers


def measure(register: Callable[[int], bool], frames: int, threads: int) -> tuple[float, float, int]:
    """Return frames a second, CPU milliseconds a frame, and how many failed; the best of three runs."""
    best, cpu, failed = 0.0, np.inf, 0
    for _ in range(3):
        wall, spent = time.perf_counter(), time.process_time()
        failed = frames - sum(parallel_map(register, range(1, frames + 1), threads))
        wall, spent = time.perf_counter() - wall, time.process_time() - spent
        best, cpu = max(best, frames / wall), min(cpu, 1e3 * spent / frames)
    return best, cpu, failed


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--stars", type=int, default=1000, help="on the area of a frame; the 400 brightest are kept")
    parser.add_argument("--threads", default="", help="such as 1,2,4; all powers of two up to the cores if not given")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [int(n) for n in args.threads.split(",") if n] or [
        2**k for k in range(cores.bit_length()) if 2**k <= cores
    ]
    found, headers = lists(args.frames, args.stars)

    def by_stars(k: int) -> bool:
        return register_stars(found[0], found[k], SHAPE, SPEC).ok

    def by_wcs(k: int) -> bool:
        guess = register_wcs(headers[0], headers[k], SHAPE, SPEC)
        return guess.ok and register_stars_seeded(found[0], found[k], SHAPE, SPEC, guess).ok

    out = sys.stdout.write
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "astropy"))
    out(
        f"{cores} CPUs ({platform.machine()}), Python {platform.python_version()}, {packages}; {args.frames} frames of "
    )
    out(
        f"{len(found[1])} stars\n\n| first guess | threads | frames a second | efficiency | CPU ms a frame | failed |\n"
    )
    out("|---|---|---|---|---|---|\n")
    for name, register in (("none", by_stars), ("WCS", by_wcs)):
        register(1)  # loads the kernels
        single = 0.0
        for threads in counts:
            rate, cpu, failed = measure(register, args.frames, threads)
            single = single or rate / threads
            out(
                f"| {name} | {threads} | {rate:.0f} | {100 * rate / (threads * single):.0f} % "
                f"| {cpu:.2f} | {failed} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
