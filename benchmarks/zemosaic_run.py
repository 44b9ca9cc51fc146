"""Run a ZeMosaic checkout from raw subs to the final mosaic, as it is and with this library attached, on a known sky.

Run ``python benchmarks/zemosaic_run.py CHECKOUT [--python PYTHON] [--frames N] [--output FILE]``. PYTHON is the
interpreter that runs ZeMosaic (default: this one) and needs its packages and ours. Four overlapping pointings of one
simulated sky are written as raw GRBG subs with a WCS, so that no plate solver is needed. The checkout itself is not
touched: both runs work on copies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from zemosaic_phase3.compat.attach import attach
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth

FIELD = (480, 640)  # rows, columns of a sub
STEP = (340, 460)  # between pointings, pixels; even, so that a sub begins with the same colour
MARGIN = 20  # around the four, for the dither
BRIGHT = 20_000.0  # ADU; stars whose position and flux are measured
APERTURE = 7  # pixels, radius
RUN = """
import json, sys, time
sys.path.insert(0, ".")
import zemosaic_config
import zemosaic_worker

class Queue:
    def __init__(self):
        self.told = []
    def put(self, item, *_):
        self.told.append((time.time(), [str(part) for part in item]))

if __name__ == "__main__":
    queue, options = Queue(), dict(zemosaic_config.DEFAULT_CONFIG)
    for name, value in {"cluster_panel_threshold": 0.05, "cluster_target_groups": 0,
                        "cluster_orientation_split_deg": 0.0, "min_radial_weight_floor": 0.0}.items():
        options.setdefault(name, value)  # as its window sends them
    options.update(input_dir=sys.argv[1], output_dir=sys.argv[2], skip_filter_ui=True, skip_filter_ui_for_run=True)
    began = time.time()
    zemosaic_worker.run_hierarchical_mosaic_process(queue, solver_settings_dict={}, **options)
    with open(sys.argv[3], "w") as stream:
        json.dump({"seconds": time.time() - began, "told": queue.told}, stream)
