"""What a user waits for before anything is stacked: importing, compiling, the first and the second run.

Run ``python benchmarks/bench_start.py``. Ten small raw frames are simulated and stacked with the default options, with
an empty folder for compiled kernels and then with what the first run left there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_combine import Runs, process

from zemosaic_phase3.app import bench
from zemosaic_phase3.app.doctor import versions
from zemosaic_phase3.runtime import limits

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "start.md"
MIB = 1 << 20


def seconds_to_import(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))


def main() -> None:
    """Measure, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10, metavar="N")
    parser.add_argument("--size", default="480x640", metavar="HxW")
    parser.add_argument("--repeat", type=int, default=3, metavar="K")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    imports, cold, warm = [], Runs(), Runs()
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        frames, result = Path(folder, "frames"), Path(folder, "master.fits")
        zemosaic = [sys.executable, "-m", "zemosaic_phase3"]
        simulate = ["simulate", str(frames), "--frames", str(options.frames), "--size", options.size, "--quiet"]
        process([*zemosaic, *simulate], Runs())
        for turn in range(options.repeat):
            os.environ["NUMBA_CACHE_DIR"] = str(Path(folder, f"kernels_{turn}"))
            imports.append(seconds_to_import("zemosaic_worker"))
            for runs in (cold, warm):
                process([*zemosaic, "stack", str(frames), "-o", str(result), "--overwrite", "--quiet"], runs)
                time.sleep(0.5)  # a child that compiles has ended by then
    known = versions()
    ours = ", ".join(f"{name} {known[name]}" for name in ("zemosaic-phase3", "python", "numpy", "numba", "astropy"))
    lines = [
        "# Waiting for the first result",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `python benchmarks/bench_start.py`: {options.frames} raw frames of "
        f"{options.size}, default options, medians of {options.repeat}; {limits.usable_cpus()} CPUs "
        f"({bench.cpu_model()}), load average before {load:.1f}; {ours}",
        "",
        "| | wall, s | CPU, s | peak, MiB |",
        "|---|---|---|---|",
        f"| `import zemosaic_worker` | {statistics.median(imports):.2f} | | |",
        *(
            f"| {name} | {runs.seconds:.2f} | {statistics.median(runs.cpu):.2f} | {runs.peak / MIB:.0f} |"
            for name, runs in (("first `stack`, nothing compiled", cold), ("second `stack`", warm))
        ),
        "",
    ]
    text = "\n".join(lines)
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
