"""The whole job on 2, 4, 8, 16 cores, with the card and without: seconds and cores of each stage, and their law.

``python benchmarks/bench_cores.py [--subs 2000] [--cores 2 4 8 16] [--gpu]`` on Linux; files lie in ``/dev/shm``. Subs
are variants of simulated ones, shifted by whole cells of the mosaic and with noise of their own: none is a copy. Every
run is a process of its own that may use so many cores and no more. ``--counts`` measures other numbers of subs on
all cores. Results: ``benchmarks/results/cores.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SIMULATED = 48
STAGES = ("open", "calibrate", "measure", "register", "stack", "finish", "write")


def make_variant(k: int, made: list[Path], folder: Path) -> None:
    """Write sub ``k``: a simulated one, shifted by up to 8 cells, with noise of 3 ADU, 10 s after the one before."""
    rng = np.random.default_rng(k)
    with fits.open(made[k % len(made)]) as file:
        pixels, header = file[0].data, file[0].header
        rows, columns = (int(2 * cells) for cells in rng.integers(-8, 9, 2))
        noise = rng.integers(-5, 6, 1 << 16, dtype=np.int16)
        changed = np.roll(pixels, (rows, columns), (0, 1)).astype(np.int32)
        changed += np.resize(np.roll(noise, int(rng.integers(1 << 16))), changed.shape)
        header["DATE-OBS"] = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=10 * k)).isoformat()[:19]
        if "CRPIX1" in header:
            header["CRPIX1"] += columns
            header["CRPIX2"] += rows
        fits.writeto(folder / f"sub_{k:06d}.fits", changed.clip(0, 65535).astype(np.uint16), header)


def make_subs(count: int, folder: Path, shape: tuple[int, int]) -> None:
    """Write so many subs, by all cores."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        spec = SimulationSpec(n_frames=min(SIMULATED, count), height=shape[0], width=shape[1])
        simulate(spec, name)
        made = sorted(Path(name).glob("*.fits"))
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(make_variant, made=made, folder=folder), range(count), chunksize=8))


def run(subs: Path, cores: int, device: str, count: int) -> dict[str, object]:
    """Stack the first ``count`` subs in a process of its own that may use so many cores; returns its report."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    report, out = subs.parent / "report.json", subs.parent / "out.fits"
    chosen = subs.parent / "chosen"
    chosen.mkdir()
    for path in sorted(subs.glob("*.fits"))[:count]:
        os.link(path, chosen / path.name)
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", str(chosen), "-o", str(out), "--device", device]
    command += ["--preview", "none", "--json", str(report), "--overwrite", "--quiet", "--no-resume"]
    began = time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, allowed)
    )
    wall = time.perf_counter() - began
    for path in chosen.iterdir():
        path.unlink()
    chosen.rmdir()
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {**json.loads(report.read_text()), "wall": wall}


def row(name: str, cores: int, count: int, found: dict[str, object]) -> str:
    """One row of the table: wall seconds of each stage, and the cores it kept busy."""
    seconds, cpu = found["seconds"], found.get("cpu_seconds", {})
    cells = [f"{seconds.get(s, 0.0):.2f} ({cpu.get(s, 0.0) / max(seconds.get(s, 0.0), 1e-9):.1f})" for s in STAGES]
    peak = found["peak_rss_bytes"] / 1e9
    used = f"{found['n_used']}/{found['n_input']}"
    return f"| {name} | {cores} | {count} | {used} | {found['wall']:.1f} | {' | '.join(cells)} | {peak:.2f} |"


def law(cores: list[int], seconds: list[float]) -> str:
    """Fit ``a + b / cores`` and say it."""
    b, a = np.polyfit(1.0 / np.array(cores, float), seconds, 1)
    return f"{a:.2f} + {b:.1f} / cores"


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subs", type=int, default=2000)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--counts", type=int, nargs="*", default=[])
    parser.add_argument("--gpu", action="store_true", help="measure with the card too")
    args = parser.parse_args()
    devices = ["gpu", "cpu"] if args.gpu else ["cpu"]
    there = len(os.sched_getaffinity(0))
    print(f"{there} cores ({platform.machine()}), Python {platform.python_version()}, {args.height}x{args.width}\n")
    print(f"| device | cores | subs | used | wall s | {' | '.join(STAGES)} | peak GB |")
    print("|---" * (6 + len(STAGES)) + "|")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        subs = Path(name) / "subs"
        subs.mkdir()
        make_subs(max([args.subs, *args.counts]), subs, (args.height, args.width))
        run(subs, there, devices[0], min(20, args.subs))  # kernels
        laws = []
        for device in devices:
            found = {}
            for cores in [c for c in args.cores if c <= there]:
                found[cores] = run(subs, cores, device, args.subs)
                print(row(device, cores, args.subs, found[cores]), flush=True)
            if len(found) > 1:
                for stage in (*STAGES[2:5], "wall"):
                    each = [f["wall"] if stage == "wall" else f["seconds"].get(stage, 0.0) for f in found.values()]
                    laws.append(f"{device}, {stage}: {law(list(found), each)} s")
            for count in args.counts:
                print(row(device, there, count, run(subs, there, device, count)), flush=True)
        print("\n" + "\n".join(laws))


if __name__ == "__main__":
    main()
