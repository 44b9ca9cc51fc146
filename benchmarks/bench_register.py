"""Measure registration: detection time, and our star matching against astroalign on the same star lists.

Run ``python benchmarks/bench_register.py [--fields N]``; needs astroalign (not a dependency of the library). Every
field is drawn from a seeded generator, so that a run repeats. Times are medians of process CPU time, one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import astroalign
import numpy as np

from zemosaic_phase3.detection.star_finder import StarList, detect_stars
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.spec import RegisterSpec

SHAPE = (1080, 1920)
PSF_SIGMA = 3.0 / 2.3548  # px, FWHM 3
SKY, NOISE = 1000.0, 30.0  # ADU


@dataclass(frozen=True)
class Scenario:
    """One kind of field: stars per frame area, motion, and what differs between the frames."""

    name: str
    stars: int = 1000
    rotation: tuple[float, float] = (-180.0, 180.0)  # degrees
    shift: tuple[float, float] = (0.0, 60.0)  # px, length
    scale: float = 0.0  # largest abs(scale - 1)
    missing: float = 0.0  # share of the frame's stars not detected
    hot_pixels: int = 0  # detections at identical pixels in both frames
    spurious: int = 0  # detections in the frame alone (trails, cosmics)
    max_stars: int = 400
    related: bool = True


SCENARIOS = (
    Scenario("dither, field rotation", rotation=(-5, 5)),
    Scenario("any rotation, scale 2 %", scale=0.02),
    Scenario("meridian flip", rotation=(180, 180)),
    Scenario("half-frame shift", rotation=(-5, 5), shift=(900, 960)),
    Scenario("12-star field", stars=60, max_stars=12, rotation=(-5, 5), shift=(0, 30)),
    Scenario("5,000 stars, all kept", stars=5000, max_stars=5000),
    Scenario("40 % missing", missing=0.4),
    Scenario("half-frame shift, 40 % missing", rotation=(-5, 5), shift=(900, 960), missing=0.4),
    Scenario("60 hot pixels of 120", stars=60, rotation=(-5, 5), shift=(5, 60), hot_pixels=60),
    Scenario("100 trail pieces", stars=100, spurious=100),
    Scenario("unrelated fields", related=False),
    Scenario("unrelated, 12 stars", stars=60, max_stars=12, related=False),
    Scenario("unrelated, 5,000 stars", stars=5000, max_stars=5000, related=False),
)


def _catalogue(rng: np.random.Generator, xy: np.ndarray, flux: np.ndarray, limit: int) -> StarList:
    """Star list as detection would give it: noise of positions and fluxes by brightness, brightest first."""
    error = np.hypot(0.015, 0.8 * NOISE / (flux / (2 * np.pi * PSF_SIGMA**2)))
    xy = xy + error[:, None] * rng.standard_normal(xy.shape)
    height, width = SHAPE
    seen = (xy[:, 0] > 6) & (xy[:, 1] > 6) & (xy[:, 0] < width - 7) & (xy[:, 1] < height - 7)
    measured = flux * (1.0 + 0.05 * rng.standard_normal(len(flux)))
    index = np.flatnonzero(seen)
    index = index[np.argsort(-measured[index])][:limit]
    ones = np.ones(len(index))
    return StarList(xy[index, 0], xy[index, 1], measured[index], 3.0 * ones, 0.1 * ones, error[index])


def _flux(rng: np.random.Generator, n: int) -> np.ndarray:
    """Fluxes of peaks 100..50,000 ADU, cumulative counts rising by 10^0.4 per magnitude."""
    return 2 * np.pi * PSF_SIGMA**2 * np.minimum(100.0 * (1.0 - rng.random(n)) ** -1.0, 50_000.0)


def make_pair(scenario: Scenario, seed: int) -> tuple[StarList, StarList, np.ndarray]:
    """Reference list, frame list and true transform (reference -> frame)."""
    rng = np.random.default_rng((seed, *scenario.name.encode()))
    height, width = SHAPE
    reach = np.array([4.0 * width, 4.0 * height])  # sky beyond the reference, so that the frame is full everywhere
    count = round(scenario.stars * 16)
    angle = np.radians(rng.uniform(*scenario.rotation))
    scale = 1.0 + scenario.scale * rng.uniform(-1, 1)
    direction = rng.choice([0.0, np.pi]) + rng.uniform(-0.2, 0.2)
    shift = rng.uniform(*scenario.shift) * np.array([np.cos(direction), np.sin(direction)])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth = np.eye(3)
    truth[:2, :2], truth[:2, 2] = linear, centre + shift - linear @ centre
    sky, flux = (rng.random((count, 2)) - 0.5) * reach + centre, _flux(rng, count)
    other = sky if scenario.related else (rng.random((count, 2)) - 0.5) * reach + centre
    seen = rng.random(count) >= scenario.missing
    hot = rng.random((scenario.hot_pixels, 2)) * [width, height]
    hot_flux = _flux(rng, scenario.hot_pixels)
    noise = rng.random((scenario.spurious, 2)) * [width, height]
    reference = _catalogue(rng, np.vstack((sky, hot)), np.append(flux, hot_flux), scenario.max_stars)
    frame = _catalogue(
        rng,
        np.vstack((transform_points(truth, other)[seen], hot, noise)),
        np.concatenate((flux[seen], hot_flux, _flux(rng, scenario.spurious))),
        scenario.max_stars,
    )
    return reference, frame, truth


def _error(matrix: np.ndarray, truth: np.ndarray, reference: StarList) -> float:
    """Rms distance (px) of the transform from the truth at the reference stars that the frame sees."""
    target = transform_points(truth, reference.xy)
    height, width = SHAPE
    seen = np.all((target > 0) & (target < [width, height]), axis=1)
    if not seen.any():
        return float("nan")
    return float(np.sqrt(np.mean(np.sum((transform_points(matrix, reference.xy) - target)[seen] ** 2, axis=1))))


def ours(reference: StarList, frame: StarList) -> np.ndarray | None:
    """Transform of this library, or None when it refuses."""
    result = register_stars(reference, frame, SHAPE, RegisterSpec())
    return result.transform if result.ok else None


def theirs(reference: StarList, frame: StarList) -> np.ndarray | None:
    """Transform of astroalign on the same lists, or None when it refuses."""
    try:
        transform, _ = astroalign.find_transform(reference.xy, frame.xy)
    except (astroalign.MaxIterError, TypeError, ValueError):
        return None
    return np.asarray(transform.params)


def _row(matcher: Callable[[StarList, StarList], np.ndarray | None], scenario: Scenario, fields: int) -> str:
    seconds, errors, wrong, refused = [], [], 0, 0
    for seed in range(fields):
        reference, frame, truth = make_pair(scenario, seed)
        start = time.process_time()
        matrix = matcher(reference, frame)
        seconds.append(time.process_time() - start)
        error = float("inf") if matrix is None else _error(matrix, truth, reference)
        refused += matrix is None
        good = scenario.related and error < 1.0
        wrong += matrix is not None and not good
        if good:
            errors.append(error)
    rms = f"{np.median(errors):.4f} / {np.max(errors):.3f}" if errors else "-"
    time_ms = f"{1e3 * np.median(seconds):.1f} / {1e3 * np.max(seconds):.0f}"
    return f"{len(errors)} | {refused} | {wrong} | {rms} | {time_ms}"


def paint(shape: tuple[int, int], stars: int, seed: int) -> np.ndarray:
    """Frame (H, W) float32 ADU: sky, noise and Gaussian stars of FWHM 3 px with peaks of 100..50,000 ADU."""
    rng = np.random.default_rng(seed)
    image = rng.normal(SKY, NOISE, shape).astype(np.float32)
    flux = _flux(rng, stars) / (2 * np.pi * PSF_SIGMA**2)
    span = np.arange(-8, 9)
    for x, y, peak in zip(
        rng.uniform(8, shape[1] - 9, stars), rng.uniform(8, shape[0] - 9, stars), flux, strict=True
    ):  # fmt: skip
        column, row = round(x), round(y)
        image[row - 8 : row + 9, column - 8 : column + 9] += peak * np.outer(
            np.exp(-0.5 * ((span + row - y) / PSF_SIGMA) ** 2), np.exp(-0.5 * ((span + column - x) / PSF_SIGMA) ** 2)
        )
    return image


def _detection_rows() -> list[str]:
    rows = []
    for shape, stars in (((540, 960), 500), ((540, 960), 2000), ((1080, 1920), 2000), ((1080, 1920), 5000)):
        image = paint(shape, stars, 1)
        detect_stars(image, RegisterSpec())  # loads the kernels
        seconds = []
        for _ in range(7):
            start = time.process_time()
            found = detect_stars(image, RegisterSpec())
            seconds.append(time.process_time() - start)
        rows.append(f"| {shape[0]} x {shape[1]} | {stars} | {len(found)} | {1e3 * np.median(seconds):.0f} |")
    return rows


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=50, help="fields per scenario")
    fields = parser.parse_args().fields
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "numba", "astroalign"))
    out = sys.stdout.write
    out(f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, {packages}\n\n")
    out("| frame | stars painted | stars kept | detection, ms |\n|---|---|---|---|\n")
    out("\n".join(_detection_rows()))
    out(f"\n\n{fields} fields per row; right = within 1 px rms of the truth; times median / worst\n\n")
    out(
        "| field | who | right | refused | wrong | rms error median / worst, px | ms |\n|---|---|---|---|---|---|---|\n"
    )
    for scenario in SCENARIOS:
        for who, matcher in (("ours", ours), ("astroalign", theirs)):
            out(f"| {scenario.name} | {who} | {_row(matcher, scenario, fields)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
