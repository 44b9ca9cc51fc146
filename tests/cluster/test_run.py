"""Tiles over real processes of Dask: workers killed, a scheduler restarted, and the bits of one process."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster_case import Cluster, begun, beside, finished, kill_a_worker, right_pixels, when
from mosaic_case import write_panels

from zemosaic_phase3.cluster.manifest import manifest_document, records_in, write_manifest
from zemosaic_phase3.cluster.order import TileOptions, TileOrder, TileRecord, prepare_folder
from zemosaic_phase3.cluster.pool import ClusterError, PoolPlan, cards_of, connect, local_pool, plan_pool
from zemosaic_phase3.cluster.run import Patience, TilesResult, TilesRun, chosen_tiles, orders_of
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.cluster.worker import make_tile
from zemosaic_phase3.errors import DeviceError, PlanError, SpecError

if TYPE_CHECKING:
    from distributed import Client

OPTIONS = TileOptions(memory=2 * 10**9, threads=1, device="cpu")
PATIENCE = Patience(scheduler=60, workers=60, straggler=60)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TilePlan:
    """Four tiles of two panels: frames are shared."""
    paths = [str(path) for path in write_panels(tmp_path_factory.mktemp("subs"), n_frames=9, size=(64, 96))]
    parts = {"a": paths[:7], "b": paths[2:9], "c": paths[9:16], "d": paths[10:18]}
    return TilePlan(tuple(PlannedTile(name, tuple(frames), height=64, width=96) for name, frames in parts.items()))


@pytest.fixture(scope="module")
def right(plan: TilePlan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return right_pixels(plan, OPTIONS, tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_pool(PoolPlan(2, 1, 2 * 10**9)) as client:
        yield client


def run(client: Client, plan: TilePlan, folder: Path, options: TileOptions = OPTIONS) -> TilesResult:
    orders = orders_of(plan, prepare_folder(folder), options, n_workers=2, per_host=2)
    return TilesRun(client, orders, patience=PATIENCE).run()


def pixels(result: TilesResult) -> dict[str, str]:
    return {record.name: record.pixels for record in result.records}


@pytest.mark.filterwarnings("ignore")  # Dask's, of a worker that went
def test_a_worker_killed_in_the_middle_then_again_then_other_options(
    client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill(stop: threading.Event) -> None:
        if when(lambda: bool(begun(tmp_path)), stop):
            killed.append(kill_a_worker(tmp_path, random.Random(1)))

    with beside(kill):
        first = run(client, plan, tmp_path)
    assert killed
    assert [record.state for record in first.records] == ["made"] * 4
    assert pixels(first) == right
    assert {record.name: record.attempts for record in first.records}[killed[0]] == 2
    assert sum(record.attempts for record in first.records) == 5
    assert sum(record.measured_before for record in first.records) >= 4  # by the tile that shares them
    assert not begun(tmp_path)
    document = manifest_document(first, plan.tiles, plan="plan.toml")
    path = write_manifest(document, tmp_path)
    told = json.loads(path.read_text().replace("NaN", "null"))
    assert (told["made"], told["kept"], told["failed"]) == (4, 0, 0)
    assert {row["device"] for row in told["tiles"]} == {"cpu"}
    assert all(row["worker"].startswith("process") and len(row["sha256"]) == 64 for row in told["tiles"])
    assert set(records_in(tmp_path)) == {"a", "b", "c", "d"}

    again = run(client, plan, tmp_path)
    assert [record.state for record in again.records] == ["kept"] * 4
    assert [record.sha256 for record in again.records] == [record.sha256 for record in first.records]

    (tmp_path / "a.fits").write_bytes((tmp_path / "b.fits").read_bytes())  # not what its record says
    other = run(client, plan, tmp_path, replace(OPTIONS, maps=True))
    assert [record.state for record in other.records] == ["made", "kept", "kept", "kept"]
    assert pixels(other) == right


@pytest.mark.filterwarnings("ignore")  # Dask's, of a worker that is silent
def test_a_worker_that_hangs(client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(done: threading.Event) -> None:
        if when(lambda: len(finished(tmp_path)) == 3 and bool(begun(tmp_path)), done):
            stopped.append(int(str(begun(tmp_path)[0]["pid"])))
            os.kill(stopped[0], signal.SIGSTOP)

    orders = orders_of(plan, prepare_folder(tmp_path), OPTIONS, n_workers=2, per_host=2)
    patience = replace(PATIENCE, straggler=1.0, straggler_factor=0.1)
    with beside(stop):
        result = TilesRun(client, orders, patience=patience).run()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert pixels(result) == right
    if stopped:  # else the last tile was faster
        assert len(result.doubled) == 1
        assert max(record.attempts for record in result.records) <= 2


def test_bands_of_rows_over_workers(client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path) -> None:
    result = run(client, chosen_tiles(plan, ["d"]), tmp_path, replace(OPTIONS, bands=3))
    assert pixels(result) == {"d": right["d"]}
    assert "3 bands of rows" in result.records[0].device_reason


def test_tiles_that_cannot_be_made(client: Client, plan: TilePlan, tmp_path: Path) -> None:
    lost = PlannedTile("lost", (str(tmp_path / "nowhere.fits"),))
    result = run(client, TilePlan((lost, plan.tiles[0])), tmp_path)
    assert [record.state for record in result.records] == ["failed", "made"]
    assert "nowhere.fits" in result.records[0].reason
    assert result.records[0].attempts == 1  # no other worker could do it
    assert [record.name for record in result.failed] == ["lost"]
    (tmp_path / "x.fits").mkdir()
    blocked = run(client, TilePlan((replace(plan.tiles[0], name="x"),)), tmp_path)
    assert "is a folder" in blocked.records[0].reason
    assert blocked.records[0].attempts == 2  # that may be one machine's


@pytest.mark.filterwarnings("ignore")  # Dask's, of connections that are lost
def test_a_scheduler_restarted_in_the_middle(plan: TilePlan, right: dict[str, str], tmp_path: Path) -> None:
    out = prepare_folder(tmp_path / "out")
    with Cluster(1, tmp_path) as cluster:

        def restart(stop: threading.Event) -> None:
            if when(lambda: len(finished(out)) >= 1 and bool(begun(out)), stop):
                cluster.restart()

        orders = orders_of(plan, out, OPTIONS, n_workers=1, per_host=1)
        client = connect(cluster.address, patience_s=60)
        try:
            with beside(restart):
                result = TilesRun(client, orders, address=cluster.address, patience=PATIENCE).run()
        finally:
            client.close(timeout=1)
    assert {record.state for record in result.records} <= {"made", "kept"}  # kept: finished, but nobody was told
    assert pixels(result) == right
    assert result.orders_lost >= 1
    assert max(record.attempts for record in result.records) <= 2


def test_a_worker_with_other_code_refuses(plan: TilePlan, tmp_path: Path) -> None:
    order = TileOrder("a", plan.tiles[0].frames, str(prepare_folder(tmp_path)), OPTIONS, "0.0.1 of old")
    record = make_tile(order, "me")
    assert (record.state, record.attempts) == ("other code", 0)
    assert "0.0.1 of old" in record.reason


def test_records_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("", "[]", '{"name": 3}', "{"):
        path.write_text(text)
        assert TileRecord.read(path) is None
    TileRecord("a", "made", notes=("x",)).write(path)
    assert TileRecord.read(path) == TileRecord("a", "made", notes=("x",))


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zemosaic_phase3.cluster.pool.CONNECT_SECONDS", 0.3)
    with pytest.raises(ClusterError, match="no scheduler answers at tcp://127.0.0.1:1"):
        connect("tcp://127.0.0.1:1")


def test_pool_is_sized_by_tiles_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zemosaic_phase3.runtime.limits.usable_cpus", lambda: 8)
    assert plan_pool(3, memory=16 * 10**9) == PoolPlan(3, 2, 16 * 10**9 // 3)
    assert plan_pool(100, memory=16 * 10**9).workers == 8
    assert plan_pool(100, memory=2 * 10**9).workers == 3
    assert plan_pool(100, memory=16 * 10**9, cards=("0", "3")).workers == 2
    with pytest.raises(PlanError, match="--processes"):
        plan_pool(100, memory=10**9, workers=4)


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc,-1")
    assert cards_of("all") == ("2", "GPU-abc")
    assert cards_of("1") == ("2",)
    with pytest.raises(DeviceError, match="2 GPUs are visible"):
        cards_of("3")
    with pytest.raises(SpecError, match="neither all nor a number"):
        cards_of("some")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="0 GPUs"):
        cards_of("all")


def test_bands_by_size() -> None:
    big = PlannedTile("big", ("x",) * 1000, height=3000, width=4000)
    small = PlannedTile("small", ("x",) * 10, height=3000, width=4000)
    orders = orders_of(TilePlan((big, small)), Path("/d"), OPTIONS, n_workers=8, per_host=8)
    assert [order.bands for order in orders] == [8, 1]
    orders = orders_of(TilePlan((big,) * 16), Path("/d"), OPTIONS, n_workers=8, per_host=8)
    assert {order.bands for order in orders} == {1}
