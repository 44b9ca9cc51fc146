"""Mode C: the failure is faked, never the device. Whatever the GPU does, each tile ends right and the run goes on."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

import zemosaic_worker as worker
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.errors import FrameError, NoFramesError, SpecError, StackCancelled, ZeMosaicError
from zemosaic_phase3.runtime import cuda_failure

ENABLED = "[P3][GPU] Phase 3 GPU auto mode enabled (mode=C, candidate=True)"
USING = "[P3][GPU] Using GPU stacker for Phase 3 (mode=auto)"
DISABLED = "[P3][GPU] GPU disabled for remaining Phase 3 tiles after repeated failures."
SECOND = "[P3][GPU] Second GPU attempt failed; disabling Phase 3 GPU for this run: "
PARAMS = {"stack_reject_algo": "kappa_sigma", "stack_weight_method": "none", "poststack_equalize_rgb": False}
PLAN = ParallelPlan(1, False, 0, use_gpu=True, gpu_rows_per_chunk=64, gpu_max_chunk_bytes=1 << 20)


class GPUStackingError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA status {status}")
        self.status = status


class Pools:
    """A CuPy that counts how often its pools are freed, and can do nothing else."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.freed: list[str] = []
        self.failure = failure

    def _pool(self, name: str) -> types.SimpleNamespace:
        def free_all_blocks() -> None:
            if self.failure is not None:
                raise self.failure
            self.freed.append(name)

        return types.SimpleNamespace(free_all_blocks=free_all_blocks)

    def get_default_memory_pool(self) -> types.SimpleNamespace:
        return self._pool("device")

    def get_default_pinned_memory_pool(self) -> types.SimpleNamespace:
        return self._pool("pinned")


class FakeGpu:
    """A GPU engine that plays a script: an exception is raised, anything else says what to return.

    ``right`` (and anything beyond the script) is the CPU's result, since both have the same bits.
    """

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.plans: list[ParallelPlan] = []
        self.keywords: list[dict] = []
        self.health_checks = 0
        self.lock = threading.Lock()

    def is_usable(self, logger: logging.Logger | None = None) -> bool:
        with self.lock:
            self.health_checks += 1
        time.sleep(0.02)  # long enough for another thread to ask as well
        return True

    def stack(self, descriptors, params, **keywords):
        with self.lock:
            self.plans.append(keywords["parallel_plan"])
            self.keywords.append(keywords)
            step = self.script.pop(0) if self.script else "right"
        if isinstance(step, BaseException):
            raise step
        image, metadata = worker._stack_master_tile_cpu(descriptors, params)
        return (image if isinstance(step, str) else step(image)), {"engine": "gpu", **metadata}

    @property
    def calls(self) -> int:
        return len(self.plans)


@pytest.fixture(autouse=True)
def new_run(monkeypatch):
    monkeypatch.setattr(cuda_failure, "_POISONED", threading.Event())
    worker.reset_phase3_gpu_state()
    yield
    worker.reset_phase3_gpu_state()


@pytest.fixture
def pools(monkeypatch):
    fake = Pools()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.fixture
def use(monkeypatch):
    """Return a function that makes Mode C find the given engine."""

    def install(gpu: FakeGpu) -> FakeGpu:
        monkeypatch.setattr(worker, "_P3_GPU_HELPERS_AVAILABLE", True)
        monkeypatch.setattr(worker, "_P3GPUStackingError", GPUStackingError)
        monkeypatch.setattr(worker, "_p3_gpu_is_usable", gpu.is_usable)
        monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", gpu.stack)
        return gpu

    return install


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, logger="ZeMosaicWorker")
    return caplog


def frames(seed: int = 1, n: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(100, 3, (n, 12, 10, 3)).astype(np.float32))


def lines(log, level: int | None = None) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == "ZeMosaicWorker" and level in (None, r.levelno)]


def stack(tile=None, *, params=PARAMS, plan=PLAN, **keywords):
    return worker._stack_master_tile_auto(frames() if tile is None else tile, params, parallel_plan=plan, **keywords)


def assert_same_as_cpu(image: np.ndarray, tile=None) -> None:
    expected, _ = worker._stack_master_tile_cpu(frames() if tile is None else tile, PARAMS)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected)