"""


def write_subs(folder: Path, per_pointing: int) -> tuple[SimulationTruth, WCS]:
    """Write the subs of four pointings, cut from frames of the whole sky; returns what is true and its WCS."""
    height, width = (FIELD[k] + STEP[k] + 2 * MARGIN for k in (0, 1))
    spec = SimulationSpec(
        n_frames=4 * per_pointing, height=height, width=width, seed=3, rotation_deg=0.6, dither_px=10.0, nebula=250.0,
        gain_range=(0.85, 1.0), saturated_stars=0,
    )  # fmt: skip
    whole = folder / "whole"
    truth = simulate(spec, whole)
    raw = folder / "raw"
    raw.mkdir()
    for k, name in enumerate(truth.names):
        data, header = fits.getdata(whole / name), fits.getheader(whole / name)
        pointing = k % 4
        top, left = MARGIN + STEP[0] * (pointing // 2), MARGIN + STEP[1] * (pointing % 2)
        header["CRPIX1"], header["CRPIX2"] = header["CRPIX1"] - left, header["CRPIX2"] - top
        # The same plane of the sky, with its reference point within the sub, as a plate solver puts it.
        part = WCS(header)
        middle = (FIELD[1] - 1) / 2, (FIELD[0] - 1) / 2
        lon, lat = part.wcs_pix2world(*middle, 0)
        scale = np.array(part.pixel_scale_matrix)
        header["CRVAL1"], header["CRVAL2"] = float(lon), float(lat)
        header["CRPIX1"], header["CRPIX2"] = middle[0] + 1.0, middle[1] + 1.0
        near = part.wcs_world2pix(*_standard(header, scale).wcs_pix2world([[0, 0], [600, 0], [0, 400]], 0).T, 0)
        assert np.abs(np.array(near).T - [[0, 0], [600, 0], [0, 400]]).max() < 0.1  # px; planes differ by that
        fits.writeto(raw / f"p{pointing}_{name}", data[top : top + FIELD[0], left : left + FIELD[1]], header)
    reference = WCS(fits.getheader(whole / truth.names[0]))
    shutil.rmtree(whole)
    return truth, reference


def _standard(header: fits.Header, scale: np.ndarray) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [header["CRVAL1"], header["CRVAL2"]], [header["CRPIX1"], header["CRPIX2"]]
    wcs.wcs.cd = scale
    return wcs


@dataclass
class Measured:
    """What a run gave, measured against the truth."""

    seconds: float
    phase3: float
    shift: tuple[float, float]
    scatter: float
    flux: list[float]
    flux_scatter: list[float]
    covered: int
    holes: int
    noise: list[float]
    seams: list[float]
    keys: dict[str, int]


def run_once(checkout: Path, python: str, raw: Path, folder: Path) -> dict[str, Any]:
    """Run a checkout headless in its own folder and home; returns what it told, and when."""
    home = folder / "home"
    home.mkdir()
    (checkout / "_run.py").write_text(RUN)
    environment = os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "QT_QPA_PLATFORM": "offscreen"}
    environment.pop("PYTHONPATH", None)
    log = folder / "log.txt"
    with log.open("wb") as stream:
        status = subprocess.run(  # noqa: S603 - the interpreter that was named
            [python, "_run.py", str(raw), str(folder / "out"), str(folder / "told.json")],
            cwd=checkout, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    if status:
        raise SystemExit(f"{checkout}: the run ended with status {status}:\n{log.read_text()[-3000:]}")
    told: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return told


def phase3_seconds(told: list[tuple[float, list[str]]]) -> float:
    """Return the time between the messages that begin and end Phase 3."""
    begins = [at for at, (key, *_) in told if key.startswith("run_info_phase3_started")]
    ends = [at for at, (key, *_) in told if key.startswith("run_info_phase3_finished")]
    return ends[-1] - begins[0] if begins and ends else float("nan")


def final_image(folder: Path) -> tuple[np.ndarray, WCS, Path]:
    """Return the final mosaic, float32 (H, W, 3), NaN where nothing is, and its WCS."""
    files = [f for f in sorted(folder.rglob("*.fit*")) if "coverage" not in f.name and "master_tile" not in f.name]
    science = [f for f in files if "science" in f.name] or files
    if not science:
        raise SystemExit(f"{folder}: the run left no mosaic")
    path = max(science, key=lambda f: f.stat().st_size)
    with fits.open(path) as hdus:
        data = np.array(hdus[0].data, np.float32)
        header = hdus[0].header
        alpha = np.array(hdus["ALPHA"].data) if "ALPHA" in hdus else None
    image = np.moveaxis(data, 0, -1) if data.shape[0] == 3 else data
    image = np.ascontiguousarray(image)
    image[~np.isfinite(image).all(axis=-1)] = np.nan
    if alpha is not None:
        image[alpha == 0] = np.nan
    return image, WCS(header, naxis=2), path


def measure(folder: Path, told: dict[str, Any], truth: SimulationTruth, sky: WCS) -> Measured:
    """Compare a final mosaic with the sky."""
    image, wcs, _ = final_image(folder / "out")
    lon, lat = sky.wcs_pix2world(*truth.star_xy.T, 0)
    x, y = wcs.wcs_world2pix(lon, lat, 0)
    distance = np.hypot(*(truth.star_xy[:, None] - truth.star_xy[None]).T)
    np.fill_diagonal(distance, np.inf)
    rivals = truth.star_flux[:, 1][None, :] > 0.1 * truth.star_flux[:, 1][:, None]
    alone = np.where(rivals, distance, np.inf).min(axis=1) > 3 * APERTURE
    found, ratios = [], []
    for k in np.flatnonzero(alone & (truth.star_flux[:, 1] > BRIGHT)):
        star = _star(image, x[k], y[k])
        if star is not None:
            found.append(star[0])
            ratios.append(star[1] / truth.star_flux[k])
    shift, ratio = np.median(found, axis=0), np.median(ratios, axis=0)
    valid = np.isfinite(image[..., 1])
    spread = 1.4826 * np.median(np.abs(np.array(ratios) / ratio - 1.0), axis=0)
    return Measured(
        seconds=told["seconds"],
        phase3=phase3_seconds(told["told"]),
        shift=(float(shift[0]), float(shift[1])),
        scatter=float(np.median(np.hypot(*(np.array(found) - shift).T))),
        flux=ratio.tolist(),
        flux_scatter=spread.tolist(),
        covered=int(valid.sum()),
        holes=_holes(valid, wcs, sky),
        noise=[_noise(image[..., c]) / ratio[c] for c in range(3)],
        seams=[_seams(image[..., c]) / ratio[c] for c in range(3)],
        keys=dict(Counter(key for _, (key, *_) in told["told"] if key.startswith(("mastertile_", "aligngroup_")))),
    )


def _star(image: np.ndarray, x: float, y: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Offset of a star's centre from where it should be, and its flux per channel; None where it is not whole."""
    column, row, reach = round(x), round(y), 2 * APERTURE
    box = image[row - reach : row + reach + 1, column - reach : column + reach + 1]
    if min(row, column) < reach or box.shape[:2] != (2 * reach + 1,) * 2 or not np.isfinite(box).all():
        return None
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    ring = np.hypot(u, v) > APERTURE + 2
    light = box - np.median(box[ring], axis=0)
    inside = np.hypot(u - (x - column), v - (y - row)) <= APERTURE
    green = np.where(inside, light[..., 1], 0.0)
    total = green.sum()
    flux = light[inside].sum(axis=0)
    if total <= 0:
        return np.array([np.nan, np.nan]), flux
    return np.array([(green * u).sum() / total - (x - column), (green * v).sum() / total - (y - row)]), flux


