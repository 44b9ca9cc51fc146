"""Kill workers at random while many tiles are made: ``python tests/stress/tile_kills.py [--tiles N] [--kills N]``.

Small frames of panels that overlap; each tile takes some of its panel's, so that tiles share frames. Workers of this
machine are killed with SIGKILL while they make a tile. Fails if a tile is missing, differs by a bit from one that one
process made alone, was finished twice or begun again without need, or if something is left behind.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from cluster_case import Cluster, begun, beside, finished, kill_a_worker, right_pixels  # noqa: E402
from mosaic_case import write_panels  # noqa: E402 - found by the line above

from zemosaic_phase3 import __version__  # noqa: E402
from zemosaic_phase3.cluster.order import TileOptions, TileRecord, prepare_folder  # noqa: E402
from zemosaic_phase3.cluster.pool import PoolPlan, connect, local_pool  # noqa: E402
from zemosaic_phase3.cluster.run import Patience, TilesResult, TilesRun, orders_of  # noqa: E402
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan  # noqa: E402


def make_plan(folder: Path, n_tiles: int, n_frames: int, seed: int) -> TilePlan:
    """Write frames and choose those of each tile: five tiles share a panel."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    panels = -(-n_tiles // 5)
    columns = max(1, round(panels**0.5))
    grid = (-(-panels // columns), columns)
    per_panel = n_frames + n_frames // 5
    paths = write_panels(folder / "subs", grid=grid, n_frames=per_panel, size=(64, 96))
    tiles = []
    for k in range(n_tiles):
        own = paths[k % panels * per_panel :][:per_panel]
        chosen = sorted(chance.sample(own, n_frames))
        tiles.append(PlannedTile(f"t{k:04d}", tuple(map(str, chosen)), height=64, width=96))
    return TilePlan(tuple(tiles))


class Killer:
    """Kills workers at random moments, so many that the last falls before the tiles are done."""

    def __init__(self, folder: Path, kills: int, n_tiles: int, seed: int) -> None:
        self._folder, self._n_tiles, self._chance = folder, n_tiles, random.Random(seed)  # noqa: S311
        self._at = sorted(self._chance.sample(range(1, max(kills + 1, int(0.95 * n_tiles))), kills))
        self.killed: list[str] = []

    def __call__(self, stop: threading.Event) -> None:
        """Kill one more each time as many tiles are there as was drawn, after a part of a tile's time."""
        for count in self._at:
            while len(finished(self._folder)) < count and not stop.is_set():
                time.sleep(0.02)
            time.sleep(self._chance.random())
            while not stop.is_set():
                tile = kill_a_worker(self._folder, self._chance)
                if tile:
                    self.killed.append(tile)
                    break
                time.sleep(0.01)


def judge(
    plan: TilePlan,
    result: TilesResult,
    right: dict[str, str],
    finishes: Counter[str],
    killed: Counter[str],
    restarts: int,
    out: Path,
) -> list[str]:
    """Return what is wrong."""
    most = {r.name: 1 + killed[r.name] + (r.name in result.doubled) + restarts for r in result.records}
    faults = [f"{r.name}: begun {r.attempts} times" for r in result.records if r.attempts > most[r.name]]
    faults += [f"{r.name}: {r.state}: {r.reason}" for r in result.failed]
    faults += [f"{r.name}: other pixels" for r in result.records if r.pixels != right[r.name]]
    faults += [f"{name}: finished {n} times" for name, n in finishes.items() if n > 1]
    faults += [f"{tile.name}: not there" for tile in plan.tiles if not (out / f"{tile.name}.fits").is_file()]
    faults += [f"left behind: {path.name}" for path in out.rglob("*.tmp")]
    faults += [f"left behind: {line}" for line in begun(out)]
    return faults


def main() -> int:
    """Return 0 if everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bands", type=int, default=0, help="divide measuring and stacking of each tile over workers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scheduler-kills", type=int, default=0, help="kill scheduler and workers too, so often")
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, options = Path(name), TileOptions(memory=2 * 10**9, threads=1, device="cpu", bands=args.bands)
        plan = make_plan(folder, args.tiles, args.frames, args.seed)
        out = prepare_folder(folder / "out")
        finishes: Counter[str] = Counter()

        def note(record: TileRecord) -> None:
            finishes[record.name] += record.state == "made"

        orders = orders_of(plan, out, options, n_workers=args.workers, per_host=args.workers)
        killer = Killer(out, args.kills, args.tiles, args.seed)
        patience = Patience(scheduler=120, workers=120, straggler=60)
        if args.scheduler_kills:
            with Cluster(args.workers, folder) as cluster:

                def restarts(stop: threading.Event) -> None:
                    for k in range(args.scheduler_kills):
                        share = (k + 1) / (args.scheduler_kills + 1)
                        while len(finished(out)) < share * args.tiles and not stop.is_set():
                            time.sleep(0.05)
                        if not stop.is_set():
                            cluster.restart()

                client = connect(cluster.address, patience_s=60)
                with beside(killer), beside(restarts):
                    run = TilesRun(client, orders, address=cluster.address, patience=patience, finished=note)
                    result = run.run()
                client.close(timeout=1)
        else:
            with local_pool(PoolPlan(args.workers, 1, 2 * 10**9)) as client, beside(killer):
                result = TilesRun(client, orders, patience=patience, finished=note).run()
        right = right_pixels(plan, options, folder / "right")
        faults = judge(plan, result, right, finishes, Counter(killer.killed), args.scheduler_kills, out)
    begun_often = Counter(record.attempts for record in result.records)
    hit_again = sum(n > 1 for n in Counter(killer.killed).values())
    command = " ".join(["python tests/stress/tile_kills.py", *sys.argv[1:]])
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("distributed", "numpy", "numba", "astropy"))
    shared = sum(record.measured_before for record in result.records)
    text = "\n".join([
        "# Tiles whose workers are killed", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`: {args.tiles} tiles of {args.frames} frames of "
        f"64x96, {args.workers} workers; {platform.system()}, zemosaic-phase3 {__version__}, "
        f"python {platform.python_version()}, {versions}", "",
        f"{len(killer.killed)} workers killed with SIGKILL in the middle of a tile ({hit_again} tiles hit more "
        f"than once), {args.scheduler_kills} times the scheduler and all workers ({result.orders_lost} orders lost); "
        f"{result.seconds:.0f} s. Tiles begun " + ", ".join(f"{n} times: {k}" for n, k in sorted(begun_often.items()))
        + f". Tiles finished more than once: {sum(n > 1 for n in finishes.values())}. Given to a second worker because "
        f"slow: {len(result.doubled)}. Frames measured by another tile before: {shared} of {args.tiles * args.frames}. "
        f"Missing, different in a bit, or left behind: {len(faults)}.", "",
    ])  # fmt: skip
    text = "\n".join([text, *faults]) + "\n" if faults else text
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return 1 if faults or len(killer.killed) < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