def test_a_new_state_has_the_agreed_keys():
    agreed = {"allowed": True, "hard_disabled": False, "health_checked": False, "healthy": False}
    assert agreed.items() <= worker._P3_GPU_STATE.items()
    state = worker._P3_GPU_STATE
    state.update(allowed=False, hard_disabled=True, left_over=1)
    worker.reset_phase3_gpu_state()
    assert worker._P3_GPU_STATE is state
    assert agreed.items() <= state.items()
    assert "left_over" not in state


def test_candidate_checks_health_once_and_caches_the_answer(use):
    gpu = use(FakeGpu())
    assert all(worker._phase3_gpu_candidate(PLAN, worker.LOGGER) for _ in range(3))
    assert gpu.health_checks == 1
    assert worker._P3_GPU_STATE["health_checked"]
    assert worker._P3_GPU_STATE["healthy"]


@pytest.mark.parametrize("case", ["disabled", "not allowed", "helpers", "plan", "dictionary"])
def test_who_is_refused_is_not_even_checked(use, monkeypatch, case):
    gpu = use(FakeGpu())
    plan: object = PLAN
    if case == "disabled":
        worker._P3_GPU_STATE["hard_disabled"] = True
    elif case == "not allowed":
        worker._P3_GPU_STATE["allowed"] = False
    elif case == "helpers":
        monkeypatch.setattr(worker, "_P3_GPU_HELPERS_AVAILABLE", False)
    else:
        plan = dataclasses.replace(PLAN, use_gpu=False) if case == "plan" else {"use_gpu": "false", "cpu_workers": 2}
    assert not worker._phase3_gpu_candidate(plan, worker.LOGGER)
    assert gpu.health_checks == 0
    image, metadata, used = stack(plan=plan)
    assert (used, metadata["phase3_used_gpu"], metadata["phase3_gpu_attempts"], gpu.calls) == (False, False, 0, 0)
    assert metadata["phase3_device_reason"]
    assert_same_as_cpu(image)


@pytest.mark.parametrize("answer", [False, RuntimeError("driver lost"), CUDARuntimeError(719)])
def test_an_unhealthy_gpu_is_asked_once_and_never_used(use, monkeypatch, log, answer):
    gpu = use(FakeGpu())
    asked = []

    def unusable(logger):
        asked.append(logger)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(worker, "_p3_gpu_is_usable", unusable)
    for _ in range(3):
        image, metadata, used = stack()
        assert not used
        assert_same_as_cpu(image)
    assert (len(asked), gpu.calls) == (1, 0)
    reason = "the GPU failed its health check: "
    assert metadata["phase3_device_reason"].startswith(reason)
    assert isinstance(answer, bool) or str(answer) in metadata["phase3_device_reason"]
    assert ENABLED not in lines(log)
    assert cuda_failure.is_poisoned() == isinstance(answer, CUDARuntimeError)


def test_health_is_checked_once_when_threads_ask_together(use):
    gpu = use(FakeGpu())
    start = threading.Barrier(8, timeout=10)

    def ask(_):
        start.wait()
        return worker._phase3_gpu_candidate(PLAN, worker.LOGGER)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert gpu.health_checks == 1


def test_an_interrupted_health_check_is_not_an_answer(use, monkeypatch):
    gpu = use(FakeGpu())

    def interrupted(logger):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_p3_gpu_is_usable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker._phase3_gpu_candidate(PLAN, worker.LOGGER)
    monkeypatch.setattr(worker, "_p3_gpu_is_usable", gpu.is_usable)
    assert worker._phase3_gpu_candidate(PLAN, worker.LOGGER)


def test_a_healthy_gpu_makes_every_tile_and_says_so_once(use, log):
    gpu = use(FakeGpu())
    for seed in range(4):
        image, metadata, used = stack(frames(seed))
        assert used
        assert_same_as_cpu(image, frames(seed))
        assert metadata["engine"] == "gpu"
        assert (metadata["phase3_used_gpu"], metadata["phase3_gpu_attempts"]) == (True, 1)
    assert (gpu.calls, gpu.health_checks) == (4, 1)
    assert lines(log, logging.INFO) == [ENABLED, USING]
    assert lines(log, logging.WARNING) == []


