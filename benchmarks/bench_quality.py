"""Judge our stack, Siril's and seiza's of the same simulated raw subs by their truth, all with default options.

Run ``python benchmarks/bench_quality.py [--frames N] [--size HxW] [--seiza PYTHON]``; needs siril-cli for its column,
and for seiza's the interpreter of an environment with it (``pip install seiza``). Siril does what
its users' scripts do: convert -debayer, register, stack rej w 3 3 -norm=addscale. Every session is drawn from a seeded
generator, so that a run repeats. Siril registers on its first frame and takes the levels of another, which its sequence
file names: its fluxes are compared with that one's transparency. Its transforms are not written down, so that its
registration is measured on its registered frames, by a similarity fitted to all their stars. seiza reports its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.detection.star_finder import find_stars
from zemosaic_phase3.registration.transform import fit_transform, transform_points
from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth
from zemosaic_phase3.simulate.truth import Figures, compare_with_truth
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files

SIRIL = shutil.which("siril-cli") or shutil.which("siril")
SCRIPT = """requires 1.0.0
setext fit
set16bits
cd raw
convert light -debayer -out=../process
cd ../process
register light
stack r_light rej w 3 3 -norm=addscale -out=../result
close
"""
SEIZA = """
import json, sys, seiza
result = seiza.stack_fits(sorted(sys.argv[2:]), sys.argv[1])
frames = {str(f.source): f.mapping["transform"] for f in result.frames if f.accepted}
print(json.dumps({"reference": str(result.reference_light), "frames": frames}))
"""
SESSIONS = {
    "clear night": {},
    "haze and moonlight": {"gain_range": (0.6, 1.0), "sky_drift": 0.4, "gradient": 150.0},
}


@dataclass(frozen=True)
class Line:
    """One figure of the table: its name, what it should be at most, and how it is read."""

    name: str
    limit: float
    read: Callable[[Figures], float]
    digits: int = 3


def _worst(key: str) -> Callable[[Figures], float]:
    return lambda figures: float(np.max(np.abs(figures[key])))


def _noise(figures: Figures) -> float:
    """Noise over the ideal, as it would be with the fluxes that the stack should have."""
    ratio, scale = np.asarray(figures["sky_noise_over_ideal"]), 1.0 + np.asarray(figures["photometric_error"])
    return float(np.max(ratio / scale))


LINES = (
    Line("registration, rms px", 0.020, _worst("registration_rms_px")),
    Line("registration, worst frame, rms px", float("nan"), _worst("registration_worst_px")),
    Line("FWHM / truth", 1.05, _worst("fwhm_over_truth_mean")),
    Line("scatter of star fluxes, worst channel, %", 1.5, lambda f: 100 * f["photometric_scatter"], 2),
    Line("channel balance, %", 2.0, lambda f: 100 * f["channel_balance_error"], 2),
    Line("flux scale, worst channel, %", 1.0, lambda f: 100 * f["photometric_error_worst"], 2),
    Line("nebula, worst channel, %", 1.0, lambda f: 100 * float(np.max(np.abs(f["nebula_error"]))), 2),
    Line("trail left, sigma of a pixel", 0.15, _worst("trail_residual_pixel_sigma")),
    Line("level of thinly covered borders, sigma of a pixel", 2.0, _worst("border_level_sigma"), 2),
    Line("noise of 8x8 blocks over the ideal, worst channel, fluxes alike", 1.0, _noise),
    Line("WCS of the result, px", 0.05, _worst("wcs_px")),
)


def wcs_error(header: fits.Header, raw: Path, shape: tuple[int, int]) -> float:
    """Largest distance (px) over the field between where a result's WCS and its reference frame's put one sky."""
    theirs, true = WCS(header, naxis=2), WCS(fits.getheader(raw), naxis=2)
    y, x = np.mgrid[0 : shape[0] - 1 : 5j, 0 : shape[1] - 1 : 5j]
    sky = true.all_pix2world(np.column_stack((x.ravel(), y.ravel())), 0)
    try:
        found = theirs.all_world2pix(sky, 0)
    except ValueError:  # no celestial axes
        return float("nan")
    return float(np.hypot(found[:, 0] - x.ravel(), found[:, 1] - y.ravel()).max())


def ours(raw: Path, truth: SimulationTruth, stack: StackSpec) -> Figures:
    """Figures of our stack."""
    tile = stack_files([raw], stack=stack, device="cpu")
    used = [row for row in tile.rows if row.used and row.registration]
    figures = compare_with_truth(
        tile.image,
        truth,
        transforms={row.name: row.registration.transform for row in used},
        coverage=tile.maps["COVERAGE"],
        reference_name=tile.report.reference,
    )
    for note in tile.report.warnings:
        sys.stderr.write(f"{note}\n")
    figures["frames"] = len(used)
    figures["wcs_px"] = wcs_error(tile.header, raw / Path(tile.report.reference).name, tile.image.shape[:2])
    return figures


def siril(raw: Path, truth: SimulationTruth, folder: Path) -> Figures:
    """Figures of Siril's stack."""
    (folder / "raw").mkdir(parents=True)
    for name in truth.names:
        os.link(raw / name, folder / "raw" / name)
    script = folder / "go.ssf"
    script.write_text(SCRIPT, encoding="ascii")
    subprocess.run([str(SIRIL), "-d", str(folder), "-s", str(script)], check=True, capture_output=True, timeout=3600)
    sequence = (folder / "process" / "light_.seq").read_text(encoding="utf-8").splitlines()
    level = int(next(line for line in sequence if line.startswith("S ")).split()[-2])
    reference = 0
    registered = sorted((folder / "process").glob("r_light_*.fit"))
    with fits.open(folder / "result.fit") as hdus:
        image = np.moveaxis(hdus[0].data.astype(np.float32), 0, -1)
        image *= np.float32(truth.gains[reference] / truth.gains[level])
        header = hdus[0].header
    figures = compare_with_truth(image, truth, reference_name=truth.names[reference])
    offsets = [_registration_error(path, truth, reference) for k, path in enumerate(registered) if k != reference]
    figures["registration_rms_px"] = float(np.sqrt(np.mean(np.square(offsets))))
    figures["registration_worst_px"] = float(np.max(offsets))
    figures["frames"] = len(registered)
    figures["wcs_px"] = wcs_error(header, raw / truth.names[reference], image.shape[:2])
    return figures


