"""What the presets cost and bring: time, noise, light, width of stars, trails, beside the truth of simulations.

Run ``python benchmarks/bench_presets.py [--frames 30] [--size 600x900]``. Each stack is a process of its own, as a
user starts it, without a journal, on warm files and compiled kernels; CPU time is user and system.
Sessions: "clear", and "poor": some frames out of focus and some behind clouds, gradients that turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.pipeline.presets import PRESETS
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.simulate.truth import compare_with_truth

ROOT = Path(__file__).resolve().parents[1]
START = "from zemosaic_phase3.app.program import run_program; run_program()"
CLOUD, GLOW = 0.35, 400.0  # of the light that a cloud lets through, and its own brightness, ADU
COLUMNS = ("preset", "CPU s", "frames", "noise", "width", "light, %", "scatter, %", "trail, sigma", "MB")


def spoil(folder: Path) -> None:
    """Put every seventh frame out of focus, and every ninth behind a cloud of a third of the light."""
    rng = np.random.default_rng(5)
    for k, path in enumerate(sorted(folder.glob("sub_*.fits"))):
        blurred, cloudy = k % 7 == 3, k % 9 == 5
        if not (blurred or cloudy):
            continue
        with fits.open(path, mode="update") as hdus:
            data = hdus[0].data.astype(np.float64)
            for y in (0, 1):
                for x in (0, 1):
                    plane = data[y::2, x::2]
                    sky = float(np.median(plane))
                    plane = gaussian_filter(plane, 1.0) if blurred else plane
                    if cloudy:  # less light, more sky, and the noise of both
                        noise = np.sqrt((1.0 - CLOUD**2) * (sky + 64.0) + GLOW)
                        plane = sky + GLOW + CLOUD * (plane - sky) + rng.normal(0.0, noise, plane.shape)
                    data[y::2, x::2] = plane
            hdus[0].data = np.clip(np.round(data), 0, 65535).astype(np.uint16)


def stacked(subs: Path, out: Path, preset: str) -> tuple[dict[str, object], float]:
    """Stack as a user does; returns the report and the CPU seconds of the process."""
    command = [sys.executable, "-c", START, "stack", str(subs), "-o", str(out), "--overwrite", "--no-resume", "--quiet"]
    command += ["--preview", "none", "--device", "cpu", "--json", str(out.with_suffix(".json"))]
    command += preset.split() if preset.startswith("-") else ["--preset", preset] if preset != "none" else []
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(out.with_suffix(".json").read_text()), usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--size", default="600x900")
    parser.add_argument("--options", action="append", help="rows of these options instead of presets")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    names = ("none", *PRESETS) if args.options is None else ("none", *args.options)
    for session in ("clear", "poor"):
        with tempfile.TemporaryDirectory() as folder:
            subs, out = Path(folder) / "subs", Path(folder) / "o.fits"
            spec = SimulationSpec(
                n_frames=args.frames, height=height, width=width, seed=3, trail_fraction=0.3, wcs_error_px=1.0,
                gradient=60.0 if session == "clear" else 200.0,
                gain_range=(0.97, 1.03),
            )  # fmt: skip
            truth = simulate(spec, subs)
            if session == "poor":
                spoil(subs)
            cpu: dict[str, list[float]] = {name: [] for name in names}
            rows = {}
            for _ in range(args.repeat):
                for name in names:
                    report, seconds = stacked(subs, out, name)
                    cpu[name].append(seconds)
                    if name in rows:
                        continue
                    image = np.asarray(fits.getdata(out), dtype=np.float32)
                    image = np.moveaxis(image, 0, 2) if image.ndim == 3 else image
                    figures = compare_with_truth(image, truth, reference_name=Path(str(report["reference"])).name)
                    rows[name] = [
                        f"{sum(bool(row['used']) for row in report['frames'])} of {args.frames}",
                        f"{np.mean(figures['sky_noise_adu']):.2f}",
                        f"{figures['fwhm_over_truth_mean']:.3f}",
                        f"{100 * float(np.mean(figures['photometric_error'])):+.2f}",
                        f"{100 * figures['photometric_scatter']:.2f}",
                        f"{figures['trail_residual_sigma']:.1f}",
                        f"{out.stat().st_size / 1e6:.0f}",
                    ]
            print(f"\n{session}: {args.frames} frames of {height} x {width}, GRBG\n")
            print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
            for name in names:
                print(f"| {name} | {min(cpu[name]):.1f} | " + " | ".join(rows[name]) + " |", flush=True)


if __name__ == "__main__":
    main()
