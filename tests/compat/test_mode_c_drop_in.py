"""Mode C as runs of any version meet it: their plans, broken packages, tiles that are none for a GPU, empty tiles."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zemosaic_worker as worker
from zemosaic_phase3.compat.parallel_plan import ParallelPlan, resources_of, tighter
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.engine.gpu_check import frames_of
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.result_check import result_fault
from zemosaic_phase3.errors import UnsuitedTileError
from zemosaic_phase3.spec import StackSpec

ROOT = Path(worker.__file__).parent
PARAMS = {"stack_reject_algo": "none", "stack_weight_method": "none", "poststack_equalize_rgb": False}
FRAMES = [np.full((16, 24, 3), level, np.float32) for level in (10.0, 12.0, 14.0)]


class Engine:
    """A GPU engine that does what it is told and counts."""

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, descriptors: Any, params: Any, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        image, metadata = worker._stack_master_tile_cpu(descriptors, params)
        return (image, metadata) if self.answer is None else self.answer(image)


@pytest.fixture(autouse=True)
def new_run() -> Iterator[None]:
    worker.reset_phase3_gpu_state()
    yield
    worker.reset_phase3_gpu_state()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let Mode C find a healthy GPU with the given engine."""

    def install(engine: Engine) -> Engine:
        monkeypatch.setattr(worker, "_P3_GPU_HELPERS_AVAILABLE", True)
        monkeypatch.setattr(worker, "_p3_gpu_is_usable", lambda logger=None: True)
        monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", engine)
        return engine

    return install


# --------------------------------------------------------------------------- plans

SAYS_NOTHING = [
    None, {}, types.SimpleNamespace(), {"gpu_rows_per_chunk": 64}, {"use_gpu": None}, {"use_gpu": True},
    types.SimpleNamespace(use_gpu=None), types.SimpleNamespace(cpu_workers=2), ParallelPlan(1, False, 0, use_gpu=True),
]  # fmt: skip
SAYS_NO = [
    {"use_gpu": False}, {"use_gpu": "off"}, {"use_gpu": 0}, types.SimpleNamespace(use_gpu=False),
    ParallelPlan(1, False, 0, use_gpu=False),
]  # fmt: skip


@pytest.mark.parametrize("plan", SAYS_NOTHING, ids=repr)
def test_plan_that_says_nothing_allows_the_gpu(use: Any, plan: Any) -> None:
    engine = use(Engine())
    _, metadata, used = worker._stack_master_tile_auto(FRAMES, PARAMS, plan, worker.LOGGER)
    assert (engine.calls, used, metadata["phase3_used_gpu"]) == (1, True, True)


@pytest.mark.parametrize("plan", SAYS_NO, ids=repr)
def test_plan_that_says_no_is_obeyed(use: Any, plan: Any) -> None:
    engine = use(Engine())
    _, metadata, used = worker._stack_master_tile_auto(FRAMES, PARAMS, plan, worker.LOGGER)
    assert (engine.calls, used) == (0, False)
    assert "the plan says" in metadata["phase3_device_reason"]


def test_hints_of_a_dictionary_are_read() -> None:
    plan = {
        "cpu_workers": 3,
        "cpu_rows_per_chunk": 128,
        "gpu_rows_per_chunk": 64,
        "gpu_max_chunk_mb": 32,
        "max_chunk_mb": 8,
    }
    found = resources_of(plan)
    assert (found.workers, found.rows, found.gpu_rows, found.gpu_memory) == (3, 128, 64, 32 << 20)
    half = tighter(plan)
    assert (half.gpu_rows_per_chunk, half.gpu_max_chunk_bytes) == (32, 16 << 20)
    assert plan["gpu_rows_per_chunk"] == 64
    assert tighter({"max_chunk_mb": 8}).gpu_max_chunk_bytes == 4 << 20


def test_out_of_memory_with_a_dictionary_is_retried_with_less(use: Any) -> None:
    plans = []

    class Full(Engine):
        def __call__(self, descriptors: Any, params: Any, **keywords: Any) -> Any:
            plans.append(keywords["parallel_plan"])
            if len(plans) == 1:
                raise MemoryError("full")
            return super().__call__(descriptors, params)

    use(Full())
    plan = {"gpu_rows_per_chunk": 64, "gpu_max_chunk_mb": 32}
    _, _, used = worker._stack_master_tile_auto(FRAMES, PARAMS, plan, worker.LOGGER)
    assert used and plans[0] is plan
    assert (plans[1].gpu_rows_per_chunk, plans[1].gpu_max_chunk_bytes) == (32, 16 << 20)


# --------------------------------------------------------------------------- names that are replaced