def test_arguments_reach_the_engine(use):
    gpu = use(FakeGpu())
    logger, events, config = logging.getLogger("other"), [], object()
    worker._stack_master_tile_auto(frames(), PARAMS, PLAN, logger, events.append, config)
    assert gpu.keywords[0] == {"parallel_plan": PLAN, "logger": logger, "pcb_tile": events.append, "zconfig": config}
    assert gpu.keywords[0]["parallel_plan"] is PLAN
    worker._stack_master_tile_auto(frames(), PARAMS, PLAN, None, None, None, 7)
    assert gpu.keywords[1]["tile_id"] == 7
    assert gpu.keywords[1]["logger"] is worker.LOGGER


def test_arguments_reach_the_cpu(use, monkeypatch):
    use(FakeGpu(GPUStackingError("a"), GPUStackingError("b")))
    seen = []
    cpu = worker._stack_master_tile_cpu
    monkeypatch.setattr(worker, "_stack_master_tile_cpu", lambda *a, **k: seen.append((a, k)) or cpu(*a, **k))
    tile, config, events, told = frames(), object(), [], []
    stack(tile, zconfig=config, pcb_tile=events.append, tile_id=3, progress_callback=lambda *a, **k: told.append(a))
    (arguments, keywords), *more = seen
    assert not more, "the whole tile is computed once"
    assert arguments[0] is tile
    assert arguments[1] is PARAMS
    assert keywords["parallel_plan"] is PLAN
    assert (keywords["zconfig"], keywords["tile_id"], keywords["pcb_tile"]) == (config, 3, events.append)


ORDINARY = [
    GPUStackingError("broken kernel"),
    ValueError("odd"),
    OSError("disk"),
    CUDARuntimeError(1),
    ImportError("x"),
]


@pytest.mark.parametrize("error", ORDINARY, ids=lambda e: type(e).__name__)
def test_one_failure_is_retried_with_the_same_plan(use, log, pools, error):
    gpu = use(FakeGpu(error))
    image, metadata, used = stack()
    assert used
    assert_same_as_cpu(image)
    assert gpu.calls == 2
    assert gpu.plans[1] is PLAN
    assert pools.freed == [], "pools are freed when memory was the trouble"
    (warning,) = lines(log, logging.WARNING)
    assert warning.startswith("[P3][GPU]")
    assert all(part in warning for part in (type(error).__name__, "retrying once", str(error)))
    assert lines(log, logging.ERROR) == []
    assert metadata["phase3_gpu_attempts"] == 2
    assert type(error).__name__ in metadata["phase3_device_reason"]
    assert stack()[2], "the GPU stays on"


def assert_disabled_after(gpu: FakeGpu, log, second: BaseException, *, tried: int = 1) -> None:
    """The tile just made and two more are the CPU's, the log says it once, the GPU was not called again."""
    calls, tile = gpu.calls, frames(9)
    for _ in range(2):
        image, metadata, used = stack(tile)
        assert not used
        assert_same_as_cpu(image, tile)
        assert metadata["phase3_gpu_attempts"] == 0
        assert "disabled" in metadata["phase3_device_reason"]
    assert gpu.calls == calls
    assert worker._P3_GPU_STATE["hard_disabled"]
    assert lines(log, logging.WARNING).count(DISABLED) == 1
    errors = [r for r in log.records if r.levelno == logging.ERROR]
    assert len(errors) == tried
    for record in errors:
        assert str(second) in record.getMessage()
        assert record.exc_info
        assert "Traceback" in (record.exc_text or logging.Formatter().formatException(record.exc_info))


@pytest.mark.parametrize("error", ORDINARY, ids=lambda e: type(e).__name__)
def test_two_failures_disable_the_gpu_and_the_cpu_makes_the_whole_tile(use, log, pools, error):
    before = stack()[0] if use(FakeGpu()) else None
    worker.reset_phase3_gpu_state()
    log.clear()
    gpu = use(FakeGpu(error, copy.copy(error)))
    image, metadata, used = stack()
    assert not used
    np.testing.assert_array_equal(image, before)
    assert (gpu.calls, metadata["phase3_gpu_attempts"], metadata["phase3_used_gpu"]) == (2, 2, False)
    assert str(error) in metadata["phase3_device_reason"]
    assert pools.freed == []
    assert_disabled_after(gpu, log, error)
    assert lines(log, logging.ERROR)[0].startswith(SECOND)
    assert lines(log, logging.INFO) == [ENABLED]


