"""Count wrong registrations among frames that show another field, hot pixels alone, or no overlap.

Run ``python benchmarks/bench_false_alarms.py [--fields N]``: N seeded pairs of star lists of each kind, none of which
may register (or only as it should, within 1.5 px). Lists are as a detector gives them: with errors, brightest first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.spec import RegisterSpec

SHAPE = (1080, 1920)
SPEC = RegisterSpec()


class Case(NamedTuple):
    """Two lists, a first guess of the transform, and the true one; None: there is none."""

    reference: StarList
    frame: StarList
    seed: np.ndarray | None
    truth: np.ndarray | None


def listed(rng: np.random.Generator, xy: np.ndarray, flux: np.ndarray, hot: int = 0) -> StarList:
    """Return the stars of a frame that lie in it, measured with errors by brightness; the last ``hot`` are defects."""
    sharp = np.arange(len(xy)) >= len(xy) - hot
    inside = np.all((xy > 4) & (xy < [SHAPE[1] - 5, SHAPE[0] - 5]), axis=1)
    xy, flux = xy[inside], flux[inside]
    error = np.where(sharp[inside], 0.03, np.hypot(0.015, 0.3 / np.sqrt(flux / flux.min())))
    xy, measured = (
        xy + error[:, None] * rng.standard_normal(xy.shape),
        flux * np.exp(0.05 * rng.standard_normal(len(flux))),
    )
    order = np.argsort(-measured)[:400]
    ones = np.ones(len(order))
    return StarList(xy[order, 0], xy[order, 1], measured[order], 3.0 * ones, 0.1 * ones, error[order])


def flux_of(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return fluxes, cumulative counts rising by 10^0.4 a magnitude."""
    return 1e3 / (1.0 - rng.random(n))


def anywhere(rng: np.random.Generator, n: int, *, clustered: bool = False) -> np.ndarray:
    """Return n places in the image, px; half of them in a cluster of 100 px if ``clustered``."""
    xy = rng.random((n, 2)) * [SHAPE[1], SHAPE[0]]
    if clustered:
        half = n // 2
        xy[:half] = rng.random(2) * [SHAPE[1], SHAPE[0]] + 100.0 * rng.standard_normal((half, 2))
    return xy


def moved(rng: np.random.Generator, shift: float, turn: float = 3.0) -> np.ndarray:
    """Return a similarity of a random direction, and a turn of so many degrees at most."""
    angle, way = np.radians(rng.uniform(-turn, turn)), rng.uniform(0.0, 2.0 * np.pi)
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = np.array([SHAPE[1] / 2, SHAPE[0] / 2])
    matrix[:2, 2] = middle + shift * np.array([np.cos(way), np.sin(way)]) - matrix[:2, :2] @ middle
    return matrix


