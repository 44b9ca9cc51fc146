"""Clusters to be maltreated: a scheduler and workers as processes of their own, and tiles small enough for tests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from places import ROOT

from zemosaic_phase3.cluster.order import WORK_FOLDER, TileOptions, TileRecord
from zemosaic_phase3.cluster.tile_plan import TilePlan
from zemosaic_phase3.cluster.worker import pixels_of
from zemosaic_phase3.pipeline.input_list import Inputs
from zemosaic_phase3.pipeline.stack_files import stack_files


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Cluster:
    """``dask scheduler`` and ``dask worker`` as a user would start them; both can be killed and started again."""

    def __init__(self, workers: int, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._folder, self._n = folder, workers
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{module.rpartition('.')[2]}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=log, stderr=log, env=self._environment,
                cwd=self._folder, start_new_session=True,
            )  # fmt: skip

    def start_scheduler(self) -> None:
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show"
        )

    def start_workers(self) -> None:
        options = ("--nthreads", "1", "--no-dashboard", "--no-nanny")
        self.workers = [
            self._start("distributed.cli.dask_worker", self.address, *options, "--name", f"w{k}")
            for k in range(self._n)
        ]

    def __enter__(self) -> Cluster:
        self.start_scheduler()
        self.start_workers()
        return self

    def stop(self, process: subprocess.Popen[bytes] | None) -> None:
        """Kill a process and all that it started."""
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def restart(self) -> None:
        """Kill everything, then start it again at the same address."""
        for process in (self.scheduler, *self.workers):
            self.stop(process)
        self.start_scheduler()
        self.start_workers()

    def __exit__(self, *error: object) -> None:
        for process in (*self.workers, self.scheduler):
            self.stop(process)


def begun(folder: Path) -> list[dict[str, object]]:
    """Beginnings of tiles that are not finished: who makes them."""
    lines: list[dict[str, object]] = []
    for path in sorted((folder / WORK_FOLDER).glob("*.begun")):
        with contextlib.suppress(OSError):
            lines += [{"tile": path.stem, **json.loads(line)} for line in path.read_text().splitlines() if line]
    return lines


def finished(folder: Path) -> dict[str, TileRecord]:
    records = (TileRecord.read(path) for path in (folder / WORK_FOLDER).glob("*.json"))
    return {record.name: record for record in records if record is not None}


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do something in another thread until the block ends; what it raises is raised."""
    stop, errors = threading.Event(), []

    def guarded() -> None:
        try:
            work(stop)
        except BaseException as exc:  # noqa: BLE001 - raised again below
            errors.append(exc)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def when(condition: Callable[[], bool], stop: threading.Event, nap: float = 0.005) -> bool:
    """Wait until something is so; False: the work was done before."""
    while not condition():
        if stop.is_set():
            return False
        time.sleep(nap)
    return True


def kill_a_worker(folder: Path, chance: random.Random) -> str:
    """Kill one of the processes that make a tile now, without a word; returns the tile, "": nobody was at work."""
    alive = [line for line in begun(folder) if Path(f"/proc/{line['pid']}").exists()]
    if not alive:
        return ""
    line = chance.choice(alive)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(str(line["pid"])), signal.SIGKILL)
    return str(line["tile"])


def right_pixels(plan: TilePlan, options: TileOptions, folder: Path) -> dict[str, str]:
    """Make all tiles in this process, one after the other, as ``stack`` does, and return digests of their pixels."""
    folder.mkdir(exist_ok=True)
    digests = {}
    for tile in plan.tiles:
        output = folder / f"{tile.name}.fits"
        stack_files(
            Inputs(list(tile.frames), []), output, stack=options.stack, register=options.register,
            select=options.select, calibration=options.calibration, maps=options.maps, device="cpu", resume=False,
        )  # fmt: skip
        digests[tile.name] = pixels_of(output)
    return digests