def _holes(valid: np.ndarray, wcs: WCS, sky: WCS) -> int:
    """Pixels without data in the part of the sky that every sub of some pointing shows."""
    y, x = np.mgrid[: valid.shape[0], : valid.shape[1]]
    there_x, there_y = sky.wcs_world2pix(*wcs.wcs_pix2world(x.ravel(), y.ravel(), 0), 0)
    inside = np.zeros(there_x.size, bool)
    rim = 30
    for k in range(4):
        top, left = MARGIN + STEP[0] * (k // 2), MARGIN + STEP[1] * (k % 2)
        inside |= (
            (there_x > left + rim) & (there_x < left + FIELD[1] - rim)
            & (there_y > top + rim) & (there_y < top + FIELD[0] - rim)
        )  # fmt: skip
    return int(np.count_nonzero(inside.reshape(valid.shape) & ~valid))


def _noise(plane: np.ndarray) -> float:
    """Noise of the sky, ADU, from differences of pixels two columns apart."""
    step = plane[:, 2:] - plane[:, :-2]
    return float(1.4826 * np.nanmedian(np.abs(step - np.nanmedian(step))) / np.sqrt(2.0))


def _seams(plane: np.ndarray, block: int = 16) -> float:
    """99.5th percentile of the jumps between neighbouring blocks' medians, ADU."""
    rows, columns = (n // block for n in plane.shape)
    cells = plane[: rows * block, : columns * block].reshape(rows, block, columns, block).swapaxes(1, 2)
    whole = np.isfinite(cells).all(axis=(2, 3))
    level = np.where(whole, np.median(np.nan_to_num(cells), axis=(2, 3)), np.nan)
    jumps = [np.abs(np.diff(level, axis=k)).ravel() for k in (0, 1)]
    return float(np.nanpercentile(np.concatenate(jumps), 99.5))


def table(results: dict[str, Measured]) -> str:
    """Both runs side by side, as Markdown."""

    def three(values: list[float], digits: int = 2) -> str:
        return " ".join(f"{v:.{digits}f}" for v in values)

    rows = {
        "the whole run, s": lambda m: f"{m.seconds:.1f}",
        "Phase 3, s": lambda m: f"{m.phase3:.1f}",
        "stars against truth, median (x, y), px": lambda m: f"{m.shift[0]:+.3f} {m.shift[1]:+.3f}",
        "... scatter, px": lambda m: f"{m.scatter:.3f}",
        "flux of stars / truth, R G B": lambda m: three(m.flux, 3),
        "... scatter, %": lambda m: three([100 * v for v in m.flux_scatter], 1),
        "pixels with data": lambda m: f"{m.covered:,}",
        "holes inside the field": lambda m: f"{m.holes:,}",
        "noise per unit of flux, R G B, ADU": lambda m: three(m.noise),
        "jumps between blocks, 99.5 %, R G B, ADU": lambda m: three(m.seams),
    }
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(text(m) for m in results.values()) + " |" for name, text in rows.items()]
    keys = sorted({key for m in results.values() for key in m.keys})
    lines += [
        f"| told: `{key}` | " + " | ".join(str(m.keys.get(key, 0)) for m in results.values()) + " |" for key in keys
    ]
    return "\n".join(lines)


def main() -> None:
    """Simulate, run twice, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="root of a ZeMosaic checkout")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs ZeMosaic")
    parser.add_argument("--frames", type=int, default=12, help="subs of each of the four pointings")
    parser.add_argument("--output", type=Path, help="append the table to this file")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FITSFixedWarning)  # dates of the simulated headers, completed
    if args.keep:
        args.keep.mkdir(parents=True)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="zemosaic_run_"))
    try:
        truth, sky = write_subs(folder, args.frames)
        results = {}
        for name in ("as it is", "attached", "attached, again"):
            here = folder / name.replace(" ", "_").replace(",", "")
            here.mkdir()
            copy = here / "zemosaic"
            shutil.copytree(args.checkout, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
            if name != "as it is":
                attach(copy)
            began = time.perf_counter()
            told = run_once(copy, args.python, folder / "raw", here)
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)  # noqa: T201
            results[name] = measure(here, told, truth, sky)
        text = table(results)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(text)  # noqa: T201
    if args.output:
        with args.output.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