def other_field(n: int, *, seeded: bool = False, clustered: bool = False) -> Callable[[np.random.Generator], Case]:
    """Return what makes two unrelated fields of n stars, one with half of them."""

    def make(rng: np.random.Generator) -> Case:
        fields = [
            listed(rng, anywhere(rng, k, clustered=clustered), flux_of(rng, k))
            for k in (n, max(4, rng.integers(n // 2, n + 1)))
        ]
        return Case(*fields, moved(rng, rng.uniform(0, 60)) if seeded else None, None)

    return make


def hot_pixels(
    stars: int, hot: int, *, seeded: bool = False, still: bool = False
) -> Callable[[np.random.Generator], Case]:
    """Return what makes a frame of hot pixels under cloud, on a reference that shows them beside stars.

    ``seeded``: both carry one copied WCS; ``still``: the frame has a few stars of another field as well.
    """

    def make(rng: np.random.Generator) -> Case:
        defects, light = anywhere(rng, hot), flux_of(rng, hot)
        sky = anywhere(rng, stars), flux_of(rng, stars)
        few = stars // 3 if still else 0
        other = anywhere(rng, few), flux_of(rng, few)
        reference = listed(rng, np.vstack((sky[0], defects)), np.append(sky[1], light), hot)
        frame = listed(rng, np.vstack((other[0], defects)), np.append(other[1], light), hot)
        return Case(reference, frame, np.eye(3) if seeded else None, None)

    return make


def copied_wcs(n: int) -> Callable[[np.random.Generator], Case]:
    """Return what makes a frame of another place with the reference's WCS copied into it."""

    def make(rng: np.random.Generator) -> Case:
        return Case(
            listed(rng, anywhere(rng, n), flux_of(rng, n)),
            listed(rng, anywhere(rng, n), flux_of(rng, n)),
            np.eye(3),
            None,
        )

    return make


def shifted(n: int, shift: tuple[float, float], *, seeded: bool) -> Callable[[np.random.Generator], Case]:
    """Return what makes a field shifted by so many px: to no overlap, or to a rim of it."""

    def make(rng: np.random.Generator) -> Case:
        truth = moved(rng, rng.uniform(*shift))
        sky = (rng.random((n * 25, 2)) * 5.0 - 2.0) * [SHAPE[1], SHAPE[0]]
        flux = flux_of(rng, len(sky))
        seed = moved(rng, rng.uniform(0, 40)) if seeded else None
        return Case(listed(rng, sky, flux), listed(rng, transform_points(truth, sky), flux), seed, truth)

    return make


KINDS = {
    **{f"another field, {n} stars": other_field(n) for n in (6, 10, 15, 30, 100, 400)},
    **{
        f"another field, {n} stars, first guess from a WCS": other_field(n, seeded=True)
        for n in (6, 10, 15, 30, 100, 400)
    },
    "another field, 60 stars, half of them in a cluster": other_field(60, clustered=True),
    **{f"copied WCS, another field, {n} stars": copied_wcs(n) for n in (6, 12, 40)},
    "40 hot pixels alone, 60 stars in the reference": hot_pixels(60, 40),
    "5 hot pixels alone, 15 stars in the reference, copied WCS": hot_pixels(15, 5, seeded=True),
    "10 hot pixels alone, 30 stars in the reference, copied WCS": hot_pixels(30, 10, seeded=True),
    "10 hot pixels and stars of another field": hot_pixels(40, 10, still=True),
    "shifted by 1,700 to 2,600 px, 60 stars": shifted(60, (1700, 2600), seeded=False),
    "shifted by 1,700 to 2,600 px, 60 stars, wrong WCS": shifted(60, (1700, 2600), seeded=True),
    "shifted by 900 to 1,700 px, 15 stars": shifted(15, (900, 1700), seeded=False),
}


def count(make: Callable[[np.random.Generator], Case], fields: int, number: int) -> tuple[int, int]:
    """Return how many of so many cases register, and how many of those wrongly."""
    registered, wrong = 0, 0
    for k in range(fields):
        case = make(np.random.default_rng((number, k)))
        found = register_stars(case.reference, case.frame, SHAPE, SPEC, case.seed)
        if not found.ok:
            continue
        registered += 1
        if case.truth is None:
            wrong += 1
            continue
        places = transform_points(np.linalg.inv(case.truth), case.frame.xy)
        seen = np.all((places > 0) & (places < [SHAPE[1], SHAPE[0]]), axis=1)
        off = transform_points(found.transform, places[seen]) - case.frame.xy[seen]
        wrong += not seen.any() or float(np.sqrt(np.mean(np.sum(off**2, axis=1)))) > 1.5
    return registered, wrong


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=1000, help="pairs of each kind")
    parser.add_argument("--kind", default="", help="only kinds whose names hold this")
    args = parser.parse_args()
    out = sys.stdout.write
    out("| pair | pairs | registered | wrong | ms a pair |\n|---|---|---|---|---|\n")
    total, bad = 0, 0
    for number, (kind, make) in enumerate(KINDS.items()):
        if args.kind not in kind:
            continue
        start = time.process_time()
        registered, wrong = count(make, args.fields, number)
        total, bad = total + args.fields, bad + wrong
        milliseconds = 1e3 * (time.process_time() - start) / args.fields
        out(f"| {kind} | {args.fields} | {registered} | {wrong} | {milliseconds:.0f} |\n")
        sys.stdout.flush()
    out(f"\nwrong: {bad} of {total}\n")


if __name__ == "__main__":
    main()
