"""Tiles over real processes of Dask: workers killed, a scheduler restarted, and the bits of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cluster_bombs
import pytest
from cluster_case import Cluster, begun, beside, finished, right_pixels, when
from mosaic_case import write_panels

from zemosaic_phase3.cluster.manifest import manifest_document, records_in, write_manifest
from zemosaic_phase3.cluster.order import WORK_FOLDER, TileOptions, TileOrder, TileRecord, prepare_folder
from zemosaic_phase3.cluster.pool import ClusterError, PoolPlan, cards_of, connect, local_pool, plan_pool
from zemosaic_phase3.cluster.run import AHEAD, Patience, TilesResult, TilesRun, chosen_tiles, orders_of
from zemosaic_phase3.cluster.run_lock import LOCK, only_run
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.cluster.worker import make_tile, sha256_of
from zemosaic_phase3.errors import DeviceError, OutputError, PlanError, SpecError
from zemosaic_phase3.io.atomic_write import machine
from zemosaic_phase3.runtime import limits

if TYPE_CHECKING:
    from distributed import Client

OPTIONS = TileOptions(memory=2 * 10**9, threads=1, device="cpu")
PATIENCE = Patience(scheduler=60, workers=60, straggler=60)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TilePlan:
    """Three tiles of two panels: frames are shared."""
    paths = [str(path) for path in write_panels(tmp_path_factory.mktemp("subs"), n_frames=7, size=(64, 96))]
    parts = {"a": paths[:6], "b": paths[1:7], "c": paths[7:14]}
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


def arm(client: Client, where: str, marker: Path, who: str, **options: object) -> None:
    client.run(cluster_bombs.arm, where, str(marker), who, **options)


@pytest.mark.filterwarnings("ignore")  # Dask's, of workers that went
def test_workers_killed_between_bands_and_at_writing_then_again(
    client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path
) -> None:
    between, writing = tmp_path / "between", tmp_path / "writing"
    arm(client, "zemosaic_phase3.cluster.over_workers:band_edges", between, "owner")
    arm(client, "os:fsync", writing, "owner")
    out, options = tmp_path / "out", replace(OPTIONS, bands=2)
    first = run(client, plan, out, options)
    assert between.exists()
    assert writing.exists()
    assert [record.state for record in first.records] == ["made"] * 3
    assert pixels(first) == right
    assert sum(record.attempts for record in first.records) == 5  # each accident cost one beginning
    assert sum(record.measured_before for record in first.records) >= 5  # before a kill
    assert not begun(out)
    document = manifest_document(first, plan.tiles, plan="plan.toml")
    path = write_manifest(document, out)
    told = json.loads(path.read_text().replace("NaN", "null"))
    assert (told["made"], told["kept"], told["failed"]) == (3, 0, 0)
    assert {row["device"] for row in told["tiles"]} == {"cpu"}
    assert all(row["worker"].startswith("process") and len(row["sha256"]) == 64 for row in told["tiles"])
    assert set(records_in(out)) == {"a", "b", "c"}

    (out / "a.fits").write_bytes((out / "b.fits").read_bytes())  # not what its record says
    other = run(client, plan, out, replace(OPTIONS, bands=1))
    assert [record.state for record in other.records] == ["made", "kept", "kept"]
    assert pixels(other) == right
    assert [record.sha256 for record in other.records[1:]] == [record.sha256 for record in first.records[1:]]


@pytest.mark.filterwarnings("ignore")  # Dask's, of a worker that went
@pytest.mark.parametrize("part", ["measure_part", "stack_band"])
def test_a_helper_killed_while_it_does_a_part(
    client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path, part: str
) -> None:
    client.wait_for_workers(2)
    arm(client, f"zemosaic_phase3.cluster.over_workers:{part}", tmp_path / "gone", "helper", other_waits=True)
    result = run(client, chosen_tiles(plan, ["c"]), tmp_path, replace(OPTIONS, bands=3))
    assert (tmp_path / "gone").exists()
    assert pixels(result) == {"c": right["c"]}
    assert result.records[0].attempts == 1  # whoever had the tile went on
    assert "3 bands of rows" in result.records[0].device_reason


def test_a_frame_that_goes_between_measuring_and_bands(client: Client, plan: TilePlan, tmp_path: Path) -> None:
    frames = [Path(shutil.copy2(frame, tmp_path)) for frame in plan.tiles[2].frames]
    arm(client, "zemosaic_phase3.cluster.over_workers:band_edges", tmp_path / "gone", "owner", unlink=str(frames[1]))
    tile = PlannedTile("c", tuple(map(str, frames)), height=64, width=96)
    record = run(client, TilePlan((tile,)), tmp_path, replace(OPTIONS, bands=2)).records[0]
    assert (record.state, record.n_used, record.bands) == ("made", len(frames) - 1, 2)
    assert "bands of rows" not in record.device_reason  # that worker stacked it alone


def test_a_worker_whose_disk_is_full(client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path) -> None:
    client.wait_for_workers(2)
    one = next(iter(client.scheduler_info()["workers"]))
    client.run(cluster_bombs.limit_files, 20_000, workers=[one])
    try:
        result = run(client, chosen_tiles(plan, ["a", "b"]), tmp_path)
    finally:
        client.run(cluster_bombs.limit_files, -1, workers=[one])
    assert not [record.reason for record in result.failed]
    assert pixels(result) == {name: right[name] for name in "ab"}
    assert len({record.pid for record in result.records}) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_workers_keep_what_arrays_free(client: Client) -> None:
    """Dask has each array of a few megabytes asked of the system anew; a tile's time was half that."""
    client.run(limits.keep_freed_memory)
    assert max(client.run(cluster_bombs.faults_of_arrays).values()) < 20 * 2048 / 4


