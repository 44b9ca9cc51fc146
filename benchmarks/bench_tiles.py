"""Make many tiles of many frames in threads, as a ZeMosaic run does, and watch memory, callbacks and the GPU's state.

Run ``python benchmarks/bench_tiles.py [--tiles 12] [--frames 1000] [--threads 4] [--folder DIR]``. Frames of
240 x 320 x 3 float32 are written once (1,000 are 0.9 GB) and shared by all tiles, each of which starts with another
one. Every row is a process of its own, so that its peak memory is its own; one that hangs ends with the stacks of its
threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

import zemosaic_worker as worker
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SHAPE = (240, 320)
HANGS_AFTER_S = 1800
MODES = ("cpu", "gpu stands in", "gpu fails at tile 5")


def make_frames(folder: Path, count: int) -> None:
    """Simulated frames as the caches that ZeMosaic's first phase leaves."""
    spec = SimulationSpec(n_frames=count, height=SHAPE[0], width=SHAPE[1], n_stars=120, bayer="rgb", rotation_deg=3.0)
    for name in simulate(spec, folder / "raw").names:
        with fits.open(folder / "raw" / name) as hdus:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(np.moveaxis(hdus[0].data, 0, -1), dtype=np.float32))
            (folder / f"{name}.header").write_text(hdus[0].header.tostring("\n"))
        (folder / "raw" / name).unlink()


def entries(folder: Path) -> list[dict[str, Any]]:
    """Group entries of all frames."""
    found = []
    for cache in sorted(folder.glob("*.npy")):
        header = fits.Header.fromstring(cache.with_suffix(".header").read_text(), "\n")
        found.append(
            {
                "path_raw": cache.stem,
                "path_preprocessed_cache": str(cache),
                "wcs": WCS(header, naxis=2),
                "header": header,
            }
        )
    return found


def stand_in_gpu(fails_at: int | None) -> None:
    """Let the CPU engine play the GPU's part, so that the policy runs as with a device."""
    from zemosaic_phase3.compat.stack_cpu import stack_descriptors

    def stack(descriptors: Any, params: Any, **keywords: Any) -> Any:
        if keywords.get("tile_id") == fails_at:
            raise worker._P3GPUStackingError("injected")
        return stack_descriptors(descriptors, params, **keywords)

    worker._P3_GPU_HELPERS_AVAILABLE = True
    worker._p3_gpu_is_usable = lambda _logger=None: True
    worker._p3_gpu_stack_from_paths = stack


def run(folder: Path, tiles: int, threads: int, mode: str) -> dict[str, Any]:
    """One run of all tiles; its figures."""
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    if mode != "cpu":
        stand_in_gpu(5 if "fails" in mode else None)
    group = entries(folder)
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def listen(key: str, _second: Any, third: Any, **_details: Any) -> None:
        with lock:
            told[key if isinstance(third, int) else "events"] += 1

    def one(tile: int) -> str | None:
        turned = group[tile * 7 :] + group[: tile * 7]
        (path, _), _ = worker.create_master_tile(
            turned, tile, folder / "tiles", "linear_fit", "noise_variance", "winsorized_sigma_clip", 3.0, 3.0,
            (0.05, 0.05), "mean", progress_callback=listen,
            parallel_plan=SimpleNamespace(cpu_workers=1, use_gpu=mode != "cpu"),
        )  # fmt: skip
        return path

    one(tiles)  # compiles, and is not counted
    told.clear()
    worker.reset_phase3_gpu_state()
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        paths = list(pool.map(one, range(tiles)))
    headers = [fits.getheader(path) for path in paths if path]
    state = worker._P3_GPU_STATE
    return {
        "mode": mode,
        "made": len(headers),
        "stacked": sum(header["MT_NFRAMES"] for header in headers),
        "devices": dict(Counter(header["ZMT_DEV"] for header in headers)),
        "wall": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "told": dict(told),
        "state": "off after failures" if state["hard_disabled"] else "on" if state["healthy"] else "not asked",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(run(args.folder, args.tiles, args.threads, args.mode)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        make_frames(folder, args.frames)
        cube = args.frames * SHAPE[0] * SHAPE[1] * 12 / 2**20
        print(
            f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, numpy {np.__version__}"
        )
        print(f"{args.tiles} tiles of {args.frames} frames ({cube:.0f} MiB each), {args.threads} threads\n")
        head = (
            "run",
            "tiles",
            "frames stacked",
            "devices",
            "wall, s",
            "CPU, s",
            "peak RSS, MiB",
            "measured / registered",
        )
        print("|", " | ".join([*head, "GPU"]), "|")
        print("|---|---|---|---|---|---|---|---|---|")
        for mode in MODES:
            options = [
                "--tiles",
                str(args.tiles),
                "--threads",
                str(args.threads),
                "--folder",
                str(folder),
                "--mode",
                mode,
            ]
            done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
            got = json.loads(done.stdout)
            devices = ", ".join(f"{count} {name}" for name, count in sorted(got["devices"].items()))
            print(
                f"| {mode} | {got['made']} | {got['stacked']} | {devices} | {got['wall']:.1f} | {got['cpu']:.1f} | "
                f"{got['peak']:.0f} | {got['told']['measure']} / {got['told']['register']} | {got['state']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
