"""What rejection takes from stars when seeing changes, and what it leaves of trails and cosmic rays.

Frames of Moffat stars of 4,000 to 400,000 ADU on a grid of cells, exactly aligned, with photon noise, a trail in every
tenth frame and 15 hits of cosmic rays in each; the truth is the mean of the frames without them. Only the width of the
stars changes. Run ``python benchmarks/bench_seeing.py``; ``--frames 12 40`` and ``--seed 5`` for others. The figures
are in ``benchmarks/results/seeing.md``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.star_tolerance import with_star_tolerance
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.spec import StackSpec

CELLS, CELL = 10, 41  # of the grid, in each direction; pixels of a cell
SKY, NOISE, GAIN = 1000.0, 65.0, 0.25  # ADU, ADU, electrons an ADU
BETA = 3.0
EMPTY = 3.0  # ADU of star light, less than which is sky

Widths = Callable[[np.random.Generator, int], np.ndarray]
SEEING: dict[str, Widths] = {
    "steady, 2.9 to 3.1": lambda rng, n: rng.uniform(2.9, 3.1, n),
    "2.2 to 5.5, even": lambda rng, n: rng.permutation(np.linspace(2.2, 5.5, n)),
    "focus drift 2.6 to 9": lambda rng, n: np.linspace(2.6, 9.0, n) + rng.normal(0.0, 0.1, n),
    "a tenth 2.5, else 5": lambda rng, n: np.where(np.arange(n) % 10 == 1, 2.5, 5.0) * rng.normal(1.0, 0.03, n),
    "a tenth 5, else 2.5": lambda rng, n: np.where(np.arange(n) % 10 == 1, 5.0, 2.5) * rng.normal(1.0, 0.03, n),
}
METHODS: dict[str, dict[str, object]] = {
    "none": {"reject": "none"},
    "winsorized 4/3": {},
    "winsorized 5/5": {"kappa_low": 5.0, "kappa_high": 5.0},
    "sigma_clip 3/3": {"reject": "sigma_clip"},
    "gesd": {"reject": "gesd"},
    "linear_fit_clip": {"reject": "linear_fit_clip", "line_fit": "ols"},
    "mad_clip": {"reject": "mad_clip"},
}


def moffat(x: np.ndarray, y: np.ndarray, fwhm: float) -> np.ndarray:
    """Moffat profile of flux 1, per square pixel."""
    alpha = fwhm / (2.0 * math.sqrt(2.0 ** (1.0 / BETA) - 1.0))
    return np.asarray((BETA - 1.0) / (math.pi * alpha**2) * (1.0 + (x * x + y * y) / alpha**2) ** -BETA)


def star(place: np.ndarray, fwhm: float) -> np.ndarray:
    """A star of flux 1 in its cell, four points a pixel."""
    at = np.arange(CELL) - CELL // 2
    parts = [
        moffat(at[None] - place[0] + u, at[:, None] - place[1] + v, fwhm) for u in (-0.25, 0.25) for v in (-0.25, 0.25)
    ]
    return np.asarray(np.mean(parts, axis=0))


@dataclass
class Session:
    """Frames and their truth. ``trails``: distance of each pixel from each; ``hits (k, 2)``: pixels of cosmic rays."""

    frames: np.ndarray
    fwhm: np.ndarray
    flux: np.ndarray
    truth: np.ndarray
    trails: list[np.ndarray]
    hits: np.ndarray


def session(n: int, widths: Widths, seed: int) -> Session:
    """Simulate ``n`` frames."""
    rng = np.random.default_rng([seed, n])
    side = CELLS * CELL
    flux = np.repeat(10.0 ** np.linspace(3.6, 5.6, CELLS), CELLS)
    places, fwhm = rng.uniform(-0.5, 0.5, (flux.size, 2)), widths(rng, n)
    frames, truth = np.empty((n, side, side), np.float32), np.zeros((side, side))
    y, x = np.mgrid[:side, :side]
    trails, hits = [], []
    for i in range(n):
        stars = [light * star(place, fwhm[i]) for light, place in zip(flux, places, strict=True)]
        light = np.block([stars[k : k + CELLS] for k in range(0, len(stars), CELLS)])
        truth += light / n
        if i % 10 == 3:
            angle, (x0, y0) = rng.uniform(0.0, np.pi), rng.uniform(0.2, 0.8, 2) * side
            trails.append((x - x0) * np.sin(angle) - (y - y0) * np.cos(angle))
        frame = SKY + light + rng.normal(size=light.shape) * np.sqrt(NOISE**2 + light / GAIN)
        if i % 10 == 3:
            frame += rng.uniform(150.0, 1500.0) * np.exp(-0.5 * (trails[-1] / 1.3) ** 2)
        where = rng.integers(0, side, (15, 2))
        frame[where[:, 0], where[:, 1]] += rng.uniform(800.0, 20000.0, 15)
        hits.append(where)
        frames[i] = frame
    return Session(frames, fwhm, flux, truth, trails, np.concatenate(hits))


def job_of(made: Session, *, spare: bool, **options: object) -> Job:
    """A job of frames that lie on one grid."""
    spec = StackSpec(normalize="none", weight="none", spare_stars=spare, **options)  # type: ignore[arg-type]
    names = [str(k) for k in range(len(made.frames))]
    sources = [open_source({"data": frame, "name": name}) for frame, name in zip(made.frames, names, strict=True)]
    job = make_job([Frame(source) for source in sources], spec)
    return with_star_tolerance(job, dict(zip(names, made.fwhm.tolist(), strict=True)), Resources())


def figures(made: Session, job: Job) -> list[float]:
    """Stack and measure.

    Error of the flux within 8 pixels, percent, of stars around 1e4, 6e4 and 3e5 ADU; of the core (1.5 pixels), 6e4 and
    3e5; mean of the trails over the sky and over stars, and of the cosmic rays over the sky, over stars, and the
    largest there, in standard deviations of a pixel of the mean; noise of the sky; percent of samples rejected.
    """
    stacked = cpu.stack(job, Resources())
    rest = stacked.image.astype(np.float64) - SKY - made.truth
    sky = made.truth < EMPTY
    rest -= rest[sky].mean()
    at = np.arange(CELL) - CELL // 2
    distance = np.hypot(at[:, None], at[None])

    def cells(image: np.ndarray, radius: float) -> np.ndarray:
        parts = image.reshape(CELLS, CELL, CELLS, CELL).transpose(0, 2, 1, 3).reshape(-1, CELL, CELL)
        return np.asarray((parts * (distance <= radius)).sum(axis=(1, 2)))

    def error(radius: float, low: float, high: float) -> float:
        which = (made.flux >= low) & (made.flux < high)
        return float(100.0 * (cells(rest, radius)[which] / cells(made.truth, radius)[which]).mean())

    sigma = np.sqrt((NOISE**2 + made.truth / GAIN) / len(made.frames))
    deviation = rest / sigma
    over = (made.truth >= EMPTY) & (made.truth < 3000.0)
    y, x = made.hits.T
    on_star = made.truth[y, x] >= EMPTY
    rejected = stacked.rejected_low.sum() + stacked.rejected_high.sum()
    return [
        error(8.0, 8e3, 3e4), error(8.0, 3e4, 1e5), error(8.0, 1e5, 1e6), error(1.5, 3e4, 1e5), error(1.5, 1e5, 1e6),
        float(np.mean([deviation[(np.abs(d) < 1.5) & sky].mean() for d in made.trails])),
        float(np.nanmean([deviation[(np.abs(d) < 1.5) & over].mean() for d in made.trails])),
        float(deviation[y, x][~on_star].mean()), float(deviation[y, x][on_star].mean()),
        float(deviation[y, x][on_star].max()),
        float(rest[sky & (np.min(np.abs(made.trails), axis=0) > 6.0)].std()),
        float(100.0 * rejected / stacked.coverage.sum()),
    ]  # fmt: skip


HEAD = (
    "| seeing (FWHM, px) | n | method | stars | flux 1e4 | 6e4 | 3e5 | core 6e4 | 3e5 | trail sky | trail stars "
    "| rays sky | rays stars | largest | noise | rejected % |"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[12, 15, 40, 200], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23], metavar="S", help="sessions averaged")
    parser.add_argument("--seeing", nargs="+", default=list(SEEING), choices=list(SEEING))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    print(HEAD)
    print("|" + "---|" * (HEAD.count("|") - 1))
    for name in options.seeing:
        for n in options.frames:
            sessions = [session(n, SEEING[name], seed) for seed in options.seeds]
            for method in options.methods:
                for spare in (False, True):
                    if spare and method == "none":
                        continue
                    rows = [figures(made, job_of(made, spare=spare, **METHODS[method])) for made in sessions]
                    mean = np.nanmean(rows, axis=0)
                    mean[9] = np.max(rows, axis=0)[9]
                    told = [f"{v:+.2f}" for v in mean[:10]] + [f"{v:.2f}" for v in mean[10:]]
                    print(f"| {name} | {n} | {method} | {'spared' if spare else ''} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
