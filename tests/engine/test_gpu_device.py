"""What only a device can show: memory that runs out, errors that stay, threads, flat memory over many tiles."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from places import ROOT

import zemosaic_worker as worker
from zemosaic_phase3 import errors
from zemosaic_phase3.compat import stack_cpu, stack_gpu
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.compat.parameters import params_from_stack_spec
from zemosaic_phase3.engine import gpu, gpu_card, gpu_check
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.spec import StackSpec

pytestmark = pytest.mark.gpu
SPEC = StackSpec(normalize="none", weight="none", reject="sigma_clip", kappa_low=2.0, kappa_high=2.0)
PARAMS = params_from_stack_spec(SPEC)
PLAN = ParallelPlan(4, False, 0, use_gpu=True)


@pytest.fixture(autouse=True)
def device():
    """The real CuPy with its pools empty and unlimited, and a run that has just begun."""
    if not gpu_check.usability().usable:
        pytest.skip(gpu_check.usability().reason)
    cupy = cuda.cupy_module()
    cuda.free_pools()
    worker.reset_phase3_gpu_state()
    yield cupy
    cupy.get_default_memory_pool().set_limit(size=0)
    cuda.free_pools()
    worker.reset_phase3_gpu_state()


def frames(n=30, shape=(64, 200, 3), seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(1000.0, 20.0, (n, *shape)).astype(np.float32)
    values[rng.random(values.shape) < 0.01] += 500.0
    values[rng.random(values.shape) < 0.01] = np.nan
    return list(values)


def assert_right(image, arrays):
    np.testing.assert_array_equal(image, stack_cpu.stack_descriptors(arrays, PARAMS)[0])


@pytest.mark.parametrize(("n", "shape"), [(1000, (9, 64, 3)), (10_000, (8, 16)), (700, (16, 128)), (401, (8, 50, 3))])
@pytest.mark.parametrize("reject", ["sigma_clip", "winsorized_sigma_clip", "kappa_sigma"])
def test_many_frames(n, shape, reject):
    arrays = frames(n, shape, 4)
    params = {**PARAMS, "stack_reject_algo": reject, "wsc_impl": "pixinsight"}
    plan = ParallelPlan(4, False, 0, use_gpu=True, gpu_rows_per_chunk=5)
    ours, facts = stack_gpu.gpu_stack_from_arrays(arrays, params, parallel_plan=plan)
    expected, truth = stack_cpu.stack_descriptors(arrays, params)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(facts["rejected_high"], truth["rejected_high"])
    np.testing.assert_array_equal(facts["frame_rejected_percent"], truth["frame_rejected_percent"])


def test_memory_that_runs_out_is_retried_with_less(device, monkeypatch):
    arrays = frames(60, (200, 400, 3))  # 58 MB
    take = cuda.vram_capacity

    def hopeful():  # counts on memory that the pool will not give
        return take() + (64 << 20)

    monkeypatch.setattr(cuda, "vram_capacity", hopeful)
    device.get_default_memory_pool().set_limit(size=30 << 20)
    plan = ParallelPlan(4, False, 0, use_gpu=True, gpu_max_chunk_bytes=50 << 20)
    image, metadata, used = worker._stack_master_tile_auto(arrays, PARAMS, plan)
    assert used
    assert metadata["phase3_gpu_attempts"] == 2
    assert "OutOfMemoryError" in metadata["phase3_device_reason"]
    assert_right(image, arrays)


def test_a_pool_that_is_small_makes_slabs_small(device):
    arrays = frames()
    events = []
    device.get_default_memory_pool().set_limit(size=3 << 20)
    image, _ = stack_gpu.gpu_stack_from_arrays(arrays, PARAMS, pcb_tile=lambda *a, **k: events.append(k))
    assert events[0]["chunks"] > 3
    assert device.get_default_memory_pool().total_bytes() <= 3 << 20
    assert_right(image, arrays)


def test_tiles_in_threads(device):
    tiles = [frames(20 + k, seed=k) for k in range(6)]
    device.get_default_memory_pool().set_limit(size=64 << 20)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda t: worker._stack_master_tile_auto(t, PARAMS, PLAN), tiles * 3))
    for (image, _, used), arrays in zip(made, tiles * 3, strict=True):
        assert used
        assert_right(image, arrays)


def test_two_hundred_tiles_take_no_more_memory_than_two(device):
    arrays = frames(12, (40, 60, 3))
    expected = stack_cpu.stack_descriptors(arrays, PARAMS)[0]
    held = []
    for k in range(200):
        image, _ = stack_gpu.gpu_stack_from_arrays(arrays, PARAMS)
        if k in (1, 199):
            held.append((device.get_default_memory_pool().total_bytes(), device.cuda.runtime.memGetInfo()[0]))
        if k % 40 == 0:
            np.testing.assert_array_equal(image, expected)
    assert held[1][0] == held[0][0]
    assert held[1][1] >= held[0][1] - (1 << 20)
    assert device.get_default_memory_pool().used_bytes() == 0


STICKY = textwrap.dedent("""
    import logging, sys
    import numpy as np
    logging.basicConfig(level=logging.INFO)
    import zemosaic_worker as worker
    from zemosaic_phase3.engine import gpu_card as card
    from zemosaic_phase3.runtime import cuda, cuda_failure
    from zemosaic_phase3.compat.parallel_plan import ParallelPlan
    frames = list(np.random.default_rng(0).normal(100, 3, (5, 40, 50, 3)).astype(np.float32))
    plan, params = ParallelPlan(2, False, 0, use_gpu=True), {"stack_reject_algo": "kappa_sigma"}
    first, _, used = worker._stack_master_tile_auto(frames, params, plan)
    assert used
    cupy = cuda.cupy_module()
    bad = cupy.RawKernel('extern "C" __global__ void bad(int* p) { p[1ll << 50] = 1; }', "bad")
    combine = card.Card.combine
    def poisoned(self, slab):
        combine(self, slab)
        with self._combining:
            bad((1,), (1,), (cupy.zeros(1, cupy.int32),))
    card.Card.combine = poisoned
    bad.compile()
    cuda.leave_alone(bad.kernel)  # the engine does so with its own
    second, facts, used = worker._stack_master_tile_auto(frames, params, plan)
    assert not used and facts["phase3_gpu_attempts"] == 1, facts
    assert cuda_failure.is_poisoned()
    third, facts, used = worker._stack_master_tile_auto(frames, params, plan)
    assert not used and facts["phase3_gpu_attempts"] == 0
    assert (first == second).all() and (first == third).all()
    worker.reset_phase3_gpu_state()
    assert not worker._stack_master_tile_auto(frames, params, plan)[2]
    print("survived")
