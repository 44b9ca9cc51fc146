"""Count false registrations of wrong fields and false failures of good subs, on simulated raw frames.

Run ``python benchmarks/bench_robustness.py [--sessions N] [--frames M]``: N seeded sessions of M Bayer subs each, of
varied star density, seeing, motion, transparency and sky. Every sub of a session should register on its own reference
(a frame off by more than 1 px rms counts as false); every session's reference is also offered the frames of the next
session, another field, and should take none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth
from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
KINDS = {
    "dither of 12 px, 2 degrees": {},
    "poor field, bad seeing": {"n_stars": 60, "flux_min": 3000.0, "fwhm_px": 4.5},
    "rich field": {"n_stars": 3000, "flux_min": 500.0},
    "clouds": {"gain_range": (0.25, 1.0), "sky_drift": 0.5, "gradient": 200.0},
    "half a turn, large dither": {"rotation_deg": 180.0, "dither_px": 80.0},
}


def session(kind: str, seed: int, frames: int, folder: Path) -> tuple[Group, SimulationTruth, dict[int, StarList]]:
    """Simulate, measure and register one session without WCS; star lists are kept, for the wrong fields."""
    options = {"n_frames": frames, "height": 540, "width": 960, "with_wcs": False, **KINDS[kind]}
    truth = simulate(SimulationSpec(seed=seed, **options), folder)
    group = open_group([folder / name for name in truth.names])
    scan_group(group, SPEC, find_stars=True, workers=2)
    stars = {i: group.scan(i).stars for i in group.usable}
    register_group(group, SPEC, workers=2)
    return group, truth, stars


def judge(group: Group, truth: SimulationTruth) -> tuple[int, int, list[float], list[str]]:
    """Failed frames, wrong ones, rms errors (px) of the right ones, and reasons."""
    failed, wrong, errors, reasons = 0, 0, [], []
    here = map_points(truth.transforms[group.reference], truth.star_xy)
    size = np.array([truth.spec.width, truth.spec.height])
    for k, row in enumerate(group.rows):
        if not row.used or row.registration is None:
            failed += 1
            reasons.append(f"{row.name}: {row.reason}")
            continue
        true = map_points(truth.transforms[k], truth.star_xy)
        seen = np.all((true > 0) & (true < size), axis=1)
        off = transform_points(row.registration.transform, here[seen]) - true[seen]
        error = float(np.sqrt(np.mean(np.sum(off**2, axis=1))))
        wrong += error > 1.0
        if k != group.reference:
            errors.append(error)
    return failed, wrong, errors, reasons


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10, help="sessions of each kind")
    parser.add_argument("--frames", type=int, default=20, help="frames of each session")
    args = parser.parse_args()
    out = sys.stdout.write
    out(
        "| field | subs | not registered | wrong by more than 1 px | rms error median / worst, px |\n"
        "|---|---|---|---|---|\n"
    )
    total, bad, offered, taken, start = 0, 0, 0, 0, time.process_time()
    for number, kind in enumerate(KINDS):
        failed, wrong, errors = 0, 0, []
        before: tuple[StarList, tuple[int, ...]] | None = None
        for k in range(args.sessions):
            with tempfile.TemporaryDirectory() as folder:
                group, truth, stars = session(kind, 1000 * number + k, args.frames, Path(folder) / "subs")
                f, w, e, reasons = judge(group, truth)
            failed, wrong, errors = failed + f, wrong + w, errors + e
            for reason in reasons:
                sys.stderr.write(f"{kind}, seed {1000 * number + k}: {reason}\n")
            if before is not None:
                for found in stars.values():
                    offered += 1
                    taken += register_stars(before[0], found, before[1], SPEC).ok
            before = (stars[group.reference], group.source(group.reference).shape)
        total, bad = total + args.sessions * args.frames, bad + failed + wrong
        out(
            f"| {kind} | {args.sessions * args.frames} | {failed} | {wrong} | "
            f"{np.median(errors):.3f} / {np.max(errors):.3f} |\n"
        )
        sys.stdout.flush()
    out(f"\nfalse failures: {bad} of {total} good subs ({100 * bad / total:.2f} %)\n")
    out(f"false registrations: {taken} of {offered} frames offered to the reference of another field\n")
    sys.stderr.write(f"{time.process_time() - start:.0f} s CPU\n")


if __name__ == "__main__":
    main()
