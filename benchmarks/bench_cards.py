"""One tile on one card and on two or more of one host: seconds, how many times faster, and whether the bits are equal.

``python benchmarks/bench_cards.py`` on a machine with several cards. Frames are in memory; each case is stacked in turn
on one card and on all, and the medians are compared. Results: ``benchmarks/results/cards.md``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.engine import gpu
from zemosaic_phase3.engine.job import Job, StackResult, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.runtime.limits import usable_cpus
from zemosaic_phase3.spec import StackSpec

MAPS = ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts")
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "mean, uint16, in place": (200, "uint16", {"reject": "none"}),
    "sigma_clip, uint16, in place": (200, "uint16", {"reject": "sigma_clip"}),
    "winsorized, mosaics, turned": (400, "raw", {"reject": "winsorized_sigma_clip"}),
    "winsorized, mosaics, turned, many": (1000, "raw", {"reject": "winsorized_sigma_clip"}),
    "linear fit (lad), uint16, in place": (200, "uint16", {"reject": "linear_fit_clip", "line_fit": "lad"}),
    "gesd, uint16, in place": (400, "uint16", {"reject": "gesd"}),
}


def job_of(n: int, kind: str, options: dict[str, Any], height: int, width: int) -> Job:
    """Frames of noise with outliers; a few arrays serve for all, since what is in them costs no time."""
    rng = np.random.default_rng(n)
    some = [rng.normal(1000.0, 30.0, (height, width)).clip(0, 65535).astype(np.uint16) for _ in range(16)]
    for array in some:
        array[rng.random(array.shape) < 0.002] = 20_000
    frames = []
    for k in range(n):
        source = open_source(some[k % 16], bayer="GRBG" if kind == "raw" else "none")
        source.name = str(k)
        angle, matrix = 0.001 * (k % 41), np.eye(3)
        if kind == "raw":
            c, s = np.cos(angle), np.sin(angle)
            matrix = np.array([[c, -s, 0.37 * (k % 11)], [s, c, 0.21 * (k % 13)], [0.0, 0.0, 1.0]])
        frames.append(Frame(source, matrix))
    return make_job(frames, StackSpec(normalize="none", weight="none", **options))


def seconds(job: Job, cards: tuple[int, ...], workers: int) -> tuple[float, StackResult]:
    began = time.perf_counter()
    result = gpu.stack(job, Resources(workers=workers, cards=cards))
    return time.perf_counter() - began, result


def main() -> int:
    """Measure all cases; the exit status is 1 where bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    count, workers = cuda.card_count(), usable_cpus()
    print(f"{count} cards ({cuda.probe().name}), {workers} cores, {args.width}x{args.height}, medians of {args.runs}\n")
    print("| case | frames | one card, s | all, s | times faster | bits |\n|---|---|---|---|---|---|---|")
    wrong = 0
    for name, (n, kind, options) in CASES.items():
        job = job_of(n, kind, options, args.height, args.width)
        everything = tuple(range(count))
        expected = gpu.stack(job, Resources(workers=workers, cards=(0,)))
        gpu.stack(job, Resources(workers=workers, cards=everything))  # buffers, kernels
        one, all_cards = [], []
        for _ in range(args.runs):
            one.append(seconds(job, (), workers)[0])
            took, found = seconds(job, everything, workers)
            all_cards.append(took)
        equal = all(np.array_equal(getattr(found, m), getattr(expected, m), equal_nan=True) for m in MAPS)
        wrong += not equal
        before, after = statistics.median(one), statistics.median(all_cards)
        print(
            f"| {name} | {n} | {before:.3f} | {after:.3f} | {before / after:.2f} | {'equal' if equal else 'DIFFER'} |",
            flush=True,
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