def test_candidate_that_was_replaced_is_asked(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(Engine())
    asked = []
    monkeypatch.setattr(worker, "_phase3_gpu_candidate", lambda plan, logger=None: bool(asked.append(plan)))
    plan = {"use_gpu": True}
    assert worker._stack_master_tile_auto(FRAMES, PARAMS, plan, worker.LOGGER)[2] is False
    assert asked == [plan] and engine.calls == 0


def test_no_gpu_stacker_means_the_cpu(use: Any, caplog: pytest.LogCaptureFixture) -> None:
    use(Engine())
    worker._p3_gpu_stack_from_paths = None  # as guarded imports of former versions left it; undone by the fixture
    with caplog.at_level(logging.WARNING):
        assert worker._stack_master_tile_auto(FRAMES, PARAMS, None, worker.LOGGER)[2] is False
    assert not caplog.records


# --------------------------------------------------------------------------- broken packages


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("zemosaic_phase3.engine.gpu", "ImportError"),
        ("zemosaic_phase3.engine.gpu", "SystemError"),
        ("zemosaic_phase3.engine.gpu_check", "RuntimeError"),
        ("cupy", "AttributeError"),
        ("cupy", "OSError"),
    ],
)
def test_whatever_a_package_raises_on_import_the_worker_works(broken: str, error: str) -> None:
    code = f"""
        import importlib.abc, importlib.machinery, sys
        class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path=None, target=None):
                return importlib.machinery.ModuleSpec(name, self) if name == {broken!r} else None
            def exec_module(self, module):
                raise {error}("injected")
        sys.meta_path.insert(0, Broken())
        import numpy as np, zemosaic_worker as w
        image, metadata, used = w._stack_master_tile_auto(
            [np.full((8, 9), 3.0, np.float32)] * 3, {{"stack_reject_algo": "none"}}, None, None
        )
        print(float(image[0, 0]), used)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["3.0", "False"], done.stderr


# --------------------------------------------------------------------------- tiles that are none for a GPU


def test_unsuited_tile_costs_nothing_and_is_told_once_a_run(use: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = use(Engine(UnsuitedTileError("too many frames")))
    caplog.set_level(logging.DEBUG, "ZeMosaicWorker")
    for _ in range(3):
        _, metadata, used = worker._stack_master_tile_auto(FRAMES, PARAMS, None, worker.LOGGER)
        assert not used and "too many frames" in metadata["phase3_device_reason"]
    assert engine.calls == 3  # each at once to the CPU, none tried twice
    assert not worker._P3_GPU_STATE["hard_disabled"]
    told = [r.levelno for r in caplog.records if "too many frames" in r.getMessage()]
    assert told == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    worker.reset_phase3_gpu_state()
    worker._stack_master_tile_auto(FRAMES, PARAMS, None, worker.LOGGER)
    assert [r.levelno for r in caplog.records if "too many frames" in r.getMessage()][3:] == [logging.WARNING]


def test_one_row_is_always_tried(cupy: Any) -> None:
    rng = np.random.default_rng(3)
    job = make_job(frames_of([rng.normal(100, 5, (12, 40)).astype(np.float32) for _ in range(9)]),
                   StackSpec(normalize="none", weight="none"))  # fmt: skip
    result = gpu.stack(job, Resources(gpu_memory=1, gpu_rows=1))
    assert result.gpu is not None and result.gpu.rows_per_slab == 1
    np.testing.assert_array_equal(result.image, cpu.stack(job, Resources()).image)


# --------------------------------------------------------------------------- empty tiles


@pytest.mark.parametrize("value", [np.nan, 0.0])
@pytest.mark.parametrize("counts", [True, False])
def test_right_answer_that_is_empty_is_right(use: Any, value: float, counts: bool) -> None:
    frames = [np.full((16, 24, 3), value, np.float32)] * 3

    def answer(image: np.ndarray) -> Any:
        metadata = {"coverage": np.full(image.shape, 3 if value == 0.0 else 0, np.int32)} if counts else {}
        return image, metadata

    engine = use(Engine(answer))
    image, _, used = worker._stack_master_tile_auto(frames, PARAMS, None, worker.LOGGER)
    np.testing.assert_array_equal(image, frames[0])
    assert used and engine.calls == 1
    assert not worker._P3_GPU_STATE["hard_disabled"]


@pytest.mark.parametrize("value", [np.nan, 0.0])
@pytest.mark.parametrize("counted", [3, 0, None])
def test_empty_answer_to_frames_that_hold_something_is_a_failure(use: Any, value: float, counted: int | None) -> None:
    def answer(image: np.ndarray) -> Any:
        metadata = {} if counted is None else {"coverage": np.full(image.shape, counted, np.int32)}
        return np.full_like(image, value), metadata

    engine = use(Engine(answer))
    image, _, used = worker._stack_master_tile_auto(FRAMES, PARAMS, None, worker.LOGGER)
    np.testing.assert_array_equal(image, FRAMES[1])
    assert not used and engine.calls == 2
    assert worker._P3_GPU_STATE["hard_disabled"]


def test_fault_of_a_result_is_named() -> None:
    rows = lambda rows: np.ones((rows.stop - rows.start, 3), np.float32)  # noqa: E731
    assert "float64" in result_fault(np.ones((4, 3)), (4, 3), None, rows)
    assert "list" in result_fault([1], (4, 3), None, rows)
    nothing = np.full((4, 3), np.nan, np.float32)
    assert "counted valid samples" in result_fault(nothing, (4, 3), np.ones((4, 3), int), rows)
    assert "the frames hold more" in result_fault(nothing, (4, 3), np.zeros((4, 3), int), rows)