def test_out_of_memory_once_frees_the_pools_and_tightens_a_copy_of_the_plan(use, log, pools):
    plan = dataclasses.replace(PLAN)
    gpu = use(FakeGpu(OutOfMemoryError("Out of memory allocating 5 bytes")))
    image, _, used = stack(plan=plan)
    assert used
    assert_same_as_cpu(image)
    assert sorted(pools.freed) == ["device", "pinned"]
    assert gpu.plans[0] is plan
    assert gpu.plans[1] == dataclasses.replace(PLAN, gpu_rows_per_chunk=32, gpu_max_chunk_bytes=1 << 19)
    assert plan == PLAN, "the plan given is not changed"
    assert stack(plan=plan)[2], "the GPU stays on"
    assert gpu.plans[2] is plan
    assert "retrying once" in lines(log, logging.WARNING)[0]


@pytest.mark.parametrize("error", [MemoryError(), CUDARuntimeError(2), OutOfMemoryError("full")])
def test_out_of_memory_twice_disables_the_gpu(use, log, pools, error):
    gpu = use(FakeGpu(error, copy.copy(error)))
    image, _, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert gpu.plans[1].gpu_rows_per_chunk == 32
    assert pools.freed.count("pinned") == 2, "before the retry, and before the CPU needs the memory"
    assert_disabled_after(gpu, log, error)


def test_out_of_memory_without_cupy_frees_nothing_and_goes_on(use, monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    gpu = use(FakeGpu(MemoryError()))
    assert stack()[2]
    assert gpu.calls == 2
    assert "cupy" not in sys.modules


def test_pools_that_cannot_be_freed_count_as_the_second_failure(use, log, pools):
    pools.failure = RuntimeError("pool is broken")
    gpu = use(FakeGpu(MemoryError("full")))
    image, metadata, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert gpu.calls == 1
    assert metadata["phase3_gpu_attempts"] == 2
    assert_disabled_after(gpu, log, pools.failure)


def test_pools_that_cannot_be_freed_at_the_end_do_not_cost_the_tile(use, log, monkeypatch):
    class Late(Pools):
        def _pool(self, name):
            if len(self.freed) >= 2:
                self.failure = CUDARuntimeError(700)
            return super()._pool(name)

    monkeypatch.setitem(sys.modules, "cupy", Late())
    use(FakeGpu(MemoryError("full"), MemoryError("full")))
    image, _, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert any("could not be freed" in line for line in lines(log, logging.WARNING))
    assert cuda_failure.is_poisoned()


class Untouchable(types.ModuleType):
    def __getattr__(self, name):
        raise AssertionError(f"cupy.{name} was used after a sticky error")


@pytest.mark.parametrize("status", [700, 719, 710, 716, 714, 715])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_sticky_error_is_not_retried_and_cupy_not_called_again(use, log, monkeypatch, status, wrapped):
    monkeypatch.setitem(sys.modules, "cupy", Untouchable("cupy"))
    error: Exception = CUDARuntimeError(status)
    if wrapped:
        error, error.__cause__ = GPUStackingError("the kernel failed"), error
    gpu = use(FakeGpu(error))
    image, metadata, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert (gpu.calls, metadata["phase3_gpu_attempts"]) == (1, 1)
    assert cuda_failure.is_poisoned()
    assert not [line for line in lines(log) if "retrying" in line]
    assert_disabled_after(gpu, log, error)


def test_a_sticky_error_in_the_retry_ends_all_cupy_calls(use, log, pools):
    gpu = use(FakeGpu(MemoryError(), CUDARuntimeError(700)))
    assert not stack()[2]
    assert pools.freed == ["device", "pinned"], "freed before the retry, not after"
    assert cuda_failure.is_poisoned()
    assert_disabled_after(gpu, log, CUDARuntimeError(700))


WRONG = {
    "nan everywhere": lambda image: np.full_like(image, np.nan),
    "infinite everywhere": lambda image: np.full_like(image, np.inf),
    "zeros": np.zeros_like,
    "zeros and nan": lambda image: np.where(np.arange(10)[:, None] < 5, np.nan, 0 * image).astype(np.float32),
    "fewer rows": lambda image: image[:-1],
    "no channels": lambda image: image[..., 0],
    "another dtype": lambda image: image.astype(np.float64),
    "not an array": lambda image: None,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_a_failure_like_any_other(use, log, name):
    gpu = use(FakeGpu(WRONG[name], WRONG[name]))
    image, metadata, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert gpu.calls == 2
    assert "GPUStackingError" in metadata["phase3_device_reason"]
    assert "retrying once" in lines(log, logging.WARNING)[0]
    assert worker._P3_GPU_STATE["hard_disabled"]
    assert lines(log).count(DISABLED) == 1


def test_a_wrong_result_once_is_retried(use):
    gpu = use(FakeGpu(np.zeros_like))
    image, _, used = stack()
    assert used
    assert gpu.calls == 2
    assert_same_as_cpu(image)


def test_metadata_that_is_no_mapping_is_a_failure(use, monkeypatch):
    use(FakeGpu())
    monkeypatch.setattr(
        worker, "_p3_gpu_stack_from_paths", lambda *a, **k: (worker._stack_master_tile_cpu(*a)[0], None)
    )
    assert not stack()[2]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_empty_result_of_empty_frames_is_right(use, value):
    gpu = use(FakeGpu())
    image, _, used = stack([np.full((300, 4, 3), value, np.float32)] * 3)
    assert used
    assert gpu.calls == 1
    np.testing.assert_array_equal(image, np.full((300, 4, 3), value, np.float32))


def test_a_hole_is_no_failure(use):
    tile = frames()
    for frame in tile:
        frame[:4] = np.nan
    gpu = use(FakeGpu())
    image, _, used = stack(tile)
    assert used
    assert gpu.calls == 1
    assert np.isnan(image[:4]).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StackCancelled])
