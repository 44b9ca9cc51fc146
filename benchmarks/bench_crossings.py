"""What sparing the stars leaves where trails cross, one path repeats, rays fall in clusters and hot pixels drift.

Frames of ``bench_seeing.py``, half of their cells without a star, with nothing wrong but what the row of CASES adds to
frames by the order of their widths. Run ``python benchmarks/bench_crossings.py [--seeds 31 32]``; the figures are in
``benchmarks/results/seeing.md``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_seeing import CELL, CELLS, EMPTY, GAIN, NOISE, SEEING, SKY, Session, job_of, star

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.resources import Resources

SIDE = CELLS * CELL
SESSIONS = (("2.2 to 5.5, even", 15), ("focus drift 2.6 to 9", 12), ("focus drift 2.6 to 9", 24))
PATHS = range(9)  # of random directions
CASES: dict[str, dict[int, tuple[int, ...]]] = {  # paths in frames by the order of their widths; 100 is the middle one
    "2 of the 3 sharpest cross": {0: (0, 1), 2: (2, 3)},
    "2 of the 3 widest cross": {-1: (0, 1), -3: (2, 3)},
    "all 3 sharpest, 3 trails each": {0: (0, 1, 2), 1: (3, 4, 5), 2: (6, 7, 8)},
    "trains of 5 cross, sharpest": {0: (10, 11, 12, 13, 14), 1: (20, 21, 22, 23, 24)},
    "two planes cross, widest": {-1: (110, 112), -2: (120, 122)},  # 6000 ADU
    "one path in the 3 sharpest": {0: (0,), 1: (0,), 2: (0,)},
    "one path in the 3 widest": {-1: (0,), -2: (0,), -3: (0,)},
    "one path in 3 middling": {99: (0,), 100: (0,), 101: (0,)},
    "one path in 5 middling": {98: (0,), 99: (0,), 100: (0,), 101: (0,), 102: (0,)},
}
RAYS, HOT = "clusters of rays, 2 sharpest", "hot pixels drift 0.34 px a frame"
MID = 100  # the frame of middling width
BRIGHT = 100  # paths from here on are of 6000 ADU


def path(number: int, lines: np.ndarray) -> np.ndarray:
    """A trail: one of the random lines, or one of five parallel ones, 9 pixels apart."""
    y, x = np.mgrid[:SIDE, :SIDE]
    light = 6000.0 if number >= BRIGHT else 900.0
    number %= BRIGHT
    x0, y0, a = lines[number] if number < 10 else lines[0]
    if number >= 10:
        o = 9.0 * (number % 10)
        x0, y0, a = x0 + o * np.sin(a), y0 - o * np.cos(a), a + (1.2 if number >= 20 else 0.0)
    return np.asarray(light * np.exp(-0.5 * (((x - x0) * np.sin(a) - (y - y0) * np.cos(a)) / 1.3) ** 2))


def clean_session(n: int, seeing: str, seed: int) -> Session:
    """Frames with nothing wrong; half of the cells are sky."""
    rng = np.random.default_rng([seed, n])
    fwhm, flux = SEEING[seeing](rng, n), np.repeat(10.0 ** np.linspace(3.6, 5.6, CELLS), CELLS)
    flux = flux * (rng.uniform(size=flux.size) < 0.5)
    places = rng.uniform(-0.5, 0.5, (flux.size, 2))
    frames, truth = np.empty((n, SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE))
    for i in range(n):
        stars = [light * star(place, fwhm[i]) for light, place in zip(flux, places, strict=True)]
        light = np.block([stars[k : k + CELLS] for k in range(0, len(stars), CELLS)])
        truth += light / n
        frames[i] = SKY + light + rng.normal(size=light.shape) * np.sqrt(NOISE**2 + light / GAIN)
    return Session(frames, fwhm, flux, truth, [], np.empty((0, 2), int))


def marred(made: Session, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames with what a case adds to them, and where that is in two frames or more."""
    rng = np.random.default_rng([seed, len(made.frames), 5])
    frames, order, hit = made.frames.copy(), np.argsort(made.fwhm), np.zeros((SIDE, SIDE), int)
    lines = np.column_stack([rng.uniform(0.3, 0.7, (len(PATHS), 2)) * SIDE, rng.uniform(0, np.pi, len(PATHS))])
    n = len(frames)
    for rank, paths in CASES.get(name, {}).items():
        added = np.sum([path(k, lines) for k in paths], axis=0)
        frames[order[rank - MID + n // 2 if rank > MID // 2 else rank]] += added
        hit += added > NOISE
    if name == RAYS:
        for y, x in rng.integers(10, SIDE - 14, (60, 2)):
            hit[y : y + 3, x : x + 3] = 2
            for k in order[:2]:
                frames[k, y : y + 3, x : x + 3] += rng.uniform(800.0, 8000.0)
    if name == HOT:
        for (y, x), heat in zip(rng.integers(10, SIDE - 50, (80, 2)), rng.uniform(500.0, 8000.0, 80), strict=True):
            for i, moved in enumerate(0.34 * np.arange(n)):
                k = x + int(moved)
                frames[i, y, k : k + 2] += heat * np.array([1.0 - moved % 1.0, moved % 1.0])
                hit[y, k : k + 2] = 2
    return frames, hit >= 2


def figures(made: Session, marks: np.ndarray, *, spare: bool) -> list[float]:
    """Mean deviation of the marked sky and of marked stars, deviations of a pixel of the mean; sky beyond 6, 1e-4."""
    stacked = cpu.stack(job_of(made, spare=spare), Resources()).image
    deviation = (stacked - SKY - made.truth) / np.sqrt((NOISE**2 + made.truth / GAIN) / len(made.frames))
    sky, on_star = made.truth < EMPTY, marks & (made.truth > 100.0)
    of_stars = float(deviation[on_star].mean()) if on_star.any() else float("nan")
    return [float(deviation[marks & sky].mean()), 1e4 * float(np.mean(np.abs(deviation[sky]) > 6.0)), of_stars]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32], metavar="S", help="sessions averaged")
    seeds = parser.parse_args().seeds
    print(
        "| seeing (FWHM, px) | n | what | sky spared | not spared | beyond 6 spared, 1e-4 | not | stars spared | not |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for seeing, n in SESSIONS:
        clean = {seed: clean_session(n, seeing, seed) for seed in seeds}
        for name in (*CASES, RAYS, HOT):
            rows = []
            for seed, made in clean.items():
                frames, marks = marred(made, name, seed)
                own = replace(made, frames=frames)
                rows.append(np.stack([figures(own, marks, spare=spare) for spare in (True, False)], axis=1).ravel())
            mean = [np.mean([v for v in column if v == v] or [np.nan]) for column in zip(*rows, strict=True)]
            told = " | ".join("-" if np.isnan(v) else f"{v:.2f}" for v in mean)
            print(f"| {seeing} | {n} | {name} | {told} |", flush=True)


if __name__ == "__main__":
    main()
