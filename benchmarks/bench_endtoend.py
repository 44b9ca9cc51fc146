"""Time the whole way from raw Bayer subs to a finished image: ours against Siril's script and seiza, in turns.

Run ``python benchmarks/bench_endtoend.py [--frames 40,120] [--repeat N] [--seiza PYTHON]``; needs siril-cli for its
rows, and for seiza's the interpreter of an environment with it (``pip install seiza``). Every run is a
process of its own on warm files; peak memory is the largest resident set of its process, from wait4. Kernels are
compiled beforehand, as they are after a first run.
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
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

ROOT = Path(__file__).resolve().parents[1]
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


@dataclass
class Run:
    """One process: wall and CPU seconds, peak resident MB, MB written besides the result, seconds per stage."""

    wall: float
    cpu: float
    peak: float
    written: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def measured(command: list[str], folder: Path) -> Run:
    """Run a process to its end; raises where it fails."""
    log = (folder / "log.txt").open("w")
    start = time.perf_counter()
    as_installed = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=as_installed)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    log.close()
    if status != 0:
        raise RuntimeError(f"{command[0]} failed: {(folder / 'log.txt').read_text()[-500:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024.0)


def ours(raw: Path, folder: Path) -> Run:
    """``zemosaic-phase3 stack`` with its defaults, without a picture, and without what an earlier run measured."""
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", str(raw), "-o", "out.fits", "--device", "cpu"]
    command += ["--preview", "none", "--json", "report.json", "--overwrite", "--quiet", "--fresh"]
    run = measured(command, folder)
    run.stages = json.loads((folder / "report.json").read_text())["seconds"]
    return run


def siril(raw: Path, folder: Path) -> Run:
    """Siril's convert, debayer, register and stack."""
    work = folder / "siril"
    (work / "raw").mkdir(parents=True)
    for path in sorted(raw.glob("*.fits")):
        os.link(path, work / "raw" / path.name)
    (work / "go.ssf").write_text(SCRIPT, encoding="ascii")
    run = measured([str(SIRIL), "-d", str(work), "-s", str(work / "go.ssf")], work)
    run.written = sum(path.stat().st_size for path in (work / "process").iterdir() if not path.is_symlink()) / 2**20
    shutil.rmtree(work)
    return run


def seiza(raw: Path, folder: Path, python: str) -> Run:
    """seiza's stack with its defaults."""
    code = "import sys, seiza; seiza.stack_fits(sorted(sys.argv[2:]), sys.argv[1])"
    return measured([python, "-c", code, "seiza.fits", *map(str, sorted(raw.glob("*.fits")))], folder)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", default="40,120")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seiza", metavar="PYTHON", help="interpreter that can import seiza")
    args = parser.parse_args()
    out = sys.stdout.write
    out(
        f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}; raw GRBG of 1080 x 1920\n\n"
    )
    out(
        "| subs | who | wall s, median (each) | CPU s | peak MB | written besides the result, MB |\n"
        "|---|---|---|---|---|---|\n"
    )
    stages: dict[int, dict[str, float]] = {}
    for count in map(int, args.frames.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            simulate(SimulationSpec(n_frames=count, seed=7), folder / "subs")
            ours(folder / "subs", folder)  # compiles, and warms the files
            runs: dict[str, list[Run]] = {"ours": [], "Siril": [], "seiza": []}
            for _ in range(args.repeat):
                runs["ours"].append(ours(folder / "subs", folder))
                if SIRIL:
                    runs["Siril"].append(siril(folder / "subs", folder))
                if args.seiza:
                    runs["seiza"].append(seiza(folder / "subs", folder, args.seiza))
        for who, each in runs.items():
            if not each:
                continue
            middle = sorted(each, key=lambda run: run.wall)[len(each) // 2]
            out(
                f"| {count} | {who} | {middle.wall:.1f} ({', '.join(f'{run.wall:.1f}' for run in each)}) | "
                f"{middle.cpu:.1f} | {middle.peak:.0f} | {middle.written:.0f} |\n"
            )
            if middle.stages:
                stages[count] = middle.stages
        sys.stdout.flush()
    names = list(next(iter(stages.values())))
    out("\nOurs, wall s per stage:\n\n| subs | " + " | ".join(names) + " |\n|---|" + "---|" * len(names) + "\n")
    for count, seconds in stages.items():
        out(f"| {count} | " + " | ".join(f"{seconds.get(name, 0.0):.2f}" for name in names) + " |\n")


if __name__ == "__main__":
    main()
