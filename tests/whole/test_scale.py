"""Many tiles in threads: bounded memory, no dead-lock, every callback delivered, one state of the GPU for the run.

``benchmarks/bench_tiles.py`` is the same with 1,000 frames a tile.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tile_case import FakeGpu, Make, pixels

import zemosaic_worker as worker
from zemosaic_phase3.compat import master_tile
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.pipeline import measuring, registering

TILES, FRAMES, THREADS = 12, 24, 4
AVAILABLE = 6 << 20  # bytes that the machine is said to have; half of it holds less than the frames of one tile
LIMIT_S = 90.0


@pytest.fixture
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (master_tile, measuring, registering, cpu):
        monkeypatch.setattr(module, "available_memory", lambda: AVAILABLE)
    monkeypatch.setattr(worker, "_PH3_CONCURRENCY_SEMAPHORE", threading.BoundedSemaphore(2))
    yield
    worker.reset_phase3_gpu_state()


def run(make: Make, groups: list[list[dict[str, Any]]], plan: Any) -> list[Any]:
    """All tiles by a pool of threads; a dead-lock ends in an error instead of a wait without end."""
    with ThreadPoolExecutor(THREADS) as pool:
        tiles = [pool.submit(make, group, tile_id=k, parallel_plan=plan) for k, group in enumerate(groups)]
        return [tile.result(timeout=LIMIT_S) for tile in tiles]


@pytest.mark.usefixtures("_small_machine")
def test_twelve_tiles_in_four_threads(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    groups = [(entries[k % 6 :] + entries[: k % 6]) * (FRAMES // 6) for k in range(TILES)]
    alone = [make(groups[k]).unit() for k in range(6)]  # warm, and what to compare with
    assert FRAMES * pixels(entries[0]).nbytes > AVAILABLE // 2

    gpu = FakeGpu(monkeypatch)
    stack, tried = worker._p3_gpu_stack_from_paths, []

    def fails_from_the_sixth_on(*args: Any, **keywords: Any) -> Any:
        tried.append(threading.get_ident())
        if len(tried) > 5:
            raise worker._P3GPUStackingError("injected")
        return stack(*args, **keywords)

    monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", fails_from_the_sixth_on)
    with caplog.at_level(logging.INFO, "ZeMosaicWorker"):
        made = run(make, groups, SimpleNamespace(cpu_workers=1, use_gpu=True))

    for k, tile in enumerate(made):
        assert np.array_equal(tile.unit(), alone[k % 6], equal_nan=True)
        steps = Counter((stage, done) for stage, done, total in tile.steps if total == FRAMES)
        for stage in ("measure", "register"):
            assert [steps[stage, n] for n in range(1, FRAMES + 1)] == [1] * FRAMES
        slabs = [(done, total) for stage, done, total in tile.steps if stage == "stack"]
        if tile.header["ZMT_DEV"] == "cpu":
            assert slabs[-1][1] >= 2  # no tile has all its frames in memory
            assert [done for done, _ in slabs] == list(range(1, slabs[-1][1] + 1))
        assert tile.details("mastertile_info_saved")[0]["tile_id"] == k
        assert {details["tile_id"] for _, _, _, details in tile.events if "tile_id" in details} == {k}
    devices = Counter(tile.header["ZMT_DEV"] for tile in made)
    assert devices == {"gpu": 5, "cpu": 7}
    assert gpu.calls == 5
    assert len(tried) <= 5 + 2 * 2  # a try and a retry of the tiles that were in work when it failed
    assert worker._P3_GPU_STATE["hard_disabled"]
    lines = Counter(record.getMessage() for record in caplog.records)
    for line in (
        "[P3][GPU] Phase 3 GPU auto mode enabled (mode=C, candidate=True)",
        "[P3][GPU] Using GPU stacker for Phase 3 (mode=auto)",
        "[P3][GPU] GPU disabled for remaining Phase 3 tiles after repeated failures.",
    ):
        assert lines[line] == 1


@pytest.mark.usefixtures("_small_machine")
def test_stopping_a_run_ends_all_its_tiles(make: Make, entries: list[dict[str, Any]]) -> None:
    stop = threading.Event()
    count = iter(range(10**6))

    def listen(*_: Any) -> None:
        if next(count) == 40:
            stop.set()

    with ThreadPoolExecutor(THREADS) as pool:
        tiles = [pool.submit(make, entries, tile_id=k, abort_event=stop, listen=listen) for k in range(TILES)]
        made = [tile.result(timeout=LIMIT_S) for tile in tiles]
    assert sum(tile.path is not None for tile in made) <= 2
    assert all(tile.files() == [] for tile in made if tile.path is None)