@pytest.mark.filterwarnings("ignore")  # Dask's, of a worker that is silent
def test_a_worker_that_hangs(client: Client, plan: TilePlan, right: dict[str, str], tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(done: threading.Event) -> None:
        if when(lambda: len(finished(tmp_path)) == 2 and bool(begun(tmp_path)), done):
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


def test_no_more_is_ordered_than_workers_are_near_to(client: Client, plan: TilePlan, tmp_path: Path) -> None:
    folder, frame, most = prepare_folder(tmp_path), plan.tiles[0].frames[0], 0
    tiles = TilePlan(tuple(PlannedTile(f"t{k}", (frame,)) for k in range(40)))
    orders = orders_of(tiles, folder, OPTIONS, n_workers=2, per_host=2)
    for order in orders:  # as if they had been made before: none takes long
        order.output.write_bytes(b"tile")
        TileRecord(order.name, "made", key=order.key(), size=4, sha256=sha256_of(order.output)).write(order.record)

    def count(_record: TileRecord) -> None:
        nonlocal most
        most = max(most, sum(key.startswith("tile-") for key in client.futures))

    result = TilesRun(client, orders, patience=PATIENCE, finished=count).run()
    assert {record.state for record in result.records} == {"kept"}
    assert most <= 2 * AHEAD + 2  # two workers; keys that are on their way out


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

        orders = orders_of(chosen_tiles(plan, ["a", "c"]), out, OPTIONS, n_workers=1, per_host=1)
        client = connect(cluster.address, patience_s=60)
        try:
            with beside(restart):
                result = TilesRun(client, orders, address=cluster.address, patience=PATIENCE).run()
        finally:
            client.close(timeout=1)
    assert {record.state for record in result.records} <= {"made", "kept"}  # kept: finished, but nobody was told
    assert pixels(result) == {name: right[name] for name in "ac"}
    assert result.orders_lost >= 1
    assert max(record.attempts for record in result.records) <= 2


def test_a_worker_with_other_code_refuses(plan: TilePlan, tmp_path: Path) -> None:
    order = TileOrder("a", plan.tiles[0].frames, str(prepare_folder(tmp_path)), OPTIONS, "0.0.1 of old")
    record = make_tile(order, "me")
    assert (record.state, record.attempts) == ("other code", 0)
    assert "0.0.1 of old" in record.reason


def test_workers_with_other_code_end_the_run(client: Client, plan: TilePlan, tmp_path: Path) -> None:
    order = TileOrder("a", plan.tiles[0].frames, str(prepare_folder(tmp_path)), OPTIONS, "0.0.1 of old")
    with pytest.raises(ClusterError, match=r"worker process\d .*the order comes from 0\.0\.1 of old; install the same"):
        TilesRun(client, [order], patience=PATIENCE).run()


def test_records_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("", "[]", '{"name": 3}', "{"):
        path.write_text(text)
        assert TileRecord.read(path) is None
    TileRecord("a", "made", notes=("x",)).write(path)
    assert TileRecord.read(path) == TileRecord("a", "made", notes=("x",))


def test_one_run_in_a_folder_at_a_time(tmp_path: Path) -> None:
    lock = prepare_folder(tmp_path) / WORK_FOLDER / LOCK
    with only_run(tmp_path):
        with pytest.raises(OutputError, match=rf"another run \(process {os.getpid()} on "), only_run(tmp_path):
            pass
        assert lock.exists()
    assert not lock.exists()
    told = {"machine": machine(), "host": "here", "pid": 2**22 + 1, "token": "x"}  # no such process: it was killed
    lock.write_text(json.dumps(told))
    with only_run(tmp_path):
        pass
    lock.write_text(json.dumps({**told, "machine": "far", "host": "far"}))
    with pytest.raises(OutputError, match="on far"), only_run(tmp_path):
        pass
    os.utime(lock, (lock.stat().st_mtime - 61,) * 2)
    with only_run(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be a folder of tiles"):
        prepare_folder(tmp_path / "file")
    lock.parent.rmdir()
    with pytest.raises(OutputError, match="may not be written"), only_run(tmp_path):
        pass


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
