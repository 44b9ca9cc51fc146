"""What tiles cost, one worker against several, and what follows for a million subs: `python benchmarks/bench_scale.py`.

Simulated raw subs, all in a few tiles of equal size. Each number of workers makes all tiles anew, each worker with one
thread, so that the time of n workers against one is what processes gain. Constants (CPU seconds a megapixel, bytes read
a byte of a frame, bytes of a tile and of a record, seconds to plan a frame) come from the records of the tiles; the
table of a million subs is their product. ``--gpus`` compares one card with all of them instead.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from zemosaic_phase3 import __version__
from zemosaic_phase3.cluster.grouping import GroupingSpec, plan_tiles
from zemosaic_phase3.cluster.order import TileOptions, TileRecord, prepare_folder
from zemosaic_phase3.cluster.pool import cards_of, local_pool, plan_pool
from zemosaic_phase3.cluster.run import TilesResult, TilesRun, orders_of
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.pipeline.input_list import list_inputs
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

WORKERS = (1, 10, 100, 1000)
SUB = (1080, 1920)  # pixels of the million
PER_TILE = 1000
STORAGE = 1e9  # bytes/s that a shared folder gives all workers together, an assumption


@dataclass(frozen=True)
class Constants:
    """What was measured."""

    cpu_s_per_mpx: float  # CPU seconds for a megapixel of a frame, everything included
    read_per_byte: float  # bytes read for a byte of a frame, from the disk or from memory that holds files
    tile_bytes_per_px: float
    record_bytes: int
    peak_bytes: int
    plan_s_per_frame: float
    frame_bytes_per_px: float


def planning_seconds(folder: Path, n: int = 1000) -> float:
    """Return the CPU seconds that planning takes for each of n small frames, without what is done once."""
    simulate(SimulationSpec(n_frames=n, height=64, width=64, n_stars=3, bayer="none", seed=4), folder)
    spent = []
    for files in (sorted(folder.glob("*.fit*"))[: n // 10], sorted(folder.glob("*.fit*"))):
        began = time.process_time()
        plan_tiles(list_inputs(files, None), GroupingSpec(by=("exposure",), spread=5.0))
        spent.append(time.process_time() - began)
    return (spent[1] - spent[0]) / (n - n // 10)


def one_run(plan: TilePlan, folder: Path, n: int, cards: tuple[str, ...], memory: int) -> TilesResult:
    """Make all tiles with n workers."""
    options = TileOptions(
        memory=memory // max(n, 1), threads=1 if not cards else None, device="gpu" if cards else "cpu", resume=False
    )
    pool = plan_pool(len(plan.tiles), workers=n, memory=memory, cards=cards)
    with local_pool(pool) as client:
        client.wait_for_workers(n)
        orders = orders_of(plan, prepare_folder(folder), options, n_workers=n, per_host=n)
        result = TilesRun(client, orders).run()
    assert not result.failed, result.failed[0].reason
    return result


def constants(records: list[TileRecord], folder: Path, frames: list[Path], plan_s: float, pixels: int) -> Constants:
    """Take the constants from the records of the tiles that one worker made, but for the first, which may compile."""
    some = records[1:] or records
    size = statistics.mean(path.stat().st_size for path in frames)
    mpx = statistics.mean(record.n_frames for record in some) * pixels / 1e6
    record_bytes = statistics.mean(path.stat().st_size for path in (folder / ".tiles").glob("*.json"))
    return Constants(
        statistics.mean(record.cpu_seconds for record in some) / mpx,
        statistics.mean((record.read_bytes - 2 * record.size) / record.n_frames for record in some) / size,
        statistics.mean(record.size for record in some) / pixels, int(record_bytes),
        max(record.peak_bytes for record in records), plan_s, size / pixels,
    )  # fmt: skip


def million(c: Constants) -> list[str]:
    """Return the table of a million subs by formula."""
    n, pixels = 1_000_000, SUB[0] * SUB[1]
    read = n * pixels * c.frame_bytes_per_px * c.read_per_byte
    written = n / PER_TILE * pixels * c.tile_bytes_per_px
    cpu = n * pixels / 1e6 * c.cpu_s_per_mpx
    lines = [
        "| workers (1 core each) | CPU-bound, h | reading at 1 GB/s for all, h | time, h | read, TB | written, TB | "
        "through the scheduler, MB | memory of all, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for w in WORKERS:
        by_cpu, by_disk = cpu / w / 3600, read / STORAGE / 3600
        lines.append(
            f"| {w} | {by_cpu:.3g} | {by_disk:.3g} | {max(by_cpu, by_disk):.3g} | {read / 1e12:.3g} | "
            f"{written / 1e12:.3g} | {n / PER_TILE * (c.record_bytes + PER_TILE * 100) / 1e6:.3g} | "
            f"{w * c.peak_bytes / 1e9:.3g} |"
        )
    stops = cpu / (read / STORAGE)
    lines += ["", f"Reading is the limit from {stops:.0f} workers on; tiles of {PER_TILE} subs are, from "
              f"{n // PER_TILE} workers on. Planning takes {n * c.plan_s_per_frame / 60:.0f} minutes."]  # fmt: skip
    return lines


def main() -> int:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--frames", type=int, default=12, help="of a tile")
    parser.add_argument("--size", default="540x960")
    parser.add_argument("--workers", default="1,2", help="numbers to compare, the first is the measure")
    parser.add_argument("--gpus", help="all or N: compare one card with so many")
    parser.add_argument("--repeat", type=int, default=1, help="of all numbers of workers in turn; the best counts")
    parser.add_argument("--memory", type=float, default=8.0, help="of all workers, GB")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    height, width = map(int, args.size.split("x"))
    cards = cards_of(args.gpus) if args.gpus else ()
    numbers = [1, len(cards)] if cards else [int(text) for text in args.workers.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(SimulationSpec(n_frames=args.frames, height=height, width=width, seed=3), folder / "subs")
        frames = sorted((folder / "subs").glob("*.fit*"))
        plan_s = planning_seconds(folder / "plan")
        tiles = []
        for k in range(args.tiles):  # each tile has files of its own: nothing is in memory by another's merit
            own = folder / f"subs{k}"
            shutil.copytree(folder / "subs", own)
            paths = tuple(map(str, sorted(own.glob("*.fit*"))))
            tiles.append(PlannedTile(f"t{k}", paths, height=height, width=width))
        plan = TilePlan(tuple(tiles))
        one_run(TilePlan(plan.tiles[:1]), folder / "warm", 1, cards[:1], int(args.memory * 1e9))
        best: dict[int, float] = {}
        pixels: dict[int, list[str]] = {}
        for _ in range(args.repeat):
            for n in numbers:
                out = folder / f"out{n}"
                shutil.rmtree(out, ignore_errors=True)
                result = one_run(plan, out, n, cards[:n] if cards else (), int(args.memory * 1e9))
                best[n] = min(best.get(n, float("inf")), result.seconds)
                pixels[n] = [record.pixels for record in result.records]
                if n == numbers[0]:
                    measured = constants(result.records, out, frames, plan_s, height * width)
        assert all(found == pixels[numbers[0]] for found in pixels.values()), "bits differ"
    command = " ".join(["python benchmarks/bench_scale.py", *sys.argv[1:]])
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("distributed", "numpy", "numba"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    what = "cards" if cards else "processes"
    lines = [
        "# Tiles over workers", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`: {args.tiles} tiles of {args.frames} raw subs of "
        f"{height}x{width}; {platform.system()}, {os.cpu_count()} cores, load {load:.1f} at the end, zemosaic-phase3 "
        f"{__version__}, python {platform.python_version()}, {versions}", "",
        f"| {what} | seconds | times {numbers[0]} | bits |", "|---|---|---|---|",
        *[f"| {n} | {best[n]:.1f} | {best[numbers[0]] / best[n]:.2f} | same |" for n in numbers], "",
        "| constant | value |", "|---|---|",
        *[f"| {key} | {value:.4g} |" for key, value in asdict(measured).items()], "",
        f"One million subs of {SUB[0]}x{SUB[1]} in tiles of {PER_TILE}, by these constants:", "",
        *million(measured),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