@pytest.mark.parametrize("attempt", [1, 2])
def test_interrupts_and_cancelling_pass_through(use, error, attempt):
    gpu = use(FakeGpu(*[GPUStackingError("x")] * (attempt - 1), error("stop")))
    with pytest.raises(error):
        stack()
    assert gpu.calls == attempt
    assert not worker._P3_GPU_STATE["hard_disabled"]


BAD_INPUT = {
    "no frames": ([], PARAMS, NoFramesError),
    "shapes differ": ([np.zeros((4, 5), np.float32), np.zeros((4, 6), np.float32)], PARAMS, ZeMosaicError),
    "unknown method": (frames(), {**PARAMS, "stack_reject_algo": "magic"}, SpecError),
    "missing file": (["/no/such/frame.npy"], PARAMS, FrameError),
}


@pytest.mark.parametrize("use_gpu", [True, False])
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_raises_the_same_before_a_device_is_chosen(use, name, use_gpu):
    tile, params, error = BAD_INPUT[name]
    gpu = use(FakeGpu())
    with pytest.raises(error):
        stack(tile, params=params, plan=dataclasses.replace(PLAN, use_gpu=use_gpu))
    assert (gpu.calls, gpu.health_checks) == (0, 0)
    assert not worker._P3_GPU_STATE["hard_disabled"]


def test_a_frame_that_breaks_during_the_stack_is_not_the_gpus_fault(use, log):
    gpu = use(FakeGpu(FrameError("sub.fits", "truncated")))
    image, metadata, used = stack()
    assert not used
    assert_same_as_cpu(image)
    assert "truncated" in metadata["phase3_device_reason"]
    assert not worker._P3_GPU_STATE["hard_disabled"]
    assert DISABLED not in lines(log)
    assert stack()[2]
    assert gpu.calls == 2


def test_device_cpu_is_never_a_candidate(use):
    gpu = use(FakeGpu())
    image, metadata, used = stack(params={**PARAMS, "device": "CPU"})
    assert not used
    assert_same_as_cpu(image)
    assert (gpu.calls, gpu.health_checks) == (0, 0)
    assert metadata["phase3_device_reason"] == "the CPU was asked for"


def test_require_gpu_is_content_with_the_gpu(use):
    use(FakeGpu(GPUStackingError("once")))
    assert stack(params={**PARAMS, "require_gpu": True})[2]


def test_require_gpu_makes_every_fallback_an_error(use, monkeypatch):
    params = {**PARAMS, "require_gpu": True}
    gpu = use(FakeGpu(GPUStackingError("first"), GPUStackingError("second")))
    monkeypatch.setattr(worker, "_stack_master_tile_cpu", lambda *a, **k: pytest.fail("the CPU was used"))
    with pytest.raises(ZeMosaicError, match="GPU is required.*GPUStackingError: second") as caught:
        stack(params=params)
    assert isinstance(caught.value.__cause__, GPUStackingError)
    with pytest.raises(ZeMosaicError, match="GPU is required.*disabled"):
        stack(params=params)
    assert gpu.calls == 2
    worker.reset_phase3_gpu_state()
    with pytest.raises(ZeMosaicError, match="GPU is required.*plan"):
        stack(params=params, plan=dataclasses.replace(PLAN, use_gpu=False))
    use(FakeGpu(FrameError("sub.fits", "truncated")))
    with pytest.raises(FrameError, match="truncated"):
        stack(params=params)


