"""What tiles cost, one worker against several, and what follows for a million subs: `python benchmarks/bench_scale.py`.

Simulated raw subs, all in a few tiles of equal size. Each way (``--ways 1x1,2x1,1x2``: workers x threads of each) makes
all tiles anew, in turns. 2x1 against 1x1 is what a second process gains, 2x1 against 1x2 whether it gains more than a
second thread of one process. Beside each turn two processes add numbers and nothing else, with files, memory and Dask
left out: no tile gains more than they do, and on a busy machine they gain little. Workers make a small tile before the
clock runs, so that imports and kernels count once, as ``start``. Constants (CPU seconds a megapixel, bytes read a byte
of a frame, bytes of a tile and of a record, seconds to plan a frame) come from the records of the first way; the
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

from zemosaic_phase3 import __version__
from zemosaic_phase3.cluster.grouping import GroupingSpec, plan_tiles
from zemosaic_phase3.cluster.order import TileOptions, TileRecord, prepare_folder
from zemosaic_phase3.cluster.pool import cards_of, local_pool, plan_pool
from zemosaic_phase3.cluster.run import TilesResult, TilesRun, orders_of
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.cluster.worker import make_tile
from zemosaic_phase3.pipeline.input_list import list_inputs
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

WORKERS = (1, 10, 100, 1000)
SUB = (1080, 1920)  # pixels of the million
PER_TILE = 1000
STORAGE = 1e9  # bytes/s that a shared folder gives all workers together, an assumption


@dataclass(frozen=True)
class Constants:
    """What was measured; of tiles, the part that grows with their frames and the part that does not."""

    cpu_s_per_mpx: float  # CPU seconds for a megapixel of one more frame
    tile_cpu_s_per_mpx: float  # for a megapixel of a tile, however many frames it has
    read_per_byte: float  # bytes read for a byte of a frame, from the disk or from memory that holds files
    tile_bytes_per_px: float
    record_bytes: int
    peak_bytes: int
    start_cpu_s: float  # of a worker: imports, kernels loaded
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


@dataclass(frozen=True)
class Way:
    """So many workers with so many threads each."""

    workers: int
    threads: int

    @classmethod
    def of(cls, text: str) -> Way:
        """Read "2x1"."""
        workers, _, threads = text.partition("x")
        return cls(int(workers), int(threads or 1))

    def __str__(self) -> str:
        """Return it as it is read."""
        return f"{self.workers}x{self.threads}"


@dataclass(frozen=True)
class Turn:
    """One run of all tiles."""

    start_s: float  # of the workers, with a small tile each
    seconds: float
    cpu_s: float  # of all tiles
    own_cpu_s: float  # of the process that orders them
    small: tuple[TileRecord, TileRecord]  # the small tile of one worker, made twice
    result: TilesResult


def one_run(plan: TilePlan, small: TilePlan, folder: Path, way: Way, cards: tuple[str, ...], memory: int) -> Turn:
    """Make all tiles in one way."""
    n = way.workers
    options = TileOptions(
        memory=memory // n, threads=way.threads if not cards else None, device="gpu" if cards else "cpu", resume=False
    )
    began = time.perf_counter()
    with local_pool(plan_pool(max(n, len(plan.tiles)), workers=n, memory=memory, cards=cards)) as client:
        client.wait_for_workers(n)
        for k, address in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
            there, again = prepare_folder(folder / f"small{k}"), replace(options, fresh=True)
            order = orders_of(small, there, again, n_workers=1, per_host=n)[0]
            first = client.submit(make_tile, order, workers=[address], pure=False).result()
            assert first.state == "made", first.reason
        start_s = time.perf_counter() - began
        second = client.submit(make_tile, order, workers=[address], pure=False).result()
        own = time.process_time()
        orders = orders_of(plan, prepare_folder(folder), options, n_workers=1, per_host=n)
        result = TilesRun(client, orders).run()
        own = time.process_time() - own
    assert not result.failed, result.failed[0].reason
    return Turn(
        start_s, result.seconds, sum(record.cpu_seconds for record in result.records), own, (first, second), result
    )


def adding(_: int) -> float:
    """Add numbers for about a second; returns the CPU seconds."""
    began, total = time.process_time(), 0
    for k in range(12_000_000):
        total += k & 7
    return time.process_time() - began


def gain_of_machine(n: int) -> float:
    """Return how many times faster n processes that only add are than one: what the machine gives just now."""
    with ProcessPoolExecutor(n) as pool:
        list(pool.map(abs, range(n)))  # starts them
        seconds = []
        for some in (1, n):
            began = time.perf_counter()
            list(pool.map(adding, range(some)))
            seconds.append(time.perf_counter() - began)
    return n * seconds[0] / seconds[1]


def constants(turn: Turn, folder: Path, frames: list[Path], plan_s: float, pixels: int) -> Constants:
    """Take the constants from what one worker made: large tiles, and a smaller one made twice."""
    large = turn.result.records
    first, small = turn.small
    size, mpx = statistics.mean(path.stat().st_size for path in frames), pixels / 1e6
    more = large[0].n_frames - small.n_frames
    slope = (statistics.median(record.cpu_seconds for record in large) - small.cpu_seconds) / more
    read = statistics.median(record.read_bytes for record in large) - small.read_bytes
    return Constants(
        slope / mpx, (small.cpu_seconds - slope * small.n_frames) / mpx, read / more / size,
        statistics.mean(record.size for record in large) / pixels,
        int(statistics.mean(path.stat().st_size for path in (folder / ".tiles").glob("*.json"))),
        max(record.peak_bytes for record in large), first.cpu_seconds - small.cpu_seconds, plan_s, size / pixels,
    )  # fmt: skip


def law(c: Constants, n: int) -> list[str]:
    """Return the table of n subs by formula; see docs/scale.md."""
    pixels, tiles = SUB[0] * SUB[1], n // PER_TILE
    read = n * pixels * c.frame_bytes_per_px * c.read_per_byte
    written = tiles * pixels * c.tile_bytes_per_px
    cpu = pixels / 1e6 * (n * c.cpu_s_per_mpx + tiles * c.tile_cpu_s_per_mpx)
    lines = [
        f"{n:,} subs of {SUB[0]}x{SUB[1]} in {tiles} tiles of {PER_TILE}, {read / 1e12:.3g} TB read, "
        f"{written / 1e12:.2g} TB written, planned in {n * c.plan_s_per_frame / 60:.1f} minutes:",
        "",
        "| workers (1 core each) | rounds of tiles | computing, h | reading at 1 GB/s for all, h | time, h | "
        "memory of all, GB |",
        "|---|---|---|---|---|---|",
    ]
    for w in WORKERS:
        rounds = -(-tiles // w)
        by_cpu, by_disk = cpu / tiles * rounds / 3600, read / STORAGE / 3600
        lines.append(
            f"| {w} | {rounds} | {by_cpu:.3g} | {by_disk:.3g} | {max(by_cpu, by_disk):.3g} | "
            f"{w * c.peak_bytes / 1e9:.3g} |"
        )
    stops = cpu / (read / STORAGE)
    lines += ["", f"Reading is the limit from {stops:.0f} workers on, {tiles} tiles are from {tiles} workers on."]
    return lines


def main() -> int:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--frames", type=int, default=40, help="of a tile")
    parser.add_argument("--size", default="540x960")
    parser.add_argument("--ways", default="1x1,2x1,1x2", help="workers x threads; the first is the measure")
    parser.add_argument("--gpus", help="all or N: compare one card with so many")
    parser.add_argument("--repeat", type=int, default=1, help="of all ways in turn; the median of their ratios counts")
    parser.add_argument("--memory", type=float, default=4.0, help="of all workers, GB")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    cards = cards_of(args.gpus) if args.gpus else ()
    ways = [Way(1, 1), Way(len(cards), 1)] if cards else [Way.of(text) for text in args.ways.split(",")]
    height, width = map(int, args.size.split("x"))
    most = max(way.workers * way.threads for way in ways)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(SimulationSpec(n_frames=args.frames, height=height, width=width, seed=3), folder / "subs")
        frames = sorted((folder / "subs").glob("*.fit*"))
        plan_s = planning_seconds(folder / "plan")
        tiles = []
        for k in range(args.tiles):  # each tile has files of its own: nothing is in memory by another's merit
            shutil.copytree(folder / "subs", folder / f"subs{k}")
            paths = tuple(map(str, sorted((folder / f"subs{k}").glob("*.fit*"))))
            tiles.append(PlannedTile(f"t{k}", paths, height=height, width=width))
        plan = TilePlan(tuple(tiles))
        small = TilePlan(
            (PlannedTile("small", tuple(map(str, frames[: max(6, args.frames // 4)])), height=height, width=width),)
        )
        turns: list[list[Turn]] = []
        gains = [gain_of_machine(most)]
        for _ in range(args.repeat):
            turns.append([])
            for way in ways:
                out = folder / f"out{way}"
                shutil.rmtree(out, ignore_errors=True)
                turns[-1].append(
                    one_run(plan, small, out, way, cards[: way.workers] if cards else (), int(args.memory * 1e9))
                )
                gains.append(gain_of_machine(most))
        pixels = [[record.pixels for record in turn.result.records] for some in turns for turn in some]
        assert all(found == pixels[0] for found in pixels), "bits differ"
        measured = constants(turns[-1][0], folder / f"out{ways[0]}", frames, plan_s, height * width)
    rows = []
    for k, way in enumerate(ways):
        ratio = statistics.median(some[0].seconds / some[k].seconds for some in turns)
        own = [some[k] for some in turns]
        rows.append(
            f"| {way} | {statistics.median(t.seconds for t in own):.1f} | {ratio:.2f} | "
            f"{statistics.median(t.cpu_s for t in own):.1f} | {statistics.median(t.own_cpu_s for t in own):.1f} | "
            f"{statistics.median(t.start_s for t in own):.1f} | same |"
        )
    command = " ".join(["python benchmarks/bench_scale.py", *sys.argv[1:]])
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("distributed", "numpy", "numba"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    lines = [
        "# Tiles over workers", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`: {args.tiles} tiles of {args.frames} raw subs of "
        f"{height}x{width}; {platform.system()}, {os.cpu_count()} cores, load {load:.1f} at the end, zemosaic-phase3 "
        f"{__version__}, python {platform.python_version()}, {versions}. Medians of {args.repeat}.", "",
        f"| {'cards' if cards else 'workers x threads'} | s | times {ways[0]} | CPU s of all tiles | "
        "CPU s of the client | s to start, with a small tile each | bits |", "|---|---|---|---|---|---|---|", *rows, "",
        f"{most} processes that only add numbers were {statistics.median(gains):.2f} times one "
        f"({min(gains):.2f} to {max(gains):.2f} between the runs): what the machine gave.", "",
        "| constant | value |", "|---|---|",
        *[f"| {key} | {value:.4g} |" for key, value in asdict(measured).items()], "",
        "By these constants, arithmetic and not measured:", "", *law(measured, 100_000), "", *law(measured, 1_000_000),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