""")


def test_a_sticky_error_ends_the_gpu_and_not_the_run():
    done = subprocess.run([sys.executable, "-c", STICKY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "survived"
    assert "CUDA cannot be used again in this process" in done.stderr
    assert "Exception ignored" not in done.stderr, "a destructor called CUDA"


STICKY_ON_ONE = textwrap.dedent("""
    import logging
    import numpy as np
    logging.basicConfig(level=logging.INFO)
    import zemosaic_phase3 as zp
    from zemosaic_phase3.engine import gpu_card as card
    from zemosaic_phase3.runtime import cuda, cuda_failure
    frames = list(np.random.default_rng(0).normal(100, 3, (30, 200, 50, 3)).astype(np.float32))
    how = {"register": "none", "normalize": "none", "weight": "none"}
    cupy = cuda.cupy_module()
    def make():
        kernel = cupy.RawKernel('extern "C" __global__ void bad(int* p) { p[1ll << 50] = 1; }', "bad")
        kernel.compile()
        cuda.leave_alone(kernel.kernel)
        return kernel
    bad = cuda.on_card(1, make)
    good = zp.stack(frames, gpus="all", **how)
    assert good.report.device_reason == "GPU, cards 0, 1", good.report
    combine = card.Card.combine
    def poisoned(self, slab):
        combine(self, slab)
        if cuda_failure.card_of_thread() == 1:
            with self._combining:
                bad((1,), (1,), (cupy.zeros(1, cupy.int32),))
    card.Card.combine = poisoned
    for attempts in (1, 0):
        tile = zp.stack(frames, gpus="all", **how)
        assert (tile.image == good.image).all() and tile.report.device == "cpu"
        assert tile.report.gpu_attempts == attempts, tile.report
    assert cuda_failure.is_poisoned()
    print("survived")
""")


def test_a_sticky_error_on_one_card_ends_cuda_and_not_the_run():
    if cuda.card_count() < 2:
        pytest.skip("one card")
    done = subprocess.run([sys.executable, "-c", STICKY_ON_ONE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "survived"
    assert "Exception ignored" not in done.stderr, "a destructor called CUDA"


def test_two_cards_give_the_bits_of_one():
    if cuda.card_count() < 2:
        pytest.skip("one card")
    job = make_job(as_frames(frames(200, (40, 300, 3))), SPEC)
    one, two = gpu.stack(job, Resources(workers=8)), gpu.stack(job, Resources(workers=8, cards=(1, 0), gpu_rows=7))
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_injected_failures_fall_back_to_the_same_bits(monkeypatch):
    arrays = frames()
    good, _, used = worker._stack_master_tile_auto(arrays, PARAMS, PLAN)
    assert used

    def broken(self, slab):
        raise errors.GPUStackingError("injected")

    monkeypatch.setattr(gpu_card.Card, "combine", broken)
    image, metadata, used = worker._stack_master_tile_auto(arrays, PARAMS, PLAN)
    assert not used
    assert metadata["phase3_gpu_attempts"] == 2
    np.testing.assert_array_equal(image, good)
    assert worker._P3_GPU_STATE["hard_disabled"]


def test_a_job_twice_gives_the_same_bits():
    job = make_job(as_frames(frames(200, (40, 300, 3))), SPEC)
    one = gpu.stack(job, Resources(workers=8))
    two = gpu.stack(job, Resources(workers=3, gpu_rows=7))
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
