"""The race against Siril: rejection and combination of registered frames, whole process and in memory.

Run ``python benchmarks/bench_combine.py [--frames 50 200]``; needs ``siril-cli`` on the path (apt-get install siril)
and, for 200 frames, 3 GB in the temporary folder and 6 GB of memory. The same seeded noise with hits is written as
16-bit FITS and kept in memory. Siril on the files, ours on the files and ours in memory take turns, so that other work
on the machine hits all three; the first turn is not counted (it compiles, and the files come into the system's cache).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits

from zemosaic_phase3.app import bench
from zemosaic_phase3.app.doctor import versions
from zemosaic_phase3.runtime import limits

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "combine.md"
OURS = "--register none --normalize none --weight none --preview none --device cpu --overwrite --quiet --workers {}"
SIRIL = shutil.which("siril-cli")
MIB = 1 << 20


@dataclass(frozen=True)
class Race:
    """One method in both programs' words; ``method`` is the name in ``zemosaic-phase3 bench``."""

    method: str
    siril: str
    ours: str


WINSORIZED = "--reject winsorized_sigma_clip --wsc-impl pixinsight --kappa-low 3 --kappa-high 3"
RACES = (
    Race("mean", "rej n -nonorm", "--reject none"),
    Race("median", "med -nonorm", "--reject none --combine median"),
    Race("sigma_clip", "rej s 3 3 -nonorm", "--reject sigma_clip --kappa-low 3 --kappa-high 3"),
    Race("winsorized:pixinsight", "rej w 3 3 -nonorm", WINSORIZED),
    Race("linear_fit:ols", "rej l 5 2.5 -nonorm", "--reject linear_fit_clip --line-fit ols"),
    Race("linear_fit:lad", "rej l 5 2.5 -nonorm", "--reject linear_fit_clip --line-fit lad"),
)


@dataclass
class Runs:
    """What the turns of one competitor took: wall seconds, CPU seconds, and the highest peak, bytes."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def seconds(self) -> float:
        return statistics.median(self.wall)


# A process starts with the peak memory of the one it was forked from, and this one holds the frames.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps([status, seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss]))
"""


def process(command: list[str], runs: Runs) -> None:
    """Run a command to its end and note what it took."""
    said = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},  # as installed
        check=True,
        capture_output=True,
        text=True,
    )
    status, wall, cpu, peak = json.loads(said.stdout)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.stderr[-2000:]}")
    runs.wall.append(wall)
    runs.cpu.append(cpu)
    runs.peak = max(runs.peak, peak)


def in_memory(combine: Callable[[], object], runs: Runs) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    combine()
    runs.wall.append(time.perf_counter() - start)
    runs.cpu.append(time.process_time() - cpu)


def limit_of(whole: float, memory: float, share_of_read: float) -> str:
    """Say what most of our process's time goes into."""
    if memory < 0.5 * whole:
        return "start, reading"
    return "memory" if share_of_read >= bench.MEMORY_SHARE else "compute"


