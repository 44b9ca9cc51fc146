"""What the upper limit of rejection costs in noise, and what it leaves of a trail, by frames and weights.

White noise of one sigma in every frame, and in one frame of the largest weight a rising amount of light, as across a
trail. Run ``python benchmarks/bench_limits.py [--frames 12 16]``; the figures are in ``benchmarks/results/limits.md``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.spec import StackSpec

SIGMA, SKY = 65.0, 1000.0  # ADU
LIGHT = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 6.0])  # of the trail, sigmas of a frame
RATIOS = (1.0, 2.0, 3.5)  # of the largest weight to the smallest
LIMITS = (3.0, 2.75, 2.5, 2.25, 2.0)
ROWS = 24  # of each light


def weights_of(n: int, ratio: float) -> np.ndarray:
    """Weights from the largest to the smallest, evenly, their mean 1."""
    return np.linspace(2.0 * ratio / (1.0 + ratio), 2.0 / (1.0 + ratio), n)[:, None]


def figures(frames: np.ndarray, weights: np.ndarray, limit: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and deviation of the stack at each light, ADU, and percent of samples rejected high where there is none."""
    rejection = {"reject": "none"} if limit is None else {"kappa_high": limit}
    spec = StackSpec(normalize="none", weight="none", **rejection)  # type: ignore[arg-type]
    sources = [open_source({"data": a, "name": f"frame {k}"}) for k, a in enumerate(frames)]
    job = make_job([Frame(source) for source in sources], spec)
    stacked = cpu.stack(replace(job, table=replace(job.table, weight=weights)), Resources())
    parts = stacked.image.astype(float).reshape(len(LIGHT), -1)
    lost = stacked.rejected_high.reshape(len(LIGHT), -1)[0].mean() / len(frames)
    return parts.mean(axis=1), parts.std(axis=1), 100.0 * float(lost)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[12, 16, 24, 40, 200], metavar="N")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    print("| n | weights | " + " | ".join(f"{limit:g}" for limit in LIMITS) + " |")
    print("|" + "---|" * (2 + len(LIMITS)))
    for n in options.frames:
        rng = np.random.default_rng([options.seed, n])
        frames = rng.standard_normal((n, len(LIGHT) * ROWS, 400 if n < 100 else 200), np.float32) * SIGMA + SKY
        frames[0] += np.float32(SIGMA) * np.repeat(LIGHT, ROWS)[:, None].astype(np.float32)
        for ratio in RATIOS:
            weights, cells = weights_of(n, ratio), []
            _, plain, _ = figures(frames, weights, None)
            for limit in LIMITS:
                level, noise, lost = figures(frames, weights, limit)
                left = (level - level[0]) / (SIGMA / np.sqrt(n))
                k = int(left.argmax())
                cells.append(f"{100 * (noise[0] / plain[0] - 1):+.1f} %, {left[k]:.2f} at {LIGHT[k]:g}, {lost:.2f} %")
            print(f"| {n} | {ratio:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