def seiza(raw: Path, truth: SimulationTruth, folder: Path, python: str) -> Figures:
    """Figures of seiza's stack; its transforms are taken in the direction that fits the truth better."""
    folder.mkdir()
    command = [python, "-c", SEIZA, str(folder / "result.fits"), *(str(raw / name) for name in truth.names)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600).stdout)
    there = {Path(name).name: _similarity(**found) for name, found in said["frames"].items()}
    back = {name: np.linalg.inv(matrix) for name, matrix in there.items()}
    reference = Path(said["reference"]).name
    with fits.open(folder / "result.fits") as hdus:
        image, header = np.moveaxis(hdus[0].data.astype(np.float32), 0, -1), hdus[0].header
    either = [compare_with_truth(image, truth, transforms=each, reference_name=reference) for each in (there, back)]
    figures = min(either, key=_worst("registration_rms_px"))
    figures["frames"] = len(there)
    figures["wcs_px"] = wcs_error(header, raw / reference, image.shape[:2])
    return figures


def _similarity(scale: float, rotation_radians: float, translation_x: float, translation_y: float) -> np.ndarray:
    cosine, sine = scale * np.cos(rotation_radians), scale * np.sin(rotation_radians)
    return np.array([[cosine, -sine, translation_x], [sine, cosine, translation_y], [0.0, 0.0, 1.0]])


def _registration_error(path: Path, truth: SimulationTruth, reference: int) -> float:
    """Rms displacement (px) of a registered frame's stars, by a similarity fitted to where they are and should be."""
    frame = np.moveaxis(fits.getdata(path).astype(np.float32), 0, -1)
    found = find_stars(frame, RegisterSpec())
    expected = map_points(truth.transforms[reference], truth.star_xy)
    distance = np.hypot(*(found.xy[:, None] - expected[None]).T).T
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(found)), nearest] < 1.0
    source, target = expected[nearest[near]], found.xy[near]
    keep = np.ones(len(source), bool)
    for _ in range(4):
        matrix = fit_transform("similarity", source[keep], target[keep], found.sigma[near][keep] ** -2.0)
        if matrix is None:
            return float("nan")
        left = np.hypot(*(transform_points(matrix, source) - target).T)
        keep = left < 3.0 * np.median(left)
    return float(np.sqrt(np.mean(np.sum((transform_points(matrix, source) - source) ** 2, axis=1))))


def _table(columns: dict[str, Figures]) -> str:
    rows = ["| figure | at most | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for line in LINES:
        limit = "" if np.isnan(line.limit) else f"{line.limit:g}"
        values = [line.read(figures) for figures in columns.values()]
        rows.append(f"| {line.name} | {limit} | " + " | ".join(f"{v:.{line.digits}f}" for v in values) + " |")
    rows.append("| frames stacked | | " + " | ".join(str(figures["frames"]) for figures in columns.values()) + " |")
    return "\n".join(rows)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", default="1080x1920", help="rows x columns")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seiza", metavar="PYTHON", help="interpreter that can import seiza")
    args = parser.parse_args()
    height, width = (int(side) for side in args.size.split("x"))
    out = sys.stdout.write
    version = subprocess.check_output([SIRIL, "--version"], text=True).strip() if SIRIL else "no Siril"
    out(f"{args.frames} raw GRBG subs of {height} x {width}, seed {args.seed}; {platform.machine()}, {version}\n")
    for name, options in SESSIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "subs"
            spec = SimulationSpec(n_frames=args.frames, height=height, width=width, seed=args.seed, **options)
            truth = simulate(spec, raw)
            columns = {
                "ours": ours(raw, truth, StackSpec()),
                "ours, additive_scaling": ours(raw, truth, StackSpec(normalize="additive_scaling")),
            }
            if SIRIL:
                columns["Siril"] = siril(raw, truth, Path(folder) / "siril")
            if args.seiza:
                columns["seiza"] = seiza(raw, truth, Path(folder) / "seiza", args.seiza)
            out(f"\n## {name}\n\n{_table(columns)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
