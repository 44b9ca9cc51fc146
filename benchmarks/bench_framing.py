"""Whole fields: sessions whose pointing wanders, stacked into one image and compared with the truth.

Usage: python benchmarks/bench_framing.py FOLDER [--frames N] [--size HxW] [--only NAME ...]

Each session is simulated into FOLDER, stacked with the framing that is named, and judged: how far transforms and
stars are from their true places, how far fluxes are from their true values, and by how much the sky steps where frames
end. Results are printed as a table; those that were kept are in benchmarks/results/framing.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from scipy.spatial import cKDTree

import zemosaic_phase3 as zp
from zemosaic_phase3.records import Canvas
from zemosaic_phase3.simulate.paint import map_points, moffat_stamps
from zemosaic_phase3.simulate.pointing import wcs_cards
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth, load_truth

APERTURE = 8.0  # px
RING = (10.0, 15.0)  # px
STRIP = (2.0, 12.0)  # px on either side of a border
ALONE = 18.0  # px to the next star that counts
FEWEST_STEP_PIXELS = 600  # on each side of a border

SESSIONS = {
    "dither": SimulationSpec(dither_px=40.0, rotation_deg=4.0),
    "wander": SimulationSpec(wander_px=(3.0, 0.75), rotation_deg=2.0),
    "wander, turning gradient": SimulationSpec(wander_px=(3.0, 0.75), gradient_turn_deg=180.0, rotation_deg=2.0),
    "wander, turning field": SimulationSpec(wander_px=(2.0, 0.0), rotation_deg=25.0),
}
"""Wandering in units of the frame's width and height."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a mosaic; pixels, relative fluxes, steps in units of the noise of a pixel beside."""

    used: int
    size: tuple[int, int]
    registration_rms: float
    registration_worst: float
    position_rms: float
    wcs_rms: float
    flux_bias: float
    flux_worst_third: float  # less the bias of all
    flux_scatter: float
    step_rms: float
    step_worst: float
    step_by_noise: float
    seconds: float


def judge(tile: zp.Tile, truth: SimulationTruth, seconds: float) -> Figures:
    """Compare a mosaic with the truth."""
    at = {name: k for k, name in enumerate(truth.names)}
    reference = at[Path(tile.report.reference).name]
    canvas = tile.canvas or Canvas(*tile.image.shape[:2])
    to_reference = truth.transforms[reference]
    place = map_points(to_reference, truth.star_xy)  # on the reference
    used = [(at[Path(row.name).name], row.registration.transform) for row in tile.rows if row.used]
    back = np.linalg.inv(to_reference)
    errors = []
    for k, found in used:
        there, true = map_points(found, place), map_points(truth.transforms[k] @ back, place)
        size = (truth.spec.width - 1, truth.spec.height - 1)
        inside = ((true >= 0) & (true <= size)).all(axis=1)
        errors.append(np.sum((there - true)[inside] ** 2, axis=1))
    on_canvas = place - (canvas.origin_x, canvas.origin_y)
    position, wcs_error, flux, thirds = _stars(tile, truth, on_canvas, reference)
    steps, noise = _steps(tile, truth, used, canvas, on_canvas)
    return Figures(
        used=len(used), size=(tile.image.shape[1], tile.image.shape[0]),
        registration_rms=float(np.sqrt(np.mean(np.concatenate(errors)))),
        registration_worst=max(float(np.sqrt(e.mean())) for e in errors if e.size),
        position_rms=position, wcs_rms=wcs_error, flux_bias=float(np.median(flux)),
        flux_worst_third=float(max((third - np.median(flux) for third in thirds), key=abs, default=float("nan"))),
        flux_scatter=1.4826 * float(np.median(np.abs(flux - np.median(flux)))),
        step_rms=float(np.sqrt(np.mean(steps**2))), step_worst=float(np.abs(steps).max()),
        step_by_noise=float(np.sqrt(np.mean(noise**2))), seconds=seconds,
    )  # fmt: skip


def _planes(image: np.ndarray) -> np.ndarray:
    return image[..., None] if image.ndim == 2 else image


def _stars(
    tile: zp.Tile, truth: SimulationTruth, xy: np.ndarray, reference: int
) -> tuple[float, float, np.ndarray, list[float]]:
    """Positions and fluxes of stars that are bright, alone and not saturated, in green."""
    image, green = _planes(tile.image), min(1, truth.star_flux.shape[1] - 1)
    height, width = image.shape[:2]
    reach = int(RING[1]) + 2
    tree, flux = cKDTree(xy), truth.star_flux[:, green]
    bright = np.flatnonzero((flux > 8000.0) & (flux < 1.5e5))
    offsets, ratios, columns, sky = [], [], [], []
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    for s in bright:
        near = [k for k in tree.query_ball_point(xy[s], ALONE) if k != s and flux[k] > 0.003 * flux[s]]
        cx, cy = np.rint(xy[s]).astype(int)
        if near or not (reach <= cx < width - reach and reach <= cy < height - reach):
            continue
        stamp = image[cy - reach : cy + reach + 1, cx - reach : cx + reach + 1, green].astype(np.float64)
        if not np.isfinite(stamp).all():
            continue
        dx, dy = x + cx - xy[s, 0], y + cy - xy[s, 1]
        r = np.hypot(dx, dy)
        stamp = stamp - np.median(stamp[(r > RING[0]) & (r < RING[1])])
        core = np.exp(-(r**2) / (2.0 * 1.6**2)) * stamp
        shift = np.zeros(2)
        for _ in range(8):
            core = np.exp(-((dx - shift[0]) ** 2 + (dy - shift[1]) ** 2) / (2.0 * 1.6**2)) * stamp
            shift = shift + 2.0 * (np.array([(core * dx).sum(), (core * dy).sum()]) / core.sum() - shift)
        offsets.append(shift)
        ratios.append(stamp[r < APERTURE].sum() / (flux[s] * truth.gains[reference] * _inside_aperture(truth)) - 1.0)
        columns.append(xy[s, 0])
        sky.append(s)
    offsets, ratios, columns = np.array(offsets), np.array(ratios), np.array(columns)
    thirds = [
        float(np.median(ratios[part]))
        for k in range(3)
        if (part := (columns >= k * width / 3) & (columns < (k + 1) * width / 3)).sum() > 4
    ]
    return float(np.sqrt(np.mean(np.sum(offsets**2, axis=1)))), _wcs_error(tile, truth, xy[sky], sky), ratios, thirds