@pytest.mark.parametrize("chained", [False, True])
def test_the_retry_does_not_pay_for_the_arrays_of_the_failure(use, chained):
    held: list[weakref.ref] = []
    alive: list[bool] = []
    gpu = use(FakeGpu())

    def allocate():
        block = np.ones(1000)
        held.append(weakref.ref(block))
        raise MemoryError("full")

    def hungry(descriptors, params, **keywords):
        if held:
            alive.append(held[0]() is not None)
            return gpu.stack(descriptors, params, **keywords)
        if not chained:
            return allocate()
        try:
            return allocate()
        except MemoryError as exc:
            raise GPUStackingError("the slab does not fit") from exc

    worker._p3_gpu_stack_from_paths = hungry  # `use` undoes this
    assert stack()[2]
    assert alive == [False]


def test_recovery_runs_outside_of_the_except_block(use, monkeypatch):
    handled = []
    use(FakeGpu(GPUStackingError("a"), GPUStackingError("b")))
    cpu = worker._stack_master_tile_cpu
    monkeypatch.setattr(
        worker, "_stack_master_tile_cpu", lambda *a, **k: handled.append(sys.exc_info()) or cpu(*a, **k)
    )
    stack()
    assert handled == [(None, None, None)]


def run_together(n: int, task) -> list:
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(task, range(n)))


def test_two_threads_that_fail_together_disable_once(use, log, monkeypatch):
    gpu = use(FakeGpu())
    meeting = threading.Barrier(2, timeout=20)

    def both_fail(descriptors, params, **keywords):
        with gpu.lock:
            gpu.plans.append(keywords["parallel_plan"])
        meeting.wait()
        raise GPUStackingError("together")

    monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", both_fail)
    for tile, (image, metadata, used) in enumerate(run_together(2, lambda i: stack(frames(i)))):
        assert not used
        assert_same_as_cpu(image, frames(tile))
        assert metadata["phase3_gpu_attempts"] == 2
    assert gpu.calls == 4
    assert lines(log).count(ENABLED) == 1
    assert_disabled_after(gpu, log, GPUStackingError("together"), tried=2)


def test_a_thread_that_fails_after_the_disable_does_not_retry(use, log, monkeypatch):
    gpu = use(FakeGpu())
    disabled = threading.Event()
    calls: list[str] = []

    def fail(descriptors, params, **keywords):
        name = threading.current_thread().name
        with gpu.lock:
            calls.append(name)
            late = len(set(calls)) == 2 and calls[0] != name
        if late:
            assert disabled.wait(20)
        elif len(calls) == 1:
            while len(set(calls)) < 2:  # the other tile is on the GPU as well
                threading.Event().wait(0.001)
        raise GPUStackingError("late" if late else "early")

    monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", fail)
    hard_disable = worker._hard_disable
    monkeypatch.setattr(worker, "_hard_disable", lambda logger: (hard_disable(logger), disabled.set()))
    results = run_together(2, lambda i: stack(frames(i)))
    for tile, (image, _, used) in enumerate(results):
        assert not used
        assert_same_as_cpu(image, frames(tile))
    assert sorted(metadata["phase3_gpu_attempts"] for _, metadata, _ in results) == [1, 2]
    assert len(calls) == 3
    assert lines(log).count(DISABLED) == 1


def test_the_hard_disable_is_told_once_however_threads_interleave(log, monkeypatch):
    class Slow(dict):
        def get(self, key, default=None):
            value = super().get(key, default)
            time.sleep(0.01)  # between the question and the change
            return value

    monkeypatch.setattr(worker, "_P3_GPU_STATE", Slow(worker._P3_GPU_STATE))
    run_together(4, lambda _: worker._hard_disable(worker.LOGGER))
    assert lines(log) == [DISABLED]


def test_a_failure_beside_a_success_leaves_both_tiles_right(use, log):
    gpu = use(FakeGpu(*[GPUStackingError("x")] * 3))
    for tile, (image, _, _) in enumerate(run_together(6, lambda i: stack(frames(i)))):
        assert_same_as_cpu(image, frames(tile))
    assert lines(log).count(DISABLED) <= 1
    assert lines(log).count(ENABLED) == 1
    assert gpu.health_checks == 1