def run_race(race: Race, spec: bench.BenchSpec, cube: np.ndarray, frames: Path, work: Path, bandwidth: float) -> str:
    """Return one row of the table."""
    load = os.getloadavg()[0]
    script = work / "go.ssf"
    lines = ("requires 1.0.0", "set32bits", f"setcpu {spec.threads}", f"stack s_ {race.siril} -out={work / 'siril'}")
    script.write_text("\n".join(lines) + "\n", encoding="ascii")
    result = work / "ours.fits"
    options = f"{OURS.format(spec.threads)} {race.ours}".split()
    commands = (
        [str(SIRIL), "-d", str(frames), "-s", str(script)],
        [sys.executable, "-m", "zemosaic_phase3", "stack", str(frames), "-o", str(result), *options],
    )
    stack = bench.methods()[race.method]
    combine = bench.combiner(bench.array_job(cube, stack), cube, spec.threads)
    siril, whole, memory = Runs(), Runs(), Runs()
    for turn in range(spec.repeat + 1):
        if turn == 1:
            siril, whole, memory = Runs(), Runs(), Runs()
        process(commands[0], siril)
        process(commands[1], whole)
        in_memory(combine, memory)
    planes = np.moveaxis(combine(), -1, 0) if cube.ndim == 4 else combine()
    same = np.array_equal(fits.getdata(result), planes)
    assert same, f"{race.method}: from files and in memory differ"
    theirs = fits.getdata(work / "siril.fit").astype(np.float64) * 65535.0
    apart = np.median(np.abs(theirs - planes))
    cells = [
        f"{spec.frames}",
        race.method,
        f"`{race.siril.removesuffix(' -nonorm')}`",
        f"{siril.seconds:.2f}",
        f"{whole.seconds:.2f}",
        f"{siril.seconds / whole.seconds:.2f}",
        f"{memory.seconds:.3f}",
        f"{siril.seconds / memory.seconds:.1f}",
        f"{1e9 * statistics.median(memory.cpu) / spec.n_samples:.2f}",
        f"{100 * 4 * spec.n_samples / memory.seconds / bandwidth:.0f}",
        f"{statistics.median(siril.cpu):.1f} / {statistics.median(whole.cpu):.1f}",
        f"{siril.peak / MIB:.0f} / {whole.peak / MIB:.0f}",
        f"{apart:.2g}",
        limit_of(whole.seconds, memory.seconds, 4 * spec.n_samples / memory.seconds / bandwidth),
        f"{load:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "N", "method", "Siril", "Siril, s", "ours, s", "ratio", "in memory, s", "ratio", "CPU ns/sample", "% of read",
    "CPU s, Siril / ours", "peak MiB, Siril / ours", "apart, ADU", "limit", "load",
)  # fmt: skip
LEGEND = """\
*Siril*, *ours*: whole processes, start to exit, from the same 16-bit FITS files, which the system holds in memory.
*In memory*: our rejection and combination alone, of float32 samples ready in memory. Both ratios are of Siril's whole
process: above 1 we are faster. *CPU ns/sample* and *% of read* (of the read bandwidth of memory by all workers, in the
same run) belong to the figures in memory. *Apart*: median absolute difference of the two programs' results; their
definitions of the linear fit differ. *Limit*: where most of our process's time goes, its start and reading the files,
arithmetic, or reading memory. *Load*: load average before the race. Our results from files and in memory are checked
to be equal to the bit.
"""


def heading(options: argparse.Namespace, bandwidths: dict[int, float]) -> str:
    said = subprocess.run([str(SIRIL), "--version"], capture_output=True, text=True, check=True).stdout
    command = f"python benchmarks/bench_combine.py --frames {' '.join(map(str, options.frames))}"
    if options.methods is not None:
        command += f" --methods {' '.join(options.methods)}"
    known = versions()
    ours = ", ".join(f"{name} {known[name]}" for name in ("zemosaic-phase3", "python", "numpy", "numba", "astropy"))
    reads = ", ".join(f"{rate / 1e9:.1f} GB/s (N = {frames})" for frames, rate in bandwidths.items())
    height, width = options.size
    return "\n".join(
        (
            "# Rejection and combination against Siril",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `{command}`: N frames of {height} x {width} x 3, medians of "
            f"{options.repeat}, on a machine shared with other work: compare columns of a row, not bare seconds.",
            "",
            f"{options.workers} CPUs ({bench.cpu_model()}), {said.strip()}, {ours}; memory read: {reads}",
            "",
        )
    )


def size(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def main() -> None:
    """Race, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 200], metavar="N")
    parser.add_argument("--size", type=size, default=(1080, 1920), metavar="HxW", help="default: 1080x1920")
    parser.add_argument("--methods", nargs="+", choices=[race.method for race in RACES], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=3, metavar="K")
    parser.add_argument("--workers", type=int, default=limits.usable_cpus(), metavar="N", help="of Siril and in memory")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for the frames (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    if SIRIL is None:
        raise SystemExit("siril-cli is not installed (apt-get install siril)")
    rows: list[str] = []
    bandwidths: dict[int, float] = {}
    for n_frames in options.frames:
        height, width = options.size
        spec = bench.BenchSpec(
            frames=n_frames, height=height, width=width, repeat=options.repeat, workers=options.workers
        )
        cube = bench.synthetic_stack(spec)
        bandwidths[n_frames] = bandwidth = bench.read_bandwidth(cube, spec.threads, spec.repeat)
        with tempfile.TemporaryDirectory(prefix="bench-combine-", dir=options.folder) as folder:
            frames, work = Path(folder, "frames"), Path(folder, "work")
            frames.mkdir()
            work.mkdir()
            bench.write_stack(cube, frames, spec.threads)
            for race in RACES:
                if options.methods is None or race.method in options.methods:
                    rows.append(run_race(race, spec, cube, frames, work, bandwidth))
                    print(rows[-1], flush=True)
        del cube
    table = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *rows]
    text = "\n".join([heading(options, bandwidths), *table, "", LEGEND])
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