def _inside_aperture(truth: SimulationTruth) -> float:
    """Part of a star's flux that the aperture shows above the ring, in which some of it lies; mean of frames."""
    reach = int(RING[1]) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    r = np.hypot(x, y)
    parts = []
    for fwhm in truth.fwhm:
        stamp = moffat_stamps(np.zeros((1, 2), np.float32), reach, float(fwhm))[0].astype(np.float64)
        parts.append((stamp - np.median(stamp[(r > RING[0]) & (r < RING[1])]))[r < APERTURE].sum())
    return float(np.mean(parts))


def _wcs_error(tile: zp.Tile, truth: SimulationTruth, xy: np.ndarray, stars: list[int]) -> float:
    """Rms distance, px, of where the tile's WCS and that of the first frame put stars on the sky."""
    if tile.wcs is None:
        return float("nan")

    first = WCS(Header(list(wcs_cards(truth.spec, np.eye(3), np.zeros(2)).items())))
    ours, true = tile.wcs.all_pix2world(xy, 0), first.all_pix2world(truth.star_xy[stars], 0)
    apart = (ours - true) * [np.cos(np.deg2rad(truth.spec.dec_deg)), 1.0] * 3600.0 / truth.spec.scale_arcsec
    return float(np.sqrt(np.mean(np.sum(apart**2, axis=1))))


def _steps(
    tile: zp.Tile, truth: SimulationTruth, used: list[tuple[int, np.ndarray]], canvas: Canvas, stars: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the sky along the four borders of every frame, and what noise alone makes of them, units of sigma."""
    image = _planes(tile.image).mean(axis=2)
    height, width = image.shape
    flux = truth.star_flux.mean(axis=1)
    is_star = np.zeros(image.shape, bool)
    for (x, y), light in zip(stars, flux, strict=True):
        reach = 6 + int(min(25.0, (light / 20.0) ** 0.25 * 2.0))
        if -reach < x < width + reach and -reach < y < height + reach:
            is_star[max(0, int(y) - reach) : int(y) + reach + 1, max(0, int(x) - reach) : int(x) + reach + 1] = True
    sky = np.where(is_star, np.nan, image)
    w, h = truth.spec.width - 1.0, truth.spec.height - 1.0
    steps, noises = [], []
    for _, transform in used:
        back = np.linalg.inv(canvas.to_frame(transform))
        for start, end, inward in (
            ((0, 0), (w, 0), (0, 1)), ((w, h), (0, h), (0, -1)), ((0, h), (0, 0), (1, 0)), ((w, 0), (w, h), (-1, 0)),
        ):  # fmt: skip
            along = np.linspace(0.05, 0.95, 1200)[:, None] * np.subtract(end, start) + start
            sides = []
            for sign in (1.0, -1.0):
                depth = np.arange(*STRIP)[:, None, None] * np.array(inward) * sign
                xy = np.rint(map_points(back, (along + depth).reshape(-1, 2))).astype(int)
                inside = (xy >= 0).all(axis=1) & (xy < (width, height)).all(axis=1)
                values = np.full(len(xy), np.nan)
                values[inside] = sky[xy[inside, 1], xy[inside, 0]]
                sides.append(values)
            both = np.isfinite(sides[0].reshape(-1, 1200)).any(axis=0) & np.isfinite(sides[1].reshape(-1, 1200)).any(
                axis=0
            )
            values = [side.reshape(-1, 1200)[:, both] for side in sides]
            counts = [np.isfinite(v).sum() for v in values]
            if min(counts) < FEWEST_STEP_PIXELS:
                continue
            sigma = [1.4826 * np.nanmedian(np.abs(v - np.nanmedian(v))) for v in values]
            steps.append((np.nanmean(values[0]) - np.nanmean(values[1])) / max(sigma))
            noises.append(np.hypot(*(s / np.sqrt(n) for s, n in zip(sigma, counts, strict=True))) / max(sigma))
    return np.array(steps), np.array(noises)


def main() -> None:
    """Simulate, stack, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", default="400x600")
    parser.add_argument("--only", nargs="*", default=list(SESSIONS))
    parser.add_argument("--flatten", action="store_true")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    for name in args.only:
        spec = replace(
            SESSIONS[name], n_frames=args.frames, height=height, width=width, nebula=0.0, trail_fraction=0.1,
            wander_px=tuple(w * s for w, s in zip(SESSIONS[name].wander_px, (width, height), strict=True)),
        )  # fmt: skip
        folder = args.folder / name.replace(", ", "_").replace(" ", "_")
        if folder.exists() and load_truth(folder).spec == spec:
            truth = load_truth(folder)
        else:
            truth = simulate(spec, folder, overwrite=True)
        began = time.perf_counter()
        tile = zp.stack(folder, framing="union", flatten=args.flatten or None, progress=False)
        print(f"{name}: {judge(tile, truth, time.perf_counter() - began)}", flush=True)


if __name__ == "__main__":
    main()