def test_a_new_run_starts_anew(use, log):
    gpu = use(FakeGpu(*[GPUStackingError("x")] * 2))
    assert not stack()[2]
    worker.reset_phase3_gpu_state()
    assert stack()[2]
    assert gpu.health_checks == 2
    assert lines(log).count(ENABLED) == 2


def run_python(code: str, path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=100
    )


RUN = """
    import sys
    import numpy as np
    import zemosaic_worker as worker
    from zemosaic_phase3.compat.parallel_plan import ParallelPlan
    loaded = [m for m in ("cupy", "dask", "cv2", "matplotlib", "numba", "astropy", "scipy") if m in sys.modules]
    assert not loaded, loaded
    for name in ("_p3_gpu_stack_from_paths", "_P3GPUStackingError", "_p3_gpu_is_usable"):
        assert getattr(worker, name) is not None
    assert issubclass(worker._P3GPUStackingError, RuntimeError)
    tile = list(np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5))
    image, metadata, used = worker._stack_master_tile_auto(tile, {}, ParallelPlan(1, False, 0, use_gpu=True))
    assert not used and metadata["phase3_device_reason"]
    np.testing.assert_array_equal(image, np.arange(20, 40, dtype=np.float32).reshape(4, 5))
"""


def broken_cupy(folder: Path, body: str) -> Path:
    (folder / "cupy.py").write_text(f"open({str(folder / 'touched')!r}, 'a').write('x')\n{body}\n")
    return folder


@pytest.mark.parametrize("body", ["raise ImportError('libcudart')", "raise RuntimeError('broken')", "1 / 0"])
def test_a_broken_cupy_costs_nothing_but_one_look(tmp_path, body):
    run_python(RUN, broken_cupy(tmp_path, body))
    touched = tmp_path / "touched"
    assert not touched.exists() or touched.read_text() == "x"


def test_without_cupy_and_without_the_gpu_engine_a_run_is_the_cpus(tmp_path):
    blocked = "    import sys\n    sys.modules['cupy'] = sys.modules['zemosaic_phase3.engine.gpu'] = None\n"
    refused = """
    assert not worker._P3_GPU_HELPERS_AVAILABLE
    assert not worker._p3_gpu_is_usable()
    assert "the GPU engine cannot be imported" in metadata["phase3_device_reason"]
    try:
        worker._p3_gpu_stack_from_paths(tile, {})
    except worker._P3GPUStackingError as exc:
        assert "the GPU engine cannot be imported" in str(exc)
    else:
        raise AssertionError
    """
    run_python(blocked + RUN.replace('"cupy", ', "") + refused, tmp_path)


def test_a_cache_is_mapped(tmp_path):
    data = frames()[0]
    np.save(tmp_path / "a.npy", data)
    loaded = worker._safe_load_cache(tmp_path / "a.npy")
    assert isinstance(loaded, np.memmap)
    assert not loaded.flags.writeable
    np.testing.assert_array_equal(loaded, data)
    loaded.base.close()


@pytest.mark.parametrize("pcb_raises", [False, True])
def test_a_page_file_too_small_means_a_plain_load(tmp_path, monkeypatch, pcb_raises):
    data, told, load = frames()[0], [], np.load
    np.save(tmp_path / "a.npy", data)

    def refuses_to_map(path, mmap_mode=None, **keywords):
        if mmap_mode:
            raise OSError(22, "[WinError 1455] The paging file is too small for this operation to complete")
        return load(path, **keywords)

    def pcb(key, progress, level, **keywords):
        told.append((key, progress, level, keywords["tile_id"]))
        if pcb_raises:
            raise ValueError("the window is gone")

    monkeypatch.setattr(np, "load", refuses_to_map)
    loaded = worker._safe_load_cache(str(tmp_path / "a.npy"), pcb=pcb, tile_id=4)
    assert not isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded, data)
    assert told == [("stack_mem_fallback_memmap_to_ram", None, "WARN", 4)]


def test_other_read_errors_of_a_cache_propagate(tmp_path):
    with pytest.raises(FileNotFoundError):
        worker._safe_load_cache(tmp_path / "none.npy")
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match="pickle"):
        worker._safe_load_cache(tmp_path / "bad.npy")
