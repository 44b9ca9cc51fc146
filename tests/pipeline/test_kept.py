"""A run that was stopped goes on where it was, with the same bits; and nothing wrong with a journal costs a stack."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import SKY

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab_plan import slabs_to_do
from zemosaic_phase3.errors import NoFramesError, OutputError, StackCancelled
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline import journal as journal_module
from zemosaic_phase3.pipeline import kept_rows
from zemosaic_phase3.pipeline.journal import Journal
from zemosaic_phase3.pipeline.kept_rows import KeptRows
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.spec import RegisterSpec, StackSpec


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session") / "subs"
    simulate(replace(SKY, n_frames=7, bayer="GRBG", height=96, width=128, n_stars=50), folder)
    return folder


@pytest.fixture
def subs(session: Path, tmp_path: Path) -> Path:
    shutil.copytree(session, tmp_path / "subs")
    return tmp_path / "subs"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every slab: short stacks are worth it here."""
    monkeypatch.setattr(kept_rows, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(kept_rows, "NEXT_SECONDS", 0.0)


def stacked(subs: Path, output: Path | None, **options: Any) -> Tile:
    return stack_files([subs], output, device="cpu", workers=1, overwrite=True, maps=True, **options)


def taken(tile: Tile) -> tuple[int, int, int]:
    return tile.report.resumed.measured, tile.report.resumed.registered, tile.report.resumed.rows


def assert_same(tile: Tile, expected: Tile) -> None:
    assert tile.image.tobytes() == expected.image.tobytes()
    for name, values in expected.maps.items():
        assert tile.maps[name].tobytes() == values.tobytes(), name
    for ours, theirs in zip(tile.rows, expected.rows, strict=True):
        assert (ours.name, ours.used, ours.scale, ours.weight) == (
            theirs.name,
            theirs.used,
            theirs.scale,
            theirs.weight,
        )
        assert ours.rejected_percent == theirs.rejected_percent or not ours.used
    assert tile.report.rejected_high_percent == expected.report.rejected_high_percent


def test_the_same_command_measures_nothing_twice(subs: Path, tmp_path: Path) -> None:
    expected = stacked(subs, None)
    first, second = stacked(subs, tmp_path / "o.fits"), stacked(subs, tmp_path / "o.fits")
    assert taken(first) == (0, 0, 0)
    assert taken(second) == (7, 6, 0)
    assert_same(first, expected)
    assert_same(second, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.fits", "o.fits.journal", "subs"]
    assert (tmp_path / "o.fits.journal").stat().st_size < 7 * 60_000  # nothing of the stack itself stays


def test_tonights_frames_alone_are_measured(subs: Path, tmp_path: Path) -> None:
    late = sorted(subs.glob("*.fits"))[-2:]
    for path in late:
        path.rename(tmp_path / path.name)
    stacked(subs, tmp_path / "o.fits")
    for path in late:
        (tmp_path / path.name).rename(path)
    both = stacked(subs, tmp_path / "o.fits")
    assert both.report.resumed.measured == 5
    assert_same(both, stacked(subs, None))


def test_a_frame_that_was_written_anew_is_measured_anew(subs: Path, tmp_path: Path) -> None:
    stacked(subs, tmp_path / "o.fits")
    path = sorted(subs.glob("*.fits"))[2]
    with fits.open(path) as hdus:
        hdus[0].data = hdus[0].data + 7
        hdus.writeto(path, overwrite=True)
    again = stacked(subs, tmp_path / "o.fits")
    assert again.report.resumed.measured == 6
    assert_same(again, stacked(subs, None))


@pytest.mark.parametrize(
    "options",
    [
        {"register": RegisterSpec(detection_sigma=7.0)},
        {"register": RegisterSpec(transform="affine")},
        {"stack": StackSpec(reject="none", weight="none", normalize="none"), "register": RegisterSpec(mode="none")},
        {"bayer": "none"},
    ],
)
def test_other_options_never_take_what_is_not_theirs(subs: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    stacked(subs, tmp_path / "o.fits")
    assert_same(stacked(subs, tmp_path / "o.fits", **options), stacked(subs, None, **options))


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_a_stopped_stack_goes_on(
    subs: Path, tmp_path: Path, at_once: None, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is stopped after some slabs; another slab height goes on."""
    expected, seen = stacked(subs, None), []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if stage == "stack" and done == after:
            raise StackCancelled

    with pytest.raises(StackCancelled), monkeypatch.context() as patch:
        patch.setattr(cpu, "SLAB_BYTES", 1)  # slabs of 8 rows
        stacked(subs, tmp_path / "o.fits", progress=stop)
    assert seen[-1] == ("stack", after, 12)
    again = stacked(subs, tmp_path / "o.fits")
    assert taken(again)[:2] == (7, 6)
    assert 0 < again.report.resumed.rows <= 8 * after
    assert_same(again, expected)
    assert taken(stacked(subs, tmp_path / "o.fits")) == (7, 6, 0), "the rows serve once"


def test_a_stop_while_measuring_keeps_what_was_measured(subs: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "measure" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stacked(subs, tmp_path / "o.fits", progress=stop)
    again = stacked(subs, tmp_path / "o.fits")
    assert again.report.resumed.measured in (3, 4)
    assert_same(again, stacked(subs, None))


def test_gaps_between_finished_rows(subs: Path, tmp_path: Path, at_once: None) -> None:
    """Rows may be finished anywhere; those between are stacked, and every count is right."""
    spec = StackSpec(normalize="none", weight="none")
    paths = sorted(subs.glob("*.fits"))

    def job() -> Any:
        return make_job([Frame(open_source(path)) for path in paths], spec)

    expected = cpu.stack(job(), Resources(memory=1 << 30))
    journal = Journal.opened(tmp_path / "j")
    kept = KeptRows(journal)
    cpu.stack(job(), Resources(memory=1 << 30, rows=10), lambda *_: kept.finish(), kept)
    with sqlite3.connect(tmp_path / "j") as db:
        assert db.execute("SELECT count(*) FROM band").fetchone() == (10,)
        db.execute("DELETE FROM band WHERE first IN (0, 30, 40, 90)")
        damaged = db.execute("SELECT data FROM band WHERE first = 60").fetchone()[0]
        db.execute("UPDATE band SET data = ? WHERE first = 60", (damaged[:-1] + bytes([damaged[-1] ^ 1]),))
    for rows in (7, 96):
        again = KeptRows(journal)
        result = cpu.stack(job(), Resources(memory=1 << 30, rows=rows), None, again)
        again.finish()
        assert result.image.tobytes() == expected.image.tobytes()
        assert np.array_equal(result.frame_counts, expected.frame_counts)
        assert (result.all_rejected, result.rejected_percent("coverage")) == (
            expected.all_rejected, expected.rejected_percent("coverage"),
        )  # fmt: skip
    assert again.n_restored >= 80  # the last slabs may have been too late
    journal.close()


def test_rows_of_another_tolerance_are_not_taken(subs: Path, tmp_path: Path, at_once: None) -> None:
    frames = [Frame(open_source(path)) for path in sorted(subs.glob("*.fits"))]
    job = make_job(frames, StackSpec(normalize="none", weight="none"))
    journal = Journal.opened(tmp_path / "j")
    taken = []
    for tolerance in (None, 0.0, 5.0, 5.0):
        kept = KeptRows(journal)
        some = None if tolerance is None else np.full(job.shape, tolerance, np.float32)
        cpu.stack(replace(job, tolerance=some), Resources(memory=1 << 30, rows=32), None, kept)
        taken.append(kept.n_restored)
        kept.finish()
    assert taken[:3] == [0, 0, 0]
    assert taken[3] > 0
    journal.close()


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ([], [(0, 4), (4, 8), (8, 10)]),
        ([(0, 10)], []),
        ([(0, 3)], [(3, 7), (7, 10)]),
        ([(2, 3), (3, 9)], [(0, 2), (9, 10)]),
        ([(9, 10)], [(0, 4), (4, 8), (8, 9)]),
    ],
)
def test_slabs_to_do(finished: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert list(slabs_to_do(10, 4, [slice(*rows) for rows in finished])) == [slice(*rows) for rows in expected]


def _change(path: Path, *orders: str) -> None:
    db = sqlite3.connect(path)
    for order in orders:
        db.execute(order)
    db.commit()
    db.close()


def begun(path: Path) -> None:
    journal = Journal.opened(path)
    journal.keep_band("of nobody", 0, 1, b"")
    journal.close()


def _foreign(path: Path) -> None:
    _change(path, "CREATE TABLE theirs (a)")


def _other_layout(path: Path) -> None:
    begun(path)
    _change(path, "PRAGMA user_version = 99")


def _damaged(path: Path) -> None:
    begun(path)
    data = bytearray(path.read_bytes())
    data[100:3000] = os.urandom(2900)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("no database at all\n" * 99), "not a database"),
        (lambda path: path.mkdir(), "unable to open"),
        (lambda path: path.symlink_to(path.parent / "elsewhere"), "symbolic link"),
        (_foreign, "another program's"),
        (_other_layout, "another version"),
        (_damaged, "malformed"),
    ],
)
def test_what_is_no_journal_is_left_alone_and_said(subs: Path, tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "o.fits.journal"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    tile = stacked(subs, tmp_path / "o.fits")
    assert any(said in note and "kept for a next run" in note for note in tile.report.warnings), tile.report.warnings
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not (tmp_path / "elsewhere").exists()
    assert_same(tile, stacked(subs, None))


def test_fresh_begins_anew(subs: Path, tmp_path: Path) -> None:
    stacked(subs, tmp_path / "o.fits")
    assert taken(stacked(subs, tmp_path / "o.fits", fresh=True)) == (0, 0, 0)
    assert taken(stacked(subs, tmp_path / "o.fits")) == (7, 6, 0)
    _other_layout(tmp_path / "x.fits.journal")
    tile = stacked(subs, tmp_path / "x.fits", fresh=True)
    assert not any("journal" in note for note in tile.report.warnings)
    assert taken(stacked(subs, tmp_path / "x.fits")) == (7, 6, 0)


def test_records_of_other_versions_are_left_and_not_used(
    subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("journal", "kept_frames", "kept_rows"):
        monkeypatch.setattr(f"zemosaic_phase3.pipeline.{module}.version", lambda: "0.0.1 of old")
    stacked(subs, tmp_path / "o.fits")
    monkeypatch.undo()
    tile = stacked(subs, tmp_path / "o.fits")
    assert taken(tile) == (0, 0, 0)
    assert any("13 records of other versions" in note for note in tile.report.warnings)
    assert taken(stacked(subs, tmp_path / "o.fits")) == (7, 6, 0)


def test_no_journal_where_none_is_wanted(subs: Path, tmp_path: Path) -> None:
    stacked(subs, tmp_path / "o.fits", resume=False)
    stack_files([fits.getdata(path).astype(np.float32) for path in subs.glob("*.fits")], tmp_path / "a.fits")
    assert not list(tmp_path.glob("*.journal"))
    with pytest.raises(OutputError, match="no folder for a journal"):
        stacked(subs, tmp_path / "o.fits", cache=tmp_path / "nowhere")


def test_outputs_share_a_folder_of_journals(subs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    stacked(subs, tmp_path / "a.fits", cache=cache)
    assert taken(stacked(subs, tmp_path / "b.fits", cache=cache)) == (7, 6, 0)
    assert taken(stacked(subs, None, cache=cache)) == (7, 6, 0)
    assert [path.name for path in cache.iterdir()] == [journal_module.CACHE_NAME]


def test_a_full_disk_costs_the_journal_alone(
    subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    connected = journal_module._connected  # noqa: SLF001 - SQLite's way of a full disk is a limit of its own

    def small(path: Path, **options: Any) -> sqlite3.Connection:
        connection = connected(path, **options)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    monkeypatch.setattr(journal_module, "_connected", small)
    tile = stacked(subs, tmp_path / "o.fits")
    assert any("nothing more is kept" in note and "full" in note for note in tile.report.warnings)
    assert tile.report.resumed.journal == ""  # there is none for the next run, and none is told of
    assert_same(tile, stacked(subs, None))


def test_rows_leave_the_room_that_the_files_need(
    subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    usage = kept_rows.shutil.disk_usage(tmp_path)
    needed = 4 * 96 * 128 * 3  # of the image alone
    kept: list[str] = []
    monkeypatch.setattr(kept_rows.shutil, "disk_usage", lambda _path: usage._replace(free=needed + 2_000_000))
    monkeypatch.setattr(Journal, "keep_band", lambda _self, job, *_: kept.append(job))
    stacked(subs, tmp_path / "o.fits")
    assert kept == []
    monkeypatch.undo()
    monkeypatch.setattr(kept_rows, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(Journal, "keep_band", lambda _self, job, *_: kept.append(job))
    stacked(subs, tmp_path / "o.fits")
    assert kept


def test_a_short_stack_writes_no_rows(subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(Journal, "keep_band", lambda _self, job, *_: kept.append(job))
    clock = itertools.count(0.0, 5.0)  # seconds between two looks at it
    monkeypatch.setattr(kept_rows, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stacked(subs, tmp_path / "o.fits")
    assert kept == []


def test_threads_and_runs_share_a_journal(subs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    tiles: list[Tile] = []
    threads = [
        threading.Thread(target=lambda k=k: tiles.append(stacked(subs, tmp_path / f"{k}.fits", cache=cache)))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = stacked(subs, None)
    assert len(tiles) == 4
    for tile in tiles:
        assert not any("kept for a next run" in note for note in tile.report.warnings)
        assert_same(tile, expected)
    assert taken(stacked(subs, None, cache=cache)) == (7, 6, 0)


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(journal_module, "WAIT_SECONDS", 0.1)
    begun(tmp_path / "o.fits.journal")
    db = sqlite3.connect(tmp_path / "o.fits.journal", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    yield
    db.close()


def test_a_journal_that_another_program_holds_costs_nothing(subs: Path, tmp_path: Path, locked: None) -> None:
    tile = stacked(subs, tmp_path / "o.fits")
    assert any("locked" in note for note in tile.report.warnings)
    assert_same(tile, stacked(subs, None))


def test_a_run_that_fails_early_leaves_no_journal(subs: Path, tmp_path: Path) -> None:
    for path in subs.glob("*.fits"):
        path.write_bytes(b"no frame" * 100)
    with pytest.raises(NoFramesError):
        stacked(subs, tmp_path / "o.fits")
    assert [path.name for path in tmp_path.iterdir()] == ["subs"]


def test_a_journal_that_cannot_be_made_costs_nothing(tmp_path: Path) -> None:
    journal = Journal.opened(tmp_path / "missing" / "j")
    journal.keep_band("job", 0, 1, b"rows")
    assert "unable to open" in journal.fault
    assert journal.bands("job") == []
    journal.close()


@pytest.mark.parametrize("order", ["gpu first", "cpu first"])
def test_rows_of_one_device_serve_the_other(cupy: Any, subs: Path, tmp_path: Path, at_once: None, order: str) -> None:
    from zemosaic_phase3.engine import gpu

    spec = StackSpec(normalize="none", weight="none")
    paths = sorted(subs.glob("*.fits"))
    jobs = [make_job([Frame(open_source(path)) for path in paths], spec) for _ in range(3)]
    engines = (gpu.stack, cpu.stack) if order == "gpu first" else (cpu.stack, gpu.stack)
    expected = cpu.stack(jobs[0], Resources(memory=1 << 30))
    journal = Journal.opened(tmp_path / "j")
    kept = KeptRows(journal)
    engines[0](jobs[1], Resources(memory=1 << 30, rows=7, gpu_rows=7), lambda *_: kept.finish(), kept)
    journal.close()
    _change(tmp_path / "j", "DELETE FROM band WHERE first BETWEEN 20 AND 50")
    journal = Journal.opened(tmp_path / "j")
    again = KeptRows(journal)
    result = engines[1](jobs[2], Resources(memory=1 << 30, rows=9, gpu_rows=9), None, again)
    assert 40 <= again.n_restored < 90
    again.finish()
    journal.close()
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        assert getattr(result, name).tobytes() == getattr(expected, name).tobytes(), name
    assert result.all_rejected == expected.all_rejected
    for name in ("rejected_low", "rejected_high", "coverage"):
        assert result.rejected_percent(name) == expected.rejected_percent(name) or name == "coverage"


def test_rows_of_a_gpu_that_failed_are_given_up(cupy: Any, subs: Path, tmp_path: Path, at_once: None) -> None:
    """What a failing card made is stacked again by the CPU."""
    from zemosaic_phase3.engine import gpu
    from zemosaic_phase3.pipeline import stack_files as module

    stack, seen = gpu.stack, []

    def failing(*args: Any) -> Any:
        seen.append(stack(*args))
        args[3].finish()
        raise RuntimeError("a fault of the card")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "stack", failing)
        job = make_job([Frame(open_source(path)) for path in sorted(subs.glob("*.fits"))], StackSpec())
        journal = Journal.opened(tmp_path / "j")
        kept = KeptRows(journal)
        with pytest.raises(RuntimeError, match="a fault of the card"):
            module.stack_on_gpu(job, Resources(memory=1 << 30, gpu_rows=8), None, kept)
        assert seen
        again = KeptRows(journal)
        cpu.stack(job, Resources(memory=1 << 30), None, again)
        assert again.n_restored == 0
        journal.close()
